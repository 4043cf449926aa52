"""The stopwatch, and the loops that it compares. Times themselves are in the benchmark's own table."""

import time

import pandas as pd
import pytest
import torch
from conftest import FAMILIES, tiny_backbone
from test_thinking import batch

from laser_lab.base import kernels
from laser_lab.encoder import LatentEncoder, LatentRetriever
from laser_lab.lab import latency, stopwatch
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
    times = stopwatch.measure({name: lambda name=name: calls.append(name) for name in "abc"}, repeats=4, warmup=1)
    assert len(calls) == 15
    assert list(times["name"]) == calls[3:]  # the warm-up is not in the table
    rounds = [tuple(part["name"]) for _, part in times.groupby("repeat")]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert [names[0] for names in rounds] == ["a", "b", "c", "a"]


def test_the_stopwatch_measures_what_a_call_takes():
    times = stopwatch.measure({"slow": lambda: time.sleep(0.02), "fast": lambda: None}, repeats=3, warmup=0)
    medians = stopwatch.summarize(times).set_index("name")["median"]
    assert medians["slow"] >= 0.02 > medians["fast"] and stopwatch.ratio(times, "slow", "fast") > 2


@pytest.mark.parametrize("encoders, repeats", [({}, 3), ({"a": int}, 0)])
def test_nothing_to_measure_is_an_error(encoders, repeats):
    with pytest.raises(ValueError, match="measure needs"):
        stopwatch.measure(encoders, repeats)


def test_summary_and_ratio():
    rows = [{"repeat": r, "name": n, "seconds": s * (r + 1)} for r in range(3) for n, s in (("slow", 3.0), ("fast", 1))]
    times = pd.DataFrame(rows)
    summary = stopwatch.summarize(times).set_index("name")
    assert summary.loc["slow", "median"] == 6 and summary.loc["fast", "p95"] == pytest.approx(2.9)
    assert stopwatch.ratio(times, "slow", "fast") == 3  # within rounds, though the machine slows down


