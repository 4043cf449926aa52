"""What the papers and this project claim, and what the tables that the notebooks wrote say to it.

Differences are judged by the paired tests of the notebooks (``NN_tests.csv``, rows of
:func:`laser_lab.base.stats.compare`), other claims by the limits below.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from laser_lab.base.stats import interval
from laser_lab.lab.conclusions import change, value
from laser_lab.lab.conclusions import verdict as told

HOLDS, FAILS, OPEN, NOT_RUN = "holds", "does not hold", "not clear", "not run"
FLAT = 0.02
"""nDCG@10 that may change with K at inference, or go with a part of the loss, and still count as the same. The curves
of the paper's Fig. 5 change by about 0.01."""
LEARNED = 0.1
"""nDCG@10 that LaSER must be above one pass for its world to say which part of its loss is needed."""
PARTS = 5
"""Rows of the paper's Table 5 that leave out a part of the loss."""
BUDGET = 0.01
"""nDCG@10 that may change from the K of training to a larger one where thoughts end themselves."""
DEPTH = 0.1
"""Thinking steps that a question's own number of steps may be away from its depth."""
COST = (1.4, 1.8)
"""Times one pass that count as the paper's 1.5 to 1.7."""
FOLLOWED = 0.5
"""Share of questions that must go where a changed thought leads."""

Table = Callable[[str], pd.DataFrame]
"""A table of ``figures/data`` by its name."""


def _row(table: pd.DataFrame, **which: Any) -> pd.Series:
    """The one row with these values; IndexError: there is none; ValueError: there are several."""
    for name, wanted in which.items():
        table = table[table[name] == wanted]
    if len(table) > 1:
        raise ValueError(f"{len(table)} rows with {which}")
    return table.iloc[0]


def _above(row: pd.Series) -> str:
    """What a paired test says to "the first is above the second"."""
    return told(row, HOLDS, FAILS, OPEN)


def _all(verdicts: list[str]) -> str:
    """The verdict that all have, or that it is not clear. IndexError: there are none."""
    return verdicts[0] if len(set(verdicts)) < 2 else OPEN


def _seeds(table: pd.DataFrame, column: str = "ndcg@10") -> dict[str, float]:
    """Mean and interval over trainings, a row each; IndexError: there are none."""
    table.iloc[0]
    return dict(zip((column, "low", "high"), interval(table[column])))


def thinking_easy(read: Table) -> tuple[str, str]:
    table, test = read("03_quality"), _row(read("03_tests"), first="laser", second="basic")
    own = table[table["train_steps"] == table["thinking_steps"]].set_index("method")
    return _above(test), f"laser {value(own.loc['laser'])}, basic {value(own.loc['basic'])}; {change(test)}"


def thinking_wordy(read: Table) -> tuple[str, str]:
    table, test = read("06_frontier"), _row(read("06_tests"), first="laser", second="basic")
    ours = table[table["where"].str.startswith("measured")]
    shown = ", ".join(f"{name} {value(_row(ours, method=name))}" for name in ("laser", "basic"))
    return _above(test), f"{shown}; {change(test)}"


def thinking_real(read: Table) -> tuple[str, str]:
    quality, found, says = read("11_quality"), [], []
    for name, part in read("11_tests").query("second == 'basic'").groupby("data"):
        thinker = [method for method in ("laser", "lexical", "latent") if method in set(part["first"])][0]
        test, own = _row(part, first=thinker), quality[quality["data"] == name]
        thinks, one = _row(own[own["thinking_steps"] > 1], method=thinker), _row(own, method="basic")
        found.append(_above(test))
        says.append(f"{name}: {thinker} {value(thinks)}, basic {value(one)}; {change(test)}")
    return _all(found), ". ".join(says)


def parts(read: Table) -> tuple[str, str]:
    tests = read("05_tests").query("second == 'laser'").set_index("first")
    gain = -tests.loc["basic", "difference"]
    if _above(tests.loc["basic"]) != FAILS or gain < LEARNED:
        return OPEN, f"laser is not clearly {LEARNED} above basic here ({gain:+.3f}): this world cannot tell its parts"
    some = tests[tests.index.str.startswith("laser-no-") | (tests.index == "latent")]
    if len(some) < PARTS:
        return OPEN, f"{len(some)} of {PARTS} rows without a part were trained"
    needed = [name for name, row in some.iterrows() if _above(row) == FAILS]
    spared = [name for name, row in some.iterrows() if row["low"] > -FLAT]
    verdict = FAILS if spared else HOLDS if len(needed) == len(some) else OPEN
    says = f"{len(needed)} of {len(some)} rows without a part are clearly worse than laser"
    once = [name for name, row in some.iterrows() if row["seeds"] == 1]
    says += f"; at most {FLAT} worse: {', '.join(spared)}" if spared else ""
    return verdict, says + (f"; trained once: {', '.join(once)}" if once else "")


