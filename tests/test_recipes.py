"""The table of recipes and the readings of adaptive K, on tiny worlds."""

import dataclasses
import os
import subprocess
import sys

import pandas as pd
import pytest
import torch

from laser_lab.data.hopworld import HopWorld, HopWorldConfig
from laser_lab.lab import adaptive, recipes
from laser_lab.lab.cells import Cell, run
from laser_lab.lab.notebooks import FIGURES
from laser_lab.thinking import Thoughts

WORLD = dict(entities=12, relations=2, hops=(1, 2), dev=4, test=12, layers=1, hidden_size=16, heads=2, pretrain_steps=5)
SHORT = dict(max_steps=2, per_device_train_batch_size=4)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setenv("LASER_LAB_CACHE", str(tmp_path))
    groups = {
        "mixed": recipes.Group({"lexical": (3,)}, WORLD, SHORT, seeds=2),
        "mixed-others": recipes.Group({"latent": (2,), "basic": (1,), "rewrite": (1,)}, WORLD, SHORT, seeds=1),
    }
    monkeypatch.setattr(recipes, "GROUPS", groups)
    monkeypatch.setattr(adaptive, "GROUPS", groups)
    return tmp_path


def test_a_row_per_training_written_as_they_come(tiny, capsys):
    out = tiny / "recipes.csv"
    assert recipes.main([str(out), "--seeds", "0"]) == 0 and "nothing is done" in capsys.readouterr().out
    assert recipes.main([str(out), "--only", "mixed", "--seeds", "1", "--workers", "0"]) == 0
    assert len(pd.read_csv(out)) == 1
    assert recipes.main([str(out), "--workers", "0"]) == 0
    found = pd.read_csv(out)
    assert recipes.main([str(out), "--seeds", "0"]) == 0 and pd.read_csv(out).equals(found)
    assert found[["method", "thinking_steps", "seed"]].values.tolist() == [
        ["lexical", 3, 0],
        ["lexical", 3, 1],
        ["latent", 2, 0],
        ["basic", 1, 0],
        ["rewrite", 1, 0],
    ]
    assert (found["failed"] == (found["ndcg@10"] < 0.9)).all() and found["seconds"].min() > 0
    lexical = found[found["method"] == "lexical"]
    assert (lexical["document_steps"] == 1).all() and lexical["steps"].between(1, 3).all()
    assert found.set_index("method").loc["latent", "steps"] == 2, "without halting every step weighs"
    for depth in (1, 2):
        assert found[f"ndcg@10_depth{depth}"].between(0, 1).all()
    own = [row[f"at_{int(row['thinking_steps'])}"] for _, row in found.iterrows()]
    assert own == pytest.approx(found["ndcg@10"].tolist())
    assert found[["rewritten", "explicit"]].notna().all(axis=1).tolist() == [False] * 4 + [True]
    table = recipes.summary(found)
    assert table["seeds"].tolist() == [2, 1, 1, 1] and "failures" in capsys.readouterr().out
    cell = Cell("lexical", 0, 3, world=WORLD, settings=SHORT)
    frame = cell.frame()
    assert set(frame["depth"]) == {1, 2} and frame.loc[frame["depth"] == 1, "step2_names_bridge"].isna().all()


def test_rows_that_the_same_code_trained_elsewhere_stay(tiny, monkeypatch, tmp_path_factory):
    out = tiny / "recipes.csv"
    recipes.main([str(out), "--only", "mixed", "--seeds", "1", "--workers", "0"])
    monkeypatch.setenv("LASER_LAB_CACHE", str(tmp_path_factory.mktemp("another")))
    recipes.main([str(out), "--only", "mixed-others", "--workers", "0"])
    found = pd.read_csv(out)
    assert sorted(found["method"]) == ["basic", "latent", "lexical", "rewrite"], "that of the first machine is kept"
    recipes.main([str(out), "--only", "mixed-others", "--workers", "0"])
    assert len(pd.read_csv(out)) == 4, "and never twice"
    found.assign(code="of another version").to_csv(out, index=False)
    recipes.main([str(out), "--only", "mixed-others", "--workers", "0"])
    assert sorted(pd.read_csv(out)["method"]) == ["basic", "latent", "rewrite"], "one table, one version of the code"


