"""Run the notebooks: ``python -m laser_lab.lab.notebooks`` (what ``make figures`` calls).

Each notebook is executed by papermill, in place, with the parameters of a preset, and replaces the old one only when it
ran to its end. ``figures/data/manifest.json`` says which files it wrote, by which code. A run of all skips what this
machine has already run as it and the library stand, and whose outputs are unchanged; a notebook that is named runs in
any case.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from laser_lab.base.company import scratch_folder
from laser_lab.base.files import atomic_file, cache_dir, missing_extra, read_json, write_text
from laser_lab.data.hopworld import HopWorldConfig
from laser_lab.lab.provenance import PACKAGE, code_version, imported

try:
    import nbformat
    import papermill
except ImportError as error:
    raise missing_extra("papermill", "lab") from error
from traitlets.config import Config

FOLDER = PACKAGE.parent / "notebooks"
FIGURES = PACKAGE.parent / "figures"
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
    notebook, output = Path(notebook), Path(output)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # transformers' too: they leave broken lines in a notebook
    os.environ["OMP_NUM_THREADS"] = threads_of(notebook)
    with atomic_file(output) as temporary, scratch_folder("k") as sockets:
        nbformat.write(_as_written(notebook), temporary)
        known = papermill.inspect_notebook(temporary) if parameters else {}
        papermill.execute_notebook(
            temporary,
            temporary,
            parameters={name: value for name, value in parameters.items() if name in known},
            cwd=notebook.parent,
            kernel_name="python3",
            progress_bar=False,
            # sockets of this user alone: the ports of TCP are open to everyone on the machine
            config=Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"}),
        )
        executed = nbformat.read(temporary, as_version=4)
        for part in (executed, *executed.cells):
            for name in ("papermill", "execution"):
                part.metadata.pop(name, None)
        for cell in executed.cells:
            if cell.cell_type == "code":  # warnings and progress bars name paths and machines
                cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        nbformat.write(executed, temporary)


def threads_of(notebook: Path) -> str:
    """CPU threads of a notebook's kernel: two for Gemma; one for small models, whose threads only wait for each other
    and whose cells run one process per core anyway (docs/speed.md)."""
    return "2" if "gemma-3-270m" in "".join(cell.source for cell in _as_written(notebook).cells) else "1"


def _as_written(notebook: Path) -> nbformat.NotebookNode:
    """The notebook without what a preset injected into it."""
    content = nbformat.read(notebook, as_version=4)
    content.cells = [cell for cell in content.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    return content


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


def library_version(notebook: str | os.PathLike[str]) -> str:
    """A hash of the source of the library that a notebook's imports reach."""
    return code_version(*sorted(set().union(*(imported(ast.unparse(cell)) for cell in code_of(notebook)))))[:16]


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def written_by(notebook: Path) -> list[Path]:
    """The files under ``figures/`` that are a notebook's: their names start with its number."""
    return sorted(file for file in FIGURES.rglob(f"{notebook.name[:3]}*") if file.is_file())


def _digests(notebook: Path) -> dict[str, str]:
    return {file.relative_to(FIGURES).as_posix(): digest(file) for file in written_by(notebook)}


def _record(notebook: Path, started: float, preset: str) -> None:
    """Note what `notebook` has just written, and remove what an earlier version of it wrote."""
    manifest = read_json(MANIFEST) if MANIFEST.exists() else {}
    for file in written_by(notebook):
        if file.stat().st_mtime < started:
            file.unlink()
    made_by = {"configuration": configuration(notebook), "code": library_version(notebook), "preset": preset}
    manifest[notebook.stem] = made_by | {"files": _digests(notebook)}
    write_text(MANIFEST, json.dumps(dict(sorted(manifest.items())), indent=1) + "\n")


def _stamp(notebook: Path, preset: str) -> Path:
    """Where it is noted that this machine has run `notebook`, by all that its outputs depend on: its code as it
    stands, the values of the preset, the library and its versions, and the records of long runs beside the figures."""
    code = [cell.source for cell in _as_written(notebook).cells if cell.cell_type == "code"]
    read = [file for folder in (PACKAGE, FIGURES / "data") for file in sorted(folder.rglob("*")) if file.is_file()]
    read = [file for file in read if not (file.suffix == ".pyc" or file == MANIFEST or file.name[0].isdigit())]
    versions = {name: version(name) for name in ("torch", "transformers", "peft", "sentence-transformers")}
    text = json.dumps([code, PRESETS[preset], [*map(digest, read)], versions], sort_keys=True)
    return cache_dir() / "notebooks" / f"{notebook.stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names",
        nargs="*",
        help="notebooks to run, by the start of their names; default: all whose figures this machine has not made yet",
    )
    parser.add_argument("--preset", choices=PRESETS, default="default")
    options = parser.parse_args(arguments)
    notebooks = sorted(FOLDER.glob("[0-9]*.ipynb"))
    there = ", ".join(notebook.stem for notebook in notebooks)
    if unknown := [name for name in options.names if not any(n.name.startswith(name) for n in notebooks)]:
        parser.error(f"no notebook starts with {' or '.join(unknown)}; there are {there or 'none'}")
    chosen = [n for n in notebooks if not options.names or n.name.startswith(tuple(options.names))]
    if len(chosen) > 1 and not HopWorldConfig().folder.exists():
        # most of them need the default world's language model: one thread trains it while the first ones run
        command = f"from laser_lab.base.company import end_with_parent as end; end({os.getpid()}); "
        command += "from laser_lab.data.hopworld_lm import pretrained; pretrained()"
        subprocess.Popen([sys.executable, "-c", command], stderr=subprocess.DEVNULL)
    for notebook in chosen:
        start = time.time()
        print(f"{notebook.stem} ...", end=" ", flush=True)
        stamp = _stamp(notebook, options.preset)  # before: what is edited meanwhile is not what ran
        noted = read_json(stamp) if stamp.exists() else {}
        if not options.names and noted == {notebook.name: digest(notebook)} | _digests(notebook):
            print("up to date")
            continue
        run(notebook, notebook, **PRESETS[options.preset])
        _record(notebook, start, options.preset)
        write_text(stamp, json.dumps({notebook.name: digest(notebook)} | _digests(notebook)))
        print(f"{time.time() - start:.0f} s", flush=True)
    print(f"figures are in {FIGURES}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
