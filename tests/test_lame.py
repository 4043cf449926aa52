"""Thinking in one pass: the bottleneck, the two stages, saving, and what must not matter."""

import numpy as np
import pytest
import torch
from conftest import FAMILIES, tiny_backbone
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import FAST, check_resumed_like_unbroken, data, dev, load  # noqa: F401  (fixtures)
from torch import nn

import laser_lab as ll
from laser_lab.lame import Diversity, ReasonEncoder, cosines, reconstruct, step_rank, targets
from laser_lab.lame.encoder import WEIGHTS_FILE, one_pass_thinking
from laser_lab.lame.heads import TARGET_LENGTH, ReasonTokens
from laser_lab.probing.causal import soft_tokens
from laser_lab.probing.tracing import final_norm, think_layers
from laser_lab.training.objectives import BottleneckLoss
from laser_lab.training.run import set_method, train

LAME = ll.METHODS["lame"].replace(thinking_steps=3)


@pytest.fixture
def model(tiny_folder):
    torch.manual_seed(0)
    found = load(tiny_folder)
    set_method(found, LAME)
    return found.eval()


# -- thinking ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_by_hand(family):
    backbone = tiny_backbone(family)
    torch.manual_seed(0)
    tokens = torch.randn(5, backbone.hidden_size)
    ids, mask = torch.tensor([[4, 5, 6]]), torch.ones(1, 3, dtype=torch.long)
    states, embed = one_pass_thinking(backbone, ids, mask, 3, tokens)
    inputs = torch.cat([backbone.embed(ids), tokens[None, :3], tokens[None, -1:]], dim=1)
    expected = backbone.causal_lm.base_model(inputs_embeds=inputs).last_hidden_state[:, 3:]
    torch.testing.assert_close(torch.cat([states, embed[:, None]], dim=1), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_neighbours_and_padding_change_nothing(family):
    backbone = tiny_backbone(family)
    torch.manual_seed(0)
    encoder = ReasonEncoder(backbone, thinking_steps=4).eval()
    texts = ["sky", "why is the sky blue because light", ""]
    together = encoder(encoder.preprocess(texts))
    for row, text in enumerate(texts):
        alone = encoder(encoder.preprocess([text]))
        for name in ("states", "sentence_embedding"):
            torch.testing.assert_close(together[name][row], alone[name][0], atol=1e-4, rtol=1e-4)


def test_it_is_one_call_of_the_body(model):
    calls = []
    handle = model.encoder.backbone.causal_lm.base_model.register_forward_hook(lambda *_: calls.append(1))
    model.encode(["why sea"], thinking_steps=3)
    handle.remove()
    assert len(calls) == 1


def test_thoughts_are_like_those_of_the_loop(model):
    texts = ["why sea", "the sky is blue", "rain"]
    thoughts = ll.think(model, texts, batch_size=2)
    assert isinstance(thoughts, ll.Thoughts) and thoughts.states.shape == (3, 3, 32)
    np.testing.assert_allclose(thoughts.embeddings.numpy(), model.encode(texts), atol=1e-5)
    for k in (1, 2, 3):
        fewer = ll.think(model, texts, thinking_steps=k)
        torch.testing.assert_close(fewer.states, thoughts.states[:, :k], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(fewer.embeddings, thoughts.embeddings_at(k), atol=1e-5, rtol=1e-4)
        np.testing.assert_allclose(model.encode(texts, thinking_steps=k), fewer.embeddings.numpy(), atol=1e-5)
    assert (thoughts.embeddings_at(1) - thoughts.embeddings_at(3)).abs().max() > 1e-4
    torch.testing.assert_close(thoughts[1].embeddings, thoughts.embeddings[1:2])
    torch.testing.assert_close(thoughts[1:].embeddings_at(2), thoughts.embeddings_at(2)[1:])
    with pytest.raises(ValueError, match="step must be from 1 to 3"):
        thoughts.embeddings_at(4)
    frame = ll.nearest_tokens(model, thoughts, top=2)
    assert len(frame) == 3 * 3 * 2
    assert len(ll.think(model, []).embeddings) == 0


def test_no_more_steps_than_tokens(model):
    for call in (lambda: model.encode(["sea"], thinking_steps=4), lambda: ll.think(model, ["sea"], 4)):
        with pytest.raises(ValueError, match="learned 3 reason tokens"):
            call()
    with pytest.raises(ValueError, match="more positions"):
        model.encoder.max_length = 70
        model.encode(["sky " * 62])


def test_an_edit_reaches_the_token_it_names_and_what_follows(model):
    shown = []

    def edit(k, token, rows):
        shown.append(k)
        return token + 1 if k == 2 else token

    before, after = ll.think(model, ["why sea"]), ll.think(model, ["why sea"], edit=edit)
    moved = (before.states - after.states).abs().amax(dim=(0, 2))
    assert moved[0] == 0 and moved[1] > 1e-4 and moved[2] > 1e-4
    assert shown == [1, 2, 3], "each token once"
    torch.testing.assert_close(soft_tokens(model, ["why sea"])[0], model.encoder.reasoner.tokens[:3].detach())


def test_layers_are_those_of_the_reason_tokens(model):
    texts = ["why sea", "the sky is blue because light"]
    traced, thoughts = think_layers(model, texts), ll.think(model, texts)
    assert traced.layers.shape == (2, 3, 3, 32)
    torch.testing.assert_close(traced.thoughts.states, thoughts.states, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(traced.thoughts.embeddings, thoughts.embeddings, atol=1e-5, rtol=1e-4)
    norm = final_norm(model.encoder.backbone)
    torch.testing.assert_close(norm(traced.layers[:, :, -1]), thoughts.states, atol=1e-4, rtol=1e-4)
    tokens = model.encoder.reasoner.tokens[:3].detach()
    torch.testing.assert_close(traced.layers[0, :, 0], tokens, atol=1e-5, rtol=1e-5)


# -- the decoder ---------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 5))
def test_the_decoder_sees_the_bottleneck_states_and_nothing_else(seed, count):
    """Whatever else changes (query, prompt, [EMBED], embedding head, tokens behind the k-th), the reconstruction does
    not move while the states stay; and it does move with each of them."""
    torch.manual_seed(seed)
    backbone = tiny_backbone()
    encoder = ReasonEncoder(backbone, thinking_steps=count).eval()
    reasoner = encoder.reasoner
    asked = targets(torch.tensor([[0, 7, 8], [4, 5, 6]]), torch.tensor([[0, 1, 1], [1, 1, 1]]), 3)
    features = encoder.preprocess(["why is the sky", "sea"])
    first = encoder(features, targets=asked)
    states, loss = first["states"].detach(), first["reconstruction"].detach()
    with torch.no_grad():  # all that is no bottleneck state
        reasoner.tokens[-1] += 1
        nn.init.normal_(reasoner.head.weight)
    second = encoder(features, targets=asked)
    assert (second["sentence_embedding"] - first["sentence_embedding"]).abs().max() > 1e-3
    torch.testing.assert_close(second["reconstruction"], loss, atol=1e-6, rtol=1e-6)
    # other texts under the same states; the states are all that is handed over
    other = encoder.preprocess(["rain or snow", "light"])
    encoder.one_pass = lambda *_: (states, first["sentence_embedding"])
    moved = encoder(other, targets=asked)
    torch.testing.assert_close(moved["reconstruction"], loss, atol=1e-6, rtol=1e-6)
    leaf = states.clone().requires_grad_()
    reasoner.reconstruction(backbone, leaf, *asked).sum().backward()
    assert (leaf.grad.abs().amax(-1) > 0).all(), "every state counts"


def test_the_decoder_is_causal_and_a_batch_is_its_rows():
    backbone = tiny_backbone()
    torch.manual_seed(0)
    reasoner = ReasonTokens(backbone, 2).eval()
    states, ids = torch.randn(2, 2, 32), torch.randint(4, 20, (2, 6))
    out = reasoner.decoder(states, backbone.embed(ids))
    changed = ids.clone()
    changed[:, 3] = 21
    moved = (reasoner.decoder(states, backbone.embed(changed)) - out).abs().amax(-1)
    assert (moved[:, :4] < 1e-6).all() and (moved[:, 4:] > 1e-6).all()
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]])
    both = reasoner.reconstruction(backbone, states, ids, mask)
    alone = reasoner.reconstruction(backbone, states[1:], ids[1:, :2], mask[1:, :2])
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-5)


