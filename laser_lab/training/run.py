"""Training on the SentenceTransformer trainer; in a shell: ``accelerate launch -m laser_lab.training CONFIG.yaml``."""

from __future__ import annotations

import inspect
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainingArguments
from transformers import set_seed

from laser_lab.base.files import atomic_folder, read_yaml
from laser_lab.base.inputs import check_count, check_names
from laser_lab.base.kernels import use_fast_linear
from laser_lab.base.processes import locked
from laser_lab.data.hopworld import HopWorld
from laser_lab.data.readers import RetrievalTask, read_dataset, read_task
from laser_lab.encoder import LatentRetriever, is_saved_weights
from laser_lab.explicit import EXPLICIT_MAX_LENGTH
from laser_lab.lame import ReasonEncoder, use_reason_tokens
from laser_lab.loading import load
from laser_lab.methods import Method, ReasonMethod, method_of
from laser_lab.training.batches import Collator, training_pairs
from laser_lab.training.objectives import BottleneckLoss, DualViewLoss
from laser_lab.training.resume import fingerprint, identity, last_checkpoint
from laser_lab.training.trainer import LatentTrainer, StepEvaluator

LORA = dict(r=64, lora_alpha=32, target_modules="all-linear")  # LaSER, appendix
RUN_CARD = "run_card.json"
LOCK = ".lock"


def train(
    model: LatentRetriever | str,
    dataset: Dataset,
    method: str | Method = "laser",
    *,
    output_dir: str | os.PathLike[str],
    dev: RetrievalTask | None = None,
    lora: dict[str, Any] | bool = True,
    hard_negatives: int = 1,
    explicit_max_length: int = EXPLICIT_MAX_LENGTH,
    seed: int = 0,
    resume: bool = False,
    thinking_steps: int | None = None,
    **arguments: Any,
) -> LatentRetriever:
    """Train a retriever by one method and save it to ``output_dir/final``, which :func:`laser_lab.load` reads.

    Args:
        model: A retriever, which is trained in place, or what :func:`laser_lab.load` takes.
        dataset: In the schema of :data:`laser_lab.data.readers.COLUMNS`. For LaME on a vision-language backbone
            ``query``, ``positives`` and ``negatives`` may hold ``{"text": ..., "image": ...}``.
        method: A row of :data:`laser_lab.METHODS` by name, or a :class:`laser_lab.methods.Method`.
        dev: Held-out task. With it, the best checkpoint by nDCG@10 is returned, else the last one.
        lora: Settings of ``peft.LoraConfig`` over the paper's (r=64, alpha=32, all linear layers) and the method's
            dropout; True for these; False for full fine-tuning. A model that has an adapter keeps it.
        hard_negatives: n, per query.
        resume: Continue from the last whole checkpoint in `output_dir`, to the result of an unbroken run.
        thinking_steps: K, over the method's own.
        arguments: Of ``SentenceTransformerTrainingArguments`` (``max_steps``, ``learning_rate``, ...). Defaults are the
            paper's: one epoch, AdamW at 1e-4, linear warm-up over a tenth of the steps.

    Raises:
        ValueError: The method does not exist, needs reasoning that the data lacks, or the data is empty; an argument
            has no such name or value; with `resume`, the checkpoint is of another run (method, data, model or settings:
            what differs is named), or a file in it is corrupt.
        FileExistsError: `output_dir` holds a run and `resume` is off, or checkpoints of another program.
        RuntimeError: Another training is at work in `output_dir`.
        NonFiniteLoss: A loss term is NaN or infinite; the message names step, term and batch ids.
    """
    method = method_of(method, **({} if thinking_steps is None else {"thinking_steps": thinking_steps}))
    output_dir = Path(output_dir)
    check_count("explicit_max_length", explicit_max_length)
    settings = training_settings(arguments, has_dev=dev is not None)
    if dev is not None:
        dev.check()
    pairs = training_pairs(dataset, hard_negatives, check_count("seed", seed, 0), method.sampling)
    if method.needs_reasoning and not any(pairs["reasoning"]):
        raise ValueError("this method learns from written reasoning, but the data has none")
    with alone_in(output_dir):
        there = [file for file in output_dir.iterdir() if file.name != LOCK]
        if there and not resume:
            raise FileExistsError(
                f"{output_dir} holds a run: pass resume=True to continue it, or choose another folder"
            )
        # A loss or an evaluation never decides what the weights start from: everything random follows from the seed.
        set_seed(seed)
        if not isinstance(model, LatentRetriever):
            model = load(model)
        set_method(model, method)
        options = dict(lora=lora, hard_negatives=hard_negatives, explicit_max_length=explicit_max_length, seed=seed)
        run = identity(model, method, dataset, settings, **options)
        if lora is not False and not hasattr(model.encoder.backbone.model, "peft_config"):
            add_lora(model, {"lora_dropout": method.lora_dropout} | ({} if lora is True else dict(lora)))
        args = SentenceTransformerTrainingArguments(
            output_dir=str(output_dir), seed=seed, data_seed=seed, remove_unused_columns=False, **settings
        )
        args.logging_nan_inf_filter = False
        trainer = LatentTrainer(
            model=model,
            args=args,
            train_dataset=pairs,
            loss=(BottleneckLoss if isinstance(method, ReasonMethod) else DualViewLoss)(model, method),
            evaluator=None if dev is None else StepEvaluator(dev),
            data_collator=Collator(model, method, dataset["reasoning"], explicit_max_length),
        )
        trainer.run = run | {"processes": args.world_size}
        _finish(trainer, last_checkpoint(output_dir, trainer.run) if resume else None, dataset, settings)
    return model


