"""What thoughts do: change one during the rollout and see where retrieval goes.

A step acts through two channels: its *soft token* t_k, which all later steps read, and its *state* h_k, which is part
of the pooled embedding. An edit (see :func:`laser_lab.think`) works on the first; leaving a state out of the pooling
works on the second. An edit never touches a weight, and one that gives back what it got changes no bit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from laser_lab.base.inputs import check_steps
from laser_lab.data.hopworld import Composition, HopWorld
from laser_lab.data.readers import RetrievalTask
from laser_lab.encoder import think
from laser_lab.thinking import Thoughts, pool

if TYPE_CHECKING:
    import pandas as pd
    from sentence_transformers import SentenceTransformer

Edit = Callable[[int, Tensor, list[int]], Tensor]
"""(k, soft token t_k (b, D), which texts these b rows are) to what is fed back instead, (b, D)."""


# -- edits ---------------------------------------------------------------------------------------------------------


def replace(step: int, value: Tensor) -> Edit:
    """Feed `value` back instead of soft token `step` (from 1): (D,) for every text, or (B, D) with a row per text.

    Raises:
        ValueError: `step` is not a positive integer, or `value` has another shape (now, or when it is used).
    """
    _check_step(step)
    if value.dim() not in (1, 2):
        raise ValueError(f"value must be (D,) or (B, D), got shape {tuple(value.shape)}")

    def edit(k: int, soft_token: Tensor, rows: list[int]) -> Tensor:
        if k != step:
            return soft_token
        chosen = (value if value.dim() == 1 else value[rows]).to(soft_token)
        if chosen.shape[-1] != soft_token.shape[-1]:
            raise ValueError(
                f"value must have the width {soft_token.shape[-1]} of a soft token, got {chosen.shape[-1]}"
            )
        return chosen.expand_as(soft_token)

    return edit


def noise(step: int, count: int, size: int, seed: int = 0) -> Edit:
    """Replace soft token `step` of each of `count` texts by a random direction of the same length: nothing is left of
    what it said, only how loud it was. `size` is D; a text gets the same noise whatever its batch."""
    _check_step(step)
    directions = torch.randn(count, size, generator=torch.Generator().manual_seed(seed))
    directions = torch.nn.functional.normalize(directions, dim=-1)

    def edit(k: int, soft_token: Tensor, rows: list[int]) -> Tensor:
        if k != step:
            return soft_token
        return directions[rows].to(soft_token) * soft_token.norm(dim=-1, keepdim=True)

    return edit


def steer(step: int, direction: Tensor, strength: float = 1.0) -> Edit:
    """Add `strength` times `direction`, (D,) or (B, D), to soft token `step`. With the direction E[b] - E[a] a
    strength of 1 turns a soft token that says a into one that says b."""
    _check_step(step)

    def edit(k: int, soft_token: Tensor, rows: list[int]) -> Tensor:
        if k != step:
            return soft_token
        return soft_token + strength * (direction if direction.dim() == 1 else direction[rows]).to(soft_token)

    return edit


def blend(step: int, value: Tensor, strength: float) -> Edit:
    """Steer soft token t towards `value`, (D,) or (B, D): t + strength·(value - t). 0 changes nothing, 1 is
    :func:`replace`."""
    put = replace(step, value)

    def edit(k: int, soft_token: Tensor, rows: list[int]) -> Tensor:
        return soft_token if k != step else soft_token + strength * (put(k, soft_token, rows) - soft_token)

    return edit


def token_embeddings(model: SentenceTransformer, tokens: Sequence[str]) -> Tensor:
    """(n, D): what the model would read had each of `tokens` stood in the text, scale included.

    Raises:
        ValueError: A text is not exactly one token of the vocabulary.
    """
    backbone = model[0].backbone
    ids = [backbone.tokenizer(token, add_special_tokens=False)["input_ids"] for token in tokens]
    unknown = backbone.tokenizer.unk_token_id
    for token, found in zip(tokens, ids):
        if len(found) != 1 or found[0] == unknown:
            raise ValueError(f"{token!r} is not one token of the vocabulary")
    with torch.inference_mode():
        return backbone.embed(torch.tensor(ids, device=backbone.embedding_table.device).reshape(-1))


def soft_tokens(
    model: SentenceTransformer,
    texts: Sequence[str],
    thinking_steps: int | None = None,
    *,
    prompt_name: str | None = None,
    batch_size: int = 32,
) -> Tensor:
    """(B, S, D): the S soft tokens that each text's thinking feeds back: S = K-1, or K with pooling ``"generated"``."""
    steps = _steps(model, thinking_steps)
    kept = torch.zeros(len(texts), _fed_back(model, steps), model.get_embedding_dimension())

    def keep(k: int, soft_token: Tensor, rows: list[int]) -> Tensor:
        kept[rows, k - 1] = soft_token.float().cpu()
        return soft_token

    think(model, texts, steps, prompt_name=prompt_name, batch_size=batch_size, edit=keep)
    return kept


