"""Figures: a tidy DataFrame in, a matplotlib Figure out. Nothing here computes a result or knows a model.

Every figure is written by :func:`save`, as PNG and SVG with the frame behind it as CSV, and the same frame always gives
the same bytes. One table of colours, :data:`METHOD_COLOURS`, serves all figures.
"""

from __future__ import annotations

import io
import os
import textwrap
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laser_lab.base.files import missing_extra

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METHOD_COLOURS = {
    "laser": "#0173b2",
    "latent": "#de8f05",
    "gircse": "#029e73",
    "basic": "#d55e00",
    "rewrite": "#cc78bc",
    "lame": "#ca9161",
    "laser-no-explicit": "#fbafe4",
    "laser-no-latent": "#56b4e9",
    "laser-no-trajectory": "#ece133",
    "laser-no-output": "#332288",
    "laser-no-colearning": "#661100",
    "explicit view": "#44aa99",
    "untrained": "#333333",
    "random": "#949494",
    "zero-shot": "#333333",
    "bm25": "#949494",
    "bm25-reasoning": "#999933",
    "explicit": "#44aa99",
    "lame-no-decoder": "#44aa99",
    "lame-no-diversity": "#999933",
    "lame-no-warmup": "#aa4499",
}
"""Method to colour, safe for colour-blind readers (seaborn's "colorblind" palette and five of Paul Tol's)."""

STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "laser_lab",
}
NAMES = {
    "ndcg@10": "nDCG@10",
    "recall@10": "Recall@10",
    "recall@100": "Recall@100",
    "map": "MAP",
    "mrr": "MRR",
    "thinking_steps": "thinking steps K",
    "train_steps": "K in training",
    "milliseconds": "milliseconds per query",
    "hops": "hops:",
    "verbosity": "tokens of reasoning per hop",
    "step": "thinking step k",
    "probability": "probability",
    "cosine": "cosine similarity",
    "layer": "layer",
    "segment": "reasoning segment",
    "cka": "CKA",
    "accuracy": "accuracy of the probe",
}
"""Column to axis label; a column without an entry is shown with spaces for underscores."""


def thought_heatmap(tokens: pd.DataFrame, title: str | None = None, panel: str = "query") -> Figure:
    """Heat map of what thoughts say: a row per thinking step, a column per rank, the token in every cell.

    Args:
        tokens: As :func:`laser_lab.nearest_tokens` returns it; the colour is its ``probability`` or ``cosine``.
        panel: Column whose values get a panel each, in order of appearance.

    Raises:
        ValueError: The frame is empty or lacks a column.
    """
    measure = next((m for m in ("probability", "cosine") if m in tokens), "probability")
    _check(tokens, ["step", "rank", "token", measure, panel])
    groups = list(tokens.groupby(panel, sort=False))
    tables = [group.pivot(index="step", columns="rank", values=["token", measure]) for _, group in groups]
    rows, columns = [len(t) for t in tables], max(t[measure].shape[1] for t in tables)
    width = max(6.4, 1.15 * columns + 1.7)
    characters = int(width * 10)
    names = [_wrap(readable(str(name), None), characters) for name, _ in groups]
    top = _wrap(title, characters) if title else ""
    lines = sum(name.count("\n") + 1 for name in names) + top.count("\n") + 1
    with _style():
        fig = _figure((width, 0.4 * sum(rows) + 0.75 * len(rows) + 0.25 * lines))
        axes = fig.subplots(len(rows), 1, squeeze=False, gridspec_kw={"height_ratios": rows})[:, 0]
        highest = float(tokens[measure].max())
        lowest = 0.0 if measure == "probability" else float(tokens[measure].min())  # cosines lie close together
        for ax, name, table in zip(axes, names, tables):
            values = table[measure].to_numpy(dtype=float)
            image = ax.imshow(values, cmap="Blues", vmin=lowest, vmax=highest, aspect="auto")
            for row, step in enumerate(table.index):
                for column, rank in enumerate(table[measure].columns):
                    token = readable(table["token"].loc[step, rank])
                    dark = values[row, column] > lowest + 0.65 * (highest - lowest)
                    ax.text(column, row, token, ha="center", va="center", fontsize=11 if len(token) < 10 else 9,
                            color="white" if dark else "black", parse_math=False)  # fmt: skip
            ax.set_title(name, fontsize=11, fontweight="bold", parse_math=False)
            ax.set_ylabel(NAMES["step"])
            ax.set_xticks(range(values.shape[1]), table[measure].columns)
            ax.set_yticks(range(len(table)), table.index)
            ax.set_xticks([x + 0.5 for x in range(values.shape[1] - 1)], minor=True)
            ax.set_yticks([y + 0.5 for y in range(len(table) - 1)], minor=True)
            ax.grid(which="minor", color="white", linewidth=1.5)
            ax.tick_params(which="both", length=0)
            ax.spines[:].set_visible(False)
        axes[-1].set_xlabel("rank of the token")
        fig.colorbar(image, ax=list(axes), label=NAMES[measure], pad=0.02, fraction=0.05, aspect=12 * len(rows))
        if top:
            fig.suptitle(top, fontsize=13, x=0.01, ha="left", parse_math=False)
    return fig


