"""Thoughts that hold their words: targets, objective, cost (docs/method.md, section 5)."""

import math

import pytest
import torch
from conftest import FAMILIES, tiny_backbone
from hypothesis import given, settings
from hypothesis import strategies as st
from test_thinking import batch

import laser_lab as ll
from laser_lab.data.words import Words, inverse_document_frequency
from laser_lab.encoder import LatentEncoder, LatentRetriever
from laser_lab.losses import LexicalAlignment
from laser_lab.thinking import latent_thinking
from laser_lab.training.batches import Collator
from laser_lab.training.lexical import LexicalTargets, shares
from laser_lab.training.objectives import DualViewLoss


def targets_of(reasonings=(), **changes):
    encoder = LatentEncoder(tiny_backbone(), halting=True)
    return LexicalTargets(encoder, ll.METHODS["lexical"].replace(**changes), reasonings)


def named(targets, row):
    """Distributions by word."""
    return [{targets.words.tokenizer.convert_ids_to_tokens(i): p for i, p in step.items()} for step in row]


@given(count=st.integers(0, 12), steps=st.integers(1, 8))
def test_shares_are_contiguous_and_whole(count, steps):
    found = shares(count, steps)
    assert len(found) == steps and [i for share in found for i in share] == list(range(count))
    if count >= steps:
        assert max(map(len, found)) - min(map(len, found)) <= 1
    else:
        assert [len(share) for share in found] == [1] * count + [0] * (steps - count)


def test_one_segment_a_step_then_the_end():
    targets = targets_of(thinking_steps=4, lexical_idf=False)
    found = named(targets, targets.step_targets("why is the sky blue", ["the light scatters light", "blue sea light"]))
    assert found[0] == {"light": pytest.approx(2 / 3), "scatters": pytest.approx(1 / 3)}, (
        "without the words of the query"
    )
    assert found[1] == {"sea": 1.0}, "without those of the query and of the first segment"
    assert found[2:] == [{"</s>": 1.0}] * 2


def test_more_segments_than_steps_are_grouped():
    targets = targets_of(thinking_steps=2, lexical_idf=False)
    found = named(targets, targets.step_targets("why", ["sea", "rain", "snow", "rain light"]))
    assert found == [{"sea": 0.5, "rain": 0.5}, {"snow": 0.5, "light": 0.5}], "and no step is left for the end"


def test_idf_weighs_rare_words_and_drops_what_all_have():
    reasonings = [["the sea"], ["the rain"], ["the sea and snow"]]
    targets = targets_of(reasonings, thinking_steps=1)
    (found,) = named(targets, targets.step_targets("why", ["the sea rain"]))
    rain, sea = math.log(4 / 2), math.log(4 / 3)
    assert found == {"sea": pytest.approx(sea / (sea + rain)), "rain": pytest.approx(rain / (sea + rain))}
    (unseen,) = named(targets, targets.step_targets("why", ["light sea"]))
    assert unseen["light"] == pytest.approx(math.log(4) / (math.log(4) + sea))


def test_the_ablations_change_what_they_name():
    query, segments = "why sea", ["sea rain", "rain"]
    assert named(t := targets_of(lexical_novelty=False, lexical_idf=False), t.step_targets(query, segments))[0] == {
        "sea": 0.5,
        "rain": 0.5,
    }
    assert targets_of(lexical_end=False, lexical_idf=False).step_targets(query, segments)[2] == {}
    assert targets_of([["sea"]], lexical_idf=False).idf == {}


def test_the_end_is_taught_where_reasoning_fills_every_step():
    ends = targets_of(thinking_steps=2).end
    full, short = ["sea", "rain"], ["sea"]
    for changes, reasonings, steps in (
        ({}, [full, short], 3),
        ({}, [short, []], 2),  # a step is left for the end
        ({"halting": False}, [full], 2),
        ({"lexical_end": False}, [full], 2),
        ({"thinking_steps": 1}, [full], 1),  # one pass: no thought that could end
    ):
        found = targets_of(**({"thinking_steps": 2} | changes))(["why"] * len(reasonings), reasonings)
        assert found["lexical_ids"].shape[1] == found["lexical_targets"].shape[1] == steps, changes
    found = targets_of(thinking_steps=2)(["why"] * 3, [full, short, []])
    assert found["lexical_ids"][:2, 2, 0].tolist() == [ends] * 2
    assert found["lexical_targets"][:, 2].sum(-1).tolist() == [1.0, 1.0, 0.0], "no reasoning, no target"


def test_the_end_alone():
    targets = targets_of(thinking_steps=3, lexical_words=False)
    assert targets.step_targets("why", ["sea", "rain"]) == [{}, {}, {targets.end: 1.0}]


def test_a_step_that_teaches_the_end_is_not_pooled():
    """Neither the retrieval loss nor the other alignments see the state of step K+1."""
    encoder = LatentEncoder(tiny_backbone("llama-untied"), halting=True, thinking_steps=2)
    model = LatentRetriever(modules=[encoder], prompts={"query": "", "document": ""})
    method = ll.METHODS["lexical"].replace(thinking_steps=2)
    row = dict(
        id="1", query="why", reasoning=["sea", "rain"], positive_ids=["a"], documents=["sea"], document_ids=["a"]
    )
    batch = Collator(model, method, [row["reasoning"]])([row])
    parts = [
        {k.removeprefix(f"{side}_"): v for k, v in batch.items() if k.startswith(f"{side}_")}
        for side in ("query", "document")
    ]
    latent, _ = DualViewLoss(model, method).think(*parts)
    alone = encoder(
        {"input_ids": parts[0]["input_ids"], "attention_mask": parts[0]["attention_mask"]}, thinking_steps=2
    )
    assert latent["lexical"].shape[1] == 3 and latent["states"].shape[1] == latent["weights"].shape[1] == 2
    torch.testing.assert_close(latent["sentence_embedding"], alone["sentence_embedding"])
    terms = DualViewLoss(model, method)(parts)
    weight = encoder.backbone.model.lm_head.weight
    gradient = torch.autograd.grad(terms["lexical"], weight)[0]
    assert gradient[encoder.end_token].abs().max() > 0


