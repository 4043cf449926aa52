"""Training rows to pairs with negatives, and pairs to the model's features."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset, Features
from torch import Tensor

from laser_lab.base.inputs import check_count
from laser_lab.data.prompts import join_queries
from laser_lab.data.readers import COLUMNS, OPTIONAL
from laser_lab.encoder import LatentRetriever
from laser_lab.explicit import EXPLICIT_MAX_LENGTH, explicit_features
from laser_lab.methods import LatentMethod, Method
from laser_lab.training.lexical import LexicalTargets
from laser_lab.training.released import released_features


def training_pairs(dataset: Dataset, hard_negatives: int = 1, seed: int = 0, sampling: str = "pairs") -> Dataset:
    """A row per (query, positive), with `hard_negatives` of the query's negatives drawn by `seed`. Where these are too
    few, other rows' positives stand in, so that batches are rectangular.

    Args:
        sampling: ``"first"``, as released: a row per query, with its first positive and first negatives, repeated if
            too few. (With several positives the released code takes number row + seed + epoch, modulo their count.)

    Raises:
        ValueError: Columns are missing, there is nothing to train on, or `hard_negatives` is no integer from 0.
    """
    check_count("hard_negatives", hard_negatives, 0)
    if missing := [name for name in COLUMNS if name not in dataset.column_names]:
        raise ValueError(f"the training data lacks {', '.join(missing)}: read it with data.readers.read_dataset")
    if not len(dataset):
        raise ValueError("the training data is empty")
    rng = random.Random(seed)
    every = [(i, text) for row in dataset for i, text in zip(row["positive_ids"], row["positives"])]
    rows = []
    kept = ["id", "query", "reasoning", "positive_ids", *(name for name in OPTIONAL if name in dataset.column_names)]
    for row in dataset:
        own = list(zip(row["negative_ids"], row["negatives"]))
        positives = list(zip(row["positive_ids"], row["positives"]))
        for doc_id, text in positives[:1] if sampling == "first" else positives:
            if sampling == "first":
                drawn, spare = own[:hard_negatives], own or every
            else:
                drawn, spare = rng.sample(own, min(hard_negatives, len(own))), every
            while len(drawn) < hard_negatives:
                drawn.append(rng.choice(spare))
            ids, documents = zip((doc_id, text), *drawn)
            rows.append({name: row[name] for name in kept} | {"documents": list(documents), "document_ids": list(ids)})
    kinds = dataset.features  # texts, or images, which only their own type can hold
    schema = {name: kinds[name] for name in kept}
    schema |= {"documents": kinds["positives"], "document_ids": kinds["positive_ids"]}
    return Dataset.from_list(rows, features=Features(schema))


def _key(doc_id: str) -> int:
    """A document id as an integer, equal in every process."""
    return int.from_bytes(hashlib.blake2b(doc_id.encode(), digest_size=7).digest(), "big")


class Collator:
    """Rows of :func:`training_pairs` to features: ``query_*``, ``document_*``, ``explicit_*`` and lexical targets.

    A batch has N = B·(1+n) documents, positives first, with their ``keys`` (N,). Only the U different ones are encoded;
    ``rows`` (N,) says which of them each is.
    """

    valid_label_columns: tuple[str, ...] = ()

    def __init__(
        self,
        model: LatentRetriever,
        method: Method,
        reasonings: Sequence[Sequence[str]] = (),
        explicit_max_length: int = EXPLICIT_MAX_LENGTH,
    ) -> None:
        """`reasonings`: all training reasoning, for the lexical targets."""
        self.encoder = model.encoder
        self.query_prompt = model.prompts.get("query") or ""
        self.document_prompt = model.prompts.get("document") or ""
        self.method = method
        self.explicit_max_length = explicit_max_length
        is_lexical = isinstance(method, LatentMethod) and method.lexical
        self.lexical_targets = LexicalTargets(model.encoder, method, reasonings) if is_lexical else None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        ordered = list(zip(*(zip(row["document_ids"], row["documents"]) for row in rows)))
        documents = [pair for column in ordered for pair in column]
        different = dict(documents)
        position = {doc_id: row for row, doc_id in enumerate(different)}
        queries = [row["query"] for row in rows]
        own = [row.get("prompt") or "" for row in rows]
        asked, prompt = join_queries(queries, own, self.query_prompt)
        parts = {
            "query": self.encoder.preprocess(asked, prompt=prompt),
            "document": self.encoder.preprocess(list(different.values()), prompt=self.document_prompt),
        }
        keys = [[_key(i) for i in row["positive_ids"]] for row in rows]
        width = max(map(len, keys))
        parts["query"]["positive_keys"] = torch.tensor([row + row[:1] * (width - len(row)) for row in keys])
        parts["document"]["keys"] = torch.tensor([_key(i) for i, _ in documents])
        parts["document"]["rows"] = torch.tensor([position[i] for i, _ in documents])
        reasoning = [row["reasoning"] for row in rows]
        if self.lexical_targets is not None:
            parts["query"] |= self.lexical_targets(queries, reasoning)
        if self.method.needs_explicit:
            how = dict(
                prompt=prompt,
                steps=self.method.thinking_steps,
                rule=self.method.downsampling,
                max_length=self.explicit_max_length,
            )
            if self.method.explicit_format == "released":
                written = [row.get("reasoning_text") or " " + "\n\n".join(row["reasoning"]) for row in rows]
                parts["explicit"] = released_features(self.encoder, asked, written, fallbacks=queries, **how)
            else:
                parts["explicit"] = explicit_features(self.encoder, asked, reasoning, **how)
        batch: dict[str, Any] = {
            f"{part}_{key}": value for part, keyed in parts.items() for key, value in keyed.items()
        }
        batch["ids"] = [row["id"] for row in rows]
        return batch