def alone_in(output_dir: Path) -> AbstractContextManager[None]:
    """Hold the folder of a run, which is made; the processes of one run hold it together. RuntimeError: another run
    does."""
    output_dir.mkdir(parents=True, exist_ok=True)
    if int(os.environ.get("RANK", 0)):
        return nullcontext()
    return locked(output_dir / LOCK, f"another training in {output_dir}", wait=False)


def _finish(trainer: LatentTrainer, checkpoint: Path | None, dataset: Dataset, settings: dict[str, Any]) -> None:
    """Train, from a checkpoint if there is one, and save the model with its card."""
    model, started = trainer.model, time.time()
    trainer.go_on(checkpoint)
    model.eval()
    if trainer.is_world_process_zero():
        card = run_card(trainer, checkpoint, dataset, settings) | {"seconds": round(time.time() - started, 1)}
        with atomic_folder(Path(trainer.args.output_dir) / "final", replaces=is_saved_weights) as temporary:
            model.save_pretrained(str(temporary))
            (temporary / RUN_CARD).write_text(json.dumps(card, indent=2, sort_keys=True))
    model.history = trainer.state.log_history


def set_method(model: LatentRetriever, method: Method) -> None:
    """Let a retriever think as `method` says. ValueError: a model with reason tokens and a method without them, or no
    token could end a thought."""
    if isinstance(method, ReasonMethod):
        use_reason_tokens(
            model, method.thinking_steps, decoder=bool(method.reconstruction), start_word=method.start_word
        )
        model.encoder.thinking_steps, model.encoder.document_steps = method.thinking_steps, method.document_steps
    elif isinstance(model.encoder, ReasonEncoder):
        raise ValueError("a model with reason tokens is trained by a method with them, such as 'lame'")
    else:
        model.encoder.set_thinking(**method.thinking)


