"""Numbers: what is finite, and why something is not."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class NotFinite(ValueError):
    """An embedding has NaN or infinite entries."""

    def __init__(self, message: str, rows: list[int]) -> None:
        super().__init__(message)
        self.rows = rows
        """which of the batch"""


def check_finite(model: nn.Module, *vectors: Tensor) -> None:
    """Raise a :class:`NotFinite` if one of the (B, ...) `vectors` that `model` made has an entry that is not finite."""
    for some in vectors:
        if torch.isfinite(some.sum(dtype=torch.float64)):  # one pass and one number, where all is well
            continue
        bad = (~torch.isfinite(some.flatten(1)).all(1)).nonzero()[:, 0].tolist()
        raise NotFinite(f"row {bad[0]} of the batch has no finite embedding: {likely_cause(model)}", bad)


@contextmanager
def named_rows(indices: Callable[[int], int | None]) -> Iterator[None]:
    """Inside, a :class:`NotFinite` names the text that ``indices(row of the batch)`` gives, if it gives one."""
    try:
        yield
    except NotFinite as error:
        index = indices(error.rows[0])
        if index is None:
            raise
        reason = str(error).partition(": ")[2]
        raise NotFinite(f"the embedding of text number {index} is not finite: {reason}", error.rows) from None


def likely_cause(model: nn.Module) -> str:
    """Why a model gives NaN: its weights, or their dtype."""
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            return f"the weight {name} holds NaN or infinite entries"
    if any(weight.dtype == torch.float16 for weight in model.parameters()):
        return "float16 overflows in this model: load it with dtype='bfloat16' or dtype='float32'"
    return "the computation overflows, though all weights are finite"
