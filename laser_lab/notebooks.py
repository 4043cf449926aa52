"""Run the notebooks: ``python -m laser_lab.notebooks`` (what ``make figures`` calls).

Each notebook is executed by papermill, in order and in place, with the parameters of a preset. An executed notebook
replaces the old one only when it ran to its end.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from laser_lab.backbones import missing_extra

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"


def run(notebook: str | os.PathLike[str], output: str | os.PathLike[str], **parameters: Any) -> None:
    """Execute `notebook` in its own folder and write it to `output`, free of machine-specific metadata.

    Raises:
        papermill.PapermillExecutionError: A cell failed; `output` is left as it was.
    """
    try:
        import nbformat
        import papermill
    except ImportError as error:
        raise missing_extra("papermill", "lab") from error
    notebook, output = Path(notebook), Path(output)
    handle, name = tempfile.mkstemp(suffix=".ipynb", prefix=".", dir=output.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        papermill.execute_notebook(
            notebook, temporary, parameters=parameters, cwd=notebook.parent, kernel_name="python3", progress_bar=False
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="notebooks to run, by the start of their names; default: all")
    options = parser.parse_args(arguments)
    notebooks = sorted(FOLDER.glob("[0-9]*.ipynb"))
    chosen = [n for n in notebooks if not options.names or n.name.startswith(tuple(options.names))]
    if not chosen:
        parser.error(
            f"no notebook starts with {', '.join(options.names)}; there are {', '.join(n.stem for n in notebooks)}"
        )
    for notebook in chosen:
        start = time.perf_counter()
        print(f"{notebook.stem} ...", end=" ", flush=True)
        run(notebook, notebook)
        print(f"{time.perf_counter() - start:.0f} s", flush=True)
    print(f"figures are in {FOLDER.parent / 'figures'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
