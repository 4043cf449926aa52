"""Files: the cache, and writing that is whole or not there."""

import ctypes
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs
import yaml
from safetensors import safe_open

from laser_lab.base.processes import locked, scratch_prefix, sweep


def cache_dir() -> Path:
    """Where converted and pretrained built-ins live: ``LASER_LAB_CACHE``, else ``laser_lab`` in the user's cache."""
    if path := os.environ.get("LASER_LAB_CACHE"):
        return Path(path).expanduser()
    return platformdirs.user_cache_path("laser_lab")


@contextmanager
def atomic_folder(target: Path, replaces: Callable[[str], bool] | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside `target` that becomes `target` only when the block ends without an error.

    `replaces` says by name which entries of an old `target` go; the others are kept. Without it, a `target` that is
    there and not empty is an OSError, as is one that is no folder.
    """
    target = Path(target).expanduser().resolve()  # a link to a folder stays one
    target.parent.mkdir(parents=True, exist_ok=True)
    # a folder that cannot be renamed, or that someone stands in, gets the new entries one by one
    stays = target.is_dir() and replaces is not None and (
        os.path.ismount(target) or Path.cwd().is_relative_to(target) or not os.access(target.parent, os.W_OK)
    )  # fmt: skip
    home = target if stays else target.parent
    sweep(home)
    temporary = Path(tempfile.mkdtemp(prefix=scratch_prefix(target.name), dir=home))
    temporary.chmod(0o755)
    try:
        yield temporary
        if replaces is None or not target.exists():
            os.replace(temporary, target)
        elif stays:
            for old in set(target.iterdir()) - {temporary}:
                if (temporary / old.name).is_dir() or (replaces(old.name) and not (temporary / old.name).exists()):
                    shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
            for new in temporary.iterdir():
                os.replace(new, target / new.name)
        else:
            for old in target.iterdir():
                if not replaces(old.name) and not (temporary / old.name).exists():
                    _link(old, temporary / old.name)
            _swap(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _link(source: str | Path, target: str | Path) -> None:
    """The same file, or a folder of the same files, under a second name."""
    if os.path.isdir(source) and not os.path.islink(source):
        shutil.copytree(source, target, symlinks=True, copy_function=_link)
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without links
        shutil.copy2(source, target, follow_symlinks=False)


def _swap(new: Path, old: Path) -> None:
    """Exchange two folders, in one step where the system can (Linux): `old` is never away."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "renameat2"):
        here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        if libc.renameat2(here, os.fsencode(new), here, os.fsencode(old), exchange) == 0:
            return
    away = new.with_name(new.name + "-old")
    os.replace(old, away)
    os.replace(new, old)
    os.replace(away, new)


@contextmanager
def atomic_file(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `target` that becomes `target` only when the block ends without an error."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    handle, name = tempfile.mkstemp(prefix=scratch_prefix(target.name), suffix=target.suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write a text file (UTF-8) whole or not at all."""
    with atomic_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(file: str | os.PathLike[str]) -> Any:
    """What a JSON file holds. ValueError: it is no JSON; the message names the file."""
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8 and too large a number are ValueErrors too
        raise ValueError(f"{file} is no JSON file, or half of one: {error}") from error


def read_yaml(file: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping that a YAML file holds. ValueError: it is no YAML, or holds something else; it names the file."""
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no YAML file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a mapping of names to values, not {type(content).__name__}")
    return content


def check_files(folder: str | os.PathLike[str], suffixes: Sequence[str] = (".json", ".safetensors")) -> None:
    """Read through the files of a folder that end in `suffixes`, ``.pt`` and ``.pth`` (of PyTorch) among them.
    ValueError: one is corrupt; the message names it."""
    for file in sorted(file for file in Path(folder).iterdir() if file.suffix in suffixes):
        try:
            if file.suffix == ".json":
                read_json(file)
            elif file.suffix == ".safetensors":
                with safe_open(file, "pt"):  # the header, and that the file is as long as it says
                    pass
            elif file.suffix in (".pt", ".pth"):
                with zipfile.ZipFile(file) as archive:
                    if broken := archive.testzip():
                        raise ValueError(f"the sum of {broken} is wrong")
        except Exception as error:  # SafetensorError is no subclass of anything useful
            text = str(error) if str(file) in str(error) else f"{file} is corrupt: {error}"
            raise ValueError(text) from error


@contextmanager
def named_files(*folders: str | os.PathLike[str] | None) -> Iterator[None]:
    """Inside, an error names the corrupt file (:func:`check_files`) where one of the folders has one."""
    try:
        yield
    except Exception:
        for folder in folders:
            if folder is not None and os.path.isdir(folder):
                check_files(folder)
        raise


def cached_build(folder: Path, build: Callable[[Path], None], is_whole: Callable[[Path], bool] = Path.exists) -> Path:
    """`folder`, built once by ``build(temporary_folder)``; safe against crashes and a second process, which waits. One
    that is there and not whole is built again, and replaced."""
    if not is_whole(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(f"{folder}.lock", f"another process that makes {folder}"):
            if not is_whole(folder):
                with atomic_folder(folder, replaces=lambda name: True) as temporary:
                    build(temporary)
    return folder


def missing_extra(package: str, extra: str) -> ModuleNotFoundError:
    """The error for a package that only one function needs."""
    return ModuleNotFoundError(f"{package} is needed here: pip install 'laser_lab[{extra}]'", name=package)