def test_fallbacks():
    targets = targets_of([["the sea"], ["the rain"]], thinking_steps=2)
    assert named(targets, targets.step_targets("sea", ["sea"]))[0] == {"sea": 1.0}, "no new word: all its words"
    assert named(targets, targets.step_targets("why", ["the"]))[0] == {"the": 1.0}, "no word with weight: evenly"
    assert targets.step_targets("why", []) == [{}, {}], "no reasoning, no target"


@settings(max_examples=30, deadline=None)
@given(
    reasonings=st.lists(
        st.lists(st.lists(st.sampled_from("sea rain snow light the".split()), max_size=4).map(" ".join), max_size=4),
        min_size=1,
        max_size=4,
    ),
    steps=st.integers(1, 4),
)
def test_sparse_targets_are_distributions(reasonings, steps):
    targets = targets_of(reasonings, thinking_steps=steps)
    found = targets(["why sea"] * len(reasonings), reasonings)
    assert (
        found["lexical_ids"].shape
        == found["lexical_targets"].shape
        == (len(reasonings), found["lexical_ids"].shape[1], found["lexical_ids"].shape[2])
    )
    assert found["lexical_ids"].shape[1] == steps + (1 < steps <= max(map(len, reasonings)))
    sums = found["lexical_targets"].sum(-1)
    assert torch.all((sums < 1e-6) | ((sums - 1).abs() < 1e-5)) and (found["lexical_targets"] >= 0).all()
    for row, segments in enumerate(reasonings):
        dense = targets.step_targets("why sea", segments)
        for step in range(steps):
            ids, values = found["lexical_ids"][row, step].tolist(), found["lexical_targets"][row, step].tolist()
            assert {i: v for i, v in zip(ids, values) if v} == pytest.approx(dense[step])


def test_words_are_neither_space_nor_punctuation_nor_special():
    words = Words(tiny_backbone().tokenizer)
    assert words.ids(["the sea </s>", ""]) == [[words.tokenizer.convert_tokens_to_ids(w) for w in ("the", "sea")], []]
    assert words.names("the sea") == {"the", "sea"}
    assert inverse_document_frequency([]) == ({}, 0.0)


def test_the_loss_is_the_plain_sum():
    torch.manual_seed(0)
    logs, targets = torch.randn(2, 3, 4).log_softmax(-1), torch.rand(2, 3, 4)
    targets /= targets.sum(-1, keepdim=True)
    targets[0, 1] = 0
    targets[1, 2, 1:] = torch.tensor([0.5, 0.5, 0.0]) - 0.0
    targets[1, 2, 0] = 0
    logs[1, 2, 0] = float("-inf")  # padding must not count, whatever stands there
    total, count = 0.0, 0
    for b in range(2):
        for k in range(3):
            if targets[b, k].sum() > 0:
                total += sum(-float(t) * float(x) for t, x in zip(targets[b, k], logs[b, k]) if t > 0)
                count += 1
    assert count == 5 and float(LexicalAlignment()(logs, targets)) == pytest.approx(total / count, abs=1e-6)
    assert float(LexicalAlignment()(logs[:, 1:2] * 0, torch.zeros(2, 1, 4))) == 0.0
    double = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    exact = targets.double()
    assert torch.autograd.gradcheck(lambda x: LexicalAlignment()(x.log_softmax(-1), exact), double)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_those_of_the_whole_head(family):
    backbone = tiny_backbone(family)
    ids, mask = batch()
    words = torch.randint(4, 20, (3, 4, 5), generator=torch.Generator().manual_seed(0))
    for grad in (False, True):  # by blocks of the vocabulary, and at once
        with torch.set_grad_enabled(grad):
            rollout = latent_thinking(backbone, ids, mask, 4, read_all=True)
            found = backbone.log_probabilities(rollout.states, words, rollout.log_normalisers)
            whole = backbone.logits(rollout.states).log_softmax(-1)
        torch.testing.assert_close(found, whole.gather(-1, words), atol=1e-5, rtol=1e-5)


def test_the_encoder_gives_them_by_name_and_with_gradients():
    encoder = LatentEncoder(tiny_backbone(), thinking_steps=2)
    words = torch.tensor([[[4, 5], [6, 7]]] * 2)
    out = encoder(encoder.preprocess(["why is the sky", "sea"]), words=words)
    assert out["lexical"].shape == (2, 2, 2) and (out["lexical"] < 0).all()
    weight = encoder.backbone.model.model.layers[0].mlp.down_proj.weight
    assert torch.autograd.grad(out["lexical"].sum(), weight)[0].abs().max() > 0
    assert "lexical" not in encoder(encoder.preprocess(["sea"]))


def test_reasoning_is_needed(tmp_path):
    from datasets import Dataset

    from laser_lab.data.readers import features

    row = dict(id="1", query="why", positives=["sea"], negatives=[], positive_ids=["a"], negative_ids=[])
    data = Dataset.from_list([row | {"reasoning": []}], features=features())
    model = LatentRetriever(modules=[LatentEncoder(tiny_backbone())], prompts={"query": "", "document": ""})
    with pytest.raises(ValueError, match="learns from written reasoning"):
        ll.train(model, data, "lexical", output_dir=tmp_path / "run")
