"""The paper's three benchmarks, run by MTEB, beside the paper's own numbers.

MTEB loads the data, ranks and scores. ``mteb.evaluate(model, tasks)`` takes a :class:`LatentRetriever` as it is;
:func:`mteb_model` adds K and the weights to the results, and a prompt per task.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from laser_lab.base.files import missing_extra
from laser_lab.base.fingerprint import fingerprint
from laser_lab.corpus import encode_corpus, open_corpus
from laser_lab.data.prompts import query_prompt
from laser_lab.encoder import LatentRetriever
from laser_lab.lab.published import beside

try:
    import mteb
except ImportError as error:
    raise missing_extra("mteb", "benchmarks") from error
from mteb._create_dataloaders import create_dataloader
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.models import SearchEncoderWrapper, SentenceTransformerEncoderWrapper
from mteb.types import PromptType


@dataclass(frozen=True)
class Benchmark:
    """What to run and where each published column is found in MTEB's scores."""

    table: str
    """name of the published table (:func:`laser_lab.lab.published.published`)"""
    columns: dict[str, tuple[str, str, str]]
    """published column to (task, subset, measure); ``og/map_at_5`` is ``scores["og"]["map_at_5"]``"""
    means: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """published column to the columns it is the plain mean of"""
    instruction: str | None = None
    """what queries are told; None: what MTEB's task says, or MTEB's general sentence where it says nothing"""


_SUBSETS = """biology earth_science economics psychology robotics stackoverflow sustainable_living
    leetcode pony aops theoremqa_questions theoremqa_theorems""".split()


def _bright(separate: bool) -> Benchmark:
    columns = {}
    for subset in _SUBSETS:
        name = subset.title().replace("_", "").replace("Theoremqa", "TheoremQA")
        task = (f"Bright{name}Retrieval", "default") if separate else ("BrightRetrieval", subset)
        columns[f"ndcg_at_10 {subset}"] = (*task, "ndcg_at_10")
    # The released evaluation lists a sentence per subset but sets this one for all twelve.
    sentence = "Given a post, retrieve relevant passages that help answer the post."
    return Benchmark("table3_bright", columns, {"average": tuple(columns)}, sentence)


_FOLLOWIR = {"robust04": ("Robust04", "map_at_5"), "news21": ("News21", "ndcg_at_5"), "core17": ("Core17", "map_at_5")}

BENCHMARKS: dict[str, Benchmark] = {
    "bright": _bright(separate=False),
    "bright-v1.1": _bright(separate=True),
    "followir": Benchmark(
        "table4_followir_browsecomp_plus",
        {
            column: (f"{task}InstructionRetrieval", "default", measure)
            for name, (task, quality) in _FOLLOWIR.items()
            for column, measure in ((f"{name}_{quality}", f"og/{quality}"), (f"{name}_p_mrr", "p-MRR"))
        },
        {
            "followir_score": tuple(f"{name}_{quality}" for name, (_, quality) in _FOLLOWIR.items()),
            "followir_p_mrr": tuple(f"{name}_p_mrr" for name in _FOLLOWIR),
        },
    ),
    "browsecomp-plus": Benchmark(
        "table4_followir_browsecomp_plus",
        {
            f"browsecomp_plus_recall_at_{k}": ("BrowseCompPlusRetrieval", "gold_only", f"recall_at_{k}")
            for k in (5, 100, 1000)
        },
    ),
}
"""Name to benchmark (tasks of mteb 2.26).

The paper ran ``bright``; ``bright-v1.1`` also drops the documents that BRIGHT excludes per query. FollowIR's quality is
that of the original instructions. The paper does not say which documents BrowseComp-Plus counts: with ``gold_only``
Qwen3-Embedding-0.6B's public leaderboard row (8.5, 30.5, 66.2) is nearest to the paper's (8.0, 29.1, 64.8). The
released evaluation has the chat template (``ll.load(..., template="chat")``) and prompts that were not released.
"""


