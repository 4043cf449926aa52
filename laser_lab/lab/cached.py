"""Results in the cache, under a hash of all they depend on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from laser_lab.base.files import cache_dir, cached_build, read_json, write_text
from laser_lab.lab.provenance import code_version


class Cached:
    """``per_query.csv``, a row per query and inference K, and a record beside it.

    The key covers the configuration and the source of every module that :attr:`module` can reach.
    """

    room: ClassVar[str]
    """folder in the cache"""
    record_file: ClassVar[str]
    module: ClassVar[str]
    """full name of the module that makes it (``__module__`` is ``__main__`` under ``python -m``)"""

    @property
    def configuration(self) -> dict[str, Any]:
        """All that the result depends on, the code aside, as JSON."""
        raise NotImplementedError

    @property
    def columns(self) -> dict[str, Any]:
        """Columns in front of those of :meth:`frame`."""
        raise NotImplementedError

    def fill(self, folder: Path) -> dict[str, Any]:
        """Write ``per_query.csv`` into an empty `folder` and return the record."""
        raise NotImplementedError

    @property
    def key(self) -> str:
        text = json.dumps([self.configuration, code_version(self.module)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        return cache_dir() / self.room / self.key

    @property
    def done(self) -> bool:
        """Whether the result is there, with as many lines as it was written with: a loss of power can cut a file."""
        try:
            return self.record["lines"] == self._lines(self.folder)
        except (FileNotFoundError, KeyError, ValueError):
            return False

    @staticmethod
    def _lines(folder: Path) -> int:
        return (folder / "per_query.csv").read_bytes().count(b"\n")

    @property
    def record(self) -> dict[str, Any]:
        return read_json(self.folder / self.record_file)

    def run(self) -> None:
        """Make the result once; wait if another process is at it. One that is cut is made again."""

        def fill(folder: Path) -> None:
            record = self.fill(folder) | {"lines": self._lines(folder)}
            write_text(folder / self.record_file, json.dumps(record, indent=1))

        cached_build(self.folder, fill, lambda _: self.done)

    def frame(self) -> pd.DataFrame:
        """A row per query and inference K, behind the :attr:`columns`."""
        frame = pd.read_csv(self.folder / "per_query.csv", dtype={"query_id": str})
        for at, (name, value) in enumerate(self.columns.items()):
            frame.insert(at, name, value)  # refuses a name that is taken
        return frame
