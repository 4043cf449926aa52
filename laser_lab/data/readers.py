"""Readers: every source of data into one schema, a ``datasets.Dataset`` with :data:`COLUMNS` to train on or a
:class:`RetrievalTask` to score."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from datasets import Dataset, DatasetDict, Features, List, Value, load_dataset, load_from_disk

from laser_lab.data.json_lines import check_ids, id_text, json_lines
from laser_lab.data.prompts import query_prompt
from laser_lab.data.segments import segments

logger = logging.getLogger(__name__)

COLUMNS = {
    "id": str,
    "query": str,
    "reasoning": list,  # segments in order; only the explicit view may see them
    "positives": list,
    "negatives": list,
    "positive_ids": list,
    "negative_ids": list,
}
"""Column to Python type; lists hold strings. ``positive_ids`` tell false negatives in a batch."""

OPTIONAL = {
    "prompt": str,  # the query's own instruction, instead of the model's; empty: it has none
    "reasoning_text": str,  # the reasoning as it was before it was cut; empty: it came in segments
}
"""Columns that a dataset has where one of its rows does."""


@dataclass(frozen=True)
class RetrievalTask:
    """Queries to rank a corpus for, with what is relevant."""

    name: str
    queries: dict[str, str]
    """query id to text; for LaME also to images (:mod:`laser_lab.base.inputs`), as in `corpus`"""
    corpus: dict[str, str]
    """document id to text"""
    qrels: dict[str, dict[str, int]]
    """query id to {document id: grade}; a grade > 0 is relevant"""
    reasoning: dict[str, list[str]] = field(default_factory=dict)
    """query id to reasoning segments: for the explicit view and upper bounds only"""
    prompts: dict[str, str] = field(default_factory=dict)
    """query id to its own instruction (:func:`laser_lab.data.prompts.join_query`)"""

    def __post_init__(self) -> None:
        check_ids((*self.queries, *self.corpus), self.name)
        unknown = [q for q in (*self.qrels, *self.prompts) if q not in self.queries] + [
            d for docs in self.qrels.values() for d in docs if d not in self.corpus
        ]
        if unknown:
            raise ValueError(f"{self.name}: qrels or prompts name {len(unknown)} unknown ids, e.g. {unknown[0]!r}")
        for prompt in self.prompts.values():
            query_prompt(prompt)

    def check(self, *, graded: bool = True) -> Self:
        """The task itself, if there is something to rank and (`graded`) a relevant document; else a ValueError."""
        if missing := [name for name in ("queries", "corpus") if not getattr(self, name)]:
            raise ValueError(f"the task {self.name} has no {' and no '.join(missing)}")
        if graded and not any(grade > 0 for docs in self.qrels.values() for grade in docs.values()):
            raise ValueError(f"the task {self.name} has no document with a positive grade: nothing can be scored")
        return self

    @property
    def query_prompts(self) -> list[str]:
        """A prompt per query in order, ``""`` where it has none; empty if none has one."""
        return [self.prompts.get(query, "") for query in self.queries] if self.prompts else []


class BadRows(ValueError):
    """Rows that cannot be read, each as ``source:line: reason``.

    Args:
        count: How many there are, where `problems` names only some.
    """

    def __init__(self, problems: list[str], count: int | None = None) -> None:
        super().__init__(problems, count)
        self.problems = problems
        self.count = len(problems) if count is None else count

    def __reduce__(self) -> Any:  # from one process to another; Ray adds advice to `args`
        return type(self), (self.problems, self.count)

    def __str__(self) -> str:
        shown = self.problems[:20]
        more = f"\n  ... and {self.count - len(shown)} more" if self.count > len(shown) else ""
        lines = "\n  ".join(shown)
        return f"{self.count} bad rows (pass skip_bad=True to leave them out):\n  {lines}{more}"


def mini() -> RetrievalTask:
    """The bundled task: questions on science, everyday life, economics and code."""
    return read_task(Path(__file__).parent / "mini")


def read_task(folder: str | os.PathLike[str], split: str = "dev") -> RetrievalTask:
    """A folder with ``corpus.jsonl`` and ``SPLIT.jsonl`` (EntailmentBank layout) as a task; ids must not repeat."""
    _check_split(split)
    corpus = read_corpus(folder)
    data = read_dataset(folder, split)
    # Public training data repeats ids (EntailmentBank does); a query to be scored must be one query.
    if repeated := [i for i, count in Counter(data["id"]).items() if count > 1]:
        raise ValueError(f"{folder}: {split} has {len(repeated)} ids more than once, e.g. {repeated[0]!r}")
    return RetrievalTask(
        name=f"{Path(folder).name}-{split}",
        queries=dict(zip(data["id"], data["query"])),
        corpus=corpus,
        qrels={row["id"]: dict.fromkeys(row["positive_ids"], 1) for row in data},
        reasoning=dict(zip(data["id"], data["reasoning"])),
        prompts={row["id"]: row["prompt"] for row in data if row.get("prompt")},
    )


def read_corpus(folder: str | os.PathLike[str]) -> dict[str, str]:
    """``corpus.jsonl`` (``id``, ``text``) as {id: text}. BadRows: a line is no JSON, lacks an id or text, or repeats an
    id."""
    file = Path(folder) / "corpus.jsonl"
    corpus: dict[str, str] = {}
    problems = []
    for where, row in json_lines(file):
        if isinstance(row, dict):
            row["id"] = id_text(row.get("id"))
        reason = row if isinstance(row, str) else _missing(row, {"id": str, "text": str})
        if not reason and row["id"] in corpus:
            reason = f"id {row['id']!r} is there already"
        if reason:
            problems.append(f"{where}: {reason}")
        else:
            corpus[row["id"]] = row["text"]
    if problems:
        raise BadRows(problems)
    return corpus


def _check_split(split: str) -> None:
    """Raise a ValueError if a split is no name: it becomes part of a path."""
    if not isinstance(split, str) or not re.fullmatch(r"\w[\w.\-]*", split):
        raise ValueError(f"split is a name like 'train', not {split!r}")


def read_dataset(
    source: str | os.PathLike[str],
    split: str = "train",
    *,
    skip_bad: bool = False,
    strict: bool = False,
    segment_by: str = "blank line",
) -> Dataset:
    """Training data from any source into one schema (:data:`COLUMNS` and, where a row has them, :data:`OPTIONAL`).

    Args:
        source: A folder in the EntailmentBank layout, a ``.jsonl`` file (rows in the schema, in that layout with texts,
            or in the released layout), a folder of ``Dataset.save_to_disk``, or a hub id. The released LaSER layout has
            ``query``, ``reasoning_query``, ``prompt``, ``positive_passages`` and ``negative_passages`` (texts, or dicts
            with ``docid`` and ``text``).
        skip_bad: Leave bad rows out and log how many, instead of raising.
        strict: A text that is positive and negative of one query makes a bad row; else it is no negative, and logged.
        segment_by: How a reasoning text is cut (:data:`laser_lab.data.segments.SEGMENTERS`).

    Raises:
        FileNotFoundError: Nothing at `source`, or no such split.
        BadRows: Rows are malformed, each listed with its line and the reason.
    """
    _check_split(split)
    corpus, rows = _open(source, split)
    good, problems, dropped, kinds = [], [], [], {}
    for where, row in rows:
        result = row if isinstance(row, str) else _normalise(row, corpus, where, segment_by)
        if not isinstance(result, str) and (other := _collision(row, kinds)):
            result = other
        both = [] if isinstance(result, str) else _drop_positives(result)
        if both and strict:
            result = f"{both[0]!r} is both positive and negative"
        if isinstance(result, str):
            problems.append(f"{where}: {result}")
        else:
            good.append(result)
            dropped += [f"{doc!r} of query {result['id']!r} ({where})" for doc in both]
    if not good or (problems and not skip_bad):
        raise BadRows(problems or [f"{source}: no rows"])
    if problems:
        total = len(problems) + len(good)
        logger.warning("%s: %d of %d rows skipped, e.g. %s", source, len(problems), total, problems[0])
    if dropped:
        named = ", ".join(dropped[:20]) + (f" and {len(dropped) - 20} more" if len(dropped) > 20 else "")
        logger.warning("%s: dropped from the negatives, as they are positive too: %s", source, named)
    used = [*COLUMNS, *(name for name in OPTIONAL if any(row[name] for row in good))]
    return Dataset.from_list([{name: row[name] for name in used} for row in good], features=features(*used))


def _open(source: str | os.PathLike[str], split: str) -> tuple[dict[str, str], Iterable[tuple[str, Any]]]:
    """The corpus that rows name documents of, if there is one, and (where it stands, row, or why it is none)."""
    path = Path(source).expanduser()
    if (path / "corpus.jsonl").is_file():
        return read_corpus(path), json_lines(path / f"{split}.jsonl")
    if path.suffix in (".jsonl", ".json") and path.is_file():
        return {}, json_lines(path)
    if not path.exists() and str(source).count("/") == 1 and not str(source).startswith((".", "/", "~")):
        name, loaded = str(source), load_dataset(str(source), split=split)
    elif path.is_dir() and (list(path.glob("dataset*.json")) or (path / "state.json").exists()):
        name, loaded = path.name, load_from_disk(str(path))
    else:
        raise FileNotFoundError(f"{str(source)!r} is no .jsonl file, no folder with corpus.jsonl or a saved Dataset.")
    if isinstance(loaded, DatasetDict):
        if split not in loaded:
            raise FileNotFoundError(f"{source} has no split {split!r}; it has {', '.join(loaded)}.")
        loaded = loaded[split]
    return {}, ((f"{name}:{i}", row) for i, row in enumerate(loaded, 1))


def features(*names: str) -> Any:
    """``datasets.Features`` of the named columns; default: those of :data:`COLUMNS`."""
    text, kinds = Value("string"), COLUMNS | OPTIONAL
    return Features({name: text if kinds[name] is str else List(text) for name in names or COLUMNS})


def _missing(row: dict[str, Any], expected: dict[str, type]) -> str | None:
    """What is wrong with the row's fields, or None."""
    for name, kind in expected.items():
        value = row.get(name)
        if not isinstance(value, kind):
            return f"{name} is {'missing' if value is None else 'a ' + type(value).__name__}, expected {kind.__name__}"
        if kind is str and not value.strip():
            return f"{name} is empty"
        if kind is list and not all(isinstance(item, str) for item in value):
            return f"{name} must hold strings only"
    return None


