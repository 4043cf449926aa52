"""What thoughts say and are worth on real text, for the trained rows of a configuration:
``python -m laser_lab.lab.language CONFIG.yaml --data FOLDER --out STEM``.

The tables of a row lie in its folder in the cache. Those that are missing are made where the row's weights are; then
``STEM_words.csv``, ``STEM_worth.csv``, ``STEM_bm25.csv`` and ``STEM_said.csv`` gather all that are there. What these
files hold already of rows that were run elsewhere stays.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

from laser_lab.base.files import read_yaml, write_text
from laser_lab.data.bm25 import bm25, bm25_index, fused, weighted_bm25
from laser_lab.data.readers import RetrievalTask, mini, read_dataset, read_task
from laser_lab.encoder import think
from laser_lab.evaluation import score_run
from laser_lab.lab.entailment import rows_of, searched_settings
from laser_lab.lab.records import of_row, recorded, system_label
from laser_lab.lab.rows import Row, named_documents, retriever
from laser_lab.probing.language import thought_words, word_recall, worth
from laser_lab.probing.vocabulary import nearest_tokens, reasoning_mass
from laser_lab.thinking import Thoughts

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

WORDS, WEIGHT = 40, 10.0
"""How many words of its thoughts a question gets, and what they weigh together against one of its own."""
PARTS = ("words", "worth", "bm25", "said")
EVERY = 10
"""The 1st, 10th, 20th ... question is an example."""


def tables(row: Row) -> dict[str, pd.DataFrame]:
    """The tables of a trained row, or of the untrained model: a row per question and step, condition or ranking.

    ``words``: :func:`laser_lab.probing.language.word_recall` and :func:`laser_lab.probing.reasoning_mass`, on dev and
    on the bundled ``mini``, which no training saw. ``worth``: nDCG@10 with changed thoughts. ``bm25``: nDCG@10 of BM25,
    of BM25 with the words of the thoughts, of the embedding, and of the embedding fused with each. ``said``: the ten
    nearest tokens of each thought of every tenth question.
    """
    task = named_documents(read_task(row.data, "dev"), read_dataset(row.data, "dev"))
    model = retriever(row)
    kept, facts = row.trained / "documents-pooled.pt", list(task.corpus.values())
    documents = torch.load(kept) if kept.exists() else think(model, facts, prompt_name="document").embeddings
    thoughts = _thoughts(model, task, row.steps)
    unseen = mini()
    words = [_words(model, task, thoughts, "dev"), _words(model, unseen, _thoughts(model, unseen, row.steps), "mini")]
    examples = {max(at, 1) - 1 for at in range(0, len(task.queries) + 1, EVERY)}
    said = nearest_tokens(model, thoughts, 10)
    said = said[said["text"].isin(examples)][["text", "step", "rank", "token", "probability"]]
    said.insert(0, "query_id", said.pop("text").map(list(task.queries).__getitem__))
    found = {"words": pd.concat(words), "said": said, "bm25": _rankings(model, task, thoughts, documents)}
    if row.steps > 1:
        found["worth"] = worth(model, task, documents)[["condition", "query_id", "ndcg@10"]]
    return found


def _thoughts(model: SentenceTransformer, task: RetrievalTask, steps: int) -> Thoughts:
    return think(model, list(task.queries.values()), steps, prompt_name="query", threshold=0.0)


def _words(model: SentenceTransformer, task: RetrievalTask, thoughts: Thoughts, questions: str) -> pd.DataFrame:
    reasonings = [task.reasoning[query] for query in task.queries]
    words = word_recall(model, thoughts, reasonings)
    mass = reasoning_mass(model, thoughts, reasonings).rename(columns={"own": "own_mass", "others": "others_mass"})
    words = words.merge(mass[["text", "step", "own_mass", "others_mass"]], on=["text", "step"])
    words.insert(0, "query_id", words.pop("text").map(list(task.queries).__getitem__))
    words.insert(0, "questions", questions)
    return words


def _rankings(
    model: SentenceTransformer, task: RetrievalTask, thoughts: Thoughts, documents: torch.Tensor
) -> pd.DataFrame:
    index, texts, doc_ids = bm25_index(task), list(task.queries.values()), list(task.corpus)
    best = (thoughts.embeddings @ documents.T).topk(min(1000, len(doc_ids)))
    dense = {
        query: {doc_ids[i]: score for i, score in zip(ids, scores)}
        for query, ids, scores in zip(task.queries, best.indices.tolist(), best.values.tolist())
    }
    bare = bm25(task, texts, index)
    expanded = weighted_bm25(task, texts, thought_words(model, thoughts, WORDS), WEIGHT, index)
    runs = {"bm25": bare, "bm25 + thoughts": expanded, "dense": dense}
    runs |= {"dense & bm25": fused(dense, bare), "dense & bm25 + thoughts": fused(dense, expanded)}
    frames = [score_run(run, task)[["query_id", "ndcg@10"]].assign(ranking=name) for name, run in runs.items()]
    return pd.concat(frames, ignore_index=True)[["ranking", "query_id", "ndcg@10"]]


def keep_tables(row: Row) -> bool:
    """Make the tables of a finished row and keep them in its folder; False: neither they nor its weights are here."""
    parts = [part for part in PARTS if part != "worth" or row.steps > 1]
    if all((row.folder / f"{part}.csv").exists() for part in parts):
        return True
    if row.is_trained and not any((row.trained / "final").glob("*.safetensors")):
        return False
    for part, table in tables(row).items():
        _write(row.folder / f"{part}.csv", table)
    return True


def gathered(rows: list[Row], part: str, settings: Sequence[str] = (), old: pd.DataFrame | None = None) -> pd.DataFrame:
    """A table of all `rows` that have it, behind ``system``, ``train_steps``, ``seed`` and `settings`
    (:meth:`laser_lab.lab.rows.Row.setting`). Rows that are not in the cache are taken from the `old` table."""
    frames = []
    for row in rows:
        if (file := row.folder / f"{part}.csv").exists():
            frame = read_table(file)
            columns = {name: row.columns[name] for name in ("system", "train_steps", "seed")}
            for at, (name, value) in enumerate((columns | {name: row.setting(name) for name in settings}).items()):
                frame.insert(at, name, value)
            frames.append(frame)
        elif old is not None:
            frames.append(of_row(old, row, settings))
    return pd.concat(frames or [pd.DataFrame()], ignore_index=True)


def read_table(file: str | os.PathLike[str]) -> pd.DataFrame:
    """One of the tables. A token may be "NA" or a carriage return: both are text here."""
    return pd.read_csv(file, dtype={"query_id": str}, na_filter=False, lineterminator="\n")


def read_records(folder: str | os.PathLike[str], stems: Mapping[str, str], kind: str) -> pd.DataFrame:
    """``STEM_KIND.csv`` (``STEM.csv`` where `kind` is empty) of each set, `stems` by its name, as one table: ``data``
    names the set, and ``method`` the row (:func:`laser_lab.lab.records.system_label`). FileNotFoundError: a set lacks
    it."""
    files = {name: Path(folder) / f"{stem}{f'_{kind}' if kind else ''}.csv" for name, stem in stems.items()}
    frame = pd.concat([read_table(file).assign(data=name) for name, file in files.items()], ignore_index=True)
    return frame.assign(method=[system_label(s, k) for s, k in zip(frame["system"], frame["train_steps"])])


def _write(file: Path, table: pd.DataFrame) -> None:
    write_text(file, table.to_csv(index=False, float_format="%.5g", lineterminator="\n"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables of all finished rows of a configuration that think, and of the untrained model at K=3."""
    parser = argparse.ArgumentParser(prog="python -m laser_lab.lab.language", description=main.__doc__)
    parser.add_argument("config")
    parser.add_argument("--data", required=True, help="folder with corpus.jsonl, train.jsonl and dev.jsonl")
    parser.add_argument("--out", required=True, help="stem of the CSVs to write")
    parser.add_argument("--search", action="store_true", help="of the trials of the search instead of the table's rows")
    options = parser.parse_args(arguments)
    config, rows = read_yaml(options.config), []
    settings = searched_settings(config) if options.search else []
    files = {part: Path(f"{options.out}_{part}.csv") for part in PARTS}
    old = {part: read_table(file) for part, file in files.items() if file.exists()}
    asked = rows_of(config, options.data, search=options.search)
    elsewhere = recorded(asked, options.out, settings) if "words" in old else {}
    for at, row in enumerate(asked):
        if row.system == "zero-shot":
            row = replace(row, thinking_steps=3)
        elif not row.is_trained:
            continue
        known = at in elsewhere and len(of_row(old["words"], row, settings))
        if row.system == "zero-shot" and not known:
            row.run()
        made = row.done and keep_tables(row)
        if made or known:
            rows.append(row)
        if row.done or known:
            why = "" if made else ": as in the files" if known else ": left out, its weights are not here"
            print(f"{row.system}, K={row.steps}, seed {row.seed}{why}", flush=True)
    if not rows:
        parser.error("no row of the configuration is finished: run laser_lab.lab.entailment first")
    for part, file in files.items():
        if len(table := gathered(rows, part, settings, old.get(part))):  # one pass alone has no worth
            _write(file, table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
