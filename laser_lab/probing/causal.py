"""Interventions: change one step of a rollout and see where retrieval goes.

A step acts twice: later steps read its *soft token* t_k, and its *state* h_k is pooled into the embedding. An edit
(:func:`laser_lab.think`) changes the first; leaving the state out of the pool changes the second.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.functional import normalize

from laser_lab.base.inputs import check_count
from laser_lab.base.stats import interval
from laser_lab.data.readers import RetrievalTask
from laser_lab.encoder import TextEdit as Edit
from laser_lab.encoder import think
from laser_lab.thinking import Thoughts

# -- edits: ValueError if `step` (from 1) is no positive integer, or a value has another shape (now, or when it is used)


def blend(step: int, value: Tensor, strength: float) -> Edit:
    """Feed back t + strength·(value - t) instead of soft token t of `step`; `value` is (D,) or (B, D)."""
    return _edit(step, value, lambda t, v: t.lerp(v, strength))


def replace(step: int, value: Tensor) -> Edit:
    """Feed back `value`, (D,) or (B, D)."""
    return blend(step, value, 1.0)


def steer(step: int, direction: Tensor, strength: float = 1.0) -> Edit:
    """Add `strength`·`direction`, (D,) or (B, D); E[b] - E[a] turns a token a into b."""
    return _edit(step, direction, lambda t, v: t + strength * v)


def noise(step: int, count: int, size: int, seed: int = 0, strength: float = 1.0) -> Edit:
    """:func:`blend` with a random direction as long as the soft token, one for each of `count` texts, (count, `size`).
    A text's noise does not depend on its batch."""
    directions = normalize(torch.randn(count, size, generator=torch.Generator().manual_seed(seed)), dim=-1)
    return _edit(step, directions, lambda t, v: t.lerp(v * t.norm(dim=-1, keepdim=True), strength))


def swap(step: int, own: Tensor, seed: int = 0) -> Edit:
    """Feed back another text's soft token, after one random cycle; `own` (B, D) holds those of `step`, B at least 2."""
    order = torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    return replace(step, own[other])


