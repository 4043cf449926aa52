"""Bars and points with whiskers: quality, cost, and one against the other. An interval without width is not drawn."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from laser_lab.lab.figures import style
from laser_lab.lab.figures.style import METHOD_COLOURS, axis_label, canvas, check, colour_of, finish, whiskers


@style.styled()
def metric_bars(frame: pd.DataFrame, measure: str = "ndcg@10", *, title: str | None = None) -> Figure:
    """A bar per row, ``label``, with its `measure`, its interval from ``low`` to ``high``, and ``method``'s colour."""
    check(frame, ["label", "method", measure, "low", "high"])
    each = min(1.6, style.MAX_WIDTH / len(frame))
    fig = canvas(max(4.8, each * len(frame)), 3.8)
    ax = fig.subplots()
    colours = [METHOD_COLOURS.get(method, METHOD_COLOURS["laser"]) for method in frame["method"]]
    bars = ax.bar(range(len(frame)), frame[measure], color=colours, width=0.6, yerr=whiskers(frame, measure), capsize=5)
    ax.bar_label(bars, fmt="%.3f", padding=5)
    ax.set_xticks(range(len(frame)), [style.wrap(str(label), int(11 * each)) for label in frame["label"]])
    ax.margins(y=0.15)
    finish(ax, axis_label(measure), title, bottom=0)
    return fig


def _clusters(ax: Axes, frame: pd.DataFrame, measure: str, x: str, group: str, places: list, groups: list) -> None:
    """A cluster of bars per place on `x`, with a bar and its interval per group."""
    width = 0.8 / len(groups)
    for at, value in enumerate(groups):
        bars = frame[frame[group] == value].drop_duplicates(x).set_index(x).reindex(places)
        centres = [place + (at - (len(groups) - 1) / 2) * width for place in range(len(places))]
        ax.bar(centres, bars[measure], width=0.92 * width, color=colour_of(value, at), label=str(value),
               yerr=whiskers(bars, measure), capsize=3, error_kw={"linewidth": 1.2},
               hatch=style.hatch_of(value, at), edgecolor="white", linewidth=0)  # fmt: skip
    ax.set_xticks(range(len(places)), [style.wrap(str(place), 14) for place in places])


