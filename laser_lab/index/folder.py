"""A folder of vectors: shards of Parquet and one ``index.json``. Knows no model and no search.

    index.json              what made the vectors, and, when all are there, how many there are
    source.json             which rows of the source each shard holds
    vectors/00000000.parquet    columns id (string), vector (D float16 or float32), steps (int16)

A shard is there whole or not at all, so that the shards that are missing are all that is left to do.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laser_lab.base.files import atomic_file, read_json, write_text

DTYPES = ("float16", "float32")
FORMAT = 1


class Shard(NamedTuple):
    """What one shard holds: N documents in the order of the source."""

    ids: list[str]
    """N document ids"""
    vectors: np.ndarray
    """(N, D) float16 or float32"""
    steps: np.ndarray
    """(N,) int16: the thinking steps that were taken"""
    skipped: int
    """bad rows of the source that were left out"""

    def to_bytes(self) -> pa.Buffer:
        """The shard as a Parquet file, in memory."""
        vectors = np.ascontiguousarray(self.vectors)
        kind = pa.list_(pa.field("item", pa.from_numpy_dtype(vectors.dtype), nullable=False), vectors.shape[1])
        columns = {
            "id": pa.array(self.ids, pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=kind),
            "steps": pa.array(self.steps, pa.int16()),
        }
        schema = pa.schema(
            [pa.field(name, column.type, nullable=False) for name, column in columns.items()],
            metadata={"skipped": str(self.skipped), "steps": str(int(self.steps.sum()))},
        )
        sink = pa.BufferOutputStream()  # short row groups: what is compressed is held a second time
        table = pa.table(columns, schema)
        pq.write_table(table, sink, row_group_size=1024, compression="zstd", use_dictionary=False)
        return sink.getvalue()


class VectorFolder:
    """The files of a folder of vectors, by shard number."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()

    def __str__(self) -> str:
        return str(self.path)

    # -- what made the vectors -------------------------------------------------------------------------------------

    @property
    def index(self) -> dict[str, Any] | None:
        """What ``index.json`` says; None where it is not there.

        Raises:
            ValueError: It was written by another version of this format, or is half a file.
        """
        try:
            index = read_json(self.path / "index.json")
        except FileNotFoundError:
            return None
        if index.get("format") != FORMAT:
            raise ValueError(f"{self}: index.json has format={index.get('format')!r}, this version reads {FORMAT}")
        return index

    def begin(self, settings: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
        """Note what makes the vectors, or check that the folder's own note says the same.

        Args:
            settings: What decides the vectors; a second run must have the same.
            notes: What is worth knowing (versions, the name of the model); a second run may have others.

        Raises:
            ValueError: The folder was made with other settings; each is named with both values.
            FileExistsError: The folder holds other files and no ``index.json``.
        """
        if self.index is not None:
            self.check(settings)
            return
        self.path.mkdir(parents=True, exist_ok=True)
        if other := [file.name for file in self.path.iterdir() if not file.name.startswith(".")]:
            raise FileExistsError(
                f"{self} holds {min(other)!r} and no index.json: choose an empty folder, or a new one"
            )
        self._write({"format": FORMAT, "complete": False, "settings": dict(settings), **notes})

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise a ValueError that names each of `settings` for which the folder's note says something else."""
        found = self.index["settings"]
        given = json.loads(json.dumps(settings))  # as it comes back from a file: tuples are lists
        if other := [key for key, value in given.items() if found.get(key) != value]:
            values = "; ".join(f"{key} is {found.get(key)!r} there and {given[key]!r} here" for key in other)
            raise ValueError(f"{self} was made with other settings: {values}. Choose another folder.")

    def finish(self, totals: Mapping[str, Any]) -> dict[str, Any]:
        """Note that all shards are there, with `totals`; returns the whole note."""
        index = self.index | {"complete": True} | dict(totals)
        self._write(index)
        return index

    def _write(self, index: Mapping[str, Any]) -> None:
        write_text(self.path / "index.json", json.dumps(index, indent=2) + "\n")

    @property
    def source_plan(self) -> dict[str, Any] | None:
        """What ``source.json`` says: which rows of the source each shard holds; None where it is not there."""
        try:
            return read_json(self.path / "source.json")
        except FileNotFoundError:
            return None

    @source_plan.setter
    def source_plan(self, plan: Mapping[str, Any] | None) -> None:
        write_text(self.path / "source.json", json.dumps(plan) + "\n")

    # -- shards ----------------------------------------------------------------------------------------------------

    def shard_file(self, number: int) -> Path:
        return self.path / "vectors" / f"{number:08d}.parquet"

    @property
    def model_file(self) -> Path:
        """Where a run leaves its model for workers of other processes, while it lasts."""
        return self.path / ".model.pt"

    def has(self, number: int) -> bool:
        return self.shard_file(number).exists()

    def write_shard(self, number: int, content: bytes | pa.Buffer) -> None:
        """Write a shard whole or not at all, through to the disk.

        Raises:
            OSError: No space is left; the shards that are there stay.
        """
        what = f"shard {number} ({len(content) / 1e6:.1f} MB)"
        with self.room_for(what), atomic_file(self.shard_file(number)) as temporary, temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # before the rename: after a loss of power no named shard is half there

    @contextmanager
    def room_for(self, what: str) -> Iterator[None]:
        """Inside, an error of a full disk says what did not fit and what to do."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            advice = "The finished shards stay: make space and run the same call again"
            raise OSError(error.errno, f"no space for {what}. {advice}", str(self)) from error

    def remove_leftovers(self) -> None:
        """Remove the temporary files of a run that was killed; only for who holds the folder's lock."""
        for file in (self.path / "vectors").glob(".*.parquet"):
            file.unlink(missing_ok=True)
        self.model_file.unlink(missing_ok=True)
        for scratch in self.path.glob(".scratch.*"):
            shutil.rmtree(scratch, ignore_errors=True)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder in this one that is gone after the block."""
        with tempfile.TemporaryDirectory(prefix=".scratch.", dir=self.path) as name:
            yield Path(name)

    def read_shard(self, number: int) -> Shard:
        table = pq.read_table(self.shard_file(number), partitioning=None)
        column = table["vector"].combine_chunks()
        vectors = column.flatten().to_numpy().reshape(len(table), column.type.list_size)
        skipped = int(table.schema.metadata[b"skipped"])
        return Shard(table["id"].to_pylist(), vectors, table["steps"].to_numpy(), skipped)

    def read_ids(self, number: int) -> pa.Array:
        return pq.read_table(self.shard_file(number), columns=["id"], partitioning=None)["id"].combine_chunks()

    def totals(self, shards: int) -> dict[str, Any]:
        """``documents``, ``skipped`` and ``mean_steps`` of all shards, from their footers."""
        documents = skipped = steps = 0
        for number in range(shards):
            found = pq.read_metadata(self.shard_file(number))
            documents += found.num_rows
            skipped += int(found.metadata[b"skipped"])
            steps += int(found.metadata[b"steps"])
        mean = steps / documents if documents else 0.0
        return {"shards": shards, "documents": documents, "skipped": skipped, "mean_steps": round(mean, 4)}
