"""Cells: a grid of trainings in the controlled world into one tidy table, cached cell by cell.

An interrupted grid continues, and a changed setting reruns only its cells. Cells run side by side, one thread each.
:mod:`laser_lab.lab.recipes` has the grids whose tables are kept.
"""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from joblib import Parallel, delayed, parallel_config
from tqdm.auto import tqdm

from laser_lab.base.files import cache_dir
from laser_lab.base.processes import end_with_parent
from laser_lab.data.hopworld import HopWorld, HopWorldConfig
from laser_lab.data.hopworld_lm import pretrained
from laser_lab.encoder import LatentRetriever, think
from laser_lab.evaluation import score_steps
from laser_lab.lab.cached import Cached
from laser_lab.loading import load
from laser_lab.methods import method_of
from laser_lab.probing.vocabulary import nearest_tokens, soft_token_states
from laser_lab.training.run import train

HOPWORLD_SETTINGS: dict[str, Any] = dict(
    lora=dict(r=16, lora_alpha=32), learning_rate=2e-3, max_steps=400, per_device_train_batch_size=32
)
"""Training in HopWorld, the same for every method (its learning rate is the best that a search found, on dev)."""

READ_STEPS = 8

MEASURED = ("thinking_steps", "document_steps", "steps", "depth")
"""Columns of a reading whose names a method or a world may use, too."""


