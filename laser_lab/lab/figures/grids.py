"""Tables drawn as grids: what thoughts say, and numbers from 0 to 1."""

from __future__ import annotations

import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from seaborn.utils import relative_luminance

from laser_lab.lab.figures import style
from laser_lab.lab.figures.style import axis_label, canvas, check, readable, wrap

FAINT = 0.01
"""Probability below which a word hardly weighs in a soft token."""
DOWNWARDS = ("step", "reason token")
"""What is read from the top down; all else, layers say, goes up."""


def thought_heatmap(tokens: pd.DataFrame, title: str | None = None, panel: str = "query", step: str = "step") -> Figure:
    """The table of :func:`laser_lab.nearest_tokens`: a row per thinking `step`, a column per rank, the token in every
    cell, its ``probability`` or ``cosine`` as the colour, and a panel per value of `panel`. Words less probable than
    :data:`FAINT` are grey."""
    measure = next((m for m in ("probability", "cosine") if m in tokens), "probability")
    check(tokens, [step, "rank", "token", measure, panel])
    least = 0.0 if measure == "probability" else tokens[measure].min()  # cosines lie close together
    faint = FAINT if measure == "probability" else None
    tokens = tokens.assign(panel=[readable(str(name), None) for name in tokens[panel]])
    return heatmap(tokens, measure, x="rank", y=step, panel="panel", text="token", title=title, across=1,
                   limits=(least, tokens[measure].max()), faint=faint)  # fmt: skip


@style.styled()
def heatmap(
    frame: pd.DataFrame,
    value: str,
    *,
    x: str,
    y: str,
    panel: str | None = None,
    text: str | None = None,
    title: str | None = None,
    across: int = 4,
    limits: tuple[float, float] = (0, 1),
    faint: float | None = None,
    missing: str = "",
) -> Figure:
    """Heat maps of `value`, whose colours end at the `limits`, over `x` and `y`, the smallest `y` at the bottom, but
    the first of :data:`DOWNWARDS` on top. The column `text` (default: `value`) is written into the cells, in grey where
    `value` is below `faint`; at most so many panels stand `across`. Rows without any value are hatched and say why:
    `missing`."""
    check(frame, [x, y, value] + [column for column in (panel, text) if column])
    panels = style.panels_of(frame, panel)
    columns, rows = sorted(frame[x].unique()), sorted(frame[y].unique())
    each = (1.1 if text else 0.46) * len(columns) + 0.5
    across = max(1, min(across, len(panels), int((style.MAX_WIDTH - 1.4) // each)))
    down = -(-len(panels) // across)
    wide = max(4.8, across * each + 1.4)
    fig = canvas(wide, down * (0.42 * len(rows) + 0.75) + 0.8)
    axes = style.grid(fig, len(panels), across)
    for ax, (name, part) in zip(axes.flat, panels):
        table = part.drop_duplicates([x, y]).pivot(index=y, columns=x).reindex(rows)
        numbers = table[value].reindex(columns=columns).astype(float)
        shown = table[text].reindex(columns=columns).map(readable) if text else numbers.map("{:.2f}".format)
        look = dict(cmap="Blues", linewidths=0.8, annot_kws={"parse_math": False, "fontsize": 10 if text else 9})
        if missing:
            _hatch(ax, numbers, missing)
        seaborn.heatmap(numbers, annot=shown, fmt="", vmin=limits[0], vmax=limits[1], xticklabels=columns,
                        yticklabels=rows, cbar=False, ax=ax, **look)  # fmt: skip
        _ink(ax, numbers, faint)
        if y not in DOWNWARDS:
            ax.invert_yaxis()
        ax.tick_params(length=0, labelrotation=0)
        ax.set_xlabel(axis_label(x) if ax in style.lowest(axes) else "")
        ax.set_ylabel(axis_label(y) if ax in axes[:, 0] else "")
        if name is not None:
            ax.set_title(wrap(style.panel_title(panel, name), int(wide / across * 10)), fontsize=11, parse_math=False)
    fig.colorbar(axes[0, 0].collections[0], ax=list(axes.flat), label=axis_label(value), pad=0.02, aspect=14 * down)
    style.headline(fig, title, int(wide * 10))
    return fig


def _ink(ax: Axes, numbers: pd.DataFrame, faint: float | None) -> None:
    """Black or white letters, whichever differs more from its cell; grey ones below `faint`."""
    shown = [number for number in numbers.to_numpy().flat if not pd.isna(number)]
    marks = [text for text in ax.texts if text.get_gid() != "missing"]
    for letters, number in zip(marks, shown, strict=True):
        light = relative_luminance(ax.collections[0].to_rgba(number)) > 0.18  # where black and white differ as much
        letters.set_color("#8c8c8c" if faint and number < faint else "black" if light else "white")


def _hatch(ax: Axes, numbers: pd.DataFrame, missing: str) -> None:
    for at, empty in enumerate(numbers.isna().all(axis=1)):
        if empty:
            look = dict(facecolor="white", edgecolor="#bbbbbb", hatch="///", linewidth=0)
            ax.add_patch(Rectangle((0, at), numbers.shape[1], 1, **look))
            box = dict(facecolor="white", edgecolor="none", pad=2)
            ax.text(numbers.shape[1] / 2, at + 0.5, missing, ha="center", va="center", fontsize=10, bbox=box,
                    gid="missing")  # fmt: skip
