"""Numbers in README and docs are those of `figures/data`: a test that fails prints the sentence that should stand."""

import json

import pandas as pd
import pytest
from test_docs import PAGES, ROOT

from laser_lab.base.files import read_yaml
from laser_lab.base.stats import compare
from laser_lab.lab.conclusions import change, clear, value
from laser_lab.lab.entailment import rows_of
from laser_lab.lab.recipes import FAILED
from laser_lab.lab.records import differences, of_row, system_label
from laser_lab.lab.rows import Row


def table(name):
    return pd.read_csv(ROOT / "figures" / "data" / f"{name}.csv")


def entailment_bank():
    """What notebook 11 draws of EntailmentBank, by the name of the row."""
    drawn = table("11_quality").query("data == 'EntailmentBank'")
    return drawn.set_index(drawn["label"].str.removesuffix(" (bound)"))


def misread(stem):
    """The rows of which the records say that some documents were encoded wrongly."""
    runs = json.loads((ROOT / "figures" / "data" / f"{stem}_runs.json").read_text())
    return [Row(**run["row"]) for run in runs if "misread" in run]


def trainings(method, steps=3, group="easy", value="ndcg@10"):
    """A value of each training of a row of `figures/data/recipes.csv`."""
    recipes = table("recipes").query("method == @method and thinking_steps == @steps")
    return recipes[recipes["group"].str.startswith(group)][value]


def says(page, *sentences):
    """Whether a page says these, wherever its lines break."""
    text = " ".join(PAGES[page].split())
    missing = [sentence for sentence in sentences if sentence not in text]
    assert not missing, f"{page} should say, by figures/data:\n" + "\n".join(missing)


def seeds(count):
    return f"{count} seed" + ("s" if count > 1 else "")


def shown(values):
    """Trainings as a page gives them: 0.998 (4 seeds)."""
    return f"{values.mean():.3f} ({seeds(len(values))})"


def spread(values):
    """0.490 [0.133 to 0.999] (5 seeds): with the smallest and the largest."""
    return f"{values.mean():.3f} [{values.min():.3f} to {values.max():.3f}] ({seeds(len(values))})"


def fail(values):
    """3 of 5"""
    return f"{(values < FAILED).sum()} of {len(values)}"


def each(values, form=".3f"):
    """0.937, 0.960, 0.980 and 0.966"""
    *most, last = (format(value, form) for value in values)
    return f"{', '.join(most)} and {last}"


def shown_seeds(real):
    """one seed, 3 seeds, or 1 to 2 seeds, of the trained rows."""
    counts = real.loc[["basic", "lexical", "lexical K=1"], "seeds"].astype(int)
    if counts.min() < counts.max():
        return f"{counts.min()} to {counts.max()} seeds"
    return "one seed" if counts.max() == 1 else f"{counts.max()} seeds"


def of_seeds(row):
    """0.486 (2 seeds), of a row that notebook 11 draws."""
    return f"{row['ndcg@10']:.3f} ({seeds(int(row['seeds']))})"


def read_at(method, steps, data="entailment_bank"):
    """nDCG@10 of a row of EntailmentBank, trained with three thoughts and read at K; the best of a search."""
    return table(data).query("system == @method and train_steps == 3 and thinking_steps == @steps")["ndcg@10"].max()


