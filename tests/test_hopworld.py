"""HopWorld: the same world for the same seed, splits that share nothing, hops that follow the facts."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import laser_lab as ll
from laser_lab.data.hopworld import (
    HopWorld,
    HopWorldConfig,
    chain_of_thought_accuracy,
    pretrain,
    pretrained,
    pretraining_texts,
)
from laser_lab.data.readers import COLUMNS
from laser_lab.weights import BUILT_IN, load_backbone

TINY = dict(entities=6, relations=2, hops=2, dev=4, test=4, layers=1, hidden_size=16, heads=2, pretrain_steps=3)
small_configs = st.builds(
    HopWorldConfig,
    entities=st.integers(2, 12),
    relations=st.integers(2, 4),
    attributes=st.integers(0, 5),
    hops=st.integers(1, 4),
    verbosity=st.integers(1, 20),
    dev=st.just(1),
    test=st.integers(1, 2),
    seed=st.integers(0, 1000),
)


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
    ids = {split: {c.id for c in compositions} for split, compositions in world.splits.items()}
    # disjoint and complete
    assert sum(map(len, ids.values())) == len(set().union(*ids.values())) == config.compositions
    assert len(set(world.entities)) == config.entities
    assert all(e != other for function in world.facts.values() for e, other in function.items())

    tokenizer = world.tokenizer()
    for composition in (*world.test, *world.dev, *world.train[:5]):
        entity = composition.start
        for relation, bridge in zip(composition.relations, composition.bridges, strict=True):
            assert world.facts[relation][entity] == bridge
            entity = bridge
        assert composition.answer == entity
        assert composition.query.split()[::2][: config.hops] == list(reversed(composition.relations))

        segments = world.reasoning(composition)
        assert [s.split()[-1] for s in segments] == list(composition.bridges)
        encoded = tokenizer(segments)["input_ids"]
        assert [len(ids) for ids in encoded] == [config.verbosity] * config.hops
        assert tokenizer.unk_token_id not in sum(encoded, tokenizer(composition.query)["input_ids"])

        negatives = world.hard_negatives(composition)
        assert negatives and composition.answer not in negatives
        assert set(negatives) == {composition.start, *composition.bridges} - {composition.answer}


def test_pretraining_never_sees_a_held_out_composition():
    world = HopWorld(HopWorldConfig(entities=8, dev=20, test=100))
    facts, documents, chains = pretraining_texts(world)
    assert len(chains) == len(world.train)
    for composition in (*world.dev, *world.test):
        assert not any(composition.query in text for text in (*facts, *documents, *chains))


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
    assert set(COLUMNS) | {"answer", "bridges"} == set(data.column_names)
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
    config = HopWorldConfig(**TINY)
    assert "hopworld" in BUILT_IN
    threads = torch.get_num_threads()
    folder = pretrained(config)
    assert torch.get_num_threads() == threads
    assert folder.parent == tmp_path and (folder / "model.safetensors").exists()
    report = json.loads((folder / "hopworld.json").read_text())
    assert HopWorldConfig(**report["config"]) == config and 0 <= report["chain_of_thought_accuracy"] <= 1

    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert pretrained(config) == folder and (folder / "model.safetensors").stat().st_mtime_ns == written

    model, world = ll.load(folder, thinking_steps=2, device="cpu"), HopWorld(config)
    query = world.test[0].query
    assert model.encode_query([query]).shape == (1, 16)
    # no instruction is put before the query: this world has no words for it
    assert torch.allclose(*(torch.tensor(f([query])) for f in (model.encode_query, model.encode)))
    backbone = model[0].backbone
    again = chain_of_thought_accuracy(backbone.causal_lm, backbone.tokenizer, world)
    assert again == report["chain_of_thought_accuracy"]


def test_pretraining_learns_the_chains_it_sees(tmp_path):
    config = HopWorldConfig(
        **TINY | dict(hops=1, dev=1, test=1, layers=2, hidden_size=32, pretrain_steps=150, pretrain_lr=0.01)
    )
    pretrain(config, tmp_path)
    backbone = load_backbone(tmp_path, device="cpu")
    assert chain_of_thought_accuracy(backbone.causal_lm, backbone.tokenizer, HopWorld(config), "train") >= 0.8


def test_pretraining_repeats_itself(tmp_path):
    config = HopWorldConfig(**TINY)
    for name in "ab":
        torch.manual_seed(ord(name))  # what the caller did with the global generator does not matter
        pretrain(config, tmp_path / name)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_a_model_that_cannot_compose_is_reported(tmp_path, caplog):
    accuracy = pretrain(HopWorldConfig(**TINY), tmp_path)
    assert accuracy < 0.98 and any(r.levelname == "WARNING" and "%" in r.getMessage() for r in caplog.records)
