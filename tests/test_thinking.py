"""The loop against a deliberately naive reference written from docs/method.md, section 1."""

import copy

import pytest
import torch
from conftest import FAMILIES, tiny_backbone
from hypothesis import given, settings
from hypothesis import strategies as st

from laser_lab.backbone import Backbone
from laser_lab.thinking import Thoughts, latent_thinking, pool


def naive_thinking(model, ids, mask, steps):
    """No cache, the whole sequence again at every step, every logit, softmax and matmul written out."""
    embedding = model.get_input_embeddings()
    table = embedding(torch.arange(embedding.num_embeddings))  # what the module really outputs, scale included
    x = embedding(ids)
    states = []
    for _ in range(steps):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        out = model(
            inputs_embeds=x, attention_mask=mask, position_ids=positions, output_hidden_states=True, use_cache=False
        )
        states.append(out.hidden_states[-1][:, -1])
        probabilities = torch.softmax(out.logits[:, -1].float(), dim=-1)
        x = torch.cat([x, (probabilities @ table)[:, None]], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return torch.stack(states, dim=1)


def batch(lengths=(9, 3, 6), seed=0):
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, width - length :] = torch.randint(4, 20, (length,), generator=generator)
        mask[row, width - length :] = 1
    return ids, mask


def variant(family, kind):
    """(Backbone, causal LM that computes the same by itself)."""
    from peft import LoraConfig, get_peft_model

    backbone = tiny_backbone(family)
    if kind == "base":
        return backbone, backbone.model
    targets = ["c_attn"] if family == "gpt2" else ["q_proj", "v_proj", "down_proj"]
    torch.manual_seed(1)
    wrapped = get_peft_model(backbone.model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False)).eval()
    if kind == "merged":
        merged = copy.deepcopy(wrapped).merge_and_unload()
        return Backbone(merged, backbone.tokenizer), wrapped.get_base_model()
    return Backbone(wrapped, backbone.tokenizer), copy.deepcopy(wrapped).merge_and_unload()


