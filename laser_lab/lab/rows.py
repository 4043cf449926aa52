"""Rows: one system on a real corpus, trained, read and recorded once. A training goes on where it stopped."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laser_lab.base.files import atomic_file, cache_dir
from laser_lab.base.processes import locked
from laser_lab.data.bm25 import bm25, bm25_index
from laser_lab.data.readers import RetrievalTask, read_dataset, read_task
from laser_lab.evaluation import score, score_run, score_steps
from laser_lab.lab.cached import Cached
from laser_lab.lab.provenance import code_version
from laser_lab.methods import METHODS, method_of

if TYPE_CHECKING:
    import pandas as pd

    from laser_lab.encoder import LatentRetriever
    from laser_lab.thinking import Thoughts

UNTRAINED = ("bm25", "bm25-reasoning", "bm25-intermediate", "zero-shot")
STOCK = "st"
"""Any SentenceTransformer as it is, by hub id or folder (the row's ``model``)."""
READINGS = ("rewrite", "explicit", "explicit-intermediate")
"""Systems that read a trained row in another way. ``-intermediate``: reasoning without its last sentence."""


@dataclass(frozen=True)
class Row(Cached):
    """One system, trained with one seed and read on the questions of dev.

    Raises:
        ValueError: No such system, or a reading without the row that it reads.
    """

    data: str
    """folder in the layout of EntailmentBank and StrategyQA"""
    system: str
    """a name of :data:`laser_lab.METHODS`, of :data:`UNTRAINED` or of :data:`READINGS`, or :data:`STOCK`"""
    of: str | None = None
    """the trained method that a reading reads"""
    seed: int = 0
    thinking_steps: int | None = None
    """K in training; None: the method's own"""
    changes: dict[str, Any] = field(default_factory=dict)
    """over the method's row"""
    model: str = "gemma-3-270m"
    dtype: str | None = None
    """of the backbone's weights, in training and in reading; an adapter in training stays in float32"""
    max_length: int = 160
    read_steps: int = 4
    corpus: str = "pooled"
    training: dict[str, Any] = field(default_factory=dict)
    """arguments of :func:`laser_lab.train`"""

    room = "entailment"
    record_file = "row.json"
    module = "laser_lab.lab.rows"

    def __post_init__(self) -> None:
        known = (*UNTRAINED, STOCK, *READINGS, *METHODS)
        if self.system not in known:
            raise ValueError(f"no system {self.system!r}; there are {', '.join(known)}")
        if self.corpus not in ("pooled", "full"):
            raise ValueError(f"corpus must be 'pooled' or 'full', got {self.corpus!r}")
        if (self.system in READINGS) != (self.of in METHODS):
            raise ValueError(f"{self.system} reads {self.of!r}: a reading needs a trained method, and only a reading")

    @property
    def method(self) -> str:
        return self.of or self.system

    @property
    def is_trained(self) -> bool:
        """Whether it is a trained system itself, and neither untrained nor a reading of one."""
        return self.system in METHODS and self.of is None

    @property
    def steps(self) -> int:
        return self.thinking_steps or (method_of(self.method).thinking_steps if self.method in METHODS else 1)

    @property
    def configuration(self) -> dict[str, Any]:
        data = Path(self.data)
        texts = {n: hashlib.sha256((data / f"{n}.jsonl").read_bytes()).hexdigest() for n in ("corpus", "train", "dev")}
        method = method_of(self.method, **self.changes).as_dict() if self.method in METHODS else None
        return asdict(replace(self, thinking_steps=self.steps, changes={})) | {"data": texts, "method": method}

    def setting(self, name: str) -> Any:
        """What it is trained with: an argument of :func:`laser_lab.train`, or a setting of its method."""
        method = method_of(self.method, **self.changes)  # one without a term gives it no weight
        return self.training[name] if name in self.training else getattr(method, name, 0.0)

    @property
    def columns(self) -> dict[str, Any]:
        system = f"{STOCK}:{Path(self.model).name}" if self.system == STOCK else self.system
        return {"system": system, "train_steps": self.steps, "seed": self.seed, "corpus": self.corpus}

    @property
    def trained(self) -> Path:
        """Where the training behind it lies: its checkpoints and ``final``. Rows on both corpora share it."""
        alone = replace(self, system=self.method, of=None, corpus="pooled", read_steps=1)
        return cache_dir() / self.room / f"run-{alone.key}"

    def fill(self, folder: Path) -> dict[str, Any]:
        """Train where it is needed, read and record."""
        task = read_task(self.data, "dev")
        if self.corpus == "pooled":
            task = named_documents(task, read_dataset(self.data, "dev"))
        if self.system.endswith("-intermediate"):  # on EntailmentBank the last sentence holds the answer
            task = replace(task, reasoning={query: steps[:-1] for query, steps in task.reasoning.items()})
        started = time.perf_counter()
        if self.system.startswith("bm25"):
            scores, record = _search(self, task)
        elif self.system == STOCK:
            scores, record = _stock(self, task)
        else:
            scores, record = _read(self, retriever(self), task)
        scores.to_csv(folder / "per_query.csv", index=False)
        record |= {
            "row": asdict(replace(self, data=Path(self.data).name)),
            "documents": len(task.corpus),
            "queries": len(task.queries),
            "seconds": round(time.perf_counter() - started, 1),
            "code": code_version(self.module)[:12],
        }
        return without_paths(record)


def without_paths(value: Any) -> Any:
    """`value` (of JSON) with the name alone of every absolute path in it: records say nothing of the machine."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def named_documents(task: RetrievalTask, dataset: Iterable[dict[str, Any]]) -> RetrievalTask:
    """`task` over only the documents that `dataset` names for its questions, positive or negative."""
    named = {d for row in dataset for d in (*row["positive_ids"], *row["negative_ids"])}
    return replace(task, name=f"{task.name}-pooled", corpus={d: text for d, text in task.corpus.items() if d in named})


def load_row(row: Row) -> LatentRetriever:
    """The row's backbone, untrained."""
    from laser_lab.loading import load

    return load(row.model, thinking_steps=row.steps, max_length=row.max_length, dtype=row.dtype)


def retriever(row: Row) -> LatentRetriever:
    """The row's backbone, untrained, or with its adapter merged; trained where it is not yet."""
    from laser_lab.loading import load
    from laser_lab.training.run import train

    if row.method not in METHODS:
        return load_row(row)
    row.trained.parent.mkdir(parents=True, exist_ok=True)
    with locked(f"{row.trained}.lock", f"another process that trains {row.system}, seed {row.seed}"):
        if not (row.trained / "final").exists():
            data = read_dataset(row.data, "train")
            options: dict[str, Any] = dict(output_dir=row.trained, seed=row.seed, thinking_steps=row.steps, resume=True)
            train(load_row(row), data, method_of(row.method, **row.changes), **(options | row.training))
        for leftover in [*row.trained.glob("checkpoint-*"), row.trained / "teacher"]:
            shutil.rmtree(leftover, ignore_errors=True)
    model = load(row.trained / "final", dtype=row.dtype)
    model.encoder.backbone.merge_adapter()
    return model


def _search(row: Row, task: RetrievalTask) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Per-query measures of BM25, and milliseconds per query."""
    told = {} if row.system == "bm25" else task.reasoning
    queries = [" ".join([query, *told.get(q, [])]) for q, query in task.queries.items()]
    index = bm25_index(task)
    started = time.perf_counter()
    found = bm25(task, queries, index)
    record = {"ms_per_query": {0: 1000 * (time.perf_counter() - started) / len(queries)}}
    return score_run(found, task).assign(thinking_steps=0), record


def _stock(row: Row, task: RetrievalTask) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Per-query measures of a SentenceTransformer in its own prompts, and milliseconds per query."""
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(row.model)
    documents = model.encode_document(list(task.corpus.values()), normalize_embeddings=True)
    started = time.perf_counter()
    queries = model.encode_query(list(task.queries.values()), normalize_embeddings=True)
    timing = {1: 1000 * (time.perf_counter() - started) / len(queries)}
    record = {"ms_per_query": timing, "device": str(model.device), "threads": torch.get_num_threads()}
    return score(queries, documents, task, per_query=True).assign(thinking_steps=1), record


def _documents(row: Row, model: LatentRetriever, task: RetrievalTask) -> Thoughts:
    """The corpus at the documents' K of training, shared by the readings of a trained row."""
    import torch

    from laser_lab.encoder import think
    from laser_lab.thinking import Thoughts

    texts = list(task.corpus.values())
    if row.method not in METHODS:  # documents that think as long as the queries
        return think(model, texts, row.read_steps, prompt_name="document")
    file = row.trained / f"documents-{row.corpus}.pt"
    if not file.exists():
        embeddings = think(model, texts, prompt_name="document").embeddings
        with atomic_file(file) as temporary:
            torch.save(embeddings, temporary)
    return Thoughts(texts, torch.load(file)[:, None])


def _read(row: Row, model: LatentRetriever, task: RetrievalTask) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Per-query measures at every K, and milliseconds per query: the index thinks as long as in training."""
    import torch

    from laser_lab.encoder import think
    from laser_lab.explicit import explicit_thoughts
    from laser_lab.loading import load
    from laser_lab.rewriting import rewrite_then_retrieve
    from laser_lab.thinking import Thoughts

    texts = list(task.queries.values())
    documents = _documents(row, model, task)
    timing: dict[int, float] = {}
    record = {"ms_per_query": timing, "device": str(model.device), "threads": torch.get_num_threads()}
    if row.system.startswith("explicit"):
        started = time.perf_counter()
        embeddings, _ = explicit_thoughts(model, texts, [task.reasoning[query] for query in task.queries])
        timing[row.steps] = 1000 * (time.perf_counter() - started) / len(texts)
        scores = score_steps(Thoughts(texts, embeddings[:, None]), documents, task, 1)
        return scores.assign(thinking_steps=row.steps), record
    if row.system == "rewrite":
        generator = load(row.model, device=str(model.device))
        both = rewrite_then_retrieve(generator, model, max_new_tokens=64)
        started = time.perf_counter()
        texts = both.rewrite(texts)
        timing[0] = 1000 * (time.perf_counter() - started) / len(texts)  # of writing alone
    longest = row.read_steps if row.method not in METHODS else max(row.read_steps, row.steps)
    queries = think(model, texts, longest, prompt_name="query")
    for steps in range(1, longest + 1):
        some = texts[:32]
        started = time.perf_counter()
        model.encode_query(some, thinking_steps=steps)
        timing[steps] = timing.get(0, 0.0) + 1000 * (time.perf_counter() - started) / len(some)
    return score_steps(queries, documents, task, 1 if row.method in METHODS else None), record
