"""Sources: where documents come from, read by ranges of rows and never held whole. Knows no model.

A source is cut into shards of ``shard_size`` rows in a fixed order: files by name, rows as they stand. For each shard a
mark says where it starts (file, row in the file, byte), so any shard can be read by anyone, at any time, alone.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from laser_lab.base.inputs import check_texts
from laser_lab.data.json_lines import check_head, check_ids, id_text, parse_line

if TYPE_CHECKING:
    from datasets import Dataset

ENDINGS = (".jsonl", ".json", ".parquet")
_CHUNK = 1 << 20  # bytes read at once where lines are counted


class Documents(NamedTuple):
    """The rows of one shard."""

    ids: list[str]
    texts: list[str]
    places: list[str]
    """``file:line`` of each document"""
    problems: list[str]
    """``file:line: reason`` of each row that is no document"""


class Source(ABC):
    """Documents in a fixed order, cut into shards.

    Args:
        shard_size: Rows of a shard; the last may have fewer.
        text_columns: Where the text stands; several are joined by a space, empty ones left out.
        id_column: Where the id stands; None: a document's id is its row number, from 0.
    """

    rows: int
    """of all files together, bad ones included"""

    def __init__(self, shard_size: int, text_columns: Sequence[str], id_column: str | None) -> None:
        self.shard_size, self.text_columns, self.id_column = shard_size, tuple(text_columns), id_column

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_size)

    def size_of(self, shard: int) -> int:
        """How many rows of the source a shard covers."""
        return min(self.shard_size, self.rows - shard * self.shard_size)

    @property
    def columns(self) -> list[str]:
        return [*self.text_columns, *([] if self.id_column is None else [self.id_column])]

    @abstractmethod
    def describe(self) -> Any:
        """What tells this source from another, as JSON holds it."""

    def plan(self) -> Any:
        """What a second run need not work out again, as JSON holds it."""
        return None

    @abstractmethod
    def raw(self, shard: int) -> Iterator[tuple[str, dict[str, Any] | str | None]]:
        """Place and content of each row of a shard: the row, or why it cannot be read, or None for a blank line."""

    def read(self, shard: int) -> Documents:
        """The documents of a shard, and what is wrong with the rows that are none."""
        found = Documents([], [], [], [])
        there: dict[str, int] = {}
        for number, (place, row) in enumerate(self.raw(shard), shard * self.shard_size):
            if row is None:
                continue
            reason = row if isinstance(row, str) else self._missing(row)
            if not reason:
                name = str(number if self.id_column is None else row[self.id_column])
                if name in there:
                    reason = f"id {name!r} is there already ({found.places[there[name]]})"
            if reason:
                found.problems.append(f"{place}: {reason}")
                continue
            there[name] = len(found.ids)
            found.ids.append(name)
            found.texts.append(" ".join(filter(None, (row.get(column) for column in self.text_columns))))
            found.places.append(place)
        return found

    def _missing(self, row: dict[str, Any]) -> str | None:
        """What is wrong with a row, or None."""
        for column in self.text_columns:
            value = row.get(column)
            if value is not None and not isinstance(value, str):
                return f"{column} is a {type(value).__name__}, expected str"
        if not any((row.get(column) or "").strip() for column in self.text_columns):
            kind = "empty" if any(row.get(column) is not None for column in self.text_columns) else "missing"
            return f"{' and '.join(self.text_columns)} is {kind}"
        if self.id_column is not None:
            name = row.get(self.id_column)
            if isinstance(name, bool) or not isinstance(name, (str, int)) or name == "":
                what = "missing" if name is None or name == "" else f"a {type(name).__name__}"
                return f"{self.id_column} is {what}, expected str"
        return None


class TableSource(Source):
    """Rows of a ``datasets.Dataset``, which keeps them on disk by itself."""

    def __init__(self, table: Dataset, *args: Any) -> None:
        super().__init__(*args)
        check_columns("the Dataset", table.column_names, self.columns)
        self.table, self.rows = table.select_columns(self.columns), len(table)

    def describe(self) -> Any:
        some = np.linspace(0, max(0, self.rows - 1), min(self.rows, 16)).astype(int)
        return {"rows": self.rows, "some": [str(self.table[int(i)])[:100] for i in some]}

    def raw(self, shard: int) -> Iterator[tuple[str, dict[str, Any]]]:
        start = shard * self.shard_size
        rows = self.table[start : start + self.size_of(shard)]
        for offset, values in enumerate(zip(*(rows[column] for column in self.columns))):
            yield f"row {start + offset + 1}", dict(zip(self.columns, values))


class FileSource(Source):
    """Lines of JSON files and rows of Parquet files, local or by any address that fsspec reads.

    Args:
        names: The files, in the order in which they are read.
        plan: What :meth:`plan` returned before, so that no line is counted twice; used if it is of the same files.
    """

    def __init__(self, names: Sequence[str], *args: Any, plan: Mapping[str, Any] | None = None) -> None:
        super().__init__(*args)
        self.names = list(names)
        self.sizes = [_size(name) for name in self.names]
        same = plan is not None and [plan[key] for key in ("names", "sizes", "shard_size")] == [
            self.names, self.sizes, self.shard_size,
        ]  # fmt: skip
        if same:
            self.counts, self.marks = plan["counts"], plan["marks"]
        else:
            self._count()
        self.rows = sum(self.counts)

    def plan(self) -> dict[str, Any]:
        """Files, their sizes and rows, and the mark of every shard: file, row in it, byte (0 for Parquet)."""
        return {key: getattr(self, key) for key in ("names", "sizes", "shard_size", "counts", "marks")}

    def describe(self) -> Any:
        common = os.path.commonprefix([os.path.dirname(name) for name in self.names])  # the data may be moved
        files = [[name[len(common) :], *rest] for name, *rest in zip(self.names, self.sizes, self.counts)]
        digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]
        return {"files": len(files), "bytes": sum(self.sizes), "rows": self.rows, "hash": digest}

    def _count(self) -> None:
        self.counts: list[int] = []
        self.marks: list[list[int]] = []
        rows = 0
        for index, name in enumerate(self.names):
            first = -rows % self.shard_size  # the row of this file with which the next shard starts
            if name.endswith(".parquet"):
                with _open(name) as file:
                    count, known = _parquet(file).metadata.num_rows, _parquet(file).schema_arrow.names
                check_columns(name, known, self.columns)
                self.marks += [[index, row, 0] for row in range(first, count, self.shard_size)]
            else:
                count, starts = count_lines(name, first, self.shard_size)
                self.marks += [[index, row, byte] for row, byte in starts]
            self.counts.append(count)
            rows += count

    def raw(self, shard: int) -> Iterator[tuple[str, dict[str, Any] | str | None]]:
        left = self.size_of(shard)
        index, row, byte = self.marks[shard]
        while left:
            name, count = self.names[index], min(left, self.counts[index] - row)
            if count and name.endswith(".parquet"):
                yield from _parquet_rows(name, row, count, self.columns)
            elif count:
                yield from _lines(name, row, byte, count)
            left -= count
            index, row, byte = index + 1, 0, 0


def open_source(
    source: Any,
    *,
    shard_size: int,
    text_column: str | Sequence[str] = "text",
    id_column: str | None = "id",
    split: str = "train",
    plan: Mapping[str, Any] | None = None,
) -> Source:
    """What a user names, as a :class:`Source`.

    Args:
        source: A ``.jsonl``, ``.json`` (a row a line) or ``.parquet`` file, a folder or glob of them, a folder that
            ``Dataset.save_to_disk`` wrote, a ``datasets.Dataset``, a mapping of id to text, or a hub id whose files
            are of these kinds.
        split: Of a hub id or a saved ``DatasetDict``.

    Raises:
        FileNotFoundError: Nothing there.
        TypeError: `source` is of another kind.
        ValueError: Files of another kind, or without the columns; no rows.
    """
    columns = [text_column] if isinstance(text_column, str) else list(text_column)
    if isinstance(source, Mapping):
        from datasets import Dataset

        columns, id_column = ["text"], "id"
        ids = [id_text(name) for name in source]
        check_ids(ids, "the corpus")
        source = Dataset.from_dict({"id": ids, "text": check_texts(source.values())})
    settings = (shard_size, columns, id_column)
    if hasattr(source, "select_columns") and hasattr(source, "__len__"):
        opened: Source = TableSource(source, *settings)
    elif isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        saved = Path(text).expanduser()
        if any((saved / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
            opened = TableSource(_saved(saved, split), *settings)
        else:
            opened = FileSource(find_files(text, split), *settings, plan=plan)
    else:
        raise TypeError(
            f"a source is a path, a hub id, a Dataset or a mapping of id to text, not {type(source).__name__}"
        )
    if not opened.rows:
        raise ValueError(f"{source!r:.200} has no rows")
    return opened


def find_files(source: str, split: str = "train") -> list[str]:
    """The files of a path, folder, glob, address or hub id, in the order of their names."""
    path = Path(source).expanduser()
    if "://" in source:
        import fsspec

        system, inner = fsspec.core.url_to_fs(source)
        found = [inner] if system.isfile(inner) else system.glob(f"{inner}/**" if system.isdir(inner) else inner)
        names = [system.unstrip_protocol(name) for name in found if system.isfile(name)]
    elif path.is_file():
        names = [str(path)]
    elif path.is_dir():
        names = [str(file) for file in path.rglob("*") if file.is_file()]
    elif found := glob.glob(str(path), recursive=True):
        names = [name for name in found if os.path.isfile(name)]
    elif source.count("/") == 1 and not source.startswith((".", "/", "~")):
        names = _hub_files(source, split)
    else:
        raise FileNotFoundError(f"{source!r} is no file, folder or glob here, and no hub id (owner/name)")
    good = sorted(name for name in names if name.endswith(ENDINGS) and not os.path.basename(name).startswith("."))
    good = [name if "://" in name else os.path.abspath(name) for name in good]
    if not good:
        example = f", e.g. {min(names)}" if names else ""
        raise ValueError(f"{source!r} holds no {', '.join(ENDINGS)} files{example}")
    return good


def check_columns(where: str, there: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise a ValueError where a column is not there."""
    if missing := [column for column in wanted if column not in there]:
        raise ValueError(
            f"{where} has no column {missing[0]!r}; it has {', '.join(there)}. Name them by text_column and id_column"
        )


