"""encode_corpus: documents to a folder of vectors, shard by shard, and never the same one twice.

What makes the shards is an engine: this process (``corpus/shards.py``) or Ray (``corpus/cluster.py``).
"""

from __future__ import annotations

import inspect
import logging
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from laser_lab.base.fingerprint import fingerprint
from laser_lab.base.processes import locked
from laser_lab.corpus.cluster import run_on_ray
from laser_lab.corpus.shards import Settings, run_here
from laser_lab.corpus.source import Source, open_source
from laser_lab.data.readers import BadRows
from laser_lab.index.duplicates import repeated_ids
from laser_lab.index.folder import DTYPES, Shard, VectorFolder
from laser_lab.loading import load

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

ENGINES = ("process", "ray")
SHARD_SIZE = 10_000


def encode_corpus(
    model: SentenceTransformer,
    source: str | os.PathLike[str] | Dataset | Mapping[str, str],
    folder: str | os.PathLike[str],
    *,
    engine: str = "process",
    workers: int | None = None,
    thinking_steps: int | None = None,
    prompt: str | None = None,
    batch_size: int = 32,
    dtype: str = "float16",
    shard_size: int = SHARD_SIZE,
    text_column: str | Sequence[str] = "text",
    id_column: str | None = "id",
    split: str = "train",
    skip_bad: bool = False,
    show_progress_bar: bool = True,
) -> dict[str, Any]:
    """Encode documents into a folder that :func:`laser_lab.open_corpus` searches. Run it again to go on.

    Nothing is held whole: in memory is one shard of texts and vectors, whose texts are batched by length.

    Args:
        source: JSON lines, Parquet, a folder or glob of such files, a ``datasets.Dataset``, a mapping of id to text, or
            a hub id (:func:`laser_lab.corpus.source.open_source`).
        folder: What is missing there is made; a folder made with other settings is refused.
        engine: ``"process"``, this one, or ``"ray"`` (extra ``scale``): one model per worker, on this machine or on the
            cluster that ``ray.init`` joined; then `folder` and `source` must be where every node finds them.
        workers: Ray's; default: one for each GPU, else for each core.
        thinking_steps: K; default: the model's own for documents.
        prompt: What stands before each document; default: the model's own.
        dtype: ``"float16"`` or ``"float32"``, of the vectors on disk.
        shard_size: Rows of a shard: what a kill can cost, and what is in memory.
        text_column: Several are joined by a space (``("title", "text")``).
        id_column: None: a document's id is its row number.
        split: Of a hub id.
        skip_bad: Leave out and count rows without a text or an id, and repeated ids, instead of raising.

    Returns:
        What ``index.json`` says: ``documents``, ``skipped``, ``mean_steps``, ``settings``, ...; and ``seconds`` and
        ``encoded``, of this run alone.

    Raises:
        BadRows: Rows that are no documents, each with file and line. Finished shards stay.
        ValueError: The folder was made with other settings; each is named with both values.
        RuntimeError: Another run writes to the folder.
        OSError: The disk is full. Finished shards stay.
        ModuleNotFoundError: Ray is not installed; the message names the extra.
    """
    _check(engine, dtype, batch_size=batch_size, shard_size=shard_size, workers=workers)
    vectors = VectorFolder(folder)
    columns = dict(text_column=text_column, id_column=id_column)
    rows = open_source(source, shard_size=shard_size, **columns, split=split, plan=vectors.source_plan)
    how = Settings(_steps(model, thinking_steps), _prompt(model, prompt), batch_size, dtype, skip_bad)
    vectors.path.mkdir(parents=True, exist_ok=True)
    with locked(vectors.path / ".lock", f"another run that writes to {vectors}", wait=False):
        vectors.begin(_settings(model, rows, how), _notes(model))
        return _run(model, rows, vectors, how, engine, workers, show_progress_bar)


def _check(engine: str, dtype: str, **counts: int | None) -> None:
    for name, value, allowed in (("engine", engine, ENGINES), ("dtype", dtype, DTYPES)):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    for name, value in counts.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a positive integer, got {value!r}")


def _run(
    model: SentenceTransformer,
    source: Source,
    vectors: VectorFolder,
    how: Settings,
    engine: str,
    workers: int | None,
    show: bool,
) -> dict[str, Any]:
    began = time.perf_counter()
    rows = documents = steps = 0
    if not vectors.index["complete"]:
        vectors.source_plan = source.plan()
        vectors.remove_leftovers()
        there = sum(source.size_of(number) for number in range(source.shards) if vectors.has(number))
        here = engine == "process"
        done = run_here(model, source, vectors, how) if here else run_on_ray(model, source, vectors, how, workers)
        with tqdm(total=source.rows, initial=there, unit="doc", desc="Encoding", disable=not show) as bar:
            for progress in done:
                rows, documents = rows + progress.rows, documents + progress.documents
                steps += progress.steps
                bar.set_postfix(steps=f"{steps / max(1, documents):.2f}", refresh=False)
                bar.update(progress.rows)
        remove_repeated(source, vectors, how.skip_bad)
        vectors.finish(vectors.totals(source.shards))
    index = vectors.index | {"encoded": documents, "seconds": time.perf_counter() - began}
    logger.info(
        "%s: %d documents (%d bad rows skipped), %.2f thinking steps a document; encoded now: %d, %.1f a second",
        *(vectors, index["documents"], index["skipped"], index["mean_steps"]),
        *(documents, documents / max(1e-9, index["seconds"])),
    )
    return index


