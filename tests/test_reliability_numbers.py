"""Rule 2: a number that comes out is right, or an error says at the door what to change."""

import json
import pickle
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import tiny_model, tiny_tokenizer
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_training import FAST, load, rows
from test_training import interrupted as cut

import laser_lab as ll
from laser_lab.base.numbers import NotFinite
from laser_lab.data.readers import BadRows, RetrievalTask, features, read_corpus, read_dataset, read_task
from laser_lab.evaluation import rank, score, score_run
from laser_lab.explicit import explicit_thoughts
from laser_lab.lab import entailment, notebooks
from laser_lab.lab.cached import Cached
from laser_lab.methods import METHODS
from laser_lab.training import run, trainer
from laser_lab.training.trainer import NonFiniteLoss

BAD = "snow"  # the word of the one text that is poisoned
TEXTS = ["why is the sky blue", "sea", "a very long question about rain", f"is {BAD} green", "water and light"]


@pytest.fixture(scope="module")
def data():
    return Dataset.from_list(rows(), features=features())


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load(tiny_folder)


@pytest.fixture
def poisoned(tiny_folder):
    """A model with NaN where a text holds BAD. The embedding table, which soft tokens mix, stays as it is."""
    model = load(tiny_folder)
    word = model.tokenizer.convert_tokens_to_ids(BAD)
    layer = model.encoder.backbone.causal_lm.get_input_embeddings()

    def poison(layer, ids, out):
        return out.masked_fill((ids[0] == word)[..., None], float("nan"))

    layer.register_forward_hook(poison)
    return model


def task(queries, documents):
    queries = {f"q{i}": text for i, text in enumerate(queries)}
    return RetrievalTask(
        "toy", queries, {f"d{i}": text for i, text in enumerate(documents)}, {query: {"d0": 1} for query in queries}
    )


# -- NaN -----------------------------------------------------------------------------------------------------------


READ = {
    "encode": lambda model: model.encode(TEXTS, batch_size=2),
    "encode alone": lambda model: model.encode([*TEXTS[:3], TEXTS[3]], batch_size=1),
    "encode_query": lambda model: model.encode_query(TEXTS, batch_size=3, prompt="why "),
    "encode with prompts": lambda model: model.encode(TEXTS, prompts=["sky"] * 5, batch_size=2),
    "think": lambda model: ll.think(model, TEXTS, 3, batch_size=2),
    "explicit view": lambda model: explicit_thoughts(model, TEXTS, [["sea"]] * 5, batch_size=2),
    "evaluate": lambda model: ll.evaluate(model, task(TEXTS, ["sea"]), batch_size=2),
    "evaluate, documents": lambda model: ll.evaluate(model, task(["sea"], TEXTS), batch_size=2),
    "rank": lambda model: rank(model, task(["sea"], TEXTS), batch_size=2),
}


@pytest.mark.parametrize("call", READ)
def test_an_embedding_that_is_not_finite_stops_everything_and_names_the_text(poisoned, call):
    with pytest.raises(NotFinite, match="text number 3 is not finite: the computation overflows"):
        READ[call](poisoned)


def test_of_several_bad_texts_in_a_batch_the_first_is_named(poisoned):
    texts = ["sea", f"{BAD}", "sky", f"a very long question about {BAD}"]  # batches begin with the longest
    with pytest.raises(NotFinite, match="text number 1 "):
        poisoned.encode(texts)
    with pytest.raises(NotFinite, match="text number 1 "):
        ll.think(poisoned, texts)


def test_a_corpus_names_the_document(poisoned, tmp_path):
    with pytest.raises(NotFinite, match="the embedding of document 'd3' is not finite"):
        ll.encode_corpus(poisoned, task(["sea"], TEXTS).corpus, tmp_path, batch_size=2, show_progress_bar=False)


