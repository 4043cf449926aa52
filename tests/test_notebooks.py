"""Every notebook runs from its parameters, on a tiny model, and is committed whole and clean."""

import json
import os
import re
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import mteb
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import WORDS
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from mteb_tasks import as_mteb_task
from PIL import Image
from traitlets.config import Config

import laser_lab as ll
from laser_lab.data.readers import mini
from laser_lab.lab import cells, notebooks
from laser_lab.lab.claims import CLAIMS, claims
from laser_lab.lab.language import read_table
from laser_lab.training.run import add_lora

NOTEBOOKS = sorted(notebooks.FOLDER.glob("[0-9]*.ipynb"))
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
TINY_WORLD = dict(entities=12, relations=2, hops=2, dev=4, test=8, layers=1, hidden_size=16, heads=2, pretrain_steps=5)
TINY_GRID = dict(SEEDS=[0], STEPS=2, BATCH=8, WORLD=TINY_WORLD)
TINY_LAME = dict(THINKING_STEPS=2, REASON_TOKENS=4, SWEEP=[1, 4], TOKENS=16, REPEATS=2)
TINY = {
    "00_start_here": dict(STEPS=2, BATCH=8, THINKING_STEPS=2, WORLD=TINY_WORLD),
    "01_quickstart": dict(QUERIES=4, ADAPTER=None),
    "02_decode_thoughts": dict(QUERIES=4, THINKING_STEPS=3, ADAPTER=None),
    "03_train_laser": dict(SEEDS=[0], STEPS=4, BATCH=8, THINKING_STEPS=2, SHOWN=1, WORLD=TINY_WORLD),
    "04_ablate_k": TINY_GRID | dict(TRAIN_STEPS=[1, 2]),
    "05_ablate_losses": TINY_GRID | dict(THINKING_STEPS=2, PARTS=notebooks.PRESETS["full"]["PARTS"]),
    "06_latency_utility": TINY_GRID
    | dict(ROWS={"basic": 1, "latent": 3, "gircse": 3, "laser": 3, "lexical": 3, "rewrite": 1}, OTHERS={}),
    "07_rewrite_gain": TINY_GRID | dict(METHODS={"basic": 1, "laser": 2}),
    "08_scale": TINY_GRID | dict(SIZES=[[1, 16], [1, 24]], METHODS={"basic": 1, "laser": 2}),
    "09_latent_vocabulary": TINY_GRID | dict(THINKING_STEPS=2, METHODS=["laser"], ALONE=["latent"]),
    "10_latent_geometry": TINY_GRID | dict(THINKING_STEPS=2, SHOWN=6),
    "11_real_language": {},  # and what `tiny_sets` says
    "12_inside_a_thought": TINY_GRID | dict(THINKING_STEPS=2, PROBE_TEXTS=20, QUESTIONS=4, MODEL_STEPS=2),
    "13_explorer": dict(
        STEPS=2, BATCH=8, THINKING_STEPS=2, EXPORTED=1, TIMED=2, WORLD=TINY_WORLD, ADAPTER=None, LENS_STEPS=1
    ),
    "14_lame": TINY_GRID | TINY_LAME | dict(WORLDS=[TINY_WORLD | {"hops": 1}, TINY_WORLD]),
    "15_published_checkpoints": dict(SUBSET="", MAX_LENGTH=64, TEMPLATE=""),
    "16_halting_and_words": {},  # it reads committed tables
    "17_your_own_data": dict(STEPS=2, BATCH=2, THINKING_STEPS=2, SHOWN=1),
}


def tiny_sets(tiny_bank, stock_folder, folder):
    """The parameters of two sets: one with all that the claims need and a SentenceTransformer as it is, and one that
    lacks rows, seeds and trials."""
    config = json.loads(Path(tiny_bank["CONFIG"]).read_text())
    rows = [{"system": name} for name in ("bm25", "bm25-reasoning", "zero-shot")]
    taught = [{"system": "lexical"}, {"system": "lexical", "thinking_steps": 1}]
    few = config | {"rows": [*rows[:1], rows[2], {"system": "basic"}, taught[0]], "search": {"learning_rate": 1e-3}}
    rows += [{"system": "basic", "seeds": [0, 1]}, {"system": "latent", "search": {"temperature": [0.02, 0.05]}}]
    rows += [row | {"seeds": [0, 1]} for row in taught] + [{"system": "explicit", "of": "lexical"}]
    rows.append({"system": "st", "model": stock_folder})
    whole = config | {"rows": rows, "search": {"learning_rate": 1e-3}}
    folder.mkdir()
    for name, content in (("entailment_bank", whole), ("strategyqa", few)):
        (folder / f"{name}.yaml").write_text(json.dumps(content))  # JSON is YAML
    data = dict.fromkeys(("EntailmentBank", "StrategyQA"), tiny_bank["DATA"])
    return {"DATA": data, "CONFIGS": str(folder), "RECORDS": str(folder)}


def tiny_adapter(base, folder):
    """An adapter without any training on a tiny model, as a folder."""
    model = ll.load(base, device="cpu")
    add_lora(model, {"r": 2})
    model.save_pretrained(str(folder), create_model_card=False)
    return str(folder)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_with_outputs_and_clean(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0].metadata.get("tags") == ["parameters"]
    assert all(cell.execution_count for cell in code), "executed from top to bottom"
    counts = [cell.execution_count for cell in code]
    assert counts == sorted(counts)
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    assert not [o for cell in code for o in cell.outputs if notebooks._is_bar(o)], "no progress bar"
    assert not re.search(r"/(work|root|home|tmp)/", path.read_text()), "no path of the machine it ran on"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_asks_shows_and_concludes(path):
    """Prose, one cell of parameters that nothing overwrites, and at the end what was seen, printed, and what to try."""
    cells = nbformat.read(path, as_version=4).cells
    prose = " ".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert len(re.findall(r"\w+", re.sub(r"`[^`]*`|https?://\S+", "", prose))) >= 100
    assert cells[0].source.startswith("# ") and "?" in cells[0].source
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1
    assert not any("injected-parameters" in cell.metadata.get("tags", []) for cell in cells)
    assert cells[-1].cell_type == "markdown" and cells[-1].source.startswith("## Try")
    assert len(re.findall("^- ", cells[-1].source, re.M)) >= 2
    seen = [cell.source.startswith("## What we saw") for cell in cells].index(True)
    assert seen < len(cells) - 2 and {cell.cell_type for cell in cells[seen + 1 : -1]} == {"code"}


QUICK = (
    "00_start_here",
    "01_quickstart",
    "02_decode_thoughts",
    "05_ablate_losses",
    "06_latency_utility",
    "07_rewrite_gain",
    "13_explorer",
    "15_published_checkpoints",
    "16_halting_and_words",
    "17_your_own_data",
)
"""Run by `make test`; the others by `make slow`."""


