"""The explorer's answers as plain data: tokens, ranks and places in the plane, for every K from one rollout.

Nothing here draws, and nothing knows a browser.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from laser_lab.base.inputs import check_texts
from laser_lab.data.readers import RetrievalTask
from laser_lab.encoder import think
from laser_lab.explorer.changes import STEPS, Change
from laser_lab.probing.causal import skipped_states, soft_tokens, think_and_keep
from laser_lab.probing.vocabulary import nearest_tokens, token_embeddings, token_names
from laser_lab.thinking import Thoughts

if TYPE_CHECKING:
    import pandas as pd
    from sentence_transformers import SentenceTransformer

TOKENS = 6
"""Tokens shown per step."""
DOCUMENTS = 10
"""Documents shown per K; the relevant ones come on top of these."""
EXAMPLES = 8
REFERENCES = 32
"""Queries over which the mean thought is taken."""
MAX_CHARACTERS = 2000


class Answers:
    """A model with a corpus that it has encoded once for every K, ready to answer queries."""

    def __init__(
        self,
        model: SentenceTransformer,
        corpus: RetrievalTask | Mapping[str, str] | Sequence[str],
        examples: str | Sequence[str] | None = None,
        *,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> None:
        self.model = model
        self.task = _as_task(corpus)
        self.doc_ids = list(self.task.corpus)
        self._row = {doc: row for row, doc in enumerate(self.doc_ids)}
        self._relevant: dict[str, set[str]] = {}
        for query_id, text in self.task.queries.items():
            grades = self.task.qrels.get(query_id, {})
            self._relevant.setdefault(text, set()).update(doc for doc, grade in grades.items() if grade > 0)
        one_pass = model[0].max_steps is not None
        self.steps = min(STEPS, model[0].max_steps) if one_pass else STEPS
        # With pooling "generated", soft token k+1 is read from pooled state k. In one pass nothing is read from a
        # state: token k is the learned one that state k stands at.
        self._offset = 0 if one_pass else skipped_states(model)
        self._prompt = model._resolve_prompt(None, "query")
        queries = list(self.task.queries.values())
        self.examples = queries[:EXAMPLES] if examples is None else as_list(examples)
        for query in self.examples:
            self.check_query(query)

        options: dict[str, Any] = dict(batch_size=batch_size, show_progress_bar=show_progress_bar)
        documents = think(model, list(self.task.corpus.values()), self.steps, prompt_name="document", **options)
        self._documents = np.stack([documents.embeddings_at(k).numpy() for k in range(1, self.steps + 1)])  # (K, N, D)
        self._mean = self._mean_thought(list(dict.fromkeys([*self.examples, *queries]))[:REFERENCES], batch_size)
        self._rollout = lru_cache(maxsize=256)(self._think)

        from sklearn.decomposition import PCA

        everywhere = self._documents.reshape(-1, self._documents.shape[-1])
        self.plane = PCA(n_components=2, random_state=0).fit(everywhere)
        self._places = self.plane.transform(everywhere).astype(float).reshape(self.steps, -1, 2)

    def answer(self, query: str, change: Change | None = None) -> dict[str, Any]:
        """Everything there is to draw for a query, for K = 1..8; it can be written as JSON.

        Returns:
            ``query``, ``change`` (as a dict, with its ``label``) or None, ``seconds``, ``judged`` (whether relevant
            documents are known), ``notes`` (sentences for the reader), ``tokens`` (8 steps of the most probable:
            ``text``, ``name`` to choose it by, ``p``), ``path`` (8 places in the plane) and ``documents``, those
            among the first for some K or relevant: ``id``, ``text``, ``relevant`` and, per K, ``ranks`` (from 1),
            ``before`` (without the change), ``scores`` and ``xy``. Where nothing is left to pool, a rank, score or
            place is None.

        Raises:
            TypeError: The query is not a string.
            ValueError: It is empty or too long, or the change names no token or query of this model.
        """
        started = time.perf_counter()
        self.check_query(query)
        if change is not None and change.step >= self.steps:
            raise ValueError(f"This model thinks at most {self.steps} steps: change one before the last.")
        thoughts, _ = self._rollout(query, change)
        vectors = _embeddings(thoughts, change)
        pooled = np.isfinite(vectors[:, 0])  # which K have a state to pool
        scores, ranks = self._ranks(vectors)
        before = ranks if change is None else self._ranks(_embeddings(self._rollout(query, None)[0]))[1]
        relevant = self._relevant.get(query, ())
        best = np.minimum(ranks, before, where=pooled[:, None], out=before.copy()).min(axis=0)
        rows = dict.fromkeys(
            [*np.flatnonzero(best <= DOCUMENTS).tolist(), *(self._row[doc] for doc in sorted(relevant))]
        )

        def known(values: np.ndarray, digits: int) -> list[Any]:
            return [value if ok else None for value, ok in zip(values.round(digits).tolist(), pooled)]

        documents = [
            {
                **self.place(row),
                "relevant": self.doc_ids[row] in relevant,
                "ranks": known(ranks[:, row], 0),
                "before": before[:, row].tolist(),
                "scores": known(scores[:, row], 4),
            }
            for row in rows
        ]
        return {
            "query": query,
            "change": None if change is None else asdict(change) | {"label": change.label},
            "judged": bool(relevant),
            "notes": self._notes(query),
            "tokens": self._tokens(thoughts),
            "path": known(self.plane.transform(np.nan_to_num(vectors)).astype(float), 3),
            "documents": documents,
            "seconds": round(time.perf_counter() - started, 3),
        }

    def ranking(self, query: str, change: Change | None = None) -> pd.DataFrame:
        """The whole ranking for every K: ``query, change, thinking_steps, rank, doc_id, document, score, relevant``,
        best first. Raises as :meth:`answer`."""
        import pandas as pd

        self.check_query(query)
        scores, ranks = self._ranks(_embeddings(self._rollout(query, change)[0], change))
        relevant = self._relevant.get(query, ())
        frame = pd.DataFrame(
            {
                "query": query,
                "change": "as thought" if change is None else change.label,
                "thinking_steps": np.repeat(np.arange(1, self.steps + 1), len(self.doc_ids)),
                "rank": ranks.ravel(),
                "doc_id": self.doc_ids * self.steps,
                "document": list(self.task.corpus.values()) * self.steps,
                "score": scores.ravel(),
                "relevant": [doc in relevant for doc in self.doc_ids] * self.steps,
            }
        )
        return frame.dropna(subset="score").sort_values(["thinking_steps", "rank"], ignore_index=True)

    def _think(self, query: str, change: Change | None) -> tuple[Thoughts, Tensor]:
        """The (1, K, D) thoughts of a query, and the (S, D) soft tokens that were fed back. One rollout serves every
        K."""
        edit = None
        if change is not None:
            place, size = change.step + self._offset, self._documents.shape[-1]
            edit = change.edit(place, self._value(change, place), size)
        thoughts, fed = think_and_keep(self.model, [query], self.steps, prompt_name="query", edit=edit)
        return thoughts, fed[0]

    def _value(self, change: Change, place: int) -> Tensor | None:
        """(D,): what a change feeds back as soft token `place`; noise is made by its edit."""
        if change.kind == "noise":
            return None
        if change.kind == "token":
            return token_embeddings(self.model, [change.value])[0]
        if change.kind == "query":
            self.check_query(change.value)
            return self._rollout(change.value, None)[1][place - 1]
        if self._mean is None:
            raise ValueError("The mean thought needs at least two example queries: explore(..., examples=[...]).")
        return self._mean[place - 1]

    def _mean_thought(self, queries: list[str], batch_size: int) -> Tensor | None:
        """(S, D): the mean soft token of every step over `queries`; None of fewer than two."""
        if len(queries) < 2:
            return None
        return soft_tokens(self.model, queries, self.steps, prompt_name="query", batch_size=batch_size).mean(0)

    def _ranks(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(K, D) query vectors to the cosine and the rank, from 1, of every document: (K, N) each."""
        scores = np.einsum("knd,kd->kn", self._documents, vectors).astype(float)  # float32 writes long decimals
        order = np.argsort(-scores, axis=1, kind="stable")
        ranks = np.empty_like(order)
        np.put_along_axis(ranks, order, np.arange(1, scores.shape[1] + 1)[None], axis=1)
        return scores, ranks

    def _tokens(self, thoughts: Thoughts) -> list[list[dict[str, Any]]]:
        """Per step, the most probable tokens: ``text``, ``name`` to choose it by, and ``p``."""
        backbone = self.model[0].backbone
        top = min(TOKENS, len(backbone.embedding_table))
        frame = nearest_tokens(self.model, thoughts, top=top)
        names = token_names(backbone.tokenizer, frame["token_id"].tolist())
        cells = [
            {"text": text, "name": name, "p": round(p, 4)}
            for text, name, p in zip(frame["token"], names, frame["probability"].tolist())
        ]
        return [cells[start : start + top] for start in range(0, len(cells), top)]

    def presets(self, query: str, other: str) -> list[Change]:
        """Each kind of change at each soft token that the model is trained to feed back. The token is the most
        probable one of `other` that is not `query`'s own."""
        own, others = (self._tokens(self._rollout(text, None)[0]) for text in (query, other))
        presets = []
        for step in range(1, max(2, min(self.model[0].thinking_steps, self.steps))):
            name = next((t["name"] for t in others[step - 1] if t["name"] != own[step - 1][0]["name"]), None)
            presets += [Change(step, "token", name)] if name else []
            presets += [Change(step, "query", other)] if other != query else []
            presets += [Change(step, "noise", "0")]
            presets += [Change(step, kind) for kind in ("mean", "knock-out") if self._mean is not None]
        return presets

    def check_query(self, query: str) -> None:
        """Raises TypeError or ValueError, with a sentence for the reader, if `query` cannot be asked."""
        if not isinstance(query, str):
            raise TypeError(f"a query must be a string, not {type(query).__name__}")
        if not query.strip():
            raise ValueError("The query is empty: type one, or choose an example.")
        if len(query) > MAX_CHARACTERS:
            raise ValueError(f"The query has {len(query):,} characters; at most {MAX_CHARACTERS:,} can be asked here.")
        encoder = self.model[0]
        tokens, limit = len(encoder.tokenizer(self._prompt + query)["input_ids"]), encoder.max_length
        if encoder.backbone.max_positions is not None:
            limit = min(limit, encoder.backbone.max_positions - self.steps - self._offset + 1)
        if tokens > limit:
            raise ValueError(f"The query has {tokens} tokens, its prompt included; this model reads at most {limit}.")

    def place(self, row: int) -> dict[str, Any]:
        """A document and its place in the plane for every K."""
        doc = self.doc_ids[row]
        return {"id": doc, "text": _short(self.task.corpus[doc]), "xy": self._places[:, row].round(3).tolist()}

    def _notes(self, query: str) -> list[str]:
        """Words that a tokenizer of whole words does not know; subword tokenizers know all."""
        tokenizer = self.model[0].tokenizer
        unknown = tokenizer.unk_token_id
        if unknown is None or unknown not in tokenizer(query)["input_ids"]:
            return []
        words = [
            w for w in dict.fromkeys(query.split()) if unknown in tokenizer(w, add_special_tokens=False)["input_ids"]
        ]
        return [f"Not in this model's vocabulary: {', '.join(f'“{w:.40}”' for w in words[:8])}."]


def _embeddings(thoughts: Thoughts, change: Change | None = None) -> np.ndarray:
    """The thoughts of one text to its (K, D) embeddings for every K; NaN where a change leaves nothing to pool."""
    out = None if change is None else change.unpooled
    return torch.cat([thoughts.embeddings_at(k, out) for k in range(1, thoughts.thinking_steps + 1)]).numpy()


def _as_task(corpus: RetrievalTask | Mapping[str, str] | Sequence[str]) -> RetrievalTask:
    if isinstance(corpus, RetrievalTask):
        task = corpus
    elif isinstance(corpus, Mapping):
        task = RetrievalTask("", {}, {str(doc): text for doc, text in corpus.items()}, {})
    elif isinstance(corpus, str):
        raise TypeError("corpus must be a task, {id: text} or a list of texts, not one text")
    else:
        task = RetrievalTask("", {}, {str(number): text for number, text in enumerate(corpus, 1)}, {})
    check_texts(task.corpus.values())
    if not task.corpus:
        raise ValueError("the corpus is empty: there is nothing to rank")
    return task


def as_list(queries: str | Sequence[str]) -> list[str]:
    return check_texts([queries] if isinstance(queries, str) else queries)


def _short(text: str, limit: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
