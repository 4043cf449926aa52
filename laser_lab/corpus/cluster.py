"""Ray as the engine: a stage graph of read, encode and write that Ray Data schedules, on one machine or many."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from laser_lab.base.files import atomic_file, missing_extra
from laser_lab.corpus.shards import Progress, Settings, encode_batches, read_documents
from laser_lab.corpus.source import Source
from laser_lab.index.folder import Shard, VectorFolder

CORE, SMALL = 0.8, 0.1
"""Of a core: what a worker asks Ray for, and what reading and writing ask for beside it."""
WORKERS_FED = 8
"""Workers for which one process reads, and one writes: each holds PyTorch too (0.4 GB)."""
BLOCKS = 10_000
"""Blocks of shard numbers at most: each is a task to Ray, which keeps a note of it."""


def run_on_ray(
    model: SentenceTransformer, source: Source, vectors: VectorFolder, how: Settings, workers: int | None
) -> Iterator[Progress]:
    """Make the missing shards, a row of Ray's data each. A worker that dies is replaced, and its shard made again.

    Raises:
        ModuleNotFoundError: Ray is not installed; the message names the extra.
        BadRows, OSError: as :func:`laser_lab.encode_corpus`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise missing_extra("ray", "scale") from error
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    try:
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        asks: dict[str, Any] = {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": CORE}
        workers = workers or gpus or max(1, int(resources["CPU"]))
        _pack(model, vectors)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # one bar is enough
        context.raise_original_map_exception = True  # else what a function raised comes back as text alone
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        where = {"vectors": vectors, "how": how, "source": ray.put(source)}
        pool = ray.data.ActorPoolStrategy(size=workers)
        few = ray.data.TaskPoolStrategy(size=-(-workers // WORKERS_FED))
        written = (
            ray.data.from_items(list(range(source.shards)), override_num_blocks=min(source.shards, BLOCKS))
            .flat_map(_read, fn_kwargs=where, compute=few, num_cpus=SMALL)
            .map(_Worker, fn_constructor_args=(vectors, how, bool(gpus)), compute=pool, **asks)
            .map(_write, fn_kwargs={"vectors": vectors}, compute=few, num_cpus=SMALL)
        )
        for row in written.iter_rows():
            yield Progress(source.size_of(row["shard"]), row["documents"], row["steps"])
    except ray.exceptions.RayError as error:
        raise _cause(error) from None
    finally:
        vectors.model_file.unlink(missing_ok=True)
        if started:
            ray.shutdown()


class _Worker:
    """One model. Ray builds it anew, from the same arguments, where a worker died."""

    def __init__(self, vectors: VectorFolder, how: Settings, gpu: bool) -> None:
        torch.set_num_threads(1)  # a worker a core
        self.model = _unpack(vectors, "cuda" if gpu else "cpu")
        self.how = how

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The documents of a shard as the Parquet file that is to be written."""
        ids, texts = list(row["ids"]), list(row["texts"])
        encoded = np.zeros((len(ids), self.model.get_embedding_dimension()), self.how.dtype)
        steps = np.zeros(len(ids), np.int16)
        for rows, found, taken in encode_batches(self.model, ids, texts, self.how):
            encoded[rows], steps[rows] = found, taken
        content = Shard(ids, encoded, steps, row["skipped"]).to_bytes().to_pybytes()
        return {"shard": row["shard"], "content": content, "documents": len(ids), "steps": int(steps.sum())}


def _read(row: dict[str, Any], source: Any, vectors: VectorFolder, how: Settings) -> list[dict[str, Any]]:
    """Shard number to its documents; nothing for a shard that is there."""
    import ray

    number = row["item"]
    if vectors.has(number):
        return []
    documents = read_documents(ray.get(source), number, how.skip_bad)
    return [{"shard": number, "ids": documents.ids, "texts": documents.texts, "skipped": len(documents.problems)}]


def _write(row: dict[str, Any], vectors: VectorFolder) -> dict[str, Any]:
    vectors.write_shard(row["shard"], row.pop("content"))
    return row


def _pack(model: SentenceTransformer, vectors: VectorFolder) -> None:
    """The model as a file that all workers read."""
    from ray import cloudpickle

    with vectors.room_for("the model"), atomic_file(vectors.model_file) as temporary, temporary.open("wb") as file:
        torch.save(model, file, pickle_module=cloudpickle)


def _unpack(vectors: VectorFolder, device: str) -> SentenceTransformer:
    # Our own file, of this very run. Mapped: the workers of a machine share the pages.
    model = torch.load(vectors.model_file, map_location=device, mmap=device == "cpu", weights_only=False)
    return model.to(device).eval()


def _cause(error: BaseException) -> BaseException:
    """What went wrong in a worker, without Ray's layers around it."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, (ValueError, OSError)) and type(found).__module__ != "ray.exceptions":
            return found
        found = getattr(found, "cause", None) or found.__cause__
    return error
