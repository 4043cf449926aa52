"""HopWorld: the same world for the same seed, splits that share nothing, hops that follow the facts."""

import json
from collections import Counter
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import laser_lab as ll
from laser_lab.base.kernels import processor_maker
from laser_lab.data.hopworld import PACKAGED, HopWorld, HopWorldConfig
from laser_lab.data.hopworld_lm import (
    answered_in_words,
    pretrain,
    pretrained,
    pretraining_texts,
)
from laser_lab.data.readers import COLUMNS
from laser_lab.weights import BUILT_IN, load_backbone

TINY = dict(entities=6, relations=2, hops=2, dev=4, test=4, layers=1, hidden_size=16, heads=2, pretrain_steps=3)
small_configs = st.builds(
    HopWorldConfig,
    entities=st.integers(4, 12),
    relations=st.integers(2, 4),
    attributes=st.integers(0, 5),
    hops=st.integers(1, 4) | st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True).map(tuple),
    verbosity=st.integers(1, 20),
    dev=st.integers(0, 2),
    test=st.integers(3, 4),
    train_queries=st.none() | st.integers(1, 40),
    seed=st.integers(0, 1000),
)
MIXED = HopWorldConfig(hops=(1, 2, 3, 4))


def test_a_seed_is_a_world():
    first, same, other = (HopWorld(HopWorldConfig(seed=seed)) for seed in (1, 1, 2))
    assert (first.facts, first.documents, first.splits) == (same.facts, same.documents, same.splits)
    assert first.facts != other.facts and first.entities != other.entities


def test_a_world_is_the_same_on_every_machine():
    world = HopWorld()
    assert (len(world.train), len(world.dev), len(world.test)) == (3340, 100, 400)
    assert world.test[0].id == "nelapi-teacher-neighbour-mother"


def test_verbosity_and_model_size_change_neither_facts_nor_splits():
    plain, verbose = HopWorld(), HopWorld(HopWorldConfig(verbosity=5, layers=2, hidden_size=64))
    assert (plain.facts, plain.documents, plain.splits) == (verbose.facts, verbose.documents, verbose.splits)
    assert plain.tokenizer().get_vocab() == verbose.tokenizer().get_vocab()
    assert plain.config.key != verbose.config.key


@settings(max_examples=40, deadline=None)
@given(small_configs)
def test_every_world_keeps_its_promises(config):
    world = HopWorld(config)
    assert [c.depth for c in (*world.dev, *world.test)].count(config.max_hops) == sum(config.held_out[config.max_hops])
    assert (len(world.dev), len(world.test)) == (config.dev, config.test)
    assert len(set(world.entities)) == config.entities
    assert all(e != other for function in world.facts.values() for e, other in function.items())

    tokenizer = world.tokenizer()
    for composition in (*world.test, *world.dev, *world.train[:5]):
        entity = composition.start
        for relation, bridge in zip(composition.relations, composition.bridges, strict=True):
            assert world.facts[relation][entity] == bridge
            entity = bridge
        assert composition.answer == entity
        assert composition.query.split()[::2][: composition.depth] == list(reversed(composition.relations))

        segments = world.reasoning(composition)
        assert [s.split()[-1] for s in segments] == list(composition.bridges)
        encoded = tokenizer(segments)["input_ids"]
        assert [len(ids) for ids in encoded] == [config.verbosity] * composition.depth
        assert tokenizer.unk_token_id not in sum(encoded, tokenizer(composition.query)["input_ids"])

        negatives = world.hard_negatives(composition)
        assert negatives and composition.answer not in negatives
        assert set(negatives) == {composition.start, *composition.bridges} - {composition.answer}


