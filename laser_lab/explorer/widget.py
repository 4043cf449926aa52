"""The explorer: see what a query makes the model think, change one thought, and see where retrieval goes.

This file shows the answers of ``answers.py`` in a notebook cell (anywidget) and as one HTML file. Both are drawn by
the same JavaScript, which lies beside it.
"""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sentence_transformers import SentenceTransformer

from laser_lab.base.files import missing_extra, write_text
from laser_lab.base.inputs import check_texts
from laser_lab.data.readers import RetrievalTask
from laser_lab.explorer.answers import DOCUMENTS, Answers, longest
from laser_lab.explorer.changes import KINDS, MODES, Change
from laser_lab.explorer.corpus import Corpus
from laser_lab.explorer.page import page, script, style
from laser_lab.probing.lens import TunedLens

try:
    import anywidget
    import traitlets
except ImportError as error:
    raise missing_extra("anywidget", "lab") from error

logger = logging.getLogger(__name__)

EXAMPLES = 8
REFERENCES = 32
"""Queries over which the mean thought is taken."""
LONG = 20_000
"""Documents from which on the map holds shorter texts."""


def explore(
    model: SentenceTransformer,
    corpus: RetrievalTask | Mapping[str, str] | Sequence[str],
    examples: str | Sequence[str] | None = None,
    *,
    second_model: SentenceTransformer | None = None,
    lens: TunedLens | None = None,
    metadata: pd.DataFrame | Mapping[str, Mapping[str, Any]] | None = None,
    batch_size: int = 32,
    show_progress_bar: bool = True,
) -> Explorer:
    """An interactive window on latent thinking, for a notebook cell: make it the last expression.

    Type or choose a query, with an instruction of its own if it needs one (``Instruct: task Query: text``; a task's
    prompts are known); see the tokens of every step and layer, the ranking for every K and the way among the
    documents; change one step's soft token and see the changed ranking beside the original.

    Args:
        model: A retriever; see :func:`laser_lab.load`.
        corpus: Documents: a task (its queries are the examples, its relevant documents are marked), {id: text}, or
            texts. All are encoded now, for every K at once.
        examples: Queries to choose from; default: the first of the task. The mean thought is taken over these and
            the task's.
        second_model: Another retriever, to be seen beside this one: before and after training, say.
        lens: A tuned lens of `model` (:func:`laser_lab.fit_lens`), to be read beside the LM head.
        metadata: What else is known of the documents, to colour and filter the map by: a frame with the document ids
            as its index, or {id: {column: value}}.

    Raises:
        ModuleNotFoundError: The extra ``lab`` is not installed.
        ValueError: The corpus is empty, or an example cannot be asked (:meth:`Explorer.answer`).
        TypeError: A text is not a string.
    """
    how: dict[str, Any] = dict(batch_size=batch_size, show_progress_bar=show_progress_bar)
    return Explorer(model, corpus, examples, second_model=second_model, lens=lens, metadata=metadata, **how)


