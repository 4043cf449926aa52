"""BM25 over the corpus of a task, by the library bm25s and its defaults, with English stop words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from laser_lab.base.files import missing_extra
from laser_lab.data.readers import RetrievalTask


def bm25_index(task: RetrievalTask) -> Any:
    """The index of the task's corpus.

    Raises:
        ModuleNotFoundError: `bm25s` is not installed; the message names the extra.
    """
    try:
        import bm25s
    except ImportError as error:
        raise missing_extra("bm25s", "benchmarks") from error
    index = bm25s.BM25()
    tokens = bm25s.tokenize(list(task.corpus.values()), stopwords="en", show_progress=False)
    index.index(tokens, show_progress=False)
    return index


def bm25(
    task: RetrievalTask, queries: Sequence[str] | None = None, top: int = 1000, index: Any = None
) -> dict[str, dict[str, float]]:
    """The documents that BM25 finds: {query id: {document id: score}}, for :func:`laser_lab.evaluation.score_run`.

    Args:
        queries: Texts to search with, in the order of the task's queries; default: the queries.
        index: Of :func:`bm25_index`; default: a new one.
    """
    index = bm25_index(task) if index is None else index
    import bm25s

    texts = list(task.queries.values()) if queries is None else list(queries)
    tokens = bm25s.tokenize(texts, stopwords="en", show_progress=False)
    found, scores = index.retrieve(tokens, list(task.corpus), k=min(top, len(task.corpus)), show_progress=False)
    return {
        q: {d: float(s) for d, s in zip(ids, values) if s > 0} for q, ids, values in zip(task.queries, found, scores)
    }
