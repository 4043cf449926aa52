"""Files: the cache, and writing that leaves a whole file or none."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
from filelock import FileLock


def cache_dir() -> Path:
    """The folder of converted and pretrained models: ``LASER_LAB_CACHE``, else ``laser_lab`` in the user's cache."""
    if path := os.environ.get("LASER_LAB_CACHE"):
        return Path(path).expanduser()
    return platformdirs.user_cache_path("laser_lab")


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; it becomes `target` if the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_file(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `target`; it becomes `target` if the block ends without an error."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write a text file (UTF-8), whole or not at all."""
    with atomic_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def cached_build(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, built by ``build(temporary_folder)`` on first use. Other processes wait; a crash leaves nothing."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                with atomic_folder(folder) as temporary:
                    build(temporary)
    return folder


def missing_extra(package: str, extra: str) -> ModuleNotFoundError:
    """The error for a missing optional package: it names the extra that installs it."""
    return ModuleNotFoundError(f"{package} is needed here: pip install 'laser_lab[{extra}]'", name=package)
