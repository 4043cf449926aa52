"""The stopwatch, and the loops that it compares. Times themselves are in the benchmark's own table."""

import time

import pandas as pd
import psutil
import pytest
import torch
from conftest import FAMILIES, tiny_backbone
from test_thinking import batch

from laser_lab.base import kernels
from laser_lab.encoder import LatentEncoder, LatentRetriever
from laser_lab.lab import costs, latency, loops, machine, stopwatch
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
        published = loops.published_thinking(backbone, ids, mask, steps)
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


def timed(monkeypatch, seconds):
    """A stopwatch that reads `seconds` of a loop's name on PyTorch's layers, and half of them on ours."""
    spent = {f"{name} stock float32": s for name, s in seconds.items()}
    spent |= {f"{name} ours float32": s / 2 for name, s in seconds.items()}
    monkeypatch.setattr(loops, "measure", clock(spent))


def test_benchmark_table_and_figure(monkeypatch):
    seconds = {"published": 6.0, "ours": 2.0, "basic": 1.0}
    timed(monkeypatch, seconds | {"fixed budget": 4.0, "ends by depth": 3.0, "ends at once": 1.5})
    table = loops.benchmark({"float32": tiny_backbone("gemma3")}, shapes=[(4, 4), (2, 8)])
    named = ["published", "ours", "basic"] * 2
    assert list(table["name"]) == named + ["fixed budget", "ends by depth", "ends at once"] + named
    first = table[table["tokens"] == 4].set_index(["layers", "name"])
    assert first["thinking_steps"].tolist() == [3, 3, 1, 3, 3, 1, 4, 4, 4]
    assert first.loc["stock", "gain"].tolist() == [1.0, 3.0, 6.0], "against the published loop on PyTorch's layers"
    assert first.loc["ours", "gain"].tolist() == [2.0, 6.0, 12.0, 3.0, 4.0, 8.0]
    assert first.loc["ours", "passes"].tolist() == [6.0, 2.0, 1.0, 4.0, 3.0, 1.5], "against a pass on the same layers"
    assert (first["gain_low"] == first["gain"]).all(), "within rounds, though the machine slows down"
    assert first.loc[("stock", "ours"), ["median", "p95"]].tolist() == pytest.approx([3.0, 3.9])

    spent = {str(k): 0.5 + 0.25 * k for k in (1, 2, 3)} | {"forward": 0.1, "reading": 0.025, "every K": 2.5}
    monkeypatch.setattr(loops, "measure", clock(spent))
    line, price = loops.sweep(tiny_backbone(), steps=(1, 2, 3), shape=(2, 4))
    assert list(line["thinking_steps"]) == [1, 2, 3] and set(line["name"]) == {"sweep"}
    price = price.iloc[0]
    assert price["step"] == pytest.approx(1.5 * 0.25) and price["sweep"] == pytest.approx(2.5 / 1.25)
    assert price["ratio"] == pytest.approx(0.25 / 0.125)
    fig = latency_figure(pd.concat([table, line]))
    assert [text.get_text() for text in fig.axes[0].get_xticklabels()] == ["4 × 4 tokens", "2 × 8 tokens"]
    assert [text.get_text() for text in fig.axes[0].texts] == ["6.0×", "6.0×"]


def test_spread_is_of_the_ratios_within_rounds():
    rows = [
        {"repeat": r, "name": n, "seconds": s} for r in range(11) for n, s in (("slow", 2.0 * (10 + r)), ("fast", 10))
    ]
    middle, low, high = stopwatch.spread(pd.DataFrame(rows), "slow", "fast")
    assert (middle, low, high) == pytest.approx((3.0, 2.2, 3.8))


def test_all_that_is_timed_computes_the_same():
    backbone = tiny_backbone()
    own, other = (loops.loops(b, batch=2, tokens=5, thinking_steps=3) for b in (backbone, loops.stock(backbone)))
    states = own["ours"]()
    assert states.shape[:2] == (2, 3)
    for call in (own["published"], other["published"], other["ours"]):
        torch.testing.assert_close(call(), states, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(own["basic"](), states[:, :1], atol=1e-5, rtol=1e-5)


def test_thoughts_that_end_leave_the_batch_at_their_depth():
    backbone, seen = tiny_backbone(), []
    real = type(backbone).last_states
    calls = loops.halting(backbone, batch=5, tokens=4, depths=(1, 2, 3))
    full = calls["fixed budget"]()

    def counted(self, embeds, *of):
        seen.append(len(embeds))
        return real(self, embeds, *of)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(backbone), "last_states", counted)
        for _ in range(2):  # a second call starts anew
            seen.clear()
            states = calls["ends by depth"]()
            assert seen == [5, 3, 1], "depths 1, 1, 2, 2, 3"
        calls["ends at once"]()
    assert seen == [5, 3, 1, 5]
    for row, depth in enumerate((1, 1, 2, 2, 3)):
        torch.testing.assert_close(states[row, :depth], full[row, :depth], atol=1e-5, rtol=1e-4)
        assert not states[row, depth:].any()


