"""Trained adapters that come with the package: ``ll.load("gemma-3-270m", adapter="laser-entailment-bank")``. Each is a
folder beside this file, written by :func:`laser_lab.lab.export.export_adapter`."""

from pathlib import Path

FOLDER = Path(__file__).parent
NAMES = ("laser-entailment-bank",)


def find(name: str) -> Path:
    """The folder of a built-in adapter. FileNotFoundError: this copy does not have it; it says how to make it."""
    folder = FOLDER / name
    if not (folder / "adapter_config.json").is_file():
        raise FileNotFoundError(
            f"the adapter {name!r} is not in this copy of laser_lab. Train it and put it there: python -m "
            "laser_lab.lab.entailment configs/entailment_bank.yaml --data FOLDER, and the same with --export laser."
        )
    return folder