@settings(max_examples=40, deadline=None)
@given(small_configs)
def test_every_composition_has_one_place(config):
    """Held out, known to the language model, or left out because it begins with a held-out one."""
    world = HopWorld(config)
    held_out = [c.id for c in (*world.dev, *world.test)]
    for depth in config.depths:
        left_out = set()
        for start, relations in product(world.entities, product(world.relations, repeat=depth)):
            beginnings = ["-".join((start, *relations[:hops])) for hops in range(1, depth)]
            if set(beginnings) & set(held_out):
                left_out.add("-".join((start, *relations)))
        known = [c.id for c in world.known if c.depth == depth]
        held_out_here = [c.id for c in (*world.dev, *world.test) if c.depth == depth]
        assert not set(known) & (left_out | set(held_out_here))
        # as many as there are, and none twice
        total = config.entities * config.relations**depth
        assert len(known) + len(held_out_here) + len(left_out - set(held_out_here)) == total
        assert len(set(known) | set(held_out_here) | left_out) == total
        trained = [c.id for c in world.train if c.depth == depth]
        assert trained == known[: config.train_queries] and trained
        assert len(held_out_here) == sum(config.held_out[depth])


@settings(max_examples=40, deadline=None)
@given(small_configs)
def test_pretraining_never_sees_a_held_out_composition(config):
    """Not even inside of a longer query: "b of a of x ? think" would spell out how to answer "a of x ? think"."""
    world = HopWorld(config)
    facts, documents, *chains = pretraining_texts(world)
    assert len(chains) == len(config.depths) and sum(map(len, chains)) == len(world.known)
    texts = "\n".join(" " + text for kind in (facts, documents, *chains) for text in kind)
    for composition in (*world.dev, *world.test):
        assert f" {composition.query}" not in texts
    assert all(f" {composition.query}" in texts for composition in world.train)


@settings(max_examples=10, deadline=None)
@given(small_configs)
def test_training_sees_every_depth_equally_often(config):
    world = HopWorld(config)
    data = world.dataset("train")
    rows = Counter(data["depth"])
    most = max(Counter(c.depth for c in world.known).values())
    assert rows == dict.fromkeys(config.depths, config.train_queries or most)
    for depth in config.depths:
        times = Counter(id for id, d in zip(data["id"], data["depth"]) if d == depth)
        assert set(times) == {c.id for c in world.train if c.depth == depth}
        assert max(times.values()) - min(times.values()) <= 1
    again = HopWorld(config)
    assert again.splits == world.splits and again.dataset("train").to_list() == data.to_list()


def test_worlds_of_mixed_depth_hold_out_what_the_plain_ones_do():
    world = HopWorld(MIXED)
    for depth in MIXED.depths:
        alone = HopWorld(HopWorldConfig(hops=depth, dev=20, test=200))
        mine = [c for c in world.test if c.depth == depth]
        assert len(mine) == 100 and mine == alone.test[:100]
    assert {c.query: c.depth for c in world.test} == dict(
        zip(world.dataset("test")["query"], world.dataset("test")["depth"])
    )
    assert world.task("dev").name == "hopworld-1-2-3-4hop-dev" and len(world.task("dev").queries) == 100
    assert HopWorldConfig(hops=(4, 2, 1, 3)) == HopWorldConfig(hops=[1, 2, 3, 4]) == MIXED
    assert HopWorldConfig(hops=(3,)) == HopWorldConfig() and HopWorldConfig(hops=(3,)).key == HopWorldConfig().key
    uneven = HopWorldConfig(hops=(2, 3, 4), dev=4, test=5)
    assert uneven.held_out == {2: (1, 1), 3: (1, 2), 4: (2, 2)}


def test_the_language_model_does_not_depend_on_the_number_of_training_queries():
    plain, few, more = (HopWorld(HopWorldConfig(hops=(1, 2, 3), train_queries=n)) for n in (None, 50, 80))
    assert plain.config.key == few.config.key == more.config.key
    assert pretraining_texts(plain) == pretraining_texts(few)
    assert len(few.train) == 150 and set(few.train) < set(more.train) < set(plain.train)
    assert plain.config.key != HopWorldConfig(hops=(1, 2, 3), dev=99).key


