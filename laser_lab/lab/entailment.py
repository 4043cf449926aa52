"""The experiment on real text: EntailmentBank, a real language model, human reasoning.

A row is a system on a corpus. Trained rows go on where they stopped, and every finished row lies in the cache under a
hash of all it depends on, so the table can be run in pieces and on any machine. What runs is in a file:
``python -m laser_lab.lab.entailment configs/entailment_bank.yaml --data FOLDER --out TABLE.csv``. After every row three
records are written that hold no text of the data: ``TABLE.csv``, ``TABLE_per_query.csv`` and ``TABLE_runs.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laser_lab import adapters
from laser_lab.base.files import atomic_folder, cache_dir, cached_build, missing_extra
from laser_lab.base.stats import summarise
from laser_lab.data.readers import RetrievalTask, read_dataset, read_task
from laser_lab.evaluation import score_run, score_steps
from laser_lab.lab.provenance import code_version
from laser_lab.methods import METHODS, method_of
from laser_lab.weights import load_backbone

if TYPE_CHECKING:
    import pandas as pd

    from laser_lab.encoder import LatentRetriever
    from laser_lab.thinking import Thoughts

UNTRAINED = ("bm25", "bm25-reasoning", "zero-shot")
READINGS = ("rewrite", "explicit")
"""Systems that read a trained row in another way."""

BY = ["corpus", "system", "train_steps", "thinking_steps"]
"""What a row of the summary is about."""


@dataclass(frozen=True)
class Row:
    """One system, trained with one seed and read on the questions of dev.

    Raises:
        ValueError: No such system, or a reading without the row that it reads.
    """

    data: str
    """folder in the EntailmentBank layout"""
    system: str
    """a name of :data:`laser_lab.METHODS`, of :data:`UNTRAINED` or of :data:`READINGS`"""
    of: str | None = None
    """the trained method that a reading reads"""
    seed: int = 0
    thinking_steps: int | None = None
    """K in training; None: the method's own"""
    model: str = "gemma-3-270m"
    layers: int | None = None
    """of the backbone, from below; None: all"""
    max_length: int = 160
    read_steps: int = 4
    corpus: str = "pooled"
    training: dict[str, Any] = field(default_factory=dict)
    """arguments of :func:`laser_lab.train`"""

    def __post_init__(self) -> None:
        known = (*UNTRAINED, *READINGS, *METHODS)
        if self.system not in known:
            raise ValueError(f"no system {self.system!r}; there are {', '.join(known)}")
        if self.corpus not in ("pooled", "full"):
            raise ValueError(f"corpus must be 'pooled' or 'full', got {self.corpus!r}")
        if (self.system in READINGS) != (self.of in METHODS):
            raise ValueError(f"{self.system} reads {self.of!r}: a reading needs a trained method, and only a reading")

    @property
    def method(self) -> str:
        return self.of or self.system

    @property
    def is_trained(self) -> bool:
        """Whether it is a trained system itself, and neither untrained nor a reading of one."""
        return self.system in METHODS and self.of is None

    @property
    def steps(self) -> int:
        return self.thinking_steps or (method_of(self.method).thinking_steps if self.method in METHODS else 1)

    def _hash(self, **apart: Any) -> str:
        data = Path(self.data)
        texts = [hashlib.sha256((data / f"{n}.jsonl").read_bytes()).hexdigest() for n in ("corpus", "train", "dev")]
        row = asdict(replace(self, thinking_steps=self.steps, data="", **apart))
        row["method"] = method_of(self.method).as_dict() if self.method in METHODS else None
        return hashlib.sha256(json.dumps([row, texts, code_version(__name__)], sort_keys=True).encode()).hexdigest()[
            :16
        ]

    @property
    def folder(self) -> Path:
        """Where its results lie: ``per_query.csv`` and ``row.json``."""
        return cache_dir() / "entailment" / self._hash()

    @property
    def trained(self) -> Path:
        """Where the training behind it lies: its checkpoints and ``final``. Rows on both corpora share it."""
        alone = replace(self, system=self.method, of=None)
        return cache_dir() / "entailment" / f"run-{alone._hash(corpus='pooled', read_steps=1)}"

    def frame(self) -> pd.DataFrame:
        """A row per query and inference K, with the system in front."""
        import pandas as pd

        frame = pd.read_csv(self.folder / "per_query.csv", dtype={"query_id": str})
        front = {"system": self.system, "train_steps": self.steps, "seed": self.seed, "corpus": self.corpus}
        for at, (name, value) in enumerate(front.items()):
            frame.insert(at, name, value)
        return frame


