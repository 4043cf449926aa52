"""The language model of a HopWorld: pretrained from scratch on its facts, documents and chains of thought."""

import json
import logging
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import trange
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
    get_cosine_schedule_with_warmup,
)

from laser_lab.base.files import cached_build
from laser_lab.data.hopworld import HopWorld, HopWorldConfig

logger = logging.getLogger(__name__)


def pretrained(config: HopWorldConfig | None = None) -> Path:
    """Folder of the world's language model. Those of the notebooks' worlds come with the package; others are pretrained
    on first use and cached by a hash of the settings."""
    config = config or HopWorldConfig()
    return cached_build(config.folder, lambda folder: pretrain(config, folder))


def pretrain(config: HopWorldConfig, folder: str | Path) -> float:
    """Train a small Qwen3 on the world's facts, documents and known chains of thought; save it, its tokenizer and
    ``hopworld.json`` (settings, accuracy) to `folder`.

    Returns:
        Chain-of-thought accuracy on the test compositions, from 0 to 1. Below 0.98 a warning is logged: a model that
        cannot compose in words says nothing about silent composition.
    """
    world = HopWorld(config)
    tokenizer = world.tokenizer()
    generator = torch.Generator().manual_seed(config.seed)
    model = _untrained(config, tokenizer)
    texts = pretraining_texts(world)
    table = _table([text for kind in texts for text in kind], tokenizer)
    # Half of every batch are chains of thought, equally many of each depth: they are the many and the hard ones.
    depths = len(config.depths)
    shares = (0.25, 0.25, *[0.5 / depths] * depths)
    weights = torch.cat([torch.full((len(kind),), share / len(kind)) for kind, share in zip(texts, shares)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.pretrain_lr, betas=(0.9, 0.98), fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(100, config.pretrain_steps // 10), config.pretrain_steps)
    model.train()
    threads = torch.get_num_threads()
    # The matrices are too small to share: on a busy machine, threads that wait for each other take ten times as long.
    torch.set_num_threads(1)
    try:
        steps = trange(config.pretrain_steps, desc="Pretraining HopWorld (once)", unit="step", mininterval=1)
        for step in steps:
            ids = table[torch.multinomial(weights, config.pretrain_batch, replacement=True, generator=generator)]
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
            loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if step % 50 == 0:
                steps.set_postfix(loss=f"{loss.item():.3f}")
    finally:
        torch.set_num_threads(threads)
    right = answered_in_words(model, tokenizer, world)
    accuracy = sum(right) / len(right)
    (logger.warning if accuracy < 0.98 else logger.info)(
        "HopWorld's language model answers %.1f %% of the held-out compositions by chain of thought", 100 * accuracy
    )
    by_depth = {depth: [ok for ok, c in zip(right, world.test) if c.depth == depth] for depth in config.depths}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # The language of this world has no words for an instruction, so its queries carry no prompt.
    prompts = {"prompts": {"query": "", "document": ""}}
    Path(folder, "config_sentence_transformers.json").write_text(json.dumps(prompts))
    report = {
        "config": config.model_settings,
        "chain_of_thought_accuracy": accuracy,
        "chain_of_thought_accuracy_by_depth": {depth: sum(ok) / len(ok) for depth, ok in by_depth.items()},
    }
    Path(folder, "hopworld.json").write_text(json.dumps(report, indent=2))
    return accuracy


def _untrained(config: HopWorldConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    settings = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=3 * config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        head_dim=config.hidden_size // config.heads,
        max_position_embeddings=config.max_positions,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Qwen3ForCausalLM(settings)


def pretraining_texts(world: HopWorld) -> list[list[str]]:
    """Facts, documents and, per depth, the chains of thought of the known compositions."""
    facts = [f"{r} of {e} is {other}" for r, function in world.facts.items() for e, other in function.items()]
    chains: dict[int, list[str]] = {depth: [] for depth in world.config.depths}
    for composition in world.known:
        chains[composition.depth].append(" ".join([composition.query, *world.reasoning(composition)]))
    return [facts, list(world.documents.values()), *chains.values()]


def _table(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """(texts, T) token ids, padded with at least four eos, so that later thoughts about a short text stand at positions
    that were trained."""
    texts = [text + 4 * f" {tokenizer.eos_token}" for text in texts]
    encoded = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    return encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, tokenizer.eos_token_id)


@torch.inference_mode()
def answered_in_words(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: HopWorld, split: str = "test"
) -> list[bool]:
    """Whether greedy reasoning in words names every bridge of each query and stops after the last one."""
    compositions = world.splits[split]
    verbosity, ends = world.config.verbosity, {tokenizer.eos_token, tokenizer.pad_token}
    training = model.training
    model.eval()
    right = []
    for start in range(0, len(compositions), 200):
        batch = compositions[start : start + 200]
        inputs = tokenizer([c.query for c in batch], padding=True, return_tensors="pt", return_token_type_ids=False)
        length = inputs["input_ids"].shape[1]
        output = model.generate(
            **inputs.to(model.device),
            max_new_tokens=world.config.max_hops * verbosity,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )[:, length:]
        for ids, composition in zip(output[:, verbosity - 1 :: verbosity].tolist(), batch):
            named = [token for token in tokenizer.convert_ids_to_tokens(ids) if token not in ends]
            right.append(named == list(composition.bridges))
    model.train(training)
    return right