class Ran:
    """A notebook run in this process: what it printed, its names, and the figures folder that it wrote."""

    def __init__(self, path, parameters, scratch):
        config = Config(HistoryManager={"enabled": False})
        shell = InteractiveShell(config=config, ipython_dir=str(scratch / "ipython"))
        self.figures, self.text, self.names = Path(parameters["FIGURES"]), "", shell.user_ns
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type != "code" or "injected-parameters" in cell.metadata.get("tags", []):
                continue
            source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
            with capture_output() as out:
                shell.run_cell(source).raise_error()
            self.text += out.stdout
            if "parameters" in cell.metadata.get("tags", []):
                self.names |= {name: value for name, value in parameters.items() if name in self.names}

    def data(self, name):
        return pd.read_csv(self.figures / "data" / f"{name}.csv")


def checked_01(ran):
    measured, k = ran.names["measured"], ran.names["THINKING_STEPS"]
    gain = measured[k].mean() - measured[1].mean()
    clause = rf"Thinking \(K={k}\) is (better than|worse than|not clearly different from) the same model"
    assert re.search(clause, ran.text)
    assert f"the same model read after one step: difference in nDCG@10 {gain:+.3f}" in ran.text
    assert ran.data("01_quality")["ndcg@10"].tolist()[1:] == pytest.approx([measured[1].mean(), measured[k].mean()])


def checked_02(ran):
    apart = [float(number) for number in re.findall(r"largest difference between the two embeddings (\S+)", ran.text)]
    assert len(apart) == 3 and max(apart) < 1e-5, "a rollout read at K is a rollout of K"
    measured = ran.names["measured"]
    best = max(measured, key=lambda k: measured[k].mean())
    assert f"Highest nDCG@10: {measured[best].mean():.3f} at K={best};" in ran.text
    gain = measured[3].mean() - measured[1].mean()
    assert re.search(rf"(better|worse|not clearly different): .*K=3 \({re.escape(f'{gain:+.3f}')} ", ran.text)
    assert ran.data("02_thoughts_trained")["panel"].nunique() == 4, "two questions by a rule, before and after"
    assert "No adapter was named: before and after are the same model." in ran.text
    tokens = ran.data("02_effective_tokens")["effective number of tokens"]
    assert tokens.between(1, len(WORDS) + 4).all()


def said_of(row, better, worse):
    """What a row of `compare` allows to say."""
    sign = 0 if row["p_adjusted"] >= 0.05 or row["low"] <= 0 <= row["high"] else row["difference"]
    return "not clearly different" if not sign else worse if sign < 0 else better


def saved_tests(ran, number, shown):
    """The paired tests that a notebook saved for the claims are those that it prints."""
    saved = ran.data(f"{number}_tests")
    assert saved["difference"].tolist() == pytest.approx(shown["difference"].tolist(), rel=1e-4, abs=1e-5)
    assert saved["first"].astype(str).tolist() == shown["first"].astype(str).tolist()
    return saved


def checked_05(ran):
    means = ran.names["results"].groupby("method")["ndcg@10"].mean()
    shown = ran.data("05_losses").groupby("method")["ndcg@10"].mean()
    assert shown.to_dict() == pytest.approx(means.to_dict(), rel=1e-5) and len(shown) == 8
    tests = ran.names["tests"].set_index("first")
    assert set(tests["second"]) == {"laser"} and len(tests) == 7
    for method, row in tests.iterrows():
        assert row["difference"] == pytest.approx(means[method] - means["laser"])
        line = re.search(rf"^{method} +{re.escape(f'{row.difference:+.3f}')} .*  (.+)$", ran.text, re.M)[1]
        assert line == said_of(row, "better than laser", "worse than laser")
    parts = [m for m in tests.index if m.startswith("laser-no") or m == "latent"]
    lost = sum(said_of(tests.loc[m], "", "worse") == "worse" for m in parts)
    assert f"1. LaSER has {means['laser']:.3f} [" in ran.text and f"lowers it for {lost} of the 5 parts" in ran.text
    saved_tests(ran, "05", ran.names["tests"])
    gain = means["laser"] - means["basic"]
    learned = said_of(tests.loc["basic"], "", "worse") == "worse" and gain >= 0.1
    assert ("this world cannot answer it" in ran.text) == (not learned)
    assert ("this contradicts it" in ran.text) == (learned and lost < 5)
    easy = ran.data("05_easy")
    assert {"laser", "laser without co-learning", "laser without explicit view", "basic"} <= set(easy["label"])
    for label, some in easy.groupby("label"):
        assert (
            f"{label} {(some['ndcg@10'] < 0.9).sum()} of {len(some)} failed, mean {some['ndcg@10'].mean():.3f}"
            in ran.text
        )


def checked_06(ran):
    points = ran.data("06_frontier")
    ours, paper = (points[points["where"].str.startswith(name)] for name in ("measured", "published"))
    assert len(ours) == 6 and len(paper) == 9 and ours["pareto"].any() and set(ours["seeds"].dropna()) >= {1}
    for point in ours.itertuples():
        beaten = (ours["milliseconds"] <= point.milliseconds) & (ours["low"] > point.high)
        assert not (point.pareto and beaten.any())
    cost, sweep = ours.set_index("method")["milliseconds"], pd.read_csv(notebooks.FIGURES / "data" / "latency.csv")
    per_query = 125 * sweep[sweep["name"] == "sweep"].groupby("thinking_steps")["median"].first()
    assert cost["basic"] == pytest.approx(per_query[1], rel=1e-4) and cost["rewrite"] > cost["laser"]
    assert cost["gircse"] == pytest.approx(per_query[4], rel=1e-4), "K+1 calls"
    front = ours[ours["pareto"]].sort_values("milliseconds")["method"]
    assert f"1. On the front are {', '.join(front)}: " in ran.text
    tests, means = saved_tests(ran, "06", ran.names["tests"]), ours.set_index("method")["ndcg@10"]
    assert tests["first"].tolist() == ["laser", "lexical"]
    for _, gain in tests.iterrows():
        assert gain["difference"] == pytest.approx(means[gain["first"]] - means["basic"], abs=1e-5)
        share = gain["difference"] / (means["rewrite"] - means["basic"])
        pays = said_of(gain, "better", "worse") == "better" and 0.5 < share
        line = next(line for line in ran.text.splitlines() if f". {gain['first']} is " in line)
        assert ("thinking pays" in line) == pays and ("does not pay" in line) == (not pays)