def test_verbose_reasoning_reads_like_a_sentence():
    world = HopWorld(HopWorldConfig(verbosity=5))
    composition = world.test[0]
    assert world.reasoning(composition)[0] == (
        f"{composition.relations[0]} of {composition.start} then {composition.bridges[0]}"
    )


def test_names_are_single_tokens_that_survive_the_round_trip():
    world = HopWorld()
    tokenizer = world.tokenizer()
    for word in (*world.entities, *world.relations):
        ids = tokenizer(word)["input_ids"]
        assert len(ids) == 1 and tokenizer.decode(ids) == word and ids != [tokenizer.unk_token_id]
    text = world.test[0].query
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    padded = tokenizer([text, world.entities[0]], padding=True)["input_ids"]
    assert padded[1][0] == tokenizer.pad_token_id and padded[1][-1] != tokenizer.pad_token_id


def test_dataset_and_task_agree():
    world = HopWorld(HopWorldConfig(**TINY))
    data, task = world.dataset("test"), world.task("test")
    assert set(COLUMNS) | {"answer", "bridges", "depth"} == set(data.column_names)
    assert len(data) == 4 and len(task.corpus) == 6
    for row in data:
        assert task.queries[row["id"]] == row["query"]
        assert task.qrels[row["id"]] == {row["answer"]: 1} == dict.fromkeys(row["positive_ids"], 1)
        assert row["bridges"][-1] == row["answer"] and task.reasoning[row["id"]] == row["reasoning"]
        assert row["positives"] == [task.corpus[row["answer"]]]
        assert row["negatives"] == [task.corpus[i] for i in row["negative_ids"]]
    with pytest.raises(ValueError, match="train, dev, test"):
        world.dataset("validation")


@pytest.mark.parametrize(
    "bad",
    [
        {"entities": 1},
        {"hops": 0},
        {"hops": 2.0},
        {"hops": True},
        {"hops": "3"},
        {"hops": ()},
        {"hops": (2, 2)},
        {"hops": (0, 1)},
        {"hops": (1, True)},
        {"hops": (1, None)},
        {"hops": (1, 33)},
        {"test": 3, "hops": (1, 2, 3, 4)},
        {"hops": (1, 2), "entities": 8, "dev": 0, "test": 64},
        {"hops": (1, 2), "entities": 8, "dev": 0, "test": 52},
        {"train_queries": 0},
        {"train_queries": True},
        {"train_queries": 10.0},
        {"verbosity": 0},
        {"relations": 17},
        {"attributes": -1},
        {"entities": 2, "hops": 1},
        {"hops": 20},
        {"heads": 5},
        {"pretrain_lr": 0.0},
    ],
)
def test_bad_settings_are_stopped_at_the_door(bad):
    with pytest.raises(ValueError, match="|".join(bad)):
        HopWorldConfig(**bad)


def test_pretrained_folder_is_cached_and_loads(tmp_path, monkeypatch):
    monkeypatch.setenv("LASER_LAB_CACHE", str(tmp_path))
    config = HopWorldConfig(**TINY | dict(hops=(1, 2)))
    assert "hopworld" in BUILT_IN
    threads = torch.get_num_threads()
    folder = pretrained(config)
    assert torch.get_num_threads() == threads
    assert folder.parent == tmp_path and (folder / "model.safetensors").exists()
    report = json.loads((folder / "hopworld.json").read_text())
    assert HopWorldConfig(**report["config"]) == config and 0 <= report["chain_of_thought_accuracy"] <= 1
    assert list(report["chain_of_thought_accuracy_by_depth"]) == ["1", "2"]

    written = (folder / "model.safetensors").stat().st_mtime_ns
    fewer = HopWorldConfig(**TINY | dict(hops=(1, 2), train_queries=3))
    assert (
        pretrained(fewer) == pretrained(config) == folder
        and (folder / "model.safetensors").stat().st_mtime_ns == written
    )

    model, world = ll.load(folder, thinking_steps=2, device="cpu"), HopWorld(config)
    query = world.test[0].query
    assert model.encode_query([query]).shape == (1, 16)
    # no instruction is put before the query: this world has no words for it
    assert torch.allclose(*(torch.tensor(f([query])) for f in (model.encode_query, model.encode)))
    backbone = model[0].backbone
    right = answered_in_words(backbone.causal_lm, backbone.tokenizer, world)
    assert sum(right) / len(right) == report["chain_of_thought_accuracy"]


