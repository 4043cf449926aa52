"""What a thought says: nearest tokens, at every layer, and its mass on the gold reasoning."""

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.functional import normalize

from laser_lab.backbone import Backbone
from laser_lab.data.words import Words
from laser_lab.encoder import think
from laser_lab.probing.tracing import LayerThoughts, final_norm
from laser_lab.thinking import Thoughts

Lens = Callable[[Tensor], Tensor]
"""(L+1, D) residual streams to where the last layer would put them, (L+1, D)"""


def soft_token_states(
    model: SentenceTransformer, texts: Sequence[str], thinking_steps: int, **options: Any
) -> Thoughts:
    """:func:`laser_lab.think`, with the states h_k that soft tokens t_k come from, whatever is pooled (``"generated"``,
    of GIRCSE, leaves h_1 out)."""
    encoder = model[0]
    pooling, encoder.pooling = encoder.pooling, "all"
    try:
        return think(model, texts, thinking_steps, **options)
    finally:
        encoder.pooling = pooling


# -- what states say -----------------------------------------------------------------------------------------------


def nearest_tokens(
    model: SentenceTransformer, thoughts: Thoughts, top: int = 10, reading: str = "head"
) -> pd.DataFrame:
    """The `top` tokens nearest to each state, best first; none for steps after the end of a thought.

    Args:
        reading: ``"head"``: probability under softmax(W h_k) (LaSER, section 5.4); ``"embedding"``: cosine of h_k to
            the input embeddings.

    Returns:
        A row per text, step and rank: ``text`` (its index), ``query``, ``step`` and ``rank`` (from 1), ``token_id``,
        ``token``, and ``probability`` or ``cosine``.

    Raises:
        ValueError: `top` or `reading` is out of range.
    """
    backbone = model[0].backbone
    table = backbone.embedding_table
    _check_top(top, len(table))
    if reading not in ("head", "embedding"):
        raise ValueError(f"reading must be 'head' or 'embedding', got {reading!r}")
    rows = []
    with torch.inference_mode():
        unit_table = normalize(table.float(), dim=-1) if reading == "embedding" else None
        for index, text in enumerate(thoughts.texts):
            states = thoughts.states[index, : int(thoughts.steps_taken[index])].to(table.device)
            if unit_table is None:
                scores = backbone.logits(states).softmax(-1)
            else:
                scores = normalize(states, dim=-1) @ unit_table.T
            rows += [(index, text, step + 1, *found) for step, *found in _best(backbone, scores, top)]
    measure = "probability" if reading == "head" else "cosine"
    return pd.DataFrame(rows, columns=["text", "query", "step", "rank", "token_id", "token", measure])


def step_statistics(model: SentenceTransformer, thoughts: Thoughts) -> pd.DataFrame:
    """How sure each step is of its next token, from p_k = softmax(W h_k).

    Returns:
        A row per text and step: ``text``, ``step``, ``entropy`` (nats), ``effective_tokens`` (its exp),
        ``top_probability``, ``divergence`` (KL(p_k || p_{k+1}); NaN at the last step), ``end_probability`` (of the
        end token, or eos), ``weight`` (of the state in the embedding), ``ended`` (then the numbers are NaN).
    """
    encoder = model[0]
    end = encoder.tokenizer.eos_token_id if encoder.end_token is None else encoder.end_token
    frames = []
    for index in range(len(thoughts)):
        with torch.inference_mode():
            logs = encoder.backbone.logits(thoughts.states[index]).log_softmax(-1)
            p = logs.exp()
            entropy = torch.special.entr(p).sum(-1)
            divergence = torch.full_like(entropy, torch.nan)
            divergence[:-1] = (p[:-1] * (logs[:-1] - logs[1:])).sum(-1)
            columns = {"entropy": entropy, "effective_tokens": entropy.exp(), "top_probability": p.amax(-1)}
            columns |= {"divergence": divergence, "end_probability": p[:, end] if end is not None else entropy * 0}
            frame = pd.DataFrame({name: values.double().cpu().numpy() for name, values in columns.items()})
        taken = int(thoughts.steps_taken[index])
        frame.loc[taken:] = float("nan")
        frame.loc[taken - 1 : taken - 1, "divergence"] = float("nan")
        frame.insert(0, "text", index)
        frame.insert(1, "step", range(1, len(frame) + 1))
        frames.append(frame.assign(weight=thoughts.weights[index].double(), ended=frame["step"] > taken))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def token_course(model: SentenceTransformer, thoughts: Thoughts, token_ids: Sequence[int]) -> pd.DataFrame:
    """Chosen tokens over the steps: ``text``, ``token_id``, ``step``, ``probability`` under softmax(W h_k) and ``rank``
    (from 1)."""
    rows = []
    for index, states in enumerate(thoughts.states):
        with torch.inference_mode():
            logits = model[0].backbone.logits(states).cpu()
            p = logits.softmax(-1)
        for token in sorted(token_ids):
            ranks = 1 + (logits > logits[:, token, None]).sum(-1)
            found = zip(p[:, token].tolist(), ranks.tolist())
            rows += [(index, token, step, *values) for step, values in enumerate(found, 1)]
    return pd.DataFrame(rows, columns=["text", "token_id", "step", "probability", "rank"])