@pytest.mark.parametrize("column", ["query", "positives", "reasoning"])
def test_training_names_the_row_and_the_cause(data, tmp_path, poisoned, column):
    table = data.to_list()
    table[5][column] = TEXTS[3] if column == "query" else [TEXTS[3], *table[5][column][1:]]
    bad = Dataset.from_list(table, features=features())
    word = re.escape({"query": "query of", "positives": "document of", "reasoning": "reasoning of"}[column])
    with pytest.raises(NonFiniteLoss, match=rf"not finite at step \d.*the {word} 'q5'.* the computation overflows"):
        ll.train(poisoned, bad, "laser", output_dir=tmp_path, **FAST | {"save_strategy": "no"})


def test_the_likely_cause(tiny_folder, tmp_path):
    model = load(tiny_folder)
    model.encoder.backbone.causal_lm.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("inf")
    with pytest.raises(NotFinite, match=r"layers.0.mlp.up_proj.weight holds NaN"):
        model.encode(TEXTS)
    big = tiny_model()
    for layer in (big.model.layers[1].mlp.up_proj, big.model.layers[1].mlp.down_proj):
        layer.weight.data *= 3e3  # finite in float16, and their products are not
    big.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert np.isfinite(ll.load(tmp_path, device="cpu").encode(TEXTS)).all()
    with pytest.raises(ValueError, match="float16 overflows in this model: load it with dtype='bfloat16'"):
        ll.load(tmp_path, device="cpu", dtype=torch.float16)


def test_an_error_of_a_worker_process_names_the_text_too(poisoned):
    """What comes back from a process is a copy, and holds what stood in the bad rows."""
    with pytest.raises(NotFinite) as caught:
        poisoned.encode(TEXTS, batch_size=2)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value) and copy.inputs == [TEXTS[3]]
    lines = BadRows(["a:1: empty", "a:2: empty"])
    assert str(pickle.loads(pickle.dumps(lines))) == str(lines)


# -- folders that are not what they seem ---------------------------------------------------------------------------


