"""Drawings: how latent thinking works, and a question of HopWorld with the path to its answer."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from laser_lab.data.hopworld import Composition, HopWorld
from laser_lab.lab.figures import style
from laser_lab.lab.figures.style import METHOD_COLOURS, canvas, check, wrap

GREY, PALE = "#666666", "#f2f2f2"
DARK = "#9c2f68"
"""Of the explicit view, for letters."""
STUDENT, TEACHER, WORDS = METHOD_COLOURS["laser"], METHOD_COLOURS["explicit view"], METHOD_COLOURS["lexical"]


def _paper(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure whose units are inches."""
    fig = canvas(width, height)
    fig.set_layout_engine("none")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.set_axis_off()
    return fig, ax


def _box(ax: Axes, x: float, y: float, text: str, width: float, height: float = 0.46, **look: Any) -> None:
    """A rounded box around (`x`, `y`), with text."""
    look = {"facecolor": PALE, "edgecolor": GREY, "linewidth": 1.2} | look
    inks = {name: look.pop(name) for name in ("fontsize", "color", "fontweight") if name in look}
    corner = (x - width / 2, y - height / 2)
    ax.add_patch(FancyBboxPatch(corner, width, height, boxstyle="round,pad=0,rounding_size=0.08", **look))
    ax.text(x, y, text, ha="center", va="center", parse_math=False, **({"fontsize": 10} | inks))


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], **look: Any) -> None:
    arrow = {"arrowstyle": "-|>", "color": GREY, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0} | look
    ax.annotate("", xy=end, xytext=start, arrowprops=arrow)


@style.styled()
def method() -> Figure:
    """The loop, the two views, what training aligns, and halting (docs/method.md, sections 1 to 5)."""
    fig, ax = _paper(style.MAX_WIDTH, 5.6)
    columns, top, states, below, read = (2.5, 4.8, 7.1), 4.45, 3.4, 1.9, 0.95
    middle = (states + below) / 2
    ax.text(0.15, 5.45, "Latent view: what runs at inference", fontsize=12, color=STUDENT, fontweight="bold", va="top")
    ax.text(0.15, 0.12, "Explicit view: the same language model reads the written reasoning, in training only",
            fontsize=12, color=DARK, fontweight="bold")  # fmt: skip
    for y, colour in ((states, STUDENT), (below, TEACHER)):  # what is pooled, and what is aligned with it
        _box(ax, 4.68, y, "", 6.16, 0.56, facecolor="none", edgecolor=colour, linestyle=":")
    for at, x in enumerate(columns, 1):
        _box(ax, x, top, "language model", 1.45, fontsize=9.5)
        _arrow(ax, (x, top - 0.23), (x, states + 0.19), color=STUDENT)
        _box(ax, x, states, f"state h{at}", 0.95, 0.38, facecolor="white", edgecolor=STUDENT)
        ax.text(x - 0.52, states, f"a{at} ×", fontsize=9, color=GREY, ha="right", va="center")
        _box(ax, x, below, f"state s{at}", 0.95, 0.38, facecolor="white", edgecolor=TEACHER)
        _box(ax, x, read, f"reasoning, part {at}", 1.75, fontsize=9.5, facecolor="white", edgecolor=TEACHER)
        _arrow(ax, (x, read + 0.23), (x, below - 0.19), color=TEACHER)
        _arrow(ax, (x, below + 0.19), (x, states - 0.19), color=STUDENT, linestyle="--")
        _arrow(ax, (x + 0.68, read + 0.23), (x + 0.68, middle - 0.12), color=WORDS, linestyle="--", arrowstyle="-")
        ax.text(x + 0.12, middle, f"words of part {at}", fontsize=9, color=WORDS, va="center", fontweight="bold")
        _arrow(ax, (x + 0.36, middle + 0.12), (x + 0.36, states - 0.19), color=WORDS, linestyle="--")
    for at, (x, following) in enumerate(zip(columns, columns[1:]), 1):
        turn = dict(connectionstyle="angle,angleA=0,angleB=90,rad=8", color=STUDENT, linewidth=2)
        _arrow(ax, (x + 0.48, states), (x + 1.15, top + 0.32), **turn, arrowstyle="-")
        _arrow(ax, (x + 1.15, top + 0.32), (following, top + 0.23), **turn)
        ax.text(x + 1.2, top + 0.4, f"soft token t{at}", fontsize=10, color=STUDENT, ha="center", va="bottom")
    for y, reach in ((top, 0.73), (read, 0.88)):
        _box(ax, 0.85, y, "question", 1.2, facecolor="white")
        _arrow(ax, (1.45, y), (columns[0] - reach, y))
    for y, name, colour in ((states, "embedding v", STUDENT), (below, "embedding v*", TEACHER)):
        _arrow(ax, (7.76, y), (8.3, y), color=colour)
        _box(ax, 9.05, y, name, 1.45, edgecolor=colour, facecolor="white", fontweight="bold")
    _arrow(ax, (9.05, below + 0.23), (9.05, states - 0.23), color=STUDENT, linestyle="--")
    ax.text(9.15, middle, "output\ndistil-\nlation", fontsize=9, color=STUDENT, va="center")
    ax.text(2.38, middle, "trajectory\nalignment", fontsize=9, color=STUDENT, ha="right", va="center")
    ax.text(0.15, middle, "lexical\nalignment", fontsize=9, color=WORDS, va="center", fontweight="bold")
    ax.text(9.05, states + 0.32, "ranks the documents", fontsize=9, color=GREY, ha="center")
    ax.text(
        8.05,
        5.42,
        "halting: the weights\na1, a2, a3 fall as the model\nsays that the text ends",
        fontsize=9.5,
        color=GREY,
        va="top",
    )
    return fig