def system_label(system: str, train_steps: int) -> str:
    """A system by name, with its K in training where that is not the method's own."""
    usual = system not in METHODS or system in READINGS or train_steps == METHODS[system].thinking_steps
    return system if usual else f"{system} K={train_steps}"


def pool(task: RetrievalTask, dataset: Iterable[dict[str, Any]]) -> RetrievalTask:
    """`task` over only the documents that `dataset` names for its questions, positive or negative."""
    named = {d for row in dataset for d in (*row["positive_ids"], *row["negative_ids"])}
    return replace(task, name=f"{task.name}-pooled", corpus={d: text for d, text in task.corpus.items() if d in named})


def bm25_index(task: RetrievalTask) -> Any:
    """The BM25 index of the corpus of `task`: the library bm25s and its defaults, English stop words.

    Raises:
        ModuleNotFoundError: `bm25s` is not installed; the message names the extra.
    """
    try:
        import bm25s
    except ImportError as error:
        raise missing_extra("bm25s", "benchmarks") from error
    index = bm25s.BM25()
    tokens = bm25s.tokenize(list(task.corpus.values()), stopwords="en", show_progress=False)
    index.index(tokens, show_progress=False)
    return index


def bm25(
    task: RetrievalTask, queries: Sequence[str] | None = None, top: int = 1000, index: Any = None
) -> dict[str, dict[str, float]]:
    """A run of BM25 over the corpus of `task`.

    Args:
        queries: Texts to search with, in the order of the task's queries; default: the queries.
        index: Of :func:`bm25_index`; default: a new one.

    Returns:
        {query id: {document id: score}}, for :func:`laser_lab.evaluation.score_run`.

    Raises:
        ModuleNotFoundError: `bm25s` is not installed; the message names the extra.
    """
    index = bm25_index(task) if index is None else index
    import bm25s

    quiet: dict[str, Any] = dict(show_progress=False)
    texts = list(task.queries.values()) if queries is None else list(queries)
    found, scores = index.retrieve(
        bm25s.tokenize(texts, stopwords="en", **quiet),
        corpus=list(task.corpus),
        k=min(top, len(task.corpus)),
        **quiet,
    )
    return {
        q: {d: float(s) for d, s in zip(ids, values) if s > 0} for q, ids, values in zip(task.queries, found, scores)
    }


def first_layers(model: str, layers: int) -> Path:
    """A folder with `model` cut to its first layers: embeddings, final norm and head stay. Built once.

    Raises:
        ValueError: The backbone has fewer layers.
    """

    def build(folder: Path) -> None:
        backbone = load_backbone(model, device="cpu")
        lm = backbone.causal_lm
        body, config = lm.base_model, lm.config.get_text_config()
        if not 1 <= layers <= len(body.layers):
            raise ValueError(f"{model} has {len(body.layers)} layers, {layers} were asked for")
        body.layers = body.layers[:layers]
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
        lm.save_pretrained(folder)
        backbone.tokenizer.save_pretrained(folder)

    key = hashlib.sha256(f"{model} {layers}".encode()).hexdigest()[:12]
    return cached_build(cache_dir() / "cut" / f"{Path(model).name}-{layers}-layers-{key}", build)


def load_row(row: Row) -> LatentRetriever:
    """The row's backbone, untrained."""
    from laser_lab.loading import load

    name = row.model if row.layers is None else first_layers(row.model, row.layers)
    return load(name, thinking_steps=row.steps, max_length=row.max_length)


