"""Other processes: locks that say what they wait for, workers that end with their parent, and what killed ones left."""

import hashlib
import logging
import os
import platform
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

SWEPT_AFTER = 24 * 3600
"""Seconds after which what a dead process left is removed."""


@contextmanager
def locked(file: str | os.PathLike[str], holder: str, wait: bool = True) -> Iterator[None]:
    """Hold the lock `file`. Where another process does, wait and say once for whom: `holder`, such as ``"another
    process that makes X"``. RuntimeError: it is held, and `wait` is off."""
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise RuntimeError(f"{holder} is still at work (it holds {file})") from None
        logger.warning("waiting for %s (it holds %s)", holder, file)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def end_with_parent(parent: int, interval: float = 1.0) -> None:
    """Called in a worker, ends it soon after its `parent`, the process of that number: a killed parent cannot tell its
    workers. A second call does nothing."""
    name = "laser_lab-end-with-parent"
    if any(thread.name == name for thread in threading.enumerate()):
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(interval)
        os._exit(1)

    threading.Thread(target=watch, name=name, daemon=True).start()


# -- cores that others compute on -------------------------------------------------------------------------------------


def free_cores() -> int:
    """Cores of this process that no other one computes on at this moment, at least 1. Only Linux can tell; elsewhere
    all cores count as free."""
    total = os.cpu_count() or 1
    try:
        running = int(Path("/proc/loadavg").read_text().split()[3].split("/")[0])
        own = [task.read_text().rpartition(")")[2].split()[0] for task in Path("/proc/self/task").glob("*/stat")]
    except (OSError, ValueError, IndexError):  # another system, or a thread that has just ended
        return total
    return max(1, min(len(os.sched_getaffinity(0)), total - (running - own.count("R"))))


@contextmanager
def threads_for_free_cores() -> Iterator[None]:
    """Compute with no more threads than there are :func:`free_cores`; never with more than before. Threads wait for
    each other after every product: where one has to wait for its core, a product takes some milliseconds instead of
    microseconds."""
    before = torch.get_num_threads()
    threads = before if before == 1 else min(before, free_cores())
    if threads < before:  # twice: a passing moment of the system, or an own thread that falls asleep, is no company
        time.sleep(0.001)
        threads = min(before, max(threads, free_cores()))
    if threads == before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# -- scratch: `.NAME.laser_lab-HOST-PROCESS-RANDOM` -------------------------------------------------------------------

_SCRATCH = re.compile(r"\..*\.laser_lab-([0-9a-f]{8})-(\d+)-")


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def scratch_prefix(name: str = "") -> str:
    """How the name of a scratch file or folder begins, so that :func:`sweep` knows it as ours."""
    return f".{name[:40]}.laser_lab-{_host()}-{os.getpid()}-"


def scratch_folder(name: str, home: str | os.PathLike[str] | None = None) -> tempfile.TemporaryDirectory:
    """A temporary folder in `home` (default: the system's), for a ``with``; what killed processes left is swept."""
    home = Path(home or tempfile.gettempdir())
    sweep(home)
    return tempfile.TemporaryDirectory(prefix=scratch_prefix(name), dir=home)


def sweep(folder: Path) -> None:
    """Remove the scratch in `folder` that is older than a day and whose process, of this machine, is dead."""
    for path in folder.glob(".*.laser_lab-*"):
        found = _SCRATCH.match(path.name)
        if found is None or found[1] != _host() or psutil.pid_exists(int(found[2])):
            continue
        if time.time() - path.lstat().st_mtime > SWEPT_AFTER:
            logger.warning("removing %s, which a process that was killed left here", path)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
