"""The explorer: see what a query makes the model think, change one thought, and see where retrieval goes.

This file answers questions with plain data: tokens, ranks and places in the plane for every K from one rollout. What
is seen is drawn by ``explorer.js``, the same in a notebook cell (through anywidget) and in the file that
:meth:`Explorer.to_html` writes. An intervention is an edit of the rollout, see :func:`laser_lab.think`.
"""

from __future__ import annotations

import difflib
import html
import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from laser_lab.base.files import missing_extra
from laser_lab.base.inputs import check_texts
from laser_lab.data.readers import RetrievalTask
from laser_lab.encoder import think
from laser_lab.probing.vocabulary import decode_tokens, nearest_tokens
from laser_lab.thinking import Thoughts

if TYPE_CHECKING:
    import pandas as pd
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

STEPS = 8
"""The longest thought: K goes from 1 to this, or to the number of reason tokens that the model has learned."""
TOKENS = 6
"""Tokens shown per step."""
DOCUMENTS = 10
"""Documents shown per K; the relevant ones come on top of these."""
MAPPED = 400
"""Documents drawn in the plane; of a larger corpus, evenly spaced ones."""
EXAMPLES = 8
REFERENCES = 32
"""Queries over which the mean thought is taken."""
MAX_CHARACTERS = 2000

KINDS = {
    "token": "the token",
    "query": "the thought of another query",
    "mean": "the mean thought",
    "noise": "noise",
    "knock-out": "nothing (knocked out)",
}
"""What a thought can be replaced by. Knocked out, nothing is left of a step: the mean is fed back in the place of its
soft token, and its state is not pooled."""


@dataclass(frozen=True)
class Change:
    """An intervention: what is fed back in the place of one step's soft token."""

    step: int
    """k, from 1 to 7: the last step feeds nothing back"""
    kind: str
    """one of :data:`KINDS`"""
    value: str = ""
    """``token``: its name, or ``#`` and its id; ``query``: the other query; ``noise``: the seed, a whole number"""

    def __post_init__(self) -> None:
        if isinstance(self.step, bool) or not isinstance(self.step, int) or not 1 <= self.step < STEPS:
            raise ValueError(
                f"The step must be from 1 to {STEPS - 1} (the last one feeds nothing back): {self.step!r}."
            )
        if self.kind not in KINDS:
            raise ValueError(f"A thought can be replaced by {', '.join(KINDS)}: {self.kind!r} is none of these.")
        if not isinstance(self.value, str):
            raise ValueError(f"The value must be a text: {self.value!r}.")
        if self.kind == "noise" and not re.fullmatch(r"[0-9]{1,9}", self.value or "0"):
            raise ValueError(f"The seed of the noise must be a whole number: {self.value!r:.80}.")

    @property
    def label(self) -> str:
        """``soft token 1 → the token “mirolo”``"""
        token = re.sub(r"\s", lambda space: {" ": "␣", "\t": "⇥"}.get(space[0], "⏎"), self.value)
        shown = {"token": f" “{token}”", "query": f" “{self.value}”", "noise": f", seed {self.value or 0}"}
        return f"soft token {self.step} → {KINDS[self.kind]}{shown.get(self.kind, '')}"


def explore(
    model: SentenceTransformer,
    corpus: RetrievalTask | Mapping[str, str] | Sequence[str],
    examples: str | Sequence[str] | None = None,
    *,
    batch_size: int = 32,
    show_progress_bar: bool = True,
) -> Explorer:
    """An interactive window on latent thinking, for a notebook cell: make it the last expression.

    Type or choose a query; see the tokens of every step, the ranking for every K and the way among the documents;
    replace one step's soft token and see the changed ranking beside the original.

    Args:
        model: A retriever; see :func:`laser_lab.load`.
        corpus: Documents: a task (its queries are the examples, its relevant documents are marked), {id: text}, or
            texts. All are encoded now, for every K at once.
        examples: Queries to choose from; default: the first of the task. The mean thought is taken over these and
            the task's.

    Raises:
        ModuleNotFoundError: The extra ``lab`` is not installed.
        ValueError: The corpus is empty, or an example cannot be asked (:meth:`Explorer.answer`).
        TypeError: A text is not a string.
    """
    _anywidget()
    return Explorer(model, corpus, examples, batch_size=batch_size, show_progress_bar=show_progress_bar)


