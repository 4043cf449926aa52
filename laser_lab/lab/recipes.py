"""Recipes: which ways of training hold, in worlds that can tell them apart.

Every row x K x seed of :data:`GROUPS`, each cell cached, into one table with a row per training:
``python -m laser_lab.lab.recipes figures/data/recipes.csv``. The table is written after every few cells, so a run that
is cut leaves what it has, and a second run goes on; rows that another machine trained by the same code stay.
``--search NAME`` runs some of :data:`SEARCHES` on dev instead. (Earlier versions wrote figures/data/methods.csv,
search.csv and lame_search.csv, with other columns: the groups ``easy-published`` and ``shorter``, and the searches
``rates`` and ``lame``.)
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laser_lab.base.files import read_json, write_text
from laser_lab.base.stats import failure_rate
from laser_lab.data.hopworld import HopWorld, HopWorldConfig
from laser_lab.data.hopworld_lm import pretrained
from laser_lab.lab.cells import Cell, run
from laser_lab.lab.provenance import code_version

if TYPE_CHECKING:
    import pandas as pd

AT_ONCE = 2  # cells per process between two writings of the table
FAILED = 0.9
"""A training whose nDCG@10 at its own K is below this has failed."""


@dataclass(frozen=True)
class Group:
    """Rows of the table of methods that are trained in one world in one way."""

    rows: dict[str, tuple[int, ...]]
    """method to the K that it is trained with"""
    world: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    """of training, over :data:`laser_lab.lab.cells.HOPWORLD_SETTINGS`"""
    seeds: int = 10
    changes: dict[str, Any] = field(default_factory=dict)
    """over the rows"""
    split: str = "test"

    def cells(self, seeds: int | None = None) -> list[Cell]:
        """One per row, K and seed, seed by seed: a run that is cut has all rows with fewer seeds."""
        return [
            Cell(method, seed, steps, self.changes, self.world, self.settings, self.split)
            for seed in range(self.seeds if seeds is None else min(seeds, self.seeds))
            for method, budgets in self.rows.items()
            for steps in budgets
        ]


WORDY = {"max_steps": 1000}
MIXED = {"hops": (1, 2, 3, 4), "train_queries": 2000}

GROUPS: dict[str, Group] = {
    "easy": Group({"lexical": (3, 5, 8), "laser-halting": (3, 5, 8), "latent-halting": (3, 5, 8)}),
    "easy-published": Group(
        {"laser": (3, 5, 8), "laser-released": (3,), "latent": (3, 5, 8), "gircse": (3,), "basic": (1,)}, seeds=5
    ),
    "easy-parts": Group(
        {"laser-no-latent": (1,), "laser-no-trajectory": (3,), "laser-no-output": (3,), "laser-no-colearning": (3,)},
        seeds=5,
    ),
    "thinking-documents": Group({"lexical": (5,)}, seeds=3, changes={"document_steps": None}),
    "wordy": Group({"lexical": (3,)}, {"verbosity": 5}, WORDY),
    "wordy-others": Group(
        {
            "basic": (1,),
            "latent": (3,),
            "gircse": (3,),
            "laser": (3,),
            "latent-halting": (3,),
            "laser-halting": (3,),
            "laser-lexical": (3,),
            "lexical-no-halting": (3,),
            "lexical-no-novelty": (3,),
            "lexical-no-idf": (3,),
            "lexical-no-eos": (3,),
        },
        {"verbosity": 5},
        WORDY,
        seeds=3,
    ),
    "mixed": Group({"lexical": (8,)}, MIXED, WORDY),
    "mixed-others": Group(
        {"latent": (1, 2, 3, 4), "latent-halting": (8,), "lexical-no-eos": (8,), "laser-halting": (8,)},
        MIXED,
        WORDY,
        seeds=3,
    ),
    "wordy-mixed": Group({"lexical": (8,)}, MIXED | {"verbosity": 3}, WORDY, seeds=5),
    "very-wordy": Group({"lexical": (3,), "latent": (3,), "rewrite": (1,)}, {"verbosity": 10}, WORDY, seeds=3),
    "wordiest": Group({"lexical": (3,), "latent": (3,), "rewrite": (1,)}, {"verbosity": 20}, WORDY, seeds=3),
    "shorter": Group({"laser": (2,), "gircse": (2,)}, seeds=3),
}
"""The table: worlds of the present configuration, what is trained in them, and with how many seeds."""


def row_of(cell: Cell, group: str) -> dict[str, Any]:
    """One training as a row: quality at its own K and at every other, whether it failed, steps and quality by depth,
    the share of bridges that its thoughts name, and its cost."""
    frame = cell.frame()
    own = frame[frame["thinking_steps"] == cell.steps]
    at = frame.groupby("thinking_steps")["ndcg@10"].mean()
    row: dict[str, Any] = {
        "group": group,
        "method": cell.method,
        "thinking_steps": cell.steps,
        "seed": cell.seed,
        "ndcg@10": own["ndcg@10"].mean(),
        "failed": bool(own["ndcg@10"].mean() < FAILED),
        "steps": own["steps"].mean(),
        "document_steps": own["document_steps"].mean(),
        "changed": ", ".join(f"{k}={v}" for k, v in (cell.changes | cell.settings).items()),
        "bridges": own.filter(regex="^step.*_names_bridge$").stack().mean(),
        "seconds": cell.record["seconds"],
        "torch": cell.record["torch"],
    }
    row |= {f"at_{steps}": value for steps, value in at.items()}
    if cell.method == "rewrite":
        row |= in_words(cell)
    for depth, some in own.groupby("depth"):
        row |= {f"ndcg@10_depth{depth}": some["ndcg@10"].mean(), f"steps_depth{depth}": some["steps"].mean()}
    return row | {"code": code_version(cell.module)[:12]}


def in_words(cell: Cell) -> dict[str, float]:
    """nDCG@10 of a trained ``rewrite`` row by what it reads after each query: ``rewritten``, what the world's language
    model writes, and ``explicit``, the true reasoning. Computed once, kept in the cell's folder."""
    from laser_lab.evaluation import score
    from laser_lab.explicit import explicit_thoughts
    from laser_lab.loading import load
    from laser_lab.rewriting import rewrite_then_retrieve

    file = cell.folder / "in_words.json"
    if not file.exists():
        world, model = HopWorld(HopWorldConfig(**cell.world)), cell.load()
        task, length = world.task(cell.split), world.config.max_hops * world.config.verbosity
        writer = load(pretrained(world.config), device="cpu")
        end = model.tokenizer.eos_token
        reader = rewrite_then_retrieve(writer, model, max_new_tokens=length, end=f" {end}", batch_size=100)
        queries, documents = list(task.queries.values()), model.encode_document(list(task.corpus.values()))
        view, _ = explicit_thoughts(model, queries, list(task.reasoning.values()))
        found = {"rewritten": reader.encode_query(queries), "explicit": view.numpy()}
        means = {name: score(vectors, documents, task)["ndcg@10"] for name, vectors in found.items()}
        write_text(file, json.dumps(means))
    return read_json(file)


