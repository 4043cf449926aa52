"""What LaME learns beside the backbone, and how diverse states are."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from laser_lab.backbone import Backbone
from laser_lab.thinking import at_least_float32

TARGET_LENGTH = 64
"""Tokens of the decoder's target, end included; the paper names no number."""


class BottleneckDecoder(nn.Module):
    """The decoder head: one causal layer of width D with cross-attention to the K states. Embeddings and LM head are
    the backbone's. (The paper: "lightweight", without a size.)"""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.states_norm, self.inputs_norm, self.norm = (nn.LayerNorm(size) for _ in range(3))
        self.start = nn.Parameter(torch.zeros(size))
        self.positions = nn.Embedding(TARGET_LENGTH, size)
        self.layer = nn.TransformerDecoderLayer(
            size, heads, 2 * size, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )

    def forward(self, states: Tensor, target: Tensor) -> Tensor:
        """(B, K, D) states and (B, T, D) target embeddings to (B, T, D) predictions from the states and earlier target
        tokens."""
        length = target.shape[1]
        before = self.inputs_norm(at_least_float32(target[:, :-1]))
        inputs = torch.cat([self.start.expand(len(target), 1, -1), before], dim=1) + self.positions.weight[:length]
        causal = nn.Transformer.generate_square_subsequent_mask(length, device=inputs.device)
        return self.norm(self.layer(inputs, self.states_norm(at_least_float32(states)), tgt_mask=causal))


class ReasonTokens(nn.Module):
    """K reason tokens, [EMBED], the embedding head and perhaps the decoder head; all float32.

    No initialisation is published: tokens are drawn like rows of the embedding table, and the embedding head is the
    identity, so training starts from a last-token retriever.
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
        """Move all tokens to the embedding of `word` (its last token), as soft prompts (Lester et al., 2021). `noise`
        of their differences stays, as equal tokens would get equal gradients."""
        last = backbone.tokenizer(word, add_special_tokens=False, return_tensors="pt")["input_ids"][:, -1]
        self.tokens.copy_(backbone.embed(last.to(self.tokens.device)) + noise * (self.tokens - self.tokens.mean(0)))

    def reconstruction(self, backbone: Backbone, states: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """(B,) mean cross-entropy in nats of each target's tokens, given only its (B, K, D) states.

        Args:
            ids: (B, T) target tokens, padded on the right, T at most :data:`TARGET_LENGTH`; `mask` (B, T) is 1 at
                tokens.
        """
        wanted = mask.bool()
        predicted = self.decoder(states, backbone.embed(ids))[wanted]
        logits = backbone.logits(predicted)  # at real tokens only: V is large
        losses = logits.new_zeros(wanted.shape)
        losses[wanted] = cross_entropy(logits, ids[wanted], reduction="none")
        return losses.sum(1) / mask.sum(1)


def targets(input_ids: Tensor, attention_mask: Tensor, eos: int) -> tuple[Tensor, Tensor]:
    """Left-padded (B, T) documents to a decoder's target ``ids`` and ``mask``, (B, T'): their first tokens and an eos,
    padded on the right, T' at most :data:`TARGET_LENGTH`."""
    rows = [ids[kept.bool()] for ids, kept in zip(input_ids, attention_mask)]
    rows = [torch.cat([row, row.new_tensor([eos])])[:TARGET_LENGTH] for row in rows]
    lengths = torch.tensor([len(row) for row in rows], device=input_ids.device)
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=eos)
    return ids, (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()


def cosines(states: Tensor) -> Tensor:
    """(B, K, D) to (B, K·(K-1)/2): cosines of all pairs of a text's states."""
    states = normalize(at_least_float32(states), dim=-1)
    first, second = torch.triu_indices(states.shape[1], states.shape[1], offset=1)
    return (states[:, first] * states[:, second]).sum(-1)


def step_rank(states: Tensor) -> Tensor:
    """(B, K, D) to (B,): directions that a text's K states span, 1 to K: exp of the entropy of their normalised
    singular values (Roy and Vetterli, 2007); unit length, not centred."""
    values = torch.linalg.svdvals(normalize(at_least_float32(states), dim=-1))
    shares = values / values.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1).exp()


class Diversity(nn.Module):
    """LaME's regulariser: mean squared cosine between a text's states. The paper gives no formula; the square draws
    states to right angles and no further."""

    def forward(self, states: Tensor) -> Tensor:
        """(B, K, D) to a scalar in [0, 1]; 0 for K = 1."""
        squares = cosines(states) ** 2
        return squares.mean() if squares.numel() else states.sum() * 0