def flat(read: Table) -> tuple[str, str]:
    table = read("recipes").query("group == 'easy-published' and method in ['laser', 'latent']")
    least = table["thinking_steps"].min()
    table = table[table["thinking_steps"] == least]
    worked = table[~table["failed"]]
    worked.iloc[0]
    changes = worked["at_8"] - worked["ndcg@10"]
    verdict = HOLDS if (changes.abs() <= FLAT).all() else FAILS if (changes < -FLAT).all() else OPEN
    names = ", ".join(f"{name} {number}" for name, number in worked["method"].value_counts().items())
    says = f"K={least} read at K=8 changes by {changes.min():+.3f} to {changes.max():+.3f} in {len(worked)} trainings"
    return verdict, f"{says} ({names}); {len(table) - len(worked)} more failed and are left out"


def scale(read: Table) -> tuple[str, str]:
    tests = read("08_tests").query("first == 'laser' and second == 'basic'")
    found = [_above(row) for _, row in tests.iterrows()]
    says = f"laser is clearly above basic in {found.count(HOLDS)} of {len(found)} sizes, clearly below in "
    return _all(found), says + f"{found.count(FAILS)}; trainings per size: {tests['seeds'].min()}"


def rewriting(read: Table) -> tuple[str, str]:
    tests, given = read("07_tests"), "with written reasoning"
    own = _row(tests, of="laser", first=given)
    more = _row(tests, of=given, first="laser", second="basic")
    other = _row(tests, of="basic", first=given)
    found = [_above(own), _above(more)]
    verdict = FAILS if FAILS in found else _all(found)
    return verdict, f"laser gains {change(own)}, basic {change(other)}; laser's gain minus basic's {change(more)}"


def meaning(read: Table) -> tuple[str, str]:
    table, test = read("09_bridges"), _row(read("09_tests"), first="laser", second="latent")
    own = table[table["step"] == table["bridge"]].groupby("method")[["share of queries", "low", "high"]].mean()
    shown = ", ".join(f"{name} {own.loc[name, 'share of queries']:.3f}" for name in ("laser", "latent"))
    if (untrained := own.loc["untrained", "share of queries"]) <= 0.5:
        return OPEN, f"the untrained model names {untrained:.3f} of the bridges: there is no meaning to lose ({shown})"
    return _above(test), f"step k names bridge k: {shown}; {change(test)}"


def latency(read: Table) -> tuple[str, str]:
    table = read("latency")
    sweep = table[table["name"] == "sweep"]
    one, three = (_row(sweep, thinking_steps=steps) for steps in (1, 3))
    ratio = three["median"] / one["median"]
    where = f"Gemma 3 270M, {one['processor']}, {one['dtype']}, {one['batch']} x {one['tokens']} tokens"
    ours = table[(table["name"] == "ours") & (table["layers"] == "ours") & (table["dtype"] == one["dtype"])]
    others = ours[(ours["batch"] != one["batch"]) | (ours["tokens"] != one["tokens"])]
    says = f"{ratio:.2f} times one pass ({where})"
    says += "".join(f"; {row['batch']} x {row['tokens']}: {row['passes']:.2f}" for _, row in others.iterrows())
    inside = [COST[0] <= each <= COST[1] for each in (ratio, *others["passes"])]
    return HOLDS if all(inside) else OPEN if any(inside) else FAILS, says


def budget(read: Table) -> tuple[str, str]:
    table = read("recipes").query("group == 'easy' and method == 'lexical'")
    table.iloc[0]
    largest = float((table["at_8"] - table["ndcg@10"]).abs().max())
    return (HOLDS if largest < BUDGET else FAILS), f"{len(table)} trainings, largest change up to K=8: {largest:.3f}"


def words(read: Table) -> tuple[str, str]:
    table = read("recipes").query("group in ['wordy', 'wordy-others'] and thinking_steps == 3")
    found = {name: _seeds(table[table["method"] == name]) for name in ("lexical", "laser")}
    test = _row(read("05_tests"), first="lexical", second="laser")
    return _above(test), ", ".join(f"{name} {value(row)}" for name, row in found.items()) + f"; {change(test)}"


def depth(read: Table) -> tuple[str, str]:
    table = read("adaptive").query("reading == 'halting' and depth > 0")
    steps = table.groupby("depth")["steps"].mean()
    right = bool(((steps - steps.index).abs() < DEPTH).all()) and len(steps) > 1
    return (HOLDS if right else FAILS), "steps by depth " + ", ".join(f"{d}: {s:.2f}" for d, s in steps.items())


