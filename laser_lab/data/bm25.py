"""BM25 over the corpus of a task, by bm25s and its defaults, with English stop words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from laser_lab.base.files import missing_extra
from laser_lab.data.readers import RetrievalTask


def bm25_index(task: RetrievalTask) -> Any:
    """The index of the task's corpus.

    Raises:
        ModuleNotFoundError: `bm25s` is not installed.
    """
    try:
        import bm25s
    except ImportError as error:
        raise missing_extra("bm25s", "benchmarks") from error
    index = bm25s.BM25()
    tokens = bm25s.tokenize(list(task.corpus.values()), stopwords="en", show_progress=False)
    index.index(tokens, show_progress=False)
    return index


def bm25(task: RetrievalTask, texts: Sequence[str], index: Any) -> dict[str, dict[str, float]]:
    """{query id: {document id: score}} of the first 1000, searched with one of `texts` per query of the task."""
    import bm25s

    tokens = bm25s.tokenize(list(texts), stopwords="en", show_progress=False)
    found, scores = index.retrieve(tokens, list(task.corpus), k=min(1000, len(task.corpus)), show_progress=False)
    return {
        q: {d: float(s) for d, s in zip(ids, values) if s > 0} for q, ids, values in zip(task.queries, found, scores)
    }