def count_lines(name: str, first: int, every: int) -> tuple[int, list[tuple[int, int]]]:
    """The lines of a file, and (line, byte) where lines `first`, `first + every`, ... start; lines count from 0."""
    starts = [(0, 0)] if first == 0 else []
    lines = position = 0
    unfinished = False
    with _open(name) as file:
        check_head(file.read(4), name)
        file.seek(0)
        while chunk := file.read(_CHUNK):
            ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == 10)
            wanted = np.arange(first + -(-max(0, lines + 1 - first) // every) * every, lines + len(ends) + 1, every)
            starts += [(int(line), position + int(ends[line - lines - 1]) + 1) for line in wanted]
            lines, position = lines + len(ends), position + len(chunk)
            unfinished = not chunk.endswith(b"\n")
    lines += unfinished
    return lines, [start for start in starts if start[0] < lines]


def _lines(name: str, row: int, byte: int, count: int) -> Iterator[tuple[str, dict[str, Any] | str | None]]:
    with _open(name) as file:
        file.seek(byte)
        for number in range(row + 1, row + count + 1):
            line = file.readline().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
            yield f"{name}:{number}", parse_line(line) if line.strip() else None


def _parquet_rows(name: str, row: int, count: int, columns: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    with _open(name) as handle:
        file = _parquet(handle)
        ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
        first = bisect_right(ends, row)
        position = 0 if first == 0 else int(ends[first - 1])  # of the batch's first row
        groups = list(range(first, bisect_right(ends, row + count - 1) + 1))
        for batch in file.iter_batches(batch_size=1024, row_groups=groups, columns=columns):
            start, stop = max(0, row - position), min(len(batch), row + count - position)
            for offset, values in enumerate(batch.slice(start, max(0, stop - start)).to_pylist()):
                yield f"{name}:{position + start + offset + 1}", values
            position += len(batch)
            if position >= row + count:
                return


def _parquet(file: Any) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(file)


def _open(name: str) -> Any:
    if "://" not in name:
        return open(name, "rb")
    import fsspec

    return fsspec.open(name, "rb").open()


def _size(name: str) -> int:
    if "://" not in name:
        return os.path.getsize(name)
    import fsspec

    system, inner = fsspec.core.url_to_fs(name)
    return system.size(inner)


def _saved(folder: Path, split: str) -> Dataset:
    from datasets import DatasetDict, load_from_disk

    loaded = load_from_disk(str(folder))
    if not isinstance(loaded, DatasetDict):
        return loaded
    if split not in loaded:
        raise FileNotFoundError(f"{folder} has no split {split!r}; it has {', '.join(loaded)}")
    return loaded[split]


def _hub_files(name: str, split: str) -> list[str]:
    """The files of a data set on the hub, each with its commit in the address."""
    from datasets import load_dataset_builder

    files = load_dataset_builder(name).config.data_files
    if not files or split not in files:
        raise FileNotFoundError(f"{name} has no files of a split {split!r}; it has {', '.join(files or {}) or 'none'}")
    return [str(file) for file in files[split]]
