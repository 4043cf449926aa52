"""Bars and points with whiskers: quality, cost, and one against the other."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from laser_lab.lab.figures import style
from laser_lab.lab.figures.style import METHOD_COLOURS, NAMES, axis_label, canvas, check, colour_of, finish, styled


def metric_bars(frame: pd.DataFrame, measure: str = "ndcg@10", *, title: str | None = None) -> Figure:
    """A bar per row with its interval and value.

    Args:
        frame: Columns ``label``, `measure`, ``low``, ``high`` (ends of the interval) and ``method`` (the colour).
    """
    check(frame, ["label", "method", measure, "low", "high"])
    with styled():
        fig = canvas(max(4.8, 1.6 * len(frame)), 3.8)
        ax = fig.subplots()
        errors = style.whiskers(frame, measure)
        colours = [METHOD_COLOURS.get(method, METHOD_COLOURS["laser"]) for method in frame["method"]]
        places = range(len(frame))
        ax.bar(places, frame[measure], color=colours, width=0.6, yerr=errors, capsize=5, error_kw={"linewidth": 1.5})
        for place, value, high in zip(places, frame[measure], frame["high"]):
            ax.annotate(f"{value:.3f}", (place, high), xytext=(0, 5), textcoords="offset points", ha="center")
        ax.set_xticks(places, [style.wrap(str(label), 18) for label in frame["label"]])
        ax.margins(y=0.15)
        finish(ax, axis_label(measure), title, bottom=0)
    return fig


def grouped_bars(
    frame: pd.DataFrame, measure: str, *, x: str, group: str, panel: str | None = None, title: str | None = None
) -> Figure:
    """A cluster of bars per value of `x`, with a bar and its interval per value of `group`.

    Args:
        frame: Columns `measure`, ``low``, ``high``, `x`, `group` and `panel`, all in order of appearance. A missing
            combination leaves a gap.
    """
    check(frame, [measure, "low", "high", x, group] + ([panel] if panel else []))
    panels = style.panels_of(frame, panel)
    places, groups = list(frame[x].unique()), list(frame[group].unique())
    across = 1 if len(panels) < 3 else 2
    width = 0.8 / len(groups)
    with styled():
        wide = max(6.4, across * (0.38 * len(places) * (len(groups) + 1) + 0.6))
        fig = canvas(wide, 2.7 * -(-len(panels) // across) + 1.0)
        axes = style.grid(fig, len(panels), across)
        for ax, (name, part) in zip(axes.flat, panels):
            for at, value in enumerate(groups):
                bars = part[part[group] == value].drop_duplicates(x).set_index(x).reindex(places)
                centres = [place + (at - (len(groups) - 1) / 2) * width for place in range(len(places))]
                ax.bar(centres, bars[measure], width=0.92 * width, color=colour_of(value, at), label=str(value),
                       yerr=style.whiskers(bars, measure), capsize=3, error_kw={"linewidth": 1.2})  # fmt: skip
            ax.axhline(0, color="black", linewidth=0.8)
            ax.set_xticks(range(len(places)), [style.wrap(str(place), 16) for place in places])
            finish(ax, axis_label(measure) if ax in axes[:, 0] else "", str(name) if panel else title, bottom=None)
        for ax in axes[-1]:
            ax.set_xlabel(axis_label(x))
        handles, labels = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, frameon=False, title=axis_label(group), ncols=min(len(groups), 4), fontsize=10,
                   loc="outside lower center")  # fmt: skip
        if title and panel:
            style.headline(fig, style.wrap(title, int(wide * 10)), fontsize=13)
    return fig


def latency(frame: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Seconds per batch: a cluster of bars per shape with a bar per loop, and a line over K.

    Args:
        frame: The first table of :func:`laser_lab.lab.latency.benchmark`. Whiskers end at the 95th percentile; a number
            on a bar says how many times longer than ours it takes.
    """
    check(frame, ["name", "batch", "tokens", "thinking_steps", "median", "p95", "ratio"])
    sweep, shapes = frame[frame["name"] == "sweep"], frame[frame["name"] != "sweep"]
    looks = {
        "published": ("published loop, K=3", METHOD_COLOURS["random"]),
        "ours": ("ours, K=3", METHOD_COLOURS["laser"]),
        "basic": ("one basic pass", METHOD_COLOURS["basic"]),
    }
    places = list(dict.fromkeys(zip(shapes["batch"], shapes["tokens"])))
    with styled():
        fig = canvas(9.6, 4.0)
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
        finish(left, "seconds per batch", title, bottom=0)
        if len(sweep):
            above = [[0] * len(sweep), sweep["p95"] - sweep["median"]]
            right.errorbar(sweep["thinking_steps"], sweep["median"], above, marker="o", capsize=3,
                           color=METHOD_COLOURS["laser"])  # fmt: skip
            right.set_xlabel(NAMES["thinking_steps"])
            batch, tokens = sweep.iloc[0][["batch", "tokens"]]
            finish(right, "", f"ours, {batch} × {tokens} tokens", bottom=0)
        else:
            right.set_visible(False)
    return fig