def metric_by_steps(
    frame: pd.DataFrame,
    measure: str = "ndcg@10",
    *,
    x: str = "thinking_steps",
    group: str = "method",
    panel: str | None = None,
    title: str | None = None,
    log: bool = False,
) -> Figure:
    """A line per `group` over `x`, with its interval as a band. The method ``random`` is dashed. Groups that are
    numbers (K) go from dark to light, in their order.

    Args:
        frame: Columns `x`, `measure`, ``low``, ``high`` (the ends of the interval) and, for several lines, `group`;
            for a panel each, `panel`.
        log: Logarithmic vertical axis.

    Raises:
        ValueError: The frame is empty or lacks a column.
    """
    _check(frame, [x, measure, "low", "high"] + ([panel] if panel else []))
    panels = list(frame.groupby(panel, sort=False)) if panel else [(None, frame)]
    names = list(frame[group].unique()) if group in frame else [None]
    colours = GROUP_COLOURS
    if len(names) > 4 and frame[group].dtype.kind in "if":
        import seaborn

        names, colours = sorted(names), seaborn.color_palette("viridis", len(names))
    with _style():
        fig = _figure((6.4, 4.0) if len(panels) == 1 else (3.6 * len(panels) + 1.4, 4.0))
        axes = fig.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for ax, (shown, part) in zip(axes, panels):
            for at, name in enumerate(names):
                line = part if name is None else part[part[group] == name]
                line = line.sort_values(x)
                colour = METHOD_COLOURS.get(name, colours[at % len(colours)])
                style = {"linestyle": "--"} if name == "random" else {"marker": "o", "markersize": 6}
                ax.fill_between(
                    line[x], line["low"], line["high"], color=colour, alpha=min(0.2, 0.6 / len(names)), linewidth=0
                )
                ax.plot(line[x], line[measure], color=colour, linewidth=2, label=str(name), **style)
            ax.set_xticks(sorted(part[x].unique()))
            ax.set_xlabel(_name(x))
            ax.set_yscale("log" if log else "linear")
            label = _name(measure) if ax is axes[0] else ""
            _finish(ax, label, title if panel is None else f"{_name(panel)} {shown}", bottom=None)
        if not log:  # once all panels are drawn: they share the axis, and this ends its scaling
            axes[0].set_ylim(bottom=0)
        if group in frame:
            heading = None if group == "method" else _name(group).rstrip(":")
            aside = dict(loc="center left", bbox_to_anchor=(1.0, 0.5)) if len(panels) > 1 or len(names) > 4 else {}
            axes[-1].legend(frameon=False, ncols=1 if aside else 2, title=heading, fontsize=10, **aside)
        if title and panel:
            fig.suptitle(title, x=0.01, ha="left", parse_math=False)
    return fig


