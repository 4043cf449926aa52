"""Rule 2, models: a family that cannot think from a cache is refused when it is loaded; others think as they would
without one."""

import pytest
import torch
import transformers
from conftest import FAMILIES, SMALL, tiny_tokenizer

import laser_lab as ll
from laser_lab.backbone import SAME, Backbone
from laser_lab.thinking import latent_thinking

PLAIN = {name: value for name, value in SMALL.items() if name != "head_dim"}
HEADS = dict(vocab_size=SMALL["vocab_size"], hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
SHORT = dict(vocab_size=SMALL["vocab_size"], hidden_size=32, num_hidden_layers=2)
ACCEPTED = FAMILIES | {
    "mistral": lambda: transformers.MistralConfig(**SMALL, sliding_window=4),
    "qwen2": lambda: transformers.Qwen2Config(**PLAIN),
    "phi3": lambda: transformers.Phi3Config(**PLAIN),
    "olmo2": lambda: transformers.Olmo2Config(**PLAIN),
    "cohere": lambda: transformers.CohereConfig(**PLAIN, logit_scale=0.5),
    "granite": lambda: transformers.GraniteConfig(**PLAIN, logits_scaling=2.0, embedding_multiplier=3.0),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**HEADS, intermediate_size=48, max_position_embeddings=64),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **SMALL, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2
    ),
}
REFUSED = {
    "mamba": lambda: transformers.MambaConfig(**SHORT, state_size=4),
    "rwkv": lambda: transformers.RwkvConfig(**SHORT, context_length=64, attention_hidden_size=32),
    "bart": lambda: transformers.BartConfig(
        vocab_size=SMALL["vocab_size"],
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=2,
    ),
}


def random_model(config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # larger weights than the default: what came before matters
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return model


@pytest.mark.parametrize("family", ACCEPTED)
@torch.inference_mode()
def test_families_that_think(family):
    """The loop in a padded batch against the sequence run anew at every step, text by text, without a cache."""
    backbone = Backbone(random_model(ACCEPTED[family]()), tiny_tokenizer())
    texts = [[5, 6, 7, 8, 9], [10, 11], [12]]
    width = max(map(len, texts))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in texts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in texts])
    found = latent_thinking(backbone, ids, mask, 4).states
    for row, text in enumerate(texts):
        inputs, expected = backbone.embed(torch.tensor([text])), []
        for _ in range(4):
            expected.append(backbone.last_states(inputs, torch.ones(inputs.shape[:2], dtype=torch.long))[:, -1])
            inputs = torch.cat([inputs, backbone.soft_token(expected[-1])[:, None]], dim=1)
        cosines = torch.cosine_similarity(found[row], torch.cat(expected), dim=-1)
        assert cosines.min() >= SAME, (family, text, cosines)


def test_there_are_twelve():
    assert len(ACCEPTED) >= 12 and SAME == 0.99999


@pytest.mark.parametrize("family", REFUSED)
def test_families_that_do_not(family, tmp_path):
    config = REFUSED[family]()
    with pytest.raises(ValueError, match="cannot think step by step: .* gives other states"):
        Backbone(random_model(config), tiny_tokenizer())
    random_model(config).save_pretrained(tmp_path)
    if family == "bart":  # the file that people have says what it is, and its decoder alone would load
        transformers.BartForConditionalGeneration(REFUSED["bart"]()).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="encoder-decoder" if family == "bart" else "cannot think step by step"):
        ll.load(tmp_path, device="cpu")


def test_an_encoder_decoder_is_refused_by_its_kind():
    with pytest.raises(ValueError, match="BartForConditionalGeneration is an encoder-decoder"):
        Backbone(transformers.BartForConditionalGeneration(REFUSED["bart"]()), tiny_tokenizer())


def test_a_cache_that_forgets_is_found(monkeypatch):
    """The check itself: with an empty cache at every step, or with positions that count padding, it fails."""
    forward = Backbone.last_states
    monkeypatch.setattr(Backbone, "last_states", lambda self, inputs, mask, cache=None: forward(
        self, inputs, mask[:, -inputs.shape[1] :], self.new_cache() if cache is not None else None
    ))  # fmt: skip
    with pytest.raises(ValueError, match="cannot think step by step"):
        Backbone(random_model(FAMILIES["qwen3"]()), tiny_tokenizer())


def test_nan_at_the_door_names_the_weight():
    model = random_model(FAMILIES["qwen3"]())
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"up_proj.weight holds NaN"):
        Backbone(model, tiny_tokenizer())
