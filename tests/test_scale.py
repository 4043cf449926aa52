"""docs/scale.md: every command in it runs, and its numbers are those of the tables."""

import json
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
from conftest import WORDS
from test_corpus_sturdy import in_child

from laser_lab.index.folder import VectorFolder
from laser_lab.lab import cli, scale

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", TEXT, flags=re.S)
COMMANDS = [
    line for kind, block in BLOCKS if kind == "bash" and "a cluster" not in block for line in block.splitlines()
]
SMALL = "--tokens 8 16 --repeats 1 --documents 2000 3000 --approximate-up-to 2500 --out ."
"""What makes a measurement a matter of seconds."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to stand in, with a corpus of 40 documents."""
    monkeypatch.chdir(tmp_path)
    documents = [{"id": f"d{i}", "text": " ".join(WORDS[i % 7 : i % 7 + 5])} for i in range(40)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    return tmp_path


def run(command, model):
    """The exit status of a command of the page, with a small model."""
    program, *arguments = shlex.split(command.replace("gemma-3-270m", model))
    if program == "laser-lab":
        return cli.main([*arguments, "--device", "cpu"])
    assert [program, *arguments[:2]] == ["python", "-m", "laser_lab.lab.scale"]
    arguments = arguments[2:]
    return scale.main([*arguments, *shlex.split(SMALL), "--model", model])


@pytest.mark.parametrize("command", [command for command in COMMANDS if "--engine ray" not in command])
def test_commands(here, tiny_folder, command):
    pytest.importorskip("faiss").omp_set_num_threads(1)
    assert run(command, tiny_folder) == 0
    for table in here.glob("scale_*.csv"):
        assert (pd.read_csv(table).select_dtypes("number") >= 0).all(axis=None)


@pytest.mark.slow
def test_commands_of_ray(here, tiny_folder):
    (command,) = [command for command in COMMANDS if "--engine ray" in command]
    assert in_child(lambda: run(command, tiny_folder)) == 0
    assert VectorFolder(here / "vectors-by-ray").index["documents"] == 40


@pytest.mark.slow
def test_workers_are_counted(here, tiny_folder):
    assert in_child(lambda: run("python -m laser_lab.lab.scale --parts workers", tiny_folder)) == 0
    table = pd.read_csv("scale_workers.csv")
    assert table["workers"].tolist() == [1, 2] and (table[["whole", "steady"]] > 0).all(axis=None)


def test_python(here, tiny_folder):
    (block,) = [block for kind, block in BLOCKS if kind == "python"]
    found: dict = {}
    exec(block.replace("gemma-3-270m", tiny_folder), found)
    assert len(found["corpus"]) == 40 and found["corpus"].search(["why is the sky blue"]).shape == (40, 4)


def rows(start):
    """The cells of the page's table whose head begins so."""
    table = TEXT.partition(f"| {start} |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()[2:]]


def test_numbers_are_those_of_the_tables():
    plan = pd.read_csv(ROOT / "figures" / "data" / "scale_plan.csv").set_index(["device", "tokens"])
    for tokens, single, half, hours, hours_half, dollars in rows("tokens | float32"):
        core, fast = (plan.loc[(f"core, {dtype}", int(tokens))] for dtype in ("float32", "bfloat16"))
        expected = [core["documents_per_second"], fast["documents_per_second"], core["hours_1e+06"]]
        expected += [fast["hours_1e+06"], fast["dollars_1e+06"]]
        assert [single, half, hours, hours_half, dollars] == [f"{value:.3g}" for value in expected]
    for tokens, gpu, rate, *hours, dollars in rows("tokens | GPU"):
        row = plan.loc[(gpu, int(tokens))]
        found = [row["documents_per_second"], *(row[f"hours_{count}"] for count in ("1e+06", "1e+07", "1e+09"))]
        shown = [float(cell.replace(",", "")) for cell in (rate, *hours, dollars)]
        assert shown == [float(f"{value:.2g}") for value in (*found, row["dollars_1e+09"])]
    searched = pd.read_csv(ROOT / "figures" / "data" / "scale_searching.csv").set_index(["index", "documents"])
    for kind, count, milliseconds, size, build, recall in rows("index"):
        row = searched.loc[(kind, int(count.replace(",", "")))]
        assert float(milliseconds) == float(f"{1000 * row['median']:.2g}") and int(size) == row["bytes_per_document"]
        assert float(build) == float(f"{row['build']:.2g}") and float(recall) == round(row["recall"], 3)
