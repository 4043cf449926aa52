"""The tuned lens: it starts as the logit lens, comes nearer to the last layer, and is read back as it was written."""

import pandas as pd
import pytest
import torch
from conftest import FAMILIES, WORDS, tiny_backbone

import laser_lab as ll
from laser_lab.encoder import LatentEncoder, LatentRetriever
from laser_lab.probing.lens import TunedLens, fit_lens
from laser_lab.probing.tracing import think_layers
from laser_lab.probing.vocabulary import logit_lens

TEXTS = [f"{a} {b}" for n in (3, 7, 11) for a, b in zip(WORDS, WORDS[n:] + WORDS[:n])]


def retriever(family: str = "qwen3") -> LatentRetriever:
    return LatentRetriever(modules=[LatentEncoder(tiny_backbone(family))], device="cpu", prompts={"query": ""})


@pytest.fixture(scope="module")
def model():
    return retriever()


def test_the_lens_before_any_step_is_the_logit_lens(model):
    lens = fit_lens(model, TEXTS, max_steps=0, show_progress_bar=False)
    traced = think_layers(model, TEXTS[:2], 2)
    pd.testing.assert_frame_equal(logit_lens(model, traced, 3, lens), logit_lens(model, traced, 3))
    assert lens.divergences.logit_lens.tolist() == lens.divergences.tuned_lens.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lens_comes_nearer_to_the_last_layer(family):
    model = retriever(family)
    before = {name: p.clone() for name, p in model.named_parameters()}
    embeddings = model.encode(TEXTS[:3])
    lens = fit_lens(model, TEXTS, max_steps=60, learning_rate=5e-3, seed=1, show_progress_bar=False)
    found = lens.divergences
    assert found.layer.tolist() == [0, 1] and (found.logit_lens > 0.05).all()
    assert found.tuned_lens.sum() < 0.8 * found.logit_lens.sum(), "on texts that the fit has not seen"
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
    assert (model.encode(TEXTS[:3]) == embeddings).all()
    traced = think_layers(model, TEXTS[:2], 2)
    plain, tuned = logit_lens(model, traced, 3), logit_lens(model, traced, 3, lens)
    last = plain.layer == 2
    pd.testing.assert_frame_equal(plain[last], tuned[last])
    assert not plain[~last].probability.equals(tuned[~last].probability)


def test_a_lens_is_read_back_as_it_was_written(model, tmp_path):
    lens = ll.fit_lens(model, TEXTS, max_steps=3, show_progress_bar=False)
    lens.save(tmp_path / "lens.safetensors")
    again = TunedLens.load(tmp_path / "lens.safetensors")
    assert torch.equal(again.weight, lens.weight) and torch.equal(again.bias, lens.bias) and lens.weight.abs().max() > 0
    pd.testing.assert_frame_equal(again.divergences, lens.divergences)
    assert [p.name for p in tmp_path.iterdir()] == ["lens.safetensors"]


def test_what_is_no_lens_is_refused(model, tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(ValueError, match="at least two texts"):
        fit_lens(model, ["sea"])
    with pytest.raises(ValueError, match="reads 2 layers of width 32, not 4 of 32"):
        TunedLens(2, 32)(torch.zeros(5, 32))
    save_file({"other": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="no tuned lens: it holds other"):
        TunedLens.load(tmp_path / "x.safetensors")
