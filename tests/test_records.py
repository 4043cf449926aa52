"""The committed records of the runs on real text give the committed tables again, and hold no text of the data."""

import json
import re

import pandas as pd
import pytest

from laser_lab.data.readers import mini
from laser_lab.lab.language import EVERY, PARTS, read_records, read_table
from laser_lab.lab.notebooks import FIGURES
from laser_lab.lab.provenance import code_version
from laser_lab.lab.records import ORDER, at_own, differences, drawn, find, ordered, summary
from laser_lab.lab.rows import Row

DATA = FIGURES / "data"
SETS = {"EntailmentBank": "entailment_bank", "StrategyQA": "strategyqa"}
STEMS = sorted(
    file.name.removesuffix("_runs.json") for stem in SETS.values() for file in DATA.glob(f"{stem}*_runs.json")
)
WHOLE = {name: stem for name, stem in SETS.items() if all((DATA / f"{stem}_{part}.csv").exists() for part in PARTS)}
KEY = ["system", "train_steps", "seed", "corpus", "query_id", "thinking_steps"]


def records(stem, kind):
    return read_records(DATA, {stem: stem}, kind)


def test_there_are_records():
    assert {stem + kind for stem in SETS.values() for kind in ("", "_search")} <= {*STEMS} and WHOLE == SETS


@pytest.mark.parametrize("stem", STEMS)
def test_a_table_is_that_of_its_measures_and_runs(stem):
    """Means, intervals and times, from the measures of every question and the card of every run."""
    table, frame = read_table(DATA / f"{stem}.csv"), read_table(DATA / f"{stem}_per_query.csv")
    settings = [name for name in frame if name not in (*KEY, "ndcg@10", "recall@10", "recall@100", "map", "mrr")]
    assert not frame.duplicated(KEY + settings).any()
    by = ["corpus", "system", "train_steps", "thinking_steps", *settings]
    again = summary(frame.assign(ms_per_query=1.0), settings)[[*by, "ndcg@10", "low", "high", "recall@100", "queries"]]
    both = table.merge(again, on=by, suffixes=("", " again"), validate="1:1")
    assert len(both) == len(table) == len(again)
    for name in ("ndcg@10", "low", "high", "recall@100", "queries"):
        assert both[name].to_numpy() == pytest.approx(both[f"{name} again"].to_numpy(), abs=2e-4)
    runs = json.loads((DATA / f"{stem}_runs.json").read_text())
    if "_40_" not in stem:  # those are of earlier code
        assert {run["code"] for run in runs} == {code_version(Row.module)[:12]}, "else a clone would run them anew"
    times = [(run["row"]["system"], run["steps"], int(k), ms) for run in runs for k, ms in run["ms_per_query"].items()]
    times = pd.DataFrame(times, columns=["system", "train_steps", "thinking_steps", "ms"])
    mean = times.groupby(["system", "train_steps", "thinking_steps"])["ms"].mean()
    if not settings:
        shown = table.set_index(["system", "train_steps", "thinking_steps"])["ms_per_query"]
        shown = pd.to_numeric(shown)
        assert not set(shown[shown.isna()].index) & set(mean.index), "empty only where no run was timed"
        shown = shown.dropna()
        assert shown.to_numpy() == pytest.approx(mean.loc[shown.index].to_numpy(), rel=1e-4)


def test_records_of_several_sets_are_one_table(tmp_path):
    """With the helpers that order, pick and compare their rows."""
    rows = [("lexical", 1), ("new", 1), ("lexical", 3), ("basic", 1)]
    part = pd.DataFrame(
        [(s, k, 0, q, read, 0.1 * at) for at, (s, k) in enumerate(rows) for q in "qr" for read in (0, 1, 3)],
        columns=["system", "train_steps", "seed", "query_id", "thinking_steps", "ndcg@10"],
    )
    for stem, frame in (("a", part), ("b", part[part["system"] == "basic"])):
        frame.to_csv(tmp_path / f"{stem}_per_query.csv", index=False)
    frame = read_records(tmp_path, {"A": "a", "B": "b"}, "per_query")
    assert frame["data"].value_counts().to_dict() == {"A": 24, "B": 6}
    assert list(ordered(frame)["method"].unique()) == ["basic", "lexical K=1", "lexical", "new"]
    assert set(ORDER) >= {"basic", "lexical K=1", "lexical"}
    own = at_own(frame)
    assert (own["thinking_steps"].isin([0]) | (own["thinking_steps"] == own["train_steps"])).all() and len(own) == 20
    taught = drawn(frame)[frame["method"] == "lexical K=1"]
    assert set(taught["method"]) == {"lexical"} and set(taught["label"]) == {"lexical K=1"}
    assert find(frame, data="A", method="basic")["ndcg@10"] == pytest.approx(0.3)
    assert find(frame, data="B", method="lexical") is None
    tests = differences(own[own["thinking_steps"] > 0], [("lexical", "basic"), ("basic", "unknown")])
    assert tests[["data", "first", "second"]].to_numpy().tolist() == [["A", "lexical", "basic"]]
    assert tests["difference"].tolist() == pytest.approx([0.2 - 0.3])
    with pytest.raises(FileNotFoundError):
        read_records(tmp_path, {"A": "a"}, "")


