"""Templates: a text as a message in a tokenizer's chat template. Knows tokenizers and no model."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

EMPTY_THOUGHT = "<think>\n\n</think>\n\n"  # what the released training and evaluation write after the chat template


def check_template(template: str | None, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """`template` if it is None or ``"chat"`` and the tokenizer has one, else a ValueError."""
    if template not in (None, "chat"):
        raise ValueError(f"template must be None or 'chat', got {template!r}")
    if template and not getattr(tokenizer, "chat_template", None):
        raise ValueError(f"template={template!r} needs a tokenizer with a chat template, and this one has none")
    return template


def wrapped(texts: Sequence[str], template: str | None, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """`texts` as user messages in the chat template, each followed by an empty thought; with None, as they are."""
    if template is None:
        return list(texts)
    how = dict(tokenize=False, add_generation_prompt=True)
    messages = ([{"role": "user", "content": text}] for text in texts)
    return [tokenizer.apply_chat_template(message, **how) + EMPTY_THOUGHT for message in messages]
