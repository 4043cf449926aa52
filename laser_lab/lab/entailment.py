"""The experiment on EntailmentBank: ``python -m laser_lab.lab.entailment CONFIG.yaml --data FOLDER --out TABLE.csv``.

Finished rows lie in the cache. Every row is followed by ``TABLE.csv``, ``TABLE_per_query.csv``, ``TABLE_runs.json``.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed

from laser_lab import adapters
from laser_lab.base.files import cache_dir, read_yaml
from laser_lab.base.inputs import check_count, check_names
from laser_lab.base.processes import end_with_parent
from laser_lab.lab.export import export_adapter
from laser_lab.lab.records import best_settings, recorded, write_records
from laser_lab.lab.rows import Row
from laser_lab.methods import METHODS, method_of
from laser_lab.training.run import ARGUMENTS, check_arguments, checked_settings

KEYS = ("model", "max_length", "read_steps", "corpus", "training", "rows")
"""What a configuration file names."""
MORE_KEYS = ("search", "dtype")
"""What it may name."""
OF_THE_ROW = {"model", "dataset", "method", "output_dir", "seed", "resume", "thinking_steps"}
"""Arguments of :func:`laser_lab.train` that a row itself gives."""


def rows_of(config: dict[str, Any], data: str, *, search: bool = False, corpus: str | None = None) -> list[Row]:
    """The rows of a configuration file, seed by seed; with `search`, its trials: trained rows with one choice each.

    A row's own ``training`` goes over that of all, and a reading is trained as the row that it reads. `corpus` goes
    over the file's. A row's own ``search`` names settings of its method, tried with every one of the file's.
    ValueError: a name or value that nothing here reads, or two rows that a table would not tell apart.
    """
    check_names(config, (*KEYS, *MORE_KEYS), "the configuration")
    if missing := [name for name in KEYS if name not in config]:
        raise ValueError(f"the configuration does not name {', '.join(missing)}")
    known = {field.name for field in fields(Row)} - {"data", "seed"} | {"seeds", "search"}
    for entry in config["rows"]:
        check_names(entry, known, where := f"the row {entry.get('system')!r}")
        check_arguments(entry.get("training", ()), f"the training of {where}")
        method = entry.get("of") or entry.get("system")
        takes = method_of(method).as_dict() if method in METHODS else ()
        check_names([*entry.get("changes", ()), *entry.get("search", ())], takes, f"the method of {where}")
    for name in ("training", "search"):
        check_arguments(config.get(name, ()), f"{name} in the configuration")
    parts = [part.get(name, ()) for part in (config, *config["rows"]) for name in ("training", "search", "changes")]
    if wrong := OF_THE_ROW & set().union(*parts):
        raise ValueError(f"{', '.join(sorted(wrong))}: not for training, search or changes: a row has keys of its own")
    shared = {name: config[name] for name in ("model", "max_length", "read_steps", "corpus", "dtype") if name in config}
    corpus = "pooled" if search else corpus
    shared |= {} if corpus is None else {"corpus": corpus}
    trials, *own = (_grid(part.get("search", {}) if search else {}) for part in (config, *config["rows"]))
    rows = []
    for trial, at in itertools.product(trials, range(max(map(len, own)))):
        for entry, changes in ((entry, tried[at]) for entry, tried in zip(config["rows"], own) if at < len(tried)):
            read = [other for other in config["rows"] if other["system"] == entry.get("of")]
            if "thinking_steps" in entry:
                read = [other for other in read if other.get("thinking_steps") == entry["thinking_steps"]]
            entry = {**(read[0] if read else {}), **entry}
            seeds, _ = entry.pop("seeds", [0]), entry.pop("search", None)
            entry["changes"] = entry.get("changes", {}) | changes
            training = config["training"] | entry.pop("training", {}) | trial
            training |= checked_settings({name: value for name, value in training.items() if name not in ARGUMENTS})
            made = [Row(data=data, seed=seed, training=training, **(shared | entry)) for seed in seeds]
            rows += [row for row in made if row.is_trained][:1] if search else made
    settings = searched_settings(config) if search else []
    told = [row.columns | {name: row.setting(name) for name in settings} for row in rows]
    if twice := [columns for at, columns in enumerate(told) if columns in told[:at]]:
        raise ValueError(f"two rows are {twice[0]}: a table would not tell them apart")
    return sorted(rows, key=lambda row: row.seed)


def _grid(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the values of a search; a value that is no list is the only one."""
    lists = [value if isinstance(value, list) else [value] for value in values.values()]
    every = [(name, value) for name, tried in zip(values, lists) for value in tried]
    if odd := [pair for pair in every if not isinstance(pair[1], (str, bool, int, float))]:
        raise ValueError("the search of {} tries {!r}: it takes numbers, texts, true and false".format(*odd[0]))
    return [dict(zip(values, chosen)) for chosen in itertools.product(*lists)]