def frontier(
    frame: pd.DataFrame, measure: str = "ndcg@10", *, x: str = "milliseconds", title: str | None = None
) -> Figure:
    """Quality against cost, a point per system with its interval; the Pareto front (no other is both cheaper and
    better) as a line.

    Args:
        frame: Columns ``method`` (the colour), ``label`` (short, beside the point; may be empty), `x` (on a logarithmic
            axis), `measure`, ``low``, ``high`` and ``pareto`` (True on the front).

    Raises:
        ValueError: The frame is empty or lacks a column.
    """
    _check(frame, ["label", "method", x, measure, "low", "high", "pareto"])
    with _style():
        from matplotlib.ticker import NullFormatter

        fig = _figure((8.6, 4.6))
        ax = fig.subplots()
        front = frame[frame["pareto"]].sort_values(x)
        ax.step(front[x], front[measure], where="post", color="#949494", linewidth=1.5, zorder=1, label="Pareto front")
        for at, (method, points) in enumerate(frame.groupby("method", sort=False)):
            colour = METHOD_COLOURS.get(method, GROUP_COLOURS[at % len(GROUP_COLOURS)])
            whiskers = [points[measure] - points["low"], points["high"] - points[measure]]
            ax.errorbar(points[x], points[measure], yerr=whiskers, color=colour, marker="o", markersize=8, capsize=4,
                        linewidth=0, elinewidth=1.5, label=method)  # fmt: skip
            place = dict(xytext=(5, 8 if at % 2 else -16), textcoords="offset points")  # methods above and below
            for _, row in points.iterrows():
                ax.annotate(row["label"], (row[x], row[measure]), fontsize=9, color=colour, **place)
        ax.set_xscale("log")
        ax.margins(x=0.1, y=0.1)
        ax.xaxis.set_major_formatter("{x:g}")
        # between powers of ten too, unless there are so many of them that the numbers would run into each other
        ax.xaxis.set_minor_formatter("{x:g}" if frame[x].max() < 30 * frame[x].min() else NullFormatter())
        ax.set_xlabel(_name(x))
        _finish(ax, _name(measure), title, bottom=0)
        fig.legend(frameon=False, loc="outside right upper")  # points and whiskers may lie anywhere
    return fig


def trajectories(frame: pd.DataFrame, *, colour: str, panel: str, title: str | None = None) -> Figure:
    """Thoughts as points in two dimensions, a line per text from step to step, larger with every step.

    Args:
        frame: Columns ``x``, ``y``, ``text`` (which line), ``step``, `colour` (its group) and `panel`. Rows whose
            ``step`` is 0 are documents: grey crosses.

    Raises:
        ValueError: The frame is empty or lacks a column.
    """
    _check(frame, ["x", "y", "text", "step", colour, panel])
    panels = list(frame.groupby(panel, sort=False))
    thoughts = frame[frame["step"] > 0]
    names = sorted(thoughts[colour].unique(), key=str)
    with _style():
        fig = _figure((4.6 * len(panels) + 1.4, 4.6))
        axes = fig.subplots(1, len(panels), squeeze=False)[0]
        for ax, (shown, part) in zip(axes, panels):
            documents = part[part["step"] == 0]
            ax.scatter(documents["x"], documents["y"], marker="x", color="#949494", s=18, label="documents")
            part = part[part["step"] > 0]
            for _, line in part.sort_values("step").groupby("text"):
                ax.plot(line["x"], line["y"], color="#bbbbbb", linewidth=0.5, alpha=0.5, zorder=0)
            for at, name in enumerate(names):
                points = part[part[colour] == name]
                fill = GROUP_COLOURS[at % len(GROUP_COLOURS)]
                ax.scatter(points["x"], points["y"], s=6 + 7 * points["step"], color=fill, alpha=0.7, linewidth=0,
                           label=str(name))  # fmt: skip
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_title(str(shown), parse_math=False)
        handles = dict(zip(*reversed(axes[0].get_legend_handles_labels())))
        fig.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False, title=_name(colour))
        if title:
            fig.suptitle(title, x=0.01, ha="left", parse_math=False)
    return fig


def metric_bars(frame: pd.DataFrame, measure: str = "ndcg@10", *, title: str | None = None) -> Figure:
    """A bar per row, with its interval as a whisker and its value written above.

    Args:
        frame: Columns ``label``, `measure`, ``low``, ``high`` (the ends of the interval) and ``method`` for the colour.

    Raises:
        ValueError: The frame is empty or lacks a column.
    """
    _check(frame, ["label", "method", measure, "low", "high"])
    with _style():
        fig = _figure((max(4.8, 1.6 * len(frame)), 3.8))
        ax = fig.subplots()
        whiskers = [frame[measure] - frame["low"], frame["high"] - frame[measure]]
        colours = [METHOD_COLOURS.get(method, METHOD_COLOURS["laser"]) for method in frame["method"]]
        places = range(len(frame))
        ax.bar(places, frame[measure], color=colours, width=0.6, yerr=whiskers, capsize=5, error_kw={"linewidth": 1.5})
        for place, value, high in zip(places, frame[measure], frame["high"]):
            ax.annotate(f"{value:.3f}", (place, high), xytext=(0, 5), textcoords="offset points", ha="center")
        ax.set_xticks(places, [_wrap(str(label), 18) for label in frame["label"]])
        ax.margins(y=0.15)
        _finish(ax, _name(measure), title, bottom=0)
    return fig


