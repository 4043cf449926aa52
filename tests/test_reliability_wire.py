"""Rule 5: with everything local nothing asks the network, and nothing that is read may run code.

That kernels of the notebook runner listen on no port is in tests/test_notebooks.py.
"""

import json
import os
import pickle
import shutil
import socket
import zipfile

import pytest
import torch
from datasets import Dataset
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from test_training import FAST, load, rows

import laser_lab as ll
from laser_lab import adapters, weights
from laser_lab.adapters import fitting
from laser_lab.base.files import read_json
from laser_lab.data.readers import RetrievalTask, features, read_dataset
from laser_lab.training.run import add_lora


@pytest.fixture(scope="module")
def data():
    return Dataset.from_list(rows(), features=features())


@pytest.fixture
def asked(monkeypatch):
    """The addresses that anything asks for from now on; nothing is offline by a setting, and nobody gets an answer."""
    import datasets
    import huggingface_hub

    found = []

    def refuse(*args, **kwargs):
        found.append(next(arg for arg in args if isinstance(arg, (str, tuple))))  # a library may swallow the error
        raise OSError("no network in tests")

    for name in [name for name in os.environ if name.endswith("_OFFLINE")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for owner, name in ((socket, "getaddrinfo"), (socket.socket, "connect"), (socket.socket, "connect_ex")):
        monkeypatch.setattr(owner, name, refuse)
    return found


def test_training_saving_loading_and_evaluating_ask_nobody(tiny_folder, data, tmp_path, asked):
    home = tmp_path / "private" / "name"  # two parts of a path look like a name on the hub
    data.save_to_disk(str(home / "data"))
    table = read_dataset(home / "data")
    task = RetrievalTask("toy", {"q": "sea"}, {"d": "sky", "e": "rain"}, {"q": {"d": 1}})
    shutil.copytree(tiny_folder, home / "base")
    arguments = FAST | {"max_steps": 2, "save_steps": 1}
    ll.train(ll.load(home / "base", device="cpu"), table, "laser", output_dir=home / "run", dev=task, **arguments)
    ll.train(str(home / "base"), table, "laser", output_dir=home / "run", dev=task, resume=True, **arguments)
    model = ll.load(home / "run" / "final", device="cpu")
    model.encoder.backbone.merge_adapter()
    model.save_pretrained(str(home / "merged"))
    ll.load(home / "base", adapter=home / "run" / "final", device="cpu").save(str(home / "again"))
    ll.evaluate(SentenceTransformer(str(home / "merged"), trust_remote_code=True, device="cpu"), task)
    ll.encode_corpus(model, task.corpus, home / "corpus", show_progress_bar=False)
    ll.open_corpus(home / "corpus", model).search(["sea"])
    assert asked == []


@pytest.mark.parametrize("base", ["as in the package", "gemma-3-270m"])
def test_the_adapter_of_the_package_asks_nobody(tiny_folder, tmp_path, asked, monkeypatch, base):
    """PEFT asks the hub about the base that an adapter names, unless it is a folder: the package's names none."""
    monkeypatch.setitem(weights.BUILT_IN, "gemma-3-270m", lambda: tiny_folder)
    model = ll.load("gemma-3-270m", device="cpu")
    add_lora(model, {"r": 2})
    model.save_pretrained(str(tmp_path / "adapter"))
    configs = [read_json(adapters.FOLDER / name / "adapter_config.json") for name in adapters.NAMES]
    (packaged,) = {config["base_model_name_or_path"] for config in configs}
    file = tmp_path / "adapter" / "adapter_config.json"
    named = packaged if base == "as in the package" else base
    file.write_text(json.dumps(read_json(file) | {"base_model_name_or_path": named}))
    ll.load("gemma-3-270m", adapter=tmp_path / "adapter", device="cpu")
    loaded = ll.load(tmp_path / "adapter", device="cpu")
    assert loaded.encoder.base == "gemma-3-270m" and bool(asked) == (base == "gemma-3-270m")


def test_the_trap_works(tiny_folder, tmp_path, asked):
    shutil.copytree(tiny_folder, tmp_path / "private" / "name")
    model = ll.load(tmp_path / "private" / "name", device="cpu")
    model.model_card_data.local_files_only = False  # as it is without us
    model.save_pretrained(str(tmp_path / "saved"))
    assert asked, "sentence-transformers' card asks the hub for private/name"


# -- code ----------------------------------------------------------------------------------------------------------


class Attack:
    """Unpickled, it writes a file."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return open, (self.file, "w")


@pytest.fixture
def adapter(tiny_folder, tmp_path):
    model = load(tiny_folder)
    add_lora(model, {"r": 2})
    model.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


@pytest.mark.parametrize("alone", [True, False])
def test_a_pickled_adapter_is_refused(tiny_folder, adapter, tmp_path, alone):
    torch.save(
        load_file(adapter / "adapter_model.safetensors") | {"x": Attack(tmp_path / "ran")},
        adapter / "adapter_model.bin",
    )
    if alone:
        (adapter / "adapter_model.safetensors").unlink()
        for call in (
            lambda: ll.load(adapter, device="cpu"),
            lambda: ll.load(tiny_folder, adapter=adapter, device="cpu"),
        ):
            with pytest.raises(ValueError, match="has no adapter_model.safetensors, and pickled weights are not read"):
                call()
    else:
        ll.load(adapter, device="cpu")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(pickle.UnpicklingError):  # the attack is one
        torch.load(adapter / "adapter_model.bin")


def test_a_pickled_adapter_of_the_hub_is_not_fetched(tiny_folder, monkeypatch):
    fetched = []

    def download(repo, name, *args, **kwargs):
        fetched.append(name)
        raise RemoteEntryNotFoundError("404", response=type("R", (), {"headers": {}, "request": None})())

    monkeypatch.setattr(fitting, "hf_hub_download", download)
    monkeypatch.setattr("laser_lab.loading._encoder_class", lambda source: ll.encoder.LatentEncoder)
    with pytest.raises(ValueError, match="the adapter owner/name has no adapter_model.safetensors, and pickled"):
        ll.load(tiny_folder, adapter="owner/name", device="cpu")
    assert fetched == ["adapter_model.safetensors"]


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_runs_no_code(tiny_folder, data, tmp_path, name):
    arguments = FAST | {"max_steps": 2, "save_steps": 1}
    ll.train(load(tiny_folder), data, "basic", output_dir=tmp_path / "run", **arguments)
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    file = tmp_path / "run" / "checkpoint-1" / name
    content = torch.load(file, weights_only=False)
    torch.save(content | {"x": Attack(tmp_path / "ran")}, file)
    assert zipfile.is_zipfile(file)
    with pytest.raises(pickle.UnpicklingError):
        ll.train(load(tiny_folder), data, "basic", output_dir=tmp_path / "run", resume=True, **arguments)
    assert not (tmp_path / "ran").exists()
