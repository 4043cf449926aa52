"""The stopwatch: callables timed side by side, and the memory that one needs. It knows nothing of models."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import pandas as pd


def measure(encoders: dict[str, Callable[[], Any]], repeats: int = 10, warmup: int = 2) -> pd.DataFrame:
    """Time callables interleaved, so that a slow moment of the machine hits all of them alike.

    Every round calls each encoder once, in an order that turns from round to round.

    Args:
        encoders: Name to callable without arguments.
        repeats: Timed rounds, after `warmup` rounds that are not timed.

    Returns:
        One row per round and name, in the order they ran: ``repeat`` (from 0), ``name``, ``seconds``.

    Raises:
        ValueError: No encoder, or `repeats` below 1.
    """
    import pandas as pd

    if not encoders or repeats < 1:
        raise ValueError(f"measure needs an encoder and a repeat, got {len(encoders)} encoders and repeats={repeats}")
    names, rows = list(encoders), []
    for repeat in range(-warmup, repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            _synchronize()
            start = time.perf_counter()
            encoders[name]()
            _synchronize()
            if repeat >= 0:
                rows.append({"repeat": repeat, "name": name, "seconds": time.perf_counter() - start})
    return pd.DataFrame(rows)


def summarize(times: pd.DataFrame, by: Sequence[str] = ("name",)) -> pd.DataFrame:
    """Median and 95th percentile of ``seconds`` for each value of the columns `by`, in order of appearance."""
    seconds = times.groupby(list(by), sort=False)["seconds"]
    return seconds.quantile([0.5, 0.95]).unstack().set_axis(["median", "p95"], axis=1).reset_index()


def ratio(times: pd.DataFrame, slow: str, fast: str) -> float:
    """How many times longer `slow` takes than `fast`: the median over rounds of the ratio within the round."""
    wide = times.pivot(index="repeat", columns="name", values="seconds")
    return float((wide[slow] / wide[fast]).median())


def peak_memory(call: Callable[[], Any]) -> tuple[float, float]:
    """(growth, total) in MiB: the peak during one call, above what was held before it, and as it stands.

    On CUDA what PyTorch allocated; elsewhere the resident set of the process, whose high-water mark only Linux lets
    a process reset (NaN on other systems).
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        peak = torch.cuda.max_memory_allocated()
        return (peak - before) / 2**20, peak / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier calls freed must not hide what this one needs
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
    except OSError:
        return float("nan"), float("nan")
    call()
    peak = _resident("VmHWM")
    return peak - before, peak


def _resident(field: str) -> float:
    """MiB of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
