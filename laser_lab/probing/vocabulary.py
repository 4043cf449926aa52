"""What a thought says: its nearest tokens in the vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from laser_lab.thinking import Thoughts

if TYPE_CHECKING:
    import pandas as pd
    from sentence_transformers import SentenceTransformer


def nearest_tokens(
    model: SentenceTransformer, thoughts: Thoughts, top: int = 10, reading: str = "head"
) -> pd.DataFrame:
    """The `top` vocabulary tokens nearest to each state of each thought, best first.

    Args:
        top: Tokens per step, from 1 to V.
        reading: ``"head"``: probability under softmax(W h_k), the very weights of the soft token that follows step k
            (LaSER, section 5.4). ``"embedding"``: cosine of the state h_k to the input embeddings E.

    Returns:
        A tidy frame, one row per (text, step, rank): ``text`` (its index), ``query``, ``step`` and ``rank`` (from 1),
        ``token_id``, ``token``, and ``probability`` or ``cosine``.

    Raises:
        ValueError: `top` or `reading` is out of range.
    """
    import pandas as pd

    backbone = model[0].backbone
    table = backbone.embedding_table
    if not 1 <= top <= len(table):
        raise ValueError(f"top must be from 1 to the vocabulary size {len(table)}, got {top}")
    if reading not in ("head", "embedding"):
        raise ValueError(f"reading must be 'head' or 'embedding', got {reading!r}")
    measure = "probability" if reading == "head" else "cosine"
    rows = []
    with torch.inference_mode():
        unit_table = torch.nn.functional.normalize(table.float(), dim=-1) if reading == "embedding" else None
        for index, text in enumerate(thoughts.texts):
            states = thoughts.states[index].to(table.device)
            if unit_table is None:
                scores = backbone.logits(states.to(backbone.head.weight.dtype)).softmax(-1)
            else:
                scores = torch.nn.functional.normalize(states, dim=-1) @ unit_table.T
            values, ids = (x.cpu() for x in scores.topk(top))
            tokens = [decode_tokens(backbone.tokenizer, step_ids) for step_ids in ids.tolist()]
            rows += [
                (index, text, step + 1, rank + 1, int(ids[step, rank]), tokens[step][rank], float(values[step, rank]))
                for step in range(thoughts.thinking_steps)
                for rank in range(top)
            ]
    return pd.DataFrame(rows, columns=["text", "query", "step", "rank", "token_id", "token", measure])


def decode_tokens(tokenizer, ids: list[int]) -> list[str]:
    """Each id as readable text of its own (a leading space stays; special tokens keep their names)."""
    return [tokenizer.decode([i], skip_special_tokens=False) or str(tokenizer.convert_ids_to_tokens(i)) for i in ids]
