"""Rule 1: nobody's data is destroyed. What was whole stays whole, and what this library did not write stays."""

import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import killed_in
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import FAST, load, rows

import laser_lab as ll
from laser_lab.base.files import atomic_folder, cached_build, write_text
from laser_lab.data.readers import features
from laser_lab.encoder import LatentEncoder
from laser_lab.lab import export
from laser_lab.training.resume import COMPLETE


@pytest.fixture(scope="module")
def data():
    return Dataset.from_list(rows(), features=features())


def content(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


# -- save_pretrained -----------------------------------------------------------------------------------------------


def test_a_failed_save_leaves_the_old_model(tiny_folder, tmp_path, monkeypatch):
    model = load(tiny_folder)
    model.save_pretrained(str(tmp_path / "model"))
    before = content(tmp_path)

    def full(self, path):
        (Path(path) / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LatentEncoder, "save_config", full)
    with pytest.raises(OSError, match="No space"):
        model.save_pretrained(str(tmp_path / "model"))
    assert content(tmp_path) == before


def test_a_save_replaces_the_weights_and_keeps_what_is_not_its_own(tiny_folder, tmp_path):
    model = load(tiny_folder)
    model.save_pretrained(str(tmp_path / "model"))
    (tmp_path / "model" / "notes.txt").write_text("mine")
    (tmp_path / "model" / "deep").mkdir()
    (tmp_path / "model" / "deep" / "notes.txt").write_text("mine too")
    from laser_lab.training.run import add_lora

    add_lora(model, {"r": 2})
    model.save_pretrained(str(tmp_path / "model"))
    there = content(tmp_path / "model")
    assert there["notes.txt"] == b"mine" and there["deep/notes.txt"] == b"mine too"
    assert "adapter_model.safetensors" in there and "model.safetensors" not in there, "two models in one folder"
    merged = ll.load(tmp_path / "model", device="cpu")
    merged.encoder.backbone.merge_adapter()
    merged.save_pretrained(str(tmp_path / "model"))
    there = content(tmp_path / "model")
    assert "model.safetensors" in there and not [name for name in there if name.startswith("adapter")]
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "nothing is left beside it"


def test_a_save_into_the_folder_one_stands_in_and_through_a_link(tiny_folder, tmp_path, monkeypatch):
    model = load(tiny_folder)
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "mine").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    model.save_pretrained(str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "model.safetensors").exists()
    monkeypatch.chdir(tmp_path / "real")
    inode = (tmp_path / "real").stat().st_ino
    model.save_pretrained(".")
    assert (tmp_path / "real").stat().st_ino == inode and Path("mine").read_text() == "x"
    assert not [name for name in os.listdir(".") if name.startswith(".")]
    ll.load(tmp_path / "real", device="cpu")


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_exchanged_or_renamed(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(sys, "platform", "darwin")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("old")
    with atomic_folder(tmp_path / "a", replaces=lambda name: name == "old") as temporary:
        (temporary / "new").write_text("new")
    assert content(tmp_path) == {"a/new": b"new"}
    with pytest.raises(OSError), atomic_folder(tmp_path / "a") as temporary:
        (temporary / "newer").write_text("newer")
    assert content(tmp_path) == {"a/new": b"new"}


NAMES = st.sampled_from(["a", "b", "c/d", "c/e", ".hidden", "model.safetensors"])
TREES = st.dictionaries(NAMES, st.binary(max_size=4))


@settings(deadline=None, max_examples=40)
@given(TREES, TREES, st.booleans(), st.sets(st.sampled_from(["a", "b", "c", "model.safetensors"])))
def test_a_folder_is_the_old_one_or_the_new_one(old, new, fails, replaced):
    """Whatever lies in both: a failure changes nothing, and a success keeps all that it does not stand for."""
    with tempfile.TemporaryDirectory() as home:
        target = Path(home, "target")
        fill(target, old)
        try:
            with atomic_folder(target, replaces=replaced.__contains__) as temporary:
                fill(temporary, new)
                if fails:
                    raise OSError("no space")
        except OSError:
            assert fails
        taken = {name.split("/")[0] for name in new} | replaced
        kept = {name: text for name, text in old.items() if name.split("/")[0] not in taken}
        assert content(target) == (old if fails else kept | new)
        assert os.listdir(home) == ["target"]


def fill(folder, files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text)


# -- export_adapter ------------------------------------------------------------------------------------------------


class TrainedRow:
    """As much of a row as an export reads."""

    system, steps, seed, is_trained, done, data = "basic", 1, 0, True, False, "data"

    def __init__(self, trained):
        self.trained = trained


@pytest.fixture(scope="module")
def trained_row(tiny_folder, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    ll.train(load(tiny_folder), data, "basic", output_dir=folder, **FAST | {"save_strategy": "no"})
    for name in ("laser_lab.json", "run_card.json"):
        file = folder / "final" / name
        file.write_text(file.read_text().replace(json.dumps(tiny_folder), '"owner/name"'))
    return TrainedRow(folder)


def test_an_export_never_deletes_what_it_did_not_write(trained_row, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="no adapter that an export wrote"):
        export.export_adapter([trained_row], home)
    assert content(home) == {"thesis.tex": b"years of work"}
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError):
        export.export_adapter([trained_row], tmp_path / "file")
    assert (tmp_path / "file").read_text() == "x"


def test_a_failed_export_leaves_the_old_adapter(trained_row, tmp_path, monkeypatch):
    export.export_adapter([trained_row], tmp_path / "adapter")
    before = content(tmp_path)
    export.export_adapter([trained_row], tmp_path / "adapter")  # its own: replaced
    assert content(tmp_path).keys() == before.keys()
    monkeypatch.setattr(export, "ADAPTER_LIMIT", 10)
    with pytest.raises(ValueError, match="MB, more than"):
        export.export_adapter([trained_row], tmp_path / "adapter")
    monkeypatch.setattr(export, "_model_card", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export.export_adapter([trained_row], tmp_path / "adapter")
    assert content(tmp_path) == before
    (tmp_path / "adapter" / "mine.txt").write_text("x")
    with pytest.raises(FileExistsError):
        export.export_adapter([trained_row], tmp_path / "adapter")


# -- resume --------------------------------------------------------------------------------------------------------


def test_resume_touches_no_checkpoint_of_another_program(tiny_folder, data, tmp_path):
    ll.train(load(tiny_folder), data, "basic", output_dir=tmp_path, **FAST)
    foreign = tmp_path / "checkpoint-7"
    foreign.mkdir()
    (foreign / "weights.bin").write_bytes(b"another program's")
    copy = tmp_path / "checkpoint-4-kept"  # the trainer would read its number too, and delete it with the old ones
    shutil.copytree(tmp_path / "checkpoint-4", copy)
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match="checkpoint-4-kept, .*checkpoint-7: not written by this library"):
        ll.train(load(tiny_folder), data, "basic", output_dir=tmp_path, resume=True, **FAST)
    assert content(tmp_path) == before and (tmp_path / "checkpoint-4" / COMPLETE).exists()


def test_notes_beside_the_checkpoints_and_in_final_stay(tiny_folder, data, tmp_path):
    ll.train(load(tiny_folder), data, "basic", output_dir=tmp_path, **FAST)
    for file in (tmp_path / "notes.md", tmp_path / "final" / "notes.md"):
        file.write_text("mine")
    shutil.rmtree(tmp_path / "checkpoint-4")
    ll.train(load(tiny_folder), data, "basic", output_dir=tmp_path, resume=True, **FAST)
    assert (tmp_path / "notes.md").read_text() == (tmp_path / "final" / "notes.md").read_text() == "mine"


# -- files ---------------------------------------------------------------------------------------------------------


def test_two_names_are_two_files(tmp_path, monkeypatch):
    """``--out res.v1`` and ``--out res.v2``: a point in a name is no ending."""
    import pandas as pd

    from laser_lab.lab import records

    frame = pd.DataFrame({"ms_per_query": [1.0]})
    monkeypatch.setattr(records, "per_query", lambda row, settings: frame)
    monkeypatch.setattr(records, "summary", lambda frame, settings: frame)

    class Done:
        done, is_trained, record, steps = True, False, {}, 1

    for name in ("res.v1", "res.v2", "res.v3.csv"):
        records.write_records([Done()], tmp_path / name)
    assert {file.name for file in tmp_path.glob("*.csv")} >= {"res.v1.csv", "res.v2.csv", "res.v3.csv"}
    assert len(list(tmp_path.iterdir())) == 9


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path):
    write_text(tmp_path / "a.txt", "whole")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "half \ud800")
    assert content(tmp_path) == {"a.txt": b"whole"}


def test_a_build_that_is_cut_is_made_again(tmp_path):
    def build(folder):
        (folder / "rows").write_text("3")

    def whole(folder):
        return folder.exists() and (folder / "rows").read_text() == "3"

    cached_build(tmp_path / "a", build, whole)
    (tmp_path / "a" / "rows").write_text("")
    cached_build(tmp_path / "a", build, whole)
    assert (tmp_path / "a" / "rows").read_text() == "3"


def test_a_kill_in_the_middle_of_a_save(tiny_folder, tmp_path):
    """The process dies with the new weights half written; the old model loads, and the next save goes through."""
    load(tiny_folder).save_pretrained(str(tmp_path / "model"))
    before = content(tmp_path / "model")

    def dies():
        model = ll.load(tiny_folder, device="cpu", thinking_steps=7)
        LatentEncoder.save_config = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
        model.save_pretrained(str(tmp_path / "model"))

    killed_in(dies)
    assert content(tmp_path / "model") == before
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".model.laser_lab-")], "what it left"
    ll.load(tmp_path / "model", device="cpu").save_pretrained(str(tmp_path / "model"))