def run(
    model: LatentRetriever,
    benchmark: str,
    *,
    thinking_steps: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    batch_size: int = 32,
    tasks: Iterable[AbsTaskRetrieval] = (),
    corpus: str | os.PathLike[str] | None = None,
    show_progress_bar: bool = True,
) -> pd.DataFrame:
    """Run one of :data:`BENCHMARKS`; the data comes from the hub. The paper evaluates at ``max_length=8192``.

    Args:
        thinking_steps: K for queries and documents; default: the model's own.
        folder: Where MTEB keeps results, for a second call to go on; default: nothing is kept.
        tasks: MTEB tasks with your own data, in the place of the hub's of the same names.
        corpus: Folder for the documents' vectors, encoded once at the model's own K; `thinking_steps` is then the
            queries' alone.

    Returns:
        A row per published column: ``benchmark, column, value`` (times 100), ``task, subset, measure``,
        ``thinking_steps, max_length, template`` (``chat`` or ``none``), ``instruction, seconds``.

    Raises:
        KeyError: No such benchmark.
    """
    if benchmark not in BENCHMARKS:
        raise KeyError(f"no benchmark {benchmark!r}; there are {', '.join(BENCHMARKS)}")
    what = BENCHMARKS[benchmark]
    frame = pd.DataFrame.from_dict(what.columns, orient="index", columns=["task", "subset", "measure"])
    own = {task.metadata.name: task for task in tasks}
    chosen = [
        own[task] if task in own else mteb.get_task(task, hf_subsets=None if "default" in subsets else list(subsets))
        for task, subsets in frame.groupby("task", sort=False)["subset"].unique().items()
    ]
    instructions = {task.metadata.name: what.instruction or library_instruction(task) for task in chosen}
    wrapped = mteb_model(model, instructions=instructions, thinking_steps=thinking_steps)
    if corpus is not None:
        wrapped = StoredCorpus(wrapped, corpus)
    results = mteb.evaluate(
        wrapped,
        chosen,
        encode_kwargs={"batch_size": batch_size, "show_progress_bar": show_progress_bar},
        cache=None if folder is None else mteb.ResultCache(folder),
        show_progress_bar=show_progress_bar,
        co2_tracker=False,
    ).task_results
    scores = pd.concat(
        pd.json_normalize(rows, sep="/").assign(task=result.task_name)
        for result in results
        for rows in result.scores.values()
    )
    scores = scores.drop_duplicates(["task", "hf_subset"], keep="last").set_index(["task", "hf_subset"])
    frame["value"] = [100 * scores.loc[(row.task, row.subset), row.measure] for row in frame.itertuples()]
    frame["instruction"] = frame["task"].map(instructions)
    frame["seconds"] = frame["task"].map({result.task_name: result.evaluation_time for result in results})
    for column, parts in what.means.items():
        frame.loc[column, ["value", "measure"]] = frame.loc[list(parts), "value"].mean(), "mean"
    frame = frame.rename_axis("column").reset_index()
    return frame.assign(benchmark=benchmark, **wrapped.mteb_model_meta.experiment_kwargs)


def report(measured: Mapping[str, pd.DataFrame], rows: Mapping[str, str]) -> pd.DataFrame:
    """What :func:`run` returned, by name of a model, beside published rows, under ``measured`` and ``published``.

    Args:
        rows: Name to published row, e.g. ``{"mine": "LaSER (Qwen3-0.6B)"}``; a KeyError if there is none.

    Raises:
        ValueError: The frames are of several benchmarks.
    """
    names = {name for frame in measured.values() for name in frame["benchmark"]}
    if len(names) != 1:
        raise ValueError(f"a report is of one benchmark, got {', '.join(sorted(names)) or 'none'}")
    (name,) = names
    wide = pd.DataFrame(
        [
            {"model": model, "template": frame["template"].iloc[0], **frame.set_index("column")["value"]}
            for model, frame in measured.items()
        ]
    )
    table = beside(wide, BENCHMARKS[name].table, dict(rows))
    shown = {"model", *wide.columns}
    return table[[column for column in table.columns if column[1] in shown]]


class ThinkingEncoder(SentenceTransformerEncoderWrapper):
    """MTEB's wrapper, with a K and the prompts of a task's own ``prompt`` column."""

    options: Mapping[str, Any] = {}

    def encode(self, inputs: Any, **kwargs: Any) -> Any:
        if kwargs.get("prompt_type") == "query" and "prompt" in inputs.dataset.column_names:
            kwargs["prompts"] = [prompt or "" for prompt in inputs.dataset["prompt"]]
        return super().encode(inputs, **self.options, **kwargs)


