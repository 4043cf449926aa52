"""Reasoning in segments, and which segment a thinking step is aligned with."""

import re
from collections.abc import Callable, Sequence

import torch

SEGMENTERS: dict[str, Callable[[str], list[str]]] = {
    "blank line": lambda text: re.split(r"\n\s*\n", text),
    "sentence": lambda text: re.split(r"(?<=[.!?])\s+", text),
}
"""Ways to cut a reasoning text; the released data uses blank lines."""


def segments(reasoning: str | Sequence[str], by: str = "blank line") -> list[str]:
    """The non-empty segments of a reasoning, in order; a list is not cut. ValueError: `by` is unknown."""
    if by not in SEGMENTERS:
        raise ValueError(f"segments are cut by {', '.join(SEGMENTERS)}; got {by!r}")
    parts = SEGMENTERS[by](reasoning) if isinstance(reasoning, str) else reasoning
    return [part.strip() for part in parts if part.strip()]


def downsample(count: int, steps: int, rule: str = "released") -> list[int]:
    """The segment (from 0, of `count`) that each of `steps` thinking steps is aligned with, in order. ValueError:
    `rule` is unknown, or a count is not positive.

    ``"released"`` (as the LaSER code): ``linspace(0, M-1, K)`` truncated; where M < K, each once, then the last again.
    ``"paper"`` (LaSER, eq. 9): step i = 1..K takes segment max(floor(i·M/K), 1), from 1.
    """
    if count < 1 or steps < 1:
        raise ValueError(f"segments and steps must be positive, got {count} and {steps}")
    if rule == "released":
        if count < steps:
            return [min(i, count - 1) for i in range(steps)]
        return torch.linspace(0, count - 1, steps).long().tolist()
    if rule == "paper":
        return [max(i * count // steps, 1) - 1 for i in range(1, steps + 1)]
    raise ValueError(f"rule must be 'released' or 'paper', got {rule!r}")