def logit_lens(
    model: SentenceTransformer, traced: LayerThoughts, top: int = 5, lens: Lens | None = None
) -> pd.DataFrame:
    """What each layer would say at each step: softmax(W norm(x)) of the residual stream x (nostalgebraist, 2020).

    Args:
        traced: Of :func:`laser_lab.probing.tracing.think_layers`.
        lens: Moves x to where the last layer would have put it (:func:`laser_lab.fit_lens`); default: none.

    Returns:
        As :func:`nearest_tokens`, with ``layer`` (0: what enters the first), ``entropy`` (nats) and ``last_rank`` (of
        the last layer's first token).

    Raises:
        ValueError: `top` is out of range, or the final norm cannot be found.
    """
    backbone = model[0].backbone
    norm, table = final_norm(backbone), backbone.embedding_table
    _check_top(top, len(table))
    rows = []
    for index, text in enumerate(traced.thoughts.texts):
        for step, stream in enumerate(traced.layers[index], 1):
            with torch.inference_mode():
                moved = stream if lens is None else lens(stream)
                p = backbone.logits(norm(moved.to(table))).softmax(-1)
                entropy = torch.special.entr(p).sum(-1).tolist()
                last = p[:, p[-1].argmax()]
                ranks = (1 + (p > last[:, None]).sum(-1)).tolist()
            rows += [
                (index, text, step, layer, *found, entropy[layer], ranks[layer])
                for layer, *found in _best(backbone, p, top)
            ]
    columns = ["text", "query", "step", "layer", "rank", "token_id", "token", "probability", "entropy", "last_rank"]
    return pd.DataFrame(rows, columns=columns)


def _check_top(top: int, size: int) -> None:
    if not 1 <= top <= size:
        raise ValueError(f"top must be from 1 to the vocabulary size {size}, got {top}")


def _best(backbone: Backbone, scores: Tensor, top: int) -> Iterator[tuple[int, int, int, str, float]]:
    """(row from 0, rank from 1, id, text, score) of the `top` tokens of each row of (n, V) scores."""
    values, ids = (found.tolist() for found in scores.topk(top))
    for row, found in enumerate(ids):
        tokens = decode_tokens(backbone.tokenizer, found)
        for rank, (number, token, value) in enumerate(zip(found, tokens, values[row]), 1):
            yield row, rank, number, token, value