def checked_07(ran):
    quality = ran.data("07_rewrite_gain").set_index(["method", "input"])["ndcg@10"]
    gains = ran.names["gains"].set_index(["method", "first"])["difference"]
    for (method, given), gain in gains.items():
        assert gain == pytest.approx(quality[method, given] - quality[method, "query alone"], abs=1e-5)
        assert f"{method:8s} {given:24s} gain {gain:+.3f}" in ran.text
    for given in ("with written reasoning", "explicit view"):
        found = gains.xs(given, level="first")
        said = (
            f"the largest gain is {found.idxmax()}'s" if found.max() > 0 else f"no method gains, {found.idxmax()} loses"
        )
        assert f"{given}: {said}" in ran.text
    alone = quality.xs("query alone", level="input")
    saved = ran.data("07_tests").set_index(["of", "first"])
    apart = saved.loc[("with written reasoning", "laser")]
    assert apart["difference"] == pytest.approx(
        gains["laser", "with written reasoning"] - gains["basic", "with written reasoning"], abs=1e-5
    )
    assert len(saved) == 2 * 3 + 3
    never = [m for m in dict.fromkeys(gains.index.get_level_values("method")) if not ll.METHODS[m].needs_explicit]
    assert never and f"{' and '.join(never)} saw no reasoning in their input in training." in ran.text
    assert f"3. From the query alone: basic {alone['basic']:.3f}, laser {alone['laser']:.3f}" in ran.text


def checked_13(ran):
    frame, marks = ran.data("13_changed_thought"), ran.names["ranks"]
    assert set(marks.index) == {"true answer", "end of the changed path"} and frame["rank"].min() == 1
    own = ran.names["results"]["ndcg@10"].mean()
    assert f"nDCG@10 {own:.3f} on" in ran.text
    for name in ("13_explorer", "13_explorer_language"):
        assert f"{name}.html: " in ran.text and "<script" in (ran.figures / f"{name}.html").read_text()


def checked_16(ran):
    table = pd.read_csv(notebooks.FIGURES / "data" / "recipes.csv")
    easy = table[table["group"].isin(["easy", "easy-published"])]
    own = easy.loc[easy["method"] == "lexical", "ndcg@10"]
    assert f"Of {len(own)} `lexical` trainings at K = 3, 5 and 8, {(own < 0.9).mean():.0%} failed" in ran.text
    wordy = table[(table["group"] == "wordy") & (table["thinking_steps"] == 3)]
    assert f"At five tokens per hop `lexical` has {wordy['ndcg@10'].mean():.3f}" in ran.text
    ways = pd.read_csv(notebooks.FIGURES / "data" / "adaptive.csv")
    halting = ways[(ways["reading"] == "halting") & (ways["depth"] == 0)]
    assert f"takes {halting['steps'].mean():.2f} steps on average and has {halting['ndcg@10'].mean():.3f}" in ran.text
    failing = easy[(easy["ndcg@10"] < 0.9) & ~easy["method"].isin(["basic", "lexical"])]
    for (method, k), part in failing.groupby(["method", "thinking_steps"]):
        whole = easy[(easy["method"] == method) & (easy["thinking_steps"] == k)]
        assert f"`{method}` at K={k} ({len(part)} of {len(whole)})" in ran.text
    seeds = easy.query("thinking_steps == 3").groupby("method")["seed"].agg(set)
    few = len(seeds["laser"] & seeds["laser-released"]) < 3
    assert few == ("nothing can be said of the difference" in ran.text.partition("documents that think")[0])
    brackets = ran.data("16_depth").query("seeds < 5")
    own = ways[ways["reading"] == "halting"].groupby("depth")["ndcg@10"]
    shown = brackets[brackets["reading"] == "halting"].set_index("depth")
    assert shown["low"].tolist() == pytest.approx(own.min().loc[shown.index].tolist(), abs=1e-5), "the lowest seed"


def checked_03(ran):
    quality = ran.data("03_quality")
    own = quality[quality["train_steps"] == quality["thinking_steps"]].set_index("method")
    for method, row in own.iterrows():
        assert f"{method} {row['ndcg@10']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" in ran.text
    for _, row in ran.names["tests"].iterrows():
        assert f"{row['first']} {row['difference']:+.3f} [" in ran.text and row["second"] == "basic"
        assert f"], {said_of(row, 'better', 'worse')}" in ran.text
    saved_tests(ran, "03", ran.names["tests"])
    named = ran.names["named"]
    assert named.index[-1] == "untrained" and f"untrained {named.loc['untrained'].iloc[:2].mean():.0%}, " in ran.text
    assert "5. So training teaches " in ran.text
    losses = ran.data("03_losses").groupby("method")
    terms = {"basic": {"contrastive"}, "gircse": {"stepwise", "monotonicity"}, "lexical": {"contrastive", "lexical"}}
    terms["laser"] = {"contrastive", "explicit", "output", "trajectory"}
    assert losses["term"].agg(set).to_dict() == terms and set(losses["step"].max()) == {4}


def checked_04(ran):
    at = ran.data("04_train_by_inference").set_index(["method", "train_steps", "thinking_steps"])
    recipes = pd.read_csv(notebooks.FIGURES / "data" / "recipes.csv")
    own = recipes[(recipes["group"] == "easy") & (recipes["method"] == "lexical") & (recipes["thinking_steps"] == 3)]
    assert at.loc[("lexical", 3, 8), "ndcg@10"] == pytest.approx(own["at_8"].mean(), rel=1e-5)
    for method in at.index.levels[0]:
        first, last = at.loc[(method, 3, 3)], at.loc[(method, 3, 8)]
        assert f"{method}, trained at K=3, has {first['ndcg@10']:.3f} [" in ran.text
        assert f"{last['low']:.3f}, {last['high']:.3f}] at K=8" in ran.text
    worked = recipes[(recipes["group"] == "easy-published") & (recipes["thinking_steps"] == 3) & ~recipes["failed"]]
    worked = worked[worked["method"].isin(["laser", "latent"])]
    falls = worked["at_8"] - worked["ndcg@10"]
    assert ("this contradicts Fig. 5" in ran.text) == (len(falls) > 0 and bool((falls < -0.02).all()))
    saved_tests(ran, "04", ran.names["tests"])
    low = sum(some < 0.9 for some in ran.names["own"].query("train_steps == 2").groupby("seed")["ndcg@10"].mean())
    assert f"K=2 {low} of 1." in ran.text and ("says nothing about how many thoughts" in ran.text) == (low > 0)
    trained = ran.data("04_trained_k").set_index("train_steps")["ndcg@10"]
    assert f"3. laser against itself with K=2: K=1 {trained[1] - trained[2]:+.3f} [" in ran.text


def checked_08(ran):
    sizes = ran.data("08_size").set_index(["method", "thousand parameters"])
    few, many = sizes.index.levels[1]
    for method in ("basic", "laser"):
        first, last = sizes.loc[(method, few)], sizes.loc[(method, many)]
        assert re.search(rf"{method} {first['ndcg@10']:.3f} \[.*?\] to {last['ndcg@10']:.3f} \[", ran.text)
    better = sum(said_of(tests.loc["laser"], "better", "") == "better" for tests in ran.names["gains"].values())
    assert f"laser is clearly above one pass in {better} of 2 sizes" in ran.text
    saved = ran.data("08_tests")
    assert set(saved["size"]) == {"1 x 16", "1 x 24"} and set(saved["first"]) == {"laser"}
    assert "With one training each" in ran.text and "seeds of recipes.csv, in the usual size, basic has " in ran.text


