"""The encoder: latent thinking plus pooling, behind the SentenceTransformer interface.

Encoding, prompts, multi-process, saving, the Hub, trainers and evaluators are sentence-transformers' own. This file
knows tokenization and pooling; how the model thinks is in ``thinking.py``, where weights come from in ``weights.py``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from torch import Tensor
from tqdm.auto import tqdm

from laser_lab.backbone import Backbone
from laser_lab.base.inputs import Input, check_steps, check_texts, is_single, label_of, text_of
from laser_lab.thinking import Thoughts, latent_thinking, pool
from laser_lab.weights import CONFIG_FILE, load_backbone, resolve

logger = logging.getLogger(__name__)

DEFAULT_THINKING_STEPS = 3
DEFAULT_MAX_LENGTH = 512  # what the published checkpoints were trained with; they are evaluated at 8192


class LatentEncoder(InputModule):
    """The input module: tokenizes on the left, thinks, pools.

    Args:
        backbone: The causal LM and its tokenizer.
        thinking_steps: K, the states that are pooled; settable per call.
        pooling: ``"all"`` pools h_1..h_K (LaSER). ``"generated"`` pools the K states of generated tokens and drops
            the prompt's own last state, at the price of one more call (GIRCSE).
        max_length: Longer texts are truncated, and the count is logged.
    """

    config_file_name = CONFIG_FILE
    config_keys = ["thinking_steps", "pooling", "max_length", "base"]
    forward_kwargs = {"thinking_steps"}
    thoughts_class = Thoughts
    max_steps: int | None = None  # the largest K there is, if there is one
    loop: Callable[..., Tensor] = staticmethod(latent_thinking)  # how states follow from ids, mask and K

    def __init__(
        self,
        backbone: Backbone,
        *,
        thinking_steps: int = DEFAULT_THINKING_STEPS,
        pooling: str = "all",
        max_length: int = DEFAULT_MAX_LENGTH,
    ) -> None:
        super().__init__()
        if pooling not in ("all", "generated"):
            raise ValueError(f"pooling must be 'all' or 'generated', got {pooling!r}")
        if not isinstance(max_length, int) or max_length < 1:
            raise ValueError(f"max_length must be a positive integer, got {max_length!r}")
        self.backbone = backbone
        self.thinking_steps = check_steps(thinking_steps)
        self.pooling = pooling
        self.max_length = max_length

    @property
    def tokenizer(self) -> Any:
        return self.backbone.tokenizer

    @tokenizer.setter
    def tokenizer(self, value: Any) -> None:
        self.backbone.tokenizer = value

    @property
    def base(self) -> str:
        return self.backbone.name

    @property
    def max_seq_length(self) -> int:
        return self.max_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        self.max_length = value

    def get_embedding_dimension(self) -> int:
        return self.backbone.hidden_size

    def check_inputs(self, inputs: Sequence[Input]) -> list[Input]:
        """`inputs` as a list if this encoder reads all of them, else a TypeError that names the first that is not."""
        return check_texts(inputs)

    def preprocess(self, inputs: Sequence[str], prompt: str | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Texts to left-padded ``input_ids`` and ``attention_mask``, both (B, T).

        An empty text becomes one bos (or eos) token, so that it has a position to think at.
        """
        check_texts(inputs)
        texts = [(prompt or "") + text for text in inputs]
        encoded = self.tokenizer(texts, truncation=True, max_length=self.max_length, return_overflowing_tokens=False)
        ids = encoded["input_ids"]
        longest = max(map(len, ids), default=0)
        if longest >= self.max_length:
            with_all = self.tokenizer([t for t, i in zip(texts, ids) if len(i) >= self.max_length], truncation=False)
            count = sum(len(i) > self.max_length for i in with_all["input_ids"])
            if count:
                logger.warning("%d of %d texts truncated to max_length=%d tokens", count, len(texts), self.max_length)
        start = self.tokenizer.bos_token_id
        blank = [self.tokenizer.eos_token_id if start is None else start]
        batch = self.tokenizer.pad({"input_ids": [i or blank for i in ids]}, padding=True, return_tensors="pt")
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}

    def think(
        self,
        features: dict[str, Tensor],
        thinking_steps: int | None = None,
        edit: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """(B, K, D) pooled states for the (B, T) features of :meth:`preprocess`; differentiable. `edit` changes soft
        tokens (:func:`laser_lab.thinking.latent_thinking`)."""
        steps = self.thinking_steps if thinking_steps is None else check_steps(thinking_steps)
        skipped = int(self.pooling == "generated")
        ids, mask = features["input_ids"], features["attention_mask"]
        limit = self.backbone.max_positions
        if limit is not None and ids.shape[1] + steps + skipped - 1 > limit:
            raise ValueError(
                f"{ids.shape[1]} tokens and {steps} thinking steps need more positions than the backbone's {limit}: "
                "lower max_length or thinking_steps."
            )
        change = {} if edit is None else {"edit": edit}
        return self.loop(self.backbone, ids, mask, steps + skipped, **change)[:, skipped:]

    def think_aloud(
        self, features: dict[str, Tensor], thinking_steps: int, edit: Callable[[int, Tensor], Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        """The (B, K, D) tensors that :attr:`thoughts_class` holds, in its order: here the states alone."""
        return (self.think(features, thinking_steps, edit),)

    def forward(self, features: dict[str, Tensor], thinking_steps: int | None = None) -> dict[str, Tensor]:
        """Adds ``states`` (B, K, D) and ``sentence_embedding`` (B, D, float32, unit length) to the features.

        Features with ``segment_ends`` (:func:`laser_lab.explicit.explicit_features`) are the explicit view: one pass,
        the states at the segment ends, and the last state as the embedding (METHOD 2).
        """
        if "segment_ends" in features:
            backbone = self.backbone
            every = backbone.last_states(backbone.embed(features["input_ids"]), features["attention_mask"])
            rows = torch.arange(len(every), device=every.device)[:, None]
            states, embeddings = every[rows, features["segment_ends"]], pool(every[:, -1:])
        else:
            states = self.think(features, thinking_steps)
            embeddings = pool(states)
        return {**features, "states": states, "sentence_embedding": embeddings}

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the whole model, or the adapter alone where there is one, with tokenizer and settings."""
        self.backbone.model.save_pretrained(output_path)
        self.save_tokenizer(output_path)
        if self.backbone.processor is not None:
            self.backbone.processor.save_pretrained(output_path)
        self.save_config(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        *,
        thinking_steps: int | None = None,
        max_length: int | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        model_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> LatentEncoder:
        """Load what :meth:`save` wrote (also called by ``SentenceTransformer(folder, trust_remote_code=True)``), or
        any backbone :func:`laser_lab.weights.load_backbone` reads, with default settings."""
        options = dict(model_kwargs or {})
        where = {key: kwargs[key] for key in ("device", "dtype", "adapter") if key in kwargs}
        backbone = load_backbone(
            model_name_or_path, revision=revision, trust_remote_code=trust_remote_code, **where, **options
        )
        settings = {}
        for source in (model_name_or_path, where.get("adapter")):
            if source is not None and not os.path.isfile(source):
                settings |= cls.load_config(resolve(source), revision=revision)
        settings.pop("base", None)
        for key, value in {"thinking_steps": thinking_steps, "max_length": max_length}.items():
            if value is not None:
                settings[key] = value
        return cls(backbone, **settings)


class LatentRetriever(SentenceTransformer):
    """A SentenceTransformer whose first module is a :class:`LatentEncoder`; the door for bad input."""

    @property
    def encoder(self) -> LatentEncoder:
        return self[0]

    def encode(self, inputs: Input | Sequence[Input], *args: Any, **kwargs: Any) -> Any:
        """:meth:`SentenceTransformer.encode`, plus ``thinking_steps`` per call.

        An empty list gives an empty (0, D) array. Texts longer than ``max_length`` are truncated and counted in the
        log. LaME on a vision-language backbone also reads PIL images and ``{"text": ..., "image": ...}``.

        Raises:
            TypeError: An input is not a string, or not what the model reads.
            ValueError: ``thinking_steps`` is not a positive integer.
        """
        if kwargs.get("thinking_steps") is not None:
            check_steps(kwargs["thinking_steps"])
        if is_single(inputs):
            self.encoder.check_inputs([inputs])
        elif not (inputs := self.encoder.check_inputs(inputs)):
            empty = np.zeros((0, self.get_embedding_dimension() or 0), dtype=np.float32)
            return torch.from_numpy(empty).to(self.device) if kwargs.get("convert_to_tensor") else empty
        return super().encode(inputs, *args, **kwargs)


def think(
    model: SentenceTransformer,
    texts: Input | Sequence[Input],
    thinking_steps: int | None = None,
    *,
    prompt_name: str | None = None,
    prompt: str | None = None,
    batch_size: int = 32,
    show_progress_bar: bool = False,
    edit: Callable[[int, Tensor, list[int]], Tensor] | None = None,
) -> Thoughts:
    """What the model thinks about each text, step by step, without gradients.

    Args:
        thinking_steps: K; default: the model's own.
        prompt_name: ``"query"`` to think as ``encode_query`` does; default: the bare text, as ``encode``.
        edit: An intervention: called with k, soft token t_k (b, D) and which of `texts` these b rows are; returns
            what is fed back instead.

    Returns:
        :class:`Thoughts` with (B, K, D) float32 states, in the order of `texts`.

    Raises:
        TypeError: A text is not a string, or not what the model reads (:meth:`LatentRetriever.encode`).
        ValueError: ``thinking_steps`` is not a positive integer.
    """
    encoder: LatentEncoder = model[0]
    texts = encoder.check_inputs([texts] if is_single(texts) else texts)
    steps = encoder.thinking_steps if thinking_steps is None else check_steps(thinking_steps)
    prompt = model._resolve_prompt(prompt, prompt_name)
    shape = (len(texts), steps, encoder.get_embedding_dimension())
    tensors = [torch.zeros(shape) for _ in fields(encoder.thoughts_class)[1:]]
    order = sorted(range(len(texts)), key=lambda i: len(text_of(texts[i])), reverse=True)
    model.eval()
    with torch.inference_mode():
        for start in tqdm(range(0, len(texts), batch_size), desc="Thinking", disable=not show_progress_bar):
            rows = order[start : start + batch_size]
            features = encoder.preprocess([texts[i] for i in rows], prompt=prompt)
            features = {key: value.to(model.device) for key, value in features.items()}
            change = None if edit is None else lambda k, soft_token, rows=rows: edit(k, soft_token, rows)
            for tensor, found in zip(tensors, encoder.think_aloud(features, steps, change), strict=True):
                tensor[rows] = found.float().cpu()
    return encoder.thoughts_class([label_of(text) for text in texts], *tensors)