def frontier(
    frame: pd.DataFrame, measure: str = "ndcg@10", *, x: str = "milliseconds", title: str | None = None
) -> Figure:
    """Quality against cost, a point per system with its interval, and the Pareto front as a line.

    Args:
        frame: Columns ``method`` (the colour), ``label`` (beside the point; may be empty), `x` (on a logarithmic axis),
            `measure`, ``low``, ``high`` and ``pareto`` (True on the front).
    """
    check(frame, ["label", "method", x, measure, "low", "high", "pareto"])
    with styled():
        fig = canvas(8.6, 4.6)
        ax = fig.subplots()
        front = frame[frame["pareto"]].sort_values(x)
        ax.step(front[x], front[measure], where="post", color="#949494", linewidth=1.5, zorder=1, label="Pareto front")
        for at, (method, points) in enumerate(frame.groupby("method", sort=False)):
            colour = colour_of(method, at)
            ax.errorbar(points[x], points[measure], yerr=style.whiskers(points, measure), color=colour, marker="o",
                        markersize=8, capsize=4, linewidth=0, elinewidth=1.5, label=method)  # fmt: skip
            place = dict(xytext=(5, 8 if at % 2 else -16), textcoords="offset points")  # methods above and below
            for _, row in points.iterrows():
                ax.annotate(row["label"], (row[x], row[measure]), fontsize=9, color=colour, **place)
        ax.set_xscale("log")
        ax.margins(x=0.1, y=0.1)
        ax.xaxis.set_major_formatter("{x:g}")
        # between powers of ten too, where there is room for the numbers
        ax.xaxis.set_minor_formatter("{x:g}" if frame[x].max() < 30 * frame[x].min() else NullFormatter())
        ax.set_xlabel(axis_label(x))
        finish(ax, axis_label(measure), title, bottom=0)
        fig.legend(frameon=False, loc="outside right upper")
    return fig


def trainings(
    frame: pd.DataFrame, measure: str = "ndcg@10", *, failed: float | None = None, title: str | None = None
) -> Figure:
    """A dot per training and a bar at each row's mean: what the mean of trainings that fail does not show.

    Args:
        frame: Columns ``label`` (the row, in order of appearance), ``method`` (the colour) and `measure`, from 0 to 1.
        failed: Trainings below have failed: the area is shaded, and each row says how many of its own lie there.
    """
    check(frame, ["label", "method", measure])
    rows = list(frame.groupby("label", sort=False))
    with styled():
        fig = canvas(7.6, 0.3 * len(rows) + 1.3)
        ax = fig.subplots()
        for at, (_, part) in enumerate(rows):
            colour = colour_of(part["method"].iloc[0], at)
            spread = [at + 0.36 * (i / max(1, len(part) - 1) - 0.5) for i in range(len(part))]
            ax.plot(part[measure], spread, "o", color=colour, alpha=0.55, markersize=5, markeredgewidth=0)
            ax.plot([part[measure].mean()] * 2, [at - 0.36, at + 0.36], color=colour, linewidth=2.5)
            if failed is not None:
                count = f"{int((part[measure] < failed).sum())} of {len(part)} failed"
                ax.annotate(count, (1.02, at), xycoords=("axes fraction", "data"), va="center", fontsize=9.5)
        if failed is not None:
            ax.axvspan(0, failed, color="#949494", alpha=0.12, linewidth=0)
        ax.set_yticks(range(len(rows)), [str(label) for label, _ in rows])
        ax.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, 1.01))
        ax.set_xlabel(axis_label(measure))
        finish(ax, "", title, bottom=None)
        ax.grid(axis="x", alpha=0.3)
    return fig
