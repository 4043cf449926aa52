"""Results that lie in the cache under a hash of all they depend on, and are made once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from laser_lab.base.files import cache_dir, cached_build
from laser_lab.lab.provenance import code_version

if TYPE_CHECKING:
    import pandas as pd


class Cached:
    """A result with a row per query and inference K, ``per_query.csv``, and a record beside it.

    Its key covers its configuration and the source of every module that the one which makes it can reach.
    """

    room: ClassVar[str]
    """folder in the cache"""
    record_file: ClassVar[str]
    module: ClassVar[str]
    """full name of the module that makes it: not ``__module__``, which is ``__main__`` under ``python -m``"""

    @property
    def configuration(self) -> dict[str, Any]:
        """All that the result depends on, the code aside; of JSON."""
        raise NotImplementedError

    @property
    def columns(self) -> dict[str, Any]:
        """What stands in front of every row of :meth:`frame`."""
        raise NotImplementedError

    def fill(self, folder: Path) -> None:
        """Make the result in an empty `folder`."""
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
        return self.folder.exists()

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.folder / self.record_file).read_text(encoding="utf-8"))

    def run(self) -> None:
        """Make the result, unless it is there; if another process is at it, wait for that one."""
        cached_build(self.folder, self.fill)

    def frame(self) -> pd.DataFrame:
        """A row per query and inference K, behind the :attr:`columns`."""
        import pandas as pd

        frame = pd.read_csv(self.folder / "per_query.csv", dtype={"query_id": str})
        for at, (name, value) in enumerate(self.columns.items()):
            frame.insert(at, name, value)
        return frame