def path_of(world: HopWorld, composition: Composition) -> pd.DataFrame:
    """The question's facts and those beside them, to draw: ``hop, start, relation, end, on_path, reasoning,
    document``, a row per relation of every entity that is passed, from hop 1."""
    rows, entity, parts = [], composition.start, world.reasoning(composition)
    for hop, (relation, bridge) in enumerate(zip(composition.relations, composition.bridges), 1):
        for other in world.relations:
            end, right = world.facts[other][entity], other == relation
            text = (parts[hop - 1], world.documents[end]) if right else ("", "")
            rows.append((hop, entity, other, end, right, *text))
        entity = bridge
    return pd.DataFrame(rows, columns=["hop", "start", "relation", "end", "on_path", "reasoning", "document"])


@style.styled()
def hop_path(frame: pd.DataFrame, *, title: str | None = None) -> Figure:
    """A question of HopWorld (:func:`path_of`): the entities that its relations pass, in colour, with the reasoning and
    the documents below; where the other relations lead, in grey."""
    check(frame, ["hop", "start", "relation", "end", "on_path", "reasoning", "document"])
    path = frame[frame["on_path"]].sort_values("hop")
    fig, ax = _paper(style.MAX_WIDTH, 4.4)
    gap = (style.MAX_WIDTH - 2.0) / len(path)
    question = " of ".join([*reversed(path["relation"].tolist()), path["start"].iloc[0]])
    ax.text(0.15, 4.2, title or f"“{question} ? think”", fontsize=13, va="top", parse_math=False)
    _box(ax, 0.85, 2.45, path["start"].iloc[0], 1.2, facecolor="white", fontweight="bold")
    for at, row in enumerate(path.itertuples()):
        x, end = 0.85 + at * gap, 0.85 + (at + 1) * gap
        others = frame[(frame["hop"] == row.hop) & ~frame["on_path"]]
        for other, dy in zip(others.itertuples(), (0.5, 0.95)):
            _arrow(ax, (x + 0.35, 2.68), (x + 0.75, 2.58 + dy), color="#b0b0b0", linewidth=1)
            ax.text(x + 0.8, 2.6 + dy, f"{other.relation}: {other.end}", fontsize=9, color=GREY, va="center")
        _arrow(ax, (x + 0.6, 2.45), (end - 0.6, 2.45), color=STUDENT, linewidth=2.5)
        ax.text((x + end) / 2, 2.37, row.relation, fontsize=11, color=STUDENT, ha="center", va="top", parse_math=False)
        last = row.hop == path["hop"].max()
        look = dict(edgecolor=WORDS if last else STUDENT, linewidth=3 if last else 1.6, facecolor="white")
        _box(ax, end, 2.45, row.end, 1.2, fontweight="bold", **look)
        ax.text(end, 1.98, wrap(row.reasoning, 22), fontsize=10, color=STUDENT, ha="center", va="top", parse_math=False)
        colour = WORDS if last else GREY
        frame_look = dict(linestyle="-", linewidth=2.5) if last else dict(linestyle=":")
        _box(ax, end, 0.72, wrap(row.document, 20), min(1.9, gap - 0.2), 0.72, edgecolor=colour, facecolor="white",
             fontsize=9, **frame_look)  # fmt: skip
    for y, text in ((1.98, "written\nreasoning"), (1.0, "documents")):
        ax.text(0.15, y, text, fontsize=10, color=GREY, va="top")
    ax.text(
        0.85 + len(path) * gap, 0.3, "the answer", fontsize=10, color=WORDS, ha="center", va="top", fontweight="bold"
    )
    return fig