def searched_settings(config: dict[str, Any]) -> list[str]:
    """What the search of a configuration file tries: names of its own ``search``, then of those of its rows."""
    return list(dict.fromkeys(name for part in (config, *config["rows"]) for name in part.get("search", {})))


def _run(row: Row, cache: Path, caller: int) -> None:
    """Run a row, here or in a worker of the process `caller`."""
    if caller != os.getpid():
        end_with_parent(caller)
        os.environ["LASER_LAB_CACHE"] = str(cache)
    row.run()


def main(arguments: Sequence[str] | None = None) -> int:
    """The table of a configuration file, row after row; a second call runs only what neither the cache nor the records
    at --out hold. The records hold every finished row that the file asks for, also where --only or --seeds runs some of
    them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("config")
    parser.add_argument("--data", required=True, help="folder with corpus.jsonl, train.jsonl and dev.jsonl")
    parser.add_argument("--out", help="CSV to write: a row per system, K in training and K in reading; records beside")
    parser.add_argument("--search", action="store_true", help="run the search of the settings instead of the table")
    parser.add_argument("--corpus", choices=("pooled", "full"), help="over the file's")
    parser.add_argument("--only", nargs="*", help="systems to run")
    parser.add_argument("--seeds", nargs="*", type=int, help="seeds to run")
    parser.add_argument("--workers", type=int, default=1, help="rows to run at a time; their times are then no use")
    parser.add_argument("--finished", action="store_true", help="run nothing: write the records of what is finished")
    parser.add_argument("--export", metavar="SYSTEM", help="only write its trained adapter (of the first of --seeds)")
    parser.add_argument("--to", help=f"folder of --export; default: {adapters.FOLDER.name}/SYSTEM-DATA")
    options = parser.parse_args(arguments)
    from tqdm.auto import tqdm

    check_count("--workers", options.workers)
    config = read_yaml(options.config)
    if options.export:
        both = [row for corpus in ("pooled", "full") for row in rows_of(config, options.data, corpus=corpus)]
        seed = options.seeds[0] if options.seeds else 0
        chosen = [row for row in both if row.system == options.export and row.seed == seed]
        chosen = [row for row in chosen if row.steps == chosen[0].steps]  # the first K that the file names
        name = f"{options.export}-{Path(options.data).resolve().name.replace('_', '-')}"
        folder = export_adapter(chosen, options.to or adapters.FOLDER / name)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{folder.name}: {size / 1e6:.1f} MB")
        return 0
    rows = rows_of(config, options.data, search=options.search, corpus=options.corpus)
    chosen = [row for row in rows if not options.only or row.system in options.only]
    chosen = [row for row in chosen if not options.seeds or row.seed in options.seeds]
    if not chosen:
        parser.error(f"nothing to run; there are {', '.join(dict.fromkeys(row.system for row in rows))}")
    settings = searched_settings(config) if options.search else []
    out = options.out or cache_dir() / "entailment" / f"{'search' if options.search else 'table'}.csv"
    found = recorded(rows, out, settings)
    kept = [rows[at] for at, (_, run) in found.items() if not (rows[at].done or "misread" in run)]
    if kept:
        print(f"{out} holds {len(kept)} rows that were run elsewhere: they stay (name another file to run them here)")
    waiting = [row for row in chosen if row not in kept and not options.finished]
    jobs = Parallel(n_jobs=options.workers, return_as="generator_unordered")  # shares the cores among them
    for _ in tqdm(jobs(delayed(_run)(row, cache_dir(), os.getpid()) for row in waiting), "Rows", len(waiting)):
        write_records(rows, out, settings)
    table = write_records(rows, out, settings)
    print(table.round(4).to_string(index=False))
    if options.search:
        print("\nbest on dev, at the K of training:")
        print(best_settings(table, settings).round(4).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
