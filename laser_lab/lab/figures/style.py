"""What all figures share: colours, names, fonts, the canvas, and writing to files."""

from __future__ import annotations

import hashlib
import io
import json
import os
import textwrap
from collections.abc import Iterable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from laser_lab.base.files import atomic_file, missing_extra
from laser_lab.probing import vocabulary

try:
    import matplotlib
except ImportError as error:
    raise missing_extra("matplotlib", "lab") from error
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

METHOD_COLOURS = {
    "laser": "#0173b2",
    "latent": "#de8f05",
    "gircse": "#029e73",
    "basic": "#d55e00",
    "lexical": "#117733",
    "rewrite": "#cc78bc",
    "lame": "#ca9161",
    "laser-lexical": "#44aa99",
    "laser-halting": "#0a3d62",
    "latent-halting": "#8a5a00",
    "laser-released": "#882255",
    "lexical-no-halting": "#88ccee",
    "lexical-no-novelty": "#aa4499",
    "lexical-no-idf": "#999933",
    "lexical-no-eos": "#cc6677",
    "laser-no-explicit": "#fbafe4",
    "laser-no-latent": "#56b4e9",
    "laser-no-trajectory": "#ee3377",
    "laser-no-output": "#332288",
    "laser-no-colearning": "#661100",
    "explicit view": "#dd77aa",
    "ours": "#0173b2",
    "published": "#949494",
    "untrained": "#333333",
    "random": "#949494",
    "zero-shot": "#333333",
    "Search-R3": "#555555",
    "InBedder": "#949494",
    "bm25": "#949494",
    "bm25-reasoning": "#666666",
    "explicit": "#dd77aa",
    "lame-no-decoder": "#bbcc33",
    "lame-no-diversity": "#77aadd",
    "lame-no-warmup": "#ee8866",
    "untrained, thinking": "#333333",
}
"""Method to colour, safe for colour-blind readers (seaborn's "colorblind" and Paul Tol's). A method's place here is
also that of its dashes and hatching; the first ones meet in one figure."""

MARKERS = dict(basic="s", latent="D", laser="o", gircse="^", rewrite="P", lame="v", lexical="*")
MARKERS |= {"Search-R3": "X", "InBedder": "h"}
"""Of the methods that meet in most figures; others take those of :data:`GROUP_MARKS` in order."""
GROUP_MARKS, DASHES = "osD^vPX", ("-", "--", "-.", ":", (0, (4, 1, 1, 1, 1, 1)))
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo", "|||", "---", "+++", "***")
"""What tells groups apart without colours."""
MAX_WIDTH = 10.0
"""Inches. At the width of a README (830 pixels) a letter of :data:`SMALLEST` points is then 10 pixels high."""
SMALLEST = 9.0

GROUP_COLOURS = ("#0173b2", "#de8f05", "#029e73", "#cc78bc", "#ca9161", "#56b4e9", "#949494")
"""For groups that are not methods, in order of appearance (seaborn's "colorblind")."""

STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "svg.hashsalt": "laser_lab",
}
NAMES = {
    "ndcg@10": "nDCG@10",
    "thinking_steps": "thinking steps K",
    "train_steps": "K in training",
    "milliseconds": "milliseconds per query",
    "hops": "hops:",
    "verbosity": "tokens of reasoning per hop",
    "step": "thinking step k",
    "reason token": "reason token k",
    "rank": "rank of the token",
    "cosine": "cosine similarity",
    "segment": "reasoning segment",
    "cka": "CKA",
    "accuracy": "accuracy of the probe",
}
"""Column to axis label; others are shown with spaces for underscores."""


def save(
    fig: Figure,
    data: pd.DataFrame | None,
    name: str,
    folder: str | os.PathLike[str] = "figures",
    made_from: Iterable[Any] = (),
) -> Path:
    """Write ``NAME.png``, ``NAME.svg`` and ``data/NAME.csv`` under `folder`, all or none; return the PNG's path.

    Args:
        data: None for a drawing, which has no table.
        made_from: Trainings (:class:`laser_lab.lab.cached.Cached`) and files of tables behind the figure. The PNG's
            ``Description`` holds them, as JSON: a training's configuration by hash, with its key and a hash of what
            was read from it; a table's name (``full/NAME`` for one of the full preset), with its hash.

    Raises:
        ValueError: `name` is not a plain file stem.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise ValueError(f"name must be a plain file stem such as '01_thoughts', got {name!r}")
    folder = Path(folder)
    finals = [folder / f"{name}.png", folder / f"{name}.svg"]
    finals += [] if data is None else [folder / "data" / f"{name}.csv"]
    with ExitStack() as files, styled():
        png, svg, *csv = [files.enter_context(atomic_file(file)) for file in finals]
        metadata = {"Software": None, "Description": json.dumps(_sources(made_from), sort_keys=True)}
        fig.savefig(png, format="png", dpi=160, metadata=metadata, facecolor="white")
        fig.savefig(svg, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
        if data is not None:
            _write(data, csv[0])
    return finals[0]


def save_table(data: pd.DataFrame, name: str, folder: str | os.PathLike[str] = "figures") -> Path:
    """Write ``data/NAME.csv`` under `folder`, as :func:`save` does, for a table without a figure; return its path."""
    file = Path(folder) / "data" / f"{name}.csv"
    with atomic_file(file) as temporary:
        _write(data, temporary)
    return file


def _write(data: pd.DataFrame, file: Path) -> None:
    data.to_csv(file, index=False, float_format="%.6g", lineterminator="\n")


def _sources(made_from: Iterable[Any]) -> dict[str, str]:
    def short(content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()[:12]

    found = {}
    for source in made_from:
        if isinstance(source, (str, Path)):
            file = Path(source)
            preset = "full/" if file.parent.parent.name == "full" else ""
            found[preset + file.name] = short(file.read_bytes())
        else:
            name = short(json.dumps(source.configuration, sort_keys=True).encode())
            found[name] = f"{source.key} {short((source.folder / 'per_query.csv').read_bytes())}"
    return found


def readable(token: str, limit: int | None = 12) -> str:
    """A token to draw: ⏎ new line, ⇥ tab, ␣ space at an end, U+XXXX for what the font lacks."""
    text = vocabulary.readable(token)
    text = "".join(c if c.isprintable() and ord(c) in _font_characters() else f"U+{ord(c):04X}" for c in text)
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


def styled() -> Any:
    """A context in which matplotlib draws as :data:`STYLE` says."""
    return matplotlib.rc_context(STYLE)


class NotebookFigure(Figure):
    """A figure outside pyplot (nothing to close or shown twice) that a notebook shows without any magic."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with styled():
            self.savefig(buffer, format="png", dpi=100, metadata={"Software": None}, facecolor="white")
        return buffer.getvalue()


