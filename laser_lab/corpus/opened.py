"""open_corpus: search what :func:`laser_lab.encode_corpus` made, by words or by vectors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers import SentenceTransformer

from laser_lab.base.fingerprint import fingerprint
from laser_lab.index.search import EXACT_UP_TO, VectorIndex
from laser_lab.loading import load

if TYPE_CHECKING:
    import pandas as pd


def open_corpus(
    folder: str | os.PathLike[str],
    model: SentenceTransformer | None = None,
    *,
    exact_up_to: int = EXACT_UP_TO,
) -> Corpus:
    """A folder that :func:`laser_lab.encode_corpus` finished.

    Args:
        model: What reads queries that are texts; default: loaded by the name that the folder notes, when first needed.
        exact_up_to: Up to as many vectors search is exact; beyond, an IVF-PQ index is built in the folder when first
            needed, and its recall against exact search printed.

    Raises:
        FileNotFoundError: `folder` holds no corpus.
        ValueError: The corpus is not finished, or `model` has other weights than the one that made it.
    """
    return Corpus(folder, model, exact_up_to=exact_up_to)


class Corpus(VectorIndex):
    """A :class:`laser_lab.index.search.VectorIndex` that also reads texts. Made by :func:`open_corpus`."""

    def __init__(
        self, folder: str | os.PathLike[str], model: SentenceTransformer | None = None, *, exact_up_to: int
    ) -> None:
        super().__init__(folder, exact_up_to=exact_up_to)
        self._model = None if model is None else self._same(model)

    @property
    def model(self) -> SentenceTransformer:
        """What reads queries.

        Raises:
            ValueError: The name that the folder notes now stands for other weights.
            FileNotFoundError, OSError: as :func:`laser_lab.load`.
        """
        if self._model is None:
            self._model = self._same(load(self.index["model"], **self.index["load"]))
        return self._model

    def _same(self, model: SentenceTransformer) -> SentenceTransformer:
        self.folder.check({"weights": fingerprint(model)})
        return model

    def search(
        self,
        queries: str | Sequence[str] | Mapping[str, str] | np.ndarray | Mapping[str, Sequence[float]],
        top: int = 100,
        *,
        thinking_steps: int | None = None,
        batch_size: int = 32,
    ) -> pd.DataFrame:
        """The `top` documents of every query: ``query_id, rank, doc_id, score``.

        Args:
            queries: Texts, or vectors (Q, D); or query id to text or vector. Without ids a query's id is its number.
            thinking_steps: K of queries that are texts; default: the model's own. The documents' stays as it is.

        Raises:
            TypeError: A query is neither.
            ValueError, ModuleNotFoundError: as :meth:`VectorIndex.search`.
        """
        named = isinstance(queries, Mapping)
        values: Any = list(queries.values()) if named else [queries] if isinstance(queries, str) else queries
        if len(values) and isinstance(values[0], str):
            think = {} if thinking_steps is None else {"thinking_steps": thinking_steps}
            vectors = self.model.encode_query(list(values), batch_size=batch_size, **think)
            return super().search(dict(zip(queries, vectors)) if named else vectors, top)
        return super().search(queries, top)