def checked_09(ran):
    named = ran.data("09_bridges")
    own = named[named["step"] == named["bridge"]].groupby("method")["share of queries"].mean()
    for method in ("untrained", "laser", "latent"):
        assert f"{method} {own[method]:.3f} [" in ran.text
    kept = ran.data("09_tests").set_index(["first", "second"]).loc["laser", "latent"]
    assert kept["difference"] == pytest.approx(own["laser"] - own["latent"], abs=1e-5)
    assert ("3. Not tested here" in ran.text) == (own["untrained"] <= 0.5), "what was not there cannot be lost"
    assert f"(laser minus latent {kept['difference']:+.3f} [" in ran.text
    tokens = ran.data("09_effective_tokens").set_index(["method", "step"])["effective number of tokens"]
    assert (tokens >= 1).all() and f"latent {tokens['latent', 1]:.2f}, {tokens['latent', 2]:.2f}" in ran.text
    wider = ran.names["wider"].set_index("first").loc["latent", "difference"]
    ratio = (tokens["latent"] / tokens["untrained"]).prod() ** 0.5
    assert np.exp(wider) == pytest.approx(ratio, rel=1e-4), "geometric means, over two steps"


def checked_10(ran):
    margins = ran.data("10_margin").set_index(["method", "step"])["cosine margin"]
    for method in ("lexical", "laser"):
        first, last = margins[method, 1], margins[method, 2]
        assert re.search(rf"{method}: margin {first:.3f} \[.*?\] after step 1 and {last:.3f} \[", ran.text)
        assert f"({last - first:+.3f} [" in ran.text
    near = ran.names["near"]["cosine"]
    for method in ("lexical", "laser"):
        same, other = near[method, "same step"], near[method, "other steps"]
        assert f"{method}: mean cosine {same:.3f} [" in ran.text and f" {other:.3f} [" in ran.text
        assert f"({same - other:+.3f} [" in ran.text
    paths = ran.data("10_by_hop")
    assert len(paths) == 2 * (6 * 2 + TINY_WORLD["entities"]), "two projections of six paths and all documents"
    assert set(paths.loc[paths["step"] > 0, "document"]) <= set(paths.loc[paths["step"] == 0, "text"])


def checked_11(ran):
    """Every number that the conclusions rest on is computed again from the records that the run wrote."""
    stems = {"EntailmentBank": "entailment_bank", "StrategyQA": "strategyqa"}

    def read(name, kind):
        return read_table(Path(ran.names["RECORDS"]) / f"{stems[name]}_{kind}.csv")

    def mean(frame, **which):
        for column, value in which.items():
            frame = frame[frame[column] == value]
        return frame.groupby(["seed", "query_id"]).mean(numeric_only=True).mean()

    for count in (13, 4):
        assert f"{count} of the {count} rows that the configuration asks for are done." in ran.text
    tests, changed, expanded = (ran.names[name] for name in ("tests", "changed", "expanded"))
    claims = ran.names["claims"].set_index(["data", "claim"])
    for name in stems:
        own = read(name, "per_query").query("thinking_steps == train_steps")
        words = read(name, "words").query("step == train_steps and train_steps == 3 and system == 'lexical'")
        worth, bm25 = (read(name, kind).query("system == 'lexical' and train_steps == 3") for kind in ("worth", "bm25"))
        at = {"lexical": mean(own, system="lexical", train_steps=3), "basic": mean(own, system="basic")}
        above = tests.set_index(["data", "first", "second"]).loc[(name, "lexical", "basic"), "difference"]
        assert above == pytest.approx(at["lexical"]["ndcg@10"] - at["basic"]["ndcg@10"], abs=1e-4)
        for part, by, first, second in (
            (worth, "condition", "knocked out", "as they are"),
            (worth, "condition", "mean of its words", "as they are"),
            (bm25, "ranking", "bm25 + thoughts", "bm25"),
            (bm25, "ranking", "dense & bm25 + thoughts", "dense"),
        ):
            table = changed if by == "condition" else expanded
            shown = {"knocked out": "no thoughts"}.get(first, first)
            row = table[(table["data"] == name) & (table["method"] == "lexical") & (table["first"] == shown)]
            row = row[row["second"] == second].iloc[0]
            expected = mean(part, **{by: first})["ndcg@10"] - mean(part, **{by: second})["ndcg@10"]
            assert row["difference"] == pytest.approx(expected, abs=1e-4) and row["low"] <= expected + 1e-4
        dev = mean(words, questions="dev")
        share = claims.loc[(name, "the thoughts hold the reasoning's new words")]
        assert share["measured"].startswith(f"{dev['own_so_far']:.0%} [")
        assert share["met"] == ("yes" if dev["own_so_far"] >= 0.35 else "no")
        times = claims.loc[(name, "the thoughts hold so many times the share of another question's"), "measured"]
        assert times.startswith(f"{dev['own_so_far'] / dev['others_so_far']:.1f} times")
        row = claims.loc[(name, "`lexical` above `basic`")]
        test = tests.set_index(["data", "first", "second"]).loc[(name, "lexical", "basic")]
        target = {"EntailmentBank": 0.03, "StrategyQA": 0.02}[name]
        met = above >= target and said_of(test, "better", "worse") == "better"
        assert row["target"] == f"+{target}" and row["met"] == ("yes" if met else "no")
    stock = tests.set_index(["data", "first", "second"]).loc[("EntailmentBank", "lexical", "st:stock")]
    assert stock["seeds"] == 2, "what was not trained stands against every seed"
    assert ran.names["cost"].query("method == 'st:stock'")["device"].tolist() == ["cpu"]
    bars = ran.names["bars"].set_index(["data", "label"])["single"]
    assert not bars["EntailmentBank", "st:stock"] and bars["EntailmentBank", "latent"]
    alone = ("StrategyQA", "three thoughts above the same words in one pass (`lexical K=1`)")
    assert claims.loc[alone, "met"] == "?" and "beyond the same words taught in one pass? not known" in ran.text
    decides = tests.set_index(["data", "first", "second"]).loc[("EntailmentBank", "lexical", "lexical K=1")]
    clear = decides["p_adjusted"] < 0.05 and not decides["low"] <= 0 <= decides["high"]
    answer = "not clearly" if not clear else "yes" if decides["difference"] > 0 else "no, it is worse"
    assert f"beyond the same words taught in one pass? {answer} ({decides['difference']:+.3f} [" in ran.text
    assert ("So no gain from thinking is seen here" in ran.text) == (answer != "yes")
    needs = changed.query("data == 'EntailmentBank' and method == 'lexical' and first == 'no thoughts'").iloc[0]
    told = said_of(needs, "no, it is better without them", "yes").replace("not clearly different", "not clearly")
    assert f"need its thoughts when it is read? {told} ({needs['difference']:+.3f} [" in ran.text
    trials = ran.names["trials"].groupby(["data", "method"]).size()
    assert trials["EntailmentBank"].to_dict() == {"basic": 1, "latent": 2, "lexical K=1": 1, "lexical": 1}
    shown = ran.data("11_words").query("label == 'lexical' and data == 'EntailmentBank' and questions == 'mini'")
    unseen = mean(
        read("EntailmentBank", "words").query("step == train_steps and train_steps == 3"),
        questions="mini",
        system="lexical",
    )
    assert shown["recall"].tolist() == pytest.approx([unseen["own_so_far"], unseen["others_so_far"]], abs=1e-4)


