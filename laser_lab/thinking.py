"""Latent thinking: the one loop that turns an embedded text into K latent states and their weights.

The loop knows a backbone's parts (embedding, body, head) and nothing of tokenizers, retrieval or losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from laser_lab.backbone import Backbone

Edit = Callable[[int, Tensor, Tensor], Tensor]
"""An intervention: called with k (from 1), soft token t_k (b, D) and which rows of the batch these are (b,)."""


class Rollout(NamedTuple):
    """What the loop gives for a batch of B texts."""

    states: Tensor
    """(B, K, D): h_1..h_K after the final norm, in the backbone's dtype; zeros after a row has left the batch"""
    weights: Tensor
    """(B, K) float32 or better: what each state weighs in the embedding; ones without halting"""
    steps_taken: Tensor
    """(B,): the states that were computed for each row, from 1 to K"""
    log_normalisers: Tensor | None
    """(B, K): log of the sum of exp of the head's logits at each state, where they were asked for"""


def latent_thinking(
    backbone: Backbone,
    input_ids: Tensor,
    attention_mask: Tensor,
    thinking_steps: int,
    *,
    end_token: int | None = None,
    threshold: float = 0.0,
    read_all: bool = False,
    edit: Edit | None = None,
) -> Rollout:
    """Think up to K steps silently: feed soft tokens back, keep the states (LaSER, section 3.2).

        h_1 = last state of f(E[ids]);   t_k = softmax(W h_k)·E;   h_{k+1} = last state of f(..., t_1, ..., t_k)

    K states cost K-1 soft tokens and K forward calls; K=1 is the basic last-token retriever. Differentiable: the
    gradient of step k+1 reaches the cause of soft token k.

    **Halting** (ours; docs/method.md, section 4). With an `end_token`, the head says when a thought is over:
    p_k = softmax(W h_k)[end], and state k weighs a_k = prod_{j<=k} (1 - p_j), the first state always 1. K is then a
    budget. Without gradients, a row leaves the batch as soon as no later state can weigh `threshold`. ACT (Graves,
    2016) and PonderNet (Banino et al., 2021) halt by a learned unit of their own; here the language model's own end
    of text does it, and no parameter is added.

    Args:
        input_ids: (B, T), padded on the left.
        attention_mask: (B, T), 0 for padding.
        thinking_steps: K >= 1.
        end_token: Id of the token that ends a thought; None: no halting.
        threshold: In [0, 1): the weight below which a row stops thinking. 0: nobody leaves.
        read_all: Also return the head's log normaliser at every state, from which the log-probability of any token
            follows cheaply (:meth:`Backbone.log_probabilities`).
        edit: An intervention: returns what is fed back instead of the soft token.
    """
    inputs, mask = backbone.embed(input_ids), attention_mask
    cache = backbone.new_cache() if thinking_steps > 1 else None
    batch = len(input_ids)
    rows = torch.arange(batch, device=inputs.device)  # who still thinks
    halts = end_token is not None and thinking_steps > 1
    goes_on: Tensor | None = None  # prod_{j<=k} (1 - p_j) of these rows
    steps: list[tuple[Tensor, ...]] = []  # per step: rows, states, weights, log normalisers
    for k in range(1, thinking_steps + 1):
        state = backbone.last_states(inputs, mask, cache)[:, -1]
        is_last = k == thinking_steps
        soft_token, normaliser = backbone.read_head(state, soft_token=not is_last, normaliser=halts or read_all)
        weight = torch.ones(len(rows), dtype=torch.float32, device=state.device)
        if halts:
            ends = backbone.log_probabilities(state, rows.new_full((len(rows), 1), end_token), normaliser)[:, 0]
            stays = -torch.expm1(ends.clamp(max=0))
            goes_on = stays if goes_on is None else goes_on * stays
            weight = torch.ones_like(stays) if k == 1 else goes_on
        steps.append((rows, state, weight, normaliser))
        if is_last:
            break
        if halts and threshold and not torch.is_grad_enabled():
            staying = (goes_on >= threshold).nonzero()[:, 0]  # later states weigh at most `goes_on`
            if len(staying) < len(rows):
                rows, soft_token, mask, goes_on = (x[staying] for x in (rows, soft_token, mask, goes_on))
                if not len(rows):
                    break
                cache.batch_select_indices(staying)
        if edit is not None:
            soft_token = edit(k, soft_token, rows)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        # Without a cache (gradient checkpointing) the body sees the whole sequence again.
        inputs = soft_token[:, None] if cache is not None else torch.cat([inputs, soft_token[:, None]], dim=1)
    return _whole(steps, batch, thinking_steps, read_all)


