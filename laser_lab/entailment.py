"""The experiment on real text: EntailmentBank, a real language model, human reasoning.

A row is a system on a corpus. Trained rows go on where they stopped, and every finished row lies in the cache under a
hash of all it depends on, so the table can be run in pieces and on any machine. What runs is in a file:
``python -m laser_lab.entailment configs/entailment_bank.yaml --data FOLDER --out TABLE.csv``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laser_lab.backbones import atomic_folder, cache_dir, cached_build, load_backbone, missing_extra
from laser_lab.data.readers import RetrievalTask, read_dataset, read_task
from laser_lab.evaluation import score_run, score_steps
from laser_lab.experiments import code_version, summarise
from laser_lab.methods import METHODS, method_of

if TYPE_CHECKING:
    import pandas as pd

    from laser_lab.retriever import LatentRetriever

UNTRAINED = ("bm25", "bm25-reasoning", "zero-shot")
READINGS = ("rewrite", "explicit")
"""Systems that read a trained row in another way."""


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
    def steps(self) -> int:
        return self.thinking_steps or (method_of(self.method).thinking_steps if self.method in METHODS else 1)

    def _hash(self, **apart: Any) -> str:
        data = Path(self.data)
        texts = [hashlib.sha256((data / f"{n}.jsonl").read_bytes()).hexdigest() for n in ("corpus", "train", "dev")]
        row = asdict(replace(self, thinking_steps=self.steps, data="", **apart))
        row["method"] = method_of(self.method).as_dict() if self.method in METHODS else None
        return hashlib.sha256(json.dumps([row, texts, code_version()], sort_keys=True).encode()).hexdigest()[:16]

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


def pool(task: RetrievalTask, dataset: Iterable[dict[str, Any]]) -> RetrievalTask:
    """`task` over only the documents that `dataset` names for its questions, positive or negative."""
    named = {d for row in dataset for d in (*row["positive_ids"], *row["negative_ids"])}
    return replace(task, name=f"{task.name}-pooled", corpus={d: text for d, text in task.corpus.items() if d in named})


def bm25(task: RetrievalTask, queries: Sequence[str] | None = None, top: int = 1000) -> dict[str, dict[str, float]]:
    """A run of BM25 (the library bm25s and its defaults, English stop words) over the corpus of `task`.

    Args:
        queries: Texts to search with, in the order of the task's queries; default: the queries.

    Returns:
        {query id: {document id: score}}, for :func:`laser_lab.evaluation.score_run`.

    Raises:
        ModuleNotFoundError: `bm25s` is not installed; the message names the extra.
    """
    try:
        import bm25s
    except ImportError as error:
        raise missing_extra("bm25s", "benchmarks") from error
    quiet: dict[str, Any] = dict(show_progress=False)
    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(task.corpus.values()), stopwords="en", **quiet), **quiet)
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
    from laser_lab.retriever import load

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
        scores = score_run(bm25(task, queries), task).assign(thinking_steps=0)
        record: dict[str, Any] = {"ms_per_query": {0: 1000 * (time.perf_counter() - started) / len(queries)}}
    else:
        scores, record = _read(row, _trained(row), task)
    record |= {"row": asdict(replace(row, data=Path(row.data).name)), "documents": len(task.corpus)}
    with atomic_folder(row.folder) as folder:
        scores.to_csv(folder / "per_query.csv", index=False)
        (folder / "row.json").write_text(json.dumps(record | {"seconds": time.perf_counter() - started}, indent=1))


def _trained(row: Row) -> LatentRetriever:
    from laser_lab.retriever import load
    from laser_lab.training import train

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


def _read(row: Row, model: LatentRetriever, task: RetrievalTask) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Per-query measures at every K, and milliseconds per query: the index thinks as long as in training."""
    from laser_lab.explicit import explicit_thoughts
    from laser_lab.retriever import load, think
    from laser_lab.rewriting import rewrite_then_retrieve
    from laser_lab.thinking import Thoughts

    texts = list(task.queries.values())
    if row.system == "zero-shot":
        longest = row.read_steps
    else:
        longest = max(row.read_steps, row.steps)
    documents = think(model, list(task.corpus.values()), longest, prompt_name="document")
    timing: dict[int, float] = {}
    if row.system == "explicit":
        reasoning = [task.reasoning[query] for query in task.queries]
        started = time.perf_counter()
        embeddings, _ = explicit_thoughts(model, texts, reasoning)
        timing[row.steps] = 1000 * (time.perf_counter() - started) / len(texts)
        queries = Thoughts(texts, embeddings[:, None].repeat(1, row.steps, 1))
        scores = score_steps(queries, documents, task, row.steps)
        return scores[scores["thinking_steps"] == row.steps], {"ms_per_query": timing}
    if row.system == "rewrite":
        generator = load(row.model, device=str(model.device))
        both = rewrite_then_retrieve(generator, model, max_new_tokens=64)
        started = time.perf_counter()
        texts = both.rewrite(texts)
        timing[0] = 1000 * (time.perf_counter() - started) / len(texts)  # of writing alone
    queries = think(model, texts, longest, prompt_name="query")
    for steps in range(1, longest + 1):
        some = texts[:32]
        started = time.perf_counter()
        model.encode_query(some, thinking_steps=steps)
        timing[steps] = timing.get(0, 0.0) + 1000 * (time.perf_counter() - started) / len(some)
    same_k = row.system == "zero-shot"
    return score_steps(queries, documents, task, None if same_k else row.steps), {"ms_per_query": timing}