def mean(frame, *by):
    return frame.groupby([*by, "seed", "query_id"]).mean(numeric_only=True).groupby(list(by)).mean()


def figure_data(name, data):
    frame = pd.read_csv(DATA / f"{name}.csv")
    return frame[frame["data"] == data]


@pytest.mark.parametrize("name", WHOLE)
def test_the_notebook_s_tables_are_those_of_the_records(name):
    """What notebook 11 draws, computed again from the measures of every question."""
    stem = SETS[name]
    own = records(stem, "per_query").query("thinking_steps == train_steps or thinking_steps == 0")
    shown = figure_data("11_quality", name)
    labels = shown["label"].str.removesuffix(" (bound)")
    assert shown["ndcg@10"].tolist() == pytest.approx(mean(own, "method").loc[labels, "ndcg@10"].tolist(), abs=2e-5)
    assert sorted(labels) == sorted(own["method"].unique())
    words = mean(records(stem, "words").query("step == train_steps"), "questions", "method")
    shown = figure_data("11_words", name)
    column = shown["words of"].map({"its own reasoning": "own_so_far", "another question's": "others_so_far"})
    expected = [words.loc[(q, m), c] for q, m, c in zip(shown["questions"], shown["label"], column)]
    assert shown["recall"].tolist() == pytest.approx(expected, abs=2e-5) and len(shown) == 2 * len(words)
    worth = mean(records(stem, "worth"), "method", "condition")["ndcg@10"]
    shown = figure_data("11_worth", name)
    conditions = shown["first"].replace({"no thoughts": "knocked out", "mean over questions": "mean"})
    expected = [worth[m, c] - worth[m, "as they are"] for m, c in zip(shown["method"], conditions)]
    assert shown["difference"].tolist() == pytest.approx(expected, abs=2e-5) and len(shown) == 0.8 * len(worth)
    bm25 = mean(records(stem, "bm25"), "method", "ranking")["ndcg@10"]
    shown = figure_data("11_bm25", name).set_index(["method", "ranking"])["ndcg@10"]
    assert shown.to_dict() == pytest.approx(bm25.to_dict(), abs=2e-5)


@pytest.mark.parametrize("name", WHOLE)
def test_the_notebook_s_tests_are_those_of_the_records(name):
    """Differences, intervals and adjusted p, of rows and of changes of thoughts, computed again."""
    shown = figure_data("11_tests", name)
    pairs = list(zip(shown["first"], shown["second"]))
    again = differences(at_own(records(SETS[name], "per_query")), pairs)
    assert len(pairs) > 10 and again[["first", "second"]].to_numpy().tolist() == [list(pair) for pair in pairs]
    columns = ["difference", "low", "high", "seeds", "least", "most", "p_adjusted"]
    assert shown[columns].to_numpy() == pytest.approx(again[columns].to_numpy(), abs=2e-5)
    worth, shown = records(SETS[name], "worth"), figure_data("11_worth", name)
    assert set(shown["method"]) == set(worth["method"])
    for method, part in shown.groupby("method"):
        told = part["first"].replace({"no thoughts": "knocked out", "mean over questions": "mean"})
        changes = [(change, "as they are") for change in told]
        again = differences(worth[worth["method"] == method], changes, by="condition")
        assert part[columns].to_numpy() == pytest.approx(again[columns].to_numpy(), abs=2e-5)


@pytest.mark.parametrize("name", WHOLE)
def test_examples_follow_the_rule(name):
    """Every tenth question and the first, the same for every row, and each with the ten tokens of each step."""
    said, asked = records(SETS[name], "said"), records(SETS[name], "per_query")["query_id"].nunique()
    assert said["query_id"].nunique() == len({max(at, 1) for at in range(0, asked + 1, EVERY)})
    sizes = said.groupby(["method", "seed", "query_id"]).size()
    assert (sizes == 10 * said.groupby(["method", "seed", "query_id"])["train_steps"].first()).all()


def strings(value):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from (key, *strings(item))
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("stem", STEMS)
def test_records_hold_no_text(stem):
    """A question has its id and a token stands alone; nothing in a record reads on for three words."""
    named = {"its own reasoning", "another question's", "as they are", "knocked out", "mean", "mean of its words"}
    named |= {"bm25", "bm25 + thoughts", "dense", "dense & bm25", "dense & bm25 + thoughts"}
    mine = [DATA / f"{stem}.csv", *(DATA / f"{stem}_{kind}.csv" for kind in ("per_query", *PARTS))]
    for file in (file for file in mine if file.exists()):
        table = read_table(file)
        for column in table.select_dtypes(exclude="number"):
            for value in table[column].unique():
                assert len(value.split()) < 2 or value in named, f"{file.name}: {column} holds {value!r}"
        if "query_id" in table:
            unseen = set(table.loc[table["questions"] == "mini", "query_id"]) if "questions" in table else set()
            assert unseen <= set(mini().queries)
            assert table["query_id"].map(lambda i: bool(re.fullmatch(r"[\w&.+-]{1,40}", i))).all()
    runs = json.loads((DATA / f"{stem}_runs.json").read_text())
    assert not [text for text in strings(runs) if len(text.split()) > 2 or len(text) > 80]
