"""Tiny random backbones of every supported family, built once; no network anywhere."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from laser_lab.backbones import Backbone

torch.set_num_threads(1)  # tiny models: threads only get in each other's way

WORDS = (
    "why is the sky blue green sea because light scatters water and or not a very long question about rain snow".split()
)
SMALL = dict(
    vocab_size=len(WORDS) + 4,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=2,
    eos_token_id=3,
)
FAMILIES = {
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, tie_word_embeddings=True),
    "llama": lambda: transformers.LlamaConfig(**SMALL, tie_word_embeddings=True),
    "llama-untied": lambda: transformers.LlamaConfig(**SMALL, tie_word_embeddings=False),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SMALL, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
    "gemma2": lambda: transformers.Gemma2Config(
        **SMALL, sliding_window=4, query_pre_attn_scalar=8, final_logit_softcapping=2.0, attn_logit_softcapping=3.0
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=SMALL["vocab_size"],
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    ),
}


def tiny_tokenizer() -> transformers.PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<unk>", "<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def tiny_model(family: str = "qwen3", seed: int = 0) -> transformers.PreTrainedModel:
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family]())
    with torch.no_grad():  # larger weights than the default: thoughts that differ from step to step
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return model.eval()


def tiny_backbone(family: str = "qwen3", seed: int = 0) -> Backbone:
    return Backbone(tiny_model(family, seed), tiny_tokenizer(), name=family)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> str:
    """A causal LM folder as `save_pretrained` of transformers writes it."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)
