"""StrategyQA's public release (Geva et al., TACL 2021; https://allenai.org/data/strategyqa) as a folder that
:mod:`laser_lab.data.readers` reads: ``python -m laser_lab.data.strategyqa RELEASE FOLDER``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from laser_lab.data.bm25 import bm25, bm25_index
from laser_lab.data.json_lines import convert_by, write_json_lines
from laser_lab.data.readers import RetrievalTask

RELEASED = "strategyqa_train.json"
NEGATIVES = 20


def convert(release: str | os.PathLike[str], folder: str | os.PathLike[str]) -> dict[str, int]:
    """Write ``corpus.jsonl``, ``train.jsonl`` and ``dev.jsonl`` (every tenth question) from the unpacked `release`, the
    folder or one above; returns rows per file. Equal facts are one document. The reasoning is the decomposition: what
    to ask oneself, in order. Negatives are the first 20 other facts by BM25.

    Raises:
        FileNotFoundError: `release` holds no ``strategyqa_train.json``.
        ModuleNotFoundError: `bm25s` is not installed.
    """
    files = sorted(Path(release).glob(f"**/{RELEASED}"))
    if not files:
        raise FileNotFoundError(f"{release} has no {RELEASED}")
    ids: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    for row in json.loads(files[0].read_text(encoding="utf-8")):
        facts = dict.fromkeys(" ".join(text.split()) for text in row["facts"])
        positive = [ids.setdefault(text, f"s{len(ids)}") for text in facts if text]
        answer = "yes" if row["answer"] else "no"
        question = {"id": row["qid"], "query": row["question"], "answer": answer, "reasoning": row["decomposition"]}
        if positive:
            rows.append(question | {"positive_ids": positive})
    queries, corpus = {row["id"]: row["query"] for row in rows}, {name: text for text, name in ids.items()}
    task = RetrievalTask("strategyqa", queries, corpus, {})
    found = bm25(task, list(queries.values()), bm25_index(task))
    for row in rows:
        ranked = sorted(found[row["id"]].items(), key=lambda item: -item[1])
        row["negative_ids"] = [name for name, _ in ranked if name not in row["positive_ids"]][:NEGATIVES]
    split = {"train": [row for i, row in enumerate(rows) if i % 10], "dev": rows[::10]}
    return write_json_lines(folder, {"corpus": [{"id": name, "text": corpus[name]} for name in corpus], **split})


if __name__ == "__main__":
    sys.exit(convert_by(convert, __doc__))
