"""The records of an experiment on real text: tables, per-query measures and run cards, with no text of the data."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from laser_lab.base.files import write_text
from laser_lab.base.stats import NOT_TRAINED, compare, summarise
from laser_lab.lab.rows import READINGS, STOCK, UNTRAINED, Row, without_paths
from laser_lab.methods import METHODS
from laser_lab.training.run import RUN_CARD

BY = ["corpus", "system", "train_steps", "thinking_steps"]
"""What a row of the summary is about."""
ORDER = (
    *("bm25", "zero-shot", "rewrite", "basic", "latent", "gircse", "laser", "laser-released"),
    *("lexical K=1", "lexical", "laser-lexical"),
)
"""Rows as tables and figures show them: untrained, one pass, thoughts, thoughts that hold words; others come last."""


def system_label(system: str, train_steps: int) -> str:
    """A system by name, with its K in training where that is not the method's own."""
    usual = system not in METHODS or system in READINGS or train_steps == METHODS[system].thinking_steps
    return system if usual else f"{system} K={train_steps}"


def training_record(row: Row, entries: int = 40) -> dict[str, Any]:
    """The run card of the training behind a row, with at most about `entries` of the logged steps. FileNotFoundError:
    it is not trained yet."""
    file = row.trained / "final" / RUN_CARD
    if not file.exists():
        raise FileNotFoundError(f"{row.system}, K={row.steps}, seed {row.seed} is not trained yet: run it first")
    card = without_paths(json.loads(file.read_text()))
    every = -(-len(card["history"]) // entries) or 1
    card["history"] = [
        {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in entry.items()}
        for entry in card["history"][::every]
    ]
    return card


def per_query(row: Row, settings: Iterable[str] = ()) -> pd.DataFrame:
    """A finished row's measures, a row per query and inference K; `settings` (:meth:`Row.setting`) become columns."""
    frame = row.frame().assign(**{name: row.setting(name) for name in settings})
    times = {int(k): value for k, value in row.record["ms_per_query"].items()}
    return frame.assign(ms_per_query=frame["thinking_steps"].map(times))


def summary(frame: pd.DataFrame, settings: Iterable[str] = ()) -> pd.DataFrame:
    """The table of some :func:`per_query` frames: means over seeds and queries, and the interval of nDCG@10."""
    by = [*BY, *settings]
    means = frame.groupby(by, as_index=False)[["recall@100", "ms_per_query"]].mean()
    return summarise(frame, by).merge(means, on=by)


def best_settings(table: pd.DataFrame, settings: Sequence[str]) -> pd.DataFrame:
    """The settings with the highest nDCG@10 at the K of training, a row per trained system of a search's table."""
    own = table[table["train_steps"] == table["thinking_steps"]]
    best = own.loc[own.groupby(["system", "train_steps"], sort=False)["ndcg@10"].idxmax()]
    return best[["system", "train_steps", *settings, "ndcg@10", "low", "high"]].reset_index(drop=True)


def write_records(rows: Sequence[Row], out: str | os.PathLike[str], settings: Sequence[str] = ()) -> pd.DataFrame:
    """Write what is finished of `rows` to ``OUT.csv``, ``OUT_per_query.csv`` and ``OUT_runs.json``; return the
    summary. Of the data they hold only the ids of queries."""
    done = [row for row in rows if row.done]
    frame = pd.concat([per_query(row, settings) for row in done], ignore_index=True)
    table = summary(frame, settings)
    runs = [
        row.record | {"steps": row.steps} | ({"training": training_record(row)} if row.is_trained else {})
        for row in done
    ]
    stem = os.fspath(out).removesuffix(".csv")
    measures = frame.drop(columns="ms_per_query")
    write_text(f"{stem}.csv", table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    write_text(f"{stem}_per_query.csv", measures.to_csv(index=False, float_format="%.5g", lineterminator="\n"))
    write_text(f"{stem}_runs.json", json.dumps(runs, indent=1) + "\n")
    return table


def at_own(frame: pd.DataFrame) -> pd.DataFrame:
    """Each row at the K that it was trained with; 0 is the K of what does not think."""
    return frame[(frame["thinking_steps"] == frame["train_steps"]) | (frame["thinking_steps"] == 0)]


def ordered(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows in the :data:`ORDER` of their ``method``; those of one method stay as they are."""
    names = dict.fromkeys([*ORDER, *frame["method"]])
    place = {name: at for at, name in enumerate(names)}
    return frame.sort_values("method", key=lambda column: column.map(place), kind="stable")


def drawn(frame: pd.DataFrame) -> pd.DataFrame:
    """For a figure: ``label`` names a row, ``method`` gives its colour. ``lexical K=1`` has that of ``lexical``."""
    return frame.assign(label=frame["method"], method=frame["method"].str.split(" K=").str[0])


def find(frame: pd.DataFrame, **which: Any) -> pd.Series | None:
    """The first row with these values of its columns, or None."""
    for column, value in which.items():
        frame = frame[frame[column] == value]
    return None if frame.empty else frame.iloc[0]


def differences(
    frame: pd.DataFrame, pairs: Iterable[tuple[str, str]], measure: str = "ndcg@10", by: str = "method"
) -> pd.DataFrame:
    """:func:`laser_lab.base.stats.compare` in `measure`, set by set (``data``), of the pairs that are there."""
    pairs, tests = list(pairs), []
    if by == "method":
        frame = frame.assign(seed=frame["seed"].mask(frame["system"].isin([*UNTRAINED, STOCK]), NOT_TRAINED))
    for name, part in frame.groupby("data", sort=False):
        known = [pair for pair in pairs if set(pair) <= set(part[by])]
        tests.append(compare(part.assign(**{"ndcg@10": part[measure]}), known, by=by).assign(data=name))
    return pd.concat(tests, ignore_index=True)