class Explorer:
    """What :func:`explore` shows; also without a browser: :meth:`answer`, :meth:`ranking`, :meth:`to_html`."""

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
        # GIRCSE's pooling drops the first state: what is read from pooled state k is then soft token k+1. In one pass
        # nothing is read from a state: token k is the learned one that state k stands at.
        self._offset = int(model[0].pooling == "generated" and not one_pass)
        self._prompt = model._resolve_prompt(None, "query")
        queries = list(self.task.queries.values())
        self.examples = queries[:EXAMPLES] if examples is None else _as_list(examples)
        for query in self.examples:
            self._check_query(query)

        options: dict[str, Any] = dict(batch_size=batch_size, show_progress_bar=show_progress_bar)
        documents = think(model, list(self.task.corpus.values()), self.steps, prompt_name="document", **options)
        self._documents = np.stack([documents.embeddings_at(k).numpy() for k in range(1, self.steps + 1)])  # (K, N, D)
        self._mean = self._mean_thought(list(dict.fromkeys([*self.examples, *queries]))[:REFERENCES], options)
        self._rollout = lru_cache(maxsize=256)(self._think)

        from sklearn.decomposition import PCA

        everywhere = self._documents.reshape(-1, self._documents.shape[-1])
        self._plane = PCA(n_components=2, random_state=0).fit(everywhere)
        self._places = self._plane.transform(everywhere).astype(float).reshape(self.steps, -1, 2)
        self._widget: Any = None

    # -- answers ---------------------------------------------------------------------------------------------------

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
        self._check_query(query)
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
                **self._place(row),
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
            "path": known(self._plane.transform(np.nan_to_num(vectors)).astype(float), 3),
            "documents": documents,
            "seconds": round(time.perf_counter() - started, 3),
        }

    def ranking(self, query: str, change: Change | None = None) -> pd.DataFrame:
        """The whole ranking for every K: ``query, change, thinking_steps, rank, doc_id, document, score, relevant``,
        best first. Raises as :meth:`answer`."""
        import pandas as pd

        self._check_query(query)
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

    # -- faces -----------------------------------------------------------------------------------------------------

    def to_html(self, path: str | os.PathLike[str], queries: str | Sequence[str] | None = None) -> Path:
        """Write the explorer as one file that needs no network and no Python: every K of each query, and for every
        soft token up to the model's own K each kind of intervention.

        Args:
            queries: Default: the examples.

        Raises:
            ValueError: There is no query, or one cannot be asked.
        """
        queries = self.examples if queries is None else _as_list(queries)
        if not queries:
            raise ValueError("there is no query to write: pass queries, or examples to explore")
        answers = []
        for number, query in enumerate(queries):
            answers.append(self.answer(query))
            answers += [self.answer(query, change) for change in self._presets(query, queries[number - 1])]
        settings = self._settings(queries) | {"first": None, "answers": answers}
        drawn = {document["id"] for document in settings["map"]}
        for document in (d for answer in answers for d in answer["documents"]):
            if document["id"] in drawn:  # the page takes these from the map
                del document["text"], document["xy"]
        folder = Path(__file__).parent
        parts = {
            "TITLE": html.escape(f"Latent thoughts: {self.task.name}" if self.task.name else "Latent thoughts"),
            "STYLE": (folder / "explorer.css").read_text(encoding="utf-8"),
            "SCRIPT": (folder / "explorer.js").read_text(encoding="utf-8"),
            # "<" cannot end the script element, whatever a document says
            "SETTINGS": json.dumps(settings, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c"),
        }
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{os.getpid()}.{path.name}")
        try:
            partial.write_text(re.sub(r"\{([A-Z]+)\}", lambda m: parts[m[1]], PAGE), encoding="utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    @property
    def widget(self) -> Any:
        """The anywidget behind the notebook cell; made on first use."""
        if self._widget is None:
            self._widget = _widget_class()(settings=self._settings(self.examples))
            self._widget.on_msg(self._on_message)
        return self._widget

    def __repr__(self) -> str:
        name = f" of {self.task.name}" if self.task.name else ""
        return f"Explorer{name}: {len(self.doc_ids)} documents. Run this cell in JupyterLab to use it."

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = self.widget._repr_mimebundle_(**kwargs)
        (bundle[0] if isinstance(bundle, tuple) else bundle)["text/plain"] = repr(self)  # where widgets are not shown
        return bundle

    def _on_message(self, widget: Any, request: dict[str, Any], buffers: Any) -> None:
        """One question from the page: ``id``, ``query`` and ``change``. Whatever happens, an answer goes back."""
        reply: dict[str, Any] = {"id": request.get("id")}
        try:
            change = request.get("change")
            reply["answer"] = self.answer(request.get("query", ""), None if change is None else Change(**change))
        except ValueError as error:
            reply["error"] = str(error)
        except Exception as error:
            logger.exception("the explorer could not answer")
            reply["error"] = f"{type(error).__name__}: {error}"
        widget.send(reply)

    def _settings(self, queries: Sequence[str]) -> dict[str, Any]:
        """What the page knows from the start; the answer to the first query is part of it, so that a saved notebook
        shows something without a kernel."""
        rows = range(0, len(self.doc_ids), max(1, -(-len(self.doc_ids) // MAPPED)))
        return {
            "steps": self.steps,
            "start": min(self.model[0].thinking_steps, self.steps),
            "top": DOCUMENTS,
            "count": len(self.doc_ids),
            "kinds": KINDS,
            "examples": list(queries),
            "map": [self._place(row) for row in rows],
            "variance": round(float(self._plane.explained_variance_ratio_.sum()), 3),
            "first": self.answer(queries[0]) if queries else None,
        }

    # -- the work --------------------------------------------------------------------------------------------------

    def _think(self, query: str, change: Change | None) -> tuple[Thoughts, list[Tensor]]:
        """The (1, K, D) thoughts of a query, and what was fed back at every step: (1, D) each. One rollout serves
        every K."""
        fed: list[Tensor] = []

        def edit(k: int, soft_token: Tensor, rows: list[int]) -> Tensor:
            if change is not None and k == change.step + self._offset:
                soft_token = self._replacement(change, soft_token)
            fed.append(soft_token.float().cpu())
            return soft_token

        return think(self.model, [query], self.steps, prompt_name="query", edit=edit), fed

    def _replacement(self, change: Change, soft_token: Tensor) -> Tensor:
        """What is fed back instead of `soft_token`, both (1, D)."""
        place = change.step + self._offset - 1
        if change.kind == "token":
            backbone = self.model[0].backbone
            ids = torch.tensor([[self._token_id(change.value)]], device=soft_token.device)
            value = backbone.embed(ids)[:, 0]
        elif change.kind == "query":
            self._check_query(change.value)
            value = self._rollout(change.value, None)[1][place]
        elif change.kind == "noise":
            direction = torch.randn(soft_token.shape, generator=torch.Generator().manual_seed(int(change.value or 0)))
            value = torch.nn.functional.normalize(direction, dim=-1) * soft_token.float().norm().cpu()
        else:
            if self._mean is None:
                raise ValueError("The mean thought needs at least two example queries: explore(..., examples=[...]).")
            value = self._mean[place]
        return value.to(soft_token).expand_as(soft_token)

    def _mean_thought(self, queries: list[str], options: dict[str, Any]) -> Tensor | None:
        """(S, D): the mean soft token of every step over `queries`; None of fewer than two."""
        if len(queries) < 2:
            return None
        total: dict[int, Tensor] = {}

        def edit(k: int, soft_token: Tensor, rows: list[int]) -> Tensor:
            total[k] = total.get(k, 0) + soft_token.float().sum(0).cpu()
            return soft_token

        think(self.model, queries, self.steps, prompt_name="query", edit=edit, **options)
        return torch.stack([total[k] for k in sorted(total)]) / len(queries)

    def _ranks(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(K, D) query vectors to the cosine and the rank, from 1, of every document: (K, N) each."""
        scores = np.einsum("knd,kd->kn", self._documents, vectors).astype(float)  # float32 writes long decimals
        order = np.argsort(-scores, axis=1, kind="stable")
        ranks = np.empty_like(order)
        np.put_along_axis(ranks, order, np.arange(1, scores.shape[1] + 1)[None], axis=1)
        return scores, ranks

    def _tokens(self, thoughts: Thoughts) -> list[list[dict[str, Any]]]:
        backbone = self.model[0].backbone
        top = min(TOKENS, len(backbone.embedding_table))
        frame = nearest_tokens(self.model, thoughts, top=top)
        texts = frame["token"].tolist()
        # A token goes by its text where that leads back to it (pieces of bytes, say, do not), else by its id.
        back = backbone.tokenizer(texts, add_special_tokens=False)["input_ids"]
        cells = [
            {"text": text, "name": text if ids == [i] else f"#{i}", "p": round(p, 4)}
            for text, ids, i, p in zip(texts, back, frame["token_id"].tolist(), frame["probability"].tolist())
        ]
        return [cells[start : start + top] for start in range(0, len(cells), top)]

    def _token_id(self, name: str) -> int:
        """The id of the one token that `name` stands for: its text, its name in the vocabulary, or ``#id``."""
        backbone = self.model[0].backbone
        tokenizer, size = backbone.tokenizer, len(backbone.embedding_table)
        if not name:
            raise ValueError("Name a token to put there.")
        if re.fullmatch(r"#[0-9]+", name) and len(name) < 12:
            if int(name[1:]) >= size:
                raise ValueError(f"There is no token {name}: the ids go from #0 to #{size - 1}.")
            return int(name[1:])
        ids = tokenizer(name[:MAX_CHARACTERS], add_special_tokens=False)["input_ids"]
        unknown = tokenizer.unk_token_id
        if len(ids) == 1 and (ids[0] != unknown or name == tokenizer.unk_token):
            return ids[0]
        known = tokenizer.convert_tokens_to_ids(name)
        if known is not None and known != unknown:
            return known
        if len(ids) > 1 and unknown not in ids:
            pieces = ", ".join(f"“{piece}”" for piece in decode_tokens(tokenizer, ids[:6]))
            raise ValueError(f"“{name:.60}” is not one token but {len(ids)}: {pieces}. Name one of them.")
        close = difflib.get_close_matches(name[:60], list(tokenizer.get_vocab()), n=3)
        hint = f" Did you mean {', '.join(f'“{c}”' for c in close)}?" if close else ""
        raise ValueError(f"“{name:.60}” is no token of this model.{hint}")

    def _presets(self, query: str, other: str) -> list[Change]:
        """What the static export can do to `query`: each kind of intervention at each soft token the model is used
        to; the token is what `other` thinks there, or the next best that `query` does not think itself."""
        own, others = (self._tokens(self._rollout(text, None)[0]) for text in (query, other))
        presets = []
        for step in range(1, max(2, min(self.model[0].thinking_steps, self.steps))):
            name = next((t["name"] for t in others[step - 1] if t["name"] != own[step - 1][0]["name"]), None)
            presets += [Change(step, "token", name)] if name else []
            presets += [Change(step, "query", other)] if other != query else []
            presets += [Change(step, "noise", "0")]
            presets += [Change(step, kind) for kind in ("mean", "knock-out") if self._mean is not None]
        return presets

    def _check_query(self, query: str) -> None:
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

    def _place(self, row: int) -> dict[str, Any]:
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


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'">
<title>{TITLE}</title>
<style>
{STYLE}
</style>
</head>
<body class="laser-page">
<h1>{TITLE}</h1>
<main id="explorer"></main>
<script type="application/json" id="settings">{SETTINGS}</script>
<script type="module">
{SCRIPT}
mount(document.getElementById("explorer"), fileHost(JSON.parse(document.getElementById("settings").textContent)));
</script>
</body>
</html>
"""


def _embeddings(thoughts: Thoughts, change: Change | None = None) -> np.ndarray:
    """The thoughts of one text to its (K, D) embeddings for every K. A knocked-out step's state is not pooled; where
    nothing is left to pool, the row is NaN."""
    out = change.step if change is not None and change.kind == "knock-out" else None
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


def _as_list(queries: str | Sequence[str]) -> list[str]:
    return check_texts([queries] if isinstance(queries, str) else queries)


def _short(text: str, limit: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _anywidget() -> Any:
    try:
        import anywidget
    except ImportError as error:
        raise missing_extra("anywidget", "lab") from error
    return anywidget


@lru_cache(maxsize=1)
def _widget_class() -> type:
    anywidget = _anywidget()
    import traitlets

    folder = Path(__file__).parent

    class ExplorerWidget(anywidget.AnyWidget):
        _esm = (folder / "explorer.js").read_text(encoding="utf-8")
        _css = (folder / "explorer.css").read_text(encoding="utf-8")
        settings = traitlets.Dict().tag(sync=True)

    return ExplorerWidget