def rows_of(config: dict[str, Any], data: str, search: bool = False) -> list[Row]:
    """The rows that a configuration file asks for; with `search`, those of its search instead."""
    shared = {name: config[name] for name in ("model", "layers", "max_length", "read_steps", "corpus", "training")}
    rows = []
    for entry in config["rows"]:
        entry = dict(entry)
        seeds = entry.pop("seeds", [0])
        if not search:
            rows += [Row(data=data, seed=seed, **(shared | entry)) for seed in seeds]
        elif entry["system"] in METHODS:
            for name, values in config["search"].items():
                for value in values:
                    training = shared["training"] | {name: value}
                    rows.append(Row(data=data, **(shared | entry | {"training": training, "corpus": "pooled"})))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The table of a configuration file, row after row; a second call runs only what is missing."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("config")
    parser.add_argument("--data", required=True, help="folder with corpus.jsonl, train.jsonl and dev.jsonl")
    parser.add_argument("--out", help="CSV to write: a row per system, K in training and K in reading")
    parser.add_argument("--search", action="store_true", help="run the search of the settings instead of the table")
    parser.add_argument("--only", nargs="*", help="systems to run")
    options = parser.parse_args(arguments)
    import pandas as pd
    import yaml
    from tqdm.auto import tqdm

    with open(options.config, encoding="utf-8") as file:
        rows = rows_of(yaml.safe_load(file), options.data, options.search)
    rows = [row for row in rows if not options.only or row.system in options.only]
    frames = []
    for row in tqdm(rows, desc="Rows"):
        run_row(row)
        frame = row.frame()
        if options.search:
            frame = frame.assign(**{k: row.training[k] for k in row.training if not isinstance(row.training[k], dict)})
        record = json.loads((row.folder / "row.json").read_text())
        frame["ms_per_query"] = frame["thinking_steps"].map({int(k): v for k, v in record["ms_per_query"].items()})
        frames.append(frame)
    everything = pd.concat(frames, ignore_index=True)
    by = ["corpus", "system", "train_steps", "thinking_steps"]
    if options.search:
        by += [name for name in everything if name not in [*by, *frame.columns[:0]] and name in row.training]
    table = summarise(everything, by)
    means = everything.groupby(by, as_index=False)[["recall@100", "ms_per_query"]].mean()
    table = table.merge(means, on=by)
    print(table.round(3).to_string(index=False))
    if options.out:
        temporary = f"{options.out}.part"
        table.to_csv(temporary, index=False, float_format="%.4f")
        os.replace(temporary, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
