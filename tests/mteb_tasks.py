"""Local data as a task of MTEB, which the tests of the benchmarks run on."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from mteb._evaluators.retrieval_metrics import evaluate_p_mrr_change
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from laser_lab.data.readers import RetrievalTask


def as_mteb_task(
    data: RetrievalTask | Mapping[str, RetrievalTask],
    name: str | None = None,
    *,
    instructions: Mapping[str, str] | None = None,
    changed: Mapping[str, list[str]] | None = None,
) -> AbsTaskRetrieval:
    """Local data as a task of MTEB.

    Args:
        data: A task, or subset name to task.
        name: The task's name; default: that of `data`, its first subset's where there are several.
        instructions: Query id to an instruction that MTEB writes after the query: instruction retrieval.
        changed: With `instructions`, FollowIR's p-MRR: every query id ends in ``-og`` or ``-changed``, and this maps
            the id without the ending to the documents that the changed instruction makes irrelevant.
    """
    subsets = {"default": data} if isinstance(data, RetrievalTask) else dict(data)
    name = name or next(iter(subsets.values())).name
    text = json.dumps([subsets, instructions, changed], default=vars, sort_keys=True)

    def split(task: RetrievalTask) -> dict[str, Any]:
        queries: dict[str, list[str]] = {"id": list(task.queries), "text": list(task.queries.values())}
        if task.prompts:
            queries["prompt"] = task.query_prompts
        if instructions is not None:
            queries["instruction"] = [instructions.get(query, "") for query in task.queries]
        return {
            "queries": Dataset.from_dict(queries),
            "corpus": Dataset.from_dict({"id": list(task.corpus), "text": list(task.corpus.values())}),
            "relevant_docs": {query: dict(docs) for query, docs in task.qrels.items()},
            "top_ranked": None,
        }

    class LocalTask(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=name,
            description=f"{name}, local data",
            dataset={"path": "local", "revision": hashlib.sha256(text.encode()).hexdigest()[:12]},
            type="Retrieval" if instructions is None else "InstructionRetrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"] if list(subsets) == ["default"] else {key: ["eng-Latn"] for key in subsets},
            main_score="ndcg_at_10" if changed is None else "p-MRR",
            reference=None,
        )

        def load_data(self, **kwargs: Any) -> None:
            self.dataset = {key: {"test": split(task)} for key, task in subsets.items()}
            self.data_loaded = True

        def task_specific_scores(
            self, scores: Any, qrels: Any, results: Any, hf_split: str, hf_subset: str
        ) -> dict[str, Any]:
            if changed is None:
                return {}
            return evaluate_p_mrr_change(qrels, results, changed, self.k_values)

    return LocalTask()
