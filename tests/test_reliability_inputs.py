"""Rule 3: hostile texts, files and settings end in one error that names file and place: no crash, no hang."""

import gzip
import json
import os
import shutil
import string
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_training import FAST, load, rows

import laser_lab as ll
from laser_lab.backbone import Backbone
from laser_lab.base.files import check_files, read_json, read_yaml
from laser_lab.base.inputs import MOST_STEPS
from laser_lab.corpus.source import open_source
from laser_lab.data.readers import BadRows, RetrievalTask, features, read_corpus, read_dataset, read_task
from laser_lab.evaluation import rank, score_run
from laser_lab.index.folder import VectorFolder
from laser_lab.lame import use_reason_tokens
from laser_lab.training.resume import COMPLETE
from laser_lab.training.run import add_lora

ANYTHING = st.text(st.characters(), max_size=8)  # halves of surrogate pairs, control characters, NUL
HALVES = st.tuples(ANYTHING, st.characters(categories=["Cs"]), ANYTHING).map("".join)
QUICK = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load(tiny_folder)


def is_text(text):
    try:
        return bool(text.encode().decode())
    except UnicodeEncodeError:
        return False


# -- texts ---------------------------------------------------------------------------------------------------------


@QUICK
@given(HALVES)
def test_half_of_a_surrogate_pair_is_an_error_everywhere(model, text):
    for call in (
        lambda: model.encode(["sea", text]),
        lambda: model.encode_query(text),
        lambda: model.encode(["sea"], prompt=text),
        lambda: model.encode(["sea"], prompts=[text]),
        lambda: ll.think(model, ["sea", text]),
        lambda: ll.think(model, ["sea"], prompt=text),
        lambda: ll.query_prompt(text),
        lambda: RetrievalTask("t", {text: "sea"}, {"d": "sea"}, {}),
        lambda: RetrievalTask("t", {"q": "sea"}, {text: "sea"}, {}),
        lambda: RetrievalTask("t", {"q": "sea"}, {"d": "sea"}, {}, prompts={"q": text}),
        lambda: rank(model, RetrievalTask("t", {"q": text}, {"d": "sea"}, {})),
        lambda: open_source({text: "sea"}, shard_size=2),
        lambda: open_source({"d": text}, shard_size=2),
        lambda: score_run({"q": {text: 1.0}}, RetrievalTask("t", {"q": "sea"}, {"d": "sea"}, {"q": {"d": 1}})),
    ):
        with pytest.raises(ValueError, match="half of a surrogate pair|holds what is no character"):
            call()


@QUICK
@given(st.lists(ANYTHING, min_size=1, max_size=4))
def test_any_other_text_is_an_embedding(model, texts):
    good = [text for text in texts if not text or is_text(text)]
    assert torch.isfinite(torch.as_tensor(model.encode(good))).all()
    assert torch.isfinite(ll.think(model, good, 2).states).all()


@QUICK
@given(st.recursive(st.none() | st.booleans() | st.integers() | ANYTHING, lambda x: st.lists(x) | st.tuples(x, x)))
def test_what_is_no_text_is_a_type_error(model, value):
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return
    if isinstance(value, str):
        return
    with pytest.raises((TypeError, ValueError)):
        model.encode([value])
    with pytest.raises((TypeError, ValueError)):
        ll.think(model, ["sea", value])


def test_a_thought_has_an_end(model, monkeypatch):
    """Nothing stops a model without absolute positions, and memory ends: K does."""
    monkeypatch.setattr(Backbone, "max_positions", None)
    for steps in (MOST_STEPS + 1, 10**9, 2**70):
        for call in (model.encode, lambda texts, thinking_steps: ll.think(model, texts, thinking_steps)):
            with pytest.raises(ValueError, match=f"thinking_steps must be at most {MOST_STEPS}, got {steps}"):
                call(["sea"], thinking_steps=steps)


# -- files of data -------------------------------------------------------------------------------------------------


ROW = {"id": "q", "query": "sea", "positives": ["sky"], "reasoning": ["why"]}
DEEP = "[" * 100_000 + "]" * 100_000
LINES = {
    r"half of a surrogate pair": json.dumps(ROW | {"id": "b\ud800", "text": "x"}).encode(),
    r"half of a surrogate pair ": json.dumps(ROW | {"text": "\udfff", "query": "\udfff"}).encode(),
    r"not UTF-8": '{"id": "b", "text": "Zürich"}'.encode("latin-1"),
    r"nested too deeply": f'{{"id": "b", "text": "x", "deep": {DEEP}}}'.encode(),
    r"not JSON: .*digits": b'{"id": ' + b"9" * 5000 + b', "text": "x"}',
    r"a JSON object is expected, not list": b"[1]",
    r"not JSON: ": b'{"id": "b", "text": ',
    r"not JSON:  ": b"{'id': 'b'}",
}


@pytest.mark.parametrize("reason", LINES)
def test_a_bad_line_is_named(model, tmp_path, reason):
    good = json.dumps(ROW | {"text": "sea"}).encode()
    (tmp_path / "corpus.jsonl").write_bytes(good + b"\n" + LINES[reason] + b"\n")
    for read in (
        lambda: read_corpus(tmp_path),
        lambda: read_dataset(shutil.copy(tmp_path / "corpus.jsonl", tmp_path / "train.jsonl.json")),
        lambda: ll.encode_corpus(model, tmp_path / "corpus.jsonl", tmp_path / "vectors", show_progress_bar=False),
    ):
        with pytest.raises(BadRows, match=f"(corpus.jsonl|train.jsonl.json):2: .*{reason.strip()}"):
            read()
    skipped = read_dataset(tmp_path / "train.jsonl.json", skip_bad=True)
    assert skipped["id"] == ["q"]