def _edit(step: int, value: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Edit:
    """The edit that makes change(t, v) of soft token `step`, v being `value` for the texts at hand."""
    check_count("step", step)
    if value.dim() not in (1, 2):
        raise ValueError(f"value must be (D,) or (B, D), got shape {tuple(value.shape)}")

    def edit(k: int, soft_token: Tensor, rows: list[int]) -> Tensor:
        if k != step:
            return soft_token
        if value.shape[-1] != soft_token.shape[-1]:
            raise ValueError(f"value must have the width {soft_token.shape[-1]} of a soft token, got {value.shape[-1]}")
        of_rows = value if value.dim() == 1 else value[rows]
        return change(soft_token, of_rows.to(soft_token).expand_as(soft_token))

    return edit


# -- soft tokens ---------------------------------------------------------------------------------------------------


def soft_tokens(
    model: SentenceTransformer,
    texts: Sequence[str],
    thinking_steps: int | None = None,
    *,
    prompt_name: str | None = None,
    prompts: Sequence[str] = (),
    batch_size: int = 32,
) -> Tensor:
    """(B, S, D): the soft tokens fed back, S = K-1, or K with pooling ``"generated"``. No thought ends early here."""
    steps = model[0].steps_of(thinking_steps)
    kept = torch.zeros(len(texts), fed_back_count(model, steps), model.get_embedding_dimension())

    def keep(k: int, soft_token: Tensor, rows: list[int]) -> Tensor:
        kept[rows, k - 1] = soft_token.float().cpu()
        return soft_token

    options = dict(prompt_name=prompt_name, prompts=prompts, batch_size=batch_size)
    think(model, texts, steps, **options, threshold=0.0, edit=keep)
    return kept


def fed_back_count(model: SentenceTransformer, thinking_steps: int) -> int:
    """How many soft tokens K steps feed back."""
    return thinking_steps - 1 + skipped_states(model)


def skipped_states(model: SentenceTransformer) -> int:
    """How many states precede the first pooled one: soft token k is read from pooled state k minus this."""
    return int(model[0].pooling == "generated")


def document_thoughts(
    model: SentenceTransformer, texts: Sequence[str], thinking_steps: int, *, batch_size: int = 32
) -> Thoughts:
    """Thoughts about documents, with the model's own K for them; without one, with the query's, `thinking_steps`."""
    steps = model[0].document_steps or thinking_steps
    return think(model, texts, steps, prompt_name="document", batch_size=batch_size)


# -- interventions and their effect on a test set ------------------------------------------------------------------


@dataclass(frozen=True)
class Intervention:
    """A change to one step of thinking."""

    name: str
    step: int
    """k, from 1"""
    edit: Edit | None = None
    """None: the soft token stays"""
    pooled: bool = True
    """whether the state h_k is part of the embedding"""


def knock_out(step: int, value: Tensor) -> Intervention:
    """Feed back `value`, (D,) or (B, D), say the mean over texts, and do not pool the state."""
    return Intervention("knocked out", step, replace(step, value), pooled=False)


def interventions(
    model: SentenceTransformer,
    texts: Sequence[str],
    thinking_steps: int | None = None,
    *,
    prompt_name: str | None = None,
    batch_size: int = 32,
) -> list[Intervention]:
    """All interventions at each step of thinking about `texts` (at least two, else a ValueError): ``itself`` (replaced
    by the same: no change), ``another query's`` (:func:`swap`), the ``mean`` over texts, ``noise``, ``knocked out``
    (:func:`knock_out`, with the mean) and ``state left out``: fed back unchanged, but not pooled. The last step feeds
    nothing back, so it has this one alone."""
    if len(texts) < 2:
        raise ValueError("interventions need at least two texts: another one's thought, and a mean")
    steps, skipped = model[0].steps_of(thinking_steps), skipped_states(model)
    said = soft_tokens(model, texts, steps, prompt_name=prompt_name, batch_size=batch_size)
    found = []
    for k in range(1, steps + skipped + 1):
        if k <= said.shape[1]:
            own, mean = said[:, k - 1], said[:, k - 1].mean(0)
            found += [
                Intervention("itself", k, replace(k, own)),
                Intervention("another query's", k, swap(k, own)),
                Intervention("mean", k, replace(k, mean)),
                Intervention("noise", k, noise(k, *own.shape, seed=k)),
            ]
            if k > skipped:
                found.append(knock_out(k, mean))
        if k > skipped:
            found.append(Intervention("state left out", k, pooled=False))
    return found


def relevant_ranks(queries: Tensor, documents: Tensor, task: RetrievalTask) -> dict[str, int]:
    """Query id to the rank (from 1; ties count as ahead) of its best relevant document, if it has one. Embeddings are
    (queries, D) and (documents, D), of unit length, in the order of `task`."""
    scores = queries @ documents.T
    index = {document: i for i, document in enumerate(task.corpus)}
    ranks = {}
    for row, query in enumerate(task.queries):
        relevant = [index[d] for d, grade in task.qrels.get(query, {}).items() if grade > 0]
        if relevant:
            others = scores[row].clone()
            others[relevant] = -torch.inf
            ranks[query] = 1 + int((others >= scores[row, relevant].max()).sum())
    return ranks


def rank_effects(
    model: SentenceTransformer,
    task: RetrievalTask,
    changes: Iterable[Intervention] | None = None,
    thinking_steps: int | None = None,
    *,
    batch_size: int = 32,
) -> pd.DataFrame:
    """How each intervention (default: all :func:`interventions`) changes the rank of the relevant document, for every
    K. Documents are undisturbed (:func:`document_thoughts`); without a K of their own they think as long as the query.

    Returns:
        A row per intervention, pooled K and query: ``intervention``, ``step`` (edited), ``thinking_steps``,
        ``query_id``, ``rank``, ``undisturbed`` (rank without it), ``change`` (positive: worse), ``first`` (a relevant
        document is on top). No row where nothing is left to pool.
    """
    steps, skipped = model[0].steps_of(thinking_steps), skipped_states(model)
    queries = list(task.queries.values())
    options = dict(thinking_steps=steps, prompt_name="query", batch_size=batch_size)
    if changes is None:
        changes = interventions(model, queries, **options)
    documents = document_thoughts(model, list(task.corpus.values()), steps, batch_size=batch_size)
    own = model[0].document_steps
    index = {k: documents.embeddings_at(own or k) for k in range(1, steps + 1)}
    undisturbed = think(model, queries, **options)
    before = {k: relevant_ranks(undisturbed.embeddings_at(k), vectors, task) for k, vectors in index.items()}
    frames = []
    for change in changes:
        thoughts = undisturbed if change.edit is None else think(model, queries, **options, edit=change.edit)
        for k, vectors in index.items():
            embeddings = thoughts.embeddings_at(k, None if change.pooled else change.step - skipped)
            if embeddings.isnan().any():  # nothing was left to pool
                continue
            ranks = relevant_ranks(embeddings, vectors, task)
            frame = pd.DataFrame({"query_id": list(ranks), "rank": list(ranks.values())})
            frame["undisturbed"] = list(before[k].values())
            frames.append(frame.assign(intervention=change.name, step=change.step, thinking_steps=k))
    columns = ["intervention", "step", "thinking_steps", "query_id", "rank", "undisturbed"]
    result = pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)
    return result.assign(change=result["rank"] - result["undisturbed"], first=(result["rank"] == 1).astype(float))


def effect_sizes(effects: pd.DataFrame, measure: str = "change") -> pd.DataFrame:
    """Mean `measure` of :func:`rank_effects` with its 95 % bootstrap interval over queries: ``intervention``, ``step``,
    ``thinking_steps``, `measure`, ``low``, ``high``, ``queries``."""
    by = ["intervention", "step", "thinking_steps"]
    groups = effects.groupby(by, sort=False)[measure]
    rows = [(*key, *interval(values), len(values)) for key, values in groups]
    return pd.DataFrame(rows, columns=[*by, measure, "low", "high", "queries"])