def _check_step(step: int) -> int:
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        raise ValueError(f"step must be a positive integer: soft tokens count from 1; got {step!r}")
    return step


def _steps(model: SentenceTransformer, thinking_steps: int | None) -> int:
    return model[0].thinking_steps if thinking_steps is None else check_steps(thinking_steps)


def _fed_back(model: SentenceTransformer, thinking_steps: int) -> int:
    """How many soft tokens K steps feed back. The state that soft token k is read from is pooled state k, or k-1 with
    pooling ``"generated"``, which pools the states of the soft tokens themselves."""
    return thinking_steps - 1 + _skipped(model)


def _skipped(model: SentenceTransformer) -> int:
    return int(model[0].pooling == "generated")


# -- interventions and their effect on a test set ------------------------------------------------------------------


@dataclass(frozen=True)
class Intervention:
    """A change to one step of thinking."""

    name: str

    step: int
    """k, from 1"""

    edit: Edit | None = None
    """What becomes of soft token t_k; None: it stays."""

    pooled: bool = True
    """Whether the state h_k, which t_k is read from, is part of the embedding."""


def interventions(
    model: SentenceTransformer,
    texts: Sequence[str],
    thinking_steps: int | None = None,
    *,
    prompt_name: str | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> list[Intervention]:
    """What can be done to each step of thinking about `texts`:

    - ``itself``: the soft token replaced by the very same: the null, which must change nothing;
    - ``another query's``: by the soft token of another text at this step (each text's is used once);
    - ``mean``: by the mean soft token of all texts at this step, which says nothing about any of them;
    - ``noise``: by a random direction of its length (:func:`noise`);
    - ``state left out``: the soft token stays, the state is not pooled;
    - ``knocked out``: both: the mean is fed back and the state is not pooled, so that nothing of the step is left.

    The last step feeds nothing back: there, only its state can be left out.

    Raises:
        ValueError: Fewer than two texts.
    """
    if len(texts) < 2:
        raise ValueError("interventions need at least two texts: another one's thought, and a mean")
    steps, skipped = _steps(model, thinking_steps), _skipped(model)
    said = soft_tokens(model, texts, steps, prompt_name=prompt_name, batch_size=batch_size)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))
    other = torch.empty_like(order)
    other[order] = order.roll(1)  # one cycle through all texts: nobody gets their own
    found = []
    for k in range(1, steps + skipped + 1):
        if k <= said.shape[1]:
            own, mean = said[:, k - 1], said[:, k - 1].mean(0)
            found += [
                Intervention("itself", k, replace(k, own)),
                Intervention("another query's", k, replace(k, own[other])),
                Intervention("mean", k, replace(k, mean)),
                Intervention("noise", k, noise(k, *own.shape, seed=seed + k)),
            ]
            if k > skipped:
                found.append(Intervention("knocked out", k, replace(k, mean), pooled=False))
        if k > skipped:
            found.append(Intervention("state left out", k, pooled=False))
    return found


def relevant_ranks(queries: Tensor, documents: Tensor, task: RetrievalTask) -> dict[str, int]:
    """Query id to the rank, from 1, of its best relevant document; a document with an equal score counts as ahead.

    Args:
        queries: (queries, D) and
        documents: (documents, D), unit length, in the order of `task`. Queries without a relevant document are left
            out.
    """
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
    """What every intervention does to the rank of the relevant document, after every step of thinking.

    Documents are thought about undisturbed, for as many steps as the query has been.

    Args:
        changes: Default: all of :func:`interventions`.

    Returns:
        A row per intervention, thinking steps K that are pooled, and query: ``intervention``, ``step`` (the edited
        one), ``thinking_steps``, ``query_id``, ``rank``, ``undisturbed`` (its rank without the intervention),
        ``change`` (positive: worse) and ``first`` (whether a relevant document is on top). No row where an
        intervention leaves nothing to pool. :func:`effect_sizes` sums it up.
    """
    import pandas as pd

    steps, skipped = _steps(model, thinking_steps), _skipped(model)
    queries = list(task.queries.values())
    options = dict(thinking_steps=steps, prompt_name="query", batch_size=batch_size)
    if changes is None:
        changes = interventions(model, queries, **options)
    documents = think(model, list(task.corpus.values()), steps, prompt_name="document", batch_size=batch_size)
    undisturbed = think(model, queries, **options)
    everywhere = range(1, steps + 1)
    before = {k: relevant_ranks(undisturbed.embeddings_at(k), documents.embeddings_at(k), task) for k in everywhere}
    frames = []
    for change in changes:
        thoughts = undisturbed if change.edit is None else think(model, queries, **options, edit=change.edit)
        for k in everywhere:
            embeddings = thoughts.embeddings_at(k, None if change.pooled else change.step - skipped)
            if embeddings.isnan().any():  # nothing was left to pool
                continue
            ranks = relevant_ranks(embeddings, documents.embeddings_at(k), task)
            frame = pd.DataFrame({"query_id": list(ranks), "rank": list(ranks.values())})
            frame["undisturbed"] = list(before[k].values())
            frames.append(frame.assign(intervention=change.name, step=change.step, thinking_steps=k))
    columns = ["intervention", "step", "thinking_steps", "query_id", "rank", "undisturbed"]
    result = pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)
    return result.assign(change=result["rank"] - result["undisturbed"], first=(result["rank"] == 1).astype(float))