def reasoning_mass(
    model: SentenceTransformer, thoughts: Thoughts, reasonings: Sequence[str | Sequence[str]]
) -> pd.DataFrame:
    """How much probability softmax(W h_k) gives to the words of a text's gold reasoning, and to those of the *other*
    texts' reasonings. Words that stand in either of the two texts compared do not count. `reasonings` are texts or
    lists of segments.

    Returns:
        A row per text and step: ``text``, ``query``, ``step``, ``own`` and ``others`` (means over the other texts), and
        ``difference`` (own - others).

    Raises:
        ValueError: Not one reasoning per text, or a single text.
    """
    if len(reasonings) != len(thoughts):
        raise ValueError(f"{len(reasonings)} reasonings for {len(thoughts)} texts")
    if len(thoughts) == 1:
        raise ValueError("one text has no other text's reasoning to compare with")
    backbone = model[0].backbone
    tokens = Words(backbone.tokenizer)
    asked = [tokens.ids_anywhere([text]) for text in thoughts.texts]
    given = [tokens.ids_anywhere([r] if isinstance(r, str) else r) for r in reasonings]
    words = sorted(set().union(*given))
    in_reasoning = torch.tensor([[w in ids for ids in given] for w in words]).reshape(len(words), len(given)).float()
    not_in_text = torch.tensor([[w not in ids for ids in asked] for w in words]).reshape(len(words), len(asked)).float()
    rows = []
    for index, text in enumerate(thoughts.texts):
        with torch.no_grad():
            states = thoughts.states[index, : int(thoughts.steps_taken[index])]
            probabilities = backbone.logits(states).softmax(-1).cpu()[:, words] * not_in_text[:, index]  # (K, words)
        others = torch.arange(len(thoughts)) != index
        own = (probabilities * in_reasoning[:, index]) @ not_in_text[:, others]  # (K, texts - 1)
        theirs = probabilities @ (in_reasoning * not_in_text)[:, others]
        for step, (mine, other) in enumerate(zip(own.mean(1).tolist(), theirs.mean(1).tolist()), 1):
            rows.append((index, text, step, mine, other, mine - other))
    return pd.DataFrame(rows, columns=["text", "query", "step", "own", "others", "difference"])


# -- tokens and their names ----------------------------------------------------------------------------------------


def decode_tokens(tokenizer, ids: Sequence[int]) -> list[str]:
    """Each id as text; leading spaces and the names of special tokens stay."""
    return [tokenizer.decode([i], skip_special_tokens=False) or str(tokenizer.convert_ids_to_tokens(i)) for i in ids]


def token_names(tokenizer, ids: Sequence[int]) -> list[str]:
    """Names of ids: the text where :func:`token_id` leads back from it, else ``#`` and the id."""
    texts = decode_tokens(tokenizer, ids)
    back = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return [text if found == [i] else f"#{i}" for text, found, i in zip(texts, back, ids)]


def token_id(backbone: Backbone, name: str) -> int:
    """The id of one token, named by its text, its vocabulary entry, or ``#`` and its id. ValueError: `name` is none, or
    more than one."""
    tokenizer, size = backbone.tokenizer, len(backbone.embedding_table)
    if not name:
        raise ValueError("Name a token: the name is empty.")
    if re.fullmatch(r"#[0-9]+", name) and len(name) < 12:
        if int(name[1:]) >= size:
            raise ValueError(f"There is no token {name}: the ids go from #0 to #{size - 1}.")
        return int(name[1:])
    ids = tokenizer(name[:2000], add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    if len(ids) == 1 and (ids[0] != unknown or name == tokenizer.unk_token):
        return ids[0]
    known = tokenizer.convert_tokens_to_ids(name)
    if known is not None and known != unknown:
        return known
    if len(ids) > 1 and unknown not in ids:
        pieces = ", ".join(f"“{piece}”" for piece in decode_tokens(tokenizer, ids[:6]))
        raise ValueError(f"“{name:.60}” is not one token but {len(ids)}: {pieces}. Name one of them.")
    close = difflib.get_close_matches(name[:60], list(tokenizer.get_vocab()), n=3)
    hint = f" Did you mean {', '.join(f'“{c}”' for c in close)}?" if close else ""
    raise ValueError(f"“{name:.60}” is no token of this model.{hint}")


def token_embeddings(model: SentenceTransformer, tokens: Sequence[str]) -> Tensor:
    """(n, D): input embeddings of `tokens`, scale included. ValueError: a name is not one token (:func:`token_id`)."""
    backbone = model[0].backbone
    ids = [token_id(backbone, token) for token in tokens]
    with torch.inference_mode():
        return backbone.embed(torch.tensor(ids, device=backbone.embedding_table.device))


def readable(token: str) -> str:
    """A token made visible: ␣ for outer spaces, ⏎ for line breaks, ⇥ for tabs, U+XXXX for hidden characters."""
    inner = token.strip(" ")
    start = len(token) - len(token.lstrip(" ")) if inner else len(token)
    text = "␣" * start + inner + "␣" * (len(token) - start - len(inner))
    text = re.sub("\r\n|\r|\n", "⏎", text).replace("\t", "⇥")
    hidden = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    return "".join(f"U+{ord(c):04X}" if unicodedata.category(c) in hidden else c for c in text) or "␣"