def test_targets():
    ids, mask = targets(torch.tensor([[0, 0, 7], [4, 5, 6]]), torch.tensor([[0, 0, 1], [1, 1, 1]]), eos=3)
    assert ids.tolist() == [[7, 3, 3, 3], [4, 5, 6, 3]] and mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    long = torch.ones(1, 100, dtype=torch.long)
    assert targets(long, long, 3)[0].shape == (1, TARGET_LENGTH)


def test_a_trained_decoder_rebuilds_its_target(tiny_folder, data, tmp_path):  # noqa: F811
    few = data.select(range(4))
    method = LAME.replace(bottleneck_warmup=0.0)
    arguments = FAST | dict(max_steps=60, learning_rate=1e-2, save_strategy="no")
    trained = train(load(tiny_folder), few, method, output_dir=tmp_path / "run", **arguments)
    rebuilt = reconstruct(trained, ll.think(trained, few["query"], prompt_name="query"))
    assert rebuilt == [row[0] for row in few["positives"]]
    with pytest.raises(ValueError, match="no decoder head"):
        reconstruct(load(tiny_folder), ll.think(trained, ["sea"]))


# -- diversity -----------------------------------------------------------------------------------------------------


def test_collapse_is_measured():
    same = torch.ones(2, 4, 8)
    apart = torch.eye(8)[:4].expand(2, 4, 8)
    assert Diversity()(same) == pytest.approx(1) and Diversity()(apart) == pytest.approx(0)
    assert Diversity()(same[:, :1]) == 0 and cosines(apart).shape == (2, 6)
    torch.testing.assert_close(step_rank(same), torch.ones(2), atol=1e-2, rtol=0)
    torch.testing.assert_close(step_rank(apart), torch.full((2,), 4.0))
    torch.testing.assert_close(step_rank(apart * 3), step_rank(apart))