BINARY = {
    "compressed by gzip": gzip.compress(json.dumps(ROW).encode()),
    "in UTF-16": json.dumps(ROW).encode("utf-16"),
    "in UTF-16 ": json.dumps(ROW).encode("utf-16-be"),
    "in UTF-16  ": json.dumps(ROW).encode("utf-16-le"),
}


@pytest.mark.parametrize("reason", BINARY)
def test_a_file_that_is_no_text_is_named(model, tmp_path, reason):
    for name in ("corpus.jsonl", "train.jsonl"):
        (tmp_path / name).write_bytes(BINARY[reason])
    for read in (
        lambda: read_corpus(tmp_path),
        lambda: read_dataset(tmp_path / "train.jsonl"),
        lambda: read_task(tmp_path, "train"),
        lambda: ll.encode_corpus(model, tmp_path / "corpus.jsonl", tmp_path / "vectors", show_progress_bar=False),
    ):
        with pytest.raises(ValueError, match=f"(corpus|train).jsonl is {reason.strip()}"):
            read()


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    content = b"\xef\xbb\xbf" + json.dumps(ROW | {"text": "sea"}).encode() + b"\r\n\r\n"
    (tmp_path / "corpus.jsonl").write_bytes(content)
    assert read_corpus(tmp_path) == {"q": "sea"}


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.text(string.printable, max_size=60).map(str.encode))
def test_any_bytes_are_rows_or_an_error_that_names_the_file(tmp_path, content):
    (tmp_path / "corpus.jsonl").write_bytes(content)
    try:
        read_corpus(tmp_path)
    except ValueError as error:
        assert "corpus.jsonl" in str(error)
    for name, reader in (("a.json", read_json), ("a.yaml", read_yaml)):
        (tmp_path / name).write_bytes(content)
        try:
            reader(tmp_path / name)
        except ValueError as error:
            assert name in str(error)


# -- files of models -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tiny_folder, tmp_path_factory):
    """A folder of every kind of file: an adapter with reason tokens, beside its base; and a plain model."""
    home = tmp_path_factory.mktemp("saved")
    load(tiny_folder).save_pretrained(str(home / "plain"))
    reasoner = load(tiny_folder)
    use_reason_tokens(reasoner, 2)
    add_lora(reasoner, {"r": 2})
    reasoner.save_pretrained(str(home / "adapter"))
    return home


def cases(folder, *names):
    return [(folder, name, harm) for name in names for harm in ("half", "empty", "garbage")]


HARM = {"half": lambda old: old[: len(old) // 2], "empty": lambda old: b"", "garbage": lambda old: b"\x93NUMPY" * 30}


@pytest.mark.parametrize(
    "folder, name, harm",
    cases("plain", "model.safetensors", "config.json", "laser_lab.json", "tokenizer.json", "tokenizer_config.json")
    + cases("plain", "config_sentence_transformers.json")
    + cases("adapter", "adapter_model.safetensors", "adapter_config.json", "laser_lab.json")
    + cases("adapter", "reason_tokens.safetensors"),
)
def test_a_corrupt_file_of_a_model_is_named(saved, tmp_path, folder, name, harm):
    shutil.copytree(saved / folder, tmp_path / folder)
    file = tmp_path / folder / name
    file.write_bytes(HARM[harm](file.read_bytes()))
    with pytest.raises((ValueError, OSError), match=name):
        ll.load(tmp_path / folder, device="cpu")


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", COMPLETE])
def test_a_corrupt_file_of_a_checkpoint_is_named(tiny_folder, run_folder, data, tmp_path, name):
    shutil.copytree(run_folder, tmp_path / "run")
    file = tmp_path / "run" / "checkpoint-4" / name
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"checkpoint-4/{name}.*Remove .*checkpoint-4 to go on from the checkpoint"):
        ll.train(load(tiny_folder), data, "basic", output_dir=tmp_path / "run", resume=True, **FAST)
    file.write_bytes(content)
    check_files(file.parent, (".json", ".safetensors", ".pt", ".pth"))


@pytest.fixture(scope="module")
def data():
    return Dataset.from_list(rows(), features=features())


@pytest.fixture(scope="module")
def run_folder(tiny_folder, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    ll.train(load(tiny_folder), data, "basic", output_dir=folder, **FAST)
    return folder


@pytest.mark.parametrize("name", ["index.json", "source.json", "vectors/00000000.parquet"])
def test_half_a_file_of_a_corpus_is_named(model, tmp_path, name):
    words = "why is the sky blue".split()
    (tmp_path / "c.jsonl").write_text(
        "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(words))
    )

    def encode():
        return ll.encode_corpus(model, tmp_path / "c.jsonl", tmp_path / "v", shard_size=2, show_progress_bar=False)

    assert encode()["documents"] == 5
    index, file = tmp_path / "v" / "index.json", tmp_path / "v" / name
    if name == "source.json":  # read again where something is left to do
        index.write_text(index.read_text().replace('"complete": true', '"complete": false'))
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=file.name):
        encode() if file.suffix == ".json" else ll.open_corpus(tmp_path / "v", model).search(["sea"])
    assert VectorFolder(tmp_path / "v").has(1)


def test_half_a_manifest_of_figures_is_named(tmp_path, monkeypatch):
    from laser_lab.lab import notebooks

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").write_text('{"01_a": {"con')
    with pytest.raises(ValueError, match="manifest.json is no JSON file, or half of one"):
        notebooks._record(Path("01_a.ipynb"), 0.0, "default", tmp_path)
    assert os.listdir(tmp_path / "data") == ["manifest.json"], "nothing was removed or written"
