"""Prompts: how an instruction and a query become one text. Knows no tokenizer and no model."""

from __future__ import annotations

from collections.abc import Sequence

from laser_lab.base.inputs import Input, check_texts

WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"


def query_prompt(task: str = WEB_SEARCH) -> str:
    """What stands before a query: ``Instruct: {task}\\nQuery: `` for a task described in one sentence, as the published
    checkpoints expect it. A text that holds "Query:" is whole already and stays as it is, and so does an empty one.

    The released training script writes a backslash and an n where its evaluation has the line break; this is the
    line break.

    Raises:
        TypeError: `task` is not a string.
    """
    if not isinstance(task, str):
        raise TypeError(f"a prompt must be a string, got {type(task).__name__}: {task!r:.80}")
    return task if "Query:" in task or not task.strip() else f"Instruct: {task}\nQuery: "


def join_query(prompt: str, query: str) -> str:
    """The text of a query with its instruction, which is a task sentence or a whole prefix (:func:`query_prompt`)."""
    return query_prompt(prompt) + query


def prefixed(prompt: str | None, texts: Sequence[str]) -> list[str]:
    """Texts behind a prefix, used as it is; a TypeError if the prefix or a text is not a string."""
    query_prompt(prompt or "")
    return [(prompt or "") + text for text in check_texts(texts)]


def join_queries(queries: Sequence[Input], prompts: Sequence[str], default: str = "") -> tuple[list[Input], str]:
    """Queries with the prompts of their own, and the prefix that is still to stand before all of them.

    Args:
        prompts: One per query; an empty one stands for `default`. No prompts at all: every query takes `default`.
        default: The model's own prompt, used as it is.

    Raises:
        TypeError: A prompt is not a string, or a query with a prompt of its own in the list is no text.
        ValueError: There is not one prompt per query.
    """
    queries, prompts = list(queries), [query_prompt(prompt) for prompt in prompts]
    if prompts and len(prompts) != len(queries):
        raise ValueError(f"{len(queries)} queries need as many prompts, got {len(prompts)}")
    if not any(prompts):
        return queries, default
    return [(prompt or default) + query for prompt, query in zip(prompts, check_texts(queries))], ""