def test_a_folder_without_a_tokenizer(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no tokenizer: none of .*tokenizer.json"):
        ll.load(tmp_path, device="cpu")


@pytest.mark.parametrize("gone", ["model.norm.weight", "model.layers.1.self_attn.q_proj.weight"])
def test_a_folder_with_weights_missing(tmp_path, gone):
    from safetensors.torch import load_file, save_file

    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[gone]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks weights of Qwen3ForCausalLM: {re.escape(gone)}"):
        ll.load(tmp_path, device="cpu")


def test_a_shard_that_is_not_there(tmp_path):
    tiny_model().save_pretrained(tmp_path, max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(tmp_path)
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises((OSError, ValueError), match=shard.name):
        ll.load(tmp_path, device="cpu")


# -- resume --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tiny_folder, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    ll.train(load(tiny_folder), data, "basic", output_dir=folder, **FAST)
    return folder


def other_rows():
    return Dataset.from_list([rows()[0] | {"query": "why not"}, *rows()[1:]], features=features())


OTHER = {
    "method temperature was 0.02 and is 0.05": dict(method=METHODS["basic"].replace(temperature=0.05)),
    "method thinking_steps was 1 and is 2": dict(thinking_steps=2),
    "settings learning_rate was 0.001 and is 0.01": dict(learning_rate=0.01),
    "settings max_steps was 4 and is 8": dict(max_steps=8),
    "seed was 0 and is 1": dict(seed=1),
    "lora r was 4 and is 2": dict(lora=dict(r=2, lora_alpha=8)),
    "hard_negatives was 1 and is 0": dict(hard_negatives=0),
    "data was": dict(dataset=other_rows),
    "model was": dict(model=lambda folder: poked(load(folder))),
    "prompts query was '' and is 'why'": dict(
        model=lambda folder: ll.load(folder, prompts={"query": "why", "document": ""}, device="cpu")
    ),
    "encoder max_length was 512 and is 20": dict(model=lambda folder: ll.load(folder, max_length=20, device="cpu")),
}


def poked(model):
    next(model.parameters()).data[0] += 1
    return model


@pytest.mark.parametrize("message", OTHER)
def test_a_run_goes_on_only_as_it_began(finished, tiny_folder, data, message):
    change = dict(OTHER[message])
    start = change.pop("model", load)(tiny_folder)
    table = change.pop("dataset", lambda: data)()
    arguments = FAST | {"method": "basic"} | change
    with pytest.raises(ValueError, match=f"checkpoint-4 is of another run: .*{re.escape(message)}.* output_dir"):
        ll.train(start, table, output_dir=finished, resume=True, **arguments)


def test_what_decides_no_weight_may_change_and_the_end_is_the_end(finished, tiny_folder, data, monkeypatch):
    """Resumed behind its last step, a run trains nothing more and is what it was."""
    before = ll.load(finished / "final", device="cpu").encode(TEXTS)
    steps = []
    original = trainer.LatentTrainer.training_step
    monkeypatch.setattr(
        trainer.LatentTrainer, "training_step", lambda *args, **kwargs: steps.append(1) or original(*args, **kwargs)
    )
    arguments = FAST | dict(logging_steps=2, save_steps=1, save_total_limit=1)
    again = ll.train(load(tiny_folder), data, "basic", output_dir=finished, resume=True, **arguments)
    assert not steps
    np.testing.assert_array_equal(again.encode(TEXTS), before)
    np.testing.assert_array_equal(ll.load(finished / "final", device="cpu").encode(TEXTS), before)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_a_resumed_run_is_an_unbroken_one_whatever_the_schedule(tiny_folder, data, tmp_path, schedule):
    arguments = FAST | {"lr_scheduler_type": schedule}
    whole = ll.train(load(tiny_folder), data, "basic", output_dir=tmp_path / "whole", **arguments)
    cut(load(tiny_folder), data, "basic", tmp_path / "cut", 3, **arguments)
    resumed = ll.train(load(tiny_folder), data, "basic", output_dir=tmp_path / "cut", resume=True, **arguments)
    for (name, a), (_, b) in zip(whole.state_dict().items(), resumed.state_dict().items()):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6, msg=name)


# -- scores --------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.sampled_from([None, np.nan]))
def test_score_takes_the_task_s_counts_only(queries, documents, size, other, bad):
    asked = task(TEXTS[:2], TEXTS[:3])
    vectors = np.ones((queries, size), np.float32), np.ones((documents, other), np.float32)
    if bad is not None:
        vectors[1][-1, -1] = bad
    if (queries, documents) == (2, 3) and size == other and bad is None:
        assert 0 <= score(*vectors, asked)["ndcg@10"] <= 1
    else:
        with pytest.raises(ValueError, match="embeddings, got|not finite|dimensions"):
            score(*vectors, asked)


def test_a_task_with_nothing_to_score(model):
    good = task(TEXTS[:2], TEXTS[:3])
    for change, message in (
        (dict(queries={}, qrels={}), "has no queries"),
        (dict(corpus={}, qrels={}), "has no corpus"),
        (dict(qrels={}), "no document with a positive grade"),
        (dict(qrels={"q0": {"d1": 0}}), "no document with a positive grade"),
    ):
        with pytest.raises(ValueError, match=message):
            ll.evaluate(model, replace(good, **change))
    with pytest.raises(ValueError, match="score of the run is not finite"):
        score_run({"q0": {"d0": float("nan")}}, good)


class Number(Cached):
    """A result of two rows, for the record of its row count."""

    room, record_file, module = "numbers", "record.json", "laser_lab.base.stats"
    configuration, columns = {}, {}
    made = 0

    def fill(self, folder):
        Number.made += 1
        (folder / "per_query.csv").write_text("query_id,ndcg@10\nq0,0.5\nq1,1.0\n")
        return {}


@pytest.mark.parametrize("harm", ["cut rows", "no rows", "no record", "half a record", "no count", "empty rows"])
def test_a_half_written_record_is_made_again(tmp_path, monkeypatch, harm):
    monkeypatch.setenv("LASER_LAB_CACHE", str(tmp_path))
    result = Number()
    result.run()
    whole, made = result.frame(), Number.made
    result.run()
    assert Number.made == made, "whole: kept"
    rows_file = result.folder / "per_query.csv"
    if harm == "cut rows":
        rows_file.write_text(rows_file.read_text()[:-7])
    elif harm == "no rows":
        rows_file.unlink()
    elif harm == "empty rows":
        rows_file.write_text("")
    elif harm == "no record":
        (result.folder / result.record_file).unlink()
    else:
        (result.folder / result.record_file).write_text('{"a"' if harm == "half a record" else "{}")
    result.run()
    assert Number.made == made + 1 and result.done
    pd.testing.assert_frame_equal(result.frame(), whole)


# -- the doors -----------------------------------------------------------------------------------------------------


def test_arguments_that_mean_nothing(model, tiny_folder):
    small = task(TEXTS[:2], TEXTS[:3])
    laser = METHODS["laser"]
    for call, message in (
        (lambda: ll.think(model, TEXTS, batch_size=-1), "batch_size must be a positive integer, got -1"),
        (lambda: ll.think(model, TEXTS, batch_size=True), "batch_size must be a positive integer, got True"),
        (lambda: model.encode(TEXTS, batch_size=0), "batch_size must be a positive integer, got 0"),
        (lambda: ll.think(model, TEXTS, threshold=float("nan")), "threshold must be from 0 to below 1, got nan"),
        (lambda: rank(model, small, top=0), "top must be a positive integer, got 0"),
        (lambda: rank(model, small, top=1.5), "top must be a positive integer, got 1.5"),
        (lambda: model.encode(set(TEXTS)), "a set has no order"),
        (lambda: ll.think(model, frozenset(TEXTS)), "a set has no order"),
        (lambda: ll.load(tiny_folder, pooling="zzz"), "pooling must be 'all' or 'generated', got 'zzz'"),
        (lambda: ll.load(tiny_folder, max_length=True), "max_length must be a positive integer, got True"),
        (lambda: ll.load(tiny_folder, max_length=2.0), "max_length must be a positive integer, got 2.0"),
        (lambda: ll.load(tiny_folder, halting="zzz"), "no token 'zzz' that could end a thought"),
        (lambda: laser.replace(output=float("nan")), "weights must not be negative.*nan"),
        (lambda: laser.replace(temperature=float("nan")), "temperatures must be positive, got temperature=nan"),
        (lambda: laser.replace(output_temperature=0), "temperatures must be positive, got output_temperature=0"),
        (lambda: laser.replace(downsampling="half"), "downsampling must be 'released' or 'paper', got 'half'"),
        (lambda: laser.replace(distil_start=0.6, distil_warmup=0.6), "distil_start and distil_warmup.*at most 1"),
        (lambda: laser.replace(output="10"), "output must be a number, got '10'"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            call()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(max_steps=0), "max_steps must be a positive integer, got 0"),
        (dict(hard_negatives=1.5), "hard_negatives must be an integer from 0, got 1.5"),
        (dict(hard_negatives=-1), "hard_negatives must be an integer from 0, got -1"),
        (dict(seed=1.5), "seed must be an integer from 0, got 1.5"),
        (dict(learning_rate=float("nan")), "learning_rate must be finite, got nan"),
        (dict(learning_rate="fast"), "learning_rate must be a number, got 'fast'"),
        (dict(learning_rat=1e-3), "no meaning for learning_rat;"),
        (dict(per_device_train_batch_size=0), "per_device_train_batch_size must be a positive integer, got 0"),
        (dict(explicit_max_length=0), "explicit_max_length must be a positive integer"),
        (dict(method="lazer"), "no method 'lazer'; there are basic"),
        (dict(lora={"rank": 3}), "'rank'"),
        (dict(lora={"r": 0}), "`r` should be a positive integer"),
    ],
)
def test_training_refuses_at_the_door_and_leaves_no_run_behind(tiny_folder, data, tmp_path, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ll.train(load(tiny_folder), data, **({"method": "basic"} | FAST | {"output_dir": tmp_path / "run"} | arguments))
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file.name != ".lock"]


