"""The command line: every command on a tiny model, and what it says where something is missing."""

import importlib
import json
import shlex
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from conftest import WORDS

import laser_lab as ll
from laser_lab.lab import cli
from laser_lab.training.run import check_arguments

DOCUMENTS = {f"d{i}": " ".join(WORDS[i : i + 5]) for i in range(12)}
COMMANDS = ("think", "explore", "train", "encode", "search", "figures")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to stand in, with a corpus and a training set."""
    monkeypatch.chdir(tmp_path)
    write("corpus.jsonl", [{"id": name, "text": text} for name, text in DOCUMENTS.items()])
    rows = [{"query": text, "reasoning": [text], "positives": [text]} for text in DOCUMENTS.values()]
    write("train.jsonl", rows)
    return tmp_path


def write(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def failure(capsys, *arguments, code=1):
    """The one line that a command that fails prints."""
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == code
    shown = capsys.readouterr()
    line = shown.err.strip().splitlines()[-1]
    assert line.startswith(f"laser-lab {arguments[0]}: ") and "Traceback" not in shown.err + shown.out
    return line


def usage(capsys, *arguments):
    """What wrong usage prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    return capsys.readouterr().err


# -- every command -------------------------------------------------------------------------------------------------


def test_think_prints_the_nearest_tokens_of_every_step(tiny_folder, capsys):
    assert cli.main(["think", tiny_folder, "why is the sky blue", "green sea", "--steps", "3", "--top", "2"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 8 and shown[0] == "why is the sky blue" and shown[4] == "green sea"
    model = ll.load(tiny_folder)
    thoughts = ll.think(model, ["why is the sky blue", "green sea"], 3, prompt_name="query")
    tokens = ll.nearest_tokens(model, thoughts, top=2)
    for line, (_, found) in zip([*shown[1:4], *shown[5:]], tokens.groupby(["text", "step"])):
        words = "  ".join(f"{row.token} {row.probability:.2f}" for row in found.itertuples())
        assert line == f"  step {found['step'].iloc[0]}:  {words}"


def test_think_shows_the_weights_of_a_thought_that_ends(tiny_folder, tmp_path, capsys):
    model = ll.load(tiny_folder, thinking_steps=4, halting=True)
    model.save_pretrained(str(tmp_path / "halting"), create_model_card=False)
    assert cli.main(["think", str(tmp_path / "halting"), "why is the sky blue"]) == 0
    shown = capsys.readouterr().out.splitlines()[1:]
    thoughts = ll.think(model, ["why is the sky blue"], prompt_name="query")
    assert len(shown) == int(thoughts.steps_taken[0]) > 1
    assert f"(weight {float(thoughts.weights[0, 1]):.2f})" in shown[1] and "weight" not in shown[0]


@pytest.mark.parametrize("corpus", ["corpus.jsonl", "."])
def test_explore_writes_one_file(here, tiny_folder, capsys, corpus):
    if corpus == ".":  # with questions of its own
        write("dev.jsonl", [{"id": "q", "query": "blue sea", "reasoning": ["sea"], "positive_ids": ["d2"]}])
    question = ["--question", "why is the sky blue"] if corpus != "." else []
    assert cli.main(["explore", tiny_folder, corpus, "--html", "out/thoughts.html", *question]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "out/thoughts.html"
    page = Path("out/thoughts.html").read_text(encoding="utf-8")
    assert ("why is the sky blue" if question else "blue sea") in page and DOCUMENTS["d3"] in page


def test_train_writes_a_model_that_think_reads(here, tiny_folder, capsys):
    config = dict(model=tiny_folder, dataset="train.jsonl", method="latent", output_dir="run", max_steps=1)
    Path("config.yaml").write_text(json.dumps(config | {"per_device_train_batch_size": 4, "use_cpu": True}))
    assert cli.main(["train", "config.yaml"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["output"] == "run/final"
    assert cli.main(["think", "run/final", "blue sea"]) == 0
    assert "holds a run: pass resume=True" in failure(capsys, "train", "config.yaml")


def test_encode_and_search(here, tiny_folder, capsys):
    faiss = pytest.importorskip("faiss")
    faiss.omp_set_num_threads(1)
    encode = ["encode", tiny_folder, "corpus.jsonl", "vectors", "--device", "cpu", "--steps", "2", "--shard-size", "5"]
    assert cli.main(encode) == 0
    assert "12 documents in vectors, 0 bad rows skipped, 2.00 thinking steps" in capsys.readouterr().out
    assert "shard_size is 5 there and 6 here" in failure(capsys, *encode[:-1], 6)
    assert cli.main(["search", "vectors", "blue sea", "rain and snow", "--steps", "3", "--top", "2"]) == 0
    shown = capsys.readouterr().out.splitlines()
    found = ll.open_corpus("vectors").search(["blue sea", "rain and snow"], 2, thinking_steps=3)
    lines = [f"{row.rank:4d}  {row.score:.4f}  {row.doc_id}" for row in found.itertuples()]
    assert shown == ["blue sea", *lines[:2], "rain and snow", *lines[2:]]


def test_a_bfloat16_model_encodes_and_is_opened_as_such(here, tiny_folder, capsys):
    pytest.importorskip("faiss")
    encode = ["encode", tiny_folder, "corpus.jsonl", "half", "--device", "cpu", "--steps", "2"]
    assert cli.main([*encode, "--model-dtype", "bfloat16"]) == 0
    corpus = ll.open_corpus("half")
    assert {p.dtype for p in corpus.model.parameters()} == {torch.bfloat16}
    assert len(corpus.search(["blue sea"], 2)) == 2
    assert "model_dtype" in failure(capsys, *encode)


def test_figures_runs_the_notebooks(monkeypatch, capsys):
    from laser_lab.lab import notebooks

    ran = []
    monkeypatch.setattr(notebooks, "run", lambda notebook, output, **parameters: ran.append(notebook.stem))
    monkeypatch.setattr(notebooks, "_record", lambda *given: None)
    monkeypatch.setattr(notebooks, "write_text", lambda *given: None)
    assert cli.main(["figures", "03"]) == 0
    assert ran == ["03_train_laser"]
    assert "no notebook starts with 97" in usage(capsys, "figures", "97")


# -- what is missing or wrong --------------------------------------------------------------------------------------


def test_a_model_that_is_not_there(here, capsys):
    for arguments in (["think", "./nowhere", "why"], ["encode", "./nowhere", "corpus.jsonl", "vectors"]):
        assert "'./nowhere' is no folder or GGUF file here, no hub id" in failure(capsys, *arguments)
    assert "is no folder" in failure(capsys, "explore", "nowhere", "corpus.jsonl", "--question", "why", "--html", "f")
    assert not Path("vectors").exists() and not Path("f").exists()


def test_a_folder_that_holds_no_model(here, capsys):
    assert "laser-lab think: " in failure(capsys, "think", ".", "why")


def test_a_corpus_that_is_not_there(here, tiny_folder, capsys):
    arguments = ["explore", tiny_folder, "nowhere.jsonl", "--question", "why", "--html", "f"]
    assert "nowhere.jsonl" in failure(capsys, *arguments)
    assert "nowhere.jsonl" in failure(capsys, "encode", tiny_folder, "nowhere.jsonl", "vectors")
    assert "no index.json: no corpus was encoded into it" in failure(capsys, "search", "nowhere", "why")


def test_a_corpus_with_a_bad_line_names_it(here, tiny_folder, capsys):
    with open("corpus.jsonl", "a") as file:
        file.write('{"id": "d1", "text": "again"}\n{"id": "e"}\n')
    assert cli.main(["explore", tiny_folder, "corpus.jsonl", "--question", "why", "--html", "f"]) == 1
    shown = capsys.readouterr().err
    assert "corpus.jsonl:13: id 'd1' is there already" in shown and "corpus.jsonl:14: text is missing" in shown


def test_a_corpus_without_questions(here, tiny_folder, capsys):
    assert "give --question" in failure(capsys, "explore", tiny_folder, "corpus.jsonl", "--html", "f")


def test_wrong_usage(here, tiny_folder, capsys):
    assert "COMMAND" in usage(capsys)
    assert "invalid choice: 'dream'" in usage(capsys, "dream")
    assert "QUESTION" in usage(capsys, "think", tiny_folder)
    assert "--html" in usage(capsys, "explore", tiny_folder, "corpus.jsonl")
    assert "a positive whole number, not '0'" in usage(capsys, "think", tiny_folder, "why", "--steps", "0")
    assert "there is no file 'nowhere.yaml'" in usage(capsys, "train", "nowhere.yaml")
    Path("config.yaml").write_text("modle: hopworld\n")
    assert cli.main(["train", "config.yaml"]) == 2
    assert "modle" in capsys.readouterr().err


def test_debug_shows_where_it_failed():
    with pytest.raises(FileNotFoundError):
        cli.main(["think", "./nowhere", "why", "--debug"])


def test_ctrl_c_is_no_traceback(tiny_folder, monkeypatch, capsys):
    def interrupted(**given):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load", interrupted)
    assert "interrupted" in failure(capsys, "think", tiny_folder, "why", code=130)


# -- help ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_examples_that_parse(command, here, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([*filter(None, [command]), "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and "Exit codes: 0 done, 1 failed" in shown
    examples = [line.split("#")[0] for line in shown.splitlines() if line.startswith("  laser-lab ")]
    assert examples and all(name in shown for name in COMMANDS if not command)
    Path("config.yaml").touch()
    for program, *arguments in map(shlex.split, examples):
        assert program == "laser-lab"
        if arguments != ["COMMAND", "--help"]:
            cli._parser().parse_args(arguments)


def test_the_configuration_in_the_help_is_one():
    text = cli.EXAMPLES["train"].partition("for example\n")[2].partition("Methods:")[0]
    config = yaml.safe_load(text)
    check_arguments(config, "the help")
    assert config["method"] in ll.METHODS and {"model", "dataset", "output_dir"} <= config.keys()


def test_the_script_is_installed_by_this_name():
    scripts = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["scripts"]
    module, function = scripts["laser-lab"].split(":")
    assert getattr(importlib.import_module(module), function) is cli.main