GROUP_COLOURS = ("#0173b2", "#de8f05", "#029e73", "#cc78bc", "#ca9161", "#56b4e9", "#949494")
"""For groups that are no methods, in order of appearance (seaborn's "colorblind" palette)."""


def grouped_bars(
    frame: pd.DataFrame, measure: str, *, x: str, group: str, panel: str | None = None, title: str | None = None
) -> Figure:
    """A cluster of bars per value of `x`, a bar per value of `group`, with its interval as a whisker.

    Args:
        frame: Columns `measure`, ``low``, ``high`` (the ends of the interval), `x`, `group` and, for a panel each,
            `panel`; all in order of appearance. A missing combination leaves a gap.

    Raises:
        ValueError: The frame is empty or lacks a column.
    """
    _check(frame, [measure, "low", "high", x, group] + ([panel] if panel else []))
    panels = list(frame.groupby(panel, sort=False)) if panel else [(title, frame)]
    places, groups = list(frame[x].unique()), list(frame[group].unique())
    across = 1 if len(panels) < 3 else 2
    down = -(-len(panels) // across)
    width = 0.8 / len(groups)
    with _style():
        wide = max(6.4, across * (0.38 * len(places) * (len(groups) + 1) + 0.6))
        fig = _figure((wide, 2.7 * down + 1.0))
        axes = fig.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for ax in axes.flat[len(panels) :]:
            ax.set_visible(False)
        for ax, (name, part) in zip(axes.flat, panels):
            for at, value in enumerate(groups):
                bars = part[part[group] == value].drop_duplicates(x).set_index(x).reindex(places)
                centres = [place + (at - (len(groups) - 1) / 2) * width for place in range(len(places))]
                whiskers = [bars[measure] - bars["low"], bars["high"] - bars[measure]]
                colour = METHOD_COLOURS.get(value, GROUP_COLOURS[at % len(GROUP_COLOURS)])
                ax.bar(centres, bars[measure], width=0.92 * width, color=colour,
                       label=str(value), yerr=whiskers, capsize=3, error_kw={"linewidth": 1.2})  # fmt: skip
            ax.axhline(0, color="black", linewidth=0.8)
            ax.set_xticks(range(len(places)), [_wrap(str(place), 16) for place in places])
            _finish(ax, _name(measure) if ax in axes[:, 0] else "", str(name) if name else None, bottom=None)
        for ax in axes[-1]:
            ax.set_xlabel(_name(x))
        handles, labels = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, frameon=False, title=_name(group), ncols=min(len(groups), 4), fontsize=10,
                   loc="outside lower center")  # fmt: skip
        if title and panel:
            fig.suptitle(_wrap(title, int(wide * 10)), x=0.01, ha="left", fontsize=13, parse_math=False)
    return fig