def test_numbers_of_the_readme():
    laser, basic = trainings("laser"), trainings("basic", 1)
    wordy = {method: values for method, values in table("16_wordy").groupby("method")["ndcg@10"]}
    others = [wordy[name] for name in ("basic", "latent", "laser", "gircse")]
    means = [values.mean() for values in others]
    frontier = table("06_frontier").query("where.str.startswith('measured')").set_index("method")
    written, thoughts = frontier.loc["rewrite"], frontier.loc["lexical"]
    real, (_, _, bm25, more) = entailment_bank(), words_of_thoughts()
    there = table("strategyqa_bm25").query("system == 'lexical'").groupby("ranking")["ndcg@10"].mean()
    assert there["bm25 + thoughts"] < there["bm25"], "README.md: not so on StrategyQA"
    says(
        "README.md",
        f"`basic` has nDCG@10 {shown(basic)} there, `gircse` with three thoughts {shown(trainings('gircse'))} and "
        f"`lexical` {shown(trainings('lexical'))}",
        f"`laser` ends between {laser.min():.2f} and {laser.max():.2f}: {fail(laser)} trainings fail",
        f"`basic`, `latent`, `laser` and `gircse` have between {min(means):.2f} and {max(means):.2f} "
        f"(at most {seeds(max(map(len, others)))} each)",
        f"when to end: {shown(wordy['lexical'])}",
        f"Written reasoning has {written['ndcg@10']:.3f}, at "
        f"{written['milliseconds'] / thoughts['milliseconds']:.1f} times the time of three thoughts",
        f"(Gemma 3 270M, 320 steps): `basic` {of_seeds(real.loc['basic'])}, `latent` {of_seeds(real.loc['latent'])}, "
        f"`lexical` {of_seeds(real.loc['lexical'])}, {read_at('lexical', 1):.3f} without its thoughts",
        f"raise BM25 from {bm25:.3f} to {more:.3f} (those of one pass: "
        f"{words_of_thoughts('lexical K=1')[3]:.3f}); not so on StrategyQA",
        f"Our loop is {min(faster()):.1f} (GPU) to {max(faster()):.1f} times as fast as the published one",
    )
    named = pd.concat([trainings(name, value="bridges") for name in ("gircse", "lexical")])
    assert (named > 0.99).all(), "README.md: each thought of these two names the next entity"


def faster():
    """The published loop's time over ours in float32, at each shape on each machine."""
    amd = table("latency").query("name == 'ours' and layers == 'ours'")
    others = [
        table(f"latency_{machine}") for machine in ("intel-xeon-cpu-family-6-model-207-avx512", "nvidia-h200-sm-90")
    ]
    return pd.concat([amd, pd.concat(others).query("name == 'ours' and dtype == 'float32'")])["gain"]


def words_of_thoughts(method="lexical"):
    """Shares of the reasoning's words, own and another question's, that a method's thoughts hold, and what their words
    are worth to BM25: two pairs."""
    words = table("11_words").query("panel == 'EntailmentBank: dev' and label == @method").set_index("words of")
    bm25 = table("11_bm25").query("data == 'EntailmentBank' and method == @method").set_index("ranking")["ndcg@10"]
    recall = words["recall"]
    return recall["its own reasoning"], recall["another question's"], bm25["bm25"], bm25["bm25 + thoughts"]


