"""What LaME learns beside the backbone: reason tokens, embedding head, decoder head; and how diverse states are."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from laser_lab.backbone import Backbone
from laser_lab.thinking import at_least_float32

TARGET_LENGTH = 64
"""Tokens of the target that the decoder is asked for, its end included. The paper names no number."""


class BottleneckDecoder(nn.Module):
    """The decoder head: one causal layer of width D that reads the K bottleneck states by cross-attention.

    "Lightweight" in the paper, without a size. It borrows the backbone's embeddings and LM head, so its own
    weights do not grow with the vocabulary.
    """

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.states_norm, self.inputs_norm, self.norm = (nn.LayerNorm(size) for _ in range(3))
        self.start = nn.Parameter(torch.zeros(size))
        self.positions = nn.Embedding(TARGET_LENGTH, size)
        self.layer = nn.TransformerDecoderLayer(
            size, heads, 2 * size, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )

    def forward(self, states: Tensor, target: Tensor) -> Tensor:
        """(B, K, D) states and (B, T, D) embeddings of the target to (B, T, D): what predicts each of its tokens,
        from the states and the target's tokens before it."""
        length = target.shape[1]
        before = self.inputs_norm(at_least_float32(target[:, :-1]))
        inputs = torch.cat([self.start.expand(len(target), 1, -1), before], dim=1) + self.positions.weight[:length]
        causal = nn.Transformer.generate_square_subsequent_mask(length, device=inputs.device)
        return self.norm(self.layer(inputs, self.states_norm(at_least_float32(states)), tgt_mask=causal))


class ReasonTokens(nn.Module):
    """K learned reason tokens and [EMBED], the embedding head, and the decoder head where there is one; all float32.

    No initialisation is published: tokens are drawn like rows of the embedding table (and may :meth:`start_at` a
    word), and the embedding head starts as the identity, so that training starts from a last-token retriever.
    """

    def __init__(self, backbone: Backbone, count: int, decoder: bool = True) -> None:
        super().__init__()
        size, table = backbone.hidden_size, backbone.embedding_table
        with torch.no_grad():
            some = backbone.embed(torch.randint(len(table), (256,)).to(table.device)).float()
            drawn = some.mean(0) + some.std(0) * torch.randn(count + 1, size).to(some)
        self.tokens = nn.Parameter(drawn)
        """(K + 1, D): the last one is [EMBED]"""
        self.head = nn.Linear(size, size)
        nn.init.eye_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        heads = backbone.config.get_text_config().num_attention_heads
        self.decoder = BottleneckDecoder(size, heads if size % heads == 0 else 1) if decoder else None
        self.to(table.device)

    @torch.no_grad()
    def start_at(self, backbone: Backbone, word: str, noise: float = 0.1) -> None:
        """Draw all learned tokens together at the embedding of `word` (of its last token), where soft prompts start too
        (Lester et al., 2021). `noise` of what set them apart remains, for equal tokens would have equal gradients."""
        last = backbone.tokenizer(word, add_special_tokens=False, return_tensors="pt")["input_ids"][:, -1]
        self.tokens.copy_(backbone.embed(last.to(self.tokens.device)) + noise * (self.tokens - self.tokens.mean(0)))

    def reconstruction(self, backbone: Backbone, states: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """(B,) mean cross-entropy in nats of each target's tokens, given its K bottleneck states and nothing else of
        the input.

        Args:
            states: (B, K, D).
            ids: (B, T) target tokens, T at most :data:`TARGET_LENGTH`; `mask` (B, T) is 1 where there is one. Padded on
                the right.
        """
        wanted = mask.bool()
        predicted = self.decoder(states, backbone.embed(ids))[wanted]
        logits = backbone.logits(predicted.to(backbone.head.weight.dtype))  # at real tokens only: V is large
        losses = logits.new_zeros(wanted.shape)
        losses[wanted] = cross_entropy(logits, ids[wanted], reduction="none")
        return losses.sum(1) / mask.sum(1)


def targets(input_ids: Tensor, attention_mask: Tensor, eos: int) -> tuple[Tensor, Tensor]:
    """Left-padded (B, T) documents to what a decoder is asked for: ``ids`` and ``mask`` (B, T'), their first tokens
    and an eos where they end, padded on the right, T' at most :data:`TARGET_LENGTH`."""
    rows = [ids[kept.bool()] for ids, kept in zip(input_ids, attention_mask)]
    rows = [torch.cat([row, row.new_tensor([eos])])[:TARGET_LENGTH] for row in rows]
    lengths = torch.tensor([len(row) for row in rows], device=input_ids.device)
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=eos)
    return ids, (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()


def cosines(states: Tensor) -> Tensor:
    """(B, K, D) to (B, K·(K-1)/2): the cosine of every pair of a text's states."""
    states = normalize(at_least_float32(states), dim=-1)
    first, second = torch.triu_indices(states.shape[1], states.shape[1], offset=1)
    return (states[:, first] * states[:, second]).sum(-1)


def step_rank(states: Tensor) -> Tensor:
    """(B, K, D) to (B,): how many directions the K states of each text span, from 1 (collapsed) to K. The exponential
    of the entropy of the normalised singular values of the K unit-length states (Roy and Vetterli, 2007); not centred,
    other than :func:`laser_lab.probing.geometry.effective_rank`, which asks how far different texts spread."""
    values = torch.linalg.svdvals(normalize(at_least_float32(states), dim=-1))
    shares = values / values.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1).exp()


class Diversity(nn.Module):
    """LaME's regulariser of the latent tokens: mean squared cosine between the states of different reason tokens.

    A diversity regularisation is named, without a formula. Squared, so that states are drawn
    to right angles and no further: states that point away from each other would not say more.
    """

    def forward(self, states: Tensor) -> Tensor:
        """(B, K, D) to a scalar in [0, 1]: 1 if all states of each text are one direction; of one state alone, 0."""
        squares = cosines(states) ** 2
        return squares.mean() if squares.numel() else states.sum() * 0