# -- training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [False, FAST["lora"]])
def test_the_first_stage_leaves_every_backbone_weight_as_it_is(tiny_folder, data, tmp_path, lora):  # noqa: F811
    seen = []

    class Watched(BottleneckLoss):
        def forward(self, *args):
            backbone, reasoner = self.model.encoder.backbone, self.model.encoder.reasoner
            seen.append([{n: p.detach().clone() for n, p in m.named_parameters()} for m in (backbone, reasoner)])
            return super().forward(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("laser_lab.training.run.BottleneckLoss", Watched)
        method = LAME.replace(bottleneck_warmup=0.5)
        arguments = FAST | dict(lora=lora, weight_decay=0.1, warmup_steps=0, max_steps=4)
        train(load(tiny_folder), data, method, output_dir=tmp_path / "run", **arguments)
    (start, start_heads), _, (end, end_heads), (joint, _) = seen
    assert all(torch.equal(start[name], end[name]) for name in start), "stage 1"
    assert all(not torch.equal(start_heads[name], end_heads[name]) for name in ("tokens", "head.weight"))
    assert any(not torch.equal(end[name], joint[name]) for name in end), "stage 2"


@pytest.mark.parametrize("switch", [0.25, 0.4, 0.75], ids=["behind", "right before", "ahead of"])
def test_a_run_resumed_across_the_switch_ends_like_an_unbroken_one(tiny_folder, data, tmp_path, switch):  # noqa: F811
    check_resumed_like_unbroken(tiny_folder, data, LAME.replace(bottleneck_warmup=switch), tmp_path)


def test_saving_and_loading(tiny_folder, data, tmp_path):  # noqa: F811
    trained = train(load(tiny_folder), data, LAME, output_dir=tmp_path / "run", **FAST)
    final = tmp_path / "run" / "final"
    again = ll.load(final, device="cpu")
    assert isinstance(again.encoder, ReasonEncoder) and again.encoder.reason_tokens == 3
    for (name, a), (_, b) in zip(
        trained.encoder.reasoner.state_dict().items(), again.encoder.reasoner.state_dict().items()
    ):
        assert torch.equal(a, b), name
    np.testing.assert_allclose(again.encode(["why sea"]), trained.encode(["why sea"]), atol=1e-6)
    shorter = ll.load(final, thinking_steps=2, device="cpu")
    np.testing.assert_allclose(shorter.encode(["sea"]), again.encode(["sea"], thinking_steps=2), atol=1e-6)
    again.save_pretrained(str(tmp_path / "copy"))
    np.testing.assert_allclose(
        ll.load(tmp_path / "copy", device="cpu").encode(["sea"]), again.encode(["sea"]), atol=1e-6
    )
    with pytest.raises(ValueError, match="is trained by a method with them"):
        train(again, data, "latent", output_dir=tmp_path / "other", **FAST)
    (final / WEIGHTS_FILE).unlink()
    with pytest.raises(ValueError, match=f"{WEIGHTS_FILE} is not there"):
        ll.load(final, device="cpu")


def test_reason_tokens_are_kept_unless_they_are_others(model):
    tokens = model.encoder.reasoner.tokens
    set_method(model, LAME)
    assert model.encoder.reasoner.tokens is tokens
    set_method(model, LAME.replace(thinking_steps=16))
    assert model.encode(["sea"]).shape == (1, 32) and model.encoder.reason_tokens == 16
    set_method(model, LAME.replace(reconstruction=0.0))
    assert not model.encoder.decoder


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_start_at_a_word(family):
    """Without noise, the model reads the word K + 1 times behind the text; with it, no two tokens are equal."""
    backbone = tiny_backbone(family)
    encoder = ReasonEncoder(backbone, thinking_steps=2).eval()
    apart = torch.pdist(encoder.reasoner.tokens).min()
    encoder.reasoner.start_at(backbone, "is sky")
    torch.testing.assert_close(torch.pdist(encoder.reasoner.tokens).min(), 0.1 * apart)
    encoder.reasoner.start_at(backbone, "is sky", noise=0.0)
    texts = ["why is the sea blue", "rain"]
    read = encoder.one_pass(encoder.preprocess(texts))[1]
    words = encoder.preprocess([f"{text} sky sky sky" for text in texts])
    states = backbone.last_states(backbone.embed(words["input_ids"]), words["attention_mask"])
    torch.testing.assert_close(read, nn.functional.normalize(states[:, -1], dim=-1), atol=1e-5, rtol=1e-4)


def test_the_row_says_where_tokens_start(tiny_folder):
    starts = {}
    for word in ("sky", "sea", ""):
        torch.manual_seed(0)
        model = load(tiny_folder)
        set_method(model, LAME.replace(start_word=word))
        starts[word] = model.encoder.reasoner.tokens.detach()
    ids = model.tokenizer("sky sea", return_tensors="pt")["input_ids"][0]
    sky, sea = model.encoder.backbone.embed(ids).detach()
    torch.testing.assert_close(starts["sky"] - starts["sea"], (sky - sea).expand(4, -1), atol=1e-5, rtol=1e-4)
    spread = [torch.pdist(starts[word]).mean() for word in ("", "sky")]
    torch.testing.assert_close(spread[1], 0.1 * spread[0])


# -- the table -----------------------------------------------------------------------------------------------------


def test_rows():
    lame = ll.METHODS["lame"]
    removed = {"decoder": "reconstruction", "diversity": "diversity", "warmup": "bottleneck_warmup"}
    for name, setting in removed.items():
        assert getattr(lame, setting) > 0
        assert ll.METHODS[f"lame-no-{name}"] == lame.replace(**{setting: 0.0})
    for alien in ("output", "pooling", "halting"):  # settings of the loop, which one pass does not have
        with pytest.raises(TypeError, match=alien):
            lame.replace(**{alien: 1.0})
    with pytest.raises(ValueError, match="must not be negative"):
        lame.replace(diversity=-1.0)
    with pytest.raises(ValueError, match="bottleneck_warmup is a share"):
        lame.replace(bottleneck_warmup=1.0)
