"""The LaSER paper's own numbers (``published.json``), shown beside measured ones and never in one column with them."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

FILE = Path(__file__).with_name("published.json")


@lru_cache
def everything() -> dict[str, Any]:
    """The whole file: tables 3 to 5, figures 1 and 3 to 5, the training settings of the paper (``training``) and of its
    released code (``training_released``, each with its place there), and the known contradictions."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def published(name: str) -> pd.DataFrame:
    """One table or figure, e.g. ``"table5_ablation"``, as a tidy frame; nested values become columns. KeyError: no such
    table."""
    tables = {key: value for key, value in everything().items() if key.startswith(("table", "figure"))}
    if name not in tables:
        raise KeyError(f"no published {name!r}; there are {', '.join(tables)}")
    table = tables[name]
    return pd.json_normalize(table["points"] if isinstance(table, dict) else table, sep=" ")


def is_approximate(name: str) -> bool:
    """Whether the numbers were read off a plot."""
    table = everything()[name]
    return isinstance(table, dict) and bool(table.get("approximate"))


def beside(measured: pd.DataFrame, name: str, on: dict[str, str], template: str | None = None) -> pd.DataFrame:
    """`measured`, a row per method or setting, with the published table at its side; two column levels, ``measured``
    and ``published``.

    Args:
        on: Value of the first column of `measured` to value of the published table's first column of distinct texts.
            Rows without a partner stay, with gaps.
        template: What stood around the measured texts (``none``: nothing; published numbers have the chat template),
            where `measured` has no such column.

    Raises:
        KeyError: No such table, or `on` names a row that is not there.
    """
    theirs = published(name)
    texts = [column for column in theirs if theirs[column].map(lambda value: isinstance(value, str)).all()]
    key = next(column for column in texts if theirs[column].is_unique)
    ours = measured.set_index(measured.columns[0])
    if "template" not in ours:
        ours = ours.assign(template=template or "none")
    theirs = theirs.set_index(key)
    for side, rows in (("measured", set(on) - set(ours.index)), ("published", set(on.values()) - set(theirs.index))):
        if rows:
            raise KeyError(f"no {side} row {', '.join(map(repr, sorted(rows)))}")
    chosen = theirs.reindex([on.get(row) for row in ours.index]).set_axis(ours.index)
    chosen.insert(0, key, [on.get(row, "") for row in ours.index])
    label = "published (read off a plot)" if is_approximate(name) else "published"
    return pd.concat({"measured": ours, label: chosen}, axis=1)


def contradictions(about: str = "") -> list[str]:
    """Where the paper, its model cards and its released code disagree; `about` keeps those that mention a word."""
    return [text for text in everything()["known_inconsistencies"] if about.lower() in text.lower()]
