"""Lines: measures, losses, ranks and thoughts over steps."""

from __future__ import annotations

from collections.abc import Collection
from itertools import cycle
from typing import Any

import pandas as pd
import seaborn
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from laser_lab.lab.figures import style
from laser_lab.lab.figures.style import GROUP_COLOURS, axis_label, canvas, check, colour_of, finish


@style.styled()
def metric_by_steps(
    frame: pd.DataFrame,
    measure: str = "ndcg@10",
    *,
    x: str = "thinking_steps",
    group: str = "method",
    panel: str | None = None,
    title: str | None = None,
    log: str = "",
    joined: Collection[Any] | None = None,
) -> Figure:
    """A line of `measure` over `x` with its interval (``low``, ``high``) as a band, per `group` if there is one.
    Groups that are numbers go from dark to light; the method ``random`` is dashed. At most two panels stand side by
    side. `log` names the logarithmic axes: ``"x"``, ``"y"`` or ``"xy"``. The points of groups that are not `joined`
    (default: all are) have whiskers instead, and stand beside each other on a logarithmic axis."""
    check(frame, [x, measure, "low", "high"] + ([panel] if panel else []))
    panels = style.panels_of(frame, panel)
    names = list(frame[group].unique()) if group in frame else [None]
    colours = [colour_of(name, at) for at, name in enumerate(names)]
    if len(names) > 4 and frame[group].dtype.kind in "if":
        names, colours = sorted(names), seaborn.color_palette("viridis", len(names))
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    fig = canvas(3.9 * across + (3.1 if across == 1 else 1.8), 2.9 * down + 0.9)
    axes = style.grid(fig, len(panels), across)
    for ax, (shown, part) in zip(axes.flat, panels):
        for at, (name, colour) in enumerate(zip(names, colours)):
            line = (part if name is None else part[part[group] == name]).sort_values(x)
            look = {"linestyle": "--"} if name == "random" else style.line_of(name, at)
            if joined is not None and name not in joined:
                places = line[x] * 1.06 ** (at - (len(names) - 1) / 2 if "x" in log else 0)
                ax.errorbar(places, line[measure], style.whiskers(line, measure), color=colour, capsize=3,
                            label=str(name), **look | {"linestyle": ""})  # fmt: skip
                continue
            alpha = min(0.2, 0.6 / len(names))
            ax.fill_between(line[x], line["low"], line["high"], color=colour, alpha=alpha, linewidth=0)
            ax.plot(line[x], line[measure], color=colour, linewidth=2, label=str(name), **look)
        ax.set_yscale("log" if "y" in log else "linear")
        if "y" in log:
            span = frame["high"].max() / frame["low"][frame["low"] > 0].min()
            if span < 1000:  # powers of ten would be too few
                subs = (1, 1.5, 2, 3, 5) if span < 10 else (1, 2, 5)
                ax.yaxis.set(major_locator=LogLocator(subs=subs), minor_locator=NullLocator())
                ax.yaxis.set_major_formatter("{x:g}")
        if "x" in log:
            ax.set_xscale("log")
        if part[x].nunique() < 12:
            ax.set_xticks(sorted(part[x].unique()), [f"{value:g}" for value in sorted(part[x].unique())])
            ax.minorticks_off()
        ax.tick_params(labelbottom=True)
        ax.set_xlabel(axis_label(x))
        label = axis_label(measure) if ax in axes[:, 0] else ""
        finish(ax, label, style.panel_title(panel, shown) if panel else title, width=42 if panel else 56)
    if "y" not in log:  # after all panels are drawn: it ends the scaling of their shared axis
        axes[0, 0].set_ylim(bottom=0)
    if group in frame:
        heading = None if group in ("method", "label") else axis_label(group).rstrip(":")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, frameon=False, title=heading, fontsize=10, loc="outside right upper",
                   handlelength=3)  # fmt: skip
    style.headline(fig, title if panel else None)
    return fig


def loss_curves(frame: pd.DataFrame, *, title: str | None = None) -> Figure:
    """A panel per ``method``: each ``term`` of its weighted ``loss`` over the ``step``s; gaps where a term is 0, not
    yet on or under 1e-4."""
    check(frame, ["method", "step", "term", "loss"])
    loss = frame["loss"].where(frame["loss"] >= 1e-4)
    frame = frame.assign(low=loss, high=loss, **{"weighted loss": loss, "training step": frame["step"]})
    return metric_by_steps(
        frame, "weighted loss", x="training step", group="term", panel="method", title=title, log="y"
    )


