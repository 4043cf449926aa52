"""The soak: SIGKILL at random moments, 50 times in all, over everything that writes for long.

After every kill whatever a reader would take is whole; at the end the state is that of a run that nobody killed. The
moments are drawn on the processor time of the killed process, so that a busy machine changes nothing. By hand, minutes:
``pytest -m slow tests/test_reliability_soak.py -s``.
"""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from datasets import Dataset
from safetensors.torch import load_file
from test_training import FAST, load, rows

import laser_lab as ll
from laser_lab.data.hopworld import HopWorldConfig
from laser_lab.data.hopworld_lm import pretrained
from laser_lab.data.readers import features
from laser_lab.index.folder import VectorFolder
from laser_lab.lab import cells, entailment
from laser_lab.training.resume import last_checkpoint

KILLS = {"pretraining": 8, "training": 10, "grid": 8, "records": 8, "saving": 8, "corpus": 8}
TEXTS = ["why is the sky blue", "sea", "light scatters"]
WORLD = dict(entities=12, relations=2, hops=2, dev=4, test=8, layers=1, hidden_size=16, heads=2, pretrain_steps=60)
SETTINGS = dict(max_steps=3, per_device_train_batch_size=4, lora=dict(r=2))


class Work:
    """Something that is done in a folder, may be cut at any moment, and goes on when it is called again."""

    def __init__(self, model):
        self.model = model
        """a folder"""

    def do(self, home):
        """All of it, in a process of its own."""

    def check(self, home):
        """Read what a user would read, after a kill: it is whole, or it is not there."""

    def state(self, home):
        """What must not depend on kills, of plain values and arrays by name."""


class Pretraining(Work):
    config = HopWorldConfig(**WORLD)

    def do(self, home):
        pretrained(self.config)

    def check(self, home):
        if self.config.folder.exists():
            ll.load(self.config.folder, device="cpu").encode(["of is"])

    def state(self, home):
        return arrays(self.config.folder / "model.safetensors")


class Training(Work):
    arguments = FAST | dict(max_steps=6, save_steps=1)

    def do(self, home):
        data = Dataset.from_list(rows(), features=features())
        ll.train(load(self.model), data, "laser", output_dir=home / "run", resume=True, **self.arguments)

    def check(self, home):
        newest = last_checkpoint(home / "run")
        for folder in filter(None, (newest, home / "run" / "final")):
            if folder.exists():
                assert np.isfinite(ll.load(folder, device="cpu").encode(TEXTS)).all()

    def state(self, home):
        card = json.loads((home / "run" / "final" / "run_card.json").read_text())
        return arrays(home / "run" / "final" / "adapter_model.safetensors") | {"steps": card["steps"]}


class Grid(Work):
    cells = [cells.Cell(method, 0, 2, world=WORLD, settings=SETTINGS) for method in ("latent", "basic", "laser")]

    def do(self, home):
        cells.run(self.cells, workers=0, show_progress_bar=False)

    def check(self, home):
        for cell in self.cells:
            if cell.done:
                assert len(cell.frame()) and cell.record["history"] and cell.load().encode(["of is"]).shape == (1, 16)

    def state(self, home):
        return {cell.method: cell.frame() for cell in self.cells}


class Records(Work):
    """The rows of EntailmentBank, one of them trained, and the three files beside each other."""

    def __init__(self, model, bank):
        super().__init__(model)
        self.bank = bank

    def do(self, home):
        only = ["--only", "bm25", "zero-shot", "basic", "--seeds", "0"]
        entailment.main([self.bank["CONFIG"], "--data", self.bank["DATA"], "--out", str(home / "table.csv"), *only])

    def check(self, home):
        for file in home.glob("[!.]*.csv"):
            assert pd.read_csv(file).notna().all().all() and file.read_bytes().endswith(b"\n")
        for file in home.glob("[!.]*.json"):
            assert json.loads(file.read_text())
        for row in entailment.rows_of(json.loads(Path(self.bank["CONFIG"]).read_text()), self.bank["DATA"]):
            assert not row.done or len(row.frame())

    def state(self, home):
        table = pd.read_csv(home / "table.csv").drop(columns="ms_per_query")
        runs = [run["row"]["system"] for run in json.loads((home / "table_runs.json").read_text())]
        return {"table": table, "queries": pd.read_csv(home / "table_per_query.csv"), "runs": runs}


