"""README and docs: short enough, no dead link, every command runs or says what it needs.

`test_docs_numbers.py` holds their numbers against the tables; `test_scale.py` runs the commands of `docs/scale.md`.
"""

import argparse
import json
import random
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from contextlib import nullcontext as nothing
from pathlib import Path

import pytest
import yaml
from conftest import WORDS
from test_vision import COMBINATIONS, draw, drawings
from test_vision import folder as llava  # noqa: F401  a fixture: a tiny vision-language model

import laser_lab as ll
from laser_lab.data.hopworld import HopWorld, HopWorldConfig
from laser_lab.data.hopworld_lm import pretrained
from laser_lab.lab import cli
from laser_lab.training import run as training
from laser_lab.training.run import add_lora, check_arguments

ROOT = Path(__file__).parents[1]
PAGES = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
         for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}  # fmt: skip
WORDS_OF_README = 700
TINY_WORLD = dict(entities=12, relations=2, hops=2, dev=4, test=8, layers=1, hidden_size=16, heads=2, pretrain_steps=5)
AWAITED = ["figures/full/"]
"""What the pages name and a command makes; git ignores it."""
NEEDS = re.compile(r"^# needs ", re.M)
"""A block of commands that begins so is not run here, but its arguments are read."""


def blocks(page, *kinds):
    """The fenced blocks of a page that are of these kinds."""
    return [text for kind, text in re.findall(r"^```(\w*)\n(.*?)^```", PAGES[page], re.M | re.S) if kind in kinds]


def prose(page):
    return re.sub(r"^```.*?^```", "", PAGES[page], flags=re.M | re.S)


