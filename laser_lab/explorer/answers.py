"""The explorer's answers as plain data: tokens, ranks and places in the plane, for every K from one rollout.

Nothing here draws, and nothing knows a browser. Everything that :meth:`Answers.answer` and its siblings return can be
written as JSON.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from sentence_transformers import SentenceTransformer
from sklearn.decomposition import PCA
from torch import Tensor

from laser_lab.base.numbers import named_rows
from laser_lab.data.prompts import join_queries
from laser_lab.encoder import think
from laser_lab.explorer.changes import STEPS, Change
from laser_lab.explorer.corpus import Corpus
from laser_lab.probing.causal import skipped_states, soft_tokens
from laser_lab.probing.lens import TunedLens
from laser_lab.probing.tracing import think_layers
from laser_lab.probing.vocabulary import (
    decode_tokens,
    logit_lens,
    nearest_tokens,
    step_statistics,
    token_course,
    token_embeddings,
    token_id,
    token_names,
)
from laser_lab.thinking import Thoughts

TOKENS = 6
"""Tokens shown per step."""
LAYER_TOKENS = 10
"""Tokens read at each layer and step."""
DOCUMENTS = 10
"""Documents shown per K; the relevant ones come on top of these."""
NEIGHBOURS = 10
MAX_CHARACTERS = 2000
FITTED = 20_000
"""Document vectors that the plane is fitted on, at most."""


class Answers:
    """A model with a corpus that it has encoded once for every K, ready to answer queries.

    Args:
        references: Queries over which the mean thought is taken, where there are two of them.
        steps: The largest K.
        lens: Of this model (:func:`laser_lab.fit_lens`).
    """

    def __init__(
        self,
        model: SentenceTransformer,
        corpus: Corpus,
        references: Sequence[str] = (),
        *,
        steps: int | None = None,
        lens: TunedLens | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> None:
        self.model, self.corpus, self.lens = model, corpus, lens
        self.steps = min(steps or STEPS, longest(model))
        # With pooling "generated", soft token k+1 is read from pooled state k. In one pass nothing is read from a
        # state: token k is the learned one that state k stands at.
        self._offset = 0 if model[0].max_steps is not None else skipped_states(model)
        self._prompt = model._resolve_prompt(None, "query") or ""
        for query in references:
            self.check_query(query)
        self._documents = self._encode(batch_size, show_progress_bar)
        self.places, self.bounds, self.variance = self._plane()
        self.mean: Tensor | None = None
        if len(references) > 1:
            self.mean = self._soft_tokens(*references, batch_size=batch_size).mean(0)
        self._rollout = lru_cache(maxsize=256)(self._think)
        self._said = lru_cache(maxsize=256)(self._soft_tokens)

    # -- the corpus ------------------------------------------------------------------------------------------------

    def _encode(self, batch_size: int, show_progress_bar: bool) -> np.ndarray:
        """(K, N, D) float32: the documents' embeddings after each step; where the model has a K of its own for them,
        they are an index that stays."""
        texts, size = self.corpus.texts, self.model.get_embedding_dimension()
        own = self.model[0].document_steps
        read = range(1, self.steps + 1) if own is None else [own]
        found = np.empty((len(read), len(texts), size), dtype=np.float32)
        options: dict[str, Any] = dict(batch_size=batch_size, show_progress_bar=show_progress_bar)
        for start in range(0, len(texts), 8192):  # the states of a slice at a time
            rows = slice(start, start + 8192)
            with named_rows(start.__add__, lambda row: f"document {self.corpus.ids[row]:.80}"):
                thoughts = think(self.model, texts[rows], read[-1], prompt_name="document", **options)
            for number, k in enumerate(read):
                found[number, rows] = thoughts.embeddings_at(k).numpy()
        return np.broadcast_to(found, (self.steps, len(texts), size))

    def _plane(self) -> tuple[np.ndarray, list[float], float]:
        """(K, N, 2) places of the documents in the plane of their first two principal components, where it begins and
        how far it reaches (x, y, width, height), and its share of their variance."""
        steps, count, _ = self._documents.shape
        every = -(-steps * count // FITTED)
        row = np.arange(0, steps * count, every)
        self._pca = PCA(n_components=2, random_state=0).fit(self._documents[row // count, row % count])
        places = np.stack([self._pca.transform(vectors) for vectors in self._documents])
        low, high = places.min((0, 1)), places.max((0, 1))
        margin = 0.1 * (high - low) + 1e-6  # the way of a query may leave the documents
        bounds = [*(low - margin), *(high - low + 2 * margin)]
        return places, [round(float(b), 6) for b in bounds], float(self._pca.explained_variance_ratio_.sum())

    def neighbours(self, row: int, k: int) -> list[dict[str, Any]]:
        """The documents nearest to a document after K steps: ``row``, ``id``, ``text`` and ``score`` (cosine)."""
        if not 0 <= row < len(self.corpus) or not 1 <= k <= self.steps:
            raise ValueError("There is no such document or step.")
        scores = self._documents[k - 1] @ self._documents[k - 1][row]
        scores[row] = -np.inf
        count = min(NEIGHBOURS, len(scores) - 1)
        nearest = np.argpartition(-scores, count - 1)[:count] if count else np.empty(0, int)
        nearest = nearest[np.argsort(-scores[nearest], kind="stable")]
        return [self._document(r) | {"score": round(float(scores[r]), 4)} for r in nearest.tolist()]

    def _document(self, row: int) -> dict[str, Any]:
        return {"row": row, "id": self.corpus.ids[row], "text": self.corpus.shown(row)}

    # -- answers ---------------------------------------------------------------------------------------------------

    def answer(
        self, query: str, change: Change | None = None, *, before: np.ndarray | None = None, pins: Iterable[str] = ()
    ) -> dict[str, Any]:
        """Everything there is to draw for a query, for every K.

        Args:
            before: (K, N) ranks to compare with; default: those without the change.
            pins: Names of tokens to follow beside those that are first at some step.

        Returns:
            - ``query``, ``change`` (as a dict, with its ``label``) or None, ``seconds``, ``judged`` (whether relevant
              documents are known), ``notes`` (sentences for the reader);
            - ``taken``: the steps after which the thought ended, or K;
            - ``tokens``: per step the most probable, each with ``text``, ``name`` to choose it by, and ``p``;
              nothing after the end;
            - ``path``: per K the place in the plane;
            - ``statistics``: name to a value per step (:func:`step_statistics`), and the cosine of
              the embedding after K steps to the ``best`` and to the ``relevant`` document;
            - ``courses``: per followed token ``name``, ``text``, and per step ``p`` and ``rank``;
            - ``documents``, those among the first for some K or relevant: ``row``, ``id``, ``text``, ``relevant`` and,
              per K, ``ranks`` (from 1), ``before`` and ``scores``.

            Where nothing is left to pool, or a thought has ended, a value is None.

        Raises:
            TypeError: The query is not a string.
            ValueError: It is empty or too long, the change names no token or query of this model, or the model gave
                numbers that are not finite.
        """
        started = time.perf_counter()
        thoughts, vectors = self.thoughts(query, change), self._vectors(query, change)
        pooled = np.isfinite(vectors[:, 0])  # which K have a state to pool
        scores, ranks = self._rank(vectors)
        if before is None:
            before = ranks if change is None else self.ranks(query)
        relevant = self.corpus.relevant(query)
        best = np.minimum(ranks, before, where=pooled[:, None], out=before.copy()).min(axis=0)
        rows = dict.fromkeys([*np.flatnonzero(best <= DOCUMENTS).tolist(), *relevant])
        tokens = self._tokens(thoughts)
        followed = list(dict.fromkeys([*(step[0]["name"] for step in tokens if step), *pins]))
        return {
            "query": query,
            "change": None if change is None else change.as_dict(),
            "judged": bool(relevant),
            "notes": self._notes(query),
            "taken": int(thoughts.steps_taken[0]),
            "tokens": tokens,
            "path": _known(self._pca.transform(np.nan_to_num(vectors)), pooled, 4),
            "statistics": self._statistics(thoughts, scores, pooled, relevant),
            "courses": self.courses(query, change, followed),
            "documents": [
                self._document(row)
                | {"relevant": row in relevant, "before": before[:, row].tolist()}
                | {"ranks": _known(ranks[:, row], pooled), "scores": _known(scores[:, row], pooled, 4)}
                for row in rows
            ],
            "seconds": round(time.perf_counter() - started, 3),
        }

    def ranks(self, query: str, change: Change | None = None) -> np.ndarray:
        """(K, N): the rank of every document, from 1."""
        return self._rank(self._vectors(query, change))[1]

    def ranking(self, query: str, change: Change | None = None, steps: Sequence[int] | None = None) -> pd.DataFrame:
        """The whole ranking for some K (default: every one): ``query, change, thinking_steps, rank, doc_id, document,
        score, relevant``, best first. Raises as :meth:`answer`."""
        steps = range(1, self.steps + 1) if steps is None else steps
        vectors = self._vectors(query, change)
        relevant = np.isin(np.arange(len(self.corpus)), self.corpus.relevant(query))
        label = "as thought" if change is None else change.label
        ids, texts = np.array(self.corpus.ids, dtype=object), np.array(self.corpus.texts, dtype=object)
        frames = []
        for k in steps:
            if not np.isfinite(vectors[k - 1, 0]):
                continue
            scores = (self._documents[k - 1] @ vectors[k - 1]).astype(float)
            order = np.argsort(-scores, kind="stable")
            columns = {"query": query, "change": label, "thinking_steps": k, "rank": np.arange(1, len(order) + 1)}
            columns |= {"doc_id": ids[order], "document": texts[order], "score": scores[order]}
            frames.append(pd.DataFrame(columns | {"relevant": relevant[order]}))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def layers(self, query: str, change: Change | None = None, lens: str = "head") -> dict[str, Any]:
        """What every layer would say at every step: ``cells``, per layer (0: before the first) and step ``tokens``
        (the ten nearest: ``text``, ``name``, ``p``), ``entropy`` and ``rank`` (here, of what the last layer says);
        after the end of the thought, None.

        Args:
            lens: ``"head"`` or ``"tuned"``, where a tuned lens was given.
        """
        if lens not in ("head", "tuned") or (lens == "tuned" and self.lens is None):
            raise ValueError("There is no such lens: pass explore(..., lens=ll.fit_lens(model, texts)).")
        taken = int(self.thoughts(query, change).steps_taken[0])
        edit = self._edit(change)
        traced = think_layers(self.model, **self._asked(query), edit=edit)
        backbone = self.model[0].backbone
        top = min(LAYER_TOKENS, len(backbone.embedding_table))
        frame = logit_lens(self.model, traced, top, self.lens if lens == "tuned" else None)
        names = dict(zip(ids := frame["token_id"].unique().tolist(), token_names(backbone.tokenizer, ids)))
        cells: list[list[Any]] = [[None] * self.steps for _ in range(traced.layers.shape[2])]
        for (step, layer), found in frame.groupby(["step", "layer"]):
            if step > taken:
                continue
            said = zip(found["token"], found["token_id"], found["probability"])
            cells[layer][step - 1] = {
                "tokens": [{"text": text, "name": names[i], "p": round(p, 4)} for text, i, p in said],
                "entropy": round(float(found["entropy"].iloc[0]), 4),
                "rank": int(found["last_rank"].iloc[0]),
            }
        return {"query": query, "lens": lens, "cells": cells, "vocabulary": len(backbone.embedding_table)}

    def courses(self, query: str, change: Change | None, names: Sequence[str]) -> list[dict[str, Any]]:
        """How probable tokens are at each step: ``name``, ``text``, ``p`` and ``rank`` (None after the end)."""
        backbone, thoughts = self.model[0].backbone, self.thoughts(query, change)
        ids = [token_id(backbone, name) for name in names]
        frame = token_course(self.model, thoughts, list(dict.fromkeys(ids)))
        courses = {i: part for i, part in frame.groupby("token_id")}
        known = np.arange(self.steps) < int(thoughts.steps_taken[0])
        return [
            {"name": name, "text": text}
            | {"p": _known(courses[i]["probability"].to_numpy(), known, 6)}
            | {"rank": _known(courses[i]["rank"].to_numpy(), known)}
            for name, text, i in zip(names, decode_tokens(backbone.tokenizer, ids), ids)
        ]

    def effect(self, query: str, change: Change) -> dict[str, Any]:
        """What a change does to the rank of the best relevant document or, where none is known, of the first one:
        ``change``, and per K the rank ``before`` and ``after`` (None where nothing is left to pool)."""
        before, after = self.ranks(query), self.ranks(query, change)
        pooled = np.isfinite(self._vectors(query, change)[:, 0])
        if relevant := self.corpus.relevant(query):
            was, now = before[:, relevant].min(1), after[:, relevant].min(1)
        else:
            first = before.argmin(1)
            was, now = before.min(1), after[np.arange(self.steps), first]
        return {"change": change.as_dict(), "before": was.tolist(), "after": _known(now, pooled)}

    def presets(self, query: str, other: str, steps: int | None = None) -> list[Change]:
        """Each kind of change at each soft token, up to the model's own K or to `steps`. The token is the most
        probable one of `other` that is not `query`'s own."""
        own, others = (self._tokens(self.thoughts(text)) for text in (query, other))
        presets = []
        for step in range(1, max(2, min(steps or self.model[0].thinking_steps, self.steps))):
            mine = [token["name"] for token in own[step - 1][:1]]
            name = next((t["name"] for t in others[step - 1] if t["name"] not in mine), None)
            presets += [Change(step, "token", name)] if name else []
            presets += [Change(step, "query", other)] if other != query else []
            presets += [Change(step, "noise", "0")]
            presets += [Change(step, kind) for kind in ("mean", "knock-out") if self.mean is not None]
        return presets

    # -- the work --------------------------------------------------------------------------------------------------

    def thoughts(self, query: str, change: Change | None = None) -> Thoughts:
        """The (1, K, D) thoughts about a query. Raises as :meth:`answer`."""
        self.check_query(query)
        if change is not None and change.step >= self.steps:
            raise ValueError(f"This model thinks at most {self.steps} steps: change one before the last.")
        return self._rollout(query, change)

    def _think(self, query: str, change: Change | None) -> Thoughts:
        with named_rows(int, lambda row: "this query"):
            return think(self.model, **self._asked(query), edit=self._edit(change))

    def _edit(self, change: Change | None) -> Any:
        if change is None:
            return None
        place = change.step + self._offset
        return change.edit(place, self._value(change, place), self._documents.shape[-1])

    def _value(self, change: Change, place: int) -> Tensor | None:
        """(D,): what a change feeds back as soft token `place`; noise is made by its edit."""
        if change.kind == "noise":
            return None
        if change.kind == "token":
            return token_embeddings(self.model, [change.value])[0]
        if change.kind == "query":
            self.check_query(change.value)
            return self._said(change.value)[0, place - 1]
        if self.mean is None:
            raise ValueError("The mean thought needs at least two example queries: explore(..., examples=[...]).")
        return self.mean[place - 1]

    def _soft_tokens(self, *queries: str, batch_size: int = 32) -> Tensor:
        return soft_tokens(self.model, **self._asked(*queries), batch_size=batch_size)

    def _asked(self, *queries: str) -> dict[str, Any]:
        """How to think about queries, each with its own instruction."""
        texts, prompts = zip(*map(self.corpus.asked, queries))
        return dict(texts=texts, prompts=prompts, thinking_steps=self.steps, prompt_name="query")

    def _vectors(self, query: str, change: Change | None = None) -> np.ndarray:
        """(K, D): the query's embedding after each step; NaN where a change leaves nothing to pool."""
        thoughts = self.thoughts(query, change)
        out = None if change is None else change.unpooled
        return torch.cat([thoughts.embeddings_at(k, out) for k in range(1, self.steps + 1)]).numpy()

    def _rank(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(K, D) query vectors to the cosine and the rank, from 1, of every document: (K, N) each."""
        scores = np.stack([documents @ vector for documents, vector in zip(self._documents, vectors)])
        order = np.argsort(-scores, axis=1, kind="stable")
        ranks = np.empty_like(order)
        np.put_along_axis(ranks, order, np.arange(1, scores.shape[1] + 1)[None], axis=1)
        return scores.astype(float), ranks  # float32 would be written with long decimals

    def _tokens(self, thoughts: Thoughts) -> list[list[dict[str, Any]]]:
        backbone = self.model[0].backbone
        top = min(TOKENS, len(backbone.embedding_table))
        frame = nearest_tokens(self.model, thoughts, top=top)
        names = token_names(backbone.tokenizer, frame["token_id"].tolist())
        cells = [
            {"text": text, "name": name, "p": round(p, 4)}
            for text, name, p in zip(frame["token"], names, frame["probability"].tolist())
        ]
        taken = int(thoughts.steps_taken[0])
        return [cells[k * top : (k + 1) * top] if k < taken else [] for k in range(self.steps)]

    def _statistics(
        self, thoughts: Thoughts, scores: np.ndarray, pooled: np.ndarray, relevant: list[int]
    ) -> dict[str, list[float | None]]:
        frame = step_statistics(self.model, thoughts).drop(columns=["text", "step", "ended"])
        if self.model[0].end_token is None:  # nothing ends, and every state weighs the same
            frame = frame.drop(columns=["end_probability", "weight"])
        found = {name: _known(values.to_numpy(), values.notna().to_numpy(), 5) for name, values in frame.items()}
        found["best"] = _known(scores.max(1), pooled, 5)
        if relevant:
            found["relevant"] = _known(scores[:, relevant].max(1), pooled, 5)
        return found

    def check_query(self, query: str) -> None:
        """Raises TypeError or ValueError, with a sentence for the reader, if `query` cannot be asked."""
        if not isinstance(query, str):
            raise TypeError(f"a query must be a string, not {type(query).__name__}")
        text, prompt = self.corpus.asked(query)
        if not text.strip():
            raise ValueError("The query is empty: type one, or choose an example.")
        if len(query) > MAX_CHARACTERS:
            raise ValueError(f"The query has {len(query):,} characters; at most {MAX_CHARACTERS:,} can be asked here.")
        encoder = self.model[0]
        [whole], prefix = join_queries([text], [prompt], self._prompt)
        tokens, limit = len(encoder.token_ids(encoder.wrapped([prefix + whole]))[0]), encoder.max_length
        if encoder.backbone.max_positions is not None:
            limit = min(limit, encoder.backbone.max_positions - self.steps - self._offset + 1)
        if tokens > limit:
            raise ValueError(f"The query has {tokens} tokens, its prompt included; this model reads at most {limit}.")

    def _notes(self, query: str) -> list[str]:
        """The query's own instruction, and words that a tokenizer of whole words does not know."""
        text, prompt = self.corpus.asked(query)
        notes = [f"Asked with its own instruction: “{prompt:.200}”."] if prompt else []
        tokenizer = self.model[0].tokenizer
        unknown = tokenizer.unk_token_id
        if unknown is None or unknown not in tokenizer(text)["input_ids"]:  # subword tokenizers know all
            return notes
        words = dict.fromkeys(text.split())
        said = [f"“{w:.40}”" for w in words if unknown in tokenizer(w, add_special_tokens=False)["input_ids"]]
        return [*notes, f"Not in this model's vocabulary: {', '.join(said[:8])}."]


def longest(model: SentenceTransformer) -> int:
    """The largest K that the explorer shows of a model."""
    return STEPS if model[0].max_steps is None else min(STEPS, model[0].max_steps)


def _known(values: np.ndarray, known: np.ndarray, digits: int = 0) -> list[Any]:
    """Rounded values as JSON has them; None where they are not known."""
    values = np.asarray(values, dtype=float if np.asarray(values).dtype.kind == "f" else None)
    return [value if ok else None for value, ok in zip(np.round(values, digits).tolist(), known)]
