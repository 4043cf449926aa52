"""Tiny random backbones of every supported family, built once; no network anywhere."""

import json
import os
import random
import signal
import socket

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for what tests start, too
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from laser_lab.backbone import Backbone

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


def word_tokenizer(words, **special) -> transformers.PreTrainedTokenizerFast:
    """A token per word, behind the four special ones; `special` names more of them among the words."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<unk>", "<s>", "</s>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **special)


def tiny_tokenizer() -> transformers.PreTrainedTokenizerFast:
    return word_tokenizer(WORDS)


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


def killed_in(function) -> None:
    """Run `function` in a fork of this process, which has to end by SIGKILL: nothing is imported again."""
    child = os.fork()
    if not child:
        try:
            function()
        finally:
            os._exit(1)  # no clean-up of the parent's things, and no pytest
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> str:
    """A causal LM folder as `save_pretrained` of transformers writes it."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def stock_folder(tmp_path_factory, tiny_folder) -> str:
    """The tiny model as a SentenceTransformer without anything of ours."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    body, folder = Transformer(tiny_folder), tmp_path_factory.mktemp("st") / "stock"
    pooling = Pooling(body.get_embedding_dimension())
    SentenceTransformer(modules=[body, pooling], device="cpu").save_pretrained(str(folder))
    return str(folder)


@pytest.fixture(scope="session")
def tiny_bank(tmp_path_factory, tiny_folder) -> dict[str, str]:
    """A data folder in the EntailmentBank layout and a configuration of a few steps, both of words the tiny model
    knows; as the parameters of the notebook that reads them."""
    folder = tmp_path_factory.mktemp("bank")
    rng = random.Random(0)

    def say(count: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(count))

    def write(name: str, rows: list[dict]) -> None:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("corpus", [{"id": f"f{i}", "text": say(5)} for i in range(60)])
    for split, count in (("train", 16), ("dev", 12)):
        rows = []
        for number in range(count):
            facts = rng.sample(range(40), 6)  # some facts are named by no question: the pooled corpus is smaller
            row = {"id": f"{split}_{number}", "query": say(6), "answer": say(1), "reasoning": [say(4), say(4)]}
            named = {"positive_ids": [f"f{i}" for i in facts[:2]], "negative_ids": [f"f{i}" for i in facts[2:]]}
            rows.append(row | named)
        write(split, rows)
    training = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "lora": {"r": 2}}
    training |= {"explicit_max_length": 40, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True}
    config = {"model": tiny_folder, "max_length": 40, "read_steps": 3, "corpus": "pooled"}
    config["training"] = training
    config["rows"] = [{"system": name} for name in ("bm25", "bm25-reasoning", "zero-shot")]
    config["rows"] += [{"system": name, "seeds": [0, 1]} for name in ("basic", "latent", "gircse")]
    config["rows"] += [{"system": "laser", "seeds": [0, 1], "training": {"learning_rate": 2e-3}}]
    config["rows"] += [{"system": "rewrite", "of": "basic"}, {"system": "explicit", "of": "laser"}]
    config["search"] = {"max_steps": 1, "learning_rate": [1e-3, 2e-3]}
    (folder / "config.json").write_text(json.dumps(config))  # JSON is YAML
    return {"DATA": str(folder), "CONFIG": str(folder / "config.json")}
