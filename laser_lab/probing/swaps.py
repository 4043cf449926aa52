"""Swaps in HopWorld: put another entity into a thought and see which document is retrieved."""

import random

import pandas as pd
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from laser_lab.base.inputs import check_count
from laser_lab.base.stats import proportion
from laser_lab.data.hopworld import Composition, HopWorld
from laser_lab.encoder import think
from laser_lab.probing.causal import blend, document_thoughts, fed_back_count, skipped_states, soft_tokens
from laser_lab.probing.vocabulary import token_embeddings
from laser_lab.thinking import Thoughts, pool

OUTCOMES = ("changed path", "true path", "elsewhere")
"""Retrieval goes to the end of the changed path, of the true one, or to another document."""


def undisturbed_thoughts(
    model: SentenceTransformer, world: HopWorld, thinking_steps: int | None = None, *, batch_size: int = 128
) -> tuple[Thoughts, Thoughts]:
    """Thoughts about the test queries and all documents of `world`: what :func:`bridge_swaps` compares with."""
    steps = model[0].steps_of(thinking_steps)
    queries, documents = [c.query for c in world.test], list(world.documents.values())
    return (
        think(model, queries, steps, prompt_name="query", batch_size=batch_size),
        document_thoughts(model, documents, steps, batch_size=batch_size),
    )


def bridge_swaps(
    model: SentenceTransformer,
    world: HopWorld,
    step: int,
    thinking_steps: int | None = None,
    *,
    by: str = "token",
    strength: float = 1.0,
    batch_size: int = 128,
    seed: int = 0,
    undisturbed: tuple[Thoughts, Thoughts] | None = None,
) -> pd.DataFrame:
    """Feed another entity back at `step` and see which document is retrieved.

    Soft token k of a trained model says bridge k, from which the remaining relations lead to the answer. Each query
    gets a random other entity, from which they lead elsewhere: to a document neither on the true path nor its own. If
    the thought is used, retrieval moves to the end of this changed path.

    Args:
        step: k, from 1: before the last hop and the last thinking step. Shallower queries are left out.
        by: ``"token"``: the entity's input embedding; ``"thought"``: the soft token of a query with that bridge k.
        strength: Of :func:`laser_lab.probing.causal.blend`.
        undisturbed: :func:`undisturbed_thoughts` of the same model and K, to reuse.

    Returns:
        A row per query and ``readout``: the embedding pools ``all`` states, or only the ``later`` ones, which have read
        the swapped token (one pass: ``all`` alone). Columns: ``query_id``, ``step``, ``readout``, ``bridge``,
        ``swapped`` (put in), ``answer``, ``changed_answer``, ``retrieved``, ``undisturbed`` (without the swap),
        ``outcome``, ``undisturbed_outcome`` (:data:`OUTCOMES`) and ``next_changed``: the next thought's most probable
        token is the next entity of the changed path.

    Raises:
        ValueError: `step` or `by` is out of range, or `undisturbed` is of other queries, documents or K.
    """
    steps, hops = model[0].steps_of(thinking_steps), world.config.max_hops
    last = min(hops - 1, fed_back_count(model, steps))
    if check_count("step", step) > last:
        raise ValueError(f"step must be from 1 to {last} ({hops} hops, K={steps}), got {step}")
    if by not in ("token", "thought"):
        raise ValueError(f"by must be 'token' or 'thought', got {by!r}")
    before, documents = undisturbed or undisturbed_thoughts(model, world, steps, batch_size=batch_size)
    queries = [c.query for c in world.test]
    if (before.texts, documents.texts) != (queries, list(world.documents.values())) or before.thinking_steps != steps:
        raise ValueError(f"the undisturbed thoughts are not those about this world's test split with K={steps}")
    options = dict(thinking_steps=steps, prompt_name="query", batch_size=batch_size)
    if by == "token":
        entities, values = list(enumerate(world.entities)), token_embeddings(model, world.entities).float().cpu()
    else:
        entities = [(row, c.bridges[step - 1]) for row, c in enumerate(world.test) if c.depth >= step]
        values = soft_tokens(model, queries, **options)[:, step - 1]
    rng = random.Random(f"swaps {seed} {step}")
    donors = [_donor(world, c, step, entities, rng) for c in world.test]
    after = think(model, queries, **options, edit=blend(step, values[[row for row, _ in donors]], strength))
    return _outcomes(model, world, step, (before, after, documents), [entity for _, entity in donors])


def _outcomes(
    model: SentenceTransformer,
    world: HopWorld,
    step: int,
    thoughts: tuple[Thoughts, Thoughts, Thoughts],
    entities: list[str | None],
) -> pd.DataFrame:
    """The frame of :func:`bridge_swaps` from the thoughts about queries before, after, and documents."""
    before, after, documents = thoughts
    documents_of = list(world.documents)
    changed = step - skipped_states(model)  # from 0: the first pooled state that has read the soft token
    with torch.inference_mode():
        logits = model[0].backbone.logits(after.states[:, changed])
    said = model.tokenizer.convert_ids_to_tokens(logits.argmax(-1).tolist())
    result = []
    one_pass = model[0].max_steps is not None  # pools no states
    for readout in ["all"] if one_pass else ["all", "later"]:
        found, found_before = (
            [documents_of[i] for i in (vectors @ documents.embeddings.T).argmax(1).tolist()]
            for vectors in (_read(t, 0 if readout == "all" else changed) for t in (after, before))
        )
        for row, (c, entity) in enumerate(zip(world.test, entities)):
            if entity is None:
                continue
            path = world.compose(entity, c.relations[step:]).bridges
            ends = {c.answer: "true path", path[-1]: "changed path"}
            outcomes = [ends.get(document, "elsewhere") for document in (found[row], found_before[row])]
            query = [c.id, step, readout, c.bridges[step - 1], entity, c.answer, path[-1]]
            result.append([*query, found[row], found_before[row], *outcomes, said[row] == path[0]])
    columns = "query_id step readout bridge swapped answer changed_answer retrieved undisturbed"
    return pd.DataFrame(result, columns=[*columns.split(), "outcome", "undisturbed_outcome", "next_changed"])


def _read(thoughts: Thoughts, first: int) -> Tensor:
    """(B, D) embeddings of the states from `first` (from 0) on."""
    return pool(thoughts.states[:, first:], thoughts.weights[:, first:]) if first else thoughts.embeddings


def _donor(
    world: HopWorld, own: Composition, step: int, candidates: list[tuple[int, str]], rng: random.Random
) -> tuple[int, str | None]:
    """A (row, entity) that :func:`bridge_swaps` can put into `own`; (0, None) if there is none."""
    path = {own.start, *own.bridges}
    for row, entity in rng.sample(candidates, len(candidates)) if own.depth > step else ():
        if entity not in path and world.compose(entity, own.relations[step:]).answer not in path | {entity}:
            return row, entity
    return 0, None


def outcome_rates(swaps: pd.DataFrame) -> pd.DataFrame:
    """Per ``step``, ``readout`` and ``outcome`` of :func:`bridge_swaps`: share of queries (``rate``), its 95 % Wilson
    interval, ``queries``, and the same share without the swap (``undisturbed``)."""
    by, rows = ["step", "readout"], []
    for key, group in swaps.groupby(by, sort=False):
        for outcome in OUTCOMES:
            rate, low, high = proportion(group["outcome"] == outcome)
            undisturbed = float((group["undisturbed_outcome"] == outcome).mean())
            rows.append([*key, outcome, rate, low, high, len(group), undisturbed])
    return pd.DataFrame(rows, columns=[*by, "outcome", "rate", "low", "high", "queries", "undisturbed"])
