"""Read a model and put an adapter on it, strictly: every weight must find its place, and nothing is unpickled."""

import os
import warnings
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import load_peft_weights
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from laser_lab.base.files import check_files

SAFE = "adapter_model.safetensors"
RELEASED = "encoder."  # the released LaSER trainer writes this before every name, as its merge_lora.py knows


def read_whole(model_class: Any, source: str, **kwargs: Any) -> PreTrainedModel:
    """``model_class.from_pretrained``, from safetensors only.

    Raises:
        ValueError: Weights are missing, which would be drawn at random; each is named.
    """
    model, found = model_class.from_pretrained(source, use_safetensors=True, output_loading_info=True, **kwargs)
    if missing := sorted(found["missing_keys"]):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(f"{source} lacks weights of {type(model).__name__}: {', '.join(missing[:3])}{more}")
    return model


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Raise a ValueError if `tokenizer` was made up because the folder `source` holds none."""
    own = getattr(tokenizer, "vocab_files_names", {}).values()  # none: of bytes
    names = {"tokenizer.json", "tokenizer.model", "tekken.json", *own}
    if own and os.path.isdir(source) and not any(os.path.exists(os.path.join(source, name)) for name in names):
        raise ValueError(f"{source} has no tokenizer: none of {', '.join(sorted(names))} is there")


def _check_safe(adapter: str) -> None:
    """Raise a ValueError if an adapter has no safetensors file, or half of one: PEFT would unpickle what is there."""
    if os.path.isdir(adapter):
        if not os.path.exists(os.path.join(adapter, SAFE)):
            raise ValueError(
                f"the adapter {adapter} has no {SAFE}, and pickled weights are not read: they can run code"
            )
        check_files(adapter)
        return
    try:
        hf_hub_download(adapter, SAFE)
    except RemoteEntryNotFoundError as error:
        raise ValueError(f"the adapter {adapter} has no {SAFE}, and pickled weights are not read") from error


def with_adapter(model: PreTrainedModel, adapter: str) -> nn.Module:
    """`model` with a PEFT adapter, a folder or hub id, on top; the released trainer's names are read too.

    Raises:
        ValueError: It does not fit the model, is pickled, or a file is corrupt.
    """
    _check_safe(adapter)
    try:
        saved = load_peft_weights(adapter, device="cpu")
        named = {name.removeprefix(RELEASED): weight for name, weight in saved.items()}
        with warnings.catch_warnings():
            if named.keys() != saved.keys():  # set below
                warnings.filterwarnings("ignore", message=".*missing adapter keys")
            wrapped = PeftModel.from_pretrained(model, adapter)
        if named.keys() != saved.keys():
            set_peft_model_state_dict(wrapped, named)
        expected = get_peft_model_state_dict(wrapped)
    except (ValueError, RuntimeError) as error:  # no such target modules, or other shapes
        raise ValueError(f"The adapter {adapter} does not fit {type(model).__name__}: {error}") from error
    if named.keys() != expected.keys():  # PEFT itself only warns
        odd = sorted(named.keys() ^ expected.keys())
        raise ValueError(
            f"The adapter {adapter} does not fit {type(model).__name__}: "
            f"{len(odd)} weights match nothing, e.g. {odd[0]}"
        )
    return wrapped