def test_peak_memory_sees_what_a_call_frees_again():
    growth, total = stopwatch.peak_memory(lambda: torch.ones(64, 2**20 // 4).sum())
    if growth != growth:
        pytest.skip("only Linux lets a process reset its high-water mark")
    assert 60 < growth < 90 and total > growth


def clock(seconds):
    """In the place of `measure`: what a callable of a name takes, half as much again in every further round."""

    def measure(encoders, repeats=2, warmup=0):
        rows = [(r, name, seconds[name] * (1 + r / 2)) for r in range(3) for name in encoders]
        return pd.DataFrame(rows, columns=["repeat", "name", "seconds"])

    return measure


def test_benchmark_table_and_figure(monkeypatch):
    loops = {"published": 6.0, "ours": 2.0, "stock": 3.0, "basic": 1.0}
    sweep = {str(k): 0.5 + 0.25 * k for k in (1, 2, 3)} | {"forward": 0.1, "reading": 0.025, "every K": 2.5}
    monkeypatch.setattr(latency, "measure", clock(loops | sweep))
    table, price = latency.benchmark(tiny_backbone("gemma3"), shapes=[(2, 4), (2, 8)], steps=(1, 2, 3))
    assert list(table["name"]) == ["published", "ours", "stock", "basic"] * 2 + ["sweep"] * 3
    assert list(table["thinking_steps"]) == [3, 3, 3, 1] * 2 + [1, 2, 3]
    assert table["ratio"].tolist()[:4] == [3.0, 2.0, 1.5, 0.5], "to ours; ours to the basic pass"
    assert table["median"].tolist()[:4] == [9.0, 3.0, 4.5, 1.5] and table["p95"][0] == pytest.approx(11.7)
    price = price.iloc[0]
    assert price["step"] == pytest.approx(1.5 * 0.25) and price["sweep"] == pytest.approx(2.5 / 1.25)
    assert price["ratio"] == pytest.approx(0.25 / 0.125)
    fig = latency_figure(table)
    assert [text.get_text() for text in fig.axes[0].get_xticklabels()] == ["2 × 4 tokens", "2 × 8 tokens"]
    assert [text.get_text() for text in fig.axes[0].texts] == ["3.0×", "3.0×"]


def test_all_that_is_timed_computes_the_same():
    loops = latency.loops(tiny_backbone(), batch=2, tokens=5, thinking_steps=3)
    states = {name: call() for name, call in loops.items()}
    assert states["ours"].shape[:2] == (2, 3)
    for name in ("published", "stock"):
        torch.testing.assert_close(states[name], states["ours"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(states["basic"], states["ours"][:, :1], atol=1e-5, rtol=1e-5)


def retriever():
    encoder = LatentEncoder(tiny_backbone())
    return LatentRetriever(modules=[encoder], device="cpu", prompts={"query": "", "document": ""})


def test_the_published_retriever_has_the_same_weights_and_embeddings():
    model = retriever()
    comparator = latency.published_loop(model)
    texts = ["why is the sky blue", "green sea"]
    torch.testing.assert_close(
        comparator.encode(texts, convert_to_tensor=True), model.encode(texts, convert_to_tensor=True)
    )
    own, other = model.encoder.backbone, comparator.encoder.backbone
    assert all(a is b for a, b in zip(own.parameters(), other.parameters(), strict=True))
    assert not any(type(module) is kernels.Linear for module in other.model.modules())
    assert any(type(module) is kernels.Linear for module in own.model.modules())


def test_corpus_table(monkeypatch):
    monkeypatch.setattr(latency, "measure", clock({"published": 3.0, "ours": 1.0}))
    row = latency.corpus(retriever(), ["why is the sky blue", "green", "sea and snow"] * 8, sample=6).iloc[0]
    assert row["documents"] == 24 and row["ratio"] == 3
    assert (row["published"], row["ours"]) == (6 / 4.5, 6 / 1.5), "documents per second, of the median round"
    assert row["peak_all"] != row["peak_all"] or 0.5 < row["growth"] < 2


def test_training_step_of_both_loops_has_the_same_gradients():
    gradients, steps = (
        [],
        latency.training_steps(latency.training_runs(model := retriever()), batch=2, lengths=(6, 5, 9)),
    )
    for step in steps.values():
        step()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert list(steps) == ["published", "ours"]
    assert len(gradients[0]) > 1000 and gradients[0].norm() > 0
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[1].norm()


def test_training_step_table(monkeypatch):
    monkeypatch.setattr(latency, "measure", clock({"published": 4.0, "ours": 1.0}))
    runs = latency.training_runs(retriever())
    table = latency.training_table(runs, "published", 3, batch=2, lengths=(6, 5, 9)).set_index("name")
    assert table["time_ratio"].to_dict() == {"published": 1.0, "ours": 0.25}
    peak = table["peak_mib"]["published"]
    assert table["memory_ratio"]["published"] == 1 or peak != peak or peak == 0


def test_the_command_writes_its_tables(tmp_path, tiny_folder, capsys):
    (tmp_path / "corpus.jsonl").write_text('{"id": "a", "text": "green sea"}\n{"id": "b", "text": "blue sky"}\n')
    call = ["--model", tiny_folder, "--out", str(tmp_path), "--repeats", "1", "--threads", "1"]
    assert latency.main([*call, "--corpus", str(tmp_path), "--parts", "corpus"]) == 0
    table = pd.read_csv(next((tmp_path / "data").glob("latency_*_corpus.csv")))
    assert table["documents"].tolist() == [2] and "documents" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        latency.main([*call, "--parts", "corpus"])
    assert "--corpus FOLDER" in capsys.readouterr().err


def test_method_steps_table():
    _, (model, _) = latency.training_runs(retriever()).values()
    runs = {name: (model, name) for name in latency.METHODS_TIMED}
    table = latency.training_table(runs, "latent", 1, batch=2, lengths=(6, 5, 9)).set_index("name")
    assert list(table.index) == ["basic", "latent", "lexical", "laser"]
    assert table.loc["latent", ["time_ratio", "memory_ratio"]].tolist() == [1.0, 1.0]
    assert (table["median"] <= table["p95"]).all()


def test_rewriting_is_timed_beside_thinking(monkeypatch):
    model = retriever()
    calls = {}
    monkeypatch.setattr(
        latency, "measure", lambda timed, *a, **k: calls.update(timed) or stopwatch.measure(timed, 1, 0)
    )
    table = latency.rewriting(model, words=(2, 5), batch=2, tokens=4).set_index("name")
    assert table["words"].to_dict() == {"thinking": 0, "rewrite 2": 2, "rewrite 5": 5}
    assert table.loc["thinking", "ratio"] == 1 and (table["median"] > 0).all()
    seen = []
    monkeypatch.setattr(
        latency, "latent_thinking", lambda b, ids, *a: seen.append(ids.shape) or latent_thinking(b, ids, *a)
    )
    for call in calls.values():
        call()
    assert seen == [(2, 4), (2, 6), (2, 9)], "what is written is read in one pass"
