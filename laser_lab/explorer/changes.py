"""What can be changed in a thought: one step's soft token, by the edits of :mod:`laser_lab.probing`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor

from laser_lab.probing.causal import Edit, noise, replace
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


@dataclass(frozen=True)
class Change:
    """An intervention: what is fed back instead of one step's soft token."""

    step: int
    """k, from 1 to 7: the last step feeds nothing back"""
    kind: str
    """one of :data:`KINDS`"""
    value: str = ""
    """``token``: its name, or ``#`` and its id; ``query``: the other query; ``noise``: the seed, a whole number"""

    def __post_init__(self) -> None:
        if isinstance(self.step, bool) or not isinstance(self.step, int) or not 1 <= self.step < STEPS:
            raise ValueError(
                f"The step must be from 1 to {STEPS - 1} (the last one feeds nothing back): {self.step!r}."
            )
        if self.kind not in KINDS:
            raise ValueError(f"A thought can be replaced by {', '.join(KINDS)}: {self.kind!r} is none of these.")
        if not isinstance(self.value, str):
            raise ValueError(f"The value must be a text: {self.value!r}.")
        if self.kind == "noise" and not re.fullmatch(r"[0-9]{1,9}", self.value or "0"):
            raise ValueError(f"The seed of the noise must be a whole number: {self.value!r:.80}.")

    @property
    def label(self) -> str:
        """``soft token 1 → the token “mirolo”``"""
        token = f" “{readable(self.value)}”"
        shown = {"token": token, "query": f" “{self.value}”", "noise": f", seed {self.value or 0}"}
        return f"soft token {self.step} → {KINDS[self.kind]}{shown.get(self.kind, '')}"

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
            return noise(place, 1, size, seed=int(self.value or 0))
        return replace(place, value)