IDENTITY = ["group", "method", "thinking_steps", "seed", "changed", "code"]
"""Columns that say which training a row is, and by which code."""


def table(cells: Iterable[tuple[str, Cell]], file: str | Path) -> pd.DataFrame:
    """The finished ones among (group, cell) pairs, a row each, in their order; then what else `file` holds that the
    present code trained elsewhere."""
    import pandas as pd

    found = pd.DataFrame([row_of(cell, group) for group, cell in cells if cell.done])
    if Path(file).exists():
        earlier = pd.read_csv(file).fillna({"changed": ""})
        of_this_code = earlier["code"] == code_version(Cell.module)[:12]
        found = pd.concat([found, earlier[of_this_code]]).drop_duplicates(IDENTITY)
    return found


def summary(trainings: pd.DataFrame) -> pd.DataFrame:
    """The mean over seeds, the worst seed and the failure rate with its Wilson interval, per group, method, K and what
    was changed."""
    import pandas as pd

    rows = []
    by = ["group", "method", "thinking_steps", "changed"]
    for key, some in trainings.groupby(by, sort=False, dropna=False):
        rate = failure_rate(some["ndcg@10"], FAILED)
        rows.append([*key, some["ndcg@10"].mean(), some["ndcg@10"].min(), *rate, some["steps"].mean(), len(some)])
    columns = "group method thinking_steps changed ndcg@10 worst failures low high steps seeds"
    return pd.DataFrame(rows, columns=columns.split())


