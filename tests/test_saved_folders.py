"""Folders that earlier code saved still load, and give the numbers that they gave when they were saved.

`fixtures/folders` holds tiny models as the code before the reorganisation wrote them, less their README, and
`expected.json` with what that code read from them. They are evidence: do not write them anew with later code. Each
`modules.json` names the encoder by the module path of its day, which has to stay importable.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import laser_lab as ll

FOLDERS = Path(__file__).parent / "fixtures" / "folders"
EXPECTED = json.loads((FOLDERS / "expected.json").read_text(encoding="utf-8"))
TEXTS = EXPECTED["texts"]
NAMES = list(EXPECTED["folders"])
ADAPTERS = [name for name in NAMES if EXPECTED["folders"][name]["base"]]


def check(model, name):
    """`model` has the settings, the embeddings and the thoughts that folder `name` had when it was saved."""
    expected = EXPECTED["folders"][name]
    for setting in ("thinking_steps", "pooling", "max_length"):
        assert getattr(model[0], setting) == expected[setting], setting
    assert model.prompts == expected["prompts"]
    np.testing.assert_allclose(model.encode_query(TEXTS), expected["query"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(model.encode_document(TEXTS), expected["document"], rtol=0, atol=1e-5)
    thoughts = ll.think(model, TEXTS)
    assert thoughts.states.shape[:2] == (len(TEXTS), expected["thinking_steps"])
    np.testing.assert_allclose(thoughts.states[:, :, :4], expected["states"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_loads_and_gives_the_same_numbers(name):
    """A whole model by its folder, an adapter on top of the folder of its base."""
    base = EXPECTED["folders"][name]["base"]
    if base is None:
        model = ll.load(FOLDERS / name, device="cpu")
    else:
        model = ll.load(FOLDERS / base, adapter=FOLDERS / name, device="cpu")
    check(model, name)


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_finds_the_base_that_it_names(name, monkeypatch):
    """The adapters name their base as they were trained on it: ``base``, beside them."""
    monkeypatch.chdir(FOLDERS)
    check(ll.load(name, device="cpu"), name)


@pytest.mark.parametrize("name", NAMES)
def test_loads_through_sentence_transformers(name, monkeypatch):
    """The way of the README without ``ll.load``: the class comes from the module path in ``modules.json``."""
    monkeypatch.chdir(FOLDERS)
    check(SentenceTransformer(name, trust_remote_code=True, device="cpu"), name)