def run_row(row: Row) -> None:
    """Train where it is needed, read and record one row, unless it is done."""
    if row.folder.exists():
        return
    dev = read_dataset(row.data, "dev")
    task = read_task(row.data, "dev")
    if row.corpus == "pooled":
        task = pool(task, dev)
    started = time.perf_counter()
    if row.system.startswith("bm25"):
        queries = list(task.queries.values())
        if row.system == "bm25-reasoning":
            queries = [" ".join([query, *task.reasoning[q]]) for q, query in task.queries.items()]
        index = bm25_index(task)
        searching = time.perf_counter()
        found = bm25(task, queries, index=index)
        record: dict[str, Any] = {"ms_per_query": {0: 1000 * (time.perf_counter() - searching) / len(queries)}}
        scores = score_run(found, task).assign(thinking_steps=0)
    else:
        scores, record = _read(row, _trained(row), task)
    record |= {
        "row": asdict(replace(row, data=Path(row.data).name)),
        "documents": len(task.corpus),
        "queries": len(task.queries),
    }
    with atomic_folder(row.folder) as folder:
        scores.to_csv(folder / "per_query.csv", index=False)
        record["seconds"] = round(time.perf_counter() - started, 1)
        (folder / "row.json").write_text(json.dumps(without_paths(record), indent=1))


def _trained(row: Row) -> LatentRetriever:
    from laser_lab.loading import load
    from laser_lab.training.run import train

    if row.method not in METHODS:
        return load_row(row)
    if not (row.trained / "final").exists():
        data = read_dataset(row.data, "train")
        options: dict[str, Any] = dict(output_dir=row.trained, seed=row.seed, thinking_steps=row.steps, resume=True)
        train(load_row(row), data, row.method, **(options | row.training))
        for leftover in [*row.trained.glob("checkpoint-*"), row.trained / "teacher"]:
            shutil.rmtree(leftover, ignore_errors=True)
    model = load(row.trained / "final")
    model.encoder.backbone.merge_adapter()
    return model


def _documents(row: Row, model: LatentRetriever, task: RetrievalTask) -> Thoughts:
    """The corpus at the K of training. The readings of a trained row share it: encoding is most of a row's time."""
    import torch

    from laser_lab.encoder import think
    from laser_lab.thinking import Thoughts

    texts = list(task.corpus.values())
    if row.method not in METHODS:  # documents that think as long as the queries
        return think(model, texts, row.read_steps, prompt_name="document")
    file = row.trained / f"documents-{row.corpus}.pt"
    if not file.exists():
        embeddings = think(model, texts, row.steps, prompt_name="document").embeddings
        temporary = file.with_suffix(f".{os.getpid()}")
        torch.save(embeddings, temporary)
        os.replace(temporary, file)
    return Thoughts(texts, torch.load(file)[:, None])


