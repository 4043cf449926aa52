"""Search in a folder of vectors with FAISS: exact up to a million, IVF-PQ beyond. Knows no model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from laser_lab.base.files import missing_extra
from laser_lab.index.folder import VectorFolder

if TYPE_CHECKING:
    import pandas as pd

EXACT_UP_TO = 1_000_000
"""Vectors that are searched exactly, held in memory as float32 (2.6 GB for a million of 640 dimensions)."""


class VectorIndex:
    """The finished vectors of a folder, and the search in them. Positions count documents in the order of the shards.

    Args:
        exact_up_to: Beyond as many vectors an IVF-PQ index is built on disk, once, and searched.

    Raises:
        FileNotFoundError: `folder` has no ``index.json``.
        ValueError: Not all of its shards are there.
    """

    def __init__(self, folder: str | os.PathLike[str], *, exact_up_to: int = EXACT_UP_TO) -> None:
        self.folder = VectorFolder(folder)
        index = self.folder.index
        if index is None:
            raise FileNotFoundError(f"{self.folder} has no index.json: no corpus was encoded into it")
        if not index["complete"]:
            raise ValueError(f"{self.folder} is not finished: run encode_corpus again with the same settings")
        self.index = index
        self.settings: dict[str, Any] = index["settings"]
        self.exact_up_to = exact_up_to

    def __len__(self) -> int:
        return self.index["documents"]

    @property
    def dimension(self) -> int:
        """D."""
        return self.settings["dimension"]

    @property
    def is_exact(self) -> bool:
        return len(self) <= self.exact_up_to

    def blocks(self) -> Iterator[np.ndarray]:
        """The (n, D) float32 vectors of each shard, as they are compared: of unit length where that is the measure."""
        for number in range(self.index["shards"]):
            yield self._compared(self.folder.read_shard(number).vectors)

    def _compared(self, vectors: np.ndarray) -> np.ndarray:
        vectors = np.ascontiguousarray(vectors, np.float32)
        if self.settings["similarity"] == "dot":
            return vectors
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def search(self, queries: np.ndarray | Mapping[str, Sequence[float]], top: int = 100) -> pd.DataFrame:
        """The `top` documents of every query by inner product, for unit vectors the cosine.

        Args:
            queries: (Q, D) vectors, or query id to vector; without ids a query's id is its number, from 0.

        Returns:
            ``query_id, rank, doc_id, score``: rank from 1.

        Raises:
            ValueError: Vectors of another shape, or `top` is not a positive integer.
            ModuleNotFoundError: FAISS is not installed; the message names the extra.
        """
        import pandas as pd

        names, vectors = self._named(queries)
        if isinstance(top, bool) or not isinstance(top, int) or top < 1:
            raise ValueError(f"top must be a positive integer, got {top!r}")
        scores, positions = self.nearest(vectors, min(top, len(self)))
        found = positions >= 0  # an approximate index may find fewer
        query, rank = np.nonzero(found)
        frame = pd.DataFrame({"query_id": np.array(names, object)[query], "rank": rank + 1})
        frame["doc_id"] = [self.ids[int(position)].as_py() for position in positions[found]]
        return frame.assign(score=scores[found])

    def run(self, queries: Mapping[str, Sequence[float]], top: int) -> dict[str, dict[str, float]]:
        """As :meth:`search`, as the measures of retrieval want it: {query id: {document id: score}}."""
        found: dict[str, dict[str, float]] = {query: {} for query in queries}
        for row in self.search(queries, top).itertuples(index=False):
            found[row.query_id][row.doc_id] = float(row.score)
        return found

    def nearest(self, vectors: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        """(Q, top) scores and positions; -1 where an approximate index found fewer."""
        return self._searched.search(self._compared(vectors), top)

    def exactly(self, vectors: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`nearest`, by comparing with every vector, shard by shard; memory does not grow with them."""
        heap = self.faiss.ResultHeap(len(vectors), top, keep_max=True)
        start = 0
        for block in self.blocks():
            if len(block):
                scores, rows = self.faiss.knn(
                    self._compared(vectors), block, min(top, len(block)), metric=self.faiss.METRIC_INNER_PRODUCT
                )
                heap.add_result(scores, rows.astype(np.int64) + start)
            start += len(block)
        heap.finalize()
        return heap.D, heap.I

    def scores(
        self, queries: Mapping[str, Sequence[float]], candidates: Mapping[str, Sequence[str]]
    ) -> dict[str, dict[str, float]]:
        """As :meth:`run`, of the documents that are named for each query alone; vectors are read shard by shard."""
        asked: dict[str, list[str]] = {}
        for query in queries:
            for name in candidates.get(query, ()):
                asked.setdefault(name, []).append(query)
        names, vectors = self._named(queries)
        rows = dict(zip(names, self._compared(vectors)))
        found: dict[str, dict[str, float]] = {query: {} for query in queries}
        for number in range(self.index["shards"]):
            shard = self.folder.read_shard(number)
            wanted = [row for row, name in enumerate(shard.ids) if name in asked]
            for row, vector in zip(wanted, self._compared(shard.vectors[wanted])):
                for query in asked[shard.ids[row]]:
                    found[query][shard.ids[row]] = float(rows[query] @ vector)
        return found

    @cached_property
    def ids(self) -> pa.ChunkedArray:
        """The document ids by position: in memory where the vectors are, else mapped."""
        if self.is_exact:
            return pa.chunked_array([self.folder.read_ids(n) for n in range(self.index["shards"])], pa.string())
        return self._approximate.ids

    @property
    def faiss(self) -> Any:
        """The package.

        Raises:
            ModuleNotFoundError: It is not installed; the message names the extra.
        """
        try:
            import faiss
            import faiss.contrib.exhaustive_search
        except ImportError as error:
            raise missing_extra("faiss-cpu", "scale") from error
        return faiss

    @cached_property
    def _searched(self) -> Any:
        if not self.is_exact:
            return self._approximate.index
        index = self.faiss.IndexFlatIP(self.dimension)
        for block in self.blocks():
            index.add(block)
        return index

    @cached_property
    def _approximate(self) -> Any:
        from laser_lab.index.ivfpq import open_ivfpq

        return open_ivfpq(self)

    def _named(self, queries: Any) -> tuple[list[Any], np.ndarray]:
        names = list(queries) if isinstance(queries, Mapping) else None
        vectors = np.stack(list(queries.values())) if names else np.asarray(queries, np.float32)
        if vectors.ndim == 1 and vectors.size:
            vectors = vectors[None]
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise ValueError(f"queries must have shape (Q, {self.dimension}), got {vectors.shape}")
        return (list(range(len(vectors))) if names is None else names), vectors
