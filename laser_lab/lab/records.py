"""The records of an experiment on real text: tables, per-query measures and run cards, with no text of the data."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from laser_lab.base.files import read_json, write_text
from laser_lab.base.stats import NOT_TRAINED, compare, summarise
from laser_lab.data.readers import read_task
from laser_lab.lab.provenance import code_version
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
    return _timed(row.frame().assign(**{name: row.setting(name) for name in settings}), row.record)


def _timed(frame: pd.DataFrame, record: dict[str, Any]) -> pd.DataFrame:
    times = {int(k): value for k, value in record["ms_per_query"].items()}
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


def of_row(frame: pd.DataFrame, row: Row, settings: Iterable[str] = ()) -> pd.DataFrame:
    """The lines of a gathered table that are a row's."""
    named = {name: value for name, value in row.columns.items() if name in frame}
    named |= {name: row.setting(name) for name in settings}
    return frame[(frame[list(named)] == pd.Series(named)).all(axis=1)]


def recorded(rows: Sequence[Row], out: str | os.PathLike[str], settings: Sequence[str] = ()) -> dict[int, Any]:
    """What the records at OUT hold of `rows`, by the code as it is: by its place among them, a row's :func:`per_query`
    and its entry of the runs. ValueError: they are of another search, or of other questions than those of the rows."""
    stem = os.fspath(out).removesuffix(".csv")
    if not os.path.exists(f"{stem}_runs.json"):
        return {}
    code = code_version(Row.module)[:12]
    runs = {_asked(run["row"]): run for run in read_json(f"{stem}_runs.json") if run.get("code") == code}
    measures, found = pd.read_csv(f"{stem}_per_query.csv", dtype={"query_id": str}), {}
    by = [*BY, "seed", "query_id", *settings]
    if not set(by) <= set(measures) or measures.duplicated(by).any():
        raise ValueError(f"{stem}_per_query.csv is of another table or search: name another file")
    for at, row in enumerate(rows):
        run, frame = runs.get(_asked(asdict(row))), of_row(measures, row, settings)
        if run and len(frame):  # a run that was cut may have written one file of two
            found[at] = _timed(frame, run), run
    ids = {query for frame, _ in found.values() for query in frame["query_id"]}
    if ids - set(read_task(rows[0].data, "dev").queries):
        raise ValueError(f"{stem}_per_query.csv is of other questions than {rows[0].data}: name another file")
    return found


def _asked(row: dict[str, Any]) -> str:
    """A row as text, wherever its data lies."""
    return json.dumps(without_paths(row) | {"data": ""}, sort_keys=True)


def write_records(rows: Sequence[Row], out: str | os.PathLike[str], settings: Sequence[str] = ()) -> pd.DataFrame:
    """Write what is finished of `rows` to ``OUT.csv``, ``OUT_per_query.csv`` and ``OUT_runs.json``; return the
    summary. What these files hold of rows that are not finished on this machine stays in them (:func:`recorded`, also
    for the errors). Of the data they hold only the ids of queries."""
    kept, frames, runs = recorded(rows, out, settings), [], []
    for at, row in enumerate(rows):
        if row.done:
            frames.append(per_query(row, settings))
            card = kept[at][1].get("training") if at in kept else None  # a row stays done without its weights
            if row.is_trained and (row.trained / "final" / RUN_CARD).exists():
                card = training_record(row)
            runs.append(row.record | {"steps": row.steps} | ({"training": card} if card else {}))
        elif at in kept:
            frames.append(kept[at][0])
            runs.append(kept[at][1])
    if not frames:
        raise ValueError("no row of the configuration is finished")
    frame = pd.concat(frames, ignore_index=True)
    table = summary(frame, settings)
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
    return frame.assign(label=frame["method"], method=frame["method"].str.split(" K=|-intermediate").str[0])


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
        kind = frame["system"].str.split(":").str[0]  # st:NAME
        frame = frame.assign(seed=frame["seed"].mask(kind.isin([*UNTRAINED, STOCK]), NOT_TRAINED))
    for name, part in frame.groupby("data", sort=False):
        known = [pair for pair in pairs if set(pair) <= set(part[by])]
        tests.append(compare(part.assign(**{"ndcg@10": part[measure]}), known, by=by).assign(data=name))
    return pd.concat(tests, ignore_index=True)