def _normalise(row: dict[str, Any], corpus: dict[str, str], where: str, segment_by: str) -> dict[str, Any] | str:
    """A row of any layout in the schema, or the reason why it cannot be."""
    row = dict(row)
    if "positive_passages" in row:  # the layout of the released training data
        if reason := _missing(row, {"query": str}):
            return reason
        row.setdefault("id", row.get("query_id"))
        reasoning = row.get("reasoning_query") or row.get("reasoning") or ""
        if isinstance(reasoning, str):  # the field may repeat the query before the reasoning
            row["reasoning_text"] = reasoning
            reasoning = re.sub(rf"^\s*{re.escape(row['query'])}\s*", "", reasoning)
        row["reasoning"] = reasoning
        for side in ("positive", "negative"):
            passages = row.get(f"{side}_passages") or []
            if not isinstance(passages, list):
                return f"{side}_passages is a {type(passages).__name__}, expected list"
            pairs = [_passage(passage) for passage in passages]
            row[f"{side}_ids"], row[f"{side}s"] = [doc for doc, _ in pairs], [text for _, text in pairs]
            if None in row[f"{side}s"]:
                return f"{side}_passages must hold texts, or objects with a text"
    row["id"] = id_text(where if row.get("id") in (None, "") else row["id"])
    if isinstance(row.get("reasoning"), str) or row.get("reasoning") is None:
        reasoning = row.get("reasoning") or ""
        row["reasoning_text"] = row.get("reasoning_text") or reasoning
        row["reasoning"] = segments(reasoning, by=segment_by)
    for name in OPTIONAL:
        row[name] = "" if row.get(name) is None else row[name]
        if not isinstance(row[name], str):
            return f"{name} is a {type(row[name]).__name__}, expected str"
    for side in ("positive", "negative"):
        ids, texts = row.get(f"{side}_ids"), row.get(f"{side}s")
        if isinstance(ids, list):
            ids = row[f"{side}_ids"] = [id_text(i) for i in ids]
        if texts is None and isinstance(ids, list):
            unknown = [i for i in ids if i not in corpus]
            if unknown:
                return f"{side}_ids names {unknown[0]!r}, which is not in the corpus"
            row[f"{side}s"] = [corpus[i] for i in ids]
        elif ids is None and isinstance(texts, list):
            row[f"{side}_ids"] = list(texts)  # a text is its own id
        elif side == "negative" and ids is None and texts is None:
            row["negatives"], row["negative_ids"] = [], []
    if reason := _missing(row, COLUMNS):
        return reason
    if not row["positives"]:
        return "no positive document"
    for side in ("positive", "negative"):
        if len(row[f"{side}s"]) != len(row[f"{side}_ids"]):
            return f"{len(row[f'{side}s'])} {side}s but {len(row[f'{side}_ids'])} {side}_ids"
    return {name: row[name] for name in COLUMNS | OPTIONAL}


