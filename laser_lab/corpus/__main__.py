"""``python -m laser_lab.corpus MODEL SOURCE FOLDER``: encode a corpus; run it again to go on."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from laser_lab.corpus.encode import ENGINES, SHARD_SIZE, encode_corpus
from laser_lab.data.readers import BadRows
from laser_lab.index.folder import DTYPES
from laser_lab.loading import load


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m laser_lab.corpus", description=__doc__)
    parser.add_argument("model", help="as ll.load: a folder, a hub id or a built-in name")
    parser.add_argument("source", help="a .jsonl or .parquet file, a folder or glob of them, or a hub id")
    parser.add_argument("folder", help="where the vectors go; what is there already is not made again")
    parser.add_argument("--adapter", help="a PEFT adapter on top of the model")
    parser.add_argument("--device")
    parser.add_argument("--max-length", type=int, help="tokens of the longest document")
    parser.add_argument("--thinking-steps", type=int, help="K; default: the model's own for documents")
    parser.add_argument("--prompt", help="before each document; default: the model's own")
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0])
    parser.add_argument("--workers", type=int, help="Ray's; default: one for each GPU, else for each core")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    parser.add_argument("--shard-size", type=int, default=SHARD_SIZE, help="documents of a file of vectors")
    parser.add_argument("--text-column", nargs="+", default=["text"], help="several are joined by a space")
    parser.add_argument("--id-column", default="id", help="'' for the row number")
    parser.add_argument("--split", default="train", help="of a hub id")
    parser.add_argument("--skip-bad", action="store_true", help="leave bad rows out and count them")
    given = vars(parser.parse_args(arguments))
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    name, source, folder = (given.pop(key) for key in ("model", "source", "folder"))
    how = {key: given.pop(key) for key in ("adapter", "device", "max_length")}
    given["id_column"] = given["id_column"] or None
    try:
        found = encode_corpus(load(name, **how), source, folder, **given)
    except (BadRows, OSError, ValueError, RuntimeError, ModuleNotFoundError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(
        f"{found['documents']} documents in {folder}, {found['skipped']} bad rows skipped, {found['mean_steps']:.2f} "
        f"thinking steps a document; {found['encoded']} encoded now in {found['seconds']:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