@pytest.mark.parametrize("kind", ["base", "peft", "merged"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loop_equals_the_naive_reference(family, kind):
    backbone, reference = variant(family, kind)
    ids, mask = batch()
    with torch.no_grad():
        expected = naive_thinking(reference, ids, mask, 6)
        assert (expected[:, 0] - expected[:, 1]).abs().max() > 1e-2, "thoughts must move, or the test tests nothing"
        for steps in (1, 2, 3, 6):
            found = latent_thinking(backbone, ids, mask, steps).states
            assert found.shape == (3, steps, 32)
            torch.testing.assert_close(found, expected[:, :steps], atol=1e-4, rtol=0)
            cosine = torch.cosine_similarity(pool(found), pool(expected[:, :steps]))
            assert cosine.min() >= 0.99999


@pytest.mark.parametrize("family", FAMILIES)
def test_one_hot_soft_token_is_the_embedding(family):
    """With p one-hot on token i the soft token is what the embedding module returns for i."""
    backbone = tiny_backbone(family)
    backbone.causal_lm.config.final_logit_softcapping = None  # a cap keeps p from being one-hot
    head = torch.nn.functional.normalize(
        torch.randn(backbone.config.vocab_size, 32, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    backbone.head.weight = torch.nn.Parameter(head)  # unties: the table keeps its own weights
    for token in (4, 11, 22):
        soft = backbone.soft_token(1e4 * head[token][None])
        torch.testing.assert_close(soft[0], backbone.embed(torch.tensor([[token]]))[0, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_neighbours_and_padding_change_nothing(family):
    backbone = tiny_backbone(family)
    ids, mask = batch()
    with torch.no_grad():
        together = pool(latent_thinking(backbone, ids, mask, 3).states)
        for row, length in enumerate((9, 3, 6)):
            alone = latent_thinking(backbone, ids[row : row + 1, -length:], mask[row : row + 1, -length:], 3)
            torch.testing.assert_close(pool(alone.states), together[row : row + 1], atol=1e-4, rtol=0)


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), steps=st.integers(1, 5), seed=st.integers(0, 99))
def test_padding_for_any_batch(lengths, steps, seed):
    backbone = tiny_backbone("gpt2")
    ids, mask = batch(lengths, seed)
    with torch.no_grad():
        found = latent_thinking(backbone, ids, mask, steps).states
        torch.testing.assert_close(found, naive_thinking(backbone.model, ids, mask, steps), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_the_gradient_of_a_later_state_flows_through_the_soft_tokens(family, monkeypatch):
    """h_3 depends on the input through the cache and through both soft tokens: its gradient is that of the finite
    difference of a whole rollout, and without the way through the soft tokens it is another one."""
    backbone = tiny_backbone(family)
    ids, mask = batch((5, 5))
    generator = torch.Generator().manual_seed(0)
    inputs = backbone.embed(ids).detach()
    direction, readout = (torch.randn(shape, generator=generator) for shape in (inputs.shape, (2, 32)))

    def third(shift, edit=None):
        monkeypatch.setattr(backbone, "embed", lambda _: inputs + shift * direction)
        return (latent_thinking(backbone, ids, mask, 3, edit=edit).states[:, 2] * readout).sum()

    shift = torch.zeros((), requires_grad=True)
    slope, cut = (torch.autograd.grad(third(shift, e), shift)[0] for e in (None, lambda k, t, rows: t.detach()))
    step = 1e-3
    with torch.no_grad():
        finite = (third(step) - third(-step)) / (2 * step)
    torch.testing.assert_close(slope, finite, rtol=0.02, atol=0)
    assert (slope - cut).abs() > 0.1 * finite.abs()


def test_gradients_equal_the_naive_reference():
    backbone = tiny_backbone("gemma3")
    ids, mask = batch()
    ours = torch.autograd.grad(
        pool(latent_thinking(backbone, ids, mask, 3).states).pow(3).sum(), list(backbone.parameters())
    )
    naive = torch.autograd.grad(
        pool(naive_thinking(backbone.model, ids, mask, 3)).pow(3).sum(), list(backbone.parameters())
    )
    for (name, _), a, b in zip(backbone.named_parameters(), ours, naive):
        assert b.abs().max() > 1e-2, name
        if "embed_tokens" in name:  # the reference looks the whole table up, where the padding row takes no gradient
            a, b = a[1:], b[1:]
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_gradient_checkpointing_gives_the_same_states():
    backbone = tiny_backbone()
    ids, mask = batch()
    expected = latent_thinking(backbone, ids, mask, 3).states
    backbone.causal_lm.gradient_checkpointing_enable()
    backbone.train()
    assert backbone.new_cache() is None, "the loop must go over the whole sequence here"
    torch.testing.assert_close(latent_thinking(backbone, ids, mask, 3).states, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["qwen3", "llama-untied", "gemma3"])
def test_half_precision_is_close(family):
    backbone = tiny_backbone(family)
    ids, mask = batch()
    with torch.no_grad():
        expected = pool(latent_thinking(backbone, ids, mask, 3).states)
        half = Backbone(copy.deepcopy(backbone.model).to(torch.bfloat16), backbone.tokenizer)
        found = pool(latent_thinking(half, ids, mask, 3).states)
    assert found.dtype == torch.float32 and torch.isfinite(found).all()
    assert torch.cosine_similarity(found, expected).min() > 0.999  # one pass alone has 0.79 to 0.98


def test_thoughts_hold_every_smaller_k():
    states = torch.randn(4, 5, 8)
    thoughts = Thoughts(list("abcd"), states)
    assert thoughts.thinking_steps == 5 and len(thoughts) == 4
    torch.testing.assert_close(thoughts.embeddings_at(2), pool(states[:, :2]))
    torch.testing.assert_close(thoughts.embeddings_at(3, without=1), pool(states[:, 1:3]))
    assert (thoughts.embeddings_at(3, without=1) - thoughts.embeddings_at(3)).abs().max() > 1e-2
    torch.testing.assert_close(thoughts[-1].embeddings, thoughts.embeddings[-1:])
    for step in (0, 6):
        with pytest.raises(ValueError, match="from 1 to 5"):
            thoughts.embeddings_at(step)


def test_unknown_scaling_is_refused():
    """A family whose logits we would get wrong is stopped at the door."""

    backbone = tiny_backbone()
    model = backbone.model
    forward = model.forward

    def odd(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits * 2
        return out

    model.forward = odd
    with pytest.raises(ValueError, match="not reproduced here"):
        Backbone(model, backbone.tokenizer)


def test_an_edit_acts_from_its_step_on():
    backbone = tiny_backbone("gemma3")
    ids, mask = batch()
    with torch.no_grad():
        expected = latent_thinking(backbone, ids, mask, 4).states
        same = latent_thinking(backbone, ids, mask, 4, edit=lambda step, soft_token, rows: soft_token).states
        other = backbone.embed(torch.full((3, 1), 7))[:, 0]
        seen = []
        edited = latent_thinking(
            backbone, ids, mask, 4, edit=lambda k, t, rows: (seen.append(k), other if k == 2 else t)[1]
        ).states
    assert torch.equal(same, expected) and seen == [1, 2, 3]
    assert torch.equal(edited[:, :2], expected[:, :2]) and (edited[:, 2:] - expected[:, 2:]).abs().max() > 1e-2
