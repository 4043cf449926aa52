"""HopWorld: a small world whose queries need a known number of reasoning steps, and a language model raised in it.

Entities, relations (each a function from entity to entity) and queries that compose them: to find the document of the
"teacher of mother of mirolo" one must find mirolo's mother first. Every hop, its ground truth and who may know what
when are known, so depth, verbosity and held-out composition can be set and thoughts can be checked (METHOD 5).
This file knows nothing of thinking or retrieval; the only model in it is the backbone it pretrains.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from laser_lab.base.files import cache_dir, cached_build

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from laser_lab.data.readers import RetrievalTask

logger = logging.getLogger(__name__)

RELATIONS = (
    "mother teacher employer neighbour doctor landlord rival mentor cousin partner captain lawyer sponsor tailor guide "
    "barber"
).split()
ATTRIBUTES = (
    "amber ancient bitter blunt brave brisk calm clever crimson curious dusty eager early fancy fierce formal gentle "
    "giddy golden grumpy hidden honest humble icy jolly lively lonely loud lucky modest narrow noble patient polite "
    "proud quiet rapid rustic silent silver sleepy stern subtle tidy violet wicked witty young"
).split()
FILLERS = "well now let me see and so the".split()
SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
GRAMMAR = ["of", "?", "think", "then", "is"]

MAX_ENTITIES = 100_000
MAX_COMPOSITIONS = 1_000_000
RECIPE = 3
"""Part of the cache key: raise it when the same configuration would give another model."""


@dataclass(frozen=True)
class HopWorldConfig:
    """A world and its language model. The names, facts and held-out compositions depend on `seed` and on the sizes of
    what they consist of, never on `verbosity` or the model, so that these can be varied alone.

    Raises:
        ValueError: A setting out of its range, or more held-out compositions than leave one to train on.
    """

    entities: int = 60
    relations: int = 4
    attributes: int = 4
    """attribute words in each document"""
    hops: int = 3
    verbosity: int = 1
    """tokens of reasoning per hop; 1 is the bridge entity alone, 5 is "mother of mirolo then tadeko" """
    dev: int = 100
    """held-out compositions to tune on"""
    test: int = 400
    """held-out compositions to report"""
    seed: int = 0
    layers: int = 3
    hidden_size: int = 96
    heads: int = 4
    pretrain_steps: int = 2500
    pretrain_batch: int = 64
    pretrain_lr: float = 3e-3

    def __post_init__(self) -> None:
        ranges = {
            "entities": (2, MAX_ENTITIES),
            "relations": (1, len(RELATIONS)),
            "attributes": (0, len(ATTRIBUTES)),
            "hops": (1, 32),
            "verbosity": (1, 64),
            "dev": (0, None),
            "test": (1, None),
            "seed": (0, None),
            "layers": (1, None),
            "hidden_size": (2, None),
            "heads": (1, None),
            "pretrain_steps": (1, None),
            "pretrain_batch": (4, None),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low or (high and value > high):
                expected = f"an integer from {low} to {high}" if high else f"an integer of at least {low}"
                raise ValueError(f"{name} must be {expected}, got {value!r}")
        if not 0 < self.pretrain_lr < 1:
            raise ValueError(f"pretrain_lr must be between 0 and 1, got {self.pretrain_lr!r}")
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size must be an even multiple of heads={self.heads}, got {self.hidden_size}")
        if self.compositions > MAX_COMPOSITIONS:
            raise ValueError(
                f"{self.compositions:,} compositions (entities * relations ** hops) are more than {MAX_COMPOSITIONS:,}"
            )
        if self.dev + self.test >= self.compositions:
            raise ValueError(
                f"dev={self.dev} and test={self.test} leave nothing to train on: entities * relations ** hops gives "
                f"{self.compositions} compositions"
            )

    @property
    def compositions(self) -> int:
        """All queries there are: entities * relations ** hops."""
        return self.entities * self.relations**self.hops

    @property
    def key(self) -> str:
        """A short hash of all settings: the name of this world's model in the cache."""
        text = json.dumps({**asdict(self), "recipe": RECIPE}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        """Where this world's model is, or will be (:func:`pretrained`)."""
        return cache_dir() / f"hopworld-{self.key}"


@dataclass(frozen=True, slots=True)
class Composition:
    """A start entity and the relations to follow from it."""

    start: str
    relations: tuple[str, ...]
    """in order of thinking; the query names them the other way round"""
    bridges: tuple[str, ...]
    """the entity after each hop; the last one is the answer"""

    @property
    def id(self) -> str:
        return "-".join((self.start, *self.relations))

    @property
    def query(self) -> str:
        """``"teacher of mother of mirolo ? think"``: the relation named last is applied first."""
        return f"{' of '.join((*reversed(self.relations), self.start))} ? think"

    @property
    def answer(self) -> str:
        return self.bridges[-1]


class HopWorld:
    """The world that a configuration describes; the same configuration gives the same world on every machine."""

    config: HopWorldConfig
    entities: list[str]
    """names; each is one token"""
    relations: list[str]
    facts: dict[str, dict[str, str]]
    """relation to {entity: entity}; nobody is related to themselves, so every hop leads away"""
    documents: dict[str, str]
    """entity (the document's id) to its name and attributes"""
    splits: dict[str, list[Composition]]
    """``train``, ``dev``, ``test``: together every composition once"""

    def __init__(self, config: HopWorldConfig | None = None) -> None:
        self.config = config = config or HopWorldConfig()
        self.entities = _names(config.entities, self._random("names"))
        self.relations = RELATIONS[: config.relations]
        self.facts = {}
        for relation in self.relations:
            # One stream per relation: a world with more of them keeps the facts of the smaller one.
            rng = self._random(f"facts {relation}")
            others = [rng.randrange(config.entities - 1) for _ in self.entities]
            self.facts[relation] = {
                entity: self.entities[other + (other >= i)]
                for i, (entity, other) in enumerate(zip(self.entities, others))
            }
        rng = self._random("attributes")
        self.documents = {e: " ".join([e, *rng.sample(ATTRIBUTES, config.attributes)]) for e in self.entities}

        everything = [
            self.compose(start, relations)
            for start, relations in product(self.entities, product(self.relations, repeat=config.hops))
        ]
        self._random("splits").shuffle(everything)
        dev, test = config.dev, config.test
        self.splits = {
            "train": everything[dev + test :],
            "dev": everything[test : test + dev],
            "test": everything[:test],
        }

    def _random(self, purpose: str) -> random.Random:
        return random.Random(f"hopworld {self.config.seed} {purpose}")

    @property
    def train(self) -> list[Composition]:
        return self.splits["train"]

    @property
    def dev(self) -> list[Composition]:
        return self.splits["dev"]

    @property
    def test(self) -> list[Composition]:
        return self.splits["test"]

    def compose(self, start: str, relations: tuple[str, ...]) -> Composition:
        """Follow `relations`, in this order, from `start`; any number of them."""
        bridges, entity = [], start
        for relation in relations:
            entity = self.facts[relation][entity]
            bridges.append(entity)
        return Composition(start, tuple(relations), tuple(bridges))

    def reasoning(self, composition: Composition) -> list[str]:
        """One segment per hop, each of `verbosity` tokens of which the last is the bridge entity.

        The words before it are the end of "... see and so the mother of mirolo then", as many as there is room for.
        """
        segments, entity, room = [], composition.start, self.config.verbosity - 1
        for relation, bridge in zip(composition.relations, composition.bridges):
            words = [*FILLERS * (room // len(FILLERS) + 1), relation, "of", entity, "then"]
            segments.append(" ".join([*words[len(words) - room :], bridge]))
            entity = bridge
        return segments

    def hard_negatives(self, composition: Composition) -> list[str]:
        """The entities on the path, start included, that are not the answer; at least one, in a seeded order."""
        path = dict.fromkeys((composition.start, *composition.bridges))
        path.pop(composition.answer)
        return self._random(f"negatives {composition.id}").sample(list(path), len(path))

    def dataset(self, split: str = "train") -> Dataset:
        """A split in the training schema (:data:`laser_lab.data.readers.COLUMNS`), plus ``answer`` (document id) and
        ``bridges`` (entity after each hop).

        Raises:
            ValueError: No such split.
        """
        from datasets import Dataset, Value

        from laser_lab.data.readers import features

        rows = []
        for composition in self._split(split):
            negatives = self.hard_negatives(composition)
            rows.append(
                {
                    "id": composition.id,
                    "query": composition.query,
                    "reasoning": self.reasoning(composition),
                    "positives": [self.documents[composition.answer]],
                    "negatives": [self.documents[entity] for entity in negatives],
                    "positive_ids": [composition.answer],
                    "negative_ids": negatives,
                    "answer": composition.answer,
                    "bridges": list(composition.bridges),
                }
            )
        schema = features()
        schema["answer"], schema["bridges"] = Value("string"), schema["negatives"]
        return Dataset.from_list(rows, features=schema)

    def task(self, split: str = "test") -> RetrievalTask:
        """A split as queries to rank all documents for; exactly one document is relevant.

        Raises:
            ValueError: No such split.
        """
        from laser_lab.data.readers import RetrievalTask

        compositions = self._split(split)
        return RetrievalTask(
            name=f"hopworld-{self.config.hops}hop-{split}",
            queries={c.id: c.query for c in compositions},
            corpus=dict(self.documents),
            qrels={c.id: {c.answer: 1} for c in compositions},
            reasoning={c.id: self.reasoning(c) for c in compositions},
        )

    def _split(self, split: str) -> list[Composition]:
        if split not in self.splits:
            raise ValueError(f"split must be one of {', '.join(self.splits)}, got {split!r}")
        return self.splits[split]

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """One token per word, split at white space; pads on the left and adds no special tokens by itself."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        # All words of the language, used here or not: worlds that differ in verbosity share their token ids.
        words = [*SPECIAL.values(), *GRAMMAR, *FILLERS, *RELATIONS, *ATTRIBUTES, *self.entities]
        tokenizer = Tokenizer(
            models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=SPECIAL["unk_token"])
        )
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            padding_side="left",
            truncation_side="right",
            clean_up_tokenization_spaces=False,
            model_max_length=_max_positions(self.config),
            **SPECIAL,
        )


def _names(count: int, rng: random.Random) -> list[str]:
    """`count` different pronounceable words, none of them a word of the language."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    taken = {*GRAMMAR, *FILLERS, *RELATIONS, *ATTRIBUTES}
    names: dict[str, None] = {}
    while len(names) < count:
        name = "".join(rng.choices(syllables, k=3))
        if name not in taken:
            names[name] = None
    return list(names)


def _max_positions(config: HopWorldConfig) -> int:
    """Room for a query, its reasoning and as many thoughts again; rotary positions cost no weights."""
    return max(256, 2 * (2 * config.hops + 3 + config.hops * config.verbosity))


# -- the language model raised in it -------------------------------------------------------------------------------


def pretrained(config: HopWorldConfig | None = None) -> Path:
    """Folder of the world's language model (safetensors, tokenizer, ``hopworld.json``), pretrained on first use and
    kept in the cache under a hash of the configuration. :func:`laser_lab.load` reads it."""
    config = config or HopWorldConfig()
    return cached_build(config.folder, lambda folder: pretrain(config, folder))


def pretrain(config: HopWorldConfig, folder: str | Path) -> float:
    """Train a small Qwen3 from scratch on the facts, the documents and the chains of thought of the *training*
    compositions, and save it to `folder` with its tokenizer and ``hopworld.json`` (settings, accuracy).

    Returns:
        Chain-of-thought accuracy on the held-out test compositions, from 0 to 1; below 0.98 it is logged as a warning,
        for a model that cannot compose in words says nothing about composing silently.
    """
    from tqdm.auto import trange
    from transformers import Qwen3Config, Qwen3ForCausalLM, get_cosine_schedule_with_warmup

    world = HopWorld(config)
    tokenizer = world.tokenizer()
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=config.hidden_size,
                intermediate_size=3 * config.hidden_size,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                head_dim=config.hidden_size // config.heads,
                max_position_embeddings=_max_positions(config),
                tie_word_embeddings=True,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
    texts = pretraining_texts(world)
    table = _table([text for kind in texts for text in kind], tokenizer)
    # Half of every batch are chains of thought: they are the many and the hard ones.
    weights = torch.cat([torch.full((len(kind),), share / len(kind)) for kind, share in zip(texts, (0.25, 0.25, 0.5))])
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.pretrain_lr, betas=(0.9, 0.98), fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(100, config.pretrain_steps // 10), config.pretrain_steps)
    model.train()
    threads = torch.get_num_threads()
    # One thread: the matrices are too small to share, and threads that wait for each other on a busy machine cost
    # an order of magnitude.
    torch.set_num_threads(1)
    try:
        steps = trange(config.pretrain_steps, desc="Pretraining HopWorld (once)", unit="step", mininterval=1)
        for step in steps:
            ids = table[torch.multinomial(weights, config.pretrain_batch, replacement=True, generator=generator)]
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if step % 50 == 0:
                steps.set_postfix(loss=f"{loss.item():.3f}")
    finally:
        torch.set_num_threads(threads)
    accuracy = chain_of_thought_accuracy(model, tokenizer, world)
    (logger.warning if accuracy < 0.98 else logger.info)(
        "HopWorld's language model answers %.1f %% of the held-out compositions by chain of thought", 100 * accuracy
    )
    folder = Path(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # The language of this world has no words for an instruction, so its queries carry no prompt.
    prompts = {"prompts": {"query": "", "document": ""}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    report = {"config": asdict(config), "chain_of_thought_accuracy": accuracy}
    (folder / "hopworld.json").write_text(json.dumps(report, indent=2))
    return accuracy


def pretraining_texts(world: HopWorld) -> tuple[list[str], list[str], list[str]]:
    """Facts, documents and chains of thought, the last of training compositions only."""
    facts = [f"{r} of {e} is {other}" for r, function in world.facts.items() for e, other in function.items()]
    chains = [" ".join([c.query, *world.reasoning(c)]) for c in world.train]
    return facts, list(world.documents.values()), chains


def _table(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """(texts, T) token ids, each text closed by eos, four times and then up to the width of the longest.

    What is said stays said: a model that thinks past the end of a text goes on saying eos. Trained on one eos alone it
    would be asked, in every document's later thoughts, about a place it has never seen.
    """
    texts = [text + 4 * f" {tokenizer.eos_token}" for text in texts]
    encoded = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    return encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, tokenizer.eos_token_id)


@torch.inference_mode()
def chain_of_thought_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: HopWorld, split: str = "test"
) -> float:
    """The share of a split's queries, from 0 to 1, for which greedy reasoning in words gets every bridge right."""
    compositions = world._split(split)
    verbosity = world.config.verbosity
    training = model.training
    model.eval()
    right = 0
    for start in range(0, len(compositions), 200):
        batch = compositions[start : start + 200]
        inputs = tokenizer([c.query for c in batch], padding=True, return_tensors="pt", return_token_type_ids=False)
        length = inputs["input_ids"].shape[1]
        output = model.generate(
            **inputs.to(model.device),
            max_new_tokens=world.config.hops * verbosity,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )[:, length:]
        said = output[:, verbosity - 1 :: verbosity].tolist()
        right += sum(tokenizer.convert_ids_to_tokens(ids) == list(c.bridges) for ids, c in zip(said, batch))
    model.train(training)
    return right / len(compositions)