def test_numbers_of_entailment_bank():
    real = entailment_bank()
    aside = dict.fromkeys(("bm25-reasoning", "explicit"), " (reads the human reasoning: a bound)")
    aside |= dict.fromkeys(("bm25-intermediate", "explicit-intermediate"), " (the same without its last sentence)")
    aside["zero-shot"] = " (before training)"
    wrong = {system_label(row.system, row.steps) for row in misread("entailment_bank")}
    for system, row in real.iterrows():
        name = f"`{system}`{aside.get(system, '')}{' (32 facts misread)' if system in wrong else ''}"
        says("docs/entailment_bank.md", f"| {name} | {value(row)} | {row['seeds']:.0f} |")
    (own, other, bm25, with_words), once = words_of_thoughts(), words_of_thoughts("lexical K=1")
    tests = table("11_tests").query("data == 'EntailmentBank'").set_index(["first", "second"])
    gain = tests.loc["lexical", "difference"]
    latent = tests.loc[("latent", "basic")]
    laser = tests.loc[("laser", "basic")]
    others = [(name, "basic") for name in ("lexical", "latent", "laser", "gircse", "laser-lexical")]
    undecided = tests.loc[[("lexical", "lexical K=1"), *others]]
    assert not undecided.apply(clear, axis=1).any(), "the page says: not clear"
    released = tests.loc[("laser-released", "basic")]
    changed = table("11_worth").query("data == 'EntailmentBank' and method != 'zero-shot'")
    changed = changed.set_index(["first", "method"])
    needs = changed.loc["no thoughts"]
    assert needs.index[needs.apply(clear, axis=1)].tolist() == ["laser-released"], "the page says: it alone"
    shuffled = changed.loc[(OTHER, "laser-released")]
    assert not clear(shuffled), "the page says: not clearly"
    trials = table("entailment_bank_search").query("train_steps == thinking_steps and learning_rate == 0.0005")
    weighed = trials.query("system == 'lexical' and train_steps == 3").set_index("lexical")["ndcg@10"]
    said = table("entailment_bank_search_words").query(
        "system == 'lexical' and questions == 'dev' and step == 3 and train_steps == 3"
    )
    said = said.query("learning_rate == 0.0005").groupby("lexical")[["own_so_far", "others_so_far"]].mean() * 100
    worth = table("11_worth").query("data == 'EntailmentBank' and method == 'lexical'").set_index("first")["difference"]
    short, long = (
        table(f"entailment_bank{steps}_search")
        .query("train_steps == thinking_steps and learning_rate == 0.0005 and system in ['basic', 'latent']")
        .set_index("system")["ndcg@10"]
        for steps in ("_40", "")
    )
    heavy, light = (said["own_so_far"] / said["others_so_far"])[[0.5, 0.1]]
    share = said["own_so_far"]
    ranked = table("entailment_bank_search_bm25").query("system == 'lexical' and train_steps == 3")
    ranked = ranked.query("learning_rate == 0.0005")
    more = compare(ranked.query("ranking == 'bm25 + thoughts'"), [(0.5, 0.1)], by="lexical").iloc[0]
    ranked = ranked.pivot_table(index="lexical", columns="ranking", values="ndcg@10")
    expanded = ranked["bm25 + thoughts"] - ranked["bm25"]
    assert one_pass_says_more("EntailmentBank", "entailment_bank"), "the page says: clearly less"
    search = table("entailment_bank_search").query("train_steps == thinking_steps").rename(columns={"ndcg@10": "ndcg"})
    best = search.groupby(["system", "train_steps"])["ndcg"].transform("max")
    assert (search[search["ndcg"] == best]["learning_rate"] == 0.0005).all(), "the page says: for every row"
    slow = search.query("learning_rate == 0.0002").set_index("system")["ndcg"]
    said_of = table("entailment_bank_search_words").query("learning_rate == 0.0002")
    said_of = {system_label(*row) for row in said_of[["system", "train_steps"]].itertuples(index=False)}
    assert said_of == {"laser", "laser-lexical", "laser-released", "lexical K=1"}, "the page says: alone"
    again = [of_row(search, row, SETTINGS).index.item() for row in misread("entailment_bank_search")]
    assert len(again) == 6, "the page names six"
    below = (best - search["ndcg"])[again].min()
    assert below > 0.005, "the page says: the choice stands"
    says(
        "docs/entailment_bank.md",
        f"Each of {real.loc['lexical', 'queries']} dev questions ranks",
        f"ahead of the same words in one pass ({gain['lexical K=1']:+.3f}), nor of `basic` ({gain['basic']:+.3f})",
        f"read without its thoughts it still has {read_at('lexical', 1):.3f} ({worth['no thoughts']:+.3f})",
        f"Nor is `laser` clearly apart from `basic` ({change(laser)})",
        f"has {real.loc['laser-released', 'ndcg@10']:.3f}: {change(released)} against `basic`, p = {released['p']:.2f} "
        f"alone and {released['p_adjusted']:.2f} adjusted",
        f"({change(needs.loc['laser-released'])}; `gircse` still feeds back one soft token there), but not clearly "
        "with another question's "
        f"({change(shuffled)})",
        f"from 40 to 320 steps `basic` rose from {short['basic']:.3f} to {long['basic']:.3f} and `latent` from "
        f"{short['latent']:.3f} to {long['latent']:.3f}",
        f"hold {own * 100:.0f} % of the words",
        f"{other * 100:.0f} % of those that another question's adds",
        f"from {bm25:.3f} to {with_words:.3f}",
        f"the gap between `latent` and `basic` is {change(latent)}",
        f"`laser-lexical`, has {real.loc['explicit', 'ndcg@10']:.3f}",
        f"(`explicit-intermediate`) it still has {real.loc['explicit-intermediate', 'ndcg@10']:.3f}, "
        f"{change(tests.loc[('explicit-intermediate', 'lexical')])} above `lexical`",
        f"BM25 has {real.loc['bm25-reasoning', 'ndcg@10']:.3f} with the reasoning, "
        f"{real.loc['bm25-intermediate', 'ndcg@10']:.3f} without its last sentence",
        f"With the weight 0.5 `lexical` has {weighed[0.5]:.3f} and its thoughts hold {share[0.5]:.0f} % of the words, "
        f"at 0.1 {weighed[0.1]:.3f} and {share[0.1]:.0f} % (one training each)",
        f"hold {heavy:.1f} times as large a share of their own reasoning's words as of another question's, instead of "
        f"{light:.1f} times, and bring BM25 more, "
        f"{expanded[0.5]:+.3f} instead of {expanded[0.1]:+.3f} (a difference of "
        f"{change(more)})",
        f"(`laser` has {slow['laser']:.3f} at 0.0002, `laser-released` {slow['laser-released']:.3f})",
        f"every one of these trials is at least {below:.3f} below the best of its row",
        f"raises BM25 to {once[3]:.3f}, and its 20 tokens hold {once[0] * 100:.0f} % and {once[1] * 100:.0f} %",
    )


