"""The words of texts as a tokenizer's ids: what a thought can be asked to say."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any


class Words:
    """Word tokens of texts as they stand after a space. Special tokens, punctuation and white space are no words. Ids
    that differ only in case or leading space ("Star", "▁star") are the same word."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._names: dict[int, str] = {}

    def name(self, token_id: int) -> str:
        """What the token says, in lower case and without space; empty where it is no word."""
        if token_id not in self._names:
            text = "" if token_id in self._special else self.tokenizer.decode([token_id]).strip().lower()
            self._names[token_id] = text if any(character.isalnum() for character in text) else ""
        return self._names[token_id]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The word tokens of each text, in order, with repetitions."""
        if not texts:
            return []
        encoded = self.tokenizer([f" {text}" for text in texts], add_special_tokens=False)["input_ids"]
        return [[i for i in ids if self.name(i)] for ids in encoded]

    def ids_anywhere(self, texts: Sequence[str]) -> set[int]:
        """The different word tokens of texts, read both at a beginning and after a space."""
        forms = [form for text in texts for form in (text, f" {text}")]
        encoded = self.tokenizer(forms, add_special_tokens=False)["input_ids"] if forms else []
        return {i for ids in encoded for i in ids if self.name(i)}

    def names(self, text: str) -> set[str]:
        """What :meth:`ids_anywhere` of a text say."""
        return {self.name(i) for i in self.ids_anywhere([text])}


def inverse_document_frequency(documents: Iterable[Iterable[int]]) -> tuple[dict[int, float], float]:
    """{token id: log((1 + N) / (1 + n_i))} for ids in n_i of N documents, and the value for an id in none."""
    counts: Counter[int] = Counter()
    total = 0
    for ids in documents:
        counts.update(set(ids))
        total += 1
    return {i: math.log((1 + total) / (1 + n)) for i, n in counts.items()}, math.log(1 + total)