class Explorer(anywidget.AnyWidget):
    """What :func:`explore` shows. What is seen can be read, observed and set from a cell, by traits:

    explorer.query = "why is the sky blue"
    explorer.change = Change(1, "token", "snow")
    explorer.observe(lambda change: print(change.new), "selection")
    """

    _esm = script()
    _css = style()

    query = traitlets.Unicode("", help="The query that was asked last").tag(sync=True)
    thinking_steps = traitlets.Int(1, help="K").tag(sync=True)
    change = traitlets.Any(None, help="The Change that was made, or None").tag(
        sync=True,
        to_json=lambda change, widget: None if change is None else change.as_dict(),
        from_json=lambda value, widget: _change(value),
    )
    beside = traitlets.Dict(
        help="What stands in the second column: {}, {'query': another one} or {'model': 1}, the second model"
    ).tag(sync=True)
    selection = traitlets.Dict(help="{'documents': ids, 'tokens': names} that were clicked").tag(sync=True)
    thoughts = traitlets.Any(None, help="The Thoughts about the query, with its change")
    ranking_frame = traitlets.Any(None, help="The whole ranking at K, with the change: a frame as of ranking()")

    settings = traitlets.Dict().tag(sync=True)
    documents = traitlets.Dict().tag(sync=True)
    places = traitlets.List().tag(sync=True)

    def __init__(
        self,
        model: SentenceTransformer,
        corpus: RetrievalTask | Mapping[str, str] | Sequence[str],
        examples: str | Sequence[str] | None = None,
        *,
        second_model: SentenceTransformer | None = None,
        lens: TunedLens | None = None,
        metadata: pd.DataFrame | Mapping[str, Mapping[str, Any]] | None = None,
        **how: Any,
    ) -> None:
        self._setting = False
        given = {"examples": examples, "second_model": second_model, "lens": lens, "metadata": metadata}
        self._given = [name for name, value in given.items() if value is not None]
        self.corpus = Corpus(corpus, metadata)
        self.task = self.corpus.task
        queries = list(self.task.queries.values())
        self.examples = queries[:EXAMPLES] if examples is None else _as_list(examples)
        references = list(dict.fromkeys([*self.examples, *queries]))[:REFERENCES]
        models = [model] if second_model is None else [model, second_model]
        steps = min(longest(each) for each in models)
        self.sides = [
            Answers(each, self.corpus, references, steps=steps, lens=None if number else lens, **how)
            for number, each in enumerate(models)
        ]
        self.model, self.steps = model, steps
        first = self.answer(self.examples[0]) if self.examples else None
        limit = 160 if len(self.corpus) <= LONG else 60
        texts = [self.corpus.shown(row, limit) for row in range(len(self.corpus))]
        super().__init__(
            settings=self._settings() | {"first": first},
            documents={"ids": self.corpus.ids, "texts": texts, "columns": self.corpus.columns},
            places=[_quantised(side) for side in self.sides],
            thinking_steps=min(model[0].thinking_steps, steps),
            selection={"documents": [], "tokens": []},
            query=self.examples[0] if self.examples else "",
        )
        self.on_msg(self._on_message)
        self._refresh()

    # -- answers ---------------------------------------------------------------------------------------------------

    def answer(
        self,
        query: str,
        change: Change | None = None,
        *,
        beside: Mapping[str, Any] | None = None,
        pins: Iterable[str] = (),
    ) -> dict[str, Any]:
        """What a column shows, as data: :meth:`laser_lab.explorer.answers.Answers.answer`, and ``beside``.

        Args:
            beside: The second column's content where it is not a change (:attr:`beside`); its ``before`` are the
                ranks of the first column.
        """
        side, asked = self._column(query, change, beside)
        before = self.sides[0].ranks(query) if beside else None
        return side.answer(asked, change, before=before, pins=pins) | {"beside": dict(beside or {})}

    def ranking(self, query: str, change: Change | None = None) -> pd.DataFrame:
        """The whole ranking for every K: ``query, change, thinking_steps, rank, doc_id, document, score, relevant``,
        best first. Raises as :meth:`laser_lab.explorer.answers.Answers.answer`."""
        return self.sides[0].ranking(query, change)

    def show(
        self,
        query: str,
        thinking_steps: int | None = None,
        *,
        change: Change | None = None,
        beside: Mapping[str, Any] | None = None,
        selection: Mapping[str, Sequence[str]] | None = None,
    ) -> Explorer:
        """Set the traits of these names at once; gives the explorer itself, so that a cell can end with it.

        Raises:
            ValueError: A value cannot be shown; nothing has changed then.
        """
        if change is not None and beside:
            raise ValueError("The second column shows a change or something beside it, not both.")
        asked = self._column(query, change, beside)
        asked[0].thoughts(asked[1], change)
        self.sides[0].thoughts(query)
        for name, value in {"thinking_steps": thinking_steps, "selection": selection}.items():
            if value is not None:
                self.set_trait(name, dict(value) if isinstance(value, Mapping) else value)
        self._take(query, change, dict(beside or {}))
        return self

    def _column(self, query: str, change: Change | None, beside: Mapping[str, Any] | None) -> tuple[Answers, str]:
        """Which model answers which query."""
        if not beside:
            return self.sides[0], query
        if change is not None:
            raise ValueError("The second column shows a change or something beside it, not both.")
        if set(beside) == {"query"}:
            return self.sides[0], beside["query"]
        if set(beside) != {"model"} or beside["model"] != 1:
            raise ValueError("Beside a query there can be {'query': another one} or {'model': 1}.")
        if len(self.sides) < 2:
            raise ValueError("There is no second model: pass explore(..., second_model=...).")
        return self.sides[1], query

    # -- traits ----------------------------------------------------------------------------------------------------

    @traitlets.validate("query")
    def _valid_query(self, proposal: Any) -> str:
        if proposal["value"] or self.query:
            self.sides[0].thoughts(proposal["value"])
        return proposal["value"]

    @traitlets.validate("thinking_steps")
    def _valid_steps(self, proposal: Any) -> int:
        if not 1 <= proposal["value"] <= self.steps:
            raise ValueError(f"thinking_steps must be from 1 to {self.steps}, got {proposal['value']}")
        return proposal["value"]

    @traitlets.validate("change")
    def _valid_change(self, proposal: Any) -> Change | None:
        change = proposal["value"]
        if change is not None and not isinstance(change, Change):
            raise ValueError(f"change must be a Change or None, got {change!r:.80}")
        if change is not None:
            self.sides[0].thoughts(self.query, change)
        return change

    @traitlets.validate("beside")
    def _valid_beside(self, proposal: Any) -> dict[str, Any]:
        if proposal["value"]:
            side, query = self._column(self.query, None, proposal["value"])
            side.thoughts(query)
        return proposal["value"]

    @traitlets.validate("selection")
    def _valid_selection(self, proposal: Any) -> dict[str, list[str]]:
        value = {"documents": [], "tokens": []} | proposal["value"]
        if set(value) != {"documents", "tokens"}:
            raise ValueError(f"selection must be {{'documents': ids, 'tokens': names}}, got {value!r:.80}")
        if unknown := [doc for doc in value["documents"] if doc not in self.corpus.rows]:
            raise ValueError(f"selection names the unknown document {unknown[0]!r:.80}")
        return {name: check_texts(names) for name, names in value.items()}

    @traitlets.observe("query", "change", "beside", "thinking_steps")
    def _changed(self, event: Any) -> None:
        if self._setting:
            return
        if event.name == "query":
            self._take(event.new, None, self.beside)
        elif event.name == "change" and event.new is not None:
            self._take(self.query, event.new, {})
        elif event.name == "beside" and event.new:
            self._take(self.query, None, event.new)
        else:
            self._refresh()

    def _take(self, query: str, change: Change | None, beside: dict[str, Any]) -> None:
        """Set what the columns show, in an order in which each is valid, then what follows from it."""
        self._setting = True
        try:
            self.change = None
            self.query, self.beside, self.change = query, beside, change
        finally:
            self._setting = False
        self._refresh()

    def _refresh(self) -> None:
        """:attr:`thoughts` and :attr:`ranking_frame` of what is shown."""
        if self.query:
            self.thoughts = self.sides[0].thoughts(self.query, self.change)
            self.ranking_frame = self.sides[0].ranking(self.query, self.change, [self.thinking_steps])

    # -- the page --------------------------------------------------------------------------------------------------

    def _on_message(self, widget: Any, request: dict[str, Any], buffers: Any) -> None:
        """One question from the page: ``id``, ``op`` and its arguments. Whatever happens, a reply goes back; traits
        change after a good answer only, and not where ``take`` is false (the page follows a cell)."""
        reply: dict[str, Any] = {"id": request.get("id")}
        try:
            asked = {key: value for key, value in request.items() if key not in ("id", "op")}
            change = _change(asked.pop("change", None))
            op, take = request.get("op", "answer"), asked.pop("take", True)
            if (operation := getattr(self, f"_op_{op}", None)) is None:
                raise ValueError(f"The page asked for {op!r:.40}, which is unknown.")
            reply["answer"] = operation(change=change, **asked)
            if op == "answer" and take:
                self._take(asked.get("query", ""), change, dict(asked.get("beside") or {}))
        except (ValueError, TypeError) as error:
            reply["error"] = str(error)
        except Exception as error:
            logger.exception("the explorer could not answer")
            reply["error"] = _sentence(error)
        if "error" in reply:
            reply.pop("answer", None)
        widget.send(reply)

    def _op_answer(self, query: str = "", **given: Any) -> dict[str, Any]:
        return self.answer(query, **given)

    def _op_layers(self, query: str, change: Change | None, beside: Any = None, lens: str = "head") -> dict[str, Any]:
        side, asked = self._column(query, change, beside)
        return side.layers(asked, change, lens)

    def _op_courses(self, query: str, names: list[str], change: Change | None, beside: Any = None) -> list[Any]:
        side, asked = self._column(query, change, beside)
        return side.courses(asked, change, names)

    def _op_presets(self, query: str, change: None = None) -> list[dict[str, Any]]:
        other = next((text for text in self.examples if text != query), query)
        return [preset.as_dict() for preset in self.sides[0].presets(query, other, self.steps)]

    def _op_effect(self, query: str, change: Change) -> dict[str, Any]:
        return self.sides[0].effect(query, change)

    def _op_neighbours(self, row: int, k: int, change: None = None) -> list[dict[str, Any]]:
        return self.sides[0].neighbours(row, k)

    def _settings(self) -> dict[str, Any]:
        """What the page knows from the start."""
        lens = self.sides[0].lens
        return {
            "steps": self.steps,
            "start": min(self.model[0].thinking_steps, self.steps),
            "top": DOCUMENTS,
            "kinds": KINDS,
            "modes": MODES,
            "examples": list(self.examples),
            "given": self._given,
            "models": len(self.sides),
            "lenses": {"head": "LM head"} | ({"tuned": "tuned lens"} if lens is not None else {}),
            "planes": [{"bounds": s.bounds, "variance": round(s.variance, 3)} for s in self.sides],
        }

    def __repr__(self) -> str:
        name = f" of {self.task.name}" if self.task.name else ""
        return f"Explorer{name}: {len(self.corpus)} documents. Run this cell in JupyterLab to use it."

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        (bundle[0] if isinstance(bundle, tuple) else bundle)["text/plain"] = repr(self)  # where widgets are not shown
        return bundle

    def to_html(self, path: str | os.PathLike[str], queries: str | Sequence[str] | None = None) -> Path:
        """Write the explorer as one file that needs no network and no Python: every K of each query, each kind of
        change at every soft token up to the model's own K, and each pair of queries side by side.

        Args:
            queries: Default: the examples.

        Raises:
            ValueError: There is no query, or one cannot be asked.
        """
        queries = list(self.examples) if queries is None else _as_list(queries)
        if not queries:
            raise ValueError("there is no query to write: pass queries, or examples to explore")
        replies: dict[str, Any] = {}
        presets = []
        for number, query in enumerate(queries):
            presets.append(self.sides[0].presets(query, queries[number - 1]))
            replies |= self._replies(query, number, presets[-1], queries)
        places = [base64.b64encode(_quantised(side)).decode() for side in self.sides]
        data = self._settings() | {"first": None, "examples": queries, "replies": replies, "places": places}
        data |= {"documents": self.documents, "presets": [[c.as_dict() for c in changes] for changes in presets]}
        title = f"Latent thoughts: {self.task.name}" if self.task.name else "Latent thoughts"
        path = Path(path)
        write_text(path, page(title, data))
        return path

    def _replies(self, query: str, number: int, presets: list[Change], queries: list[str]) -> dict[str, Any]:
        """What can be asked about a query of the file, by the key that ``hosts.js`` asks for."""
        side, k = self.sides[0], min(self.model[0].thinking_steps, self.steps)
        found: dict[str, Any] = {f"answer/{number}": self._with_courses(query)}
        for at, change in enumerate(presets):
            found[f"answer/{number}/change {at}"] = self._with_courses(query, change)
            found[f"effect/{number}/change {at}"] = side.effect(query, change)
        for at, other in enumerate(queries):
            if other != query:
                found[f"answer/{number}/query {at}"] = self._with_courses(query, beside={"query": other})
        if len(self.sides) > 1:
            found[f"answer/{number}/model"] = self._with_courses(query, beside={"model": 1})
            found[f"layers/{number}/model/head"] = self._op_layers(query, None, {"model": 1})
        for lens in self._settings()["lenses"]:
            found[f"layers/{number}/{lens}"] = side.layers(query, None, lens)
        rows = [document["row"] for document in found[f"answer/{number}"]["documents"]]
        found |= {f"neighbours/{row}": side.neighbours(row, k) for row in rows}
        for answer in found.values():  # the page takes these from the documents
            for document in answer["documents"] if isinstance(answer, dict) and "documents" in answer else ():
                del document["text"], document["id"]
        return found

    def _with_courses(self, query: str, change: Change | None = None, **options: Any) -> dict[str, Any]:
        """An answer with the course of every token that it shows."""
        answer = self.answer(query, change, **options)
        names = dict.fromkeys(token["name"] for step in answer["tokens"] for token in step)
        return self.answer(query, change, pins=names, **options)


def _change(value: Any) -> Change | None:
    """What the page sends as a change."""
    if value is None or isinstance(value, Change):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"A change must have a step and a kind: {value!r:.80}.")
    return Change(**{name: part for name, part in value.items() if name != "label"})


def _quantised(side: Answers) -> bytes:
    """(K, N, 2) places as little-endian uint16 between the bounds of the plane."""
    low, extent = np.array(side.bounds[:2]), np.array(side.bounds[2:])
    return ((side.places - low) / extent * 65535).round().clip(0, 65535).astype("<u2").tobytes()


def _sentence(error: Exception) -> str:
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "allocate memory" in str(error):
        return "The model ran out of memory: ask a shorter query, or load it on another device."
    first = str(error).strip().splitlines()
    return f"The model failed: {type(error).__name__}{f': {first[0]:.200}' if first else ''}."


def _as_list(queries: str | Sequence[str]) -> list[str]:
    return check_texts([queries] if isinstance(queries, str) else queries)