def effect_sizes(effects: pd.DataFrame, measure: str = "change") -> pd.DataFrame:
    """Mean `measure` of :func:`rank_effects` with its 95 % bootstrap interval over queries: a row per
    ``intervention``, ``step`` and ``thinking_steps`` with `measure`, ``low``, ``high``, ``queries``."""
    import pandas as pd

    from laser_lab.base.stats import interval

    by = ["intervention", "step", "thinking_steps"]
    groups = effects.groupby(by, sort=False)[measure]
    rows = [(*key, *interval(values), len(values)) for key, values in groups]
    return pd.DataFrame(rows, columns=[*by, measure, "low", "high", "queries"])


# -- HopWorld: where does a changed path lead? ---------------------------------------------------------------------


def undisturbed_thoughts(
    model: SentenceTransformer,
    world: HopWorld,
    thinking_steps: int | None = None,
    *,
    split: str = "test",
    batch_size: int = 128,
) -> tuple[Thoughts, Thoughts]:
    """Thoughts about the queries of `split` and about all documents of `world`: what every one of
    :func:`bridge_swaps` of this model compares with."""
    steps = _steps(model, thinking_steps)
    queries = [c.query for c in world._split(split)]
    documents = list(world.documents.values())
    return (
        think(model, queries, steps, prompt_name="query", batch_size=batch_size),
        think(model, documents, steps, prompt_name="document", batch_size=batch_size),
    )


