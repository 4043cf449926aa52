"""The stopwatch and the comparator. No test here asserts a time: those are in the benchmark's own table."""

import pandas as pd
import pytest
import torch
import transformers
from conftest import FAMILIES, SMALL, tiny_backbone
from test_thinking import batch

from laser_lab.base import kernels
from laser_lab.encoder import LatentEncoder, LatentRetriever
from laser_lab.lab import latency
from laser_lab.lab.figures import latency as latency_figure
from laser_lab.thinking import latent_thinking


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_published_loop_thinks_the_same(family, steps):
    backbone = tiny_backbone(family)
    # The card leaves positions to the model, and GPT-2's absolute ones would count the padding.
    ids, mask = batch((9, 9) if family == "gpt2" else (9, 3, 6))
    with torch.inference_mode():
        ours = latent_thinking(backbone, ids, mask, steps).states
        published = latency.published_thinking(backbone, ids, mask, steps)
    assert published.shape == ours.shape
    torch.testing.assert_close(published, ours, atol=1e-4, rtol=1e-4)


def test_rounds_are_interleaved_and_turn():
    calls = []
    times = latency.measure({name: lambda name=name: calls.append(name) for name in "abc"}, repeats=4, warmup=1)
    assert len(calls) == 15
    assert list(times["name"]) == calls[3:]  # the warm-up is not in the table
    rounds = [tuple(part["name"]) for _, part in times.groupby("repeat")]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert [names[0] for names in rounds] == ["a", "b", "c", "a"]
    assert (times["seconds"] > 0).all()


@pytest.mark.parametrize("encoders, repeats", [({}, 3), ({"a": int}, 0)])
def test_nothing_to_measure_is_an_error(encoders, repeats):
    with pytest.raises(ValueError, match="measure needs"):
        latency.measure(encoders, repeats)


def test_summary_and_ratio():
    rows = [{"repeat": r, "name": n, "seconds": s * (r + 1)} for r in range(3) for n, s in (("slow", 3.0), ("fast", 1))]
    times = pd.DataFrame(rows)
    summary = latency.summarize(times).set_index("name")
    assert summary.loc["slow", "median"] == 6 and summary.loc["fast", "p95"] == pytest.approx(2.9)
    assert latency.ratio(times, "slow", "fast") == 3  # within rounds, though the machine slows down


