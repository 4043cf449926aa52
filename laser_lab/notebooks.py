"""Run the notebooks: ``python -m laser_lab.notebooks`` (what ``make figures`` calls).

Each notebook is executed by papermill, in order and in place, with the parameters of a preset. An executed notebook
replaces the old one only when it ran to its end; ``figures/data/manifest.json`` then says which files it wrote, under
which configuration.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from laser_lab.backbones import missing_extra

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
FIGURES = FOLDER.parent / "figures"
MANIFEST = FIGURES / "data" / "manifest.json"

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "full": {"SEEDS": [0, 1, 2, 3, 4], "TRAIN_STEPS": [1, 2, 3, 4, 5, 6, 7, 8], "HOPS": [2, 3, 4]},
}
"""Values for the parameters that a notebook has, by name; ``default`` is what stands in the notebooks."""


def run(notebook: str | os.PathLike[str], output: str | os.PathLike[str], **parameters: Any) -> None:
    """Execute `notebook` in its own folder and write it to `output`, free of machine-specific metadata.

    Args:
        parameters: Over those of the notebook's cell tagged ``parameters``; names that it lacks are left out.

    Raises:
        papermill.PapermillExecutionError: A cell failed; `output` is left as it was.
    """
    try:
        import nbformat
        import papermill
    except ImportError as error:
        raise missing_extra("papermill", "lab") from error
    notebook, output = Path(notebook), Path(output)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # transformers' too: an executed notebook would keep their ruins
    handle, name = tempfile.mkstemp(suffix=".ipynb", prefix=".", dir=output.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        fresh = nbformat.read(notebook, as_version=4)
        fresh.cells = [cell for cell in fresh.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
        nbformat.write(fresh, temporary)
        if parameters:
            known = papermill.inspect_notebook(temporary)
            parameters = {name: value for name, value in parameters.items() if name in known}
        papermill.execute_notebook(
            temporary, temporary, parameters=parameters, cwd=notebook.parent, kernel_name="python3", progress_bar=False
        )
        executed = nbformat.read(temporary, as_version=4)
        executed.metadata.pop("papermill", None)
        # what ran by default is the parameter cell itself; injected values are shown where there are some
        for cell in executed.cells:
            cell.metadata.pop("papermill", None)
            cell.metadata.pop("execution", None)
            if cell.cell_type == "code":  # warnings and progress bars name paths and machines
                cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        nbformat.write(executed, temporary)
        temporary.chmod(0o644)
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)


def configuration(notebook: str | os.PathLike[str]) -> str:
    """A hash of a notebook's code, parameters included: what its figures were made by."""
    import nbformat

    cells = nbformat.read(notebook, as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()[:16]


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def written_by(notebook: Path) -> list[Path]:
    """The files under ``figures/`` that are a notebook's: their names start with its number."""
    return sorted(file for file in FIGURES.rglob(f"{notebook.name[:3]}*") if file.is_file())


def _record(notebook: Path, started: float, preset: str) -> None:
    """Note what `notebook` has just written, and remove what an earlier version of it wrote."""
    for file in written_by(notebook):
        if file.stat().st_mtime < started:
            file.unlink()
    manifest = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else {}
    manifest[notebook.stem] = {
        "configuration": configuration(notebook),
        "preset": preset,
        "files": {file.relative_to(FIGURES).as_posix(): digest(file) for file in written_by(notebook)},
    }
    temporary = MANIFEST.with_suffix(".part")
    temporary.write_text(json.dumps(dict(sorted(manifest.items())), indent=1) + "\n")
    temporary.replace(MANIFEST)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="notebooks to run, by the start of their names; default: all")
    parser.add_argument("--preset", choices=PRESETS, default="default")
    options = parser.parse_args(arguments)
    notebooks = sorted(FOLDER.glob("[0-9]*.ipynb"))
    chosen = [n for n in notebooks if not options.names or n.name.startswith(tuple(options.names))]
    if not chosen:
        parser.error(
            f"no notebook starts with {', '.join(options.names)}; there are {', '.join(n.stem for n in notebooks)}"
        )
    for notebook in chosen:
        start = time.time()
        print(f"{notebook.stem} ...", end=" ", flush=True)
        run(notebook, notebook, **PRESETS[options.preset])
        _record(notebook, start, options.preset)
        print(f"{time.time() - start:.0f} s", flush=True)
    print(f"figures are in {FIGURES}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
