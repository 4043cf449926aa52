"""Trained adapters that come with the package: ``ll.load("gemma-3-270m", adapter="lexical-entailment-bank")``. Each is
a folder beside this file, written by :func:`laser_lab.lab.export.export_adapter`."""

from pathlib import Path

FOLDER = Path(__file__).parent
NAMES = sorted(file.parent.name for file in FOLDER.glob("*/adapter_config.json"))
