"""Figures: a tidy DataFrame in, a matplotlib Figure out. Nothing here computes a result or knows a model.

Every figure is written by :func:`save`, as PNG and SVG with the frame behind it as CSV, and the same frame always gives
the same bytes. One table of colours, :data:`METHOD_COLOURS`, serves all figures. Each function raises a ValueError
where its frame is empty or lacks a column.
"""

from laser_lab.lab.figures.bars import frontier, grouped_bars, latency, metric_bars
from laser_lab.lab.figures.grids import heatmap, thought_heatmap
from laser_lab.lab.figures.lines import loss_curves, metric_by_steps, rank_bumps, trajectories
from laser_lab.lab.figures.style import GROUP_COLOURS, METHOD_COLOURS, NAMES, STYLE, readable, save

__all__ = [
    "GROUP_COLOURS",
    "METHOD_COLOURS",
    "NAMES",
    "STYLE",
    "frontier",
    "grouped_bars",
    "heatmap",
    "latency",
    "loss_curves",
    "metric_bars",
    "metric_by_steps",
    "rank_bumps",
    "readable",
    "save",
    "thought_heatmap",
    "trajectories",
]
