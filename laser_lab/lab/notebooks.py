"""Run the notebooks: ``python -m laser_lab.lab.notebooks`` (what ``make figures`` calls).

Each notebook is executed by papermill, in place, and replaces the old one only when it ran to its end. The manifest in
``figures/data`` says which files it wrote, by which code, and which trainings and tables are behind each figure. Two
notebooks run side by side, so that both cores are busy where one notebook only loads or draws. A run of all skips what
this machine has already run as it and the library stand, and whose outputs are unchanged; a notebook that is named runs
in any case. ``--preset full`` runs those that have seeds with more of them, and writes to ``figures/full``, notebooks
included.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from laser_lab.base.files import atomic_file, cache_dir, missing_extra, read_json, write_text
from laser_lab.base.processes import end_with_parent, scratch_folder
from laser_lab.lab.provenance import PACKAGE, code_version, imported, versions

try:
    import nbformat
    import papermill
except ImportError as error:
    raise missing_extra("papermill", "lab") from error
from traitlets.config import Config

FOLDER = PACKAGE.parent / "notebooks"
FIGURES = PACKAGE.parent / "figures"
MANIFEST = FIGURES / "data" / "manifest.json"
DRAWINGS = ("method", "hopworld")
"""Figures without a number; the first notebook makes them."""
SIDE_BY_SIDE = 2
"""Notebooks that run at a time."""

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "full": {
        "FIGURES": "../figures/full",
        "SEEDS": [0, 1, 2, 3, 4],
        "SEEDS_OF_PARTS": [0, 1, 2],
        "PARTS": ["latent", "laser-no-latent", "laser-no-trajectory", "laser-no-output", "laser-no-colearning"],
        "TRAIN_STEPS": [1, 2, 3, 4, 5, 6, 7, 8],
        "SWEEP": [1, 3, 9],
        "WORLDS": [{"hops": 1, "dev": 20, "test": 80}, {}],
        "ALONE": ["latent"],
    },
}
"""Values for the parameters that a notebook has, by name; ``default`` is what stands in the notebooks."""


def run(notebook: str | os.PathLike[str], output: str | os.PathLike[str], **parameters: Any) -> None:
    """Execute `notebook` in its own folder and write it to `output`, free of machine-specific metadata.

    Args:
        parameters: Written into the notebook's cell tagged ``parameters``; names that it lacks are left out.

    Raises:
        papermill.PapermillExecutionError: A cell failed; `output` is left as it was.
    """
    notebook, output = Path(notebook), Path(output)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # transformers' too: they leave broken lines in a notebook
    output.parent.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"  # the other core has its own notebook
    with atomic_file(output) as temporary, scratch_folder("k") as sockets:
        content = nbformat.read(notebook, as_version=4)
        for cell in content.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = with_values(cell.source, parameters)
        nbformat.write(content, temporary)
        papermill.execute_notebook(
            temporary,
            temporary,
            cwd=notebook.parent,
            kernel_name="python3",
            progress_bar=False,
            # sockets of this user alone: the ports of TCP are open to everyone on the machine
            config=Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"}),
        )
        executed = nbformat.read(temporary, as_version=4)
        for part in (executed, *executed.cells):
            for name in ("papermill", "execution", "widgets"):  # widgets: the states of progress bars
                part.metadata.pop(name, None)
        for cell in executed.cells:
            if cell.cell_type == "code":  # warnings and progress bars name paths and machines
                cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" and not _is_bar(o)]
        nbformat.write(executed, temporary)


def _is_bar(output: Any) -> bool:
    """Whether an output is a progress bar of tqdm, ``0/2500 [00:00<?, ?step/s]``: it shows nothing without its
    kernel."""
    return bool(re.search(r"\d+/\d+ \[\d\d:\d\d", output.get("data", {}).get("text/plain", "")))


def with_values(source: str, values: dict[str, Any]) -> str:
    """Python `source` whose assignments to the names of `values` at its top assign these instead; comments stay."""
    lines = [line.encode() for line in source.split("\n")]
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and ast.unparse(node.targets[0]) in values:
            old, new = node.value, repr(values[ast.unparse(node.targets[0])]).encode()
            tail = lines[old.end_lineno - 1][old.end_col_offset :]
            lines[old.lineno - 1 : old.end_lineno] = [lines[old.lineno - 1][: old.col_offset] + new + tail]
    return b"\n".join(lines).decode()


def parameters_of(notebook: str | os.PathLike[str]) -> set[str]:
    """The names that a notebook's cell tagged ``parameters`` assigns."""
    cells = nbformat.read(notebook, as_version=4).cells
    source = "\n".join(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    return {ast.unparse(node.targets[0]) for node in ast.parse(source).body if isinstance(node, ast.Assign)}


def code_of(notebook: str | os.PathLike[str]) -> list[ast.Module]:
    """The code cells, parameters included and the magics of IPython left out."""
    sources = [cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    return [ast.parse(re.sub(r"^[%!].*$", "", source, flags=re.M)) for source in sources]


def configuration(notebook: str | os.PathLike[str]) -> str:
    """A hash of what a notebook's figures were made by: its code and parameters, but not its imports, comments and
    layout. A function that moves to another module stays the same."""
    code = [[ast.unparse(node) for node in cell.body if not isinstance(node, (ast.Import, ast.ImportFrom))]
            for cell in code_of(notebook)]  # fmt: skip
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()[:16]


def library_version(notebook: str | os.PathLike[str]) -> dict[str, str]:
    """A hash of every module of the library that a notebook's imports reach, by name."""
    names = sorted(set().union(*(imported(ast.unparse(cell)) for cell in code_of(notebook))))
    return {name: found[:8] for name, found in versions(*names).items()}


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def written_by(notebook: Path, figures: Path | None = None) -> list[Path]:
    """The files in a folder of figures (default: the committed one) that are a notebook's: their names start with its
    number, or are those of the drawings."""
    figures, number = figures or FIGURES, notebook.name[:3]
    names = [f"{number}*", *(f"{name}.*" for name in DRAWINGS if number == "00_")]
    files = [file for folder in (figures, figures / "data") for name in names for file in folder.glob(name)]
    return sorted(file for file in files if file.is_file() and file.suffix != ".ipynb")


def _digests(notebook: Path, figures: Path) -> dict[str, str]:
    return {file.relative_to(figures).as_posix(): digest(file) for file in written_by(notebook, figures)}


def _record(notebook: Path, started: float, preset: str, figures: Path) -> None:
    """Note what `notebook` has just written, and remove what an earlier version of it wrote."""
    file = figures / "data" / "manifest.json"
    manifest = read_json(file) if file.exists() else {}
    for old in written_by(notebook, figures):
        if old.stat().st_mtime < started - 1:  # seconds: the clock of a file system lags behind
            old.unlink()
    made_from = {}
    for drawn in written_by(notebook, figures):
        if drawn.suffix == ".png":
            with Image.open(drawn) as image:
                made_from[drawn.stem] = json.loads(image.info.get("Description", "{}"))
    manifest[notebook.stem] = {
        "configuration": configuration(notebook),
        "preset": preset,
        "date": date.today().isoformat(),
        "cells": code_version("laser_lab.lab.cells")[:12],  # as in the tables of recipes
        "code": library_version(notebook),
        "made_from": made_from,
        "files": _digests(notebook, figures),
    }
    write_text(file, json.dumps(dict(sorted(manifest.items())), indent=1) + "\n")


def _stamp(notebook: Path, preset: str) -> Path:
    """Where it is noted that this machine has run `notebook`, by all that its outputs depend on: its code as it
    stands, the values of the preset, the library and its versions, and the records of long runs beside the figures."""
    code = [cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    every, number = notebook.name.startswith("00"), notebook.name[:3]
    read = [*PACKAGE.rglob("*"), *(FIGURES / "data").glob("*" if every else "[!0-9]*")]
    if preset == "default" and "figures/full" in "".join(code):
        read += (FIGURES / "full" / "data").glob("*" if every else f"{number}*")
    written = {MANIFEST, *written_by(notebook)}
    read = [file for file in sorted(read) if file.is_file() and file not in written and not _comes_and_goes(file)]
    found = {name: version(name) for name in ("torch", "transformers", "peft", "sentence-transformers")}
    text = json.dumps([code, PRESETS[preset], [*map(digest, read)], found], sort_keys=True)
    return cache_dir() / "notebooks" / f"{notebook.stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def _comes_and_goes(file: Path) -> bool:
    """Whether it is bytecode, or is being written."""
    return "__pycache__" in file.parts or file.name.startswith(".")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names",
        nargs="*",
        help="notebooks to run, by the start of their names; default: all whose figures this machine has not made yet",
    )
    parser.add_argument("--preset", choices=PRESETS, default="default")
    options = parser.parse_args(arguments)
    notebooks = sorted(FOLDER.glob("[0-9]*.ipynb"), key=lambda n: (n.name.startswith("00"), n))  # it reads the others
    there = ", ".join(sorted(notebook.stem for notebook in notebooks))
    if unknown := [name for name in options.names if not any(n.name.startswith(name) for n in notebooks)]:
        parser.error(f"no notebook starts with {' or '.join(unknown)}; there are {there or 'none'}")
    chosen = [n for n in notebooks if not options.names or n.name.startswith(tuple(options.names))]
    values = PRESETS[options.preset]
    if values and not options.names:
        chosen = [notebook for notebook in chosen if parameters_of(notebook) & values.keys() - {"FIGURES"}]
    figures = FIGURES.parent / "notebooks" / values["FIGURES"] if "FIGURES" in values else FIGURES
    make = partial(_make, figures=figures, preset=options.preset)
    # the first notebooks are short: as the last ones they leave no core without work; 00 reads what the others wrote
    for some in ([n for n in reversed(chosen) if n.name[:2] != "00"], [n for n in chosen if n.name[:2] == "00"]):
        stamps = {n: _stamp(n, options.preset) for n in some}  # before: what is edited meanwhile is not what ran
        done = [n for n, stamp in stamps.items() if not options.names and _has_run(n, stamp, figures, options.preset)]
        for notebook in done:
            print(f"{notebook.stem}: up to date")
        for notebook, started in _side_by_side(make, [n for n in some if n not in done]):
            _record(notebook, started, options.preset, figures)
            write_text(stamps[notebook], json.dumps(_outputs(notebook, figures, options.preset)))
            print(f"{notebook.stem}: {time.time() - started:.0f} s", flush=True)
    print(f"figures are in {figures.resolve()}")
    return 0


def _has_run(notebook: Path, stamp: Path, figures: Path, preset: str) -> bool:
    """Whether `stamp` notes the outputs as they are."""
    there = stamp.exists() and _output(notebook, figures, preset).exists()
    return there and read_json(stamp) == _outputs(notebook, figures, preset)


def _make(notebook: Path, figures: Path, preset: str) -> float:
    """Run a notebook; when it started."""
    started = time.time()
    run(notebook, _output(notebook, figures, preset), **PRESETS[preset])
    return started


def _side_by_side(make: Callable[[Path], Any], notebooks: Sequence[Path]) -> Iterator[tuple[Path, Any]]:
    """Each notebook and what `make` returns for it, as they end; :data:`SIDE_BY_SIDE` at a time, in processes of their
    own. After an error no other one starts."""
    if len(notebooks) < 2:
        yield from ((notebook, make(notebook)) for notebook in notebooks)
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(SIDE_BY_SIDE, spawn, initializer=end_with_parent, initargs=(os.getpid(),))
    try:
        running = {pool.submit(make, notebook): notebook for notebook in notebooks}
        for done in as_completed(running):
            yield running[done], done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _output(notebook: Path, figures: Path, preset: str) -> Path:
    return figures / notebook.name if "FIGURES" in PRESETS[preset] else notebook


def _outputs(notebook: Path, figures: Path, preset: str) -> dict[str, str]:
    return {notebook.name: digest(_output(notebook, figures, preset))} | _digests(notebook, figures)


if __name__ == "__main__":
    sys.exit(main())