SETTINGS = ("learning_rate", "lexical")
"""What the search tries."""


def untried(stem):
    """The rows of which a trial of the search is not recorded."""
    asked = rows_of(read_yaml(ROOT / "configs" / f"{stem}.yaml"), "", search=True)
    return sorted({row.system for row in asked if of_row(table(f"{stem}_search"), row, SETTINGS).empty})


def one_pass_says_more(name, stem):
    """Whether each thought of `lexical`, with its 20 tokens, says its own reasoning (less another question's) clearly
    less than `lexical K=1`."""
    words = table(f"{stem}_words").query("questions == 'dev' and system == 'lexical'")
    thoughts = words["step"].map("thought {}".format).where(words["train_steps"] == 3, "once")
    words = words.assign(method=thoughts, data=name, more=words["own"] - words["others"])
    tests = differences(words, [(f"thought {step}", "once") for step in (1, 2, 3)], "more")
    return len(tests) == 3 and all(clear(row) and row["difference"] < 0 for _, row in tests.iterrows())


OTHER = "another question's"


def test_numbers_of_strategyqa():
    real = table("11_quality").query("data == 'StrategyQA'").set_index("label")["ndcg@10"]
    every = table("11_tests").query("data == 'StrategyQA'").set_index(["first", "second"])
    gain, control = every.loc[("lexical", "basic")], every.loc[("lexical", "lexical K=1")]
    latent, laser = every.loc[("latent", "basic")], every.loc[("laser", "basic")]
    released = every.loc[("laser-released", "basic")]
    assert one_pass_says_more("StrategyQA", "strategyqa"), "the page says: on both sets"
    words = table("11_words").query("panel == 'StrategyQA: dev' and label == 'lexical'").set_index("words of")["recall"]
    bm25 = table("11_bm25").query("data == 'StrategyQA' and method == 'lexical'").set_index("ranking")["ndcg@10"]
    plain = table("strategyqa_bm25").query("system == 'lexical' and train_steps == 3")
    expanded = compare(plain, [("bm25 + thoughts", "bm25")], by="ranking").iloc[0]
    without = table("11_worth").query("data == 'StrategyQA' and method == 'lexical' and first == 'no thoughts'").iloc[0]
    worth = table("strategyqa_worth").query("system == 'lexical'").groupby("condition")["ndcg@10"].mean()
    for test in (gain, control, latent, laser, without):
        assert not clear(test), "the page says: not clear"
    assert clear(released), "the page says: clearly"
    assert not clear(every.loc[("gircse", "basic")]), "the page says: not clear"
    trials = table("strategyqa_search_per_query").query("thinking_steps == train_steps")
    usual = trials.query("lexical < 0.5 and (train_steps == 3 or system == 'basic')")
    low, high = (usual[usual["learning_rate"] == rate].groupby("system")["ndcg@10"].mean() for rate in (0.0002, 0.0005))
    once = trials.query("system == 'lexical' and train_steps == 1 and lexical == 0.1")
    once = once.groupby("learning_rate")["ndcg@10"].mean()
    assert not untried("entailment_bank"), "the page says: whole"
    assert untried("strategyqa") == ["laser-lexical", "laser-released"], "the page says: not run"
    trials = trials.query("learning_rate == 0.0005")
    trials["trial"] = (
        trials["system"] + trials["train_steps"].map(" {:d}".format) + trials["lexical"].map(" {:g}".format)
    )
    heavy = compare(trials, [("lexical 3 0.5", "lexical 3 0.1")], by="trial").iloc[0]
    assert clear(heavy) and not clear(expanded), "the page says: costs quality, does not clearly change"
    at_half = trials.loc[trials["trial"] == "lexical 3 0.5", "ndcg@10"].mean()
    heavy_words = table("strategyqa_search_words").query(
        "system == 'lexical' and lexical == 0.5 and questions == 'dev' and step == 3 and learning_rate == 0.0005"
    )
    says(
        "docs/entailment_bank.md",
        f"`basic` has {real['basic']:.3f}, `lexical` {real['lexical']:.3f} ({change(gain)}), "
        f"BM25 {real['bm25']:.3f}, and {real['bm25-reasoning (bound)']:.3f} with the human decomposition",
        f"hold {words['its own reasoning'] * 100:.0f} % of the decomposition's new words, but also "
        f"{words[OTHER] * 100:.0f} % of another question's, and do not clearly change BM25 "
        f"({bm25['bm25 + thoughts']:.3f}, {change(expanded)})",
        f"Without its thoughts `lexical` has {worth['knocked out']:.3f} ({change(without)}, adjusted "
        f"p = {without['p_adjusted']:.2f}), with the thoughts of another question {worth[OTHER]:.3f}",
        f"the same words in one pass ({real['lexical K=1']:.3f}), it has {change(control)}",
        f"read by `basic`, has {real['rewrite']:.3f}",
        f"`latent` has {real['latent']:.3f} ({change(latent)} against `basic`)",
        f"`laser` {real['laser']:.3f} ({change(laser)} against `basic`), `gircse` {real['gircse']:.3f}",
        f"`laser-released` has {real['laser-released']:.3f} and is clearly worse than `basic` ({change(released)})",
        f"`basic` has {low['basic']:.3f} with it (seed 0: {high['basic']:.3f} at 0.0005), `latent` {low['latent']:.3f} "
        f"({high['latent']:.3f}), `lexical` {low['lexical']:.3f} ({high['lexical']:.3f}), `laser` {low['laser']:.3f} "
        f"({high['laser']:.3f}), `gircse` {low['gircse']:.3f} ({high['gircse']:.3f}) and `lexical K=1` "
        f"{once[0.0002]:.3f} ({once[0.0005]:.3f})",
        "`explicit`, the human decomposition in place of thoughts, read by `laser`, has "
        f"{real['explicit (bound)']:.3f}, and {real['explicit-intermediate (bound)']:.3f} without its last step",
        f"At 0.5 `lexical` has {at_half:.3f} ({change(heavy)} against 0.1, seed 0), and "
        f"its thoughts hold {heavy_words['own_so_far'].mean() * 100:.0f} % of the words",
    )


