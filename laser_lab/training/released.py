"""The explicit view as the released LaSER code joins and cuts it (its ``collator.py`` and ``modeling/laser.py``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from laser_lab.data.segments import downsample
from laser_lab.encoder import LatentEncoder
from laser_lab.explicit import EXPLICIT_MAX_LENGTH

SHORTEST = 5  # characters of a reasoning that counts as one


def released_features(
    encoder: LatentEncoder,
    queries: Sequence[str],
    reasonings: Sequence[str],
    *,
    fallbacks: Sequence[str],
    prompt: str = "",
    steps: int = 1,
    rule: str = "released",
    max_length: int = EXPLICIT_MAX_LENGTH,
) -> dict[str, Tensor]:
    """Model input of the explicit view as released: query and reasoning as one text of at most `max_length` tokens, and
    an eos. A segment ends on a token of a lone blank line, or on the last one. The reasoning begins behind as many
    tokens as the query has by itself.

    Args:
        queries: With their own prompts.
        reasonings: As written; one of less than 5 characters is replaced by its fallback.
        fallbacks: The queries without prompts.

    Returns:
        As of :func:`laser_lab.explicit.explicit_features`.
    """
    tokenizer = encoder.tokenizer
    starts = encoder.wrapped([prompt + query for query in queries])
    written = [text if len(text) >= SHORTEST else bare for text, bare in zip(reasonings, fallbacks, strict=True)]
    joined = encoder.token_ids([start + text for start, text in zip(starts, written, strict=True)], max_length)
    blank_line = (tokenizer.encode("\n\n", add_special_tokens=False) or [tokenizer.eos_token_id])[-1]
    rows, ends = [], []
    for start, ids in zip(encoder.token_ids(starts, encoder.max_length), joined):
        last = len(ids) - 1
        found = [i for i in range(len(start), len(ids)) if ids[i] == blank_line or i == last]
        found = found or [len(ids)]  # no reasoning is left: the eos
        rows.append([*ids, tokenizer.eos_token_id])
        ends.append([found[j] - len(rows[-1]) for j in downsample(len(found), steps, rule)])
    batch = tokenizer.pad({"input_ids": rows}, padding=True, return_tensors="pt")
    positions = torch.tensor(ends).reshape(len(rows), steps) + batch["input_ids"].shape[1]
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "segment_ends": positions}
