"""Interventions: nothing changed changes nothing, and each change is the one that was asked for."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FAMILIES, tiny_backbone
from hypothesis import given, settings
from hypothesis import strategies as st

import laser_lab as ll
from laser_lab.base.stats import proportion
from laser_lab.data.hopworld import HopWorld, HopWorldConfig
from laser_lab.data.hopworld_lm import pretrained
from laser_lab.data.readers import RetrievalTask
from laser_lab.encoder import LatentEncoder, LatentRetriever
from laser_lab.methods import method_of
from laser_lab.probing import causal, swaps, vocabulary
from laser_lab.thinking import pool
from laser_lab.training.run import set_method

TEXTS = ["why is the sky blue", "sea", "a very long question about rain and snow and light", "because light", "or not"]


def retriever(family: str = "qwen3", pooling: str = "all") -> LatentRetriever:
    encoder = LatentEncoder(tiny_backbone(family), thinking_steps=4, pooling=pooling)
    return LatentRetriever(modules=[encoder], device="cpu", prompts={"query": "", "document": ""})


@pytest.fixture(scope="module")
def model():
    return retriever()


@pytest.fixture(scope="module")
def task():
    corpus = {f"d{i}": text for i, text in enumerate(["blue sky", "green sea", "snow", "rain", "light scatters"])}
    queries = {f"q{i}": text for i, text in enumerate(TEXTS)}
    return RetrievalTask("tiny", queries, corpus, {q: {f"d{i}": 1} for i, q in enumerate(queries)})


@pytest.mark.parametrize("pooling", ["all", "generated"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_soft_token_replaced_by_itself_changes_nothing(family, pooling):
    model = retriever(family, pooling)
    expected = ll.think(model, TEXTS, batch_size=2)
    own = causal.soft_tokens(model, TEXTS, batch_size=2)
    assert own.shape == (5, 4 if pooling == "generated" else 3, 32)
    for k in range(1, own.shape[1] + 1):
        for edit in (
            causal.replace(k, own[:, k - 1]),
            causal.steer(k, torch.ones(32), 0.0),
            causal.blend(k, torch.ones(32), 0.0),
        ):
            found = ll.think(model, TEXTS, batch_size=2, edit=edit)
            assert torch.equal(found.embeddings, expected.embeddings)


def test_an_edit_acts_on_its_step_and_rows(model):
    """Each text gets its own value, whatever the order in which texts are batched."""
    values = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    seen = {}

    def look(k, soft_token, rows):
        soft_token = causal.replace(2, values)(k, soft_token, rows)
        seen.update({(k, row): vector.clone() for row, vector in zip(rows, soft_token)})
        return soft_token

    undisturbed, own = ll.think(model, TEXTS, batch_size=2), causal.soft_tokens(model, TEXTS, batch_size=2)
    found = ll.think(model, TEXTS, batch_size=2, edit=look)
    for row in range(5):
        torch.testing.assert_close(seen[2, row], values[row])
        torch.testing.assert_close(seen[1, row], own[row, 0])
    assert torch.equal(found.states[:, :2], undisturbed.states[:, :2])
    assert (found.states[:, 2:] - undisturbed.states[:, 2:]).abs().amax((1, 2)).min() > 1e-3
    single = ll.think(model, TEXTS[3], edit=lambda k, t, rows: values[3:4] if k == 2 else t)
    torch.testing.assert_close(found.states[3], single.states[0], atol=1e-5, rtol=1e-5)


def test_a_replaced_token_is_what_reading_it_would_be():
    """Feeding back the embedding of a word is the same as a text that goes on with this word."""
    model = retriever("gemma3")  # scales its embeddings
    with_word = ll.think(model, ["why is the sky blue"], 1)
    edit = causal.replace(1, vocabulary.token_embeddings(model, ["blue"])[0])
    thought = ll.think(model, ["why is the sky"], 2, edit=edit)
    torch.testing.assert_close(thought.states[:, 1], with_word.states[:, 0], atol=1e-5, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(strength=st.floats(-2, 2, width=32), step=st.integers(1, 3))
def test_steering_adds_a_direction_and_blending_ends_at_the_value(strength, step):
    generator = torch.Generator().manual_seed(0)
    soft_token, direction = torch.randn(3, 8, generator=generator), torch.randn(5, 8, generator=generator)
    rows = [4, 0, 2]
    steered = causal.steer(step, direction, strength)(step, soft_token, rows)
    torch.testing.assert_close(steered, soft_token + strength * direction[rows])
    blended = causal.blend(step, direction, strength)(step, soft_token, rows)
    torch.testing.assert_close(blended, (1 - strength) * soft_token + strength * direction[rows])
    assert causal.steer(step, direction, strength)(step + 1, soft_token, rows) is soft_token


def test_noise_keeps_the_length_only():
    soft_token = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    edit = causal.noise(1, 5, 64, seed=3)
    found = edit(1, soft_token, [4, 0, 2])
    torch.testing.assert_close(found.norm(dim=1), soft_token.norm(dim=1))
    assert torch.cosine_similarity(found, soft_token).abs().max() < 0.6
    torch.testing.assert_close(edit(1, soft_token[:1], [4]), found[:1])  # the same whatever the batch


@pytest.mark.parametrize("bad", [0, -1, 1.5, "1"])
def test_bad_steps(bad):
    for make in (
        lambda: causal.replace(bad, torch.zeros(4)),
        lambda: causal.noise(bad, 2, 4),
        lambda: causal.steer(bad, torch.zeros(4)),
    ):
        with pytest.raises(ValueError, match="positive integer"):
            make()


def test_bad_values(model):
    with pytest.raises(ValueError, match=r"\(D,\) or \(B, D\)"):
        causal.replace(1, torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="width 32"):
        ll.think(model, TEXTS, edit=causal.replace(1, torch.zeros(7)))
    for text, message in {"blue sky": "not one token but 2", "unheard": "no token of this model", "": "empty"}.items():
        with pytest.raises(ValueError, match=message):
            vocabulary.token_embeddings(model, [text])
    with pytest.raises(ValueError, match="at least two texts"):
        causal.interventions(model, ["sea"])


def test_relevant_ranks_count_ties_as_ahead(task):
    documents = torch.eye(5)
    queries = torch.tensor([[1.0, 0, 0, 0, 0], [0.5, 0.5, 0, 0, 0], [0.4, 0.3, 0.2, 0.1, 0], [0] * 5, [0, 0, 0, 0, 1]])
    assert causal.relevant_ranks(queries, documents, task) == {"q0": 1, "q1": 2, "q2": 3, "q3": 5, "q4": 1}
    two = RetrievalTask("two", task.queries, task.corpus, {"q1": {"d0": 1, "d1": 1}, "q2": {"d0": 0}})
    assert causal.relevant_ranks(queries, documents, two) == {"q1": 1}, "relevant documents do not compete"


def test_interventions_say_what_they_do(model):
    own = causal.soft_tokens(model, TEXTS)
    found = {(c.name, c.step): c for c in causal.interventions(model, TEXTS)}
    names = ["itself", "another query's", "mean", "noise", "knocked out", "state left out"]
    assert set(found) == {(name, k) for name in names for k in (1, 2, 3)} | {("state left out", 4)}
    rows = list(range(5))
    other = found["another query's", 2].edit(2, own[:, 1], rows)
    distances = torch.cdist(other, own[:, 1])
    assert (distances.argmin(1) != torch.arange(5)).all() and distances.argmin(1).unique().numel() == 5
    for name in ("mean", "knocked out"):
        torch.testing.assert_close(found[name, 1].edit(1, own[:, 0], rows), own[:, 0].mean(0).expand(5, -1))
    assert not found["knocked out", 1].pooled and found["mean", 1].pooled


@pytest.mark.parametrize("pooling", ["all", "generated"])
def test_rank_effects(task, pooling):
    model = retriever(pooling=pooling)
    effects = causal.rank_effects(model, task, batch_size=2)
    same = effects[effects.intervention == "itself"]
    assert len(same) and (same.change == 0).all()
    assert (effects[(effects.intervention == "mean")].change != 0).any(), "the tiny model's ranks do move"
    assert effects["rank"].between(1, 5).all()
    # what is pooled before a soft token is fed back has not read it
    unread = effects.thinking_steps < effects.step + (pooling == "all")
    earlier = effects[effects.intervention.isin(["another query's", "mean", "noise"]) & unread]
    assert len(earlier) and (earlier.change == 0).all()
    sizes = causal.effect_sizes(effects)
    assert (sizes.low <= sizes.change).all() and (sizes.change <= sizes.high).all() and (sizes.queries == 5).all()
    assert list(causal.effect_sizes(effects, "first").columns)[3] == "first"


def test_a_state_left_out_is_not_pooled(model, task):
    effects = causal.rank_effects(model, task, [causal.Intervention("state left out", 2, pooled=False)])
    assert sorted(effects.thinking_steps.unique()) == [1, 2, 3, 4]
    queries = ll.think(model, TEXTS)
    documents = ll.think(model, list(task.corpus.values()))
    expected = causal.relevant_ranks(pool(queries.states[:, [0, 2]]), documents.embeddings_at(3), task)
    at3 = effects[effects.thinking_steps == 3]
    assert dict(zip(at3.query_id, at3["rank"])) == expected
    first = causal.rank_effects(model, task, [causal.Intervention("state left out", 1, pooled=False)])
    assert sorted(first.thinking_steps.unique()) == [2, 3, 4], "nothing is left of a single step"


def test_documents_think_with_their_own_k(model, task, monkeypatch):
    """The index stays as `encode_document` makes it, whatever K the queries are read at."""
    monkeypatch.setattr(model[0], "document_steps", 1)
    documents = model.encode_document(list(task.corpus.values()), convert_to_tensor=True)
    queries = ll.think(model, TEXTS, 3, prompt_name="query")
    effects = causal.rank_effects(model, task, [causal.Intervention("state left out", 3, pooled=False)], 3)
    for k, found in effects.groupby("thinking_steps"):
        expected = causal.relevant_ranks(queries.embeddings_at(k), documents, task)
        assert dict(zip(found["query_id"], found["undisturbed"])) == expected
    assert set(effects["thinking_steps"]) == {1, 2, 3}


def test_one_pass_pools_no_states(task):
    """A reason token's state is in no embedding: leaving it out changes nothing, and changing the token may."""
    model = retriever()
    torch.manual_seed(0)
    set_method(model, method_of("lame", thinking_steps=3))
    effects = causal.rank_effects(model, task)
    assert set(effects["thinking_steps"]) == {1, 2, 3}
    left_out = effects[effects["intervention"] == "state left out"]
    assert len(left_out) and (left_out["change"] == 0).all()
    own = model.encode_query(list(task.queries.values()), convert_to_tensor=True)
    documents = model.encode_document(list(task.corpus.values()), convert_to_tensor=True)
    last = effects[(effects["thinking_steps"] == 3) & (effects["intervention"] == "itself") & (effects["step"] == 1)]
    assert dict(zip(last["query_id"], last["undisturbed"])) == causal.relevant_ranks(own, documents, task)


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    config = HopWorldConfig(
        entities=12, relations=2, hops=3, dev=4, test=12, layers=1, hidden_size=16, heads=2, pretrain_steps=3
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LASER_LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        return HopWorld(config), ll.load(pretrained(config), device="cpu")


@pytest.mark.parametrize("by", ["token", "thought"])
def test_bridge_swaps_lead_elsewhere(small_world, by):
    world, model = small_world
    compositions = {c.id: c for c in world.test}
    for step in (1, 2):
        found = swaps.bridge_swaps(model, world, step, 3, by=by)
        assert set(found.readout) == {"all", "later"} and len(found)
        for row in found.itertuples():
            c = compositions[row.query_id]
            changed = world.compose(row.swapped, c.relations[step:]).answer
            assert row.bridge == c.bridges[step - 1] and row.changed_answer == changed
            assert changed not in {c.start, *c.bridges, row.swapped}, "only the changed path leads there"
            expected = {c.answer: "true path", changed: "changed path"}.get(row.retrieved, "elsewhere")
            assert row.outcome == expected
        rates = swaps.outcome_rates(found)
        np.testing.assert_allclose(rates.groupby("readout")[["rate", "undisturbed"]].sum(), 1)


@pytest.mark.parametrize("by", ["token", "thought"])
def test_swaps_leave_out_queries_that_end_before(tmp_path, monkeypatch, by):
    monkeypatch.setenv("LASER_LAB_CACHE", str(tmp_path))
    sizes = dict(entities=12, relations=2, dev=0, test=18, layers=1, hidden_size=16, heads=2, pretrain_steps=3)
    config = HopWorldConfig(hops=(1, 2, 3), **sizes)
    world, model = HopWorld(config), ll.load(pretrained(config), device="cpu")
    depth = {c.id: c.depth for c in world.test}
    for step in (1, 2):
        found = swaps.bridge_swaps(model, world, step, 3, by=by)
        assert {depth[i] for i in found.query_id} == set(range(step + 1, 4))
    with pytest.raises(ValueError, match="from 1 to 2"):
        swaps.bridge_swaps(model, world, 3, 6, by=by)


def test_swaps_of_strength_zero_are_undisturbed(small_world):
    world, model = small_world
    found = swaps.bridge_swaps(model, world, 1, 3, strength=0.0)
    assert (found.retrieved == found.undisturbed).all() and (found.outcome == found.undisturbed_outcome).all()
    task = world.task("test")
    ranking = ll.rank(model, task, top=1, thinking_steps=3).set_index("query_id")["doc_id"]
    pooled = found[found.readout == "all"]
    assert (pooled.retrieved.to_numpy() == ranking[pooled.query_id].to_numpy()).all()


@pytest.mark.parametrize("by", ["token", "thought"])
def test_swaps_with_known_thoughts_are_the_same(small_world, by):
    world, model = small_world
    known = swaps.undisturbed_thoughts(model, world, 3)
    expected = swaps.bridge_swaps(model, world, 1, 3, by=by)
    pd.testing.assert_frame_equal(swaps.bridge_swaps(model, world, 1, 3, by=by, undisturbed=known), expected)


def test_swaps_retrieve_documents_with_their_own_k(small_world, monkeypatch):
    world, model = small_world
    thinking = swaps.undisturbed_thoughts(model, world, 3)[1].embeddings
    monkeypatch.setattr(model[0], "document_steps", 1)
    documents = swaps.undisturbed_thoughts(model, world, 3)[1].embeddings
    expected = model.encode_document(list(world.documents.values()), convert_to_tensor=True)
    torch.testing.assert_close(documents, expected)
    assert (documents - thinking).abs().max() > 1e-3


def test_swaps_refuse_other_thoughts(small_world):
    world, model = small_world
    for known in (
        swaps.undisturbed_thoughts(model, world, 2),
        swaps.undisturbed_thoughts(model, world, 3)[::-1],
    ):
        with pytest.raises(ValueError, match="not those about this world's test split with K=3"):
            swaps.bridge_swaps(model, world, 1, 3, undisturbed=known)


def test_swaps_refuse_what_leads_nowhere(small_world):
    world, model = small_world
    for step, steps in ((3, 6), (2, 2), (1, 1), (0, 3)):
        with pytest.raises(ValueError, match="^step must be"):
            swaps.bridge_swaps(model, world, step, steps)
    with pytest.raises(ValueError, match="by must be"):
        swaps.bridge_swaps(model, world, 1, 3, by="magic")


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_proportion_lies_in_its_interval(hits):
    rate, low, high = proportion(hits)
    assert 0 <= low <= rate + 1e-12 and rate - 1e-12 <= high <= 1 and low < high