READ_BEYOND = {"laser": (3,), "gircse": (3,), "laser-halting": (3, 8), "lexical": (3, 8)}
"""Method to the K in training, of the table of section 4."""


def test_numbers_of_stability():
    """Sections 3 and 4 of the method, by `figures/data/recipes.csv`."""
    recipes = table("recipes")
    easy = recipes[recipes["group"].str.startswith("easy")]
    lexical = easy[easy["method"] == "lexical"]
    halting = easy[easy["method"] == "laser-halting"]["ndcg@10"]
    laser, released = trainings("laser"), trainings("laser-released")
    thinking = trainings("lexical", 5, "thinking-documents")
    parts = table("05_losses").groupby("label")["ndcg@10"].agg(["mean", "count"])
    part = {name.replace("laser without ", "no "): f"{value:.3f}" for name, value in parts["mean"].items()}
    first = recipes.query("group == 'easy-published' and method == 'laser' and thinking_steps == 3 and seed == 0")
    at_k = easy[easy["thinking_steps"] == easy["method"].map(lambda name: 1 if name == "laser-no-latent" else 3)]
    missing = {name: fail(some["ndcg@10"]) for name, some in at_k.groupby("method")}
    says(
        "docs/method.md",
        f"({lexical['ndcg@10'].mean():.3f} at one token per hop, K = 3, 5 and 8, {len(lexical)} trainings; "
        f"{trainings('lexical', 3, 'wordy').mean():.3f} at five tokens per hop, K=3, "
        f"{seeds(len(trainings('lexical', 3, 'wordy')))})",
        f"Documents that think as long as they like gain nothing ({thinking.mean():.3f} against "
        f"{trainings('lexical', 5).mean():.3f} at K=5, {len(thinking)} and {seeds(len(trainings('lexical', 5)))})",
        f"since then {fail(halting)} have failed (the worst at {halting.min():.3f}",
        f"of its trainings {fail(halting)} have failed ([section 4]",
        f"no words guide, fails more often: {fail(easy[easy['method'] == 'latent-halting']['ndcg@10'])}",
        f"`laser` ends at {spread(laser)}, and {fail(laser)} trainings fail; `laser-released` ends at "
        f"{spread(released)}, and {fail(released)} fail",
        f"Seed 0 of `laser` ends at {first['ndcg@10'].item():.3f}",
        f"{parts['count'].min()} to {seeds(parts['count'].max())}): `laser` {part['laser']}, no explicit view "
        f"{part['no explicit view']}, no trajectory {part['no trajectory alignment']}, no output distillation "
        f"{part['no output distillation']}, no latent view {part['no latent view']}, no co-learning "
        f"{part['no co-learning']}, `basic` "
        f"{part['basic']}",
        f"At one token per hop (`recipes.csv`) some trainings fail: `laser` {fail(laser)}, no explicit view "
        f"{missing['latent']}, no trajectory {missing['laser-no-trajectory']}, no output distillation "
        f"{missing['laser-no-output']}, no latent view {missing['laser-no-latent']}, no co-learning "
        f"{missing['laser-no-colearning']}",
        f"without the explicit view the mean is {trainings('latent').mean():.3f}, with it {laser.mean():.3f}",
        *(
            f"| `{method}`, K={steps} ({seeds(len(trainings(method, steps)))}) | "
            + " | ".join(f"{trainings(method, steps, value=f'at_{k}').mean():.3f}" for k in range(3, 9))
            for method, budgets in READ_BEYOND.items()
            for steps in budgets
        ),
    )
    assert (parts.drop("lexical")["mean"] < FAILED).all()
    assert missing["laser-no-colearning"] == missing["laser-no-latent"] == "5 of 5", (
        "the page says that both are needed"
    )


