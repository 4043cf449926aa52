"""What a thought says: its nearest tokens in the vocabulary, at every layer, and its mass on the gold reasoning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from laser_lab.thinking import Thoughts

if TYPE_CHECKING:
    import pandas as pd
    from sentence_transformers import SentenceTransformer

    from laser_lab.probing.tracing import LayerThoughts


def fed_back(model: SentenceTransformer, texts: Sequence[str], thinking_steps: int, **options: Any) -> Thoughts:
    """:func:`laser_lab.think`, but state k is always the one that soft token k comes from.

    A retriever that pools only the generated tokens (GIRCSE) does not pool the first of them; here nothing is left
    out, so that the thoughts of all methods are read at the same place.
    """
    from laser_lab.encoder import think

    encoder = model[0]
    pooling, encoder.pooling = encoder.pooling, "all"
    try:
        return think(model, texts, thinking_steps, **options)
    finally:
        encoder.pooling = pooling


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


def logit_lens(model: SentenceTransformer, traced: LayerThoughts, top: int = 5) -> pd.DataFrame:
    """What each layer would say at each step: softmax(W norm(x)) of the residual stream x behind it (nostalgebraist,
    2020). The last layer says what :func:`nearest_tokens` reads from the state itself.

    Args:
        traced: Of :func:`laser_lab.probing.tracing.think_layers`.

    Returns:
        A tidy frame, one row per (text, step, layer, rank): as :func:`nearest_tokens`, and ``layer`` (0: what enters
        the first).

    Raises:
        ValueError: `top` is out of range, or the backbone's final norm cannot be found.
    """
    import pandas as pd

    from laser_lab.probing.tracing import final_norm

    backbone = model[0].backbone
    norm, table = final_norm(backbone), backbone.embedding_table
    if not 1 <= top <= len(table):
        raise ValueError(f"top must be from 1 to the vocabulary size {len(table)}, got {top}")
    rows = []
    for index, text in enumerate(traced.thoughts.texts):
        for step, stream in enumerate(traced.layers[index]):
            with torch.inference_mode():
                probabilities = backbone.logits(norm(stream.to(table))).softmax(-1)
                values, ids = (x.tolist() for x in probabilities.topk(top))
            for layer, (said, weights) in enumerate(zip(ids, values)):
                tokens = decode_tokens(backbone.tokenizer, said)
                rows += [
                    (index, text, step + 1, layer, rank, *found)
                    for rank, found in enumerate(zip(said, tokens, weights), 1)
                ]
    columns = ["text", "query", "step", "layer", "rank", "token_id", "token", "probability"]
    return pd.DataFrame(rows, columns=columns)


def reasoning_mass(
    model: SentenceTransformer, thoughts: Thoughts, reasonings: Sequence[str | Sequence[str]]
) -> pd.DataFrame:
    """Do thoughts say what the gold reasoning says? For real language, where no single right token is known: the
    probability that softmax(W h_k) gives to all tokens of the text's reasoning together.

    Common words get some mass whatever is thought, so it stands beside the mass on the reasoning of each *other* text.
    Only words count, no punctuation, and in each such comparison none that stands in one of the two texts themselves:
    repeating a question is no reasoning, and both sides must lose the same words to be fair.

    Args:
        reasonings: A reasoning text, or its segments, per text.

    Returns:
        A row per text and step: ``text``, ``query``, ``step``, ``own`` (mass on its own reasoning), ``others`` (on the
        others'), both means over the other texts, and ``difference`` (own - others).

    Raises:
        ValueError: Not a reasoning per text, or a single text: there is nothing to compare it with.
    """
    import pandas as pd

    if len(reasonings) != len(thoughts):
        raise ValueError(f"{len(reasonings)} reasonings for {len(thoughts)} texts")
    if len(thoughts) == 1:
        raise ValueError("one text has no other text's reasoning to compare with")
    backbone = model[0].backbone
    asked = [_token_ids(backbone.tokenizer, text) for text in thoughts.texts]
    given = [_token_ids(backbone.tokenizer, *([r] if isinstance(r, str) else r)) for r in reasonings]
    words = sorted(set().union(*given))
    in_reasoning = torch.tensor([[w in ids for ids in given] for w in words]).reshape(len(words), len(given)).float()
    not_in_text = torch.tensor([[w not in ids for ids in asked] for w in words]).reshape(len(words), len(asked)).float()
    rows = []
    for index, text in enumerate(thoughts.texts):
        with torch.no_grad():
            states = thoughts.states[index].to(backbone.embedding_table)
            probabilities = backbone.logits(states).softmax(-1).cpu()[:, words] * not_in_text[:, index]  # (K, words)
        others = torch.arange(len(thoughts)) != index
        own = (probabilities * in_reasoning[:, index]) @ not_in_text[:, others]  # (K, texts - 1)
        theirs = probabilities @ (in_reasoning * not_in_text)[:, others]
        for step, (mine, other) in enumerate(zip(own.mean(1).tolist(), theirs.mean(1).tolist()), 1):
            rows.append((index, text, step, mine, other, mine - other))
    return pd.DataFrame(rows, columns=["text", "query", "step", "own", "others", "difference"])


def _token_ids(tokenizer, *texts: str) -> set[int]:
    """The different word tokens of some texts, as they stand at the beginning of a text and behind a space."""
    ids: set[int] = set()
    for text in texts:
        for form in (text, " " + text):
            ids.update(tokenizer(form, add_special_tokens=False)["input_ids"])
    ids -= set(tokenizer.all_special_ids)
    return {i for i in ids if any(character.isalnum() for character in tokenizer.decode([i]))}


def decode_tokens(tokenizer, ids: list[int]) -> list[str]:
    """Each id as readable text of its own (a leading space stays; special tokens keep their names)."""
    return [tokenizer.decode([i], skip_special_tokens=False) or str(tokenizer.convert_ids_to_tokens(i)) for i in ids]
