"""The encoder: latent thinking plus pooling behind sentence-transformers, which does encoding, prompts, multi-process,
saving, the Hub, trainers and evaluators."""

import logging
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from sentence_transformers.util import batch_to_device
from torch import Tensor

from laser_lab.backbone import Backbone
from laser_lab.base.files import atomic_folder, named_files
from laser_lab.base.inputs import (
    Input,
    check_count,
    check_steps,
    check_texts,
    check_threshold,
    in_batches,
    is_single,
    label_of,
)
from laser_lab.base.numbers import NotFinite, check_finite, named_rows
from laser_lab.base.processes import end_with_parent, threads_for_free_cores
from laser_lab.data.prompts import join_queries, prefixed
from laser_lab.data.templates import check_template, wrapped
from laser_lab.thinking import Edit, Thoughts, latent_thinking, pool
from laser_lab.weights import CONFIG_FILE, load_backbone, resolve

logger = logging.getLogger(__name__)

_SAVED_WEIGHTS = r"(model|adapter_model|reason_tokens)(-\d+-of-\d+)?\.safetensors(\.index\.json)?|adapter_config\.json"
TextEdit = Callable[[int, Tensor, list[int]], Tensor]
"""(k, soft token t_k (b, D), the indices of these b texts) to what is fed back instead, (b, D)"""
DEFAULT_MAX_LENGTH = 512  # what the published checkpoints were trained with; they are evaluated at 8192