def _read(row: Row, model: LatentRetriever, task: RetrievalTask) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Per-query measures at every K, and milliseconds per query: the index thinks as long as in training."""
    import torch

    from laser_lab.encoder import think
    from laser_lab.explicit import explicit_thoughts
    from laser_lab.loading import load
    from laser_lab.rewriting import rewrite_then_retrieve
    from laser_lab.thinking import Thoughts

    texts = list(task.queries.values())
    documents = _documents(row, model, task)
    timing: dict[int, float] = {}
    record = {"ms_per_query": timing, "device": str(model.device), "threads": torch.get_num_threads()}
    if row.system == "explicit":
        reasoning = [task.reasoning[query] for query in task.queries]
        started = time.perf_counter()
        embeddings, _ = explicit_thoughts(model, texts, reasoning)
        timing[row.steps] = 1000 * (time.perf_counter() - started) / len(texts)
        scores = score_steps(Thoughts(texts, embeddings[:, None]), documents, task, 1)
        return scores.assign(thinking_steps=row.steps), record
    if row.system == "rewrite":
        generator = load(row.model, device=str(model.device))
        both = rewrite_then_retrieve(generator, model, max_new_tokens=64)
        started = time.perf_counter()
        texts = both.rewrite(texts)
        timing[0] = 1000 * (time.perf_counter() - started) / len(texts)  # of writing alone
    longest = row.read_steps if row.method not in METHODS else max(row.read_steps, row.steps)
    queries = think(model, texts, longest, prompt_name="query")
    for steps in range(1, longest + 1):
        some = texts[:32]
        started = time.perf_counter()
        model.encode_query(some, thinking_steps=steps)
        timing[steps] = timing.get(0, 0.0) + 1000 * (time.perf_counter() - started) / len(some)
    return score_steps(queries, documents, task, 1 if row.method in METHODS else None), record


def rows_of(config: dict[str, Any], data: str, *, search: bool = False, corpus: str | None = None) -> list[Row]:
    """The rows that a configuration file asks for, seed by seed, so that a run that is cut leaves a whole table with
    fewer seeds; with `search`, those of its search instead, each a trained row with one choice of settings.

    A row's own ``training`` goes over that of all, and a reading is trained as the row that it reads.

    Args:
        corpus: Over the file's.
    """
    shared = {name: config[name] for name in ("model", "layers", "max_length", "read_steps", "corpus")}
    if corpus is not None:
        shared["corpus"] = corpus
    trials: list[dict[str, Any]] = [{}]
    if search:
        shared["corpus"] = "pooled"
        values = [value if isinstance(value, list) else [value] for value in config["search"].values()]
        trials = [dict(zip(config["search"], chosen)) for chosen in itertools.product(*values)]
    rows = []
    for trial in trials:
        for entry in config["rows"]:
            read = [other for other in config["rows"] if other["system"] == entry.get("of")]
            if "thinking_steps" in entry:
                read = [other for other in read if other.get("thinking_steps") == entry["thinking_steps"]]
            entry = {**(read[0] if read else {}), **entry}
            seeds = entry.pop("seeds", [0])
            training = config["training"] | entry.pop("training", {}) | trial
            made = [Row(data=data, seed=seed, training=training, **(shared | entry)) for seed in seeds]
            rows += [row for row in made if row.is_trained][:1] if search else made
    return sorted(rows, key=lambda row: row.seed)


# -- records -------------------------------------------------------------------------------------------------------


def without_paths(value: Any) -> Any:
    """`value` (of JSON) with the name alone of every absolute path in it: records say nothing of the machine."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value


