"""Prompts: how an instruction and a query become one text. Knows no tokenizer and no model."""

import re
from collections.abc import Sequence

from laser_lab.base.inputs import Input, check_texts, unwritable

WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"


def query_prompt(task: str = WEB_SEARCH) -> str:
    """``Instruct: {task}\\nQuery: ``, the prefix that the published checkpoints expect. A text that is empty or holds
    "Query:" is returned as it is. (The released training writes a backslash and an n for the line break.)

    Raises:
        TypeError: `task` is not a string.
        ValueError: It holds half of a surrogate pair.
    """
    if not isinstance(task, str):
        raise TypeError(f"a prompt must be a string, got {type(task).__name__}: {task!r:.80}")
    if unwritable(task):
        raise ValueError(f"the prompt holds half of a surrogate pair, which is no character: {task!r:.80}")
    return task if "Query:" in task or not task.strip() else f"Instruct: {task}\nQuery: "


def join_query(prompt: str, query: str) -> str:
    """A query behind its instruction, which is a task sentence or a whole prefix (:func:`query_prompt`)."""
    return query_prompt(prompt) + query


def split_query(text: str) -> tuple[str, str]:
    """A query and its own task, where it is written behind it (``Instruct: {task} Query: {query}``); else `text` and
    an empty task."""
    found = re.fullmatch(r"\s*Instruct:\s*(.*?)\s*Query:\s*(.*)", text, re.DOTALL)
    return (found[2], found[1]) if found else (text, "")


def prefixed(prompt: str | None, texts: Sequence[str]) -> list[str]:
    """Texts behind a prefix, used as it is; a TypeError if the prefix or a text is not a string."""
    query_prompt(prompt or "")
    return [(prompt or "") + text for text in check_texts(texts)]


def join_queries(queries: Sequence[Input], prompts: Sequence[str], default: str = "") -> tuple[list[Input], str]:
    """Queries joined with their own prompts, and the prefix that must still precede all of them.

    Args:
        prompts: One per query (empty: `default`), or none at all.
        default: The model's own prompt, used as it is.

    Raises:
        TypeError: A prompt is not a string, or a query that has one is no text.
        ValueError: There is not one prompt per query.
    """
    queries, prompts = list(queries), [query_prompt(prompt) for prompt in prompts]
    if prompts and len(prompts) != len(queries):
        raise ValueError(f"{len(queries)} queries need as many prompts, got {len(prompts)}")
    if not any(prompts):
        return queries, default
    return [(prompt or default) + query for prompt, query in zip(prompts, check_texts(queries))], ""