class LatentEncoder(InputModule):
    """The input module: tokenizes on the left, thinks, pools.

    Args:
        thinking_steps: K, the states that are pooled; settable per call. With halting, a budget.
        document_steps: K of documents; None: the same.
        pooling: ``"all"`` pools h_1..h_K (LaSER). ``"generated"`` leaves out h_1, the prompt's own state, and pools K
            later ones, for one more call (GIRCSE).
        halting: Thoughts end themselves (docs/method.md, section 4), by the tokenizer's eos (True) or a token by name.
        halting_threshold: In [0, 1). At inference a text stops thinking where no later state can weigh this much.
        max_length: Tokens. Longer texts lose their end, template included; their count is logged.
        template: ``"chat"``: texts in the tokenizer's chat template, as in the released code; None: as they are.
        add_special_tokens: Whether the tokenizer adds its own (a bos, say); GIRCSE's adapters expect none.

    Raises:
        ValueError: A setting is out of its range, there is no such end token or chat template, or halting is asked with
            another pooling than ``"all"``.
    """

    config_file_name = CONFIG_FILE
    config_keys = ["thinking_steps", "document_steps", "pooling", "halting", "halting_threshold", "max_length"]
    config_keys += ["template", "add_special_tokens", "base"]
    forward_kwargs = {"thinking_steps", "segment_ends", "words"}
    thoughts_class = Thoughts
    max_steps: int | None = None  # the largest K there is, if there is one

    def __init__(
        self,
        backbone: Backbone,
        *,
        max_length: int = DEFAULT_MAX_LENGTH,
        template: str | None = None,
        add_special_tokens: bool = True,
        **thinking: Any,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.max_length = check_count("max_length", max_length)
        self.template = check_template(template, backbone.tokenizer)
        self.add_special_tokens = add_special_tokens
        self.set_thinking(**thinking)

    def set_thinking(
        self,
        thinking_steps: int = 3,
        document_steps: int | None = None,
        pooling: str = "all",
        halting: bool | str = False,
        halting_threshold: float = 1e-3,
    ) -> None:
        """How to think from now on; arguments and errors as of the class."""
        if pooling not in ("all", "generated"):
            raise ValueError(f"pooling must be 'all' or 'generated', got {pooling!r}")
        if halting and pooling != "all":
            raise ValueError(f"halting weighs all states: it cannot be used with pooling={pooling!r}")
        check_threshold(halting_threshold)
        self.thinking_steps = check_steps(thinking_steps)
        self.document_steps = None if document_steps is None else check_steps(document_steps)
        self.pooling = pooling
        self.end_token = self._end_token(halting)
        self.halting = halting
        self.halting_threshold = halting_threshold

    def _end_token(self, halting: bool | str) -> int | None:
        """The id of the token that ends a thought; None without halting."""
        if halting is False:
            return None
        name = self.tokenizer.eos_token if halting is True else halting
        if not isinstance(name, str):
            raise ValueError(f"halting needs a token that ends a thought: the tokenizer has no eos, got {halting!r}")
        if name not in self.tokenizer.get_vocab():
            raise ValueError(f"the tokenizer has no token {name!r} that could end a thought")
        return self.tokenizer.convert_tokens_to_ids(name)

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

    def steps_of(self, thinking_steps: int | None = None, side: str | None = None) -> int:
        """K of a call: `thinking_steps`, else the model's for this `side` (``"query"``, ``"document"``, None)."""
        if thinking_steps is not None:
            return check_steps(thinking_steps)
        is_document = side == "document" and self.document_steps is not None
        return self.document_steps if is_document else self.thinking_steps

    def check_inputs(self, inputs: Sequence[Input]) -> list[Input]:
        """`inputs` as a list; a TypeError names the first that this encoder cannot read."""
        return check_texts(inputs)

    def wrapped(self, texts: Sequence[str]) -> list[str]:
        """Texts in the template, if there is one."""
        return wrapped(texts, self.template, self.tokenizer)

    def token_ids(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Token ids of each text, at most `max_length` if given."""
        limit = dict(truncation=max_length is not None, max_length=max_length)
        return self.tokenizer(list(texts), add_special_tokens=self.add_special_tokens, **limit)["input_ids"]

    def preprocess(self, inputs: Sequence[str], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Texts to left-padded ``input_ids`` and ``attention_mask``, (B, T), and the ``inputs`` themselves, which an
        error names. An empty text becomes one bos (or eos) token."""
        texts = self.wrapped(prefixed(prompt, inputs))
        ids = self.token_ids(texts, self.max_length)
        long = [text for text, row in zip(texts, ids) if len(row) >= self.max_length]
        if count := sum(len(row) > self.max_length for row in (self.token_ids(long) if long else ())):
            logger.warning("%d of %d texts truncated to max_length=%d tokens", count, len(texts), self.max_length)
        start = self.tokenizer.bos_token_id
        blank = [self.tokenizer.eos_token_id if start is None else start]
        batch = self.tokenizer.pad({"input_ids": [i or blank for i in ids]}, padding=True, return_tensors="pt")
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "inputs": list(inputs)}

    def check_room(self, ids: Tensor, more: int, what: str) -> None:
        """Raise a ValueError if the backbone has no positions for (B, T) `ids` and so many `more`."""
        limit = self.backbone.max_positions
        if limit is not None and ids.shape[1] + more > limit:
            raise ValueError(
                f"{ids.shape[1]} tokens and {what} need more positions than the backbone's {limit}: "
                "lower max_length or thinking_steps."
            )

    def think(
        self,
        features: dict[str, Tensor],
        thinking_steps: int | None = None,
        *,
        words: Tensor | None = None,
        threshold: float | None = None,
        edit: Edit | None = None,
    ) -> dict[str, Tensor]:
        """What :attr:`thoughts_class` holds of (B, T) features, by name; differentiable. With `words`, token ids
        (B, K, N), also ``lexical``, (B, K, N): their log-probabilities at each step. `threshold` replaces
        :attr:`halting_threshold`, `edit` changes soft tokens (:func:`laser_lab.thinking.latent_thinking`)."""
        steps = self.steps_of(thinking_steps)
        skipped = int(self.pooling == "generated")
        ids, mask = features["input_ids"], features["attention_mask"]
        self.check_room(ids, steps + skipped - 1, f"{steps} thinking steps")
        rollout = latent_thinking(
            self.backbone,
            ids,
            mask,
            steps + skipped,
            end_token=self.end_token,
            threshold=self.halting_threshold if threshold is None else check_threshold(threshold),
            read_all=words is not None,
            edit=edit,
        )
        found = {"states": rollout.states[:, skipped:], "weights": rollout.weights[:, skipped:]}
        found["steps_taken"] = rollout.steps_taken - skipped
        if words is not None:
            found["lexical"] = self.backbone.log_probabilities(rollout.states, words, rollout.log_normalisers)
        return found

    def forward(
        self,
        features: dict[str, Tensor],
        thinking_steps: int | None = None,
        segment_ends: Tensor | None = None,
        words: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Adds :meth:`think`'s fields and ``sentence_embedding`` (B, D, float32, unit length) to the features. With
        `segment_ends`, positions (B, K), the explicit view's (docs/method.md, section 2): one pass, the states at these
        positions, and the last state as the embedding."""
        if segment_ends is not None:
            backbone = self.backbone
            every = backbone.last_states(backbone.embed(features["input_ids"]), features["attention_mask"])
            rows = torch.arange(len(every), device=every.device)[:, None]
            found = {"states": every[rows, segment_ends], "sentence_embedding": pool(every[:, -1:])}
        else:
            found = self.think(features, thinking_steps, words=words)
            found["sentence_embedding"] = pool(found["states"], found["weights"])
        self.check_finite(found["sentence_embedding"], features.get("inputs", ()))
        return features | found

    def check_finite(self, vectors: Tensor, inputs: Sequence[Input] = ()) -> None:
        """Raise a NotFinite if (B, D) `vectors` have an entry that is not finite; it holds those of the B `inputs`. In
        training the losses are looked at instead, where the ids are known."""
        if torch.is_grad_enabled():
            return
        try:
            check_finite(self, vectors)
        except NotFinite as error:
            error.inputs = [inputs[row] for row in error.rows if row < len(inputs)]
            raise

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write the model (or its adapter alone), tokenizer and settings."""
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
        settings: dict[str, Any] | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        model_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load what :meth:`save` wrote (``SentenceTransformer(folder, trust_remote_code=True)`` calls this too) or any
        backbone that :func:`laser_lab.weights.load_backbone` reads; `settings` go over those saved."""
        where = {key: kwargs[key] for key in ("device", "dtype", "adapter") if key in kwargs}
        saved: dict[str, Any] = {}
        with named_files(model_name_or_path, where.get("adapter")):
            where |= dict(revision=revision, trust_remote_code=trust_remote_code)
            backbone = load_backbone(model_name_or_path, **where, **(model_kwargs or {}))
            for source in (model_name_or_path, where.get("adapter")):
                if source is not None and not os.path.isfile(source):
                    saved |= cls.load_config(resolve(source), revision=revision)
        saved.pop("base", None)
        return cls(backbone, **(saved | (settings or {})))


def is_saved_weights(name: str) -> bool:
    """Whether a file of this name decides what a folder loads as: a save removes those of an earlier one."""
    return re.fullmatch(_SAVED_WEIGHTS, name) is not None


class LatentRetriever(SentenceTransformer):
    """A SentenceTransformer whose first module is a :class:`LatentEncoder`; checks its input."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_card_data.local_files_only = True  # else the card asks the hub about parts of the local path

    @property
    def encoder(self) -> LatentEncoder:
        return self[0]

    def save(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """:meth:`SentenceTransformer.save`, whole or not at all. What else lies in the folder stays."""
        with atomic_folder(Path(path), replaces=is_saved_weights) as temporary:
            super().save(str(temporary), *args, **kwargs)

    @classmethod
    def _multi_process_worker(cls, *args: Any) -> None:
        end_with_parent(multiprocessing.parent_process().pid)
        super()._multi_process_worker(*args)

    def forward(self, input: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """:meth:`SentenceTransformer.forward`; without gradients on as many threads as there are free cores."""
        with nullcontext() if torch.is_grad_enabled() else threads_for_free_cores():
            return super().forward(input, **kwargs)

    def encode(self, inputs: Input | Sequence[Input], *args: Any, prompts: Sequence[str] = (), **kwargs: Any) -> Any:
        """:meth:`SentenceTransformer.encode`, plus ``thinking_steps`` per call (default: the model's for queries or
        documents) and ``prompts``: one per input, instead of the model's where it is not empty
        (:func:`laser_lab.data.prompts.join_query`).

        An empty list gives a (0, D) array. Longer texts than ``max_length`` are truncated and counted in the log. LaME
        on a vision-language backbone also reads PIL images and ``{"text": ..., "image": ...}``.

        Raises:
            TypeError: An input or prompt is not a string, or not what the model reads.
            ValueError: ``thinking_steps`` or ``batch_size`` is no positive integer, there is not one prompt per input,
                or an embedding is not finite (:class:`laser_lab.base.numbers.NotFinite`).
        """
        prefixed(kwargs.get("prompt"), [])  # a string
        check_count("batch_size", kwargs.get("batch_size", 1))
        if prompts:
            default = self._resolve_prompt(kwargs.get("prompt"), kwargs.pop("prompt_name", None)) or ""
            inputs, kwargs["prompt"] = join_queries(inputs, prompts, default)
        kwargs["thinking_steps"] = self.encoder.steps_of(kwargs.get("thinking_steps"), kwargs.get("task"))
        if is_single(inputs):
            self.encoder.check_inputs([inputs])
        elif not (inputs := self.encoder.check_inputs(inputs)):
            empty = np.zeros((0, self.get_embedding_dimension() or 0), dtype=np.float32)
            return torch.from_numpy(empty).to(self.device) if kwargs.get("convert_to_tensor") else empty
        try:
            return super().encode(inputs, *args, **kwargs)
        except NotFinite as error:  # of this process or of a worker's, sorted by length
            every = [inputs] if is_single(inputs) else inputs
            error.name(i for i, item in enumerate(every) if item in error.inputs)
            raise


def think(
    model: SentenceTransformer,
    texts: Input | Sequence[Input],
    thinking_steps: int | None = None,
    *,
    prompt_name: str | None = None,
    prompt: str | None = None,
    prompts: Sequence[str] = (),
    batch_size: int = 32,
    threshold: float | None = None,
    show_progress_bar: bool = False,
    edit: TextEdit | None = None,
) -> Thoughts:
    """What the model thinks about each text, step by step, without gradients.

    Args:
        thinking_steps: K; default: the model's own (for documents, where ``prompt_name`` is ``"document"``).
        prompt_name: ``"query"`` to think as ``encode_query`` does; default: the bare text.
        prompts: One per text, as of :meth:`LatentRetriever.encode`.
        threshold: Weight below which a text stops thinking; default: the model's own. 0: all K states are computed.
        edit: An intervention (:data:`TextEdit`).

    Returns:
        :class:`Thoughts` with (B, K, D) float32 states, in the order of `texts`.

    Raises:
        TypeError: A text is not a string, or not what the model reads.
        ValueError: ``thinking_steps`` or ``batch_size`` is not a positive integer, or an embedding is not finite.
    """
    encoder: LatentEncoder = model[0]
    texts = encoder.check_inputs([texts] if is_single(texts) else texts)
    steps = encoder.steps_of(thinking_steps, prompt_name)
    asked, prompt = join_queries(texts, prompts, model._resolve_prompt(prompt, prompt_name) or "")
    found: dict[str, Tensor] = {}
    progress = "Thinking" if show_progress_bar else None
    with torch.inference_mode():
        for rows, thought in thought_batches(model, asked, steps, prompt, batch_size, threshold, edit, progress):
            put_rows(found, rows, thought, len(texts))
    if not found:
        found["states"] = torch.zeros(0, steps, encoder.get_embedding_dimension())
    return encoder.thoughts_class([label_of(text) for text in texts], **found)


def thought_batches(
    model: SentenceTransformer,
    texts: Sequence[Input],
    thinking_steps: int,
    prompt: str | None,
    batch_size: int,
    threshold: float | None,
    edit: TextEdit | None,
    progress: str | None = None,
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Per batch: which of `texts` it holds, and what :meth:`LatentEncoder.think` gives. Arguments of :func:`think`."""
    encoder: LatentEncoder = model[0]
    model.eval()
    for rows in in_batches(texts, batch_size, progress):
        features = encoder.preprocess([texts[i] for i in rows], prompt=prompt)
        features = batch_to_device(features, model.device)
        change = None if edit is None else lambda k, t, left, rows=rows: edit(k, t, [rows[i] for i in left])
        with threads_for_free_cores():
            thought = encoder.think(features, thinking_steps, threshold=threshold, edit=change)
        with named_rows(rows.__getitem__):
            check_finite(encoder, *(value for value in thought.values() if value.is_floating_point()))
        yield rows, thought


def put_rows(found: dict[str, Tensor], rows: Sequence[int], values: dict[str, Tensor], count: int) -> None:
    """Write a batch's tensors, float32 on the CPU, into those of all `count` texts; made on first use."""
    for name, value in values.items():
        value = (value.float() if value.is_floating_point() else value).cpu()
        if name not in found:
            with torch.inference_mode(False):  # what is returned can be used with gradients
                found[name] = torch.zeros(count, *value.shape[1:], dtype=value.dtype)
        found[name][rows] = value