def canvas(width: float, height: float) -> Figure:
    """An empty figure; sizes in inches."""
    return NotebookFigure(figsize=(width, height), layout="constrained")


@cache
def _font_characters() -> frozenset[int]:
    return frozenset(font_manager.get_font(font_manager.findfont(STYLE["font.family"])).get_charmap())


def grid(fig: Figure, panels: int, across: int) -> Any:
    """Axes (rows, `across`) with shared scales for so many panels; those left over are hidden."""
    axes = fig.subplots(-(-panels // across), across, sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat[panels:]:
        ax.set_visible(False)
    for ax in lowest(axes):
        ax.tick_params(labelbottom=True)
    return axes


def lowest(axes: Any) -> list[Axes]:
    """The last panel of each column of a :func:`grid`."""
    return [[ax for ax in column if ax.get_visible()][-1] for column in axes.T if column[0].get_visible()]


def panels_of(frame: pd.DataFrame, panel: str | None) -> list[tuple[Any, pd.DataFrame]]:
    """(value, rows) per value of `panel`, in order of appearance; one (None, all rows) without it."""
    return list(frame.groupby(panel, sort=False)) if panel else [(None, frame)]


def whiskers(frame: pd.DataFrame, measure: str) -> list[pd.Series]:
    """How far the interval reaches below and above the measure, as matplotlib's error bars have it. NaN, which is not
    drawn, for an interval without width (one training has none): it would look like certainty."""
    wide = frame["low"] < frame["high"]
    return [(frame[measure] - frame["low"]).where(wide), (frame["high"] - frame[measure]).where(wide)]


def _method(name: Any) -> str:
    """The method of a label, which may go on with a remark in brackets: ``gircse (K+1 calls)``."""
    return str(name).split(" (")[0]


def _place(name: Any, at: int) -> int:
    """The number of a method, the same in every figure; `at`, where it is none."""
    return list(METHOD_COLOURS).index(_method(name)) if _method(name) in METHOD_COLOURS else at


def colour_of(name: Any, at: int) -> str:
    """The colour of a method, or of the `at`-th group."""
    return METHOD_COLOURS.get(_method(name), GROUP_COLOURS[at % len(GROUP_COLOURS)])


def hatch_of(name: Any, at: int) -> str:
    """The hatching of a method's bars, or of those of the `at`-th group."""
    return HATCHES[_place(name, at) % len(HATCHES)]


def line_of(name: Any, at: int) -> dict[str, Any]:
    """How the line of a method, in every figure, or of the `at`-th group is drawn, so that they differ in grey, too."""
    at = _place(name, at)
    mark = MARKERS.get(_method(name), GROUP_MARKS[at % len(GROUP_MARKS)])
    return {"marker": mark, "markersize": 9 if mark == "*" else 6, "linestyle": DASHES[at % len(DASHES)]}


def headline(fig: Figure, title: str | None, width: int = 200) -> None:
    """The title of a figure of several panels, `width` characters a line."""
    if title:
        fig.suptitle(wrap(title, width), x=0.01, ha="left", parse_math=False, fontsize=13)


def panel_title(panel: str | None, value: Any) -> str:
    """What stands over a panel: its value, behind the name of the column where it is a number."""
    return value if isinstance(value, str) else f"{axis_label(panel)} {value}"


def finish(ax: Axes, label: str, title: str | None, bottom: float | None = None, width: int = 56) -> None:
    """Label, grid and title of a panel, `width` characters a line; `bottom` of its vertical axis, None: as drawn."""
    ax.set_ylabel(label)
    ax.grid(axis="y", alpha=0.3)
    ax.set_axisbelow(True)
    if bottom is not None:
        ax.set_ylim(bottom=bottom)
    if title:
        ax.set_title("\n".join(textwrap.wrap(title, width, break_on_hyphens=False)), parse_math=False)


def wrap(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width)) or text


def axis_label(column: str) -> str:
    return NAMES.get(column, column.replace("_", " "))


def check(frame: pd.DataFrame, columns: list[str]) -> None:
    missing = [column for column in columns if column not in frame]
    if missing:
        raise ValueError(f"the frame lacks the column {missing[0]!r}; it has {', '.join(map(str, frame.columns))}")
    if frame.empty:
        raise ValueError("the frame is empty: nothing to draw")