@pytest.mark.parametrize("folder", sorted(PACKAGED.iterdir()), ids=lambda folder: folder.name)
def test_a_packaged_model_is_that_of_its_settings(folder):
    config = HopWorldConfig(**json.loads((folder / "hopworld.json").read_text())["config"])
    assert pretrained(config) == config.folder == folder
    assert load_backbone(folder, device="cpu").hidden_size == config.hidden_size


@pytest.mark.slow
@pytest.mark.skipif(processor_maker() != "GenuineIntel", reason="other processors round otherwise")
def test_a_packaged_model_is_what_pretraining_gives(tmp_path):
    config = HopWorldConfig(layers=1, hidden_size=32)
    pretrain(config, tmp_path)
    for file in config.folder.iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes(), file.name


def test_pretraining_learns_the_chains_it_sees(tmp_path):
    config = HopWorldConfig(
        **TINY | dict(hops=1, dev=1, test=1, layers=2, hidden_size=32, pretrain_steps=150, pretrain_lr=0.01)
    )
    pretrain(config, tmp_path)
    backbone = load_backbone(tmp_path, device="cpu")
    right = answered_in_words(backbone.causal_lm, backbone.tokenizer, HopWorld(config), "train")
    assert sum(right) / len(right) >= 0.8


def test_pretraining_repeats_itself(tmp_path):
    config = HopWorldConfig(**TINY)
    for name in "ab":
        torch.manual_seed(ord(name))  # what the caller did with the global generator does not matter
        pretrain(config, tmp_path / name)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


class Writer:
    """A language model that writes the truth, and `more` entities after it, instead of computing."""

    training, device = False, torch.device("cpu")

    def __init__(self, world, tokenizer, more=0):
        self.tokenizer = tokenizer
        rest = world.config.verbosity * [world.entities[0]] * more
        self.texts = {c.query: " ".join([*world.reasoning(c), *rest, "</s>"]) for c in (*world.train, *world.test)}

    def eval(self):
        pass

    train = lambda self, mode: None  # noqa: E731

    def generate(self, input_ids, attention_mask, max_new_tokens, do_sample, pad_token_id):
        queries = self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        written = [self.tokenizer(self.texts[query])["input_ids"][:max_new_tokens] for query in queries]
        width = max(map(len, written))
        written = torch.tensor([ids + [pad_token_id] * (width - len(ids)) for ids in written])
        return torch.cat([input_ids, written], dim=1)


@pytest.mark.parametrize("verbosity", [1, 3])
def test_an_answer_in_words_is_right_and_stops(verbosity):
    world = HopWorld(HopWorldConfig(**TINY | dict(hops=(1, 2), verbosity=verbosity)))
    tokenizer = world.tokenizer()
    assert answered_in_words(Writer(world, tokenizer), tokenizer, world) == [True] * 4
    went_on = answered_in_words(Writer(world, tokenizer, more=1), tokenizer, world)
    assert went_on == [c.depth == 2 for c in world.test], "there is no room to go on after the deepest"
    liar = Writer(world, tokenizer)
    first = world.test[0]
    wrong = next(entity for entity in world.entities if entity not in first.bridges)
    liar.texts[first.query] = liar.texts[first.query].replace(first.answer, wrong)
    assert answered_in_words(liar, tokenizer, world) == [False, True, True, True]


def test_a_model_that_cannot_compose_is_reported(tmp_path, caplog):
    accuracy = pretrain(HopWorldConfig(**TINY), tmp_path)
    assert accuracy < 0.98 and any(r.levelname == "WARNING" and "%" in r.getMessage() for r in caplog.records)