def test_the_record_says_what_machine_it_was(monkeypatch):
    for name in machine.IMITATING:
        monkeypatch.delenv(name, raising=False)
    here = machine.machine()
    assert here["threads"] == torch.get_num_threads() and here["torch"] == torch.__version__
    assert here["machine"] and here["machine"] == here["machine"].lower() and " " not in here["machine"]
    assert here["products"] == ("oneDNN" if kernels.PREFERRED else "PyTorch")
    assert machine.machine(label="lab")["machine"] == "lab"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    lesser = machine.machine()
    assert lesser["imitated"] == "ONEDNN_MAX_CPU_ISA=AVX2" and lesser["machine"] == f"{here['machine']}-imitated"


def test_a_busy_core_is_seen_and_freed():
    before = psutil.Process().children()  # of other tests: a pool's resource tracker stays
    with stopwatch.busy_core():
        busy = set(psutil.Process().children()) - set(before)
    assert busy and not set(psutil.Process().children()) & busy


def retriever():
    encoder = LatentEncoder(tiny_backbone())
    return LatentRetriever(modules=[encoder], device="cpu", prompts={"query": "", "document": ""})


def test_the_published_retriever_has_the_same_weights_and_embeddings():
    model = retriever()
    comparator = costs.published_loop(model)
    texts = ["why is the sky blue", "green sea"]
    torch.testing.assert_close(
        comparator.encode(texts, convert_to_tensor=True), model.encode(texts, convert_to_tensor=True)
    )
    own, other = model.encoder.backbone, comparator.encoder.backbone
    assert all(a is b for a, b in zip(own.parameters(), other.parameters(), strict=True))
    assert not any(type(module) is kernels.Linear for module in other.model.modules())
    assert any(type(module) is kernels.Linear for module in own.model.modules())


def test_corpus_table(monkeypatch):
    monkeypatch.setattr(costs, "measure", clock({"published": 3.0, "ours": 1.0}))
    row = costs.corpus(retriever(), ["why is the sky blue", "green", "sea and snow"] * 8, sample=6).iloc[0]
    assert row["documents"] == 24 and row["ratio"] == 3
    assert (row["published"], row["ours"]) == (6 / 4.5, 6 / 1.5), "documents per second, of the median round"
    assert row["peak_all"] != row["peak_all"] or 0.5 < row["growth"] < 2


def test_training_step_of_both_loops_has_the_same_gradients():
    gradients, steps = (
        [],
        costs.training_steps(costs.training_runs(model := retriever()), batch=2, lengths=(6, 5, 9)),
    )
    for step in steps.values():
        step()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert list(steps) == ["published", "ours"]
    assert len(gradients[0]) > 1000 and gradients[0].norm() > 0
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[1].norm()


def test_training_step_table(monkeypatch):
    monkeypatch.setattr(costs, "measure", clock({"published": 4.0, "ours": 1.0}))
    runs = costs.training_runs(retriever())
    table = costs.training_table(runs, "published", 3, batch=2, lengths=(6, 5, 9)).set_index("name")
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
    with pytest.raises(SystemExit):
        latency.main(["--model", "random", "--parts", "training"])
    assert "only loops and price" in capsys.readouterr().err


def test_a_run_cut_into_shapes_is_one_record(tmp_path, tiny_folder, capsys):
    """One file for a machine: a later shape joins it, the same shape again replaces its rows."""
    call = ["--model", tiny_folder, "--out", str(tmp_path), "--repeats", "1", "--threads", "1", "--machine", "lab"]
    call += ["--parts", "loops", "--dtypes", "float32", "--shapes"]
    for shapes in (["4x4"], ["2x3", "4x4"]):
        assert latency.main([*call, *shapes]) == 0
    table = pd.read_csv(next((tmp_path / "data").glob("latency_*_lab.csv")))
    assert table.groupby(["batch", "tokens"]).size().to_dict() == {(2, 3): 9, (4, 4): 6}
    assert set(table["machine"]) == {"lab"} and table["processor"].notna().all()
    assert "processor: " in capsys.readouterr().out


def test_method_steps_table():
    _, (model, _) = costs.training_runs(retriever()).values()
    runs = {name: (model, name) for name in costs.METHODS_TIMED}
    table = costs.training_table(runs, "latent", 1, batch=2, lengths=(6, 5, 9)).set_index("name")
    assert list(table.index) == ["basic", "latent", "lexical", "laser"]
    assert table.loc["latent", ["time_ratio", "memory_ratio"]].tolist() == [1.0, 1.0]
    assert (table["median"] <= table["p95"]).all()


def test_rewriting_is_timed_beside_thinking(monkeypatch):
    model = retriever()
    calls = {}
    monkeypatch.setattr(costs, "measure", lambda timed, *a, **k: calls.update(timed) or stopwatch.measure(timed, 1, 0))
    table = costs.rewriting(model, words=(2, 5), batch=2, tokens=4).set_index("name")
    assert table["words"].to_dict() == {"thinking": 0, "rewrite 2": 2, "rewrite 5": 5}
    assert table.loc["thinking", "ratio"] == 1 and (table["median"] > 0).all()
    seen = []
    monkeypatch.setattr(
        costs, "latent_thinking", lambda b, ids, *a: seen.append(ids.shape) or latent_thinking(b, ids, *a)
    )
    for call in calls.values():
        call()
    assert seen == [(2, 4), (2, 6), (2, 9)], "what is written is read in one pass"
