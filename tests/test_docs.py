"""README and docs: short enough, no dead link, every command runs or says what it needs, numbers are the tables'.

`docs/scale.md` has a test of its own (`test_scale.py`) that runs its commands.
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

import pandas as pd
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
    assert arguments[:2] == ["install", "-e"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"\w+", arguments[2])) <= extras.keys()


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
    put = {"gemma-3-270m": tiny_folder, "laser-entailment-bank": "adapter", "HopWorld()": "HopWorld(TINY)"}
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


# -- numbers -------------------------------------------------------------------------------------------------------


def table(name):
    return pd.read_csv(ROOT / "figures" / "data" / f"{name}.csv")


def entailment_bank():
    """What notebook 11 draws of EntailmentBank, by the name of the row."""
    drawn = table("11_quality").query("data == 'EntailmentBank'")
    return drawn.set_index(drawn["label"].str.removesuffix(" (bound)"))


def says(page, *sentences):
    """Whether a page says these, wherever its lines break."""
    text = " ".join(PAGES[page].split())
    missing = [sentence for sentence in sentences if sentence not in text]
    assert not missing, f"{page} should say, by figures/data:\n" + "\n".join(missing)


def shown(values):
    """Trainings as a page gives them: 0.998 (4 seeds), or with their range where they differ."""
    seeds = f"{len(values)} seed" + "s" * (len(values) > 1)
    return f"{values.mean():.3f} ({seeds})"


def test_numbers_of_the_readme():
    recipes = table("recipes")
    easy = recipes[recipes["group"].str.startswith("easy")].query("thinking_steps in (1, 3)")
    easy = {method: values for method, values in easy.groupby("method")["ndcg@10"]}
    wordy = table("16_wordy").groupby("method")["ndcg@10"].agg(["mean", "count"])
    ours, others = wordy.loc["lexical"], wordy.drop("lexical")
    real = entailment_bank()
    score = real["ndcg@10"]
    laser = easy["laser"]
    says(
        "README.md",
        f"has nDCG@10 {shown(easy['basic'])} there, `gircse` with three thoughts {shown(easy['gircse'])} and "
        f"`lexical`, ours, {shown(easy['lexical'])}",
        f"`laser` ends between {laser.min():.2f} and {laser.max():.2f} ({len(laser)} seeds)",
        f"fall to between {others['mean'].min():.2f} and {others['mean'].max():.2f} (at most {others['count'].max()} "
        "seeds each)",
        f"when to end: {ours['mean']:.3f} ({ours['count']:.0f} seeds)",
        f"`lexical` has {score['lexical']:.3f}, the same words in one pass {score['lexical K=1']:.3f}, `basic` "
        f"{score['basic']:.3f} (Gemma 3 270M, 40 steps, {shown_seeds(real)})",
    )


def shown_seeds(real):
    seeds = int(real.loc["lexical", "seeds"])
    return "one seed" if seeds == 1 else f"{seeds} seeds"


def test_numbers_of_entailment_bank():
    real = entailment_bank()
    for system, value in real["ndcg@10"].items():
        bound = " (reads the human reasoning: a bound)" if system in ("bm25-reasoning", "explicit") else ""
        says("docs/entailment_bank.md", f"| `{system}`{bound} | {value:.3f} |")
    says(
        "docs/entailment_bank.md",
        f"{real.loc['lexical', 'queries']} dev questions among the facts that any of them names, {shown_seeds(real)}",
    )


def test_numbers_of_the_method():
    """Those of `figures/data/recipes.csv`."""
    recipes = table("recipes")
    easy = recipes[recipes["group"].str.startswith("easy")]
    lexical = easy[easy["method"] == "lexical"]
    wordy = recipes[recipes["group"].str.startswith("wordy") & (recipes["method"] == "lexical")]
    released = easy[easy["method"] == "laser-released"]["ndcg@10"]
    laser = easy[(easy["method"] == "laser") & (easy["thinking_steps"] == 3)]["ndcg@10"]
    halting = easy[easy["method"] == "laser-halting"]["ndcg@10"]
    says(
        "docs/method.md",
        f"({lexical['ndcg@10'].mean():.3f} at one token per hop, K = 3, 5 and 8, {len(lexical)} trainings; "
        f"{wordy['ndcg@10'].mean():.3f} at five tokens per hop, K=3, {len(wordy)} seeds)",
        f"none of {len(halting)} has failed ({halting.min():.3f} and above",
        f"`laser-released` ends at {released.mean():.3f} [{released.min():.3f} to {released.max():.3f}] "
        f"({len(released)} seeds), `laser` at {laser.mean():.3f} [{laser.min():.3f} to {laser.max():.3f}] "
        f"({len(laser)} seeds)",
    )
    assert (released < 0.9).all() and (halting > 0.9).all()
