"""What thoughts say of written reasoning, and what they are worth, on real text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from laser_lab.data.readers import RetrievalTask
from laser_lab.data.words import Words
from laser_lab.encoder import think
from laser_lab.evaluation import score
from laser_lab.probing.causal import Edit, soft_tokens
from laser_lab.probing.vocabulary import nearest_tokens, soft_token_states
from laser_lab.thinking import Thoughts

if TYPE_CHECKING:
    import pandas as pd
    from sentence_transformers import SentenceTransformer


def word_recall(
    model: SentenceTransformer, thoughts: Thoughts, reasonings: Sequence[Sequence[str]], top: int = 20
) -> pd.DataFrame:
    """How many of the words that the written reasoning adds to the question stand among the `top` nearest tokens; and
    the same for the reasoning of every other question, as a control.

    Args:
        reasonings: Segments, per text.

    Returns:
        A row per text and step: ``text``, ``step``, ``own`` and ``others`` (a mean) of this step, ``own_so_far`` and
        ``others_so_far`` of steps 1 to here together. Texts whose reasoning, or all others', adds no word are left out.

    Raises:
        ValueError: Not one reasoning per text, or fewer than two that add a word.
    """
    import pandas as pd

    if len(reasonings) != len(thoughts):
        raise ValueError(f"{len(reasonings)} reasonings for {len(thoughts)} texts")
    words = Words(model[0].tokenizer)
    asked = [words.names(text) for text in thoughts.texts]
    given = [set().union(*map(words.names, segments)) for segments in reasonings]
    if sum(bool(said - known) for said, known in zip(given, asked)) < 2:
        raise ValueError("the control needs the reasoning of another text: at least two must add words")
    nearest = nearest_tokens(model, thoughts, top).groupby(["text", "step"])["token_id"].agg(list)
    rows, so_far = [], set()
    for (text, step), ids in nearest.items():
        new = [said - asked[text] for said in given]
        others = [said for i, said in enumerate(new) if said and i != text]
        if not (new[text] and others):
            continue
        here = {words.name(i) for i in ids}
        so_far = here if step == 1 else so_far | here
        values = []
        for said in (here, so_far):
            values += [
                len(new[text] & said) / len(new[text]),
                sum(len(o & said) / len(o) for o in others) / len(others),
            ]
        rows.append((text, step, *values))
    return pd.DataFrame(rows, columns=["text", "step", "own", "others", "own_so_far", "others_so_far"])


def thought_words(model: SentenceTransformer, thoughts: Thoughts, top: int = 40) -> list[dict[str, float]]:
    """{word: probability} per text: of all steps together, each step as heavy as its state, the `top` most probable
    words. Tokens that are no words are left out."""
    words = Words(model[0].tokenizer)
    found: list[dict[str, float]] = [{} for _ in thoughts.texts]
    nearest = nearest_tokens(model, thoughts, min(top, len(model[0].backbone.embedding_table)))
    for text, step, token, p in zip(*(nearest[name] for name in ("text", "step", "token_id", "probability"))):
        if name := words.name(token):
            weight = float(thoughts.weights[text, step - 1] / thoughts.weights[text].sum())
            found[text][name] = found[text].get(name, 0.0) + weight * p
    return [dict(sorted(said.items(), key=lambda item: -item[1])[:top]) for said in found]


def worth(
    model: SentenceTransformer, task: RetrievalTask, documents: Tensor, thinking_steps: int | None = None, top: int = 20
) -> pd.DataFrame:
    """Retrieval when all soft tokens of a question are changed at once: ``as they are``; ``knocked out`` (the first
    state alone is the embedding); ``another question's`` (fed back, and pooled with the own first state); ``mean``
    (over questions); ``mean of its words`` (the embeddings of its `top` nearest tokens, weighed by probability).

    Args:
        documents: (documents, D) embeddings, in the order of `task`.

    Returns:
        :func:`laser_lab.evaluation.score`'s measures, a row per ``condition`` and ``query_id``.

    Raises:
        ValueError: K is 1 (there is no soft token), or there are fewer than two questions.
    """
    import pandas as pd

    steps = model[0].steps_of(thinking_steps)
    texts = list(task.queries.values())
    if steps < 2 or len(texts) < 2:
        raise ValueError(f"changing thoughts needs two steps and two questions, got {steps} and {len(texts)}")
    own = soft_tokens(model, texts, steps, prompt_name="query")
    backbone = model[0].backbone
    usual = think(model, texts, steps, prompt_name="query", threshold=0.0)
    fed_back = soft_token_states(model, texts, own.shape[1], prompt_name="query", threshold=0.0)
    with torch.inference_mode():
        said = torch.stack([_by_words(backbone, states, top) for states in fed_back.states])
    changes: dict[str, Edit] = {
        "another question's": _feed(own.roll(1, 0)),
        "mean": _feed(own.mean(0, keepdim=True).expand_as(own)),
        "mean of its words": _feed(said),
    }
    found = {"as they are": usual.embeddings, "knocked out": usual.embeddings_at(1)}
    for name, edit in changes.items():
        found[name] = think(model, texts, steps, prompt_name="query", threshold=0.0, edit=edit).embeddings
    frames = [
        score(embeddings.numpy(), documents.numpy(), task, per_query=True).assign(condition=name)
        for name, embeddings in found.items()
    ]
    return pd.concat(frames, ignore_index=True)


def _by_words(backbone, states: Tensor, top: int) -> Tensor:
    """(S, D) states to the (S, D) means of their nearest tokens' input embeddings, weighed by probability."""
    logits = backbone.logits(states.to(backbone.head.weight))
    best = logits.topk(top)
    weights = best.values.softmax(-1)
    return (weights[..., None] * backbone.embed(best.indices).float()).sum(1)


def _feed(values: Tensor) -> Edit:
    """Feed back `values`, (B, S, D), instead of every soft token."""
    return lambda k, soft_token, rows: values[rows, k - 1].to(soft_token)
