"""Segments, their states and downsampling by both published rules."""

import pytest
import torch
from conftest import tiny_backbone
from hypothesis import given
from hypothesis import strategies as st

import laser_lab as ll
from laser_lab.data.segments import downsample, segments
from laser_lab.encoder import LatentEncoder
from laser_lab.explicit import explicit_features, explicit_thoughts


def test_segments():
    assert segments("one\n\ntwo \n  \n\n three\n") == ["one", "two", "three"]
    assert segments("One. Two? Three", by="sentence") == ["One.", "Two?", "Three"]
    assert segments(["a ", "", "b"]) == ["a", "b"] and segments("") == []
    with pytest.raises(ValueError, match="segments are cut by"):
        segments("a", by="magic")


@pytest.mark.parametrize(
    ("rule", "count", "steps", "expected"),
    [
        ("released", 5, 3, [0, 2, 4]),
        ("released", 7, 3, [0, 3, 6]),
        ("released", 6, 4, [0, 1, 3, 5]),
        ("released", 2, 4, [0, 1, 1, 1]),
        ("released", 3, 3, [0, 1, 2]),
        ("released", 5, 1, [0]),
        ("paper", 5, 3, [0, 2, 4]),
        ("paper", 7, 3, [1, 3, 6]),
        ("paper", 6, 4, [0, 2, 3, 5]),
        ("paper", 2, 4, [0, 0, 0, 1]),
        ("paper", 3, 3, [0, 1, 2]),
        ("paper", 5, 1, [4]),
    ],
)
def test_downsampling_by_hand(rule, count, steps, expected):
    assert downsample(count, steps, rule) == expected


@given(st.integers(1, 40), st.integers(1, 12), st.sampled_from(["released", "paper"]))
def test_downsampling_keeps_time(count, steps, rule):
    found = downsample(count, steps, rule)
    assert len(found) == steps and found == sorted(found) and 0 <= found[0] and found[-1] < count
    if count >= steps and (steps > 1 or rule == "paper"):
        assert found[-1] == count - 1 and len(set(found)) == steps


@pytest.mark.parametrize(("count", "steps", "rule"), [(0, 1, "paper"), (1, 0, "paper"), (1, 1, "other")])
def test_downsampling_bad_input(count, steps, rule):
    with pytest.raises(ValueError):
        downsample(count, steps, rule)


def test_states_at_segment_ends():
    """The states are those of a plain pass over [q ; r ; eos], at each segment's last token."""
    encoder = LatentEncoder(tiny_backbone())
    queries = ["why is the sky blue", "sea"]
    reasonings = [["light scatters", "water", "blue light and rain"], []]
    features = explicit_features(encoder, queries, reasonings, steps=3)
    with torch.no_grad():
        out = encoder(features, segment_ends=features["segment_ends"])
        model, tokenizer = encoder.backbone.model, encoder.tokenizer
        ids = tokenizer(" ".join([queries[0], *reasonings[0]]))["input_ids"] + [tokenizer.eos_token_id]
        plain = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    torch.testing.assert_close(out["states"][0], plain[[6, 7, 11]], atol=1e-4, rtol=0)
    teacher = torch.nn.functional.normalize(plain[-1], dim=-1)
    torch.testing.assert_close(out["sentence_embedding"][0], teacher, atol=1e-5, rtol=0)
    # no reasoning: the last state, K times
    assert (out["states"][1] == out["states"][1, 0]).all()
    unit = torch.nn.functional.normalize(out["states"][1, 0], dim=-1)
    torch.testing.assert_close(out["sentence_embedding"][1], unit)


def test_truncation_keeps_the_eos_and_whole_segments():
    encoder = LatentEncoder(tiny_backbone())
    features = explicit_features(encoder, ["sky"], [["sea water", "rain snow", "light"]], steps=3, max_length=5)
    assert features["input_ids"].shape == (1, 5) and features["input_ids"][0, -1] == encoder.tokenizer.eos_token_id
    assert features["segment_ends"].tolist() == [[2, 2, 2]]


def test_explicit_thoughts_batch(tiny_folder):
    model = ll.load(tiny_folder, prompts={"query": "why "}, device="cpu")
    queries, reasonings = ["sky", "sea", "rain"], [["light", "blue"], [], ["water"]]
    whole = explicit_thoughts(model, queries, reasonings, steps=2)
    parts = [explicit_thoughts(model, [q], [r], steps=2) for q, r in zip(queries, reasonings)]
    torch.testing.assert_close(whole[0], torch.cat([e for e, _ in parts]), atol=1e-5, rtol=0)
    torch.testing.assert_close(whole[1], torch.cat([s for _, s in parts]), atol=1e-4, rtol=0)
