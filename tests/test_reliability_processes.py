"""Rule 4: two runs in one place wait or refuse, saying for what; a killed parent leaves no worker and no scratch."""

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest
from conftest import killed_in
from datasets import Dataset
from filelock import FileLock
from test_training import FAST, load, rows

import laser_lab as ll
from laser_lab.base.files import atomic_file, atomic_folder, cached_build
from laser_lab.base.processes import SWEPT_AFTER, end_with_parent, locked, scratch_folder, scratch_prefix, sweep
from laser_lab.data.readers import features
from laser_lab.lab.cached import Cached
from laser_lab.lab.rows import Row, retriever


@pytest.fixture(scope="module")
def data():
    return Dataset.from_list(rows(), features=features())


# -- locks ---------------------------------------------------------------------------------------------------------


class Holder(threading.Thread):
    """Another run that holds a lock until it is told to let go."""

    def __init__(self, file):
        super().__init__(daemon=True)
        self.file, self.held, self.enough = file, threading.Event(), threading.Event()

    def __enter__(self):
        self.start()
        self.held.wait()
        return self

    def run(self):
        Path(self.file).parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.file):
            self.held.set()
            self.enough.wait()

    def __exit__(self, *error):
        self.enough.set()
        self.join()


def waits(file, work, caplog):
    """What `work` logs while another holds `file`; it must end, and only after that one let go."""
    done = threading.Event()
    with caplog.at_level(logging.WARNING), Holder(file) as other:
        thread = threading.Thread(target=lambda: (work(), done.set()), daemon=True)
        thread.start()
        end = time.time() + 120
        while not said(caplog) and time.time() < end:
            assert not done.wait(0.05), "it did not wait"
        other.enough.set()
        assert done.wait(120), "it never went on"
    return said(caplog)


def said(caplog):
    return [record.getMessage() for record in caplog.records if "waiting" in record.getMessage()]


def test_waiting_is_said_once_and_for_what(tmp_path, caplog):
    def work():
        with locked(tmp_path / "a.lock", "another process that makes a"):
            pass

    assert waits(tmp_path / "a.lock", work, caplog) == [
        f"waiting for another process that makes a (it holds {tmp_path / 'a.lock'})"
    ]
    caplog.clear()
    work()
    assert not caplog.records, "nothing to wait for, nothing to say"


def test_a_build_waits_and_does_not_build_twice(tmp_path, caplog):
    made = []

    def build(folder):
        made.append(folder)

    def first(folder):
        build(folder)
        time.sleep(0.7)

    one = threading.Thread(target=cached_build, args=(tmp_path / "x", first))
    with caplog.at_level(logging.WARNING):
        one.start()
        while not made:
            time.sleep(0.01)
        cached_build(tmp_path / "x", build)
    one.join()
    assert len(made) == 1
    assert [r.getMessage() for r in caplog.records] == [
        f"waiting for another process that makes {tmp_path / 'x'} (it holds {tmp_path / 'x.lock'})"
    ]


def test_two_trainings_in_one_folder(tiny_folder, data, tmp_path):
    with Holder(tmp_path / ".lock"), pytest.raises(RuntimeError, match=f"another training in {tmp_path} is still at"):
        ll.train(load(tiny_folder), data, "basic", output_dir=tmp_path, **FAST)
    assert os.listdir(tmp_path) == [".lock"]
    ll.train(load(tiny_folder), data, "basic", output_dir=tmp_path, **FAST | {"save_strategy": "no"})


def test_two_processes_at_one_entailment_row(tiny_bank, tmp_path, monkeypatch, caplog):
    """The second waits, saying for whom, and finds what the first trained."""
    monkeypatch.setenv("LASER_LAB_CACHE", str(tmp_path))
    row = Row(data=tiny_bank["DATA"], system="basic", model=json.loads(Path(tiny_bank["CONFIG"]).read_text())["model"])
    monkeypatch.setattr("laser_lab.lab.rows.load_row", lambda row: 1 / 0)  # nothing may be trained
    model = load(row.model)

    def work():
        model.save_pretrained(str(row.trained / "final"))  # as the first one does before it lets go
        retriever(row)

    assert waits(f"{row.trained}.lock", work, caplog) == [
        f"waiting for another process that trains basic, seed 0 (it holds {row.trained}.lock)"
    ]


