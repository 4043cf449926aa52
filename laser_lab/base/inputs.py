"""Inputs: what a text or image is, and the checks at the door.

An input is a text, an image, or ``{"text": ..., "image": ...}`` (as sentence-transformers writes them; one of the two
may be None).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from tqdm.auto import trange

Input = Any
"""``str | Image | dict[str, str | Image | None]``"""


def is_single(inputs: Any) -> bool:
    """Whether this is one input, and no sequence of them."""
    return isinstance(inputs, (str, dict)) or _is_image(inputs)


def text_of(item: Input) -> str:
    """The text of an input; of an image alone, an empty one."""
    if isinstance(item, dict):
        return item.get("text") or ""
    return item if isinstance(item, str) else ""


def image_of(item: Input) -> Any:
    """The image of an input, or None."""
    if isinstance(item, dict):
        return item.get("image")
    return None if isinstance(item, str) else item


def label_of(item: Input) -> str:
    """An input as a table shows it."""
    return text_of(item) if image_of(item) is None else f"<image> {text_of(item)}".rstrip()


MOST_STEPS = 4096
"""No thought is longer: a backbone without a limit of positions would think until the memory is full."""


def check_steps(thinking_steps: int) -> int:
    """`thinking_steps` if it is a positive integer of at most :data:`MOST_STEPS`, else a ValueError."""
    if check_count("thinking_steps", thinking_steps) > MOST_STEPS:
        raise ValueError(f"thinking_steps must be at most {MOST_STEPS}, got {thinking_steps}")
    return int(thinking_steps)


def check_count(name: str, value: int, least: int = 1) -> int:
    """`value` if it is an integer of at least `least`, else a ValueError that gives its `name`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        kind = {0: "an integer from 0", 1: "a positive integer"}.get(least, f"an integer from {least}")
        raise ValueError(f"{name} must be {kind}, got {value!r}")
    return int(value)


def check_names(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise a ValueError that says which names that `where` gives are not known, and what is."""
    if unknown := sorted(set(map(str, given)) - set(known)):
        raise ValueError(f"{where} has no meaning for {', '.join(unknown)}; known are {', '.join(sorted(known))}")


def unwritable(text: str) -> bool:
    """Whether a text holds what no UTF-8 file can: half of a surrogate pair."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def check_texts(texts: Sequence[str]) -> list[str]:
    """`texts` as a list. TypeError: one is no string, or they have no order. ValueError: one holds half of a surrogate
    pair, which no tokenizer takes. The message names the first."""
    texts = _ordered(texts)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            hint = ". Images are read by LaME on a vision-language model" if is_single(text) else ""
            raise TypeError(f"texts must be strings, but number {index} is {type(text).__name__}: {text!r:.80}{hint}")
        if unwritable(text):
            raise ValueError(f"text number {index} holds half of a surrogate pair, which is no character: {text!r:.80}")
    return texts


def _ordered(inputs: Iterable[Any]) -> list[Any]:
    if isinstance(inputs, (set, frozenset)):
        raise TypeError("a set has no order to return embeddings in: give a list")
    return list(inputs)


def check_inputs(inputs: Iterable[Input]) -> list[Input]:
    """As :func:`check_texts`, for texts, images or both."""
    inputs = _ordered(inputs)
    for index, item in enumerate(inputs):
        text, image = (item.get("text"), item.get("image")) if isinstance(item, dict) else (None, None)
        both = isinstance(text, str | None) and (image is None or _is_image(image)) and (text, image) != (None, None)
        if not (both or isinstance(item, str) or _is_image(item)):
            raise TypeError(f"inputs must be texts, PIL images or both, but number {index} is {item!r:.80}")
        if unwritable(text_of(item)):
            raise ValueError(f"the text of number {index} holds half of a surrogate pair: {text_of(item)!r:.80}")
    return inputs


def _is_image(value: Any) -> bool:
    return hasattr(value, "getpixel")  # PIL itself is needed only by those who have one


def check_threshold(threshold: float) -> float:
    """A halting threshold if it is in [0, 1), else a ValueError."""
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold < 1:
        raise ValueError(f"the halting threshold must be from 0 to below 1, got {threshold!r}")
    return threshold


def in_batches(inputs: Sequence[Input], batch_size: int, progress: str | None = None) -> Iterator[list[int]]:
    """Batches of inputs of like length, the longest first: the indices of each. `progress` names a bar, if any."""
    check_count("batch_size", batch_size)
    order = sorted(range(len(inputs)), key=lambda i: len(text_of(inputs[i])), reverse=True)
    for start in trange(0, len(inputs), batch_size, desc=progress, disable=progress is None):
        yield order[start : start + batch_size]