def checked_12(ran):
    assert re.search(r"a soft token replaced by itself moved 0 of [1-9]\d* ranks", ran.text)
    probes = ran.data("12_probes")
    best = probes[probes["target"] == "bridge 1"]["accuracy"].max()
    assert re.search(rf"^bridge 1: best read at step \d, layer \d: {best:.3f} ", ran.text, re.M)
    sizes = ran.data("12_interventions")
    final = sizes[(sizes["thinking_steps"] == 2) & (sizes["intervention"] != "itself")]
    own = ran.names["quality"].set_index("method")["ndcg@10"]
    for method, group in final.groupby("method"):
        said = f"{method} (nDCG@10 of this seed {own[method]:.3f}): {(group['low'] > 0).sum()} of {len(group)} changes"
        assert f"{said} clearly hurt (interval above 0); worst: " in ran.text and len(group) == 6
    answer = probes[probes["target"] == "bridge 2"]["accuracy"].max()
    assert ("lexical: no probe reads the answer" in ran.text) == (answer < 0.5)
    rates = ran.data("12_swaps")
    shares = rates.groupby(["method", "step", "put_in", "thoughts"])["share"].sum()
    assert len(shares) == 2 * 1 * 2 * 3 and shares.between(1 - 1e-4, 1 + 1e-4).all(), "every query ends somewhere"
    for step, values in ran.names["mass"].groupby("step")["difference"]:
        assert f"step {step}: own minus others {values.mean():+.3f} [" in ran.text


def checked_14(ran):
    quality = ran.data("14_quality").set_index("method")["ndcg@10"]
    for _, row in ran.names["tests"].iterrows():
        assert row["difference"] == pytest.approx(quality[row["first"]] - quality["lame"], abs=1e-5)
        line = re.search(rf"^{row['first']} +{re.escape(f'{row.difference:+.3f}')} .*  (.*)$", ran.text, re.M)[1]
        assert line == said_of(row, "better than lame", "worse than lame")
    lame = ran.data("14_steps").query("method == 'lame'").set_index("thinking_steps")["ndcg@10"]
    assert f"K=1 {lame[1]:.3f} [" in ran.text
    clear = said_of(ran.names["beats"].iloc[0], "better", "worse") == "better"
    assert (
        f"K={lame.idxmax()} is clearly best (1 seed)" if clear else "no K is clearly best here (1 seed)"
    ) in ran.text
    hops = ran.data("14_hops")
    assert set(hops["method"]) == set(quality.index) and set(hops["hops to follow"]) == {"1 hop", "2 hops"}
    assert set(ran.data("14_frontier")["method"]) == set(quality.index) and "start word: " in ran.text
    assert 1 - 1e-4 < ran.names["rank"] < 4 + 1e-4
    assert re.search(r"^basic .* 1\.00 x basic \[1\.00, 1\.00\]$", ran.text, re.M)
    for name, (middle, low, high) in ran.names["ratios"].items():
        said = "slower" if low > 1 else "faster" if high < 1 else "no clear difference"
        assert name == "basic" or f"{name} {middle:.2f} times [{low:.2f}, {high:.2f}], {said}" in ran.text


def checked_00(ran):
    table = pd.read_csv(ran.figures / "data" / "00_claims.csv", dtype={"notebook": str})
    assert table.equals(ran.names["table"].astype(table.dtypes)) and len(table) == len(CLAIMS)
    assert set(table["verdict"]) <= {"holds", "does not hold", "not clear", "not run"}
    for name, count in table["verdict"].value_counts().items():
        assert f"{name} {count}" in ran.text
    ranks, asked = ran.names["ranks"], ran.names["asked"]
    row = ranks.loc[f"{asked.answer}: answer of the question"]
    assert f"goes from rank {row.iloc[0]} to {row.iloc[1]}" in ran.text
    shown = ran.data("hopworld")
    assert shown[shown["on_path"]]["end"].tolist() == list(ran.names["asked"].bridges)


def checked_15(ran):
    by_k = ran.names["by_k"].set_index("K")["ndcg@10"]
    assert "On the bundled questions: " + ", ".join(f"K={k} {v:.3f}"[:8] for k, v in by_k[:1].items()) in ran.text
    told = said_of(ran.names["gain"], "better than", "worse than").replace("different", "different from")
    assert f"2. K=3 is {told} one pass: {by_k[3] - by_k[1]:+.3f} [" in ran.text
    assert "K=3, no template, on" in ran.text and "published for biology: 50.0" in ran.text


def checked_17(ran):
    both = ran.names["both"].query("thinking_steps == 2").groupby("model")["ndcg@10"].mean()
    assert f"{both['trained'] - both['untrained']:+.3f} [" in ran.text and len(ran.names["data"]) == 30
    said = [ran.names[name]["own_so_far"].mean() for name in ("said_first", "said_second")]
    assert f"tokens hold {said[0]:.0%} before and {said[1]:.0%} after ({said[1] - said[0]:+.3f} [" in ran.text
    assert "method lexical" in ran.text and (ran.figures / "17_explorer.html").exists()
    assert ll.load(ran.names["place"] / "final").encoder.thinking_steps == 2, "the adapter is there"


def test_published_checkpoints_without_a_hub_say_what_they_need(tmp_path, monkeypatch):
    monkeypatch.chdir(notebooks.FOLDER)
    path = notebooks.FOLDER / "15_published_checkpoints.ipynb"
    ran = Ran(path, {"FIGURES": str(tmp_path), "MODEL": "nobody/nothing", "HUB": "http://127.0.0.1:9"}, tmp_path)
    assert "This notebook needs a model hub, which cannot be reached from here, or a folder" in ran.text
    assert "Published over twelve subsets: 23.1" in ran.text and not list(tmp_path.glob("*.png"))


