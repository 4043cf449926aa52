"""What thoughts say and are worth, and thoughts as words for BM25, against plain computations on a tiny model."""

import numpy as np
import pytest
import torch
from conftest import WORDS

import laser_lab as ll
from laser_lab.data.bm25 import bm25, bm25_index, fused, weighted_bm25
from laser_lab.data.readers import RetrievalTask
from laser_lab.probing.language import thought_words, word_recall, worth

TEXTS = ["why is the sky blue", "sea and rain", "green light", "a very long question about snow"]
REASONS = [["light scatters", "blue light"], ["water water"], ["green light"], ["snow rain", "question"]]


@pytest.fixture(scope="module")
def model(tiny_folder):
    return ll.load(tiny_folder, device="cpu", thinking_steps=3, prompts={"query": "", "document": ""})


@pytest.fixture(scope="module")
def task():
    facts = ["light scatters", "water in sea", "green light", "snow and rain"]
    corpus = {f"d{i}": text for i, text in enumerate(facts)}
    relevant = {f"q{i}": {f"d{i}": 1} for i in range(4)}
    return RetrievalTask("tiny", {f"q{i}": text for i, text in enumerate(TEXTS)}, corpus, relevant)


def test_word_recall_counts_new_words_among_the_nearest(model):
    thoughts = ll.think(model, TEXTS)
    frame = word_recall(model, thoughts, REASONS, top=8)
    assert set(frame["text"]) == {0, 1, 3}, "the reasoning of text 2 adds nothing"
    nearest = ll.nearest_tokens(model, thoughts, top=8)
    new = {0: {"light", "scatters"}, 1: {"water"}, 3: {"rain"}}
    others = {0: [{"water"}, {"snow", "rain", "question"}, {"green", "light"}]}  # without the words of text 0 itself
    for text, step in [(0, 1), (0, 3), (1, 2), (3, 2)]:
        said = set(nearest[(nearest["text"] == text) & (nearest["step"] == step)]["token"])
        so_far = set(nearest[(nearest["text"] == text) & (nearest["step"] <= step)]["token"])
        row = frame[(frame["text"] == text) & (frame["step"] == step)].iloc[0]
        assert row["own"] == len(said & new[text]) / len(new[text])
        assert row["own_so_far"] == len(so_far & new[text]) / len(new[text])
        if text in others:
            assert row["others"] == pytest.approx(np.mean([len(said & o) / len(o) for o in others[text]]))
    everything = word_recall(model, thoughts, REASONS, top=len(WORDS) + 4)
    assert (everything[["own", "others", "own_so_far"]] == 1).all(axis=None)
    with pytest.raises(ValueError, match="3 reasonings for 4 texts"):
        word_recall(model, thoughts, REASONS[:3])
    with pytest.raises(ValueError, match="at least two"):
        word_recall(model, thoughts, [["light"], ["sea"], [], []])
    alone = word_recall(model, thoughts, [["light scatters"], ["sky blue"], [], []])
    assert set(alone["text"]) == {1}, "text 0 holds all words of the only other reasoning: it has no control"


def test_thought_words_are_the_mixture_of_the_steps(model):
    thoughts = ll.think(model, TEXTS)
    said = thought_words(model, thoughts, top=len(WORDS) + 4)
    states = thoughts.states[0] @ model.encoder.backbone.head.weight.T
    expected = states.softmax(-1).mean(0)
    assert set(said[0]) == set(WORDS)
    for word, value in said[0].items():
        (token,) = model.tokenizer(word, add_special_tokens=False)["input_ids"]
        assert value == pytest.approx(float(expected[token]), abs=1e-6)
    assert len(thought_words(model, thoughts, top=2)[0]) <= 2


def test_worth_is_that_of_plain_readings(model, task):
    documents = ll.think(model, list(task.corpus.values())).embeddings
    frame = worth(model, task, documents, top=5)
    assert frame.groupby("condition").size().to_dict() == dict.fromkeys(frame["condition"].unique(), 4)
    assert len(frame["condition"].unique()) == 5
    for name, steps in (("as they are", 3), ("knocked out", 1)):
        queries = ll.think(model, TEXTS, steps).embeddings
        expected = ll.evaluation.score(queries.numpy(), documents.numpy(), task, per_query=True)
        assert frame[frame["condition"] == name]["ndcg@10"].tolist() == expected["ndcg@10"].tolist()
    with pytest.raises(ValueError, match="two steps"):
        worth(model, task, documents, 1)


@pytest.mark.parametrize("pooling", ["all", "generated"])
def test_nothing_is_lost_by_every_word_and_something_by_another_question(model, task, pooling, monkeypatch):
    """The mean over the whole vocabulary is the soft token itself; another question's thought is another thought."""
    monkeypatch.setattr(model.encoder, "pooling", pooling)
    seen = {}
    score = ll.evaluation.score

    def keep(queries, documents, task, per_query):
        seen[len(seen)] = torch.from_numpy(queries)
        return score(queries, documents, task, per_query=per_query)

    monkeypatch.setattr("laser_lab.probing.language.score", keep)
    names = worth(model, task, ll.think(model, list(task.corpus.values())).embeddings, top=len(WORDS) + 4)["condition"]
    by_name = dict(zip(names.unique(), seen.values()))
    torch.testing.assert_close(by_name["mean of its words"], by_name["as they are"], atol=1e-5, rtol=0)
    assert (by_name["another question's"] - by_name["as they are"]).abs().amax(-1).min() > 1e-3


def test_weighted_words_add_their_scores(task):
    index, texts = bm25_index(task), list(task.queries.values())
    plain = bm25(task, texts, index)
    nothing = weighted_bm25(task, texts, [{}] * 4, 1.0, index)
    for query, found in plain.items():
        assert nothing[query] == pytest.approx(found, abs=1e-5)
    repeated = bm25(task, [f"{text} snow snow" for text in texts], index)
    added = weighted_bm25(task, texts, [{"snow": 0.5, "unheard": 9.0}] * 4, 4.0, index)
    for query, found in repeated.items():
        assert added[query] == pytest.approx(found, abs=1e-5)


def test_fusion_by_reciprocal_ranks():
    first, second = {"q": {"a": 3.0, "b": 2.0}}, {"q": {"b": 0.9, "c": 0.1}}
    assert fused(first, second) == {"q": pytest.approx({"a": 1 / 61, "b": 1 / 62 + 1 / 61, "c": 1 / 62})}