@style.styled()
def trajectories(frame: pd.DataFrame, *, colour: str, panel: str, title: str | None = None) -> Figure:
    """Thoughts as points at ``x`` and ``y``, larger with every ``step`` (0: a document, a cross), in the colour of the
    group `colour`. A line per ``text`` runs through its steps and, dotted, to its own ``document``, the ``text`` of
    one, which is black; documents of no text that is drawn are grey."""
    check(frame, ["x", "y", "text", "step", "document", colour, panel])
    panels = style.panels_of(frame, panel)
    names = sorted(frame.loc[frame["step"] > 0, colour].unique(), key=str)
    fig = canvas(4.1 * len(panels) + 1.6, 4.4)
    axes = fig.subplots(1, len(panels), squeeze=False)[0]
    for ax, (shown, part) in zip(axes, panels):
        documents, thoughts = part[part["step"] == 0].set_index("text"), part[part["step"] > 0]
        own = documents.index.isin(thoughts["document"])
        for crosses, look in (
            (documents[~own], dict(color="#b0b0b0", s=18, label="other document")),
            (documents[own], dict(color="black", s=45, label="own document")),
        ):
            ax.scatter(crosses["x"], crosses["y"], marker="x", **look)
        for _, line in thoughts.sort_values("step").groupby("text"):
            end = documents.loc[line["document"].iloc[-1]]
            ax.plot(line["x"], line["y"], color="#606060", linewidth=1, zorder=0)
            ax.plot([line["x"].iloc[-1], end["x"]], [line["y"].iloc[-1], end["y"]], ":", color="#606060", zorder=0)
        for at, name in enumerate(names):
            points = thoughts[thoughts[colour] == name]
            look = dict(color=GROUP_COLOURS[at % len(GROUP_COLOURS)], alpha=0.8, linewidth=0)
            look["marker"] = style.GROUP_MARKS[at % len(style.GROUP_MARKS)]
            ax.scatter(points["x"], points["y"], s=15 + 12 * points["step"], label=str(name), **look)
        ax.set(xticks=[], yticks=[], xlabel=f"{shown}, first axis", ylabel=f"{shown}, second axis")
        ax.set_title(str(shown), parse_math=False)
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, title=axis_label(colour), loc="outside right center", frameon=False)
    style.headline(fig, title)
    return fig


@style.styled()
def rank_bumps(frame: pd.DataFrame, *, top: int = 10, named: int = 5, title: str | None = None) -> Figure:
    """A panel per intervention (``change``): the ``rank`` (from 1, on a logarithmic axis) of documents (``doc_id``,
    ``document``) over ``thinking_steps``. Those with a ``mark`` (a name in the legend, or ``""``) are drawn at every
    rank, the others while they are among the first `top`; the first `named` at the last K have their text beside them.
    Marks are listed in order of appearance."""
    check(frame, ["change", "thinking_steps", "rank", "doc_id", "document", "mark"])
    panels = style.panels_of(frame, "change")
    colours = dict(zip((mark for mark in frame["mark"].unique() if mark), cycle(GROUP_COLOURS)))
    steps = sorted(frame["thinking_steps"].unique())
    lowest = max(top, frame.loc[frame["mark"] != "", "rank"].max())
    fig = canvas(4.7 * len(panels) + 0.5, 4.8)
    axes = fig.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (change, panel) in zip(axes, panels):
        for (mark, _), line in panel.groupby(["mark", "doc_id"], sort=False):
            ranks = line.set_index("thinking_steps")["rank"].reindex(steps).astype(float)
            ranks = ranks if mark else ranks.mask(ranks > top)
            if ranks.notna().any():
                look = dict(linewidth=2.5, markersize=7, zorder=3) if mark else dict(linewidth=1, markersize=3)
                ax.plot(steps, ranks, color=colours.get(mark, "#b0b0b0"), marker="o", label=mark or None, **look)
        last = panel[(panel["thinking_steps"] == steps[-1]) & (panel["rank"] <= named)]
        for rank, document, mark in zip(last["rank"], last["document"], last["mark"]):
            ax.text(steps[-1] + 0.3, rank, style.readable(" ".join(document.split()), 24), va="center", fontsize=9,
                    color=colours.get(mark, "#606060"), parse_math=False)  # fmt: skip
        ax.set(xticks=steps, xlabel=axis_label("thinking_steps"), yscale="log")
        shown = [rank for rank in (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000) if rank <= lowest]
        ax.set_yticks(shown, [str(rank) for rank in shown])
        ax.minorticks_off()
        ax.set_ylim(1.15 * lowest, 0.87)
        finish(ax, "rank (logarithmic)" if ax is axes[0] else "", str(change))
    if colours:
        found = dict(zip(*axes[0].get_legend_handles_labels()[::-1]))
        handles = [found[mark] for mark in colours if mark in found]
        fig.legend(handles=handles, loc="outside lower left", ncols=len(colours), frameon=False)
    style.headline(fig, title)
    return fig