def commands(page):
    """Every line of the page's shell blocks, and the commands within its sentences."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    inline = re.findall(r"`((?:python -m laser_lab|laser-lab|make|pytest|accelerate) [^`]*)`", prose(page))
    found = [line.split(" #")[0].strip() for line in lines + inline]
    return [" ".join(line.split()) for line in found if line and not line.startswith("#") and "COMMAND" not in line]


# -- the pages -----------------------------------------------------------------------------------------------------


def test_the_readme_is_one_screen():
    assert len(PAGES["README.md"].split()) <= WORDS_OF_README


def test_the_readme_names_every_notebook():
    rows = re.findall(r"^\| \[(\w+)\]\(notebooks/(\w+)\.ipynb\) \| (.+\?) \|$", PAGES["README.md"], re.M)
    there = {file.stem for file in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    named = [name for name, file, _ in rows if name == file]
    assert there <= set(named) and named == sorted(named) and len(named) == len(rows)


def test_the_readme_links_every_page():
    linked = set(re.findall(r"\]\((docs/\w+\.md)\)", PAGES["README.md"]))
    assert PAGES.keys() - {"README.md"} <= linked


def anchors(text):
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    here = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not target.startswith("http"):
            file, _, anchor = target.partition("#")
            text = PAGES[page] if not file else ""
            there = (here / file).resolve()
            if there.relative_to(ROOT).as_posix() in AWAITED:
                continue
            assert there.exists(), f"{page}: {target} is not there"
            if anchor:
                assert anchor in anchors(text or (here / file).read_text("utf-8")), f"{page}: no heading #{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_are_there(page):
    for name in re.findall(r"`((?:docs|figures|notebooks|tests|configs|laser_lab)/[\w./*]+)`", prose(page)):
        if any(awaited.startswith(name) for awaited in AWAITED):
            continue
        assert list(ROOT.glob(name.rstrip("/"))) or list(ROOT.glob(f"{name}*.ipynb")), f"{page}: {name} is not there"


# -- commands ------------------------------------------------------------------------------------------------------


class Parsed(Exception):
    """The arguments of a command were read, and are good."""


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one(page, tmp_path, monkeypatch):
    """Its program is there, and takes the arguments."""
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").touch()
    for line in commands(page):
        program, *arguments = [part for part in shlex.split(line) if not re.match("[A-Z_]+=", part)]
        check = {"python": module_takes, "laser-lab": cli_takes, "make": make_takes, "pip": pip_takes}
        check |= {"pytest": pytest_takes, "conda": conda_takes, "accelerate": accelerate_takes, "ray": ray_takes}
        assert program in check, f"{page}: no test for {line!r}"
        try:
            check[program](arguments)
        except SystemExit as error:
            pytest.fail(f"{page}: {line!r} is wrong usage ({error})")


def module_takes(arguments):
    option, module, *rest = arguments
    assert option == "-m"
    parse = argparse.ArgumentParser.parse_args
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *rest])

        def only_parse(self, given=None, namespace=None):
            parse(self, given, namespace)
            raise Parsed

        patch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
        with pytest.raises(Parsed), pytest.warns(RuntimeWarning) if module in sys.modules else nothing():
            runpy.run_module(module, run_name="__main__")


def cli_takes(arguments):
    cli._parser().parse_args(arguments)


def make_takes(arguments):
    subprocess.run(["make", "--dry-run", "-C", ROOT, *arguments], check=True, capture_output=True)


def pip_takes(arguments):
    *options, what = arguments
    assert options == ["install", "-c", "constraints.txt", "-e"] and (ROOT / "constraints.txt").exists()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"\w+", what)) <= extras.keys()


def pytest_takes(arguments):
    assert all((ROOT / name).exists() for name in arguments if name.endswith(".py"))


def conda_takes(arguments):
    assert arguments[:3] == ["env", "create", "-f"] and yaml.safe_load((ROOT / arguments[3]).read_text())["name"]


def accelerate_takes(arguments):
    *launch, config = arguments
    assert launch == ["launch", "-m", "laser_lab.training"] and (ROOT / "laser_lab/training/__main__.py").exists()
    assert training.main([config]) == 2, "an empty file is no configuration"


def ray_takes(arguments):
    assert arguments[0] == "start" and arguments[1].split("=")[0] in ("--head", "--address")


@pytest.fixture
def small(tmp_path, monkeypatch, tiny_folder, tmp_path_factory):
    """A folder to stand in, with a corpus; gives what a page's code becomes when it is to run in a second."""
    monkeypatch.chdir(tmp_path)
    model = ll.load(tiny_folder, device="cpu")
    add_lora(model, {"r": 2})
    model.save_pretrained("adapter", create_model_card=False)
    documents = [{"id": f"d{i}", "text": " ".join(WORDS[i % 7 : i % 7 + 5])} for i in range(20)]
    Path("corpus.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    world = HopWorldConfig(**TINY_WORLD)
    built = str(pretrained(world))
    put = {"gemma-3-270m": tiny_folder, "lexical-entailment-bank": "adapter", "HopWorld()": "HopWorld(TINY)"}
    put |= {'ll.load("hopworld")': f"ll.load({built!r})", "laser-lab think hopworld": f"laser-lab think {built}"}

    def become(text):
        for old, new in put.items():
            text = text.replace(old, new)
        text = text.replace("laser-lab explore ", "laser-lab explore --device cpu ")
        return re.sub(r"(max_steps\W{1,2})\d+", r"\g<1>2", text)  # in Python and in YAML

    become.world = world
    return become


def rows_of(page):
    """The rows of JSON that a page shows, as the folder that it names."""
    corpus, train = (json.loads(block) for block in blocks(page, "json"))
    Path("FOLDER").mkdir()
    other = {"id": train["negative_ids"][0], "text": "rain and snow"}
    Path("FOLDER/corpus.jsonl").write_text(f"{json.dumps(corpus)}\n{json.dumps(other)}\n")
    for split in ("train", "dev"):
        Path(f"FOLDER/{split}.jsonl").write_text(json.dumps(train) + "\n")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python") and page != "docs/scale.md"])
def test_python_runs(page, small, request):
    """The blocks of a page, one after the other, on tiny models."""
    names = {"TINY": small.world, "HopWorld": HopWorld}
    if blocks(page, "json"):
        rows_of(page)
    code = "\n".join(blocks(page, "python"))
    if "drawings" in code:
        code = code.replace("owner/a-vision-language-model", request.getfixturevalue("llava"))
        names |= {"drawings": drawings(8), "image": draw(COMBINATIONS[0], random.Random(0))}
    exec(compile(small(code), page, "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if "laser-lab " in PAGES[page] and page != "docs/scale.md"])
def test_the_command_line_runs(page, small, capsys):
    """The commands of a page, one after the other; `figures`, which runs the notebooks, is tested by itself."""
    pytest.importorskip("faiss").omp_set_num_threads(1)
    if blocks(page, "yaml"):
        rows_of(page)
        (config,) = blocks(page, "yaml")
    else:
        rows_of("docs/training.md")
        (config,) = blocks("docs/training.md", "yaml")
    Path("config.yaml").write_text(small(config) + "use_cpu: true\n")
    for line in commands(page):
        program, *arguments = shlex.split(small(line))
        if program == "laser-lab" and arguments[0] != "figures":
            assert cli.main(arguments) == 0, capsys.readouterr().err


def test_configurations_are_read():
    for page in PAGES:
        for block in blocks(page, "yaml"):
            check_arguments(yaml.safe_load(block), page)


def test_every_block_is_of_a_kind_that_is_tested():
    for page, text in PAGES.items():
        kinds = set(re.findall(r"^```(\w*)\n.*?^```", text, re.M | re.S))
        assert kinds <= {"python", "bash", "yaml", "json"}, page
        for block in blocks(page, "bash"):
            assert block.count("# needs") <= 1 and (not NEEDS.search(block) or block.startswith("# needs ")), page