def test_a_subset_of_bright_stands_beside_the_published_number(tmp_path, tiny_folder, monkeypatch):
    task = replace(mini(), name="BrightRetrieval")
    monkeypatch.setattr(mteb, "get_task", lambda name, **_: as_mteb_task({"biology": task}, name))
    monkeypatch.chdir(notebooks.FOLDER)
    path = notebooks.FOLDER / "15_published_checkpoints.ipynb"
    parameters = {"FIGURES": str(tmp_path), "MODEL": tiny_folder, "MAX_LENGTH": 64, "TEMPLATE": ""}
    ran = Ran(path, parameters, tmp_path)
    measured = ran.names["found"]["value"].item()
    assert f"3. BRIGHT, biology: {measured:.1f} here, 50.0 published: {measured - 50:+.1f}." in ran.text
    assert ran.names["beside"]["published"]["ndcg_at_10 biology"].item() == 50.0


def test_claims_without_their_tables_are_not_run(tmp_path):
    assert set(claims(tmp_path)["verdict"]) == {"not run"}
    committed = {path.name[:2] for path in NOTEBOOKS}
    assert {notebook for *_, notebook in CLAIMS} <= committed


def claim(folder, notebook):
    return claims(folder).set_index("notebook").loc[notebook]


def paired(*rows):
    """Paired tests (first, second, difference, p_adjusted) with an interval of 0.02 on both sides."""
    frame = pd.DataFrame(rows, columns=["first", "second", "difference", "p_adjusted"])
    return frame.assign(low=frame["difference"] - 0.02, high=frame["difference"] + 0.02, seeds=2)


def test_a_claim_is_told_by_its_paired_test(tmp_path):
    """And not by the ends of two intervals."""
    rows = [("laser", 3, 3, 0.9, 0.1, 1.0), ("basic", 1, 1, 0.2, 0.1, 1.0)]
    columns = ["method", "train_steps", "thinking_steps", "ndcg@10", "low", "high"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "03_quality.csv", index=False)
    assert claim(tmp_path, "03")["verdict"] == "not run", "there is no test"

    def verdict_of(difference, p):
        paired(("laser", "basic", difference, p)).to_csv(tmp_path / "03_tests.csv", index=False)
        return claim(tmp_path, "03")["verdict"]

    assert verdict_of(0.7, 0.01) == "holds" and verdict_of(-0.7, 0.01) == "does not hold"
    assert verdict_of(0.7, 0.06) == verdict_of(0.01, 0.01) == "not clear"
    assert "laser 0.900 [0.100, 1.000]" in claim(tmp_path, "03")["numbers"]


def test_the_row_that_thinks_is_the_one_that_is_judged(tmp_path):
    rows = [("basic", 1, 0.48), ("lexical", 1, 0.454), ("lexical", 3, 0.478)]
    frame = pd.DataFrame(rows, columns=["method", "thinking_steps", "ndcg@10"])
    frame = frame.assign(data="bank", low=frame["ndcg@10"], high=frame["ndcg@10"])
    frame.to_csv(tmp_path / "11_quality.csv", index=False)
    tests = paired(("lexical", "basic", -0.002, 0.9), ("lexical K=1", "basic", -0.026, 0.01)).assign(data="bank")
    tests.to_csv(tmp_path / "11_tests.csv", index=False)
    found = claim(tmp_path, "11")
    assert found["verdict"] == "not clear" and "lexical 0.478" in found["numbers"] and "0.454" not in found["numbers"]
    pd.concat([frame, frame]).to_csv(tmp_path / "11_quality.csv", index=False)
    with pytest.raises(ValueError, match="2 rows"):
        claims(tmp_path)


def test_a_world_that_laser_does_not_learn_cannot_tell_its_parts(tmp_path):
    def verdict_of(gain, part, trained=None):
        rows = [
            ("basic", "laser", -gain, 0.01),
            ("latent", "laser", part, 0.01),
            *((f"laser-no-{name}", "laser", -0.3, 0.01) for name in ("output", "trajectory", "latent", "colearning")),
        ]
        paired(*rows[:trained]).to_csv(tmp_path / "05_tests.csv", index=False)
        table = claims(tmp_path)
        return table.loc[table["claim"].str.contains("Table 5"), "verdict"].item()

    assert verdict_of(0.03, -0.3) == "not clear", "laser itself is at the floor"
    assert verdict_of(0.7, -0.3) == "holds" and verdict_of(0.7, 0.01) == "does not hold"
    assert verdict_of(0.7, -0.01) == "not clear"
    assert verdict_of(0.7, -0.3, trained=3) == "not clear", "not every part was taken away"


def test_flatness_is_told_by_the_trainings_that_did_not_fail(tmp_path):
    def verdict_of(*ends):
        rows = [("easy-published", "laser", 3, 0.99, end, False) for end in ends]
        rows.append(("easy-published", "laser", 3, 0.15, 0.9, True))
        columns = ["group", "method", "thinking_steps", "ndcg@10", "at_8", "failed"]
        pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "recipes.csv", index=False)
        return claim(tmp_path, "04")["verdict"]

    assert verdict_of(0.7, 0.71) == "does not hold" and verdict_of(0.99, 0.98) == "holds"
    assert verdict_of(0.7, 0.99) == "not clear" and verdict_of() == "not run"