def heatmap(
    frame: pd.DataFrame,
    value: str,
    *,
    x: str,
    y: str,
    panel: str | None = None,
    text: str | None = None,
    title: str | None = None,
) -> Figure:
    """Heat maps from 0 to 1, the smallest `y` at the bottom, with what stands in each cell written into it.

    Args:
        frame: Columns `x`, `y`, `value` (the colour, from 0 to 1; less is drawn as 0) and, for a panel each, `panel`.
        text: Column that is written into the cells (tokens); default: `value`.

    Raises:
        ValueError: The frame is empty or lacks a column.
    """
    _check(frame, [x, y, value] + [column for column in (panel, text) if column])
    panels = list(frame.groupby(panel, sort=False)) if panel else [(None, frame)]
    columns, rows = sorted(frame[x].unique()), sorted(frame[y].unique())
    across = min(4, len(panels))
    down = -(-len(panels) // across)
    cell = 1.05 if text else 0.75
    with _style():
        size = (max(4.8, across * (cell * len(columns) + 0.5) + 1.4), down * (0.42 * len(rows) + 0.75) + 0.8)
        fig = _figure(size)
        axes = fig.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for ax in axes.flat[len(panels) :]:
            ax.set_visible(False)
        for ax, (name, part) in zip(axes.flat, panels):
            table = part.drop_duplicates([x, y]).set_index([y, x])
            numbers = table[value].unstack().reindex(index=rows, columns=columns).to_numpy(dtype=float)
            image = ax.imshow(numbers, cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
            for row, here in enumerate(rows):
                for column, there in enumerate(columns):
                    if (here, there) not in table.index:
                        continue
                    shown = readable(table[text][here, there]) if text else f"{numbers[row, column]:.2f}"
                    ax.text(column, row, shown, ha="center", va="center", fontsize=9, parse_math=False,
                            color="white" if numbers[row, column] > 0.65 else "black")  # fmt: skip
            if name is not None:
                shown = name if isinstance(name, str) else f"{_name(panel)} {name}"
                ax.set_title(shown, fontsize=11, parse_math=False)
            ax.set_xticks(range(len(columns)), columns)
            ax.set_yticks(range(len(rows)), rows)
            ax.tick_params(length=0)
            ax.spines[:].set_visible(False)
        for ax in axes[:, 0]:
            ax.set_ylabel(_name(y))
        for ax in axes[-1]:
            ax.set_xlabel(_name(x))
        fig.colorbar(image, ax=list(axes.flat), label=_name(value), pad=0.02, aspect=14 * down)
        if title:
            fig.suptitle(_wrap(title, int(size[0] * 10)), x=0.01, ha="left", fontsize=13, parse_math=False)
    return fig


def loss_curves(frame: pd.DataFrame, *, title: str | None = None) -> Figure:
    """A panel per method: every weighted term of its loss over the training steps, on a logarithmic axis.

    Args:
        frame: Columns ``method``, ``step``, ``term`` and ``loss``. Terms that are 0 somewhere are drawn from 1e-4 up.

    Raises:
        ValueError: The frame is empty or lacks a column.
    """
    _check(frame, ["method", "step", "term", "loss"])
    groups = _methods(frame)
    terms = list(frame["term"].unique())
    with _style():
        fig = _figure((3.4 * len(groups) + 0.6, 3.6))
        axes = fig.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        for ax, (method, part) in zip(axes, groups):
            for term, line in part.groupby("term", sort=False):
                values, colour = line["loss"].clip(lower=1e-4), list(METHOD_COLOURS.values())[terms.index(term)]
                ax.plot(line["step"], values, color=colour, linewidth=2, label=term)
            ax.set_yscale("log")
            _finish(ax, "weighted loss" if ax is axes[0] else "", method, bottom=None)
            ax.set_xlabel("training step")
            ax.legend(frameon=False, fontsize=9)
        if title:
            fig.suptitle(title, x=0.01, ha="left", parse_math=False)
    return fig


def rank_bumps(frame: pd.DataFrame, *, top: int = 10, title: str | None = None) -> Figure:
    """A panel per intervention: the rank of every document that comes among the first `top`, over thinking steps.
    Marked documents stand out, and stay in sight where they are further down, each mark in a lane below, with the rank.

    Args:
        frame: Columns ``change`` (the panel), ``thinking_steps``, ``rank`` (from 1), ``doc_id``, ``document`` and
            ``mark``: what the document is (its line gets a colour and an entry in the legend), or ``""``.

    Raises:
        ValueError: The frame is empty or lacks a column.
    """
    _check(frame, ["change", "thinking_steps", "rank", "doc_id", "document", "mark"])
    panels = list(frame.groupby("change", sort=False))
    marks = [mark for mark in frame["mark"].unique() if mark]
    colours = dict(zip(marks, ("#d55e00", "#0173b2", "#029e73", "#cc78bc") * len(marks)))
    lanes = {mark: top + 1.4 + 1.6 * number for number, mark in enumerate(marks)}
    steps = sorted(frame["thinking_steps"].unique())
    with _style():
        from matplotlib.patheffects import withStroke

        halo = [withStroke(linewidth=3, foreground="white")]  # numbers stay readable where a line passes
        fig = _figure((5.4 * len(panels) + 0.4, 4.8))
        axes = fig.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for ax, (change, panel) in zip(axes, panels):
            for mark, line in panel.sort_values("mark").groupby(["mark", "doc_id"]):
                mark, line = mark[0], line.set_index("thinking_steps")["rank"].reindex(steps).astype(float)
                ranks = line.mask(line > top, lanes.get(mark, float("nan")))
                if ranks.isna().all():
                    continue
                style = dict(linewidth=2.5, markersize=7, zorder=3) if mark else dict(linewidth=1, markersize=3)
                ax.plot(steps, ranks, color=colours.get(mark, "#b0b0b0"), marker="o", **style)
                for step, rank in line[line > top].items() if mark else ():
                    ax.annotate(f"{rank:.0f}", (step, lanes[mark]), xytext=(0, -14), textcoords="offset points",
                                ha="center", fontsize=9, color=colours[mark], zorder=5, path_effects=halo)  # fmt: skip
            last = panel[(panel["thinking_steps"] == steps[-1]) & (panel["rank"] <= top)]
            for rank, document, mark in zip(last["rank"], last["document"], last["mark"]):
                ax.text(steps[-1] + 0.3, rank, readable(" ".join(document.split()), 24), va="center", fontsize=9,
                        color=colours.get(mark, "#606060"), parse_math=False)  # fmt: skip
            ax.set_xticks(steps)
            ax.set_xlabel(_name("thinking_steps"))
            ax.set_yticks([*range(1, top + 1), *lanes.values()], [*range(1, top + 1), *[f">{top}"] * len(lanes)])
            ax.set_ylim(max([top, *lanes.values()]) + 1.2, 0.4)
            _finish(ax, "rank" if ax is axes[0] else "", str(change), bottom=None)
            ax.grid(visible=False)
        handles = [
            axes[0].plot([], [], color=colours[mark], marker="o", linewidth=2.5, label=mark)[0] for mark in marks
        ]
        if handles:
            fig.legend(handles=handles, loc="outside lower left", ncols=len(handles), frameon=False)
        if title:
            fig.suptitle(title, x=0.01, ha="left", parse_math=False)
    return fig


def latency(frame: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Seconds per batch: a cluster of bars per shape with a bar per loop, and a line over K.

    Args:
        frame: As :func:`laser_lab.lab.latency.benchmark` returns it (its first table). The whiskers end at the 95th
            percentile; a number on a bar says how many times longer than ours it takes.

    Raises:
        ValueError: The frame is empty or lacks a column.
    """
    _check(frame, ["name", "batch", "tokens", "thinking_steps", "median", "p95", "ratio"])
    sweep, shapes = frame[frame["name"] == "sweep"], frame[frame["name"] != "sweep"]
    looks = {
        "published": ("published loop, K=3", METHOD_COLOURS["random"]),
        "ours": ("ours, K=3", METHOD_COLOURS["laser"]),
        "basic": ("one basic pass", METHOD_COLOURS["basic"]),
    }
    places = list(dict.fromkeys(zip(shapes["batch"], shapes["tokens"])))
    with _style():
        fig = _figure((9.6, 4.0))
        left, right = fig.subplots(1, 2, gridspec_kw={"width_ratios": [3, 2]})
        for at, (name, (label, colour)) in enumerate(looks.items()):
            bars = shapes[shapes["name"] == name].set_index(["batch", "tokens"]).loc[places]
            centres = [place + (at - 1) * 0.27 for place in range(len(places))]
            above = [[0] * len(places), bars["p95"] - bars["median"]]
            left.bar(centres, bars["median"], width=0.25, color=colour, label=label, yerr=above, capsize=3,
                     error_kw={"linewidth": 1.2})  # fmt: skip
            if name == "published":
                for x, top, times in zip(centres, bars["p95"], bars["ratio"]):
                    left.text(x, top, f"{times:.1f}×", ha="center", va="bottom", fontsize=10)
        left.set_xticks(range(len(places)), [f"{batch} × {tokens} tokens" for batch, tokens in places])
        left.legend(frameon=False, fontsize=10, loc="upper left")
        _finish(left, "seconds per batch", title, bottom=0)
        if len(sweep):
            whiskers = [[0] * len(sweep), sweep["p95"] - sweep["median"]]
            right.errorbar(sweep["thinking_steps"], sweep["median"], whiskers, marker="o", capsize=3,
                           color=METHOD_COLOURS["laser"])  # fmt: skip
            right.set_xlabel(NAMES["thinking_steps"])
            batch, tokens = sweep.iloc[0][["batch", "tokens"]]
            _finish(right, "", f"ours, {batch} × {tokens} tokens", bottom=0)
        else:
            right.set_visible(False)
    return fig


def save(fig: Figure, data: pd.DataFrame, name: str, folder: str | os.PathLike[str] = "figures") -> Path:
    """Write ``NAME.png``, ``NAME.svg`` and ``data/NAME.csv`` under `folder`; the same input gives the same bytes.

    Each file is complete before it takes its name, and none does if one of them fails.

    Returns:
        The path of the PNG.

    Raises:
        ValueError: `name` is not a plain file stem.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise ValueError(f"name must be a plain file stem such as '01_thoughts', got {name!r}")
    folder = Path(folder)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    finals = [folder / f"{name}.png", folder / f"{name}.svg", folder / "data" / f"{name}.csv"]
    png, svg, csv = partial = [file.with_name(f".{os.getpid()}.{file.name}") for file in finals]
    try:
        with _style():
            fig.savefig(png, format="png", dpi=160, metadata={"Software": None}, facecolor="white")
            fig.savefig(svg, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
        data.to_csv(csv, index=False, float_format="%.6g", lineterminator="\n")
        for done, final in zip(partial, finals):
            os.replace(done, final)
    finally:
        for file in partial:
            file.unlink(missing_ok=True)
    return finals[0]


def readable(token: str, limit: int | None = 12) -> str:
    """A token as it can be drawn: ⏎ for a new line, ⇥ for a tab, ␣ for a space at an end, U+XXXX for what the font
    lacks, and at most `limit` characters.
    """
    inner = token.strip(" ")
    start = len(token) - len(token.lstrip(" "))
    end = len(token) - len(inner) - start if inner else 0
    text = "␣" * start + inner + "␣" * end
    text = text.replace("\r\n", "⏎").replace("\n", "⏎").replace("\r", "⏎").replace("\t", "⇥")
    text = "".join(c if c.isprintable() and ord(c) in _font_characters() else f"U+{ord(c):04X}" for c in text)
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


# -- shared parts --------------------------------------------------------------------------------------------------


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise missing_extra("matplotlib", "lab") from error
    return matplotlib


def _style() -> Any:
    return _matplotlib().rc_context(STYLE)


@lru_cache(maxsize=1)
def _figure_class() -> type[Figure]:
    """A Figure outside pyplot (nothing to close, nothing shown twice) that a notebook shows without any magic."""
    _matplotlib()
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            with _style():
                self.savefig(buffer, format="png", dpi=100, metadata={"Software": None}, facecolor="white")
            return buffer.getvalue()

    return NotebookFigure


def _figure(size: tuple[float, float]) -> Figure:
    return _figure_class()(figsize=size, layout="constrained")


@lru_cache(maxsize=1)
def _font_characters() -> frozenset[int]:
    _matplotlib()
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(font_manager.findfont(STYLE["font.family"])).get_charmap())


def _methods(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return list(frame.groupby("method", sort=False)) if "method" in frame else [("laser", frame)]


def _finish(ax: Axes, label: str, title: str | None, bottom: float | None) -> None:
    ax.set_ylabel(label)
    ax.grid(axis="y", alpha=0.3)
    ax.set_axisbelow(True)
    if bottom is not None:
        ax.set_ylim(bottom=bottom)
    if title:
        ax.set_title(_wrap(title, 56), parse_math=False)


def _wrap(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width)) or text


def _name(column: str) -> str:
    return NAMES.get(column, column.replace("_", " "))


def _check(frame: pd.DataFrame, columns: list[str]) -> None:
    missing = [column for column in columns if column not in frame]
    if missing:
        raise ValueError(f"the frame lacks the column {missing[0]!r}; it has {', '.join(map(str, frame.columns))}")
    if frame.empty:
        raise ValueError("the frame is empty: nothing to draw")
