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


def weighted_bm25(
    task: RetrievalTask, texts: Sequence[str], more: Sequence[dict[str, float]], weight: float, index: Any
) -> dict[str, dict[str, float]]:
    """As :func:`bm25`, with further words per text: each adds its BM25 score, `weight` times its own weight as often.

    Args:
        more: {word: weight}, per text. Words that the index does not hold add nothing.
    """
    import bm25s
    import numpy as np
    from scipy.sparse import csc_matrix

    scores = index.scores
    shape = (len(task.corpus), len(scores["indptr"]) - 1)
    matrix = csc_matrix((scores["data"], scores["indices"], scores["indptr"]), shape=shape)
    doc_ids, run = list(task.corpus), {}
    tokens = bm25s.tokenize(list(texts), stopwords="en", show_progress=False, return_ids=False)
    for query, own, words in zip(task.queries, tokens, more, strict=True):
        counts = np.zeros(shape[1])
        for word, value in [*((token, 1.0) for token in own), *((w, weight * v) for w, v in words.items())]:
            if word in index.vocab_dict and word:
                counts[index.vocab_dict[word]] += value
        found = matrix @ counts
        best = np.argsort(-found, kind="stable")[:1000]
        run[query] = {doc_ids[i]: float(found[i]) for i in best if found[i] > 0}
    return run


def fused(*runs: dict[str, dict[str, float]], k: int = 60) -> dict[str, dict[str, float]]:
    """Reciprocal rank fusion (Cormack et al., 2009): a document scores the sum of 1 / (`k` + its rank) over `runs`."""
    result: dict[str, dict[str, float]] = {}
    for run in runs:
        for query, found in run.items():
            into = result.setdefault(query, {})
            for rank, document in enumerate(sorted(found, key=lambda d: -found[d]), 1):
                into[document] = into.get(document, 0.0) + 1 / (k + rank)
    return result
