"""Going on: whose a checkpoint is, whether it is whole, and whether it is of the same run."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laser_lab.base.files import check_files, read_json
from laser_lab.base.fingerprint import fingerprint as weights_of
from laser_lab.data.readers import COLUMNS, OPTIONAL

if TYPE_CHECKING:
    from datasets import Dataset

    from laser_lab.encoder import LatentRetriever
    from laser_lab.methods import Method

logger = logging.getLogger(__name__)

STARTED = "started"
"""Written first into a checkpoint: it is ours, and half."""
COMPLETE = "complete"
"""What `started` is renamed to at the end; it holds the step and what the run is (:func:`identity`)."""

UNIMPORTANT = {
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "disable_tqdm", "hub_token",
    "log_level", "logging_dir", "logging_first_step", "logging_steps", "logging_strategy", "report_to", "run_name",
    "save_on_each_node", "save_steps", "save_strategy", "save_total_limit", "eval_steps", "eval_strategy",
    "eval_on_start", "per_device_eval_batch_size", "use_cpu",
}  # fmt: skip
"""Settings that may change on the way: they decide no weight."""


def fingerprint(dataset: Dataset) -> str:
    """A hash of the dataset's rows, the same wherever they were read from."""
    digest = hashlib.sha256()
    for row in dataset:
        kept = {name: row[name] for name in COLUMNS} | {name: row[name] for name in OPTIONAL if row.get(name)}
        digest.update(json.dumps(kept, sort_keys=True, default=lambda image: image.tobytes().hex()).encode())
    return digest.hexdigest()[:16]


def identity(
    model: LatentRetriever, method: Method, dataset: Dataset, settings: dict[str, Any], **more: Any
) -> dict[str, Any]:
    """All that decides where a run ends, of JSON: to be taken before the first step."""
    encoder = model.encoder
    found = {
        "method": method.as_dict(),
        "settings": {name: value for name, value in settings.items() if name not in UNIMPORTANT},
        "data": fingerprint(dataset),
        "model": weights_of(encoder.backbone.model),
        "encoder": {name: getattr(encoder, name) for name in encoder.config_keys if name != "base"},
        "prompts": model.prompts,
    } | more
    return json.loads(json.dumps(found, default=str))


def last_checkpoint(output_dir: str | os.PathLike[str], run: dict[str, Any] | None = None) -> Path | None:
    """The newest checkpoint that was written to its end, or None. Half ones of ours are removed.

    Args:
        run: What the run is that goes on (:func:`identity`).

    Raises:
        FileExistsError: A ``checkpoint-*`` is there that no training of this library wrote: the trainer would count it
            among its own and remove it some day.
        ValueError: The checkpoint is of another run, or a file in it is corrupt; the message says what differs.
    """
    folders = sorted(Path(output_dir).glob("checkpoint-*"))
    if foreign := [folder for folder in folders if not _is_ours(folder)]:
        raise FileExistsError(
            f"{', '.join(map(str, foreign))}: not written by this library, or a copy, or half and of its version 0.1, "
            "which did not mark what it began. The trainer would count it among its own and delete it some day, so "
            "nothing is done: move or remove it, or choose another output_dir"
        )
    whole = [folder for folder in folders if (folder / COMPLETE).exists()]
    for folder in folders:
        if folder not in whole:
            logger.warning("removing the half-written %s", folder)
            shutil.rmtree(folder, ignore_errors=True)
    newest = max(whole, key=lambda folder: int(folder.name.rsplit("-", 1)[1]), default=None)
    if newest is not None and run is not None:
        try:
            check_files(newest, (".json", ".safetensors", ".pt", ".pth"))
            note = read_json(newest / COMPLETE)
        except ValueError as error:
            raise ValueError(f"{error}. Remove {newest} to go on from the checkpoint before it") from error
        _check_same(newest, note, run)
    return newest


def _is_ours(folder: Path) -> bool:
    """Whether a checkpoint has the name and the mark that a training of this library gives it."""
    named = re.fullmatch(r"checkpoint-\d+", folder.name)
    return named is not None and any((folder / mark).exists() for mark in (STARTED, COMPLETE))


def _check_same(checkpoint: Path, note: Any, run: dict[str, Any]) -> None:
    if not isinstance(note, dict):
        logger.warning("%s is of an earlier version and does not say what its run was", checkpoint)
        return
    there = note["run"]
    differ = []
    for name, value in run.items():
        before = there.get(name)
        pairs = [(name, before, value)]
        if isinstance(value, dict) and isinstance(before, dict):
            pairs = [(f"{name} {key}", before.get(key), value.get(key)) for key in {**before, **value}]
        differ += [f"{label} was {old!r} and is {new!r}" for label, old, new in pairs if old != new]
    if differ:
        raise ValueError(f"{checkpoint} is of another run: {'; '.join(differ)}. Choose another output_dir")


def begin(folder: Path) -> None:
    """Mark a checkpoint that is about to be written."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / COMPLETE).exists():
        os.replace(folder / COMPLETE, folder / STARTED)
    (folder / STARTED).touch()


def finish(folder: Path, step: int, run: dict[str, Any]) -> None:
    """Mark a checkpoint as whole."""
    (folder / STARTED).write_text(json.dumps({"step": step, "run": run}, indent=1), encoding="utf-8")
    os.replace(folder / STARTED, folder / COMPLETE)


def is_at_its_end(checkpoint: Path) -> bool:
    """Whether no step is left to train after this checkpoint."""
    state = read_json(checkpoint / "trainer_state.json")
    return state["global_step"] >= state["max_steps"]
