"""Latent thinking: the one loop that turns an embedded text into K latent states.

The loop knows a backbone's parts (embedding, body, soft token) and nothing of tokenizers, pooling or losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from laser_lab.backbone import Backbone


def latent_thinking(
    backbone: Backbone,
    input_ids: Tensor,
    attention_mask: Tensor,
    thinking_steps: int,
    edit: Callable[[int, Tensor], Tensor] | None = None,
) -> Tensor:
    """Think K steps silently: feed K-1 soft tokens back, return the K states (LaSER, section 3.2; METHOD 1).

        h_1 = last state of f(E[ids]);   t_k = softmax(W h_k)·E;   h_{k+1} = last state of f(..., t_1, ..., t_k)

    K states cost K-1 soft tokens and K forward calls; K=1 is the basic last-token retriever. Differentiable: the
    gradient of step k+1 reaches the cause of soft token k.

    Args:
        input_ids: (B, T), padded on the left.
        attention_mask: (B, T), 0 for padding.
        thinking_steps: K >= 1.
        edit: An intervention: called with k (from 1) and soft token t_k (B, D), returns what is fed back instead.

    Returns:
        (B, K, D) states h_1..h_K after the final norm, in the backbone's dtype.
    """
    inputs, mask = backbone.embed(input_ids), attention_mask
    cache = backbone.new_cache() if thinking_steps > 1 else None
    states = [backbone.last_states(inputs, mask, cache)[:, -1]]
    while len(states) < thinking_steps:
        soft_token = backbone.soft_token(states[-1])
        if edit is not None:
            soft_token = edit(len(states), soft_token)
        soft_token = soft_token[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        # Without a cache (gradient checkpointing) the body sees the whole sequence again.
        inputs = soft_token if cache is not None else torch.cat([inputs, soft_token], dim=1)
        states.append(backbone.last_states(inputs, mask, cache)[:, -1])
    return torch.stack(states, dim=1)


def pool(states: Tensor) -> Tensor:
    """(B, K, D) states to (B, D) embeddings: the normalised mean, in float32 or better (METHOD 1)."""
    return torch.nn.functional.normalize(at_least_float32(states).mean(dim=1), dim=-1)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision raised to float32; float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True)
class Thoughts:
    """What a retriever thought about some texts."""

    texts: list[str]
    """B texts, without their prompt."""

    states: Tensor
    """(B, K, D) float32: the pooled latent states, after the final norm, in order of thinking."""

    @property
    def embeddings(self) -> Tensor:
        """(B, D) float32, unit length: the embedding after all K steps."""
        return pool(self.states)

    @property
    def thinking_steps(self) -> int:
        """K."""
        return self.states.shape[1]

    def embeddings_at(self, step: int, without: int | None = None) -> Tensor:
        """(B, D): the embedding had thinking stopped after `step` steps (1-based). One rollout serves every K.

        The state of step `without` is left out of the pooling; the result is NaN where no other is there.
        """
        if not 1 <= step <= self.thinking_steps:
            raise ValueError(f"step must be from 1 to {self.thinking_steps}, got {step}")
        return pool(self.states[:, [k for k in range(step) if k + 1 != without]])

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int | slice) -> Thoughts:
        """The thoughts of one text or of a slice of them."""
        if isinstance(index, int):
            index = slice(index, index + 1 or None)
        return Thoughts(self.texts[index], self.states[index])
