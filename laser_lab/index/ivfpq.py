"""IVF-PQ on disk: lists of short codes that FAISS trains on a sample, fills block by block, and maps when searching.

Jégou et al., "Product quantization for nearest neighbor search" (2011). Everything is FAISS's own; this file says how
many lists and bytes, feeds it shards, and measures what the short codes cost against exact search.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from laser_lab.base.files import atomic_file, cached_build, write_text

if TYPE_CHECKING:
    from laser_lab.index.search import VectorIndex

TARGET = 0.98
"""Recall@100 for which lists are added to a search. It is measured with documents as queries; real ones lie further
off, and their recall is lower: 0.936 where documents had 0.974, 0.972 where they had 0.985. Promised is 0.95."""
SAMPLE = 256  # documents that serve as queries when recall is measured
TRAINING = 1 << 21  # vectors that training sees at most: what building holds in memory
BLOCK = 1 << 20  # vectors of a block


class Opened(NamedTuple):
    """A finished IVF-PQ index."""

    index: Any
    """FAISS's, its lists mapped from the disk"""
    ids: pa.ChunkedArray
    """document ids by position, mapped"""
    note: dict[str, Any]
    """``lists``, ``code_bytes``, ``nprobe``, ``recall`` (at 100, of exact search), ``place``"""


def open_ivfpq(vectors: VectorIndex) -> Opened:
    """The index of a folder of vectors, built there first if it is not there."""
    faiss = vectors.faiss
    width = code_bytes(vectors.dimension)
    place = (vectors.folder.path / f"ivfpq-{width}").absolute()
    cached_build(place, lambda folder: _build(vectors, folder, place))
    note = json.loads((place / "note.json").read_text())
    moved = note["place"] != str(place)  # FAISS notes where the lists are, and prints that it looks elsewhere
    flags = faiss.IO_FLAG_READ_ONLY | (faiss.IO_FLAG_ONDISK_SAME_DIR if moved else 0)
    index = faiss.read_index(str(place / "lists.index"), flags)  # lists on disk are mapped
    faiss.extract_index_ivf(index).nprobe = note["nprobe"]
    ids = pa.ipc.open_file(pa.memory_map(str(place / "ids.arrow"))).read_all()["id"]
    return Opened(index, ids, note)


def code_bytes(dimension: int) -> int:
    """Bytes of a vector's code, a divisor of D: one for each two numbers, an eighth of float32; up to 64 numbers, one
    for each."""
    return next(size for size in range(max(min(dimension, 64), dimension // 2), 0, -1) if dimension % size == 0)


def number_of_lists(documents: int) -> int:
    """A power of two near 4 sqrt(N), as FAISS advises, with 64 training vectors for each at least."""
    return 2 ** round(np.log2(max(1, min(4 * np.sqrt(documents), documents / 64))))


def _build(vectors: VectorIndex, folder: Path, place: Path) -> None:
    """Train, fill block by block (a block that is there is not made again), merge, and measure; all in `folder`, which
    then becomes `place`."""
    faiss = vectors.faiss
    width = code_bytes(vectors.dimension)
    for old in place.parent.glob(f".{place.name}.*"):  # of a build that was killed
        if old != folder:
            shutil.rmtree(old)
    parts = place.with_name(f"{place.name}-parts")
    lists = number_of_lists(len(vectors))
    trained = parts / "trained.index"
    if not trained.exists():
        index = faiss.index_factory(vectors.dimension, f"IVF{lists},PQ{width}np", faiss.METRIC_INNER_PRODUCT)
        index.cp.niter = 10
        index.train(_sample(vectors, min(TRAINING, 64 * max(lists, 256))))
        with atomic_file(trained) as temporary:
            faiss.write_index(index, str(temporary))
    names = []
    start = 0
    for number, block in enumerate(_blocks(vectors)):
        names.append(str(parts / f"{number:05d}.index"))
        if not Path(names[-1]).exists():
            index = faiss.read_index(str(trained))
            index.add_with_ids(block, np.arange(start, start + len(block)))
            with atomic_file(names[-1]) as temporary:
                faiss.write_index(index, str(temporary))
        start += len(block)
    from faiss.contrib.ondisk import merge_ondisk

    index = faiss.read_index(str(trained))
    merge_ondisk(index, names, str(folder / "lists.ivfdata"))
    faiss.downcast_InvertedLists(faiss.extract_index_ivf(index).invlists).filename = str(place / "lists.ivfdata")
    faiss.write_index(index, str(folder / "lists.index"))
    _write_ids(vectors, folder / "ids.arrow")
    nprobe, recall = _tune(vectors, index, lists)
    note = {"lists": lists, "code_bytes": width, "nprobe": nprobe, "recall": recall, "place": str(place)}
    write_text(folder / "note.json", json.dumps(note) + "\n")
    print(
        f"IVF-PQ of {len(vectors)} vectors: {lists} lists, {width} bytes a vector, {nprobe} lists a search; recall@100 "
        f"of exact search {recall:.3f} (queries: {SAMPLE} of the documents)"
    )
    shutil.rmtree(parts)


def _blocks(vectors: VectorIndex) -> Iterator[np.ndarray]:
    """All vectors in order, whole shards to a block."""
    waiting: list[np.ndarray] = []
    for shard in vectors.blocks():
        waiting.append(shard)
        if sum(map(len, waiting)) >= BLOCK:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _sample(vectors: VectorIndex, size: int) -> np.ndarray:
    """About `size` of the vectors, the same share of every shard, the same each time."""
    random = np.random.default_rng(0)
    share = min(1.0, size / len(vectors))
    return np.concatenate([shard[random.random(len(shard)) < share] for shard in vectors.blocks()])


def _tune(vectors: VectorIndex, index: Any, lists: int) -> tuple[int, float]:
    """The number of lists to search, doubled until recall is on target or stops to grow, and the recall."""
    faiss = vectors.faiss
    random = np.random.default_rng(1)
    queries = _sample(vectors, 8 * SAMPLE)
    queries = queries[random.permutation(len(queries))[:SAMPLE]]
    exact = vectors.exactly(queries, min(100, len(vectors)))[1]
    nprobe, best = 1, (1, -1.0)
    while nprobe <= lists:
        faiss.extract_index_ivf(index).nprobe = nprobe
        found = index.search(queries, exact.shape[1])[1]
        recall = float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, exact)]))
        if recall <= best[1] + 1e-3:  # the codes are the limit now
            break
        best = (nprobe, recall)
        if recall >= TARGET:
            break
        nprobe *= 2
    return best


def _write_ids(vectors: VectorIndex, file: Path) -> None:
    schema = pa.schema([("id", pa.string())])
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for number in range(vectors.index["shards"]):
            writer.write_batch(pa.record_batch([vectors.folder.read_ids(number)], schema=schema))
