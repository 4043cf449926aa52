"""Thoughts that end themselves: weights, early leaving, budgets (docs/method.md, section 4)."""

import copy

import numpy as np
import pytest
import torch
from conftest import FAMILIES, tiny_backbone, tiny_model, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from test_thinking import batch, naive_thinking, variant

import laser_lab as ll
from laser_lab.backbone import Backbone
from laser_lab.encoder import LatentEncoder, LatentRetriever
from laser_lab.thinking import Thoughts, latent_thinking, pool

TEXTS = ["why is the sky blue", "sea", "rain and snow or not", "a very long question about light"]


def ending(backbone, ids, mask):
    """An end token that some rows say early and others late: the one whose probability varies most over the steps."""
    with torch.no_grad():
        states = latent_thinking(backbone, ids, mask, 5).states
        probabilities = backbone.logits(states).softmax(-1)
    return int((probabilities.amax((0, 1)) - probabilities.amin((0, 1))).argmax())


def plain_weights(backbone, states, end):
    """The formula, one number after the other."""
    weights = []
    for row in backbone.logits(states).softmax(-1)[..., end].double().tolist():
        left, found = 1.0, []
        for k, p in enumerate(row):
            left *= 1 - p
            found.append(1.0 if k == 0 else left)
        weights.append(found)
    return torch.tensor(weights, dtype=torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_the_formula(family):
    backbone = tiny_backbone(family)
    ids, mask = batch()
    end = ending(backbone, ids, mask)
    with torch.no_grad():
        found = latent_thinking(backbone, ids, mask, 5, end_token=end)
        expected = plain_weights(backbone, naive_thinking(backbone.model, ids, mask, 5), end)
    torch.testing.assert_close(found.weights, expected, atol=1e-5, rtol=0)
    assert (found.weights[:, 0] == 1).all() and found.weights.min() < 0.9, (
        "something must end, or the test tests nothing"
    )
    assert found.steps_taken.tolist() == [5, 5, 5]


@pytest.mark.parametrize("family", FAMILIES)
def test_off_is_bit_equal(family):
    """Without an end token nothing is weighed, and with one the states are the same."""
    backbone = tiny_backbone(family)
    ids, mask = batch()
    with torch.no_grad():
        off, on = (latent_thinking(backbone, ids, mask, 4, end_token=end) for end in (None, 3))
    assert torch.equal(off.states, on.states) and torch.equal(off.weights, torch.ones(3, 4))
    assert torch.equal(pool(off.states, off.weights), torch.nn.functional.normalize(off.states.mean(1), dim=-1))


@pytest.mark.parametrize("kind", ["base", "peft", "merged"])
@pytest.mark.parametrize("family", FAMILIES)
def test_leaving_early_equals_the_full_rollout(family, kind):
    backbone, _ = variant(family, kind)
    ids, mask = batch((9, 3, 6, 4, 7))
    end = ending(backbone, ids, mask)
    with torch.no_grad():
        full = latent_thinking(backbone, ids, mask, 6, end_token=end)
        threshold = float(full.weights[:, 1:].median())  # so that some rows leave, at different steps
        early = latent_thinking(backbone, ids, mask, 6, end_token=end, threshold=min(threshold, 0.9))
    assert len(set(early.steps_taken.tolist())) > 1, "rows must leave at different steps, or the test tests nothing"
    for row, taken in enumerate(early.steps_taken.tolist()):
        torch.testing.assert_close(early.states[row, :taken], full.states[row, :taken], atol=1e-4, rtol=0)
        torch.testing.assert_close(early.weights[row, :taken], full.weights[row, :taken], atol=1e-4, rtol=0)
        assert not early.states[row, taken:].any() and not early.weights[row, taken:].any()
        assert (full.weights[row, taken:] < threshold).all(), "only what weighs less is left out"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_default_threshold_changes_no_embedding(family, dtype):
    """Within 1e-3 in cosine, in a batch with left padding, on a model that does end its thoughts."""
    model = tiny_model(family)
    if family == "gemma2":
        model.config.final_logit_softcapping = 30.0  # the tiny one's keeps every probability low
    backbone = Backbone(copy.deepcopy(model).to(dtype), tiny_tokenizer())
    ids, mask = batch((9, 3, 6, 4, 7))
    end = ending(backbone, ids, mask)
    if (bias := getattr(backbone.head, "bias", None)) is None:
        backbone.head.bias = bias = torch.nn.Parameter(torch.zeros(backbone.head.weight.shape[0], dtype=dtype))
    with torch.no_grad():
        bias[end] += 6
        full, early = (latent_thinking(backbone, ids, mask, 6, end_token=end, threshold=t) for t in (0.0, 1e-3))
    cosine = torch.cosine_similarity(pool(full.states, full.weights), pool(early.states, early.weights))
    assert cosine.min() >= 1 - 1e-3 and early.steps_taken.min() < 6


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 10), min_size=1, max_size=5),
    steps=st.integers(1, 5),
    threshold=st.floats(0, 0.99),
    seed=st.integers(0, 99),
)
def test_neighbours_change_nothing(lengths, steps, threshold, seed):
    """A row ends where it ends alone, whatever stands beside it in the batch."""
    backbone = tiny_backbone("llama")
    ids, mask = batch(lengths, seed)
    with torch.no_grad():
        together = latent_thinking(backbone, ids, mask, steps, end_token=3, threshold=threshold)
        for row, length in enumerate(lengths):
            cut = slice(row, row + 1), slice(ids.shape[1] - length, None)
            alone = latent_thinking(backbone, ids[cut], mask[cut], steps, end_token=3, threshold=threshold)
            taken = min(int(alone.steps_taken[0]), int(together.steps_taken[row]))
            torch.testing.assert_close(alone.weights[0, :taken], together.weights[row, :taken], atol=1e-4, rtol=0)
            if (together.weights[row] - threshold).abs().min() > 1e-4:  # else rounding decides
                assert alone.steps_taken[0] == together.steps_taken[row]