def trials(steps: int, tried: dict[str, list[dict[str, Any]]], world: dict[str, Any] | None = None) -> list[Group]:
    """A group per trial, read on dev: method to changes of its row or of the learning rate, over what is now the
    default; ``thinking_steps`` replaces `steps`."""
    groups = []
    for method, changes in tried.items():
        for changed in map(dict, changes):
            budget = changed.pop("thinking_steps", steps)
            settings = {name: changed.pop(name) for name in ("learning_rate",) if name in changed}
            groups.append(Group({method: (budget,)}, world or {}, settings, seeds=3, changes=changed, split="dev"))
    return groups


LEARNING_RATES = [{"learning_rate": 1e-3}, {"learning_rate": 1.5e-3}, {}]

SEARCHES: dict[str, list[Group]] = {
    "halting": trials(
        5,
        {
            "laser-halting": [{"output": 10.0, "trajectory": 0.1}, {"distil_start": 0.25, "distil_warmup": 0.25}, {}],
            "latent-halting": [{"learning_rate": 1e-3}, {}, {"learning_rate": 3e-3}],
            "lexical": [{"lexical": 1.0}, {}, {"lexical": 10.0}],
        },
    ),
    "rates": [
        *trials(1, {"basic": LEARNING_RATES}),
        *trials(2, {"gircse": LEARNING_RATES, "laser": LEARNING_RATES}),
        *trials(3, {"latent": LEARNING_RATES, "gircse": LEARNING_RATES, "laser": LEARNING_RATES}),
    ],
    # at one hop, which one pass has the layers for, in a world whose facts are tested nowhere
    "lame": trials(
        3,
        {
            "lame": [
                {},
                *({"start_word": word} for word in ("</s>", "")),
                *LEARNING_RATES[:-1],
                *({"bottleneck_warmup": share} for share in (0.0, 0.25, 0.5)),
                *({"reconstruction": weight} for weight in (0.0, 0.1)),
                *({"diversity": weight} for weight in (0.0, 1.0)),
                *({"thinking_steps": steps} for steps in (1, 8)),
            ],
            "basic": [rate | {"thinking_steps": 1} for rate in LEARNING_RATES],
        },
        dict(hops=1, seed=1, dev=100, test=20),
    ),
}
"""What was tried on dev, one setting at a time: of the halting methods equally often, of LaME in a world of its own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing of the table of recipes and write it; or, with --search, a search for settings."""
    parser = argparse.ArgumentParser(prog="python -m laser_lab.lab.recipes", description=main.__doc__)
    parser.add_argument("file", help="CSV to write, a row per training")
    parser.add_argument("--only", nargs="*", choices=GROUPS, help="groups to train; all that are done are written")
    parser.add_argument("--seeds", type=int, help="at most so many seeds per row; 0 only writes what is done")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--search", choices=SEARCHES, help="trials on dev instead")
    options = parser.parse_args(arguments)
    if options.search:
        groups = SEARCHES[options.search]
        waiting = every = [("search", cell) for group in groups for cell in group.cells(options.seeds)]
    else:
        chosen = [name for name in GROUPS if not options.only or name in options.only]
        waiting = [(name, cell) for name in chosen for cell in GROUPS[name].cells(options.seeds)]
        every = [(name, cell) for name, group in GROUPS.items() for cell in group.cells()]
    at_once = AT_ONCE * (options.workers or os.cpu_count() or 1)
    for start in range(0, len(waiting) + 1, at_once):
        if some := [cell for _, cell in waiting[start : start + at_once]]:
            run(some, workers=options.workers)
        found = table(every, options.file)
        if found.empty:
            print("nothing is done yet")
            return 0
        write_text(options.file, found.to_csv(index=False, float_format="%.6g"))
    print(summary(found).round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    from laser_lab.lab import recipes  # workers find functions by the module's name, which is not __main__

    sys.exit(recipes.main())
