"""Nearest tokens against a plain computation."""

import pytest
import torch
from conftest import FAMILIES, tiny_backbone, tiny_tokenizer

import laser_lab as ll
from laser_lab.encoder import LatentEncoder, LatentRetriever
from laser_lab.probing.tracing import think_layers
from laser_lab.probing.vocabulary import logit_lens, reasoning_mass, soft_token_states


@pytest.fixture(scope="module")
def model(tiny_folder):
    return ll.load(tiny_folder, device="cpu")


def test_head_reading_is_softmax_of_the_head(model):
    thoughts = ll.think(model, ["why is the sky blue", "sea"], thinking_steps=3)
    frame = ll.nearest_tokens(model, thoughts, top=4)
    assert list(frame.columns) == ["text", "query", "step", "rank", "token_id", "token", "probability"]
    assert len(frame) == 2 * 3 * 4
    lm = model.encoder.backbone.model
    for (text, step), rows in frame.groupby(["text", "step"]):
        p = torch.softmax(thoughts.states[text, step - 1] @ lm.get_output_embeddings().weight.T, -1)
        expected = p.topk(4)
        assert rows.token_id.tolist() == expected.indices.tolist()
        torch.testing.assert_close(torch.tensor(rows.probability.tolist()), expected.values, atol=1e-6, rtol=0)
        assert rows.token.tolist() == [tiny_tokenizer().convert_ids_to_tokens(i) for i in rows.token_id]


def test_embedding_reading_is_cosine(model):
    thoughts = ll.think(model, ["why is the sky blue"], thinking_steps=2)
    frame = ll.nearest_tokens(model, thoughts, top=3, reading="embedding")
    table = model.encoder.backbone.model.get_input_embeddings().weight
    for step, rows in frame.groupby("step"):
        expected = torch.cosine_similarity(thoughts.states[0, step - 1][None], table).topk(3)
        assert rows.token_id.tolist() == expected.indices.tolist()
        torch.testing.assert_close(torch.tensor(rows.cosine.tolist()), expected.values, atol=1e-6, rtol=0)


def test_bad_arguments(model):
    thoughts = ll.think(model, ["sea"])
    for top in (0, -1, 10_000):
        with pytest.raises(ValueError, match="top must be from 1 to the vocabulary size"):
            ll.nearest_tokens(model, thoughts, top=top)
    with pytest.raises(ValueError, match="reading must be"):
        ll.nearest_tokens(model, thoughts, reading="tea leaves")
    assert ll.nearest_tokens(model, ll.think(model, [])).empty


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_of_the_lens_is_what_the_thought_says(family):
    model = LatentRetriever(modules=[LatentEncoder(tiny_backbone(family))], device="cpu", prompts={"query": ""})
    traced = think_layers(model, ["why is the sky blue", "sea"], 3)
    frame = logit_lens(model, traced, top=4)
    assert len(frame) == 2 * 3 * 3 * 4 and sorted(frame.layer.unique()) == [0, 1, 2]
    last = frame[frame.layer == 2].drop(columns=["layer", "entropy", "last_rank"]).reset_index(drop=True)
    assert (frame[frame.layer == 2].last_rank == 1).all() and (frame.last_rank >= 1).all()
    expected = ll.nearest_tokens(model, traced.thoughts, top=4)
    assert last.drop(columns="probability").equals(expected.drop(columns="probability"))
    assert (last.probability - expected.probability).abs().max() < 1e-5
    with pytest.raises(ValueError, match="top must be from 1"):
        logit_lens(model, traced, top=0)


def test_reasoning_mass_against_a_plain_sum(model):
    texts = ["why is the sky blue", "sea"]
    reasonings = [["because light scatters", "the sky sea"], "rain snow blue"]
    thoughts = ll.think(model, texts, thinking_steps=2)
    frame = reasoning_mass(model, thoughts, reasonings)
    assert list(frame.columns) == ["text", "query", "step", "own", "others", "difference"]
    tokenizer, backbone = tiny_tokenizer(), model.encoder.backbone
    # "the sky", "blue" and "sea" are in one of the two texts: there they are no reasoning
    first, second = ["because", "light", "scatters"], ["rain", "snow"]
    words = {0: (first, second), 1: (second, first)}
    for row in frame.itertuples():
        with torch.no_grad():
            p = torch.softmax(backbone.logits(thoughts.states[row.text, row.step - 1]), -1)
        own, others = (float(p[tokenizer.convert_tokens_to_ids(side)].sum()) for side in words[row.text])
        assert (row.own, row.others) == pytest.approx((own, others), abs=1e-6)
        assert row.difference == pytest.approx(own - others, abs=1e-6)


def test_reasoning_mass_at_its_ends(model):
    silent = reasoning_mass(model, ll.think(model, ["sea", "sky"], 2), [[], "?"])
    assert silent.own.tolist() == [0] * 4 == silent.others.tolist()
    assert reasoning_mass(model, ll.think(model, [], 2), []).empty
    with pytest.raises(ValueError, match="no other"):
        reasoning_mass(model, ll.think(model, ["sea"], 2), ["rain"])
    with pytest.raises(ValueError, match="1 reasonings for 2 texts"):
        reasoning_mass(model, ll.think(model, ["sea", "sky"], 2), ["rain"])


def test_reasoning_mass_is_fair_to_both_sides(model):
    """Thoughts that know nothing of a reasoning favour neither side, however the texts and reasonings share words."""
    torch.manual_seed(0)
    words = [w for w in tiny_tokenizer().get_vocab() if w.isalpha()]
    pick = lambda count: " ".join(words[i] for i in torch.randperm(len(words))[:count])  # noqa: E731
    texts = [pick(6) for _ in range(60)]
    thoughts = ll.Thoughts(texts, torch.randn(1, 3, 32).expand(60, -1, -1))  # everyone thinks the same
    reasonings = [f"{text} {pick(6)}" for text in texts]  # and every reasoning repeats its question
    frame = reasoning_mass(model, thoughts, reasonings)
    assert abs(frame.difference.mean()) < 4 * frame.difference.std() / 60**0.5
    assert frame.own.mean() > 0.05


def test_every_method_is_read_where_its_soft_tokens_come_from(tiny_folder):
    model = ll.load(tiny_folder, device="cpu")
    expected = ll.think(model, ["the sky"], 3).states
    model.encoder.pooling = "generated"
    torch.testing.assert_close(soft_token_states(model, ["the sky"], 3).states, expected)
    assert model.encoder.pooling == "generated"
    torch.testing.assert_close(ll.think(model, ["the sky"], 2).states, expected[:, 1:])