def test_gradients_flow_through_the_weights():
    torch.manual_seed(0)
    states = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    raw = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, r: pool(s, r.cumprod(1)), (states, raw))
    backbone = tiny_backbone().double()
    ids, mask = batch((4, 4))
    rollout = latent_thinking(backbone, ids, mask, 3, end_token=3, threshold=0.5)
    assert rollout.steps_taken.tolist() == [3, 3], "with gradients nobody leaves"
    parameter = backbone.model.model.layers[0].mlp.down_proj.weight
    gradient = torch.autograd.grad(rollout.weights[:, 2].sum(), parameter)[0]
    at = divmod(int(gradient.abs().argmax()), gradient.shape[1])
    with torch.no_grad():  # logits are float32, whatever the backbone's dtype
        values = []
        for change in (1e-3, -1e-3):
            parameter[at] += change
            values.append(latent_thinking(backbone, ids, mask, 3, end_token=3).weights[:, 2].sum())
            parameter[at] -= change
    assert float(gradient[at]) == pytest.approx(float(values[0] - values[1]) / 2e-3, rel=1e-2)


@pytest.fixture
def model():
    encoder = LatentEncoder(tiny_backbone("llama-untied"), thinking_steps=5, halting=True)
    with torch.no_grad():  # thoughts about some texts end sooner than others
        encoder.backbone.head.weight[3] *= 3
    return LatentRetriever(modules=[encoder], prompts={"query": "why ", "document": ""}, device="cpu")


def test_think_encode_and_forward_agree(model):
    thoughts = ll.think(model, TEXTS, batch_size=3)
    np.testing.assert_allclose(model.encode(TEXTS), thoughts.embeddings.numpy(), atol=1e-5)
    full = ll.think(model, TEXTS, threshold=0.0)
    assert (full.steps_taken == 5).all() and full.weights.shape == (4, 5)
    assert torch.cosine_similarity(full.embeddings, thoughts.embeddings).min() > 1 - 1e-3
    for k in (1, 2, 5):
        torch.testing.assert_close(full.embeddings_at(k), pool(full.states[:, :k], full.weights[:, :k]))
    assert thoughts[1:3].weights.shape == (2, 5) and thoughts[0].steps_taken.shape == (1,)
    assert len(list(thoughts)) == 4