def mteb_model(
    model: LatentRetriever, *, instructions: Mapping[str, str] | None = None, thinking_steps: int | None = None
) -> ThinkingEncoder:
    """The model for ``mteb.evaluate``, with a prompt per task; K, token limit and weights are in the results, without
    which MTEB's cache cannot tell a retriever before and after training apart.

    Args:
        instructions: Task name to what its queries are told; the model's own prompt ``"TASK-query"`` wins, and so does
            a task's ``prompt`` column. Other tasks, and all documents, have the model's own prompts.
        thinking_steps: K for queries and documents, a positive integer; default: the model's own.
    """
    steps = model.encoder.steps_of(thinking_steps)
    wrapped = ThinkingEncoder(model)
    wrapped.options = {} if thinking_steps is None else {"thinking_steps": steps}
    prompts = {f"{task}-query": query_prompt(sentence) for task, sentence in (instructions or {}).items()}
    # not handed in: the constructor would overwrite the model's own prompts
    wrapped.model_prompts = prompts | {key: text for key, text in model.prompts.items() if text is not None}
    name = re.sub(r"[^\w.-]+", "_", os.path.basename(str(model.encoder.base)) or "model")
    settings = {"thinking_steps": steps, "max_length": model.encoder.max_length}
    settings["template"] = model.encoder.template or "none"
    revision = _fingerprint(model, wrapped.model_prompts)
    about = {"name": f"laser_lab/{name}", "revision": revision, "experiment_kwargs": settings}
    wrapped.mteb_model_meta = wrapped.mteb_model_meta.model_copy(update=about)
    return wrapped


class StoredCorpus(SearchEncoderWrapper):
    """A search by MTEB whose documents are encoded into `folder`, once, and searched there. Those without a text are
    left out and counted. Results name the documents' K too (``document_steps``)."""

    def __init__(self, wrapped: ThinkingEncoder, folder: str | os.PathLike[str]) -> None:
        super().__init__(wrapped)
        self.folder, meta = Path(folder), wrapped.mteb_model_meta
        settings = meta.experiment_kwargs | {"document_steps": wrapped.model.encoder.steps_of(side="document")}
        self.mteb_model_meta = meta.model_copy(update={"experiment_kwargs": settings})

    def index(self, corpus: Any, *, task_metadata: Any, hf_split: str, hf_subset: str, **options: Any) -> None:
        how = options["encode_kwargs"]
        side = {"task_metadata": task_metadata, "prompt_type": PromptType.document}
        encode_corpus(
            self.model.model,
            create_dataloader(corpus, **side).dataset.select_columns(["id", "text"]),
            place := self.folder / task_metadata.name / f"{hf_subset}-{hf_split}",
            prompt=self.model.get_prompt(*side.values()) or "",
            skip_bad=True,
            **how,
        )
        self.vectors = open_corpus(place, self.model.model)

    def search(self, queries: Any, *, top_k: int, top_ranked: Any = None, **options: Any) -> dict[str, Any]:
        how = options["encode_kwargs"]
        side = {"task_metadata": options["task_metadata"], "prompt_type": PromptType.query}
        where = {"hf_split": options["hf_split"], "hf_subset": options["hf_subset"]}
        found = self.model.encode(create_dataloader(queries, **side, **how), **side, **where, **how)
        named = dict(zip(queries["id"], found))
        return self.vectors.run(named, top_k) if top_ranked is None else self.vectors.scores(named, top_ranked)


def library_instruction(task: AbsTaskRetrieval) -> str:
    """What MTEB tells the queries of a task, by default its general sentence."""
    prompt = task.metadata.prompt
    return (prompt.get("query") if isinstance(prompt, dict) else prompt) or task.abstask_prompt


def _fingerprint(model: LatentRetriever, prompts: Mapping[str, str]) -> str:
    """A hash of weights, the encoder's settings that results do not name (halting, documents' K, ...), prompts and a
    rewriter's settings."""
    encoder, generator = model.encoder, getattr(model, "generator", None)
    named = {"thinking_steps", "max_length", "template", "base"}
    thinking = {key: getattr(encoder, key) for key in encoder.config_keys if key not in named}
    settings = [type(model).__name__, thinking, prompts, getattr(model, "options", None)]
    return fingerprint(model, *([] if generator is None else [generator]), settings=settings)
