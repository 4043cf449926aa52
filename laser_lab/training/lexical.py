"""Lexical alignment (ours; docs/method.md, section 5): which words each thinking step should say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor

from laser_lab.data.words import Words, inverse_document_frequency
from laser_lab.encoder import LatentEncoder
from laser_lab.methods import LatentMethod


def shares(count: int, steps: int) -> list[range]:
    """M segments in K contiguous shares of like size; where M < K, one segment each, and then none."""
    if count < steps:
        return [range(i, min(i + 1, count)) for i in range(steps)]
    return [range(i * count // steps, (i + 1) * count // steps) for i in range(steps)]


class LexicalTargets:
    """What each of the K soft tokens should say: a sparse distribution over the vocabulary.

    Target k holds the words of share k of the reasoning (:func:`shares`), counted and weighed by inverse document
    frequency, without those of the query or an earlier share; if none are left, all its words. After the last segment
    it is the token that ends a thought. A row without reasoning has no target.

    With halting, a batch in which some reasoning fills all K steps has a target K+1, the end: else a thought of K steps
    would never learn to end.

    Related, in language models: SIM-CoT (Wei et al., 2025; a decoder writes segment k from latent k) and CODI (Shen et
    al., 2025; aligns the last position's states).

    Args:
        reasonings: All training reasoning, in segments, to count document frequencies over.
    """

    def __init__(self, encoder: LatentEncoder, method: LatentMethod, reasonings: Iterable[Sequence[str]] = ()) -> None:
        self.words, self.method = Words(encoder.tokenizer), method
        self.end = encoder.tokenizer.eos_token_id if encoder.end_token is None else encoder.end_token
        self.idf: dict[int, float] = {}
        self.rare = 1.0
        if method.lexical_idf:
            found = (chain.from_iterable(self.words.ids(segments)) for segments in reasonings)
            self.idf, self.rare = inverse_document_frequency(found)

    def step_targets(self, query: str, segments: Sequence[str]) -> list[dict[int, float]]:
        """K distributions, {token id: probability}; empty where there is no target."""
        steps = self.method.thinking_steps
        if not segments:
            return [{}] * steps
        ids = self.words.ids(segments)
        known = self.words.names(query) if self.method.lexical_novelty else set()
        targets = []
        for share in shares(len(segments), steps):
            if not share:
                targets.append({self.end: 1.0} if self.method.lexical_end else {})
                continue
            if not self.method.lexical_words:
                targets.append({})
                continue
            counts = Counter(chain.from_iterable(ids[i] for i in share))
            new = {i: n for i, n in counts.items() if self.words.name(i) not in known}
            targets.append(self._distribution(new) or self._distribution(counts) or self._distribution(counts, False))
            if self.method.lexical_novelty:
                known = known | {self.words.name(i) for i in counts}
        return targets

    def _distribution(self, counts: dict[int, int], weighed: bool = True) -> dict[int, float]:
        """Counts, perhaps weighed by idf, as probabilities; empty if nothing has weight."""
        weights = {i: n * (self.idf.get(i, self.rare) if weighed and self.idf else 1.0) for i, n in counts.items()}
        total = sum(weights.values())
        return {i: weight / total for i, weight in weights.items() if weight > 0} if total > 0 else {}

    def __call__(self, queries: Sequence[str], reasonings: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """``lexical_ids`` and ``lexical_targets``, (B, K or K+1, N): ids and probabilities (padding: probability 0)."""
        rows = [self.step_targets(query, segments) for query, segments in zip(queries, reasonings, strict=True)]
        steps = self.method.thinking_steps
        closes = self.method.halting and self.method.lexical_end and steps > 1
        if closes and max(map(len, reasonings), default=0) >= steps:
            rows = [[*row, {self.end: 1.0} if segments else {}] for row, segments in zip(rows, reasonings)]
            steps += 1
        width = max((len(target) for row in rows for target in row), default=0) or 1
        ids = torch.full((len(rows), steps, width), self.end)
        targets = torch.zeros(ids.shape)
        for b, row in enumerate(rows):
            for k, target in enumerate(row):
                ids[b, k, : len(target)] = torch.tensor(list(target), dtype=torch.long)
                targets[b, k, : len(target)] = torch.tensor(list(target.values()))
        return {"lexical_ids": ids, "lexical_targets": targets}
