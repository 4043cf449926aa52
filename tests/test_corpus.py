"""A corpus in shards: what is read, what is written, what a second run does, and what is refused."""

import errno
import json
import logging
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import WORDS
from datasets import Dataset, DatasetDict
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

import laser_lab as ll
from laser_lab.corpus import source as sources
from laser_lab.corpus.source import open_source
from laser_lab.data.readers import BadRows
from laser_lab.index.duplicates import repeated_ids
from laser_lab.index.folder import Shard, VectorFolder

COUNT = 70


def say(number):
    """A text of one to nine words that the tiny model knows; another for every number."""
    words = [WORDS[number // len(WORDS) ** i % len(WORDS)] for i in range(2)]
    return " ".join(words + WORDS[: number % 8])


def write_lines(file, rows):
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def rows(count=COUNT, start=0):
    return [{"id": f"d{i}", "text": say(i)} for i in range(start, start + count)]


def contents(folder):
    """Ids, vectors and steps of a finished folder, in order."""
    folder = VectorFolder(folder)
    shards = [folder.read_shard(number) for number in range(folder.index["shards"])]
    ids = [name for shard in shards for name in shard.ids]
    return ids, np.concatenate([s.vectors for s in shards]), np.concatenate([s.steps for s in shards])


def cosine(a, b):
    a, b = np.asarray(a, float), np.asarray(b, float)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.fixture(scope="module")
def model(tiny_folder):
    return ll.load(tiny_folder, device="cpu", thinking_steps=2, prompts={"query": "why ", "document": "the "})


@pytest.fixture
def lines(tmp_path):
    return write_lines(tmp_path / "corpus.jsonl", rows())


def encode(model, source, folder, **how):
    return ll.encode_corpus(
        model, source, folder, **{"shard_size": 16, "batch_size": 8, "show_progress_bar": False} | how
    )


# -- sources -------------------------------------------------------------------------------------------------------


def read_all(source):
    found = [source.read(shard) for shard in range(source.shards)]
    return [pair for shard in found for pair in zip(shard.ids, shard.texts)], [p for s in found for p in s.problems]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    shard_size=st.integers(1, 7),
    chunk=st.integers(1, 90),
    kinds=st.lists(st.sampled_from(["jsonl", "parquet"]), min_size=4, max_size=4),
    ends=st.booleans(),
    blank=st.sets(st.integers(0, 40)),
)
def test_shards_of_any_files_hold_every_row_once(tmp_path_factory, sizes, shard_size, chunk, kinds, ends, blank):
    folder, expected = tmp_path_factory.mktemp("files"), []
    for number, (size, kind) in enumerate(zip(sizes, kinds)):
        part = rows(size, start=len(expected))
        file = folder / f"{number}.{kind}"
        if kind == "parquet":
            table = pa.table({key: pa.array([row[key] for row in part], pa.string()) for key in ("id", "text")})
            pq.write_table(table, file, row_group_size=3)
        else:
            written = [text for i, row in enumerate(part) for text in ([""] if i in blank else []) + [json.dumps(row)]]
            file.write_text("\n".join(written) + ("\n" if written and ends else ""))
        expected += [(row["id"], row["text"]) for row in part]
    if not expected:
        with pytest.raises(ValueError, match="no rows"):
            open_source(folder, shard_size=shard_size)
        return
    old, sources._CHUNK = sources._CHUNK, chunk
    try:
        source = open_source(folder, shard_size=shard_size)
    finally:
        sources._CHUNK = old
    assert source.shards == -(-source.rows // shard_size)
    assert read_all(source) == (expected, [])
    again = open_source(folder, shard_size=shard_size, plan=json.loads(json.dumps(source.plan())))
    assert read_all(again) == (expected, []) and again.describe() == source.describe()


def test_a_plan_of_other_files_is_not_used(lines):
    plan = open_source(lines, shard_size=16).plan()
    write_lines(lines, rows(5))
    assert open_source(lines, shard_size=16, plan=plan).rows == 5


def test_every_kind_of_source_is_the_same_documents(tmp_path, lines, monkeypatch):
    table = Dataset.from_list(rows())
    table.save_to_disk(tmp_path / "saved")
    DatasetDict({"dev": table}).save_to_disk(tmp_path / "splits")
    (tmp_path / "files").mkdir()
    table.to_parquet(tmp_path / "files" / "a.parquet")
    write_lines(tmp_path / "files" / "b.jsonl", [])
    (tmp_path / "files" / "README.md").write_text("not read")
    kinds = [lines, str(tmp_path / "*.jsonl"), tmp_path / "files", f"file://{lines}", table]
    kinds += [tmp_path / "saved", {row["id"]: row["text"] for row in rows()}]
    expected = [(row["id"], row["text"]) for row in rows()]
    for kind in kinds:
        assert read_all(open_source(kind, shard_size=16)) == (expected, []), kind
    assert read_all(open_source(tmp_path / "splits", shard_size=16, split="dev"))[0] == expected

    class Builder:  # what `datasets` resolves a hub id to
        class config:
            data_files = {"dev": [f"file://{lines}"]}

    monkeypatch.setattr("datasets.load_dataset_builder", lambda name: Builder)
    assert read_all(open_source("owner/name", shard_size=16, split="dev"))[0] == expected
    with pytest.raises(FileNotFoundError, match="no files of a split 'train'; it has dev"):
        open_source("owner/name", shard_size=16)


def test_columns_may_have_other_names(tmp_path):
    file = write_lines(tmp_path / "c.jsonl", [{"_id": 7, "title": "the sky", "body": "is blue"}, {"title": "rain"}])
    source = open_source(file, shard_size=9, text_column=("title", "body"), id_column=None)
    assert read_all(source)[0] == [("0", "the sky is blue"), ("1", "rain")]
    source = open_source(file, shard_size=9, text_column="title", id_column="_id")
    assert read_all(source) == ([("7", "the sky")], [f"{file}:2: _id is missing, expected str"])


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda folder: folder / "nowhere", FileNotFoundError, "no file, folder or glob"),
        (lambda folder: folder, ValueError, "holds no .jsonl"),
        (lambda folder: 7, TypeError, "not int"),
        (
            lambda folder: Dataset.from_dict({"id": ["a"], "body": ["b"]}),
            ValueError,
            "no column 'text'; it has id, body",
        ),
        (lambda folder: Dataset.from_dict({"id": [], "text": []}), ValueError, "no rows"),
    ],
)
def test_bad_sources(model, tmp_path, make, error, message):
    (tmp_path / "a.csv").write_text("id,text\n")
    with pytest.raises(error, match=message):
        encode(model, make(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- encoding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_vectors_are_those_of_encode(model, lines, tmp_path, dtype):
    index = encode(model, lines, tmp_path / "out", dtype=dtype)
    ids, vectors, steps = contents(tmp_path / "out")
    assert ids == [row["id"] for row in rows()] and vectors.dtype == dtype
    assert cosine(vectors, model.encode_document([row["text"] for row in rows()])).min() > 0.99999
    assert (steps == 2).all() and index["mean_steps"] == 2
    assert index["documents"] == index["encoded"] == COUNT and index["shards"] == 5 and index["complete"]
    kept = index["settings"]
    assert kept["thinking_steps"] == 2 and kept["prompt"] == "the " and kept["pooling"] == "all"
    assert {"weights", "halting", "template", "dtype"} < kept.keys() and index["versions"].keys() > {"torch"}


def test_halting_pays(tiny_folder, lines, tmp_path):
    model = ll.load(tiny_folder, device="cpu", thinking_steps=6, halting=True, prompts={"query": ""})
    model.encoder.halting_threshold = 0.97
    index = encode(model, lines, tmp_path / "out")
    expected = ll.think(model, [row["text"] for row in rows()], prompt_name=None).steps_taken
    assert contents(tmp_path / "out")[2].tolist() == expected.tolist() and len(set(expected.tolist())) > 1
    assert index["mean_steps"] == pytest.approx(expected.float().mean().item(), abs=1e-4)


def test_any_sentence_transformer_is_encoded(lines, tmp_path, model):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import BoW

    plain = SentenceTransformer(modules=[BoW(WORDS)], device="cpu")
    index = encode(plain, lines, tmp_path / "out")
    assert index["settings"]["thinking_steps"] is None and index["mean_steps"] == 1
    vectors = plain.encode_document([row["text"] for row in rows()])
    assert cosine(contents(tmp_path / "out")[1], vectors).min() > 0.99999


def test_a_second_run_makes_what_is_missing(model, lines, tmp_path, monkeypatch):
    out = tmp_path / "out"
    encode(model, lines, tmp_path / "whole")
    real, calls = VectorFolder.write_shard, []

    def stop_at_the_third(self, number, content):
        calls.append(number)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(self, number, content)

    monkeypatch.setattr(VectorFolder, "write_shard", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        encode(model, lines, out)
    with pytest.raises(ValueError, match="not finished"):
        ll.open_corpus(out)
    (out / "vectors" / ".00000003.parquet.x.parquet").write_bytes(b"half a shard")
    assert encode(model, lines, out)["encoded"] == COUNT - 32
    assert calls == [0, 1, 2, 2, 3, 4]
    assert not list(out.rglob(".0*"))
    for mine, whole in zip(contents(out), contents(tmp_path / "whole")):
        assert np.array_equal(mine, whole)
    assert json.loads((out / "index.json").read_text()) == json.loads((tmp_path / "whole" / "index.json").read_text())
    assert encode(model, lines, out)["encoded"] == 0


def test_another_configuration_is_refused_with_both_values(model, tiny_folder, lines, tmp_path):
    out = tmp_path / "out"
    encode(model, lines, out)
    for change, message in [
        (dict(thinking_steps=4), "thinking_steps is 2 there and 4 here"),
        (dict(prompt="a "), "prompt is 'the ' there and 'a ' here"),
        (dict(dtype="float32"), "dtype is 'float16' there and 'float32' here"),
        (dict(shard_size=8), "shard_size is 16 there and 8 here"),
    ]:
        with pytest.raises(ValueError, match=message):
            encode(model, lines, out, **change)
    weight = next(model.parameters())
    try:
        weight.data.mul_(2)
        with pytest.raises(ValueError, match="weights is '[0-9a-f]{12}' there and '[0-9a-f]{12}' here"):
            encode(model, lines, out)
        with pytest.raises(ValueError, match="weights"):
            ll.open_corpus(out, model)
    finally:
        weight.data.div_(2)
    with lines.open("a") as file:
        file.write(json.dumps({"id": "new", "text": "rain"}) + "\n")
    with pytest.raises(ValueError, match="source is .*'rows': 70.*'rows': 71"):
        encode(model, lines, out)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match="thesis.tex"):
        encode(model, lines, other)


def test_bad_rows_are_reported_with_file_and_line(model, tmp_path, caplog):
    good = rows(20)
    bad = [
        ("{", "not JSON"),
        ({"id": "x"}, "text is missing"),
        ({"id": "x", "text": "  "}, "text is empty"),
        ({"id": "x", "text": 7}, "text is a int, expected str"),
        ({"text": "rain"}, "id is missing"),
        ({"id": "d2", "text": "rain"}, "id 'd2' is there already"),
        ("[1]", "a JSON object is expected, not list"),
        ("null", "a JSON object is expected, not NoneType"),
        ('{"id": "x", "text": "\\ud800"}', "half of a surrogate pair"),
        ("[" * 100_000, "not JSON that can be read: it is nested too deeply"),
    ]
    file = write_lines(tmp_path / "c.jsonl", good[:4] + [row for row, _ in bad] + good[4:])
    with pytest.raises(BadRows) as caught:
        encode(model, file, tmp_path / "out")
    assert len(caught.value.problems) == len(bad)
    for line, (problem, (_, reason)) in enumerate(zip(caught.value.problems, bad), 5):
        assert problem.startswith(f"{file}:{line}: {reason}")
    with caplog.at_level(logging.INFO, logger="laser_lab"):
        index = encode(model, file, tmp_path / "out", skip_bad=True)
    assert index["documents"] == 20 and index["skipped"] == len(bad)
    assert f"{len(bad)} bad rows skipped" in caplog.text and "2.00 thinking steps a document" in caplog.text
    assert contents(tmp_path / "out")[0] == [row["id"] for row in good]


def test_ids_that_two_shards_hold(model, tmp_path):
    file = write_lines(tmp_path / "c.jsonl", rows(40) + [{"id": "d3", "text": "rain"}] + rows(9, start=40) + rows(2))
    with pytest.raises(BadRows, match="3 bad rows") as caught:
        encode(model, file, tmp_path / "out")
    assert f"{file}:41: id 'd3' is there already ({file}:4)" in caught.value.problems
    index = encode(model, file, tmp_path / "out", skip_bad=True)
    assert index["encoded"] == 0 and index["skipped"] == 3 and index["documents"] == 49
    ids, vectors, _ = contents(tmp_path / "out")
    assert ids == [f"d{i}" for i in range(49)]  # the first of each
    assert cosine(vectors, model.encode_document([say(i) for i in range(49)])).min() > 0.99999


@settings(max_examples=30, deadline=None)
@given(names=st.lists(st.lists(st.integers(0, 25), max_size=8), min_size=1, max_size=5), part=st.integers(1, 9))
def test_repeated_ids_are_those_of_a_plain_loop(tmp_path_factory, names, part):
    folder = VectorFolder(tmp_path_factory.mktemp("ids"))
    first, expected = {}, set()
    for number, ids in enumerate(names):
        ids = [str(name) for name in ids]
        vectors = np.zeros((len(ids), 2), np.float16)
        folder.write_shard(number, Shard(ids, vectors, np.ones(len(ids), np.int16), 0).to_bytes())
        for row, name in enumerate(ids):
            if name in first:
                expected.add((number, row, *first[name]))
            first.setdefault(name, (number, row))
    found = [tuple(place) for places in repeated_ids(folder, len(names), part) for place in places.tolist()]
    assert len(found) == len(set(found)) and set(found) == expected
    assert not list(folder.path.glob(".scratch*"))


def test_a_full_disk_is_one_clear_error_and_loses_nothing(model, lines, tmp_path, monkeypatch):
    real, count = os.fsync, []

    def full(handle):
        count.append(handle)
        if len(count) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space for shard 2 .* run the same call again") as caught:
        encode(model, lines, tmp_path / "out")
    assert caught.value.errno == errno.ENOSPC
    assert sorted(os.listdir(tmp_path / "out" / "vectors")) == ["00000000.parquet", "00000001.parquet"]
    monkeypatch.undo()
    assert encode(model, lines, tmp_path / "out")["encoded"] == COUNT - 32


def test_bad_settings_and_a_second_writer(model, lines, tmp_path):
    for wrong, message in [
        (dict(engine="spark"), "engine must be one of process, ray, got 'spark'"),
        (dict(dtype="int8"), "dtype must be one of"),
        (dict(batch_size=0), "batch_size must be a positive integer"),
        (dict(workers=-1), "workers must be a positive integer"),
        (dict(thinking_steps=0), "thinking_steps must be a positive integer"),
    ]:
        with pytest.raises(ValueError, match=message):
            encode(model, lines, tmp_path / "out", **wrong)
    (tmp_path / "out").mkdir()
    with (
        FileLock(tmp_path / "out" / ".lock"),
        pytest.raises(RuntimeError, match="another run that writes to .* is still at work"),
    ):
        encode(model, lines, tmp_path / "out")