@dataclass(frozen=True)
class Cell(Cached):
    """One training, read at every K from 1 to :data:`READ_STEPS`: by the queries, while the documents are an index that
    stays. In ``ndcg@10_same_k`` they think equally long. The folder also holds the trained ``model``."""

    method: str
    seed: int = 0
    thinking_steps: int | None = None
    """K in training; None: the method's own."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Over the method's row."""
    world: dict[str, Any] = field(default_factory=dict)
    """Over :class:`HopWorldConfig`'s defaults."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Over :data:`HOPWORLD_SETTINGS`."""
    split: str = "test"

    room = "experiments"
    record_file = "cell.json"
    module = "laser_lab.lab.cells"

    @property
    def steps(self) -> int:
        return self.thinking_steps or method_of(self.method, **self.changes).thinking_steps

    @property
    def configuration(self) -> dict[str, Any]:
        method = method_of(self.method, **(self.changes | {"thinking_steps": self.steps}))
        return asdict(self) | {
            "method": method.as_dict(),
            "thinking_steps": self.steps,
            "changes": {},  # they are in the method
            "world": asdict(HopWorldConfig(**self.world)),
            "settings": HOPWORLD_SETTINGS | self.settings,
            "read_steps": READ_STEPS,
        }

    @property
    def columns(self) -> dict[str, Any]:
        """Method, K in training, seed, and the settings of method and world, as ``method_...`` or ``world_...`` where
        their name is taken: a world has a ``seed``, too. Several values are one text: ``hops`` "1, 2, 3"."""
        columns: dict[str, Any] = {"method": self.method, "train_steps": self.steps, "seed": self.seed}
        for owner, settings in (("method", self.changes), ("world", self.world)):
            for name, value in settings.items():
                taken = name in columns or name in MEASURED
                text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
                columns[f"{owner}_{name}" if taken else name] = text
        return columns

    def load(self) -> LatentRetriever:
        """The retriever that the cell trained."""
        return load(self.folder / "model", device="cpu")

    def fill(self, folder: Path) -> dict[str, Any]:
        """Train, read and record."""
        world = HopWorld(HopWorldConfig(**self.world))
        settings = HOPWORLD_SETTINGS | self.settings
        quiet = dict(save_strategy="no", disable_tqdm=True, logging_steps=max(1, settings["max_steps"] // 20))
        started = time.perf_counter()
        model = train(
            load(pretrained(world.config), device="cpu"),
            world.dataset("train"),
            method_of(self.method, **self.changes),
            thinking_steps=self.steps,
            output_dir=folder / "run",
            seed=self.seed,
            **(quiet | settings),
        )
        record = {"configuration": self.configuration, "seconds": round(time.perf_counter() - started, 1)}
        record["torch"] = torch.__version__
        (folder / "run" / "final").rename(folder / "model")
        shutil.rmtree(folder / "run")  # the frozen teacher of a method without co-learning
        longest = model.encoder.max_steps or max(READ_STEPS, self.steps)
        _read(model, world, self.split, self.steps, longest).to_csv(folder / "per_query.csv", index=False)
        return record | {"history": model.history}


WEIGHS = 0.01
"""A step that weighs more than this counts as taken, in training budgets and tables."""


def _read(model: LatentRetriever, world: HopWorld, split: str, steps: int, longest: int) -> pd.DataFrame:
    """A row per query and K: measures; ``depth``; the steps that the query took within the budget of training
    (``steps``) and the documents on average (``document_steps``); whether soft token k names the k-th bridge entity."""
    task, compositions = world.task(split), getattr(world, split)
    index_steps = model.encoder.steps_of(side="document")
    options: dict[str, Any] = dict(thinking_steps=longest, batch_size=128)
    queries = think(model, list(task.queries.values()), prompt_name="query", **options)
    documents = think(model, list(task.corpus.values()), prompt_name="document", **options)
    scores = score_steps(queries, documents, task, index_steps)
    scores["ndcg@10_same_k"] = score_steps(queries, documents, task)["ndcg@10"]
    thoughts = soft_token_states(model, queries.texts, longest, prompt_name="query", batch_size=128)
    tokens = nearest_tokens(model, thoughts, top=1)
    named = tokens.pivot(index="text", columns="step", values="token").to_numpy()
    hits = pd.DataFrame({"query_id": list(task.queries), "depth": [c.depth for c in compositions]})
    hits["steps"] = (queries.weights[:, :steps] > WEIGHS).sum(1).numpy()
    hits["document_steps"] = float((documents.weights[:, :index_steps] > WEIGHS).sum(1).float().mean())
    for hop in range(min(world.config.max_hops, named.shape[1])):
        right = [
            float(said == c.bridges[hop]) if hop < c.depth else None for said, c in zip(named[:, hop], compositions)
        ]
        hits[f"step{hop + 1}_names_bridge"] = right
    return scores.merge(hits, on="query_id")


def run(cells: Iterable[Cell], *, workers: int | None = None, show_progress_bar: bool = True) -> pd.DataFrame:
    """Run what is not cached and return the whole table: a row per cell, query and inference K.

    Args:
        workers: Processes (joblib), of one thread each; default: one per core. 0 runs the cells here.

    Raises:
        RuntimeError: A cell failed; the others are done.
    """
    cells = list(cells)
    waiting = sorted({cell.key: cell for cell in cells if not cell.done}.values(), key=lambda cell: -cell.steps)
    configs = dict.fromkeys(HopWorldConfig(**cell.world) for cell in waiting)
    worlds = [config for config in configs if not config.folder.exists()]
    if len(worlds) == 1:  # here, where its own bar is seen
        pretrained(worlds.pop())
    workers = (os.cpu_count() or 1) if workers is None else workers
    failed = []
    for name, function, items, done in (
        ("Language models", pretrained, worlds, 0),
        ("Cells", Cell.run, waiting, len(cells) - len(waiting)),
    ):
        with (
            tqdm(total=done + len(items), initial=done, desc=name, disable=not (show_progress_bar and items)) as bar,
            # one thread each: the matrices are small, and threads that wait for each other cost more than they give
            parallel_config(backend="loky", inner_max_num_threads=1) if workers else nullcontext(),
        ):
            jobs = Parallel(n_jobs=workers or 1, return_as="generator_unordered")
            for error in jobs(delayed(_quietly)(function, item, cache_dir(), os.getpid()) for item in items):
                failed += [error] if error else []
                bar.update()
    if failed:
        raise RuntimeError("; ".join(failed))
    return pd.concat([cell.frame() for cell in cells], ignore_index=True)


def _quietly(function: Callable[[Any], Any], item: Any, cache: Path, caller: int | None = None) -> str | None:
    """Call without what it prints; what went wrong, if anything did, so that the others go on."""
    if caller not in (None, os.getpid()):  # the id of the process that asks
        end_with_parent(caller)
    os.environ["LASER_LAB_CACHE"] = str(cache)  # workers are kept, with the environment that they started in
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        try:
            function(item)
        except Exception as error:
            return f"{item} failed: {error!r}"
    return None
