"""The explorer: see what a query makes the model think, change one thought, and see where retrieval goes.

This file shows the answers of ``answers.py``: in a notebook cell (anywidget) and as one HTML file. Both are drawn by
the same JavaScript beside it.
"""

from __future__ import annotations

import html
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laser_lab.base.files import missing_extra, write_text
from laser_lab.data.readers import RetrievalTask
from laser_lab.explorer.answers import DOCUMENTS, Answers, as_list
from laser_lab.explorer.changes import KINDS, Change

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

SCRIPTS = ("dom", "hosts", "tokens", "ranking", "map", "page")
"""The JavaScript files, in the order in which they are joined into one module."""
MAPPED = 400
"""Documents drawn in the plane; of a larger corpus, evenly spaced ones."""


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


class Explorer(Answers):
    """What :func:`explore` shows; also without a browser: :meth:`answer`, :meth:`ranking`, :meth:`to_html`."""

    _widget: Any = None

    def to_html(self, path: str | os.PathLike[str], queries: str | Sequence[str] | None = None) -> Path:
        """Write the explorer as one file that needs no network and no Python: every K of each query, and for every
        soft token up to the model's own K each kind of intervention.

        Args:
            queries: Default: the examples.

        Raises:
            ValueError: There is no query, or one cannot be asked.
        """
        queries = self.examples if queries is None else as_list(queries)
        if not queries:
            raise ValueError("there is no query to write: pass queries, or examples to explore")
        answers = []
        for number, query in enumerate(queries):
            answers.append(self.answer(query))
            answers += [self.answer(query, change) for change in self.presets(query, queries[number - 1])]
        settings = self._settings(queries) | {"first": None, "answers": answers}
        drawn = {document["id"] for document in settings["map"]}
        for document in (d for answer in answers for d in answer["documents"]):
            if document["id"] in drawn:  # the page takes these from the map
                del document["text"], document["xy"]
        parts = {
            "TITLE": html.escape(f"Latent thoughts: {self.task.name}" if self.task.name else "Latent thoughts"),
            "STYLE": style(),
            "SCRIPT": script(),
            # "<" cannot end the script element, whatever a document says
            "SETTINGS": json.dumps(settings, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c"),
        }
        path = Path(path)
        write_text(path, re.sub(r"\{([A-Z]+)\}", lambda m: parts[m[1]], PAGE))
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
            "map": [self.place(row) for row in rows],
            "variance": round(float(self.plane.explained_variance_ratio_.sum()), 3),
            "first": self.answer(queries[0]) if queries else None,
        }


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


def script() -> str:
    """The page's JavaScript, one module."""
    return "\n".join(_read(f"{name}.js") for name in SCRIPTS)


def style() -> str:
    """The page's style sheet."""
    return _read("explorer.css")


def _read(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


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

    class ExplorerWidget(anywidget.AnyWidget):
        _esm = script()
        _css = style()
        settings = traitlets.Dict().tag(sync=True)

    return ExplorerWidget