def test_two_runs_at_one_corpus_folder(tiny_folder, tmp_path):
    with Holder(tmp_path / ".lock"), pytest.raises(RuntimeError, match=f"another run.* {tmp_path}.*still at work"):
        ll.encode_corpus(load(tiny_folder), {"a": "sea"}, tmp_path, show_progress_bar=False)


def test_every_lock_of_the_library_says_so():
    """`FileLock` itself is silent while it waits: only base/processes may use it."""
    package = Path(ll.__file__).parent
    users = {file.relative_to(package).as_posix() for file in package.rglob("*.py") if "filelock" in file.read_text()}
    assert users == {"base/processes.py"}


# -- parents that are killed ---------------------------------------------------------------------------------------


def forked(function):
    """Run `function` in a fork of this process, where nothing is imported again; returns its number."""
    child = os.fork()
    if not child:
        try:
            function()
        finally:
            os._exit(0)
    return child


def gone(process, seconds=5):
    end = time.time() + seconds
    while time.time() < end:
        if not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    return False


@pytest.mark.parametrize("late", [False, True])
def test_a_worker_ends_with_its_parent(late):
    """Also where the parent dies before the worker begins to look."""
    read, write = os.pipe()

    def worker(parent):
        if not late:
            end_with_parent(parent, interval=0.1)
        os.write(write, f"{os.getpid()}\n".encode())
        time.sleep(0.5)
        if late:
            end_with_parent(parent, interval=0.1)
        time.sleep(60)

    def parent():
        me = os.getpid()
        forked(lambda: worker(me))
        time.sleep(60)

    parent = forked(parent)
    found = int(os.read(read, 20))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert gone(found)


PARENTS = {
    "encoding": """
        import laser_lab as ll
        from laser_lab.base.numbers import NotFinite
        if __name__ == "__main__":
            model = ll.load(sys.argv[1], device="cpu")
            model.encoder.backbone.causal_lm.model.norm.weight.data[0] = float("nan")
            pool = model.start_multi_process_pool(["cpu"])
            try:
                model.encode(["sea", "sky"], pool=pool)
            except NotFinite as error:
                assert str(error).startswith("the embedding of text number 0 is not finite: the weight"), error
                open(sys.argv[2] + "/working", "w").close()
            time.sleep(600)
    """,
    "cells": """
        from joblib import Parallel, delayed
        from laser_lab.lab.cells import _quietly
        from laser_lab.base.files import cache_dir
        def work(name):
            open(name, "w").close()
            time.sleep(600)
        names = [sys.argv[2] + "/working", sys.argv[2] + "/too"]
        Parallel(n_jobs=2)(delayed(_quietly)(work, name, cache_dir(), os.getpid()) for name in names)
    """,
    "a notebook": """
        from pathlib import Path
        from laser_lab.lab import notebooks
        notebooks.run(Path(sys.argv[2]) / "01_a.ipynb", Path(sys.argv[2]) / "out.ipynb")
    """,
}


@pytest.fixture
def home(tmp_path):
    import nbformat

    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cell = nbformat.v4.new_code_cell("import time\nopen('working', 'w').close()\ntime.sleep(600)")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), tmp_path / "01_a.ipynb")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("what", PARENTS)
