"""HopWorld: a small world whose queries need a known number of reasoning steps.

A query composes relations (functions from entity to entity): "teacher of mother of mirolo" needs mirolo's mother first.
All hops are known, so thoughts can be checked. :mod:`laser_lab.data.hopworld_lm` pretrains the world's language model.
"""

import hashlib
import json
import random
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from datasets import Dataset, Value
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from laser_lab.base.files import cache_dir
from laser_lab.base.inputs import check_count
from laser_lab.data.readers import RetrievalTask, features

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

LEAST = {"entities": 2, "attributes": 0, "dev": 0, "train_queries": 1, "seed": 0, "hidden_size": 2, "pretrain_batch": 4}
"""The least of a setting that is a number; else 1."""
MOST = {"entities": 100_000, "relations": len(RELATIONS), "attributes": len(ATTRIBUTES), "hops": 32, "verbosity": 64}
MAX_COMPOSITIONS = 1_000_000
RECIPE = 3
"""Part of the model's key: raise it when equal settings would give another model."""

PACKAGED = Path(__file__).with_name("hopworld_models")
"""The models of the notebooks' worlds, as ``pretrain`` made them on an Intel Xeon."""


@dataclass(frozen=True)
class HopWorldConfig:
    """A world and its language model. ValueError: a setting out of range, or a depth has nothing left to train on.

    Names and facts depend only on `seed` and on their own numbers, so `verbosity`, `hops` and the model can be varied
    alone. What a depth holds out is the beginning of what the world of that depth alone holds out.
    """

    entities: int = 60
    relations: int = 4
    attributes: int = 4
    """attribute words in each document"""
    hops: int | tuple[int, ...] = 3
    """relations in a query: one number, or several depths (kept ascending)"""
    verbosity: int = 1
    """tokens of reasoning per hop; 1: the bridge entity alone, for 5, "mother of mirolo then" stands before it"""
    dev: int = 100
    """held-out compositions to tune on, shared equally by the depths; the remainder goes to the deepest"""
    test: int = 400
    """held-out compositions to report, shared like `dev`"""
    train_queries: int | None = None
    """training rows per depth (:meth:`HopWorld.dataset`); None: as many as the largest depth has. Depths with fewer
    compositions repeat them. The language model does not depend on it."""
    seed: int = 0
    layers: int = 3
    hidden_size: int = 96
    heads: int = 4
    pretrain_steps: int = 2500
    pretrain_batch: int = 64
    pretrain_lr: float = 3e-3

    def __post_init__(self) -> None:
        object.__setattr__(self, "hops", _ordered(self.hops))
        for name, value in asdict(self).items():
            if name not in ("hops", "pretrain_lr") and (name, value) != ("train_queries", None):
                _check_setting(name, value)
        if self.test < len(self.depths):
            raise ValueError(f"test must hold one composition of each depth, got {self.test}")
        if not 0 < self.pretrain_lr < 1:
            raise ValueError(f"pretrain_lr must be between 0 and 1, got {self.pretrain_lr!r}")
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size must be an even multiple of heads={self.heads}, got {self.hidden_size}")
        if self.compositions > MAX_COMPOSITIONS:
            raise ValueError(
                f"{self.compositions:,} compositions (entities * relations ** hops) are more than {MAX_COMPOSITIONS:,}"
            )
        self._check_that_training_queries_remain()

    def _check_that_training_queries_remain(self) -> None:
        excluded, shallower = 0, 0
        for depth, held_out in self.held_out.items():
            # what extends a held-out composition is excluded with it
            excluded = excluded * self.relations ** (depth - shallower) + sum(held_out)
            shallower, available = depth, self.entities * self.relations**depth
            if excluded >= available:
                raise ValueError(
                    f"dev={self.dev} and test={self.test} leave nothing to train on at hops={depth}: of entities * "
                    f"relations ** hops = {available} compositions, they and their extensions can take {excluded}"
                )

    @property
    def depths(self) -> tuple[int, ...]:
        """Hops, ascending."""
        return (self.hops,) if isinstance(self.hops, int) else self.hops

    @property
    def max_hops(self) -> int:
        """Of the deepest queries."""
        return self.depths[-1]

    @property
    def held_out(self) -> dict[int, tuple[int, int]]:
        """Depth to its numbers of dev and test compositions."""
        count = len(self.depths)
        return {depth: ((self.dev + i) // count, (self.test + i) // count) for i, depth in enumerate(self.depths)}

    @property
    def compositions(self) -> int:
        """All queries there are: entities * relations ** hops, summed over the depths."""
        return sum(self.entities * self.relations**depth for depth in self.depths)

    @property
    def model_settings(self) -> dict[str, Any]:
        """All settings that the language model depends on."""
        return {name: value for name, value in asdict(self).items() if name != "train_queries"}

    @property
    def key(self) -> str:
        """A short hash of the model's settings: its name in the cache."""
        text = json.dumps({**self.model_settings, "recipe": RECIPE}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        """Where this world's model lies (:func:`laser_lab.data.hopworld_lm.pretrained`): in the package, if it comes
        with it, else in the cache."""
        name = f"hopworld-{self.key}"
        return PACKAGED / name if (PACKAGED / name).exists() else cache_dir() / name

    @property
    def max_positions(self) -> int:
        """Room for a query, its reasoning and as many thoughts again."""
        return max(256, 2 * (2 * self.max_hops + 3 + self.max_hops * self.verbosity))


def _check_setting(name: str, value: Any) -> None:
    check_count(name, value, LEAST.get(name, 1))
    if value > MOST.get(name, value):
        raise ValueError(f"{name} must be at most {MOST[name]}, got {value}")


def _ordered(hops: int | tuple[int, ...] | list[int]) -> int | tuple[int, ...]:
    """One number as it is, several (JSON gives a list) as an ascending tuple."""
    depths = hops if isinstance(hops, (tuple, list)) else (hops,)
    for depth in depths:
        _check_setting("hops", depth)
    if not depths or len(set(depths)) < len(depths):
        raise ValueError(f"hops must be a number or a tuple of different ones, at least one, got {hops!r}")
    return tuple(sorted(depths)) if len(depths) > 1 else depths[0]


@dataclass(frozen=True, slots=True)
class Composition:
    """A start entity and the relations to follow from it."""

    start: str
    relations: tuple[str, ...]
    """in order of thinking; the query names them in reverse"""
    bridges: tuple[str, ...]
    """the entity after each hop; the last is the answer"""

    @property
    def id(self) -> str:
        return "-".join((self.start, *self.relations))

    @property
    def query(self) -> str:
        """``"teacher of mother of mirolo ? think"``"""
        return f"{' of '.join((*reversed(self.relations), self.start))} ? think"

    @property
    def answer(self) -> str:
        return self.bridges[-1]

    @property
    def depth(self) -> int:
        """The number of hops."""
        return len(self.relations)

    @property
    def beginnings(self) -> list[tuple[str, ...]]:
        """The start with its first relation, with its first two, ..., with all of them."""
        return [(self.start, *self.relations[:hops]) for hops in range(1, self.depth + 1)]


class HopWorld:
    """The world of a configuration; equal on every machine."""

    config: HopWorldConfig
    entities: list[str]
    """names; each is one token"""
    relations: list[str]
    facts: dict[str, dict[str, str]]
    """relation to {entity: entity}; no entity maps to itself"""
    documents: dict[str, str]
    """entity (the document's id) to name and attributes"""
    splits: dict[str, list[Composition]]
    """disjoint ``train``, ``dev`` and ``test``, each in ascending depth"""
    known: list[Composition]
    """compositions that the language model reads: neither held out nor an extension of a held-out one. ``train`` is the
    first `train_queries` of each depth"""

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

        self.known, self.train, self.dev, self.test = [], [], [], []
        self.splits = {"train": self.train, "dev": self.dev, "test": self.test}
        held_out: set[tuple[str, ...]] = set()
        for depth, (dev, test) in config.held_out.items():
            starts = product(self.entities, product(self.relations, repeat=depth))
            everything = [self.compose(start, relations) for start, relations in starts]
            self._random("splits").shuffle(everything)
            self.test += everything[:test]
            self.dev += everything[test : test + dev]
            held_out.update((c.start, *c.relations) for c in everything[: test + dev])
            known = [c for c in everything[test + dev :] if not held_out.intersection(c.beginnings)]
            self.known += known
            self.train += known[: config.train_queries]

    def _random(self, purpose: str) -> random.Random:
        return random.Random(f"hopworld {self.config.seed} {purpose}")

    def compose(self, start: str, relations: tuple[str, ...]) -> Composition:
        """Follow any number of `relations` from `start`."""
        bridges, entity = [], start
        for relation in relations:
            entity = self.facts[relation][entity]
            bridges.append(entity)
        return Composition(start, tuple(relations), tuple(bridges))

    def reasoning(self, composition: Composition) -> list[str]:
        """A segment of `verbosity` tokens per hop: the end of "... see and so the mother of mirolo then", and the
        bridge."""
        segments, entity, room = [], composition.start, self.config.verbosity - 1
        for relation, bridge in zip(composition.relations, composition.bridges):
            words = [*FILLERS * (room // len(FILLERS) + 1), relation, "of", entity, "then"]
            segments.append(" ".join([*words[len(words) - room :], bridge]))
            entity = bridge
        return segments

    def hard_negatives(self, composition: Composition) -> list[str]:
        """The entities on the path but the answer, in a seeded order."""
        path = dict.fromkeys((composition.start, *composition.bridges))
        path.pop(composition.answer)
        return self._random(f"negatives {composition.id}").sample(list(path), len(path))

    def dataset(self, split: str = "train") -> Dataset:
        """A split in the schema :data:`laser_lab.data.readers.COLUMNS`, plus ``answer`` (document id), ``bridges`` and
        ``depth``. In training, depths with fewer compositions repeat them, so that all have equally many rows.
        ValueError: no such split."""
        schema = features()
        schema.update(answer=Value("string"), bridges=schema["negatives"], depth=Value("int64"))
        compositions = self._balanced() if split == "train" else self.compositions(split)
        return Dataset.from_list([self._row(c) for c in compositions], features=schema)

    def _row(self, composition: Composition) -> dict[str, Any]:
        negatives = self.hard_negatives(composition)
        return {
            "id": composition.id,
            "query": composition.query,
            "reasoning": self.reasoning(composition),
            "positives": [self.documents[composition.answer]],
            "negatives": [self.documents[entity] for entity in negatives],
            "positive_ids": [composition.answer],
            "negative_ids": negatives,
            "answer": composition.answer,
            "bridges": list(composition.bridges),
            "depth": composition.depth,
        }

    def task(self, split: str = "test") -> RetrievalTask:
        """A split to rank all documents for; one is relevant to each query. ValueError: no such split."""
        compositions = self.compositions(split)
        return RetrievalTask(
            name=f"hopworld-{'-'.join(map(str, self.config.depths))}hop-{split}",
            queries={c.id: c.query for c in compositions},
            corpus=dict(self.documents),
            qrels={c.id: {c.answer: 1} for c in compositions},
            reasoning={c.id: self.reasoning(c) for c in compositions},
        )

    def _balanced(self) -> list[Composition]:
        """The training compositions, repeated where a depth has fewer."""
        groups = [[c for c in self.train if c.depth == depth] for depth in self.config.depths]
        count = self.config.train_queries or max(map(len, groups))
        return [group[i % len(group)] for group in groups for i in range(count)]

    def compositions(self, split: str) -> list[Composition]:
        """Those of a split. ValueError: no such split."""
        if split not in self.splits:
            raise ValueError(f"split must be one of {', '.join(self.splits)}, got {split!r}")
        return self.splits[split]

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """One token per word; pads on the left and adds no special tokens."""
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
            model_max_length=self.config.max_positions,
            **SPECIAL,
        )


def _names(count: int, rng: random.Random) -> list[str]:
    """`count` different pronounceable words outside the language."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    taken = {*GRAMMAR, *FILLERS, *RELATIONS, *ATTRIBUTES}
    names: dict[str, None] = {}
    while len(names) < count:
        name = "".join(rng.choices(syllables, k=3))
        if name not in taken:
            names[name] = None
    return list(names)
