"""Measures against a plain computation, and ranking end to end."""

import numpy as np
import pytest
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
    relevant = data.draw(st.lists(st.sampled_from(docs), min_size=1, unique=True))
    task = RetrievalTask("t", {"q": "?"}, {d: d for d in docs}, {"q": dict.fromkeys(relevant, 1)})
    row = score_run({"q": {d: float(n - i) for i, d in enumerate(order)}}, task).iloc[0]
    assert row["ndcg@10"] == pytest.approx(plain_ndcg(order, task.qrels["q"]), abs=1e-9)
    assert row["recall@10"] == pytest.approx(len(set(order[:10]) & set(relevant)) / len(relevant), abs=1e-9)
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


def test_identical_texts_rank_first(setting):
    model, task = setting
    assert ll.evaluate(model, task)["ndcg@10"] == 1.0
    frame = ll.evaluate(model, task, per_query=True)
    assert frame.query_id.tolist() == ["q1", "q2"] and set(MEASURES) < set(frame.columns)
    ranked = ll.rank(model, task, top=3)
    assert len(ranked) == 6 and ranked[ranked["rank"] == 1].relevant.all()


def test_one_rollout_scores_every_k(setting):
    model, task = setting
    queries = ll.think(model, list(task.queries.values()), thinking_steps=4)
    documents = ll.think(model, list(task.corpus.values()), thinking_steps=4)
    swept = score_steps(queries, documents, task)
    for steps in range(1, 5):
        alone = ll.evaluate(model, task, thinking_steps=steps, per_query=True)
        both = swept[swept.thinking_steps == steps].merge(alone, on="query_id", suffixes=("", "_alone"))
        np.testing.assert_allclose(both["ndcg@10"], both["ndcg@10_alone"], atol=1e-9)


def test_an_index_can_stay_while_queries_think_longer(setting):
    model, task = setting
    queries = ll.think(model, list(task.queries.values()), thinking_steps=4)
    documents = ll.think(model, list(task.corpus.values()), thinking_steps=4)
    swept = score_steps(queries, documents, task, document_steps=2)
    for steps in (2, 4):
        alone = score(queries.embeddings_at(steps).numpy(), documents.embeddings_at(2).numpy(), task, per_query=True)
        assert swept[swept.thinking_steps == steps]["mrr"].tolist() == alone["mrr"].tolist()


def test_random_embeddings_are_near_chance():
    rng = np.random.default_rng(0)
    unit = lambda n: (x := rng.normal(size=(n, 64)).astype("float32")) / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    queries, corpus = {f"q{i}": "?" for i in range(200)}, {f"d{i}": "!" for i in range(100)}
    task = RetrievalTask("chance", queries, corpus, {q: {f"d{i % 100}": 1} for i, q in enumerate(queries)})
    assert score(unit(200), unit(100), task)["recall@10"] == pytest.approx(0.1, abs=0.07)
