"""What can be changed in a thought: one step's soft token, by the edits of :mod:`laser_lab.probing`."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from laser_lab.probing.causal import Edit, blend, noise, replace, steer
from laser_lab.probing.vocabulary import readable

STEPS = 8
"""The longest thought: K goes from 1 to this, or to the number of reason tokens that the model has learned."""

KINDS = {
    "token": "the token",
    "query": "the thought of another query",
    "mean": "the mean thought",
    "noise": "noise",
    "knock-out": "nothing (knocked out)",
}
"""What a soft token can be replaced by. ``knock-out`` leaves nothing of a step: the mean is fed back, and its state is
not pooled."""

MODES = {"interpolate": (0.0, 1.0), "steer": (-2.0, 2.0)}
"""How a value v changes soft token t, with the least and the greatest strength s: t + s·(v - t), or t + s·v."""


@dataclass(frozen=True)
class Change:
    """An intervention: what is fed back instead of one step's soft token."""

    step: int
    """k, from 1 to 7: the last step feeds nothing back"""
    kind: str
    """one of :data:`KINDS`"""
    value: str = ""
    """``token``: its name, or ``#`` and its id; ``query``: the other query; ``noise``: the seed, a whole number"""
    strength: float = 1.0
    """s; with ``interpolate``, 1 replaces the soft token"""
    mode: str = "interpolate"
    """one of :data:`MODES`"""

    def __post_init__(self) -> None:
        if isinstance(self.step, bool) or not isinstance(self.step, int) or not 1 <= self.step < STEPS:
            raise ValueError(
                f"The step must be from 1 to {STEPS - 1} (the last one feeds nothing back): {self.step!r}."
            )
        if not isinstance(self.kind, str) or self.kind not in KINDS:
            raise ValueError(f"A thought can be replaced by {', '.join(KINDS)}: {self.kind!r} is none of these.")
        if not isinstance(self.value, str):
            raise ValueError(f"The value must be a text: {self.value!r}.")
        if self.kind == "noise" and not re.fullmatch(r"[0-9]{1,9}", self.value or "0"):
            raise ValueError(f"The seed of the noise must be a whole number: {self.value!r:.80}.")
        if not isinstance(self.mode, str) or self.mode not in MODES:
            raise ValueError(f"The mode must be {' or '.join(MODES)}: {self.mode!r} is neither.")
        low, high = MODES[self.mode]
        number = isinstance(self.strength, (int, float)) and not isinstance(self.strength, bool)
        if not number or not math.isfinite(self.strength) or not low <= self.strength <= high:
            raise ValueError(f"The strength must be from {low:g} to {high:g} to {self.mode}: {self.strength!r}.")
        if self.kind == "knock-out" and (self.strength, self.mode) != (1, "interpolate"):
            raise ValueError("A step is knocked out as a whole: this change has no other strength.")

    @property
    def label(self) -> str:
        """``soft token 1 → the token “mirolo”``; with its strength, where it has one"""
        token = f" “{readable(self.value)}”"
        shown = {"token": token, "query": f" “{self.value}”", "noise": f", seed {self.value or 0}"}
        by = f"{KINDS[self.kind]}{shown.get(self.kind, '')}"
        if self.mode == "steer":
            return f"soft token {self.step} {'−' if self.strength < 0 else '+'} {abs(self.strength):g} × {by}"
        share = "" if self.strength == 1 else f"{100 * self.strength:.3g} % "
        return f"soft token {self.step} → {share}{by}"

    def as_dict(self) -> dict[str, Any]:
        """Its fields and its label."""
        return asdict(self) | {"label": self.label}

    @property
    def unpooled(self) -> int | None:
        """The step whose state is not pooled, if there is one."""
        return self.step if self.kind == "knock-out" else None

    def edit(self, place: int, value: Tensor | None, size: int) -> Edit:
        """The edit of a single text's rollout.

        Args:
            place: Which soft token the step's is, from 1: with pooling ``"generated"``, one later than the step.
            value: (D,) to feed back; for ``noise``, None.
            size: D.
        """
        if self.kind == "noise":
            seed = int(self.value or 0)
            if self.mode == "interpolate":
                return noise(place, 1, size, seed, self.strength)
            whole = noise(place, 1, size, seed)
            return lambda k, t, rows: t + self.strength * whole(k, t, rows) if k == place else t
        if self.mode == "steer":
            return steer(place, value, self.strength)
        return replace(place, value) if self.strength == 1 else blend(place, value, self.strength)