def remove_repeated(source: Source, vectors: VectorFolder, skip_bad: bool) -> None:
    """Look for ids that several shards hold. The first document of an id stays. Which rows go is noted on disk, so that
    memory does not grow with them.

    Raises:
        BadRows: There are some, and `skip_bad` is False.
    """
    problems: list[str] = []
    count = 0
    with vectors.scratch() as notes:
        for places in repeated_ids(vectors, source.shards):
            count += len(places)
            for shard, row, *first in places[: 20 - len(problems)].tolist():  # as many as BadRows shows
                (name, place), (_, before) = _place(source, vectors, shard, row), _place(source, vectors, *first)
                problems.append(f"{place}: id {name!r} is there already ({before})")
            for shard in np.unique(places[:, 0]) if skip_bad else ():
                with (notes / str(shard)).open("ab") as file:
                    file.write(places[places[:, 0] == shard, 1].tobytes())
        if problems and not skip_bad:
            raise BadRows(problems, count)
        for file in notes.iterdir():
            shard = vectors.read_shard(int(file.name))
            kept = np.setdiff1d(np.arange(len(shard.ids)), np.fromfile(file, np.int64))
            skipped = shard.skipped + len(shard.ids) - len(kept)
            left = Shard([shard.ids[i] for i in kept], shard.vectors[kept], shard.steps[kept], skipped)
            vectors.write_shard(int(file.name), left.to_bytes())
    if count:
        logger.warning("%d repeated ids skipped, e.g. %s", count, problems[0])


def _place(source: Source, vectors: VectorFolder, shard: int, row: int) -> tuple[str, str]:
    """Id and ``file:line`` of a row of a shard."""
    name = vectors.read_ids(shard)[row].as_py()
    documents = source.read(shard)
    return name, documents.places[documents.ids.index(name)]


# -- what decides the vectors --------------------------------------------------------------------------------------


def _settings(model: SentenceTransformer, source: Source, how: Settings) -> dict[str, Any]:
    encoder = model[0]
    return {
        "weights": fingerprint(model),
        "model_dtype": _model_dtype(model),
        "dimension": model.get_embedding_dimension(),
        "thinking_steps": how.thinking_steps,
        "halting": getattr(encoder, "halting", False),
        "halting_threshold": getattr(encoder, "halting_threshold", None),
        "prompt": how.prompt,
        "template": getattr(encoder, "template", None),
        "add_special_tokens": getattr(encoder, "add_special_tokens", True),
        "pooling": getattr(encoder, "pooling", None),
        "max_length": model.max_seq_length,
        "similarity": model.similarity_fn_name,
        "dtype": how.dtype,
        "shard_size": source.shard_size,
        "columns": source.columns,
        "source": source.describe(),
    }


def _model_dtype(model: SentenceTransformer) -> str:
    return str(next((p.dtype for p in model.parameters()), None)).removeprefix("torch.")


def _notes(model: SentenceTransformer) -> dict[str, Any]:
    """What is worth knowing: where the model came from, with what :func:`laser_lab.load` makes it again for queries."""
    backbone = getattr(model[0], "backbone", None)
    keys = set(getattr(model[0], "config_keys", ())) & set(inspect.signature(load).parameters)
    settings = {key: getattr(model[0], key) for key in sorted(keys)}
    own = {"adapter": getattr(backbone, "adapter", None), "dtype": _model_dtype(model), "prompts": model.prompts}
    packages = ("laser_lab", "torch", "transformers", "sentence-transformers", "pyarrow")
    return {
        "model": getattr(backbone, "name", None) or model.model_card_data.base_model,
        "load": own | settings,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def _steps(model: SentenceTransformer, thinking_steps: int | None) -> int | None:
    """K of documents: as asked, else the model's own; None for a model that does not think."""
    return model[0].steps_of(thinking_steps, "document") if hasattr(model[0], "steps_of") else None


def _prompt(model: SentenceTransformer, prompt: str | None) -> str:
    """What ``encode_document`` puts before a text."""
    if prompt is not None and not isinstance(prompt, str):
        raise TypeError(f"prompt must be a string, got {prompt!r}")
    if prompt is not None:
        return prompt
    name = next((name for name in ("document", "passage", "corpus") if name in model.prompts), None)
    return model._resolve_prompt(None, name) or ""
