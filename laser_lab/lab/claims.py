"""What the papers and this project claim, and what the tables that the notebooks wrote say to it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from laser_lab.base.stats import interval
from laser_lab.lab.conclusions import value

HOLDS, FAILS, OPEN, NOT_RUN = "holds", "does not hold", "not clear", "not run"
Table = Callable[[str], pd.DataFrame]
"""A table of ``figures/data`` by its name."""


def above(first: Any, second: Any) -> str:
    """What two rows with ``low`` and ``high`` say to "the first is above the second"."""
    return HOLDS if first["low"] > second["high"] else FAILS if first["high"] < second["low"] else OPEN


def _row(table: pd.DataFrame, **which: Any) -> pd.Series:
    """The first row with these values; IndexError: there is none."""
    for name, wanted in which.items():
        table = table[table[name] == wanted]
    return table.iloc[0]


def _seeds(table: pd.DataFrame, column: str = "ndcg@10") -> dict[str, float]:
    """Mean and interval over trainings, a row each; IndexError: there are none."""
    table.iloc[0]
    return dict(zip((column, "low", "high"), interval(table[column])))


def thinking_easy(read: Table) -> tuple[str, str]:
    table = read("03_quality")
    own = table[table["train_steps"] == table["thinking_steps"]]
    laser, basic = _row(own, method="laser"), _row(own, method="basic")
    return above(laser, basic), f"laser {value(laser)}, basic {value(basic)}"


def thinking_wordy(read: Table) -> tuple[str, str]:
    table = read("06_frontier")
    laser, basic = _row(table, method="laser"), _row(table, method="basic")
    return above(laser, basic), f"laser {value(laser)}, basic {value(basic)}"


def thinking_real(read: Table) -> tuple[str, str]:
    table = read("11_quality")
    found, says = set(), []
    for name, part in table.groupby("data"):
        thinker = next(method for method in ("laser", "lexical", "latent") if method in set(part["method"]))
        first, second = _row(part, method=thinker), _row(part, method="basic")
        found.add(above(first, second))
        says.append(f"{name}: {thinker} {value(first)}, basic {value(second)}")
    return (found.pop() if len(found) == 1 else OPEN), "; ".join(says)


def parts(read: Table) -> tuple[str, str]:
    table = read("05_losses").groupby("method").agg({"low": "first", "high": "first", "ndcg@10": "mean"})
    laser = table.loc["laser"]
    names = [name for name in table.index if name.startswith("laser-no-") or name == "latent"]
    worse = [name for name in names if above(laser, table.loc[name]) == HOLDS]
    verdict = HOLDS if len(worse) == len(names) else FAILS if not worse else OPEN
    return verdict, f"{len(worse)} of {len(names)} parts are clearly missed where they are taken away"


def flat(read: Table) -> tuple[str, str]:
    table = read("04_train_by_inference").query("method in ['laser', 'latent']")
    least, most = table["train_steps"].min(), table["thinking_steps"].max()
    verdicts, says = [], []
    for method, part in table[table["train_steps"] == least].groupby("method"):
        own, far = _row(part, thinking_steps=least), _row(part, thinking_steps=most)
        same = abs(own["ndcg@10"] - far["ndcg@10"]) <= 0.02
        verdicts.append(HOLDS if same else FAILS if above(own, far) == HOLDS else OPEN)
        says.append(f"{method}, K={least}: {value(own)}; read at K={most}: {value(far)}")
    verdict = FAILS if FAILS in verdicts else HOLDS if set(verdicts) == {HOLDS} else OPEN
    return verdict, "; ".join(says)


def scale(read: Table) -> tuple[str, str]:
    table = read("08_size")
    found = {
        size: above(_row(part, method="laser"), _row(part, method="basic")) for size, part in table.groupby("size")
    }
    won = sum(verdict == HOLDS for verdict in found.values())
    verdict = HOLDS if won == len(found) else FAILS if not won else OPEN
    return verdict, f"laser is clearly above basic in {won} of {len(found)} sizes"


def rewriting(read: Table) -> tuple[str, str]:
    table = read("07_rewrite_gain")
    gains, says = {}, []
    for name in ("laser", "basic"):
        plain, given = (_row(table, method=name, input=i) for i in ("query alone", "with written reasoning"))
        says.append(f"{name} {plain['ndcg@10']:.3f} to {given['ndcg@10']:.3f}")
        gains[name] = {"low": given["low"] - plain["high"], "high": given["high"] - plain["low"]}
    lost = gains["laser"]["high"] < 0
    return (FAILS if lost else above(gains["laser"], gains["basic"])), ", ".join(says)


def meaning(read: Table) -> tuple[str, str]:
    table = read("09_bridges")
    own = table[table["step"] == table["bridge"]].groupby("method")[["share of queries", "low", "high"]].mean()
    laser, latent = own.loc["laser"], own.loc["latent"]
    shown = ", ".join(f"{name} {value(own.loc[name], 'share of queries')}" for name in ("laser", "latent"))
    return above(laser, latent), f"step k names bridge k: {shown}"


def latency(read: Table) -> tuple[str, str]:
    sweep = (
        read("latency").query("name == 'sweep'").drop_duplicates("thinking_steps").set_index("thinking_steps")["median"]
    )
    ratio = sweep[3] / sweep[1]
    return (HOLDS if 1.4 <= ratio <= 1.8 else FAILS), f"{ratio:.2f} times one pass (Gemma 3 270M, 8 x 64 tokens)"


def budget(read: Table) -> tuple[str, str]:
    table = read("recipes").query("group == 'easy' and method == 'lexical'")
    table.iloc[0]
    change = float((table["at_8"] - table["ndcg@10"]).abs().max())
    return (HOLDS if change < 0.01 else FAILS), f"{len(table)} trainings, largest change up to K=8: {change:.3f}"


def words(read: Table) -> tuple[str, str]:
    table = read("recipes").query("group in ['wordy', 'wordy-others'] and thinking_steps == 3")
    found = {name: _seeds(table[table["method"] == name]) for name in ("lexical", "laser")}
    return above(found["lexical"], found["laser"]), ", ".join(f"{name} {value(row)}" for name, row in found.items())


def depth(read: Table) -> tuple[str, str]:
    table = read("adaptive").query("reading == 'halting' and depth > 0")
    steps = table.groupby("depth")["steps"].mean()
    right = bool(((steps - steps.index).abs() < 0.1).all()) and len(steps) > 1
    return (HOLDS if right else FAILS), "steps by depth " + ", ".join(f"{d}: {s:.2f}" for d, s in steps.items())


def causes(read: Table) -> tuple[str, str]:
    table = read("12_swaps").query("outcome == 'changed path' and put_in == 'token'")
    rates = table[table["thoughts"] == "swapped, later states only"]
    before = table.loc[table["thoughts"] == "undisturbed", "high"].max()
    least = rates.loc[rates["share"].idxmin()]
    return (HOLDS if least["low"] > max(0.5, before) else FAILS), f"followed for at least {value(least, 'share')}"


def one_pass(read: Table) -> tuple[str, str]:
    table = read("14_quality")
    laser, lame = _row(table, method="laser"), _row(table, method="lame")
    return above(laser, lame), f"laser {value(laser)}, lame {value(lame)}"


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
    ("paper", "Three thoughts cost 1.5 to 1.7 times one pass (Fig. 1)", latency, "06"),
    ("paper", "The published checkpoints' scores (Tables 3 and 4)", not_here, "15"),
    ("ours", "Halting makes K a budget: more steps change nothing", budget, "16"),
    ("ours", "Thoughts that are taught words hold wordy reasoning", words, "16"),
    ("ours", "Thoughts are as long as the question is deep", depth, "16"),
    ("ours", "Retrieval computes with its thoughts: change one, it follows", causes, "12"),
    ("ours", "One pass with reason tokens cannot compose three hops, a loop can", one_pass, "14"),
)
"""Whose claim, the claim, what is said to it, and the notebook."""


def claims(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """``claim, by, verdict, numbers, notebook``, a row per claim, from the tables in `folder`; a claim whose table, or
    rows in it, are not there is ``not run``."""

    def read(name: str) -> pd.DataFrame:
        return pd.read_csv(Path(folder) / f"{name}.csv")

    rows = []
    for whose, claim, say, notebook in CLAIMS:
        try:
            verdict, numbers = say(read)
        except (FileNotFoundError, KeyError, IndexError, NameError):  # pandas has a NameError for a column
            verdict, numbers = NOT_RUN, "its table or rows are not there"
        rows.append((claim, whose, verdict, numbers, notebook))
    return pd.DataFrame(rows, columns=["claim", "by", "verdict", "numbers", "notebook"])