class Saving(Work):
    """Two models into one folder by turns: what is there is the one or the other."""

    def models(self):
        for steps in (2, 3):
            model = load(self.model)
            model.encoder.set_thinking(steps)
            for parameter in model.parameters():
                parameter.data *= 1 + steps / 100
            yield model

    def do(self, home):
        for model in [*self.models()] * 4:
            model.save_pretrained(str(home / "model"))

    def check(self, home):
        if (home / "model").exists():
            found = ll.load(home / "model", device="cpu").encode(TEXTS)
            assert min(np.abs(found - model.encode(TEXTS)).max() for model in self.models()) < 1e-6

    def state(self, home):
        return arrays(home / "model" / "model.safetensors")


class Corpus(Work):
    texts = {f"d{i}": f"{TEXTS[i % 3]} {TEXTS[i % 2]}" for i in range(400)}

    def do(self, home):
        settings = dict(shard_size=10, show_progress_bar=False, thinking_steps=3)
        ll.encode_corpus(load(self.model), self.texts, home / "vectors", **settings)

    def check(self, home):
        folder = VectorFolder(home / "vectors")
        for number in range(40):
            if folder.has(number):
                assert len(folder.read_shard(number).ids) == 10

    def state(self, home):
        folder = VectorFolder(home / "vectors")
        assert folder.index["complete"] and folder.index["documents"] == 400
        shards = [folder.read_shard(number) for number in range(40)]
        return {"ids": [shard.ids for shard in shards], "vectors": np.concatenate([shard.vectors for shard in shards])}


def arrays(file):
    return {name: tensor.numpy() for name, tensor in load_file(file).items()}


def same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(value, second[name], rtol=1e-5)
        elif isinstance(value, np.ndarray):
            np.testing.assert_allclose(value.astype(float), second[name].astype(float), atol=1e-6, err_msg=name)
        else:
            assert value == second[name], name


def in_fork(work, home, most=None):
    """Do the work in a fork, killed once it has used `most` seconds of processor time; returns whether it was killed,
    and those it used."""
    (home / "cache").mkdir(exist_ok=True)
    child = os.fork()
    if not child:
        try:
            log = os.open(home / ".log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(log, 1), os.dup2(log, 2)
            work.do(home)
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(1)
    process, used = psutil.Process(child), 0.0
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        try:
            used = sum(process.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
        if most is not None and used >= most:
            os.kill(child, signal.SIGKILL)
            ended = os.waitpid(child, 0)
            break
        time.sleep(0.002)
    killed = os.WIFSIGNALED(ended[1])
    assert killed or ended[1] == 0, (home / ".log").read_text()[-3000:]
    return killed, used


@pytest.mark.slow
@pytest.mark.parametrize("what", KILLS)
def test_kills_at_random_moments_lose_and_halve_nothing(what, tiny_folder, tiny_bank, tmp_path, monkeypatch):
    kinds = dict(pretraining=Pretraining, training=Training, grid=Grid, saving=Saving, corpus=Corpus)
    work = Records(tiny_folder, tiny_bank) if what == "records" else kinds[what](tiny_folder)
    started = time.time()

    def at_home(name):
        home = tmp_path / name
        home.mkdir(exist_ok=True)
        monkeypatch.setenv("LASER_LAB_CACHE", str(home / "cache"))
        if what == "grid" and not (home / "cache").exists():  # its world's language model is another work
            shutil.copytree(tmp_path / "world", home / "cache")
        return home

    if what == "grid":
        monkeypatch.setenv("LASER_LAB_CACHE", str(tmp_path / "world"))
        (tmp_path / "world").mkdir()
        in_fork(Pretraining(tiny_folder), tmp_path / "world")
    home = at_home("unbroken")
    _, whole = in_fork(work, home)
    expected = work.state(home)
    rng, kills, runs, moments = random.Random(what), 0, 0, []
    while kills < KILLS[what]:
        home = at_home(f"killed-{runs}")
        killed, used = in_fork(work, home, rng.uniform(0, whole))
        if killed:
            kills += 1
            moments.append(round(used / whole, 2))
            work.check(home)
        else:  # it got through: begin anew
            same(work.state(home), expected)
            runs += 1
    home = at_home(f"killed-{runs}")
    in_fork(work, home)
    work.check(home)
    same(work.state(home), expected)
    print(f"\n{what}: {kills} kills at {sorted(moments)} of {whole:.1f} s of processor time, "
          f"{runs + 1} runs that ended like the unbroken one, {time.time() - started:.0f} s")  # fmt: skip


def test_there_are_fifty():
    assert sum(KILLS.values()) == 50
