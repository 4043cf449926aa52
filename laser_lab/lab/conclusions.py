"""The words of what a notebook saw, from its numbers."""

from __future__ import annotations

from typing import Any

ALPHA = 0.05


def value(row: Any, measure: str = "ndcg@10") -> str:
    """``"0.997 [0.992, 1.000]"``: a row's `measure` with its interval, ``low`` to ``high``."""
    return f"{row[measure]:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def change(row: Any) -> str:
    """``"+0.021 [+0.003, +0.040]"``: a row of :func:`laser_lab.base.stats.compare`."""
    return f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def clear(row: Any) -> bool:
    """Whether a row of :func:`laser_lab.base.stats.compare` tells a difference: the interval is on one side of 0, and
    the adjusted p is below :data:`ALPHA`."""
    return bool(row["p_adjusted"] < ALPHA and not row["low"] <= 0 <= row["high"])


def verdict(row: Any, better: str = "better", worse: str = "worse", neither: str = "not clearly different") -> str:
    """What a row of :func:`laser_lab.base.stats.compare` allows to say of its first side."""
    return neither if not clear(row) else better if row["difference"] > 0 else worse