def _collision(row: dict[str, Any], kinds: dict[tuple[str, str], type]) -> str | None:
    """What is wrong if an id of the row was a number where the same id was a text before, or the other way round."""
    given = [("id", row.get("id"))]
    for side in ("positive", "negative"):
        passages = row.get(f"{side}_passages") or []
        ids = [p.get("docid") if isinstance(p, dict) else None for p in passages] or row.get(f"{side}_ids") or []
        given += [("document id", value) for value in ids]
    for what, value in given:
        if value is not None and kinds.setdefault((what, id_text(value)), type(value)) is not type(value):
            return f"the {what} {id_text(value)!r} is a number in one place and a text in another"
    return None


def _drop_positives(row: dict[str, Any]) -> list[str]:
    """Drop the row's negatives that are positive too, by id or text; returns their ids."""
    kept, dropped = [], []
    for doc, text in zip(row["negative_ids"], row["negatives"]):
        (dropped if doc in row["positive_ids"] or text in row["positives"] else kept).append((doc, text))
    row["negative_ids"], row["negatives"] = [doc for doc, _ in kept], [text for _, text in kept]
    return [doc for doc, _ in dropped]


def _passage(passage: Any) -> tuple[Any, str | None]:
    """Its id, or the text where it has none, and its text behind the title; None if there is no text."""
    if not isinstance(passage, dict):
        text = passage if isinstance(passage, str) else None
        return text, text
    doc, title, text = (passage.get(name) for name in ("docid", "title", "text"))
    text = f"{title} {text}".strip() if title and isinstance(text, str) else text
    return (text if doc is None else doc), text
