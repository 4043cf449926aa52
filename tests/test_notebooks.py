"""Every notebook runs from its parameters, on a tiny model, and is committed whole and clean."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest

import laser_lab as ll
from laser_lab import adapters
from laser_lab.lab import notebooks
from laser_lab.training.run import add_lora

NOTEBOOKS = sorted(notebooks.FOLDER.glob("[0-9]*.ipynb"))
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
TINY_WORLD = dict(entities=12, relations=2, hops=2, dev=4, test=8, layers=1, hidden_size=16, heads=2, pretrain_steps=5)
TINY_GRID = dict(SEEDS=[0], STEPS=2, BATCH=8, WORLD=TINY_WORLD)
TINY = {
    "01_quickstart": dict(QUERIES=4),
    "02_decode_thoughts": dict(QUERIES=4, THINKING_STEPS=3),
    "03_train_laser": dict(STEPS=4, BATCH=8, THINKING_STEPS=2, SHOWN=1, WORLD=TINY_WORLD),
    "04_ablate_k": TINY_GRID | dict(TRAIN_STEPS=[1, 2], HOPS=[2]),
    "05_ablate_losses": TINY_GRID | dict(THINKING_STEPS=2),
    "06_latency_utility": TINY_GRID | dict(TRAIN_STEPS=[1, 2], GIRCSE_STEPS=[2], REPEATS=2),
    "07_rewrite_gain": TINY_GRID | dict(THINKING_STEPS=2),
    "08_scale": TINY_GRID | dict(THINKING_STEPS=2, SIZES=[[1, 16]], VERBOSITY=[1, 2], METHODS=["basic", "laser"]),
    "09_latent_vocabulary": TINY_GRID | dict(THINKING_STEPS=2, METHODS=["laser", "gircse"]),
    "10_latent_geometry": TINY_GRID | dict(THINKING_STEPS=2, SHOWN=6),
    "11_real_language": dict(FULL=True),  # and what the fixture tiny_bank says
    "12_inside_a_thought": TINY_GRID | dict(THINKING_STEPS=2, PROBE_TEXTS=20, QUESTIONS=4, MODEL_STEPS=2),
    "13_explorer": dict(STEPS=2, BATCH=8, THINKING_STEPS=2, EXPORTED=1, TIMED=2, WORLD=TINY_WORLD),
    "14_lame": TINY_GRID
    | dict(
        THINKING_STEPS=2,
        REASON_TOKENS=4,
        SWEEP=[1, 4],
        WORLDS=[TINY_WORLD | {"hops": 1}, TINY_WORLD],
        TOKENS=16,
        REPEATS=2,
    ),
}


def tiny_adapter(base, folder):
    """An adapter without any training on a tiny model, as a folder."""
    model = ll.load(base, device="cpu")
    add_lora(model, {"r": 2})
    model.save_pretrained(str(folder), create_model_card=False)
    return str(folder)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_with_outputs_and_clean(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0].metadata.get("tags") == ["parameters"]
    assert all(cell.execution_count for cell in code), "executed from top to bottom"
    counts = [cell.execution_count for cell in code]
    assert counts == sorted(counts)
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    assert not re.search(r"/(work|root|home|tmp)/", path.read_text()), "no path of the machine it ran on"


def run_tiny(path, folder, tiny_folder, tiny_bank):
    parameters = {"FIGURES": str(folder / "figures")} | TINY[path.stem]
    if "MODEL = " in path.read_text():
        parameters["MODEL"] = tiny_folder
    if path.stem == "11_real_language":
        parameters |= tiny_bank | {"RECORDS": str(folder / "bank")}
        if (adapters.FOLDER / adapters.NAMES[0]).exists():  # then the committed figures show its thoughts
            parameters["ADAPTER"] = tiny_adapter(tiny_folder, folder / "adapter")
    notebooks.run(path, folder / path.name, **parameters)
    return folder / "figures"


@pytest.fixture(scope="module")
def tiny_runs(request, tmp_path_factory, tiny_folder, tiny_bank):
    """The figures folder of every notebook asked for, in the making: two at a time, for a kernel mostly waits for its
    imports. What tiny presets build is not kept, but they share it, as the notebooks share the cells of a real one."""
    asked = [i.callspec.params["path"] for i in request.session.items if i.name.startswith("test_runs_with_a_tiny")]
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setenv("LASER_LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield {p: pool.submit(run_tiny, p, tmp_path_factory.mktemp(p.stem), tiny_folder, tiny_bank) for p in asked}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_with_a_tiny_preset(path, tiny_runs):
    folder = tiny_runs[path].result()
    figures = {file.stem for file in folder.glob("*.png")}
    assert figures and all((folder / "data" / f"{name}.csv").exists() for name in figures)
    committed = {f.stem for f in (notebooks.FOLDER.parent / "figures").glob(f"{path.stem[:2]}_*.png")}
    assert figures == committed, "the committed figures are those the notebook writes"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_figures_are_those_of_the_notebook_as_it_stands(path):
    """Fails when a notebook was edited and not rerun, or a figure or its data was changed by anything else."""
    entry = json.loads(notebooks.MANIFEST.read_text())[path.stem]
    assert entry["configuration"] == notebooks.configuration(path), f"rerun {path.stem}"
    files = {f.relative_to(notebooks.FIGURES).as_posix(): notebooks.digest(f) for f in notebooks.written_by(path)}
    assert files == entry["files"]
    assert entry["preset"] in notebooks.PRESETS


def test_every_numbered_figure_has_its_notebook():
    written = {file for path in NOTEBOOKS for file in notebooks.written_by(path)}
    assert {file for file in notebooks.FIGURES.rglob("[0-9][0-9]_*") if file.is_file()} == written


def test_presets_fill_only_what_a_notebook_has(tmp_path):
    cells = [nbformat.v4.new_code_cell("SEEDS = [0]\nOTHER = 1", metadata={"tags": ["parameters"]})]
    cells.append(nbformat.v4.new_code_cell("print(SEEDS, OTHER)"))
    file = tmp_path / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), file)

    def printed(**parameters):
        notebooks.run(file, file, **parameters)
        return nbformat.read(file, as_version=4).cells[-1].outputs[0]["text"].strip()

    before = notebooks.configuration(file)
    assert printed(SEEDS=[0, 1], HOPS=[2]) == "[0, 1] 1"
    assert notebooks.configuration(file) != before
    assert printed() == "[0] 1", "what another preset injected is gone"
    assert notebooks.configuration(file) == before


def test_a_failing_notebook_leaves_the_old_one(tmp_path):
    from papermill.exceptions import PapermillExecutionError

    bad = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    nbformat.write(bad, tmp_path / "bad.ipynb")
    before = (tmp_path / "bad.ipynb").read_bytes()
    with pytest.raises(PapermillExecutionError):
        notebooks.run(tmp_path / "bad.ipynb", tmp_path / "bad.ipynb")
    assert (tmp_path / "bad.ipynb").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_repeated_run_of_all_runs_what_changed(tmp_path, monkeypatch, capsys):
    figures = tmp_path / "figures"
    for name, value in {"FOLDER": tmp_path, "FIGURES": figures, "MANIFEST": figures / "data" / "manifest.json"}.items():
        monkeypatch.setattr(notebooks, name, value)
    monkeypatch.setenv("LASER_LAB_CACHE", str(tmp_path / "cache"))
    (figures / "data").mkdir(parents=True)
    file = tmp_path / "01_a.ipynb"

    def write(text):
        cell = nbformat.v4.new_code_cell(text, metadata={"tags": ["parameters"]})
        nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=KERNEL), file)

    def ran(*names):
        notebooks.main(list(names))
        return "up to date" not in capsys.readouterr().out

    write("SEEDS = [0]\nopen('figures/data/01_a.csv', 'w').write('1')")
    assert ran() and not ran()
    assert ran("01"), "a named one always runs"
    assert not ran()
    (figures / "data" / "01_a.csv").write_text("2")
    assert ran() and not ran()
    (figures / "data" / "bank.csv").write_text("a record that a notebook may read")
    assert ran() and not ran()
    assert ran("--preset", "full") and ran() and not ran(), "a preset leaves its own values in the notebook"
    write("SEEDS = [0, 1]\nopen('figures/data/01_a.csv', 'w').write('1')")
    assert ran() and not ran()


def test_unknown_names_are_refused(capsys):
    with pytest.raises(SystemExit):
        notebooks.main(["nothing"])
    assert "01_quickstart" in capsys.readouterr().err
