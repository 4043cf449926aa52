"""Ids that stand in a folder more than once, found without holding all ids.

Each id becomes 128 bits. These go to files by their first bits, so that equal ones meet in the same file, and each file
is sorted alone. What is in memory is one file's part, whatever the number of documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

import numpy as np

from laser_lab.index.folder import VectorFolder

PART = 1 << 22
"""Ids of a part: 0.2 GB while it is sorted. A billion documents make 239 parts, and 24 GB of files for the while."""


def repeated_ids(folder: VectorFolder, shards: int, part: int = PART) -> Iterator[np.ndarray]:
    """For each part the (n, 4) places of ids that stand there again: shard and row, and shard and row where the same id
    stands for the first time."""
    documents = folder.totals(shards)["documents"]
    parts = -(-documents // part)
    with folder.scratch() as scratch:
        for number in range(shards):
            ids = folder.read_ids(number).to_pylist()
            digests = b"".join(blake2b(name.encode(), digest_size=16).digest() for name in ids)
            halves = np.frombuffer(digests, np.uint64).reshape(-1, 2)
            places = np.uint64(number << 32) + np.arange(len(ids), dtype=np.uint64)
            records, target = np.column_stack([halves, places]), halves[:, 0] % np.uint64(max(1, parts))
            for which in np.unique(target):
                with (scratch / str(which)).open("ab") as file:
                    file.write(records[target == which].tobytes())
        for which in range(parts):
            file = scratch / str(which)
            if file.exists():
                yield _repeated(np.fromfile(file, np.uint64).reshape(-1, 3))


def _repeated(records: np.ndarray) -> np.ndarray:
    """(n, 3) records of 128 bits and place to the (m, 4) places of :func:`repeated_ids`."""
    order = np.argsort(records[:, 0], kind="stable")
    same = np.diff(records[order, 0]) == 0
    twins = np.append(same, False) | np.insert(same, 0, False)  # few: only they are looked at whole
    records = records[order[twins]]
    records = records[np.lexsort(records.T[::-1])]
    again = np.zeros(len(records), bool)
    again[1:] = (records[1:, :2] == records[:-1, :2]).all(axis=1)
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(records))))
    both = np.column_stack([records[again, 2], records[first[again], 2]])
    return np.column_stack([both >> np.uint64(32), both & np.uint64(2**32 - 1)])[:, [0, 2, 1, 3]].astype(np.int64)