@style.styled()
def grouped_bars(
    frame: pd.DataFrame, measure: str, *, x: str, group: str, panel: str | None = None, title: str | None = None
) -> Figure:
    """A cluster of bars per value of `x`, with a bar of `measure` and its interval (``low``, ``high``) per value of
    `group`, in order of appearance. A missing combination leaves a gap."""
    check(frame, [measure, "low", "high", x, group] + ([panel] if panel else []))
    panels = style.panels_of(frame, panel)
    places, groups = list(frame[x].unique()), list(frame[group].unique())
    across = 1 if len(panels) < 3 else 2
    wide = min(style.MAX_WIDTH, max(6.4, across * (0.38 * len(places) * (len(groups) + 1) + 0.6)))
    fig = canvas(wide, 2.7 * -(-len(panels) // across) + 1.0)
    axes = style.grid(fig, len(panels), across)
    for ax, (name, part) in zip(axes.flat, panels):
        _clusters(ax, part, measure, x, group, places, groups)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_xlabel(axis_label(x) if ax in style.lowest(axes) else "")
        finish(ax, axis_label(measure) if ax in axes[:, 0] else "", str(name) if panel else title)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, frameon=False, title=axis_label(group), ncols=min(len(groups), 4), fontsize=10,
               loc="outside lower center")  # fmt: skip
    style.headline(fig, title if panel else None, int(wide * 10))
    return fig


@style.styled()
def latency(frame: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Seconds per batch by the tables of :func:`laser_lab.lab.loops.benchmark`, in its first dtype, and of
    :func:`laser_lab.lab.loops.sweep`: a cluster of bars per shape, the published loop on PyTorch's layers and ours on
    ours, and how many times one pass K steps take. Whiskers end at the 95th percentile; numbers say how many times
    faster ours is."""
    check(frame, ["name", "layers", "dtype", "batch", "tokens", "thinking_steps", "median", "p95", "gain"])
    first = frame["dtype"].isna() | (frame["dtype"] == frame["dtype"].iloc[0])
    own = frame["layers"] == ("ours" if (frame["layers"] == "ours").any() else "stock")
    frame = frame[
        first & (frame["layers"].isna() | own.where(frame["name"] != "published", frame["layers"] == "stock"))
    ]
    frame = frame.assign(low=frame["median"], high=frame["p95"])
    frame["shape"] = [f"{batch} × {tokens} tokens" for batch, tokens in zip(frame["batch"], frame["tokens"])]
    names = {"published": "published loop, K=3", "ours": "ours, K=3", "basic": "one basic pass"}
    sweep = frame[frame["name"] == "sweep"].copy()
    sweep[["median", "low", "high"]] /= sweep.loc[sweep["thinking_steps"].idxmin(), "median"]  # a run of its own
    frame = frame[frame["name"].isin(names)]
    fig = canvas(9.6, 4.0)
    left, right = fig.subplots(1, 2, gridspec_kw={"width_ratios": [3, 2]})
    _clusters(left, frame, "median", "shape", "name", list(frame["shape"].unique()), list(names))
    ratios = frame.loc[frame["name"] == "ours", "gain"]
    left.bar_label(left.containers[1], [f"{times:.1f}×" for times in ratios], padding=2)
    left.legend(names.values(), frameon=False, fontsize=10, loc="upper left")
    finish(left, "seconds per batch", title, bottom=0)
    right.errorbar(sweep["thinking_steps"], sweep["median"], whiskers(sweep, "median"), marker="o", capsize=3)
    right.set_xlabel(axis_label("thinking_steps"))
    finish(right, "times one pass (K=1)", f"ours, {sweep['shape'].iloc[0]}", bottom=0)
    return fig


def on_front(frame: pd.DataFrame, x: str, measure: str = "ndcg@10", noise: float = 1.05) -> list[bool]:
    """Whether each row lies on the Pareto front of cost `x` and `measure`, told by intervals (``low``, ``high``): none
    is clearly better at no more cost, and none clearly cheaper that is not clearly worse. Costs within a factor of
    `noise` are the same."""
    points = list(zip(frame[x], frame["low"], frame["high"]))
    return [
        not any(
            (other <= cost * noise and worst > high) or (other * noise < cost and not low > best)
            for other, worst, best in points
        )
        for cost, low, high in points
    ]


@style.styled()
def frontier(
    frame: pd.DataFrame,
    measure: str = "ndcg@10",
    *,
    x: str = "milliseconds",
    panel: str | None = None,
    title: str | None = None,
) -> Figure:
    """Quality (`measure`, ``low``, ``high``) against cost (`x`, on a logarithmic axis): a point per row in the colour
    of its ``method``, with its ``label`` beside it, and a line through those that are ``pareto``. Panels have axes of
    their own: what stands in them was measured on other machines and data."""
    check(frame, ["label", "method", x, measure, "low", "high", "pareto"] + ([panel] if panel else []))
    panels = style.panels_of(frame, panel)
    fig = canvas(style.MAX_WIDTH if panel else 8.6, 4.8)
    axes = fig.subplots(1, len(panels), squeeze=False)[0]
    order = {method: at for at, method in enumerate(frame["method"].unique())}
    for ax, (shown, part) in zip(axes, panels):
        _points(ax, part, measure, x, order)
        ax.set_xlabel(axis_label(x))
        finish(ax, axis_label(measure), str(shown) if panel else title, bottom=0)
    handles = dict(pair for ax in axes for pair in zip(*ax.get_legend_handles_labels()[::-1]))
    fig.legend(handles.values(), handles, frameon=False, fontsize=10, loc="outside lower center", ncols=4)
    style.headline(fig, title if panel else None, 90)
    return fig


def _points(ax: Axes, frame: pd.DataFrame, measure: str, x: str, order: dict[str, int]) -> None:
    front = frame[frame["pareto"]].sort_values(x)
    if len(front) > 1:  # a single point has no line
        ax.step(front[x], front[measure], where="post", color="#949494", linewidth=1.5, zorder=1, label="Pareto front")
    for method, points in frame.groupby("method", sort=False):
        look = dict(color=colour_of(method, order[method]), capsize=4, elinewidth=1.5)
        look |= style.line_of(method, order[method]) | {"markersize": 12 if method == "lexical" else 8, "linestyle": ""}
        ax.errorbar(points[x], points[measure], yerr=whiskers(points, measure), label=method, **look)
        above = order[method] % 2 == 1
        for at, (_, row) in enumerate(points.sort_values(x).iterrows(), 1):
            # away from its neighbours: the last of several to the right of its point, the others to the left
            right, up = at == len(points) if len(points) > 1 else not above, above
            if len(points) == 1:
                others = frame[frame["method"] != method]
                near = others[(others[x] / row[x]).between(0.8, 1.25) & ((others[measure] - row[measure]).abs() < 0.15)]
                if len(near):
                    right, up = row[x] > near[x].mean(), row[measure] > near[measure].mean()
            place = dict(xytext=(6 if right else -6, 7 if up else -15), ha="left" if right else "right")
            ax.annotate(row["label"], (row[x], row[measure]), fontsize=9, color=look["color"],
                        textcoords="offset points", **place)  # fmt: skip
    ax.set_xscale("log")
    ax.margins(x=0.18, y=0.12)
    ax.xaxis.set_major_formatter("{x:g}")
    narrow = frame[x].max() < 30 * frame[x].min()  # then there is room for numbers between powers of ten, too
    ax.xaxis.set_minor_locator(LogLocator(subs=(2, 3, 5) if narrow else range(2, 10), numticks=20))
    ax.xaxis.set_minor_formatter("{x:g}" if narrow else NullFormatter())
    ax.tick_params(axis="x", which="both", labelsize=9, length=4, pad=4)  # all numbers at one height


@style.styled()
def trainings(
    frame: pd.DataFrame,
    measure: str = "ndcg@10",
    *,
    failed: float | None = None,
    means: pd.DataFrame | None = None,
    title: str | None = None,
) -> Figure:
    """A dot per training (`measure`, from 0 to 1) and a thin bar at the mean of each ``label``, in the colour of its
    ``method``; with `means` (``label``, ``low``, ``high``) also the mean's interval. Trainings below `failed` have
    failed: the area is shaded, and each row counts its own there."""
    check(frame, ["label", "method", measure])
    rows = list(frame.groupby("label", sort=False))
    fig = canvas(7.6, 0.3 * len(rows) + 1.3)
    ax = fig.subplots()
    for at, (label, part) in enumerate(rows):
        colour = colour_of(part["method"].iloc[0], at)
        spread = [at + 0.36 * (i / max(1, len(part) - 1) - 0.5) for i in range(len(part))]
        ax.plot([part[measure].mean()] * 2, [at - 0.4, at + 0.4], color=colour, linewidth=1.2, zorder=1.5)
        ax.plot(part[measure], spread, "o", color=colour, alpha=0.55, markersize=5, markeredgewidth=0)
        if means is not None:
            low, high = means.set_index("label").loc[label, ["low", "high"]]
            ax.plot([low, high], [at, at], color=colour, linewidth=6, alpha=0.3, solid_capstyle="butt")
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


@style.styled()
def intervals(
    frame: pd.DataFrame,
    measure: str = "ndcg@10",
    *,
    y: str = "label",
    group: str | None = None,
    panel: str | None = None,
    hollow: str | None = None,
    title: str | None = None,
) -> Figure:
    """Points with their intervals (``low``, ``high``): a row per value of `y`, the first on top, in the colour of its
    ``method``, a marker per value of `group`, hollow where the column `hollow` is true, and a panel per value of
    `panel`. A difference has a line at 0."""
    check(frame, ["method", measure, "low", "high", y] + [column for column in (group, panel, hollow) if column])
    panels, rows = style.panels_of(frame, panel), list(frame[y].unique())
    groups = list(frame[group].unique()) if group else [None]
    across, step = min(2, len(panels)), 0.8 / len(groups)
    down = -(-len(panels) // across)
    wide = 7.6 if across == 1 else 9.4
    fig = canvas(wide, down * (len(rows) * max(0.3, 0.17 * len(groups)) + 0.5) + 1.2)
    axes = style.grid(fig, len(panels), across)
    for ax, (name, part) in zip(axes.flat, panels):
        if frame["low"].min() < 0:
            ax.axvline(0, color="black", linewidth=0.8)
        for _, point in part.iterrows():
            at, kind = rows.index(point[y]), groups.index(point[group]) if group else 0
            reach = [[point[measure] - point["low"]], [point["high"] - point[measure]]]
            ax.errorbar(point[measure], at + (kind - (len(groups) - 1) / 2) * step, xerr=reach, marker="osD^v<>"[kind],
                        color=colour_of(point["method"], at), markersize=5.5, capsize=2, linewidth=1.3,
                        markerfacecolor="white" if hollow and point[hollow] else None)  # fmt: skip
        ax.set_yticks(range(len(rows)), [str(row) for row in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_xlabel(axis_label(measure) if ax in axes[-1] else "")
        finish(ax, "", str(name) if panel else title)
        ax.grid(axis="x", alpha=0.3)
    if group:
        shades = [colour_of(value, at) if group == "method" else "#555555" for at, value in enumerate(groups)]
        handles = [
            Line2D([], [], marker=marker, label=str(value), color=shade, linestyle="none", markersize=5.5)
            for marker, value, shade in zip("osD^v<>", groups, shades)
        ]
        fig.legend(handles=handles, frameon=False, ncols=min(len(groups), 3), fontsize=10, loc="outside lower center")
    style.headline(fig, title if panel else None, int(9.5 * wide))
    return fig
