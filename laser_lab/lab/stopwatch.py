"""Time of callables side by side, and the memory that one needs."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch


def measure(
    encoders: dict[str, Callable[[], Any]],
    repeats: int = 10,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> pd.DataFrame:
    """Time callables interleaved, each once per round, in an order that turns: a row per call with ``repeat`` (from 0),
    ``name`` and ``seconds``. `warmup` rounds are not timed. ``clock=time.process_time`` counts what this process alone
    takes of the processor, whatever else runs. ValueError: no encoder, or `repeats` below 1."""
    if not encoders or repeats < 1:
        raise ValueError(f"measure needs an encoder and a repeat, got {len(encoders)} encoders and repeats={repeats}")
    names, rows = list(encoders), []
    for repeat in range(-warmup, repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            _synchronize()
            start = clock()
            encoders[name]()
            _synchronize()
            if repeat >= 0:
                rows.append({"repeat": repeat, "name": name, "seconds": clock() - start})
    return pd.DataFrame(rows)


def summarize(times: pd.DataFrame) -> pd.DataFrame:
    """``median`` and ``p95`` of the seconds, a row per ``name`` in order of appearance."""
    seconds = times.groupby("name", sort=False)["seconds"]
    return seconds.quantile([0.5, 0.95]).unstack().set_axis(["median", "p95"], axis=1).reset_index()


def ratio(times: pd.DataFrame, slow: str, fast: str) -> float:
    """How many times longer `slow` takes than `fast`: the median over rounds of the ratio within the round."""
    return spread(times, slow, fast)[0]


def spread(times: pd.DataFrame, slow: str, fast: str) -> tuple[float, float, float]:
    """:func:`ratio`, and the 10th and 90th percentile of the ratios within a round."""
    wide = times.pivot(index="repeat", columns="name", values="seconds")
    low, middle, high = (wide[slow] / wide[fast]).quantile([0.1, 0.5, 0.9])
    return float(middle), float(low), float(high)


@contextmanager
def busy_core() -> Iterator[None]:
    """Another process keeps one core busy meanwhile."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            time.sleep(0.5)
            yield
        finally:
            other.kill()


def peak_memory(call: Callable[[], Any]) -> tuple[float, float]:
    """(growth, total) in MiB: the peak during a call above what was held before it, and as it stands.

    On CUDA what PyTorch allocated; else the resident set, which only Linux can tell (NaN on other systems).
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        peak = torch.cuda.max_memory_allocated()
        return (peak - before) / 2**20, peak / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory would hide what this call needs
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
