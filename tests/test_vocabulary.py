"""Nearest tokens against a plain computation."""

import pytest
import torch
from conftest import tiny_tokenizer

import laser_lab as ll


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