def bridge_swaps(
    model: SentenceTransformer,
    world: HopWorld,
    step: int,
    thinking_steps: int | None = None,
    *,
    split: str = "test",
    by: str = "token",
    strength: float = 1.0,
    batch_size: int = 128,
    seed: int = 0,
    undisturbed: tuple[Thoughts, Thoughts] | None = None,
) -> pd.DataFrame:
    """Think another entity at `step` and see which document is retrieved.

    Soft token k of a trained model says bridge k, from which the remaining relations lead to the answer. Each query
    gets another entity there, drawn at random, from which they lead elsewhere: to a document that is neither the
    answer, nor that of an entity on the true path, nor that of the entity put in. If thoughts are used, and not only
    readable, retrieval moves to the end of the changed path.

    Args:
        step: k, from 1: before the last hop (a later one leads nowhere) and before the last thinking step.
        by: ``"token"``: the entity's input embedding is fed back. ``"thought"``: the soft token of another query
            whose bridge k that entity is.
        strength: How far the soft token is moved towards it (:func:`blend`).
        undisturbed: :func:`undisturbed_thoughts` of the same model, split and K, to think them once for many swaps.

    Returns:
        Two rows for each query that has such an entity, by ``readout``: the embedding pools ``all`` states, those of
        the true path before the swap included, or only the ``later`` ones, which have read the swapped token (in one
        pass, which pools no states, ``all`` alone). The columns: ``query_id``, ``step``, ``readout``, ``bridge``,
        ``swapped`` (the entity put in), ``answer``, ``changed_answer``, ``retrieved`` and ``outcome`` (one of
        :data:`OUTCOMES`), both also for the undisturbed
        rollout (``undisturbed``, ``undisturbed_outcome``), and ``next_changed``: whether the most probable token of
        the next thought is the next entity of the changed path.

    Raises:
        ValueError: `step` feeds nothing back or has no hop after it, `by` is unknown, or `undisturbed` is of other
            queries, documents or K.
    """
    import pandas as pd

    steps, hops = _steps(model, thinking_steps), world.config.hops
    last = min(hops - 1, _fed_back(model, steps))
    if _check_step(step) > last:
        raise ValueError(f"step must be from 1 to {last} ({hops} hops, K={steps}), got {step}")
    if by not in ("token", "thought"):
        raise ValueError(f"by must be 'token' or 'thought', got {by!r}")
    if undisturbed is None:
        undisturbed = undisturbed_thoughts(model, world, steps, split=split, batch_size=batch_size)
    before, documents = undisturbed
    compositions, documents_of = world._split(split), list(world.documents)
    queries = [c.query for c in compositions]
    if (before.texts, documents.texts) != (queries, list(world.documents.values())) or before.thinking_steps != steps:
        raise ValueError(f"the undisturbed thoughts are not those about this world's {split} split with K={steps}")
    options = dict(thinking_steps=steps, prompt_name="query", batch_size=batch_size)
    rng = random.Random(f"swaps {seed} {step}")
    donors = [_donor(world, compositions, c, step, rng, by) for c in compositions]
    if by == "token":
        table = token_embeddings(model, world.entities).float().cpu()
        rows = [world.entities.index(entity) if entity else 0 for _, entity in donors]
    else:
        table = soft_tokens(model, queries, **options)[:, step - 1]
        rows = [row for row, _ in donors]
    edit = blend(step, table[rows], strength)
    after = think(model, queries, **options, edit=edit)
    changed = step - _skipped(model)  # from 0: the first pooled state that has read the soft token
    backbone = model[0].backbone
    with torch.inference_mode():
        logits = backbone.logits(after.states[:, changed].to(backbone.embedding_table))
    said = backbone.tokenizer.convert_ids_to_tokens(logits.argmax(-1).tolist())
    result = []
    readouts = [("all", 0), ("later", changed)]
    if model[0].max_steps is not None:  # one pass pools no states
        readouts = readouts[:1]
    for readout, first in readouts:
        found, found_before = (
            [documents_of[i] for i in (vectors @ documents.embeddings.T).argmax(1).tolist()]
            for vectors in (t.embeddings if readout == "all" else pool(t.states[:, first:]) for t in (after, before))
        )
        for row, (c, (_, entity)) in enumerate(zip(compositions, donors)):
            if entity is None:
                continue
            path = world.compose(entity, c.relations[step:]).bridges
            ends = {c.answer: "true path", path[-1]: "changed path"}
            outcomes = [ends.get(document, "elsewhere") for document in (found[row], found_before[row])]
            values = [
                c.id,
                step,
                readout,
                c.bridges[step - 1],
                entity,
                c.answer,
                path[-1],
                found[row],
                found_before[row],
            ]
            result.append([*values, *outcomes, said[row] == path[0]])
    columns = "query_id step readout bridge swapped answer changed_answer retrieved undisturbed"
    return pd.DataFrame(result, columns=[*columns.split(), "outcome", "undisturbed_outcome", "next_changed"])


def _donor(
    world: HopWorld, compositions: list[Composition], own: Composition, step: int, rng: random.Random, by: str
) -> tuple[int, str | None]:
    """(row of a donor, its entity): an entity whose path by the remaining relations ends where nothing else of this
    query points; (0, None) if there is none."""
    path = {own.start, *own.bridges}
    if by == "token":
        candidates = list(enumerate(world.entities))
    else:
        candidates = [(row, c.bridges[step - 1]) for row, c in enumerate(compositions)]
    for row, entity in rng.sample(candidates, len(candidates)):
        if entity not in path and world.compose(entity, own.relations[step:]).answer not in path | {entity}:
            return row, entity
    return 0, None


OUTCOMES = ("changed path", "true path", "elsewhere")
"""Where retrieval can go: to the end of the changed path, of the true one, or to another document."""


def outcome_rates(swaps: pd.DataFrame, by: Sequence[str] = ("step", "readout")) -> pd.DataFrame:
    """How often retrieval went where, of :func:`bridge_swaps`: a row per group and outcome, with the share of queries
    (``rate``), its 95 % interval (Wilson), ``queries``, and ``undisturbed``: the same share without the swap."""
    import pandas as pd

    from laser_lab.base.stats import proportion

    rows = []
    for key, group in swaps.groupby(list(by), sort=False):
        for outcome in OUTCOMES:
            rate, low, high = proportion(group["outcome"] == outcome)
            undisturbed = float((group["undisturbed_outcome"] == outcome).mean())
            rows.append([*key, outcome, rate, low, high, len(group), undisturbed])
    return pd.DataFrame(rows, columns=[*by, "outcome", "rate", "low", "high", "queries", "undisturbed"])