def training_settings(changes: dict[str, Any], has_dev: bool) -> dict[str, Any]:
    """Arguments of the trainer: the paper's, ours where it names none, and `changes` over both (ValueError: no such
    name, or no number where one is needed)."""
    changes = checked_settings(changes)
    settings: dict[str, Any] = dict(
        num_train_epochs=1,
        per_device_train_batch_size=8,
        learning_rate=1e-4,
        lr_scheduler_type="linear",
        warmup_steps=0.1,
        logging_steps=10,
        save_strategy="steps",
        save_steps=0.25,
        save_total_limit=2,
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    if changes.get("bf16") and not torch.accelerator.is_available():
        settings["use_cpu"] = True  # the trainer asks for it
    if has_dev:
        settings |= dict(
            eval_strategy=settings["save_strategy"],
            eval_steps=changes.get("save_steps", settings["save_steps"]),
            load_best_model_at_end=True,
            metric_for_best_model="eval_ndcg@10",
            greater_is_better=True,
        )
    return settings | changes


ARGUMENTS = inspect.signature(train).parameters.keys() - {"arguments"}


def check_arguments(given: Iterable[str], where: str) -> None:
    """Raise a ValueError if `where` gives an argument that :func:`train` does not have."""
    check_names(given, ARGUMENTS | SentenceTransformerTrainingArguments.__dataclass_fields__.keys(), where)


def checked_settings(changes: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the trainer with the numbers that are texts read: YAML reads 1e-4 as a text."""
    known = SentenceTransformerTrainingArguments.__dataclass_fields__
    check_names(changes, known, "the trainer")
    changes = dict(changes)
    for name, value in changes.items():
        kind = str(known[name].type)
        if ("float" in kind or "int" in kind) and "str" not in kind and isinstance(value, str):
            try:
                value = float(value)
            except ValueError as error:
                raise ValueError(f"{name} must be a number, got {value!r}") from error
            changes[name] = int(value) if "float" not in kind and value == int(value) else value
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    for name in ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"):
        if name in changes and not (name == "max_steps" and changes[name] == -1):  # -1: as many as the epochs have
            check_count(name, changes[name])
    return changes


def add_lora(model: LatentRetriever, changes: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    backbone = model.encoder.backbone
    config = LoraConfig(**(LORA | {"task_type": "CAUSAL_LM"} | changes))
    backbone.model = get_peft_model(backbone.model, config)
    use_fast_linear(backbone.model)  # the adapter's layers too, as after loading


def run_card(
    trainer: LatentTrainer, resumed_from: Path | None, dataset: Dataset, settings: dict[str, Any]
) -> dict[str, Any]:
    """What is needed to repeat a run; saved beside its weights."""
    state = trainer.state
    return {
        "method": trainer.loss.method.as_dict(),
        "settings": {key: value for key, value in settings.items() if isinstance(value, (str, int, float, bool))},
        "seed": trainer.args.seed,
        "base": trainer.model.encoder.base,
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "dataset": {"rows": len(dataset), "fingerprint": fingerprint(dataset)},
        "steps": state.global_step,
        "best": {"ndcg@10": state.best_metric, "step": state.best_global_step},
        "resumed_from_step": None if resumed_from is None else int(resumed_from.name.rsplit("-", 1)[1]),
        "processes": trainer.args.world_size,
        "device": str(trainer.args.device),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("laser_lab", "torch", "transformers", "sentence-transformers", "peft")},
        },
        "history": state.log_history,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """``accelerate launch -m laser_lab.training CONFIG.yaml``: arguments of :func:`train` from a file. ``model`` may be
    a mapping of :func:`laser_lab.load`'s arguments, ``dataset`` also ``hopworld``, ``dev`` a folder or True (the
    ``dev`` split of `dataset`)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if len(arguments) != 1 or not os.path.isfile(arguments[0]):
        print("usage: accelerate launch -m laser_lab.training CONFIG.yaml", file=sys.stderr)
        return 2
    try:
        config = read_yaml(arguments[0])
        check_arguments(config, arguments[0])
        if missing := {"model", "dataset", "output_dir"} - config.keys():
            raise ValueError(f"{arguments[0]} does not name {', '.join(sorted(missing))}")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    source, dev = config.pop("dataset"), config.pop("dev", None)
    if source == "hopworld":
        world = HopWorld()
        data, task = world.dataset("train"), world.task("dev") if dev else None
    else:
        data = read_dataset(source)
        task = read_task(source if dev is True else dev) if dev else None
    model = config.pop("model")
    trained = train(load(**model) if isinstance(model, dict) else model, data, dev=task, **config)
    print(json.dumps({"output": str(Path(config["output_dir"]) / "final"), "log": trained.history[-1]}))
    return 0
