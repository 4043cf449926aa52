"""The SentenceTransformer face: encoding, bad input, saving and loading."""

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import tiny_backbone
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM

import laser_lab as ll
from laser_lab.encoder import LatentEncoder

TEXTS = ["why is the sky blue", "sea", "a very long question about rain and snow and light and water", ""]


@pytest.fixture(scope="module")
def model(tiny_folder):
    return ll.load(tiny_folder, device="cpu")


def test_is_a_sentence_transformer(model):
    assert isinstance(model, SentenceTransformer)
    assert model.get_embedding_dimension() == 32 and model.max_seq_length == 512
    embeddings = model.encode(TEXTS)
    assert embeddings.shape == (4, 32) and embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    scores = model.similarity(model.encode_query(TEXTS), model.encode_document(TEXTS))
    assert scores.shape == (4, 4) and scores.max() <= 1 + 1e-5


def test_a_text_alone_equals_the_text_in_a_batch(model):
    together = model.encode(TEXTS, batch_size=4)
    for text, expected in zip(TEXTS, together):
        alone = model.encode(text)
        assert alone.shape == (32,) and alone @ expected >= 0.9999


def test_prompts(model):
    task = "find the reason"
    prompt = ll.query_prompt(task)
    assert prompt == "Instruct: find the reason\nQuery: "
    np.testing.assert_allclose(model.encode_query(TEXTS[0], prompt=prompt), model.encode(prompt + TEXTS[0]), atol=1e-6)
    np.testing.assert_allclose(model.encode_document(TEXTS[0]), model.encode(TEXTS[0]), atol=1e-6)
    assert model.prompts["query"].startswith("Instruct: Given a web search query")


def test_thinking_steps_per_call(model):
    thoughts = ll.think(model, TEXTS, thinking_steps=5)
    assert thoughts.states.shape == (4, 5, 32) and thoughts.texts == TEXTS
    for steps in (1, 2, 5):
        found = model.encode(TEXTS, thinking_steps=steps)
        np.testing.assert_allclose(found, thoughts.embeddings_at(steps).numpy(), atol=1e-5)
    np.testing.assert_allclose(model.encode(TEXTS), thoughts.embeddings_at(3).numpy(), atol=1e-5)
    queries = ll.think(model, TEXTS, prompt_name="query")
    np.testing.assert_allclose(model.encode_query(TEXTS), queries.embeddings.numpy(), atol=1e-5)


