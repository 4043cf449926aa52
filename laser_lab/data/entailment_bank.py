"""EntailmentBank's public release (Dalvi et al., EMNLP 2021; https://allenai.org/data/entailmentbank), task 2, as a
folder that :mod:`laser_lab.data.readers` reads: ``python -m laser_lab.data.entailment_bank RELEASE FOLDER``."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from laser_lab.data.json_lines import convert_by, write_json_lines

WORLDTREE = "supporting_data/worldtree_corpus_sentences_extended.json"


def convert(release: str | os.PathLike[str], folder: str | os.PathLike[str]) -> dict[str, int]:
    """Write ``corpus.jsonl`` and a file per split of `release` (the unpacked folder, or one above); returns rows per
    file. Equal texts are one document. The reasoning is the tree's conclusions in order; the last one is the
    hypothesis. FileNotFoundError: `release` holds no such release."""
    roots = sorted(path.parents[2] for path in Path(release).glob("**/dataset/task_2/train.jsonl"))
    if not roots or not (roots[-1] / WORLDTREE).is_file():
        raise FileNotFoundError(f"{release} has no dataset/task_2/train.jsonl with {WORLDTREE} beside it")
    root = roots[-1]  # of several versions, the last
    ids: dict[str, str] = {}

    def fact(text: str) -> str:
        return ids.setdefault(" ".join(text.split()), f"f{len(ids)}")

    for text in json.loads((root / WORLDTREE).read_text(encoding="utf-8")).values():
        if text != "DUMMY":
            fact(text)
    files: dict[str, list[dict[str, Any]]] = {}
    for file in sorted((root / "dataset" / "task_2").glob("*.jsonl")):
        files[file.stem] = []
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            meta = row["meta"]
            others = set(meta["distractors"])
            named = {name: fact(text) for name, text in meta["triples"].items()}
            positive = list(dict.fromkeys(i for name, i in named.items() if name not in others))
            negative = dict.fromkeys(i for name, i in named.items() if name in others and i not in positive)
            conclusions = sorted(meta["intermediate_conclusions"].items(), key=lambda item: int(item[0].strip("int")))
            steps = [text for _, text in conclusions]
            if steps[-1:] != [row["hypothesis"]]:
                steps.append(row["hypothesis"])
            question = {"id": row["id"], "query": row["question"], "answer": row["answer"], "reasoning": steps}
            files[file.stem].append(question | {"positive_ids": positive, "negative_ids": list(negative)})
    files["corpus"] = [{"id": name, "text": text} for text, name in ids.items()]
    return write_json_lines(folder, files)


if __name__ == "__main__":
    sys.exit(convert_by(convert, __doc__))
