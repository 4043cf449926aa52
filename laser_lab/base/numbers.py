"""Numbers: what is finite, and why something is not."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class NotFinite(ValueError):
    """An embedding has NaN or infinite entries. It survives the way from one process to another."""

    def __init__(self, reason: str, rows: list[int]) -> None:
        super().__init__(reason, rows)
        self.reason = reason
        self.rows = rows
        """which of the batch, in order"""
        self.what = f"row {rows[0]} of the batch"
        self.inputs: list[Any] = []
        """what stood in these rows, where that is known"""

    def __reduce__(self) -> Any:  # Ray adds advice to `args`
        return type(self), (self.reason, self.rows), self.__dict__

    def name(self, rows: Iterable[int], label: Callable[[int], str] = "text number {}".format) -> None:
        """Say which texts these are, and name the first."""
        self.rows = sorted(rows)
        self.what = label(self.rows[0])

    def __str__(self) -> str:
        return f"the embedding of {self.what} is not finite: {self.reason}"


def check_finite(model: nn.Module, *vectors: Tensor) -> None:
    """Raise a :class:`NotFinite` if one of the (B, ...) `vectors` that `model` made has an entry that is not finite."""
    for some in vectors:
        if torch.isfinite(some.sum(dtype=torch.float64)):  # one pass and one number, where all is well
            continue
        bad = (~torch.isfinite(some.flatten(1)).all(1)).nonzero()[:, 0].tolist()
        raise NotFinite(likely_cause(model), bad)


@contextmanager
def named_rows(index: Callable[[int], int], *label: Callable[[int], str]) -> Iterator[None]:
    """Inside, a :class:`NotFinite` names the first of the texts that ``index(row of the batch)`` gives."""
    try:
        yield
    except NotFinite as error:
        error.name(map(index, error.rows), *label)
        raise


def likely_cause(model: nn.Module) -> str:
    """Why a model gives NaN: its weights, or their dtype."""
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            return f"the weight {name} holds NaN or infinite entries"
    if any(weight.dtype == torch.float16 for weight in model.parameters()):
        return "float16 overflows in this model: load it with dtype='bfloat16' or dtype='float32'"
    return "the computation overflows, though all weights are finite"