def test_searches_try_one_setting_at_a_time_on_dev(tiny, monkeypatch):
    tried = {name: [cell for group in groups for cell in group.cells(1)] for name, groups in recipes.SEARCHES.items()}
    assert all(cell.split == "dev" for cells in tried.values() for cell in cells)
    assert len(tried["halting"]) == 9 and len(tried["rates"]) == 18 and len({cell.key for cell in tried["lame"]}) == 17
    assert {(cell.method, cell.steps) for cell in tried["rates"]} == {
        ("basic", 1), ("latent", 3), ("gircse", 2), ("gircse", 3), ("laser", 2), ("laser", 3)}  # fmt: skip
    searched = [cell for cell in tried["lame"] if cell.method == "lame"]
    assert all(len(cell.changes) + len(cell.settings) + (cell.steps != 3) <= 1 for cell in searched)
    small = recipes.trials(
        5, {"lexical": [{"lexical": 1.0}, {}], "latent-halting": [{"learning_rate": 1e-3, "thinking_steps": 2}]}, WORLD
    )
    small = [dataclasses.replace(group, settings=SHORT | group.settings) for group in small]
    monkeypatch.setattr(recipes, "SEARCHES", {"small": small})
    out = tiny / "search.csv"
    assert recipes.main([str(out), "--search", "small", "--seeds", "1", "--workers", "0"]) == 0
    found = pd.read_csv(out)
    assert found["method"].tolist() == ["lexical", "lexical", "latent-halting"]
    assert found["thinking_steps"].tolist() == [5, 5, 2]
    assert found["changed"].str.contains("lexical=1.0").sum() == 1
    assert found["changed"].str.contains("learning_rate=0.001").sum() == 1


def test_ways_of_reading_one_model(tiny):
    run(recipes.GROUPS["mixed"].cells(1), workers=0, show_progress_bar=False)
    (cell,) = recipes.GROUPS["mixed"].cells(1)
    frame = adaptive.readings(cell.load(), HopWorld(HopWorldConfig(**WORLD)))
    assert set(frame["reading"]) == {"halting", "random", "depth", "fixed 1", "fixed 2"}
    by = {name: some for name, some in frame.groupby("reading")}
    assert sorted(by["random"]["steps"]) == sorted(by["halting"]["steps"])
    assert (by["depth"]["steps"] == by["depth"]["depth"]).all() and (by["fixed 2"]["steps"] == 2).all()
    own = cell.frame().query("thinking_steps == 3").set_index("query_id")["ndcg@10"]
    assert by["halting"].set_index("query_id")["ndcg@10"].to_dict() == pytest.approx(own.to_dict(), abs=1e-6)
    spent = adaptive.times(cell.load(), HopWorld(HopWorldConfig(**WORLD)), repeats=2)
    assert len(spent) == 2 * 2 * 4 and (spent["ms"] > 0).all() and (spent["ms"] <= spent["p95"]).all()
    assert set(spent["reading"]) == {"halting", "fixed 1", "fixed 2", "fixed 3"}, "each depth, and the budget"
    table = adaptive.table([cell])
    assert set(table["depth"]) == {0, 1, 2} and len(table) == 5 * 3


def test_readings_need_a_training(tiny, capsys):
    with pytest.raises(SystemExit):
        adaptive.main([str(tiny / "adaptive.csv")])
    assert "laser_lab.lab.recipes first" in capsys.readouterr().err and not (tiny / "adaptive.csv").exists()


def test_each_text_stops_at_its_own_step():
    thoughts = Thoughts(["a", "b", "c"], torch.randn(3, 4, 8), torch.rand(3, 4))
    found = adaptive.stopped(thoughts, torch.tensor([1, 4, 2]))
    for row, k in enumerate((1, 4, 2)):
        torch.testing.assert_close(found[row], thoughts.embeddings_at(k)[row])


@pytest.mark.slow
def test_the_command_reaches_its_workers(tmp_path):
    """``python -m`` runs the module as __main__, where workers would look for its functions in vain."""
    env = os.environ | {"LASER_LAB_CACHE": str(tmp_path / "cache")}
    out = tmp_path / "recipes.csv"
    command = [sys.executable, "-m", "laser_lab.lab.recipes", str(out), "--only", "shorter", "--seeds", "1"]
    subprocess.run(command, check=True, env=env, capture_output=True, cwd=tmp_path)
    assert set(pd.read_csv(out)["method"]) == {"gircse", "laser"}


@pytest.mark.slow
@pytest.mark.parametrize("method, steps, group", [("lexical", 3, "easy"), ("basic", 1, "easy-published")])
def test_a_training_of_the_table_repeated_by_this_code(method, steps, group, tmp_path, monkeypatch):
    """A change that `lab/equal_code.json` calls equal is: from nothing, the table's number up to another processor's
    rounding."""
    monkeypatch.setenv("LASER_LAB_CACHE", str(tmp_path))
    (cell,) = [c for c in recipes.GROUPS[group].cells(1) if (c.method, c.steps) == (method, steps)]
    cell.run()
    table = pd.read_csv(FIGURES / "data" / "recipes.csv")
    there = table[(table["group"] == group) & (table["method"] == method) & (table["thinking_steps"] == steps)]
    own = there[there["seed"] == cell.seed].iloc[0]
    frame = cell.frame()
    assert frame[frame["thinking_steps"] == steps]["ndcg@10"].mean() == pytest.approx(own["ndcg@10"], abs=0.01)