def test_an_unknown_key_in_any_yaml(tmp_path, capsys, tiny_bank):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(dict(model="m", dataset="hopworld", output_dir="o", learning_rat=1)))
    assert run.main([str(file)]) == 2 and "no meaning for learning_rat;" in capsys.readouterr().err
    config = json.loads(open(tiny_bank["CONFIG"]).read())
    for change, message in (
        ({"modell": 1}, "the configuration has no meaning for modell;"),
        ({"rows": [{"system": "basic", "sead": [0]}]}, "the row 'basic' has no meaning for sead;"),
        ({"training": {"learning_rat": 1}}, "no meaning for learning_rat"),
        ({"search": {"learning_rat": [1]}}, "no meaning for learning_rat"),
    ):
        file.write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            entailment.main([str(file), "--data", tiny_bank["DATA"]])


def test_a_rate_that_yaml_reads_as_a_text_is_the_number(tmp_path, tiny_folder, data):
    file, config = tmp_path / "config.yaml", FAST | {"save_strategy": "no", "max_steps": 1}
    data.to_json(tmp_path / "data.jsonl")
    config |= dict(model={"name": tiny_folder, "device": "cpu"}, dataset=str(tmp_path / "data.jsonl"), method="basic")
    config |= dict(output_dir=str(tmp_path / "run"))
    file.write_text(yaml.safe_dump(config | {"learning_rate": "RATE"}).replace("RATE", "1e-3"))
    assert yaml.safe_load(file.read_text())["learning_rate"] == "1e-3", "the trap"
    assert run.main([str(file)]) == 0
    card = json.loads((tmp_path / "run" / "final" / "run_card.json").read_text())
    assert card["settings"]["learning_rate"] == 1e-3


