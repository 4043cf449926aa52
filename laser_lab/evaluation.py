"""Rank a corpus and score the ranking with trec_eval's measures (`pytrec_eval`, which MTEB uses too)."""

import math
import os
from typing import Any

import numpy as np
import pandas as pd
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import semantic_search

from laser_lab.base.fingerprint import fingerprint
from laser_lab.base.inputs import check_count
from laser_lab.data.json_lines import check_ids
from laser_lab.data.readers import RetrievalTask
from laser_lab.thinking import Thoughts

MEASURES = {
    "ndcg@10": "ndcg_cut_10",
    "recall@10": "recall_10",
    "recall@100": "recall_100",
    "map": "map",
    "mrr": "recip_rank",
}
"""Our names and trec_eval's."""


def evaluate(
    model: SentenceTransformer,
    task: RetrievalTask,
    *,
    thinking_steps: int | None = None,
    per_query: bool = False,
    batch_size: int = 32,
    show_progress_bar: bool = False,
    corpus: str | os.PathLike[str] | None = None,
) -> dict[str, float] | pd.DataFrame:
    """Rank the whole corpus of `task` for every query and score it.

    Args:
        thinking_steps: K for queries and documents; default: the model's own.
        corpus: A folder of this model and corpus (:func:`laser_lab.encode_corpus`); K is then the queries' alone.

    Returns:
        The mean of every measure in :data:`MEASURES`; with `per_query` a frame with ``query_id`` and the measures.

    Raises:
        ValueError: The task has no queries, documents or positive grades, an embedding is not finite, or `corpus` was
            made by other weights, or holds another number of documents.
    """
    task.check()
    options = dict(batch_size=batch_size, show_progress_bar=show_progress_bar) | _asked(thinking_steps)
    queries = _encode_queries(model, task, **options)
    if corpus is None:
        run = _run(queries, _encode_documents(model, task, **options), task)
    else:
        run = _run_on_disk(model, queries, task, corpus)
    return _summed_up(run, task, per_query)


def score(
    queries: np.ndarray, documents: np.ndarray, task: RetrievalTask, *, per_query: bool = False
) -> dict[str, float] | pd.DataFrame:
    """As :func:`evaluate`, from unit-length (queries, D) and (documents, D) embeddings in the order of `task`.
    ValueError: they are not as many as the task has, of another size than each other, or not finite."""
    for name, vectors, count in (("queries", queries, task.queries), ("documents", documents, task.corpus)):
        if len(vectors.shape) != 2 or len(vectors) != len(count):
            raise ValueError(f"{name} must be ({len(count)}, D) embeddings, got {tuple(vectors.shape)}")
        if not torch.isfinite(torch.as_tensor(vectors)).all():
            raise ValueError(f"the embeddings of the {name} are not finite")
    if queries.shape[1] != documents.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} dimensions, documents {documents.shape[1]}")
    return _summed_up(_run(queries, documents, task), task, per_query)


def _summed_up(
    run: dict[str, dict[str, float]], task: RetrievalTask, per_query: bool
) -> dict[str, float] | pd.DataFrame:
    frame = score_run(run, task)
    return frame if per_query else frame[list(MEASURES)].mean().to_dict()


def score_run(run: dict[str, dict[str, float]], task: RetrievalTask) -> pd.DataFrame:
    """Per-query measures of a run, {query id: {document id: score}}; 0 for a query without results. ValueError: the
    task has no positive grades, or a score is not finite."""
    import pytrec_eval

    task.check()
    for found in run.values():
        check_ids(found.keys() - task.corpus.keys(), "the run")
        if not all(map(math.isfinite, found.values())):
            raise ValueError("a score of the run is not finite")
    judged = {q: docs for q, docs in task.qrels.items() if any(grade > 0 for grade in docs.values())}
    results = pytrec_eval.RelevanceEvaluator(judged, set(MEASURES.values())).evaluate(run)
    rows = [
        {"query_id": q} | {ours: results.get(q, {}).get(name, 0.0) for ours, name in MEASURES.items()} for q in judged
    ]
    return pd.DataFrame(rows, columns=["query_id", *MEASURES])


def rank(
    model: SentenceTransformer,
    task: RetrievalTask,
    *,
    top: int = 10,
    thinking_steps: int | None = None,
    batch_size: int = 32,
    show_progress_bar: bool = False,
) -> pd.DataFrame:
    """The `top` documents of every query: ``query_id, query, rank, doc_id, document, score, relevant``.

    Raises:
        ValueError: `top` is not a positive integer, there is nothing to rank, or an embedding is not finite.
    """
    check_count("top", top)
    task.check(graded=False)
    options = dict(batch_size=batch_size, show_progress_bar=show_progress_bar) | _asked(thinking_steps)
    run = _run(_encode_queries(model, task, **options), _encode_documents(model, task, **options), task, top)
    rows = []
    for query, found in run.items():
        relevant = task.qrels.get(query, {})
        for position, (doc, value) in enumerate(found.items(), 1):
            graded = relevant.get(doc, 0) > 0
            rows.append((query, task.queries[query], position, doc, task.corpus[doc], value, graded))
    return pd.DataFrame(rows, columns=["query_id", "query", "rank", "doc_id", "document", "score", "relevant"])


def score_steps(
    queries: Thoughts, documents: Thoughts, task: RetrievalTask, document_steps: int | None = None
) -> pd.DataFrame:
    """:func:`evaluate`'s per-query frame for every K (``thinking_steps``) from one rollout each. `document_steps` is K
    of an index that stays as it is; default: the queries' K, as far as the documents thought."""
    frames = []
    for step in range(1, queries.thinking_steps + 1):
        index = documents.embeddings_at(document_steps or min(step, documents.thinking_steps)).numpy()
        frame = score(queries.embeddings_at(step).numpy(), index, task, per_query=True)
        frames.append(frame.assign(thinking_steps=step))
    return pd.concat(frames, ignore_index=True)


def _asked(thinking_steps: int | None) -> dict[str, int]:
    """K as an argument where it is given: a model that does not think knows no such argument."""
    return {} if thinking_steps is None else {"thinking_steps": thinking_steps}


def _encode_queries(model: SentenceTransformer, task: RetrievalTask, **options: Any) -> Any:
    """Queries in the order of `task`, each with its own prompt where the task gives it one."""
    own = {"prompts": task.query_prompts} if task.prompts else {}
    return model.encode_query(list(task.queries.values()), **options, **own)


def _encode_documents(model: SentenceTransformer, task: RetrievalTask, **options: Any) -> Any:
    return model.encode_document(list(task.corpus.values()), **options)


def _run(
    queries: np.ndarray, documents: np.ndarray, task: RetrievalTask, top: int = 1000
) -> dict[str, dict[str, float]]:
    doc_ids = list(task.corpus)
    hits = semantic_search(torch.as_tensor(queries), torch.as_tensor(documents), top_k=min(top, len(doc_ids)))
    return {q: {doc_ids[h["corpus_id"]]: float(h["score"]) for h in found} for q, found in zip(task.queries, hits)}


def _run_on_disk(
    model: SentenceTransformer, queries: np.ndarray, task: RetrievalTask, folder: str | os.PathLike[str]
) -> dict[str, dict[str, float]]:
    from laser_lab.index.search import VectorIndex

    index = VectorIndex(folder)
    index.folder.check({"weights": fingerprint(model)})
    if len(index) + index.index["skipped"] != len(task.corpus):
        raise ValueError(f"{folder} holds {len(index)} documents and the corpus of {task.name} {len(task.corpus)}")
    return index.run(dict(zip(task.queries, queries)), top=1000)