def test_numbers_of_mixed_depth():
    """Section 4 of the method, by the tables of `lab.adaptive`."""
    found = table("adaptive")
    own = found.query("reading == 'halting' and depth == 0")["ndcg@10"]
    latent = {k: found[found["reading"] == f"trained at K={k}"].query("depth == 0")["ndcg@10"] for k in (3, 4)}
    mean = found.groupby(["reading", "depth"])["ndcg@10"].mean()
    steps = found[found["reading"] == "halting"].groupby("depth")["steps"].mean()
    cost = table("adaptive_times").set_index(["side", "reading", "batch"])["ratio"]
    says(
        "docs/method.md",
        f"`lexical` with a budget of 8 has {spread(own)} over all questions, {each(mean['halting'].loc[1:])} at depths "
        f"1 to 4, where it takes {each(steps.loc[1:], '.2f')} steps",
        f"an oracle that knows the depth has {mean['depth', 0]:.3f}, the same steps dealt out at random "
        f"{mean['random', 0]:.3f}",
        f"`latent` with a fixed K=3 has {shown(latent[3])}, and {mean['trained at K=3', 4]:.3f} at depth 4; with "
        f"K=4 {shown(latent[4])}, {mean['trained at K=4', 1]:.3f} at depth 1 and {mean['trained at K=4', 4]:.3f} "
        "at depth 4",
        f"takes {steps[0]:.2f} steps on average",
        f"a question takes {cost['query', 'halting', 1]:.2f} and a fixed K=4 {cost['query', 'fixed 4', 1]:.2f}; 64 at "
        f"a time, all depths in one batch, {cost['query', 'halting', 64]:.2f} and {cost['query', 'fixed 4', 64]:.2f}. "
        f"A document takes {cost['document', 'halting', 1]:.2f} and {cost['document', 'halting', 64]:.2f}",
    )


