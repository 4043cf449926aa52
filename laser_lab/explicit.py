"""The explicit view: reasoning in segments, their states, downsampled in time (training only; METHOD 2)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

SEGMENTERS: dict[str, Callable[[str], list[str]]] = {
    "blank line": lambda text: re.split(r"\n\s*\n", text),
    "sentence": lambda text: re.split(r"(?<=[.!?])\s+", text),
}
"""How to cut a reasoning text: the released data separates its segments by a blank line."""


def segments(reasoning: str | Sequence[str], by: str = "blank line") -> list[str]:
    """A reasoning text as its non-empty segments, in order; a given list is kept as it is.

    Raises:
        ValueError: `by` names no segmenter.
    """
    if by not in SEGMENTERS:
        raise ValueError(f"segments are cut by {', '.join(SEGMENTERS)}; got {by!r}")
    parts = SEGMENTERS[by](reasoning) if isinstance(reasoning, str) else reasoning
    return [part.strip() for part in parts if part.strip()]