def test_a_budget_beyond_the_end_changes_nothing():
    backbone = tiny_backbone("llama-untied")
    backbone.head.weight.data[3] = 0
    bias = torch.nn.Parameter(torch.zeros(len(backbone.head.weight)))
    backbone.head.bias = bias
    bias.data[3] = 30.0  # every thought ends at once
    ids, mask = batch()
    with torch.no_grad():
        first, more = (latent_thinking(backbone, ids, mask, k, end_token=3, threshold=1e-3) for k in (2, 8))
    torch.testing.assert_close(pool(first.states, first.weights), pool(more.states, more.weights), atol=1e-4, rtol=0)
    assert more.steps_taken.tolist() == [1, 1, 1] and more.states.shape[1] == 8


def test_one_step_reads_no_head(model, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the head was read")

    model.encoder.document_steps = 1
    monkeypatch.setattr(Backbone, "logits", refuse)
    monkeypatch.setattr("laser_lab.backbone.linear", refuse)
    documents = model.encode_document(TEXTS)
    assert documents.shape == (4, 32)
    with pytest.raises(AssertionError, match="head was read"):
        model.encode_query(TEXTS)


def test_budgets_per_side_are_saved(model, tmp_path):
    model.encoder.document_steps = 2
    model.save_pretrained(str(tmp_path / "m"))
    again = ll.load(tmp_path / "m", device="cpu")
    found = again.encoder
    assert (found.thinking_steps, found.document_steps, found.halting, found.halting_threshold) == (5, 2, True, 1e-3)
    np.testing.assert_allclose(again.encode_document(TEXTS), model.encode_document(TEXTS), atol=1e-6)
    np.testing.assert_allclose(model.encode_document(TEXTS), model.encode(TEXTS, thinking_steps=2), atol=1e-6)
    assert ll.think(model, TEXTS, prompt_name="document").thinking_steps == 2
    assert ll.load(tmp_path / "m", device="cpu", halting=False).encoder.end_token is None


def test_another_token_ends_the_thought(model):
    encoder = LatentEncoder(model.encoder.backbone, halting="sea")
    assert encoder.end_token == encoder.tokenizer.convert_tokens_to_ids("sea") != encoder.tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(halting="<end_of_turn>"), "no token '<end_of_turn>'"),
        (dict(halting=1), "got 1"),
        (dict(halting=True, halting_threshold=1.0), "from 0 to below 1"),
        (dict(halting=True, halting_threshold=-0.1), "from 0 to below 1"),
        (dict(halting=True, pooling="generated"), "cannot be used with pooling"),
        (dict(document_steps=0), "positive integer"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        LatentEncoder(tiny_backbone(), **settings)


def test_a_tokenizer_without_eos():
    backbone = tiny_backbone()
    backbone.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="the tokenizer has no eos"):
        LatentEncoder(backbone, halting=True)


def test_thoughts_without_weights_pool_evenly():
    states = torch.randn(2, 3, 8)
    assert torch.equal(Thoughts(["a", "b"], states).embeddings, pool(states))


def test_tokens_are_read_up_to_the_end(model):
    model.encoder.halting_threshold = 0.5
    thoughts = ll.think(model, TEXTS)
    assert len(set(thoughts.steps_taken.tolist())) > 1
    found = ll.nearest_tokens(model, thoughts, top=1).groupby("text")["step"].max()
    assert found.tolist() == thoughts.steps_taken.tolist()


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan"), True, "0.1"])
def test_a_threshold_of_a_call_is_checked(model, threshold):
    with pytest.raises(ValueError, match="threshold must be from 0 to below 1"):
        ll.think(model, TEXTS, threshold=threshold)
