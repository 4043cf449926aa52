"""load: any source to a retriever."""

import os
from typing import Any

import torch
from sentence_transformers.base.modules import InputModule

from laser_lab.base.files import named_files
from laser_lab.base.inputs import check_steps
from laser_lab.data.prompts import join_query, query_prompt
from laser_lab.encoder import LatentEncoder, LatentRetriever
from laser_lab.lame import ReasonEncoder
from laser_lab.weights import CONFIG_FILE, resolve

PROMPTS = {"query": query_prompt(), "document": ""}  # of the published checkpoints


def load(
    name: str | os.PathLike[str] = "gemma-3-270m",
    *,
    thinking_steps: int | None = None,
    document_steps: int | None = None,
    pooling: str | None = None,
    halting: bool | str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    max_length: int | None = None,
    prompts: dict[str, str] | None = None,
    query_prompt: str | None = None,
    template: str | None = "saved",
    add_special_tokens: bool | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    **model_kwargs: Any,
) -> LatentRetriever:
    """Load a retriever that thinks.

    Args:
        name: A hub id (``"Alibaba-NLP/LaSER-Qwen3-0.6B"``), a folder that ``save_pretrained`` wrote, any causal LM
            folder, a GGUF file, or a built-in name (``"gemma-3-270m"``).
        thinking_steps: K. Default: what the folder says, else 3. ``1`` is the basic last-token retriever.
        document_steps, pooling, halting: Of :class:`laser_lab.encoder.LatentEncoder`. Default: what the folder says.
        adapter: A PEFT adapter on top of `name`.
        device: Default: an accelerator if there is one.
        dtype: Default: float32 on the CPU, the checkpoint's own elsewhere. ``"bfloat16"`` is faster on a CPU that
            multiplies it (docs/speed.md); ``"auto"`` takes it there, and the default elsewhere.
        max_length: Tokens of the longest text, prompt included. Default: what the folder says, else 512.
        prompts: Default: what the folder says, else the published checkpoints' (an instruction for queries).
        query_prompt: The prompt of queries alone, a task sentence or a whole prefix (:func:`laser_lab.query_prompt`).
        template: ``"chat"`` as in the released training and evaluation, None as on the model card. Default: what the
            folder says, else None.
        add_special_tokens: Of :class:`laser_lab.encoder.LatentEncoder`. Default: what the folder says, else True.
        trust_remote_code: For model code on the hub; off unless asked for.

    Raises:
        FileNotFoundError, ValueError, OSError: as :func:`laser_lab.weights.load_backbone`.
        TypeError: A prompt is not a string.
        ValueError: There is no such template, or the tokenizer has none.
    """
    if thinking_steps is not None:
        check_steps(thinking_steps)
    given = {} if query_prompt is None else {"query": join_query(query_prompt, "")}
    for prompt in (prompts or {}).values():
        join_query(prompt, "")  # a string
    settings = dict(
        thinking_steps=thinking_steps,
        document_steps=document_steps,
        pooling=pooling,
        halting=halting,
        max_length=max_length,
        add_special_tokens=add_special_tokens,
    )
    settings = {key: value for key, value in settings.items() if value is not None}
    encoder = _encoder_class(adapter or name).load(
        os.fspath(name),
        settings=settings if template == "saved" else settings | {"template": template},
        adapter=None if adapter is None else os.fspath(adapter),
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        revision=revision,
        model_kwargs=model_kwargs,
    )
    if prompts is None:
        prompts = _saved(adapter or name, "config_sentence_transformers.json").get("prompts") or PROMPTS
    device = encoder.backbone.embedding_table.device
    return LatentRetriever(modules=[encoder], device=str(device), prompts=prompts | given, similarity_fn_name="cosine")


def _encoder_class(source: str | os.PathLike[str]) -> type[LatentEncoder]:
    """The class of the encoder that wrote a folder; where none did, the one that feeds soft tokens back."""
    return ReasonEncoder if "reason_tokens" in _saved(source, CONFIG_FILE) else LatentEncoder


def _saved(source: str | os.PathLike[str], file: str) -> dict[str, Any]:
    """The settings in a file beside the weights; none where it is not there."""
    folder = resolve(source)
    with named_files(folder):
        return InputModule.load_config(folder, config_filename=file)