def test_the_first_folder_that_has_a_table_judges(tmp_path):
    for name, gain in (("more", 0.5), ("few", -0.5)):
        (tmp_path / name).mkdir()
        paired(("gircse", "lame", gain, 0.01)).to_csv(tmp_path / name / "14_tests.csv", index=False)
    quality = pd.DataFrame({"method": ["gircse", "lame"], "ndcg@10": [0.9, 0.4], "low": 0.3, "high": 1.0})
    quality.to_csv(tmp_path / "few" / "14_quality.csv", index=False)

    def one_hop(lame):
        hops = pd.DataFrame({"method": ["basic", "lame"], "hops to follow": "1 hop", "ndcg@10": [0.8, lame]})
        hops = hops.assign(low=hops["ndcg@10"] - 0.05, high=hops["ndcg@10"] + 0.05)
        hops.to_csv(tmp_path / "few" / "14_hops.csv", index=False)

    one_hop(0.75)
    found = [claims(tmp_path / name, tmp_path / "few").set_index("notebook").loc["14"] for name in ("more", "few")]
    assert [row["verdict"] for row in found] == ["holds", "does not hold"] and "lame 0.400" in found[0]["numbers"]
    assert claim(tmp_path / "more", "14")["verdict"] == "not run"
    one_hop(0.5)
    assert claim(tmp_path / "few", "14")["verdict"] == "not clear", "it cannot follow one hop either"


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory, tiny_folder, stock_folder, tiny_bank):
    """Run a notebook by its path. They share what tiny presets build, as those of a real one do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LASER_LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(cells, "run", partial(cells.run, workers=0))
        patch.chdir(notebooks.FOLDER)

        def run(path):
            folder = tmp_path_factory.mktemp(path.stem)
            parameters = {"FIGURES": str(folder / "figures"), "MODEL": tiny_folder} | TINY[path.stem]
            if path.stem == "11_real_language":
                parameters |= tiny_sets(tiny_bank, stock_folder, folder / "sets")
                parameters["ADAPTER"] = tiny_adapter(tiny_folder, folder / "adapter")
            return Ran(path, parameters, folder)

        yield run


def test_there_are_notebooks():
    assert set(TINY) == {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=() if p.stem in QUICK else pytest.mark.slow, id=p.stem) for p in NOTEBOOKS]
)
def test_runs_with_a_tiny_preset(path, tiny_run):
    """Its figures are those that are committed, every interval holds its mean, and what it prints is what its data
    says."""
    ran = tiny_run(path)
    figures = {file.stem for file in ran.figures.glob("*.png")}
    code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    tables = set(re.findall(r'save_table\(.*"(\w+)", FIGURES\)', code))
    assert figures == set(re.findall(r'"(\w+)", FIGURES[,)]', code)) - tables
    assert all((ran.figures / "data" / f"{name}.csv").exists() for name in figures - {"method"} | tables)
    if "import Cell" in code:
        sources = {name: Image.open(ran.figures / f"{name}.png").text["Description"] for name in figures}
        assert any(text != "{}" for text in sources.values()), "which trainings are behind them"
    for name in figures - {"method"}:  # a drawing has no data
        frame = ran.data(name)
        if {"ndcg@10", "low", "high"} <= set(frame):
            assert frame["ndcg@10"].between(frame["low"] - 1e-6, frame["high"] + 1e-6).all()
            assert frame[["ndcg@10", "low", "high"]].stack().between(0, 1 + 1e-6).all()
    globals()[f"checked_{path.stem[:2]}"](ran)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_figures_are_those_of_the_notebook_as_it_stands(path):
    """Fails when a notebook was edited and not rerun, or a figure or its data was changed by anything else."""
    entry = json.loads(notebooks.MANIFEST.read_text())[path.stem]
    assert entry["configuration"] == notebooks.configuration(path), f"rerun {path.stem}"
    files = {f.relative_to(notebooks.FIGURES).as_posix(): notebooks.digest(f) for f in notebooks.written_by(path)}
    assert files == entry["files"]
    assert entry["preset"] == "default" and set(entry["made_from"]) == {
        f.stem for f in map(Path, files) if f.suffix == ".png"
    }


def test_the_full_preset_is_committed_as_tables():
    """Of every notebook that has seeds, as it stands, with the values of the preset."""
    folder, values = notebooks.FIGURES / "full" / "data", notebooks.PRESETS["full"]
    manifest = json.loads((folder / "manifest.json").read_text())
    wanted = {path.stem: path for path in NOTEBOOKS if notebooks.parameters_of(path) & values.keys() - {"FIGURES"}}
    assert set(manifest) == set(wanted) and "03_train_laser" in wanted and "01_quickstart" not in wanted
    for name, entry in manifest.items():
        assert entry["preset"] == "full" and entry["configuration"] == notebooks.configuration(wanted[name]), name
        for file, digest in entry["files"].items():
            if file.startswith("data/"):
                assert notebooks.digest(folder.parent / file) == digest, file
    assert pd.read_csv(folder / "03_quality.csv")["seeds"].max() == len(values["SEEDS"])


def disagreements(manifest):
    """(what, its values) for every module, training and kind of training that two figures have different ones of."""
    found = {}
    for entry in manifest.values():
        found.setdefault("code of trainings", set()).add(entry["cells"])
        sources = [entry["code"], *entry["made_from"].values()]
        for name, value in (pair for source in sources for pair in source.items()):
            found.setdefault(name, set()).add(value)
    return {name: values for name, values in found.items() if len(values) > 1}


def test_disagreements_of_figures_are_seen():
    def entry(cells="c", module="1", training="k a"):
        return {"cells": cells, "code": {"laser_lab.losses": module}, "made_from": {"x": {"configuration": training}}}

    assert not disagreements({"a": entry(), "b": entry()})
    for other in ({"cells": "d"}, {"module": "2"}, {"training": "k b"}, {"training": "l a"}):
        assert len(disagreements({"a": entry(), "b": entry(**other)})) == 1, other


def test_all_figures_are_of_one_code_and_one_training_of_each_kind():
    """And the tables that they show are those beside them, by the same code."""
    manifest = json.loads(notebooks.MANIFEST.read_text())
    full = json.loads((notebooks.FIGURES / "full" / "data" / "manifest.json").read_text())
    assert not disagreements(manifest | {f"full {name}": entry for name, entry in full.items()}), "make figures"
    shown = {k: v for entry in manifest.values() for source in entry["made_from"].values() for k, v in source.items()}
    for name, value in shown.items():
        if name.endswith((".csv", ".json")):
            file = notebooks.FIGURES / Path(name).parent / "data" / Path(name).name
            assert notebooks.digest(file)[:12] == value, f"a figure shows another {name} than there is"
            table = pd.read_csv(file) if name.endswith(".csv") else pd.DataFrame()
            if "code" in table:
                assert set(table["code"]) == {next(iter(manifest.values()))["cells"]}, f"{name} is of other code"


def test_every_numbered_figure_has_its_notebook():
    written = {file for path in NOTEBOOKS for file in notebooks.written_by(path)}
    there = [
        f for name in ("[0-9][0-9]_*", *(f"{d}.*" for d in notebooks.DRAWINGS)) for f in notebooks.FIGURES.rglob(name)
    ]
    assert {file for file in there if file.is_file() and "full" not in file.parts} == written


def test_presets_fill_only_what_a_notebook_has(tmp_path):
    cells = [nbformat.v4.new_code_cell("SEEDS = [0]  # é, of trainings\nOTHER = 1", metadata={"tags": ["parameters"]})]
    cells.append(nbformat.v4.new_code_cell("print(SEEDS, OTHER)"))
    file, other = tmp_path / "a.ipynb", tmp_path / "new" / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), file)
    before = file.read_bytes()
    notebooks.run(file, other, SEEDS=[0, 1], HOPS=[2])
    ran = nbformat.read(other, as_version=4).cells
    assert ran[0].source == "SEEDS = [0, 1]  # é, of trainings\nOTHER = 1", "who edits them sees an effect"
    assert len(ran) == 2 and ran[-1].outputs[0]["text"].strip() == "[0, 1] 1"
    assert notebooks.configuration(file) != notebooks.configuration(other) and file.read_bytes() == before


def test_values_are_written_over_the_old_ones():
    source = 'A = [0,\n     1]  # a\nB = {"é": 1}  # b\nC = A\nif C:\n    A = 3'
    assert notebooks.with_values(source, {"A": [2], "B": None, "D": 0}) == (
        "A = [2]  # a\nB = None  # b\nC = A\nif C:\n    A = 3"
    )


def test_a_failing_notebook_leaves_the_old_one(tmp_path):
    from papermill.exceptions import PapermillExecutionError

    bad = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    nbformat.write(bad, tmp_path / "bad.ipynb")
    before = (tmp_path / "bad.ipynb").read_bytes()
    with pytest.raises(PapermillExecutionError):
        notebooks.run(tmp_path / "bad.ipynb", tmp_path / "bad.ipynb")
    assert (tmp_path / "bad.ipynb").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("unit", ["it", "step"])
def test_no_progress_bar_is_kept(unit):
    bar = nbformat.v4.new_output("display_data", {"text/plain": f"Once:   0%|          | 0/2500 [00:00<?, ?{unit}/s]"})
    assert notebooks._is_bar(bar)
    for text in ("<Figure size 1/2 [inches]>", "[0.1, 0.2]"):
        assert not notebooks._is_bar(nbformat.v4.new_output("display_data", {"text/plain": text}))
    assert not notebooks._is_bar(nbformat.v4.new_output("stream", text="0/2500 questions [00:00]"))


def run_at_once(notebook, output, **parameters):
    """In the place of `run`: papermill's result for a notebook of one cell, without a kernel."""
    content = nbformat.read(notebook, as_version=4)
    for cell in content.cells:
        cell.source = notebooks.with_values(cell.source, parameters)
        exec(cell.source, {})
    output.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(content, output)