def test_unknown_notebooks(capsys):
    with pytest.raises(SystemExit):
        notebooks.main(["97", "99"])
    assert "no notebook starts with 97 or 99" in capsys.readouterr().err


def test_thoughts_end(model):
    thoughts = ll.think(model, TEXTS)
    assert [one.texts for one in thoughts] == [[text] for text in TEXTS]
    with pytest.raises(IndexError):
        thoughts[5]
    with pytest.raises(IndexError):
        thoughts[-6]


# -- ids -----------------------------------------------------------------------------------------------------------


def write(folder, name, *table):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))


def test_an_id_keeps_its_value(tmp_path):
    write(tmp_path, "corpus", {"id": 0, "text": "zero"}, {"id": 1, "text": "one"}, {"id": "01", "text": "text"})
    write(tmp_path, "dev", {"id": 0, "query": "sea", "positive_ids": [0], "negative_ids": ["01"]})
    found = read_task(tmp_path)
    assert found.queries == {"0": "sea"} and list(found.corpus) == ["0", "1", "01"] and found.qrels == {"0": {"0": 1}}


def test_ids_that_collide_after_conversion(model, tmp_path):
    write(tmp_path, "corpus", {"id": 1, "text": "number"}, {"id": "1", "text": "text"})
    with pytest.raises(BadRows, match=r"corpus.jsonl:2: id '1' is there already"):
        read_corpus(tmp_path)
    (tmp_path / "corpus.jsonl").unlink()
    row = {"query": "sea", "positives": ["sky"], "reasoning": "why"}
    write(tmp_path, "train", row | {"id": 1, "positive_ids": [7]}, row | {"id": 2, "positive_ids": ["7"]})
    with pytest.raises(BadRows, match=r"train.jsonl:2: the document id '7' is a number in one place and a text"):
        read_dataset(tmp_path / "train.jsonl")
    with pytest.raises(BadRows, match="id '1' is there already"):
        ll.encode_corpus(model, {1: "sea", "1": "sky"}, tmp_path / "vectors", show_progress_bar=False)
    for bad in (1.5, True, None, ["a"]):
        write(tmp_path, "corpus", {"id": bad, "text": "x"})
        with pytest.raises(BadRows, match="corpus.jsonl:1: id is"):
            read_corpus(tmp_path)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.text(), st.from_regex(r"\.{0,2}/?\w*/?\.{0,2}", fullmatch=True), st.integers(), st.none()))
def test_a_split_is_a_name_and_never_a_path(tmp_path, split):
    write(tmp_path, "corpus", {"id": 0, "text": "zero"})
    for reader in (read_task, read_dataset):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            reader(tmp_path, split)
        if not (isinstance(split, str) and re.fullmatch(r"\w[\w.\-]*", split)):
            assert isinstance(caught.value, ValueError) and "split is a name" in str(caught.value)
