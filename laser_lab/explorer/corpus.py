"""The explorer's corpus: what is asked, what is relevant, and what else is known of a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from laser_lab.base.inputs import check_texts
from laser_lab.data.prompts import split_query
from laser_lab.data.readers import RetrievalTask

CATEGORIES = 9
"""Categories of a column that get a colour of their own; the others share one."""


class Corpus:
    """Documents in their order, with their relevance and metadata.

    Raises:
        ValueError: The corpus is empty, or the metadata names no document of it.
        TypeError: A text is not a string.
    """

    def __init__(
        self,
        corpus: RetrievalTask | Mapping[str, str] | Sequence[str],
        metadata: pd.DataFrame | Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.task = _as_task(corpus)
        self.ids = list(self.task.corpus)
        self.texts = list(self.task.corpus.values())
        self.rows = {doc: row for row, doc in enumerate(self.ids)}
        self._prompts = {self.task.queries[query]: prompt for query, prompt in self.task.prompts.items()}
        self._relevant: dict[str, set[str]] = {}
        for query_id, text in self.task.queries.items():
            grades = self.task.qrels.get(query_id, {})
            self._relevant.setdefault(text, set()).update(doc for doc, grade in grades.items() if grade > 0)
        self.columns = [] if metadata is None else _columns(metadata, self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def asked(self, query: str) -> tuple[str, str]:
        """A query's text and its own instruction: the one written before it, else the task's; empty: the model's."""
        text, prompt = split_query(query)
        return text, prompt or self._prompts.get(text, "")

    def relevant(self, query: str) -> list[int]:
        """The rows of the documents that are known to be relevant."""
        return sorted(self.rows[doc] for doc in self._relevant.get(split_query(query)[0], ()))

    def shown(self, row: int, limit: int = 160) -> str:
        """A document's text as it is shown: one line, at most `limit` characters."""
        text = " ".join(self.texts[row].split())
        return text if len(text) <= limit else text[: limit - 1] + "…"


def _as_task(corpus: RetrievalTask | Mapping[str, str] | Sequence[str]) -> RetrievalTask:
    if isinstance(corpus, str):
        raise TypeError("corpus must be a task, {id: text} or a list of texts, not one text")
    task = corpus
    if not isinstance(corpus, RetrievalTask):
        documents = corpus.items() if isinstance(corpus, Mapping) else enumerate(corpus, 1)
        task = RetrievalTask("", {}, {str(doc): text for doc, text in documents}, {})
    check_texts(task.corpus.values())
    if not task.corpus:
        raise ValueError("the corpus is empty: there is nothing to rank")
    return task


def _columns(metadata: pd.DataFrame | Mapping[str, Mapping[str, Any]], ids: list[str]) -> list[dict[str, Any]]:
    """What the map can be coloured by: per column its ``name``, ``kind`` and ``values`` in the order of the documents.
    ``"number"``: floats, with ``low`` and ``high``; ``"category"``: positions in ``names``. None where unknown."""
    frame = metadata if isinstance(metadata, pd.DataFrame) else pd.DataFrame.from_dict(metadata, orient="index")
    frame = frame.set_axis(frame.index.astype(str)).reindex(ids)
    if frame.empty or frame.isna().all(axis=None):
        raise ValueError("the metadata knows no document of the corpus: its index must be the document ids")
    columns = []
    for name, values in frame.items():
        if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
            numbers = values.astype(float).replace([np.inf, -np.inf], np.nan)
            bounds = {"low": float(numbers.min()), "high": float(numbers.max())}
            told = [None if np.isnan(v) else v for v in numbers.tolist()]
            columns.append({"name": str(name), "kind": "number", "values": told} | bounds)
            continue
        texts = values.map(lambda v: None if pd.isna(v) else f"{v!s:.60}")
        names = texts.dropna().value_counts().index.tolist()
        kept = names if len(names) <= CATEGORIES + 1 else [*names[:CATEGORIES], f"other ({len(names) - CATEGORIES})"]
        code = {text: min(i, len(kept) - 1) for i, text in enumerate(names)}
        told = [None if pd.isna(text) else code[text] for text in texts]
        columns.append({"name": str(name), "kind": "category", "names": kept, "values": told})
    return columns