def test_a_killed_parent_leaves_no_worker_alive(tiny_folder, home, what):
    (home / "parent.py").write_text("import os, sys, time\n" + textwrap.dedent(PARENTS[what]))
    paths = {"LASER_LAB_CACHE": str(home / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, home / "parent.py", tiny_folder, home]
    parent = subprocess.Popen(command, env=os.environ | paths, stderr=subprocess.PIPE, text=True)
    try:
        end = time.time() + 600
        while not (home / "working").exists() and time.time() < end:
            assert parent.poll() is None, parent.stderr.read()
            time.sleep(0.1)
        children = psutil.Process(parent.pid).children(recursive=True)
        workers = [child for child in children if "resource_tracker" not in str(child.cmdline())]
    finally:
        parent.kill()
        parent.wait()
    assert workers
    alive = [worker.pid for worker in workers if not gone(worker.pid)]
    assert not alive, "still there 5 s after their parent"


# -- what killed ones left -----------------------------------------------------------------------------------------


DEAD = 2**22 + 1  # no process has this number
HOST = scratch_prefix("x").split("-")[1]


def scratch(folder, name, *, days):
    path = folder / name
    path.mkdir()
    (path / "half").write_text("x")
    os.utime(path, (time.time() - days * 86400,) * 2)
    return path


def test_what_is_old_and_surely_ours_is_swept(tmp_path, caplog):
    assert SWEPT_AFTER == 86400
    ours = scratch(tmp_path, f".model.laser_lab-{HOST}-{DEAD}-abc", days=1.1)
    file = tmp_path / f".a.csv.laser_lab-{HOST}-{DEAD}-abc.csv"
    file.write_text("half")
    os.utime(file, (time.time() - 2 * 86400,) * 2)
    kept = [
        scratch(tmp_path, f".model.laser_lab-{HOST}-{DEAD}-young", days=0.9),
        scratch(tmp_path, f".model.laser_lab-{HOST}-{os.getpid()}-alive", days=9),
        scratch(tmp_path, f".model.laser_lab-0123abcd-{DEAD}-elsewhere", days=9),
        scratch(tmp_path, f"model.laser_lab-{HOST}-{DEAD}-visible", days=9),
        scratch(tmp_path, ".model.laser_lab-notes", days=9),
        scratch(tmp_path, ".laser_lab-mine", days=9),
        scratch(tmp_path, "checkpoint-4", days=9),
    ]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("x")
    (tmp_path / f".link.laser_lab-{HOST}-{DEAD}-abc").symlink_to(tmp_path / "elsewhere")
    with caplog.at_level(logging.WARNING):
        sweep(tmp_path)
    assert not ours.exists() and not file.exists() and f"removing {ours}" in caplog.text
    assert all((path / "half").exists() for path in kept)
    assert (tmp_path / "elsewhere" / "precious").exists()


@pytest.mark.parametrize("write", ["folder", "file", "scratch"])
def test_every_writer_leaves_a_name_that_is_known_and_sweeps(tmp_path, write):
    """A writer dies by SIGKILL in the middle; two days later the next one clears away what it left."""
    writer = {
        "folder": lambda: atomic_folder(tmp_path / "x", replaces=lambda name: True),
        "file": lambda: atomic_file(tmp_path / "x.csv"),
        "scratch": lambda: scratch_folder("k", tmp_path),
    }[write]

    def dies():
        with writer():
            os.kill(os.getpid(), signal.SIGKILL)

    killed_in(dies)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".") and f".laser_lab-{HOST}-" in left.name
    with writer():
        assert left.exists(), "it is young: its process may be at work where we do not see it"
    os.utime(left, (time.time() - 2 * SWEPT_AFTER,) * 2)
    with writer():
        assert not left.exists()


def test_a_result_waits_for_the_process_that_makes_it(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("LASER_LAB_CACHE", str(tmp_path))

    class Number(Cached):
        room, record_file, module = "numbers", "record.json", "laser_lab.base.stats"
        configuration, columns = {}, {}

        def fill(self, folder):
            (folder / "per_query.csv").write_text("query_id\n")
            return {}

    number = Number()
    assert waits(f"{number.folder}.lock", number.run, caplog) == [
        f"waiting for another process that makes {number.folder} (it holds {number.folder}.lock)"
    ]
    assert number.done
