"""Figures: a tidy DataFrame in, a matplotlib Figure out. :func:`save` writes PNG, SVG and the frame as CSV,
:func:`save_table` a table alone.

The same frame gives the same bytes. Each function raises a ValueError where its frame is empty or lacks a column.
"""
# ruff: noqa: F401  what notebooks use

from laser_lab.lab.figures.bars import frontier, grouped_bars, intervals, latency, metric_bars, on_front, trainings
from laser_lab.lab.figures.drawings import hop_path, method
from laser_lab.lab.figures.grids import heatmap, thought_heatmap
from laser_lab.lab.figures.lines import loss_curves, metric_by_steps, rank_bumps, trajectories
from laser_lab.lab.figures.style import readable, save, save_table
