"""Tables drawn as grids: what thoughts say, and numbers from 0 to 1."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from laser_lab.lab.figures import style
from laser_lab.lab.figures.style import NAMES, axis_label, canvas, check, headline, readable, styled, wrap


def thought_heatmap(tokens: pd.DataFrame, title: str | None = None, panel: str = "query") -> Figure:
    """A row per thinking step, a column per rank, the token in every cell, and a panel per value of `panel`.

    Args:
        tokens: Of :func:`laser_lab.nearest_tokens`; the colour is its ``probability`` or ``cosine``.
    """
    measure = next((m for m in ("probability", "cosine") if m in tokens), "probability")
    check(tokens, ["step", "rank", "token", measure, panel])
    groups = style.panels_of(tokens, panel)
    tables = [group.pivot(index="step", columns="rank", values=["token", measure]) for _, group in groups]
    rows, columns = [len(t) for t in tables], max(t[measure].shape[1] for t in tables)
    width = max(6.4, 1.15 * columns + 1.7)
    characters = int(width * 10)
    names = [wrap(readable(str(name), None), characters) for name, _ in groups]
    top = wrap(title, characters) if title else ""
    lines = sum(name.count("\n") + 1 for name in names) + top.count("\n") + 1
    with styled():
        fig = canvas(width, 0.4 * sum(rows) + 0.75 * len(rows) + 0.25 * lines)
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
                    style.write_cell(ax, column, row, token, dark, fontsize=11 if len(token) < 10 else 9)
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
        headline(fig, top, fontsize=13)
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
    """Heat maps, the smallest `y` at the bottom.

    Args:
        frame: Columns `x`, `y`, `value` (the colour, from 0 to 1; less is drawn as 0) and `panel`.
        text: Column that is written into the cells; default: `value`.
    """
    check(frame, [x, y, value] + [column for column in (panel, text) if column])
    panels = style.panels_of(frame, panel)
    columns, rows = sorted(frame[x].unique()), sorted(frame[y].unique())
    across = min(4, len(panels))
    down = -(-len(panels) // across)
    cell = 1.05 if text else 0.75
    with styled():
        wide = max(4.8, across * (cell * len(columns) + 0.5) + 1.4)
        fig = canvas(wide, down * (0.42 * len(rows) + 0.75) + 0.8)
        axes = style.grid(fig, len(panels), across)
        for ax, (name, part) in zip(axes.flat, panels):
            table = part.drop_duplicates([x, y]).set_index([y, x])
            numbers = table[value].unstack().reindex(index=rows, columns=columns).to_numpy(dtype=float)
            image = ax.imshow(numbers, cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
            for row, here in enumerate(rows):
                for column, there in enumerate(columns):
                    if (here, there) not in table.index:
                        continue
                    shown = readable(table[text][here, there]) if text else f"{numbers[row, column]:.2f}"
                    style.write_cell(ax, column, row, shown, numbers[row, column] > 0.65, fontsize=9)
            if name is not None:
                shown = name if isinstance(name, str) else f"{axis_label(panel)} {name}"
                ax.set_title(shown, fontsize=11, parse_math=False)
            ax.set_xticks(range(len(columns)), columns)
            ax.set_yticks(range(len(rows)), rows)
            ax.tick_params(length=0)
            ax.spines[:].set_visible(False)
        for ax in axes[:, 0]:
            ax.set_ylabel(axis_label(y))
        for ax in axes[-1]:
            ax.set_xlabel(axis_label(x))
        fig.colorbar(image, ax=list(axes.flat), label=axis_label(value), pad=0.02, aspect=14 * down)
        if title:
            headline(fig, wrap(title, int(wide * 10)), fontsize=13)
    return fig
