"""Measures against a plain computation, and ranking end to end."""

import numpy as np
import pytest
from conftest import WORDS
from hypothesis import given, settings
from hypothesis import strategies as st

import laser_lab as ll
from laser_lab.data.readers import RetrievalTask
from laser_lab.evaluation import MEASURES, score, score_run, score_steps


def plain_ndcg(ranking, grades, cut=10):
    gains = [grades.get(doc, 0) / np.log2(i + 2) for i, doc in enumerate(ranking[:cut])]
    ideal = sorted(grades.values(), reverse=True)[:cut]
    return sum(gains) / sum(g / np.log2(i + 2) for i, g in enumerate(ideal))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_measures_on_random_runs(data):
    n = data.draw(st.integers(2, 30))
    docs = [f"d{i}" for i in range(n)]
    order = data.draw(st.permutations(docs))
    relevant = data.draw(st.dictionaries(st.sampled_from(docs), st.integers(1, 3), min_size=1))
    task = RetrievalTask("t", {"q": "?"}, {d: d for d in docs}, {"q": relevant})
    row = score_run({"q": {d: float(n - i) for i, d in enumerate(order)}}, task).iloc[0]
    assert row["ndcg@10"] == pytest.approx(plain_ndcg(order, task.qrels["q"]), abs=1e-9)
    assert row["recall@10"] == pytest.approx(len(set(order[:10]) & set(relevant)) / len(relevant), abs=1e-9)
    found = sorted(order.index(d) + 1 for d in relevant)
    assert row["map"] == pytest.approx(np.mean([i / rank for i, rank in enumerate(found, 1)]), abs=1e-9)
    assert row["mrr"] == pytest.approx(1 / (1 + min(order.index(d) for d in relevant)), abs=1e-9)


def test_a_query_without_results_scores_zero():
    task = RetrievalTask("t", {"a": "?", "b": "?"}, {"d": "d"}, {"a": {"d": 1}, "b": {"d": 1}})
    frame = score_run({"a": {"d": 1.0}}, task)
    assert frame.set_index("query_id")["ndcg@10"].to_dict() == {"a": 1.0, "b": 0.0}


@pytest.fixture(scope="module")
def setting(tiny_folder):
    corpus = {f"d{i}": text for i, text in enumerate(["the sky", "green sea", "light scatters", "rain and snow"])}
    queries = {"q1": "the sky", "q2": "rain and snow"}
    task = RetrievalTask("tiny", queries, corpus, {"q1": {"d0": 1}, "q2": {"d3": 1}})
    return ll.load(tiny_folder, prompts={"query": ""}, device="cpu"), task


@pytest.fixture(scope="module")
def swept(setting):
    """The thoughts of the model, K=4, on a task with answers at random, so that the ranks move with K."""
    corpus = {f"d{i}": f"{first} {second}" for i, (first, second) in enumerate(zip(WORDS, reversed(WORDS)))}
    queries = {f"q{i}": word for i, word in enumerate(WORDS)}
    task = RetrievalTask("moving", queries, corpus, {f"q{i}": {f"d{i * 7 % len(WORDS)}": 1} for i in range(len(WORDS))})
    return task, *(ll.think(setting[0], list(texts.values()), thinking_steps=4) for texts in (queries, corpus))


def test_identical_texts_rank_first(setting):
    model, task = setting
    assert ll.evaluate(model, task)["ndcg@10"] == 1.0
    frame = ll.evaluate(model, task, per_query=True)
    assert frame.query_id.tolist() == ["q1", "q2"] and set(MEASURES) < set(frame.columns)
    ranked = ll.rank(model, task, top=3)
    assert len(ranked) == 6 and ranked[ranked["rank"] == 1].relevant.all()


def test_one_rollout_scores_every_k(setting, swept):
    task, queries, documents = swept
    found = score_steps(queries, documents, task)
    assert found.groupby("thinking_steps")["mrr"].mean().nunique() == 4, "else any K would pass"
    for steps in range(1, 5):
        alone = ll.evaluate(setting[0], task, thinking_steps=steps, per_query=True)
        both = found[found.thinking_steps == steps].merge(alone, on="query_id", suffixes=("", "_alone"))
        assert len(both) == len(WORDS)
        np.testing.assert_allclose(both["mrr"], both["mrr_alone"], atol=1e-9)


def test_an_index_can_stay_while_queries_think_longer(swept):
    task, queries, documents = swept
    found, moving = score_steps(queries, documents, task, document_steps=2), score_steps(queries, documents, task)
    for steps in (1, 2, 4):
        alone = score(queries.embeddings_at(steps).numpy(), documents.embeddings_at(2).numpy(), task, per_query=True)
        assert found[found.thinking_steps == steps]["mrr"].tolist() == alone["mrr"].tolist()
    assert (found["mrr"] != moving["mrr"])[found.thinking_steps != 2].any()


def test_random_embeddings_are_ranked_as_by_hand():
    rng = np.random.default_rng(0)
    queries, documents = (rng.normal(size=(n, 64)).astype("float32") for n in (200, 100))
    queries, documents = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, documents))
    right = np.arange(200) % 100
    names = {f"q{i}": {f"d{doc}": 1} for i, doc in enumerate(right)}
    task = RetrievalTask("chance", dict.fromkeys(names, "?"), {f"d{i}": "!" for i in range(100)}, names)
    scores = queries @ documents.T
    ranks = 1 + (scores > scores[np.arange(200), right][:, None]).sum(1)
    found = score(queries, documents, task)
    assert found["recall@10"] == pytest.approx((ranks <= 10).mean(), abs=1e-9)
    assert found["ndcg@10"] == pytest.approx(((ranks <= 10) / np.log2(ranks + 1)).mean(), abs=1e-6)
    assert found["mrr"] == found["map"] == pytest.approx((1 / ranks).mean(), abs=1e-6)