def test_peak_memory_sees_what_a_call_frees_again():
    growth, total = latency.peak_memory(lambda: torch.ones(64, 2**20 // 4).sum())
    if growth != growth:
        pytest.skip("only Linux lets a process reset its high-water mark")
    assert 60 < growth < 90 and total > growth


def test_benchmark_table_and_figure():
    table, price = latency.benchmark(tiny_backbone("gemma3"), shapes=[(2, 4), (2, 8)], steps=(1, 2, 3), repeats=2)
    assert list(table["name"]) == ["published", "ours", "stock", "basic"] * 2 + ["sweep"] * 3
    assert list(table["thinking_steps"]) == [3, 3, 3, 1] * 2 + [1, 2, 3]
    assert (table["median"] > 0).all() and (table["p95"] >= table["median"]).all()
    assert set(price.columns) == {"step", "forward", "reading", "ratio", "sweep"} and len(price) == 1
    fig = latency_figure(table)
    assert [text.get_text() for text in fig.axes[0].get_xticklabels()] == ["2 × 4 tokens", "2 × 8 tokens"]


def test_shortest_seconds_by_hand():
    config = FAMILIES["llama-untied"]()
    hidden, inner, layers, width = SMALL["hidden_size"], SMALL["intermediate_size"], 2, 8 * (4 + 2 + 2)
    layer = hidden * width + 4 * 8 * hidden + 3 * hidden * inner + 2 * hidden
    body, table = layers * layer + hidden, SMALL["vocab_size"] * hidden
    compute = 2 * body * 8 * 16 + 2 * 8 * 16**2 * 32 * layers
    shapes = dict(batch=8, tokens=16, thinking_steps=3)
    bound = latency.shortest_seconds(config, **shapes, operations=1.0, bandwidth=1e30)
    assert bound == pytest.approx(compute)
    bound = latency.shortest_seconds(config, **shapes, operations=1e30, bandwidth=1.0)
    assert bound == pytest.approx(2 * (3 * body + 2 * table))


def test_shortest_seconds_of_a_large_model_needs_no_memory():
    config = transformers.Qwen3Config(
        vocab_size=151_936, hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128, tie_word_embeddings=False,
    )  # fmt: skip
    seconds = [
        latency.shortest_seconds(config, 8, tokens, 3, operations=990e12, bandwidth=4.8e12) for tokens in (16, 512)
    ]
    assert seconds[0] == pytest.approx(3 * 13.89e9 / 4.8e12 + 2 * 1.245e9 / 4.8e12, rel=0.02)  # weights are read thrice
    assert seconds[1] > 0.05  # arithmetic of 4096 tokens


def retriever():
    encoder = LatentEncoder(tiny_backbone())
    return LatentRetriever(modules=[encoder], device="cpu", prompts={"query": "", "document": ""})


def test_the_published_retriever_has_the_same_weights_and_embeddings():
    model = retriever()
    comparator = latency.published(model)
    texts = ["why is the sky blue", "green sea"]
    torch.testing.assert_close(
        comparator.encode(texts, convert_to_tensor=True), model.encode(texts, convert_to_tensor=True)
    )
    own, other = model.encoder.backbone, comparator.encoder.backbone
    assert all(a is b for a, b in zip(own.parameters(), other.parameters(), strict=True))
    assert not any(type(module) is kernels.Linear for module in other.model.modules())
    assert any(type(module) is kernels.Linear for module in own.model.modules())


def test_corpus_table():
    row = latency.corpus(retriever(), ["why is the sky blue", "green", "sea and snow"] * 8, sample=6, repeats=2).iloc[0]
    assert row["documents"] == 24 and row["published"] > 0 and row["ours"] > 0
    assert row["peak_all"] != row["peak_all"] or 0.5 < row["growth"] < 2


def test_training_step_of_both_loops_has_the_same_gradients(monkeypatch):
    found = {}
    monkeypatch.setattr(latency, "measure", lambda steps, *args, **kwargs: found.update(steps) or pd.DataFrame())
    with pytest.raises((KeyError, ValueError)):  # no times to summarise: only the steps are of interest
        latency.training_step(model := retriever(), batch=2, lengths=(6, 5, 9))
    monkeypatch.setattr(LatentRetriever, "zero_grad", lambda self, **kwargs: None)  # keep what backward has left
    gradients = []
    for step in found.values():
        for parameter in model.parameters():
            parameter.grad = None
        step()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert len(gradients[0]) > 1000 and gradients[0].norm() > 0
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[1].norm()


def test_training_step_table():
    table = latency.training_step(retriever(), batch=2, lengths=(6, 5, 9), repeats=2)
    assert list(table["name"]) == ["published", "ours"] and (table["median"] > 0).all()
    assert table["time_ratio"].iloc[1] == 1


def test_cost_model_finds_the_rates_it_was_made_from():
    rates = {"calls": 0.01, "body": 2e-12, "attention": 1e-7, "reading": 3e-11, "mixing": 1e-12}
    made = latency.CostModel(rates, weights=10**8, vocabulary=10**8)
    rows = [
        dict(weights=10**8, vocabulary=v, batch=b, tokens=t, thinking_steps=k)
        for v in (10**8, 10**7) for b in (1, 8, 32) for t in (16, 64, 256) for k in (1, 3, 6)
    ]  # fmt: skip
    seconds = [made.seconds(r["batch"], r["tokens"], r["thinking_steps"], r["vocabulary"]) for r in rows]
    found = latency.CostModel.fit(pd.DataFrame(rows).assign(median=seconds))
    assert found.rates == pytest.approx(rates) and found.vocabulary == 10**8
    assert found.corpus_hours(3.2e6, 16, 3) == pytest.approx(1e5 * made.seconds(32, 16, 3) / 3600)


def test_cost_points_and_limits_of_a_tiny_model(monkeypatch):
    monkeypatch.setattr(latency, "COST_SHAPES", ((1, 4), (2, 4), (2, 8), (3, 4)))
    backbone = tiny_backbone()
    points = latency.cost_points(backbone, repeats=1)
    assert len(points) == (4 + 2) * 3 and len(set(points["vocabulary"])) == 2 and (points["median"] > 0).all()
    assert points["vocabulary"].min() == len(backbone.embedding_table) // 4 * backbone.hidden_size
    table = latency.against_limit(backbone, [(2, 4)], operations=1e15, bandwidth=1e12, repeats=2)
    assert (table["limit"] > 0).all() and (table["to_limit"] > 1).all()