def _whole(steps: list[tuple[Tensor, ...]], batch: int, thinking_steps: int, read_all: bool) -> Rollout:
    """What each step found for the rows that still thought, as whole (B, K, ...) tensors."""
    taken = steps[0][0].new_zeros(batch)
    columns: list[list[Tensor]] = [[], [], []]
    for rows, *found in steps:
        taken[rows] += 1
        for column, values in zip(columns, found):
            if values is not None and len(rows) < batch:
                values = values.new_zeros(batch, *values.shape[1:]).index_copy(0, rows, values)
            column.append(values)
    for column in columns:
        column += [torch.zeros_like(column[0])] * (thinking_steps - len(column)) if column[0] is not None else []
    states, weights = (torch.stack(column, dim=1) for column in columns[:2])
    return Rollout(states, weights, taken, torch.stack(columns[2], dim=1) if read_all else None)


def pool(states: Tensor, weights: Tensor | None = None) -> Tensor:
    """(B, K, D) states and their (B, K) weights to (B, D) embeddings: the normalised weighted mean, in float32 or
    better. Without weights all states weigh the same (LaSER, eq. 2)."""
    states = at_least_float32(states)
    if weights is not None:
        states = states * weights[..., None]
    return normalize(states.mean(dim=1), dim=-1)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision raised to float32; float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True)
class Thoughts:
    """What a retriever thought about some texts."""

    texts: list[str]
    """B texts, without their prompt"""

    states: Tensor
    """(B, K, D) float32: the pooled latent states, after the final norm, in order of thinking; zeros after the end"""

    weights: Tensor = None
    """(B, K) float32: what each state weighs in the embedding; default: ones (no halting)"""

    steps_taken: Tensor = None
    """(B,): the states that were computed for each text; default: K"""

    def __post_init__(self) -> None:
        shape = self.states.shape[:2]
        if self.weights is None:
            object.__setattr__(self, "weights", torch.ones(shape))
        if self.steps_taken is None:
            object.__setattr__(self, "steps_taken", torch.full(shape[:1], shape[1]))

    @property
    def embeddings(self) -> Tensor:
        """(B, D) float32, unit length: the embedding after all K steps."""
        return pool(self.states, self.weights)

    @property
    def thinking_steps(self) -> int:
        """K, the budget where thoughts end themselves."""
        return self.states.shape[1]

    def embeddings_at(self, step: int, without: int | None = None) -> Tensor:
        """(B, D): the embedding had thinking stopped after `step` steps (1-based). One rollout serves every K.

        The state of step `without` is left out of the pooling; the result is NaN where no other is there.
        """
        if not 1 <= step <= self.thinking_steps:
            raise ValueError(f"step must be from 1 to {self.thinking_steps}, got {step}")
        kept = [k for k in range(step) if k + 1 != without]
        return pool(self.states[:, kept], self.weights[:, kept])

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int | slice) -> Thoughts:
        """The thoughts of one text or of a slice of them."""
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"there are {len(self)} thoughts, no number {index}")
            index = slice(index, index + 1 or None)
        return type(self)(**{field.name: getattr(self, field.name)[index] for field in fields(self)})