def test_generated_pooling_drops_the_first_state():
    """GIRCSE pools the states of generated tokens: K of them need K+1 calls (docs/method.md, section 6)."""
    backbone = tiny_backbone()
    every, generated = LatentEncoder(backbone), LatentEncoder(backbone, pooling="generated")
    features = every.preprocess(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(generated.think(features, 2)["states"], every.think(features, 3)["states"][:, 1:])


@pytest.mark.parametrize("empty", [[], (), np.array([], dtype=str)])
def test_empty_list(model, empty):
    for encode in (model.encode, model.encode_query, model.encode_document):
        assert encode(empty).shape == (0, 32)
    assert model.encode(empty, convert_to_tensor=True).shape == (0, 32)
    assert ll.think(model, []).states.shape == (0, 3, 32)


def test_empty_string_is_an_embedding(model):
    for text in ("", "   "):
        assert np.isfinite(model.encode(text)).all()


@pytest.mark.parametrize("bad", [[1], ["a", None], [b"bytes"], [["nested"]]])
def test_non_strings(model, bad):
    for encode in (model.encode, model.encode_query, lambda x: ll.think(model, x)):
        with pytest.raises(TypeError, match="texts must be strings, but number"):
            encode(bad)


@pytest.mark.parametrize("steps", [0, -1, 1.5, "3", True])
def test_bad_thinking_steps(model, tiny_folder, steps):
    for call in (
        lambda: model.encode(["sky"], thinking_steps=steps),
        lambda: ll.think(model, ["sky"], thinking_steps=steps),
        lambda: ll.load(tiny_folder, thinking_steps=steps),
    ):
        with pytest.raises(ValueError, match="thinking_steps must be a positive integer"):
            call()


def test_too_many_positions(model):
    with pytest.raises(ValueError, match="positions than the backbone's 64"):
        model.encode(["sky " * 60], thinking_steps=6)


def test_long_texts_are_truncated_and_counted(tiny_folder, caplog):
    model = ll.load(tiny_folder, max_length=4, device="cpu")
    with caplog.at_level(logging.WARNING):
        found = model.encode(["why is the sky blue green", "sea", "why is the sky"])
    assert "1 of 3 texts truncated to max_length=4" in caplog.text
    np.testing.assert_allclose(found[0], model.encode("why is the sky"), atol=1e-5)
    with pytest.raises(ValueError, match="max_length must be a positive integer"):
        ll.load(tiny_folder, max_length=0)


def test_progress_bar(model, capsys):
    model.encode(TEXTS, show_progress_bar=True, batch_size=2)
    assert "Batches" in capsys.readouterr().err
    ll.think(model, TEXTS, show_progress_bar=True, batch_size=2)
    assert "Thinking" in capsys.readouterr().err


def test_save_and_load_three_ways(model, tmp_path):
    model = ll.load(str(model.encoder.base), thinking_steps=4, max_length=40, prompts={"query": "Q: "}, device="cpu")
    folder = str(tmp_path / "saved")
    model.save_pretrained(folder)
    expected = model.encode_query(TEXTS)
    ours = ll.load(folder, device="cpu")
    assert (ours.encoder.thinking_steps, ours.encoder.max_length, ours.prompts["query"]) == (4, 40, "Q: ")
    np.testing.assert_allclose(ours.encode_query(TEXTS), expected, atol=1e-6)
    theirs = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(theirs.encode_query(TEXTS), expected, atol=1e-6)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(weight, model.encoder.backbone.model.state_dict()[name])
    assert ll.load(folder, thinking_steps=1).encoder.thinking_steps == 1


def test_adapters(model, tiny_folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    tuned = ll.load(tiny_folder, device="cpu")
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    tuned.encoder.backbone.model = get_peft_model(tuned.encoder.backbone.model, config)
    expected = tuned.encode(TEXTS)
    assert np.abs(expected - model.encode(TEXTS)).max() > 1e-3
    folder = str(tmp_path / "adapter")
    tuned.save_pretrained(folder)
    assert not (tmp_path / "adapter" / "model.safetensors").exists(), "an adapter is saved without its base"
    for loaded in (ll.load(folder, device="cpu"), ll.load(tiny_folder, adapter=folder, device="cpu")):
        np.testing.assert_allclose(loaded.encode(TEXTS), expected, atol=1e-5)
        loaded.encoder.backbone.merge_adapter()
        np.testing.assert_allclose(loaded.encode(TEXTS), expected, atol=1e-4)
    theirs = SentenceTransformer(folder, trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(theirs.encode(TEXTS), expected, atol=1e-5)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        features = tuned.encoder.preprocess(TEXTS[:1])
        torch.testing.assert_close(
            plain(**features).logits, tuned.encoder.backbone.model(**features).logits, atol=1e-4, rtol=1e-4
        )


def test_multi_process(model):
    pool = model.start_multi_process_pool(["cpu"])
    try:
        found = model.encode(TEXTS, pool=pool, chunk_size=2, thinking_steps=2)
    finally:
        model.stop_multi_process_pool(pool)
    np.testing.assert_allclose(found, model.encode(TEXTS, thinking_steps=2), atol=1e-5)


def test_import_is_light():
    """No heavier than sentence_transformers, and nothing that only one function needs."""
    code = (
        "import sys, sentence_transformers; before = set(sys.modules); import laser_lab;"
        "heavy = {'mteb', 'umap', 'ipywidgets', 'matplotlib', 'seaborn', 'papermill', 'gguf', 'peft', 'pytrec_eval'};"
        "print(sorted(heavy & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