def run_card(row: Row, entries: int = 40) -> dict[str, Any]:
    """The run card of the training behind a row, its history thinned to at most about `entries` of the logged steps.

    Raises:
        FileNotFoundError: It is not trained yet.
    """
    from laser_lab.training.run import RUN_CARD

    file = row.trained / "final" / RUN_CARD
    if not file.exists():
        raise FileNotFoundError(f"{row.system}, K={row.steps}, seed {row.seed} is not trained yet: run it first")
    card = without_paths(json.loads(file.read_text()))
    every = -(-len(card["history"]) // entries) or 1
    card["history"] = [
        {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in entry.items()}
        for entry in card["history"][::every]
    ]
    return card


def per_query(row: Row, settings: Iterable[str] = ()) -> pd.DataFrame:
    """A finished row's measures, a row per query and inference K; `settings` of its training become columns."""
    record = json.loads((row.folder / "row.json").read_text())
    frame = row.frame().assign(**{name: row.training[name] for name in settings})
    frame["ms_per_query"] = frame["thinking_steps"].map({int(k): v for k, v in record["ms_per_query"].items()})
    return frame


def summary(frame: pd.DataFrame, settings: Iterable[str] = ()) -> pd.DataFrame:
    """The table of some :func:`per_query` frames: means over seeds and queries, and the interval of nDCG@10."""
    by = [*BY, *settings]
    means = frame.groupby(by, as_index=False)[["recall@100", "ms_per_query"]].mean()
    return summarise(frame, by).merge(means, on=by)


def best_settings(table: pd.DataFrame, settings: Sequence[str]) -> pd.DataFrame:
    """The settings with the highest nDCG@10 at the K of training, a row per trained system of a search's table."""
    own = table[table["train_steps"] == table["thinking_steps"]]
    best = own.loc[own.groupby(["system", "train_steps"], sort=False)["ndcg@10"].idxmax()]
    return best[["system", "train_steps", *settings, "ndcg@10", "low", "high"]].reset_index(drop=True)


def write_records(rows: Sequence[Row], out: str | os.PathLike[str], settings: Sequence[str] = ()) -> pd.DataFrame:
    """Write what is finished of `rows` to ``OUT.csv``, ``OUT_per_query.csv`` and ``OUT_runs.json``, each complete
    before it takes its name; the summary is returned. There is no text of the data in them, only the ids of queries."""
    import pandas as pd

    done = [row for row in rows if row.folder.exists()]
    frame = pd.concat([per_query(row, settings) for row in done], ignore_index=True)
    table = summary(frame, settings)
    runs = []
    for row in done:
        record = json.loads((row.folder / "row.json").read_text())
        runs.append(record | {"steps": row.steps} | ({"training": run_card(row)} if row.is_trained else {}))
    stem = Path(out).with_suffix("")
    texts = {
        f"{stem}.csv": table.to_csv(index=False, float_format="%.6g", lineterminator="\n"),
        f"{stem}_per_query.csv": frame.drop(columns="ms_per_query").to_csv(
            index=False, float_format="%.5g", lineterminator="\n"
        ),
        f"{stem}_runs.json": json.dumps(runs, indent=1) + "\n",
    }
    stem.parent.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        Path(f"{name}.part").write_text(text, encoding="utf-8")
    for name in texts:
        os.replace(f"{name}.part", name)
    return table


# -- the adapter that comes with the package ------------------------------------------------------------------------

ADAPTER_LIMIT = 20e6
"""Bytes."""

CARD = """\
---
base_model: {base}
library_name: peft
license: {license}
pipeline_tag: sentence-similarity
tags: [sentence-transformers, dense-retrieval, latent-thinking, lora]
---

# {name}

A LoRA adapter (bfloat16) that makes `{base}` a dense retriever that thinks silently: method `{method}` with
K={steps} thinking steps, trained by laser_lab on EntailmentBank's training questions ({rows} of them, with the human
reasoning as the explicit view where the method has one).

    import laser_lab as ll
    model = ll.load("{base}", adapter="{name}")

Without laser_lab, `peft.PeftModel.from_pretrained(base, folder)` puts it on a `transformers` model of the same weights;
the thinking loop is laser_lab's.

## Measured

nDCG@10 on the {queries} dev questions, on which the settings were chosen too, seed {seed}:

{results}

The settings, the versions and the losses are in `run_card.json`. It was trained on about {rows} science questions in
English and is a demonstration, not a general retriever.

## Terms

EntailmentBank: Dalvi et al., "Explaining Answers with Entailment Trees" (EMNLP 2021); none of its text is in here.
{terms}
"""
GEMMA_TERMS = """\
The adapter is a modification of Gemma. Gemma is provided under and subject to the Gemma Terms of Use found at
ai.google.dev/gemma/terms, which also restrict its use (ai.google.dev/gemma/prohibited_use_policy)."""


def export_adapter(rows: Sequence[Row], folder: str | os.PathLike[str]) -> Path:
    """Write the trained adapter of a row as :func:`laser_lab.load` takes it: bfloat16, without a tokenizer, without a
    path of this machine, with a model card and the run card.

    Args:
        rows: The same trained row on one corpus or several: those that are finished are measured in the model card.

    Raises:
        FileNotFoundError: It is not trained yet.
        ValueError: Not one trained row, its base is no name that others have, or it is too large to be committed.
    """
    import torch
    from safetensors.torch import load_file, save_file

    if len({row.trained for row in rows}) != 1 or not rows[0].is_trained:
        raise ValueError("one trained row is exported at a time")
    row, folder = rows[0], Path(folder)
    card, final = run_card(row), row.trained / "final"
    base = json.loads((final / "laser_lab.json").read_text())["base"]
    if Path(base).exists():
        raise ValueError(f"the base of the adapter is the folder {base}: nobody else could load it")
    done = [r for r in rows if r.folder.exists()]
    queries, results = 0, []
    for finished in done:
        frame = finished.frame()
        own = frame[frame["thinking_steps"] == row.steps]
        documents, queries = json.loads((finished.folder / "row.json").read_text())["documents"], len(own)
        results.append(f"- {finished.corpus} corpus ({documents:,} facts): {own['ndcg@10'].mean():.3f}")
    gemma = base.startswith("gemma")
    filled = dict(
        base=base, name=folder.name, method=row.system, steps=row.steps, rows=f"{card['dataset']['rows']:,}",
        queries=queries, seed=row.seed, results="\n".join(results) or "- not read yet",
        license="gemma" if gemma else "other", terms=GEMMA_TERMS if gemma else "The base has terms of its own.",
    )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    with atomic_folder(folder) as temporary:
        weights = load_file(final / "adapter_model.safetensors")
        half = {name: weight.to(torch.bfloat16).contiguous() for name, weight in weights.items()}
        save_file(half, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        for name in ("adapter_config.json", "laser_lab.json", "config_sentence_transformers.json", "modules.json"):
            content = without_paths(json.loads((final / name).read_text()))
            if name == "adapter_config.json":
                content["base_model_name_or_path"] = base
            (temporary / name).write_text(json.dumps(content, indent=1) + "\n")
        (temporary / "run_card.json").write_text(json.dumps(card, indent=1) + "\n")
        (temporary / "README.md").write_text(CARD.format(**filled))
        size = sum(file.stat().st_size for file in temporary.iterdir())
        if size > ADAPTER_LIMIT:
            raise ValueError(f"the adapter takes {size / 1e6:.1f} MB, more than {ADAPTER_LIMIT / 1e6:.0f}")
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """The table of a configuration file, row after row; a second call runs only what is missing. The records hold
    every finished row that the file asks for, also where --only or --seeds runs some of them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("config")
    parser.add_argument("--data", required=True, help="folder with corpus.jsonl, train.jsonl and dev.jsonl")
    parser.add_argument("--out", help="CSV to write: a row per system, K in training and K in reading; records beside")
    parser.add_argument("--search", action="store_true", help="run the search of the settings instead of the table")
    parser.add_argument("--corpus", choices=("pooled", "full"), help="over the file's")
    parser.add_argument("--only", nargs="*", help="systems to run")
    parser.add_argument("--seeds", nargs="*", type=int, help="seeds to run")
    parser.add_argument("--export", metavar="SYSTEM", help="only write its trained adapter (of the first of --seeds)")
    parser.add_argument("--to", help=f"folder of --export; default: {adapters.FOLDER.name}/SYSTEM-entailment-bank")
    options = parser.parse_args(arguments)
    import yaml
    from tqdm.auto import tqdm

    with open(options.config, encoding="utf-8") as file:
        config = yaml.safe_load(file)
    if options.export:
        both = [row for corpus in ("pooled", "full") for row in rows_of(config, options.data, corpus=corpus)]
        seed = options.seeds[0] if options.seeds else 0
        chosen = [row for row in both if row.system == options.export and row.seed == seed]
        folder = export_adapter(chosen, options.to or adapters.FOLDER / f"{options.export}-entailment-bank")
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{folder.name}: {size / 1e6:.1f} MB")
        return 0
    rows = rows_of(config, options.data, search=options.search, corpus=options.corpus)
    chosen = [row for row in rows if not options.only or row.system in options.only]
    chosen = [row for row in chosen if not options.seeds or row.seed in options.seeds]
    if not chosen:
        parser.error(f"nothing to run; there are {', '.join(dict.fromkeys(row.system for row in rows))}")
    settings = list(config["search"]) if options.search else []
    out = options.out or cache_dir() / "entailment" / "table.csv"
    for row in tqdm(chosen, desc="Rows"):
        run_row(row)
        table = write_records(rows, out, settings)
    print(table.round(4).to_string(index=False))
    if options.search:
        print("\nbest on dev, at the K of training:")
        print(best_settings(table, settings).round(4).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