def test_a_repeated_run_of_all_runs_what_changed(tmp_path, monkeypatch, capsys):
    figures = tmp_path / "figures"
    monkeypatch.setattr(notebooks, "run", run_at_once)
    values = {"FOLDER": tmp_path / "notebooks", "FIGURES": figures, "MANIFEST": figures / "data" / "manifest.json"}
    for name, value in values.items():
        monkeypatch.setattr(notebooks, name, value)
    monkeypatch.setenv("LASER_LAB_CACHE", str(tmp_path / "cache"))
    for folder in (values["FOLDER"], figures / "data", figures / "full" / "data"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(values["FOLDER"])
    file = values["FOLDER"] / "01_a.ipynb"

    def write(text):
        text += "\nFIGURES = '../figures'\nopen(f'{FIGURES}/data/01_a.csv', 'w').write(str(SEEDS))"
        cell = nbformat.v4.new_code_cell(text, metadata={"tags": ["parameters"]})
        nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=KERNEL), file)

    def ran(*names):
        notebooks.main(list(names))
        return "up to date" not in capsys.readouterr().out

    write("SEEDS = [0]")
    assert ran() and not ran()
    entry = json.loads(notebooks.MANIFEST.read_text())["01_a"]
    assert entry["code"] == notebooks.library_version(file) and set(entry["files"]) == {"data/01_a.csv"}
    assert ran("01"), "a named one always runs"
    assert not ran()
    (figures / "data" / "01_a.csv").write_text("2")
    assert ran() and not ran()
    (figures / "data" / "bank.csv").write_text("a record that a notebook may read")
    assert ran() and not ran()
    before = file.read_bytes(), (figures / "data" / "01_a.csv").read_text(), notebooks.MANIFEST.read_bytes()
    assert ran("--preset", "full") and not ran("--preset", "full")
    assert before == (file.read_bytes(), (figures / "data" / "01_a.csv").read_text(), notebooks.MANIFEST.read_bytes())
    assert (figures / "full" / "data" / "01_a.csv").read_text() == str(notebooks.PRESETS["full"]["SEEDS"])
    entry = json.loads((figures / "full" / "data" / "manifest.json").read_text())["01_a"]
    assert entry["preset"] == "full" and re.fullmatch(r"\d{4}-\d\d-\d\d", entry["date"])
    assert not ran(), "the committed preset is as it was"
    write("SEEDS = [0, 1]")
    assert ran() and not ran()
    (figures / "full" / "data" / "01_tests.csv").write_text("1")
    assert not ran(), "it does not read that table"
    write("SEEDS = [0, 1]\nFULL = '../figures/full/data'")
    assert ran() and not ran()
    (figures / "full" / "data" / "01_tests.csv").write_text("2")
    (figures / "full" / "data" / "05_tests.csv").write_text("3")
    assert ran() and not ran()


def test_what_an_earlier_version_wrote_goes(tmp_path):
    """And what is new stays, also where the clock of the file system lags behind."""
    started, data, file = time.time(), tmp_path / "data", tmp_path / "01_a.ipynb"
    data.mkdir()
    nbformat.write(nbformat.v4.new_notebook(), file)
    for name, age in (("01_new", 0.05), ("01_old", 60.0), ("02_other", 60.0)):
        (data / f"{name}.csv").write_text("1")
        os.utime(data / f"{name}.csv", (started - age, started - age))
    notebooks._record(file, started, "default", tmp_path)
    assert {file.name for file in data.iterdir()} == {"01_new.csv", "02_other.csv", "manifest.json"}


def test_after_an_error_no_other_one_starts(tmp_path):
    there, others = tmp_path / "there", [tmp_path / str(number) for number in range(5000)]
    assert dict(notebooks._side_by_side(os.mkdir, [there, tmp_path / "b"])) == {there: None, tmp_path / "b": None}
    with pytest.raises(FileExistsError):
        list(notebooks._side_by_side(os.mkdir, [there, *others]))
    assert not others[-1].exists()


def test_unknown_names_are_refused_each_by_name(capsys):
    with pytest.raises(SystemExit):
        notebooks.main(["97", "01", "nothing"])
    said = capsys.readouterr().err
    assert "97 or nothing" in said and "01_quickstart" in said and "01 or" not in said


def test_imports_and_layout_are_no_other_configuration(tmp_path):
    def of(*sources):
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), tmp_path / "a.ipynb")
        return notebooks.configuration(tmp_path / "a.ipynb"), notebooks.library_version(tmp_path / "a.ipynb")

    first, code = of("%matplotlib inline\nfrom laser_lab.base import stats\nx = [1,2]  # two")
    again, other = of("from laser_lab.lab import stopwatch\n\nx = [1, 2]")
    assert first == again and code != other, "the library that it reaches has a hash of its own"
    assert of("x = [1, 3]")[0] != first


def test_kernels_listen_on_no_port(tmp_path):
    source = "from ipykernel.kernelapp import IPKernelApp\nprint(IPKernelApp.instance().transport)"
    file = tmp_path / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)], metadata=KERNEL), file)
    notebooks.run(file, file)
    assert nbformat.read(file, as_version=4).cells[0].outputs[0]["text"].strip() == "ipc"
    assert list(tmp_path.iterdir()) == [file], "no socket is left"