def test_numbers_of_words_and_of_other_systems():
    """Sections 5 to 9 of the method."""
    wordy = {name: trainings(name, 3, "wordy") for name in ("laser", "latent", "lexical")}
    wordy["basic"] = trainings("basic", 1, "wordy")
    long = {name: trainings(name, 3, "very-wordy") for name in ("latent", "lexical")}
    assert trainings("rewrite", 1, "very-wordy", "rewritten").mean() == pytest.approx(long["lexical"].mean(), abs=5e-4)
    less = {part: trainings(f"lexical-no-{part}", 3, "wordy").mean() for part in ("novelty", "idf", "eos", "halting")}
    step = table("latency_methods").set_index("name")["time_ratio"]
    own, other, bm25, with_words = words_of_thoughts()
    real, hops = entailment_bank(), table("../full/data/14_hops").set_index(["hops to follow", "method"])["ndcg@10"]
    score, one, three = real["ndcg@10"], hops["1 hop"], hops["3 hops"]
    tuned = table("lame_search").query("learning_rate == 0.002 and reconstruction == 1 and diversity == 0.1")
    tuned = tuned.fillna({"start_word": ""})
    usual = tuned.query("thinking_steps == 3 and start_word == 'think'").set_index("bottleneck_warmup")["ndcg@10"]
    words = tuned.query("thinking_steps == 3 and bottleneck_warmup == 0.25").set_index("start_word")["ndcg@10"]
    ks = tuned.query("bottleneck_warmup == 0.25 and start_word == 'think'").set_index("thinking_steps")["ndcg@10"]
    short, named = trainings("laser", 2, "shorter"), trainings("laser", value="bridges") * 100
    failed, far = trainings("laser") < FAILED, trainings("laser", 2, "shorter", "at_6")
    says(
        "docs/method.md",
        f"`laser` has {shown(wordy['laser'])}, `latent` {shown(wordy['latent'])} and `basic` {shown(wordy['basic'])}",
        f"With five tokens per hop `lexical` has {shown(wordy['lexical'])}",
        f"With ten tokens per hop it has {long['lexical'].mean():.3f}, as has rewrite-then-retrieve",
        f"`latent` {long['latent'].mean():.3f}), and with twenty per hop {shown(trainings('lexical', 3, 'wordiest'))}",
        f"that the query or an earlier group holds it has {less['novelty']:.3f}, without idf {less['idf']:.3f}. "
        f"Without the taught end it has {less['eos']:.3f}, without halting {less['halting']:.3f}",
        f"{step['lexical']:.2f} times as long with `lexical` as with `latent`, and {step['laser']:.2f} times with "
        "`laser`",
        f"{shown_seeds(real)}) the words do not raise quality: {score['lexical']:.3f}, beside {score['basic']:.3f} for "
        f"`basic` and {score['lexical K=1']:.3f} for the same words in one pass",
        f"hold {own * 100:.0f} % of the words",
        f"{other * 100:.0f} % of those that another question's adds",
        f"from {bm25:.3f} to {with_words:.3f}; those of the same words taught in one pass, to "
        f"{words_of_thoughts('lexical K=1')[3]:.3f}",
        f'"think" {words["think"]:.3f}, drawn at random {words[""]:.3f}, at eos {words["</s>"]:.3f}), K '
        f"({each(ks.sort_index())} at K = 1, 3 and 8)",
        f"({usual[0.1]:.3f} at a tenth of the steps, {usual[0.5]:.3f} at half)",
        f"LaME has {one['lame']:.3f} at one hop, where `basic` has {one['basic']:.3f}, and {three['lame']:.3f} at "
        f"three hops, where `basic` has {three['basic']:.3f}",
        f"`basic` {shown(trainings('basic', 1))}, `laser` at K=2 {shown(short)}, and at K=3 `gircse` "
        f"{shown(trainings('gircse'))} and `lexical` {shown(trainings('lexical'))}",
        f"{trainings('lexical', value='bridges').mean() * 100:.1f} % of the test questions with `lexical` and "
        f"{trainings('gircse', value='bridges').mean() * 100:.1f} % with `gircse`; with `laser` for "
        f"{named[~failed].min():.1f} % or more where training did not fail, and for {named[failed].max():.1f} % or "
        "less",
        f"`laser` trained at K=2 has {short.mean():.3f} there and {far.mean():.3f} at K=6 ({seeds(len(far))})",
        f"2,535 facts, {shown_seeds(real)}: `lexical` {score['lexical']:.3f}, `basic` {score['basic']:.3f}, BM25 "
        f"{score['bm25']:.3f}, and {score['bm25-reasoning']:.3f} for BM25 that reads the human reasoning",
    )


def test_numbers_of_speed_and_training():
    amd = table("latency").query("name == 'ours' and layers == 'ours'")["gain"]
    intel = table("latency_intel-xeon-cpu-family-6-model-207-avx512").query("name == 'ours' and dtype == 'float32'")
    gain = intel["gain"]
    says(
        "docs/method.md",
        f"{amd.min():.1f} to {amd.max():.1f} times faster than the loop of the model card on an AMD machine, and "
        f"{gain.min():.1f} to {gain.max():.1f} times on an Intel one",
    )
    says(
        "docs/training.md",
        f"nDCG@10 about {trainings('lexical').mean():.3f}; `basic`, one pass, at about "
        f"{trainings('basic', 1).mean():.3f}",
        f"in this world: {fail(trainings('laser'))} trainings ended below {FAILED}",
    )
