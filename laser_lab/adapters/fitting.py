"""Put an adapter on a model, strictly: every weight must find its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RELEASED = "encoder."  # the released LaSER trainer writes this before every name, as its merge_lora.py knows


def with_adapter(model: PreTrainedModel, adapter: str, trainable: bool = False) -> nn.Module:
    """`model` with a PEFT adapter, a folder or hub id, on top; the released trainer's names are read too.

    Raises:
        ValueError: It does not fit the model.
    """
    import warnings

    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.utils import load_peft_weights

    try:
        saved = load_peft_weights(adapter, device="cpu")
        named = {name.removeprefix(RELEASED): weight for name, weight in saved.items()}
        with warnings.catch_warnings():
            if named.keys() != saved.keys():  # set below
                warnings.filterwarnings("ignore", message=".*missing adapter keys")
            wrapped = PeftModel.from_pretrained(model, adapter, is_trainable=trainable)
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
