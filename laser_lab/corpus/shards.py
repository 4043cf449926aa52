"""One shard: the documents read, and encoded batch by batch, as the model's own ``encode_document`` does."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device

from laser_lab.base.numbers import named_rows
from laser_lab.corpus.source import Documents, Source
from laser_lab.data.readers import BadRows
from laser_lab.index.folder import Shard, VectorFolder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How a shard is encoded."""

    thinking_steps: int | None
    """K of the documents; None: a model that does not think"""
    prompt: str
    """what stands before each document"""
    batch_size: int
    dtype: str
    """of the vectors on disk"""
    skip_bad: bool


class Progress(NamedTuple):
    """What an engine has done since it last said so."""

    rows: int
    """of the source, bad ones included"""
    documents: int
    steps: int
    """thinking steps of these documents together"""


def run_here(model: SentenceTransformer, source: Source, vectors: VectorFolder, how: Settings) -> Iterator[Progress]:
    """Make the missing shards in this process."""
    for number in range(source.shards):
        if vectors.has(number):
            continue
        documents = read_documents(source, number, how.skip_bad)
        parts = encode_batches(model, documents.ids, documents.texts, how)
        encoded = np.zeros((len(documents.ids), vectors.index["settings"]["dimension"]), how.dtype)
        steps = np.zeros(len(encoded), np.int16)
        for rows, found, taken in parts:
            encoded[rows], steps[rows] = found, taken
            yield Progress(len(rows), len(rows), int(taken.sum()))
        vectors.write_shard(number, Shard(documents.ids, encoded, steps, len(documents.problems)).to_bytes())
        yield Progress(source.size_of(number) - len(encoded), 0, 0)


def read_documents(source: Source, number: int, skip_bad: bool) -> Documents:
    """The documents of a shard.

    Raises:
        BadRows: Rows that are none, and `skip_bad` is False.
    """
    documents = source.read(number)
    if documents.problems and not skip_bad:
        raise BadRows(documents.problems)
    if documents.problems:
        logger.warning("%d bad rows skipped, e.g. %s", len(documents.problems), documents.problems[0])
    return documents


def encode_batches(
    model: SentenceTransformer, ids: Sequence[str], texts: Sequence[str], how: Settings
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches of `texts`, long ones first: which rows (b,), their vectors (b, D) and the steps taken (b,).

    ``encode_document`` would tell the steps only in a dictionary for each document, which took a seventh of the time.

    Raises:
        NotFinite: An embedding has NaN or infinite entries; the document is named by its id.
    """
    order = np.argsort([-len(text) for text in texts], kind="stable")
    think = {} if how.thinking_steps is None else {"thinking_steps": how.thinking_steps}
    model.eval()
    for start in range(0, len(order), how.batch_size):
        rows = order[start : start + how.batch_size]
        named = named_rows(rows.__getitem__, lambda row: f"document {ids[row]!r}")
        with torch.inference_mode(), named:
            features = model.preprocess([texts[i] for i in rows], prompt=how.prompt, task="document")
            found = model(batch_to_device(features, model.device), task="document", **think)
        vectors = found["sentence_embedding"][:, : model.truncate_dim].float().cpu().numpy()
        yield rows, vectors.astype(how.dtype), _steps_taken(found)


def _steps_taken(found: dict[str, torch.Tensor]) -> np.ndarray:
    """(b,) int16 of what ``forward`` gave for b documents; 1 for a model that does not think."""
    if "steps_taken" in found:
        return found["steps_taken"].cpu().numpy().astype(np.int16)
    steps = found["states"].shape[1] if "states" in found else 1
    return np.full(len(found["sentence_embedding"]), steps, np.int16)