def causes(read: Table) -> tuple[str, str]:
    table = read("12_swaps").query("outcome == 'changed path' and put_in == 'token'")
    pooled = table[(table["thoughts"] == "swapped, all states pooled") & (table["method"] == "lexical")]
    quality = read("03_quality").query("train_steps == thinking_steps").set_index("method")["ndcg@10"]
    least, says = {}, []
    for method, rates in table[table["thoughts"] == "swapped, later states only"].groupby("method"):
        least[method] = rates.loc[rates["share"].idxmin()]
        says.append(f"{method} for at least {value(least[method], 'share')} (its nDCG@10: {quality[method]:.3f})")
    own = least["lexical"]
    before = table.loc[(table["thoughts"] == "undisturbed") & (table["method"] == "lexical"), "high"].max()
    verdict = HOLDS if own["low"] > max(FOLLOWED, before) else FAILS if own["high"] < FOLLOWED else OPEN
    says.append(f"by the whole embedding lexical {value(pooled.loc[pooled['share'].idxmin()], 'share')}")
    return verdict, f"judged by lexical, another entity's embedding put in; retrieval follows {', '.join(says)}"


def one_pass(read: Table) -> tuple[str, str]:
    table = read("14_quality").set_index("method")
    best = table.loc[table.index.isin(["lexical", "gircse", "laser"]), "ndcg@10"].idxmax()
    test = _row(read("14_tests"), first=best, second="lame")
    says = f"{best} {value(table.loc[best])}, lame {value(table.loc['lame'])}; {change(test)}"
    one = read("14_hops").query("`hops to follow` == '1 hop'").set_index("method").loc[["lame", "basic"]]
    if one.loc["lame", "high"] < one.loc["basic", "low"]:
        return OPEN, f"{says}. At one hop lame is behind basic: {value(one.loc['lame'])}, {value(one.loc['basic'])}"
    return _above(test), says


def not_here(read: Table) -> tuple[str, str]:
    return NOT_RUN, "needs a model hub, and a GPU or days"


CLAIMS: tuple[tuple[str, str, Callable[[Table], tuple[str, str]], str], ...] = (
    ("paper", "Thinking beats one pass (HopWorld, one token of reasoning a hop)", thinking_easy, "03"),
    ("paper", "Thinking beats one pass (HopWorld, five tokens a hop)", thinking_wordy, "06"),
    ("paper", "Thinking beats one pass (real language, Gemma 3 270M)", thinking_real, "11"),
    ("paper", "Every part of the loss is needed (Table 5)", parts, "05"),
    ("paper", "Quality is flat in K at inference (Fig. 5)", flat, "04"),
    ("paper", "It holds for every size of backbone (Fig. 3)", scale, "08"),
    ("paper", "LaSER gains more from rewritten queries than one pass (Fig. 4)", rewriting, "07"),
    ("paper", "Guided thoughts keep their meaning, contrastive ones lose it", meaning, "09"),
    (
        "paper",
        "Three thoughts cost 1.5 to 1.7 times one pass (Fig. 1; on the machine and at the lengths named here)",
        latency,
        "06",
    ),
    ("paper", "The published checkpoints' scores (Tables 3 and 4)", not_here, "15"),
    ("ours", "Halting makes K a budget: more steps change nothing", budget, "16"),
    ("ours", "Thoughts that are taught words hold wordy reasoning", words, "05"),
    ("ours", "Thoughts are as long as the question is deep", depth, "16"),
    ("ours", "Change a thought, and the states after it lead where the new one leads", causes, "12"),
    ("ours", "One pass with reason tokens (LaME) cannot follow three hops, a loop can", one_pass, "14"),
)
"""Whose claim, the claim, what is said to it, and the notebook."""


def claims(*folders: str | os.PathLike[str]) -> pd.DataFrame:
    """``claim, by, verdict, numbers, notebook``, a row per claim, from the tables in the first of `folders` that has
    them; a claim whose table, or rows in it, are not there is ``not run``."""

    def read(name: str) -> pd.DataFrame:
        files = [Path(folder) / f"{name}.csv" for folder in folders]
        return pd.read_csv(next((file for file in files if file.exists()), files[0]))

    rows = []
    for whose, claim, say, notebook in CLAIMS:
        try:
            verdict, numbers = say(read)
        except (FileNotFoundError, KeyError, IndexError, NameError):  # pandas has a NameError for a column
            verdict, numbers = NOT_RUN, "its table or rows are not there"
        rows.append((claim, whose, verdict, numbers, notebook))
    return pd.DataFrame(rows, columns=["claim", "by", "verdict", "numbers", "notebook"])
