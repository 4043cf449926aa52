"""What can happen to a long run: kills, dead workers, full disks, bad rows far away, and more documents than memory.

Every run of Ray is in a forked child, so that this process can fork again. Where the machine is too busy for Ray to
start a node of its own, start one before and name it in RAY_ADDRESS.
"""

import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from itertools import product

import numpy as np
import psutil
import pytest
import torch
import transformers
from conftest import SMALL, WORDS, tiny_tokenizer
from test_corpus import contents, cosine, encode, rows, say, write_lines

import laser_lab as ll
import laser_lab.corpus.encode as encoding
from laser_lab.base.numbers import NotFinite
from laser_lab.data.readers import BadRows
from laser_lab.index.duplicates import repeated_ids
from laser_lab.index.folder import Shard, VectorFolder

FORK = multiprocessing.get_context("fork")
KILLS = 10
ENGINES = ["process", pytest.param("ray", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def model(tiny_folder):
    return ll.load(tiny_folder, device="cpu", thinking_steps=2)


def started(function):
    """A fork of this process that runs `function`, and the end of a pipe that gets what it returns or raises."""
    receiving, sending = FORK.Pipe(duplex=False)

    def call():
        os.setsid()  # Ray's processes belong to it
        try:
            sending.send(function())
        except Exception as error:
            sending.send(error)

    child = FORK.Process(target=call)
    child.start()
    sending.close()
    return child, receiving


def in_child(function):
    """What `function` returns, or raises, in a fork of this process."""
    child, receiving = started(function)
    found = receiving.recv()
    child.join()
    if isinstance(found, Exception):
        raise found
    return found


def end(child):
    """SIGKILL to a child and its session, as a machine that goes down does. Whether it was still running."""
    alive = child.is_alive()
    child.kill()
    child.join()
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == child.pid:
                process.kill()
        except (ProcessLookupError, psutil.NoSuchProcess):
            pass
    return alive and child.exitcode == -signal.SIGKILL


def check_equal(folder, whole):
    """Two folders hold the same documents, each once, and the same numbers."""
    (ids, vectors, steps), (ids_, vectors_, steps_) = contents(folder), contents(whole)
    assert ids == ids_ and len(set(ids)) == len(ids) and (steps == steps_).all()
    np.testing.assert_allclose(vectors, vectors_, atol=1e-6)


# -- kills ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_killed_at_random_moments(model, tmp_path, engine):
    """The folder is that of an unbroken run, and no shard is ever half there."""
    count, size = 300, 15
    source = write_lines(tmp_path / "c.jsonl", rows(count) + rows(5))  # and repeated ids, which are looked for last
    how = dict(shard_size=size, dtype="float32", skip_bad=True, workers=1)
    encode(model, source, tmp_path / "whole", **how)

    def run(folder):
        return lambda: encode(model, source, folder, engine=engine, **how)["documents"]

    start = time.perf_counter()
    assert in_child(run(tmp_path / "first")) == count
    whole, moments, kills, number = time.perf_counter() - start, random.Random(0), 0, 0
    while kills < KILLS:
        folder = tmp_path / f"killed-{number}"
        while kills < KILLS:
            begun = time.perf_counter()
            child, receiving = started(run(folder))
            ended = receiving.poll(moments.uniform(0, whole))
            kills += end(child)
            vectors = VectorFolder(folder)
            for there in filter(vectors.has, range(-(-count // size) + 1)):
                assert len(vectors.read_shard(there).ids) <= size
            if ended:
                whole = time.perf_counter() - begun
                break
        assert in_child(run(folder)) == count
        check_equal(folder, tmp_path / "whole")
        assert not [file.name for file in folder.rglob(".*") if file.name != ".lock"]
        number += 1


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced(model, tmp_path, monkeypatch):
    source = write_lines(tmp_path / "c.jsonl", rows(600))
    encode(model, source, tmp_path / "whole", dtype="float32")
    real, victims = encoding.run_on_ray, []

    def killing(*args):
        for number, progress in enumerate(real(*args)):
            if number in (0, 12):
                names = {process.pid: process.cmdline() for process in psutil.process_iter()}
                workers = [pid for pid, name in names.items() if name and name[0].startswith("ray::MapWorker")]
                victims.append(min(set(workers) - set(victims)))
                os.kill(victims[-1], signal.SIGKILL)
            yield progress

    def run():
        found = encode(model, source, tmp_path / "out", engine="ray", workers=1, dtype="float32")
        return found["documents"], found["encoded"], victims

    monkeypatch.setattr(encoding, "run_on_ray", killing)
    documents, encoded, killed = in_child(run)
    assert len(set(killed)) == 2 and documents == encoded == 600
    check_equal(tmp_path / "out", tmp_path / "whole")


# -- what Ray makes ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ray_makes_the_same_vectors_and_names_the_same_rows(model, tmp_path):
    bad = [{"id": "x", "text": 7}, {"id": "d3", "text": "rain"}]
    source = write_lines(tmp_path / "c.jsonl", rows(100) + bad + rows(100, start=100))

    def run(folder, **how):
        return in_child(lambda: encode(model, source, tmp_path / folder, engine="ray", workers=1, **how))

    with pytest.raises(BadRows) as caught:
        run("none")
    assert str(source) in str(caught.value) and ":101: text is a int, expected str" in str(caught.value)
    found = run("ray", skip_bad=True)
    assert found["documents"] == 200 and found["skipped"] == 2
    encode(model, source, tmp_path / "here", skip_bad=True)
    check_equal(tmp_path / "ray", tmp_path / "here")
    assert cosine(contents(tmp_path / "ray")[1], model.encode_document([say(i) for i in range(200)])).min() > 0.99999


@pytest.mark.slow
def test_a_hundred_thousand_documents_through_ray(tiny_folder, tmp_path, monkeypatch):
    """All there once, and IVF-PQ with its own settings finds 0.95 of what exact search finds."""
    pytest.importorskip("faiss").omp_set_num_threads(1)
    texts = [" ".join(words) for _, words in zip(range(100_050), product(WORDS, repeat=4))]
    asked, texts = texts[::2001], [text for number, text in enumerate(texts) if number % 2001]
    source = write_lines(tmp_path / "c.jsonl", [{"id": str(i), "text": text} for i, text in enumerate(texts)])
    model = ll.load(tiny_folder, device="cpu", thinking_steps=1)
    how = dict(shard_size=5000, batch_size=64)
    found = in_child(lambda: encode(model, source, tmp_path / "out", engine="ray", workers=2, **how))
    ids, vectors, _ = contents(tmp_path / "out")
    assert found["documents"] == found["encoded"] == len(texts) == 100_000 and ids == [str(i) for i in range(100_000)]
    some = list(range(0, len(texts), 997))
    assert cosine(vectors[some], model.encode_document([texts[i] for i in some])).min() > 0.99999
    exact = ll.open_corpus(tmp_path / "out", model).search(asked)
    near = ll.open_corpus(tmp_path / "out", model, exact_up_to=10_000).search(asked)
    assert len(near.merge(exact, on=["query_id", "doc_id"])) / len(exact) >= 0.95


# -- bad input far away, full disks ----------------------------------------------------------------------------------


def test_a_document_without_a_finite_vector_is_named(tmp_path, tiny_folder):
    model = ll.load(tiny_folder, device="cpu", thinking_steps=1)
    table = model.encoder.backbone.embedding_table
    with torch.no_grad():
        table[model.tokenizer.convert_tokens_to_ids("snow")] = float("nan")
    documents = {f"d{i}": "blue sky" for i in range(40)} | {"bad": "the snow"}
    with pytest.raises(NotFinite, match="document 'bad' is not finite"):
        encode(model, documents, tmp_path / "out")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_disk_that_is_full(model, tmp_path, engine):
    """A real one, of 1 MB: needs the right to mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root only")
    source = write_lines(tmp_path / "c.jsonl", rows(600))

    def run():
        return encode(model, source, disk / "out", engine=engine, workers=1, shard_size=30)["documents"]

    try:
        room = 2**15
        if engine == "ray":
            (disk / "ballast").write_bytes(b"0" * (2**20 - room))
            with pytest.raises(OSError, match="no space for the model"):
                in_child(run)
            torch.save(model, tmp_path / "model.pt", pickle_module=pytest.importorskip("ray").cloudpickle)
            room += (tmp_path / "model.pt").stat().st_size
        (disk / "ballast").write_bytes(b"0" * (2**20 - room))
        with pytest.raises(OSError, match="no space for shard .* run the same call again") as caught:
            in_child(run)
        assert caught.value.errno == errno.ENOSPC
        there = list((disk / "out" / "vectors").iterdir())
        times = {file: file.stat().st_mtime_ns for file in there}
        assert 0 < len(there) < 20 and all(VectorFolder(disk / "out").read_shard(int(f.stem)).ids for f in there)
        (disk / "ballast").unlink()
        assert in_child(run) == 600
        assert times == {file: file.stat().st_mtime_ns for file in there}
    finally:
        subprocess.run(["umount", disk], check=True)


# -- more than memory, and how fast ----------------------------------------------------------------------------------


def test_looking_for_repeated_ids_takes_the_same_memory_for_ten_times_as_many(tmp_path):
    def peak(shards):
        folder = VectorFolder(tmp_path / str(shards))
        for number in range(shards):
            ids = [f"document-{number}-{i}" for i in range(500)] + [f"again-{i}" for i in range(20)]
            vectors, steps = np.zeros((520, 1), np.float16), np.ones(520, np.int16)
            folder.write_shard(number, Shard(ids, vectors, steps, 0).to_bytes())
        tracemalloc.start()
        found = sum(len(places) for places in repeated_ids(folder, shards, part=2000))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found == 20 * (shards - 1)
        return most

    peak(2)  # imports
    assert peak(100) < 1.5 * peak(10)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tiny_folder, tmp_path):
    script = "import re, sys\nfrom laser_lab.lab.cli import main\nassert main(['encode', *sys.argv[1:]]) == 0\n"
    script += r"print(re.search(r'VmHWM:\s+(\d+)', open('/proc/self/status').read())[1])"

    def peak(count):
        source = write_lines(tmp_path / f"{count}.jsonl", rows(count))
        command = [sys.executable, "-c", script, tiny_folder, str(source), str(tmp_path / str(count))]
        command += ["--device", "cpu", "--steps", "1", "--batch-size", "64"]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert VectorFolder(tmp_path / str(count)).index["documents"] == count
        return int(printed.split()[-1])

    few, many = peak(20_000), peak(200_000)
    print(f"peak memory: {few / 1024:.0f} MiB for 20,000 documents, {many / 1024:.0f} MiB for 200,000")
    assert many < 1.05 * few


@pytest.mark.slow
def test_a_corpus_is_encoded_as_fast_as_a_bare_loop(tmp_path):
    """Of processor time, so that what else runs does not count; the whole call, reading and folder and all. The model
    is small (8 million weights), and not so tiny that it takes less time for a text than Python does."""
    torch.manual_seed(0)
    size = dict(hidden_size=256, intermediate_size=1536, num_hidden_layers=6)
    transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SMALL | size)).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    model = ll.load(str(tmp_path / "model"), device="cpu", thinking_steps=2)
    source = write_lines(tmp_path / "c.jsonl", rows(1600))
    texts = sorted((row["text"] for row in rows(1600)), key=len, reverse=True)
    batches = [texts[start : start + 32] for start in range(0, len(texts), 32)]

    def bare(number):
        with torch.inference_mode():
            for batch in batches:
                model(model.preprocess(batch), thinking_steps=2)["sentence_embedding"].numpy()

    def ours(number):
        encode(model, source, tmp_path / str(number), batch_size=32, shard_size=10_000)

    def seconds(call, number):
        start = time.process_time()
        call(number)
        return time.process_time() - start

    ratios = []
    for number in range(-1, 8):
        took = {call: seconds(call, number) for call in ([bare, ours] if number % 2 else [ours, bare])}
        ratios += [took[bare] / took[ours]] if number >= 0 else []
    print(f"rate to that of a bare loop: {np.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    assert np.median(ratios) >= 0.95
