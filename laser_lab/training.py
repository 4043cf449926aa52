"""Training: dual-view self-distillation and its comparators, on the SentenceTransformer trainer.

One loss composes the objectives that a row of :data:`laser_lab.methods.METHODS` asks for. The loop, mixed precision,
accumulation, logging and several processes are the Trainer's and Accelerate's. From a shell, on any number of
processes: ``accelerate launch -m laser_lab.training CONFIG.yaml``.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import platform
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.evaluation import BaseEvaluator
from torch import Tensor, nn

from laser_lab.backbones import atomic_folder
from laser_lab.data.readers import COLUMNS, RetrievalTask
from laser_lab.evaluation import score_steps
from laser_lab.explicit import EXPLICIT_MAX_LENGTH, explicit_features
from laser_lab.kernels import linear
from laser_lab.lame import BottleneckLoss, ReasonEncoder, take_up
from laser_lab.losses import InfoNCE, OutputKL, StepwiseContrastive, TrajectoryKL
from laser_lab.methods import Method, ReasonMethod, method_of
from laser_lab.retriever import LatentRetriever, load, think

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

LORA = dict(r=64, lora_alpha=32, target_modules="all-linear")  # LaSER, appendix
RUN_CARD = "run_card.json"
CALLS_WORTH = 3e8  # multiply-adds of padding that are cheaper than a rollout's calls of their own
FOLDED = 2**16  # weights of the largest LoRA layer whose products are cheaper than its calls
COMPLETE = "complete"  # written last into a checkpoint: without it, the checkpoint is half

IDS = ("input_ids", "attention_mask")  # what the model reads of a text
THOUGHT = ("states", "sentence_embedding")  # what it gives


class NonFiniteLoss(RuntimeError):
    """A loss term became NaN or infinite; the last checkpoint is untouched."""


class DualViewLoss(nn.Module):
    """L = CL(latent) + λ1·CL(explicit) + λ2·KL_out + λ3·KL_mid, or GIRCSE's, as the method says (LaSER, eq. 11).

    Takes the features of :class:`Collator`: the queries, the documents and, where the method needs it, the explicit
    view. Returns every weighted term by name; the trainer sums and logs them. The targets of the distillation carry
    no gradient, nor do its documents unless the method says so; both views are trained by their contrastive terms.
    """

    def __init__(self, model: nn.Module, method: Method) -> None:
        super().__init__()
        self.model = model
        self.method = method
        self.progress = 0.0
        """Share of the steps done, set by the trainer."""
        self.teacher: nn.Module | None = None
        """A frozen copy that gives the distillation targets instead of the explicit view of the model itself."""
        self.contrastive = InfoNCE(method.temperature)
        self.output = OutputKL(method.output_temperature)
        self.process = TrajectoryKL(method.process_temperature)
        self.stepwise = StepwiseContrastive(method.temperature)
        self.weights = sum(parameter.numel() for parameter in model.parameters())

    @property
    def explicit_only(self) -> bool:
        """The first stage of ``teacher_first``: only the view that sees the reasoning is trained."""
        return self.progress < self.method.teacher_first

    @property
    def distil_share(self) -> float:
        """What λ2 and λ3 are multiplied by at this point of the training."""
        since = self.progress - self.method.teacher_first - self.method.distil_start
        return min(1.0, max(0.0, since) / self.method.distil_warmup) if self.method.distil_warmup else float(since >= 0)

    def think(
        self, queries: dict[str, Tensor], documents: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor] | None, dict[str, Tensor]]:
        """What the model thinks of the queries (None in the first stage of ``teacher_first``) and of the documents.

        One rollout serves both where the padding costs less than the calls of a second one: with a small model the
        calls are where the time is. The numbers are those of two.
        """
        steps = self.method.thinking_steps
        if self.explicit_only:
            return None, spread(self.model(_ids(documents), thinking_steps=steps), documents["rows"])
        parts = [_ids(queries), _ids(documents)]
        sizes = [part["input_ids"].shape for part in parts]
        width = max(length for _, length in sizes)
        padding = sum(count * (width - length) for count, length in sizes)
        if padding * self.weights > CALLS_WORTH:
            latent, encoded = (self.model(part, thinking_steps=steps) for part in parts)
        else:
            both = {key: torch.cat([_widened(part[key], width) for part in parts]) for key in IDS}
            thought = self.model(both, thinking_steps=steps)
            split = [thought[key].split([count for count, _ in sizes]) for key in THOUGHT]
            latent, encoded = (dict(zip(THOUGHT, rows)) for rows in zip(*split))
        return latent, spread(encoded, documents["rows"])

    def forward(self, features: list[dict[str, Tensor]], labels: Tensor | None = None) -> dict[str, Tensor]:
        queries, documents = features[:2]
        explicit = features[2] if len(features) > 2 else None
        method = self.method
        steps = method.thinking_steps
        latent, encoded = self.think(queries, documents)
        document_keys = gather(documents["keys"])
        offset = _rank() * len(documents["keys"])
        positives = torch.arange(len(queries["input_ids"]), device=document_keys.device) + offset
        # (B, N): is document n among the positives of query b? Its own one is the row `positives`.
        ignored = (queries["positive_keys"][:, :, None] == document_keys).any(1)
        vectors = gather(encoded["sentence_embedding"])
        terms: dict[str, Tensor] = {}
        if latent is not None and method.contrastive:
            loss = self.contrastive(latent["sentence_embedding"], vectors, positives, ignored)
            terms["contrastive"] = method.contrastive * loss
        if latent is not None and (method.stepwise or method.monotonicity):
            # the penalty is no mean over queries, so every process computes it for the queries of all
            states, rows = gather(latent["states"]), gather(encoded["states"])
            stepwise, penalty = self.stepwise(states, rows, gather(positives), gather(ignored))
            terms["stepwise"] = method.stepwise * stepwise
            terms["monotonicity"] = method.monotonicity * penalty
        if explicit is not None:
            view = {key: explicit[key] for key in (*IDS, "segment_ends")}
            if self.teacher is None:
                teacher, teacher_vectors = self.model(view), None
                if method.explicit:
                    loss = self.contrastive(teacher["sentence_embedding"], vectors, positives, ignored)
                    terms["explicit"] = method.explicit * loss
            else:
                with torch.no_grad():
                    teacher = self.teacher(view)
                    own = spread(self.teacher(_ids(documents), thinking_steps=steps), documents["rows"])
                    teacher_vectors = gather(own["sentence_embedding"])
            fixed = vectors if method.distil_documents else vectors.detach()
            if latent is not None and method.output:
                student, target = latent["sentence_embedding"], teacher["sentence_embedding"]
                loss = self.output(student, target, fixed, teacher_vectors)
                terms["output"] = self.distil_share * method.output * loss
            if latent is not None and method.process:
                loss = self.process(latent["states"], teacher["states"], fixed, teacher_vectors)
                terms["process"] = self.distil_share * method.process * loss
        return terms


def spread(encoded: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """The thoughts of a batch's different documents (U, ...), at all places of the batch where they stand (N, ...)."""
    return {key: encoded[key][rows] for key in THOUGHT}


def _ids(features: dict[str, Tensor]) -> dict[str, Tensor]:
    """A text for the model, without what only the loss reads."""
    return {key: features[key] for key in IDS}


def _widened(rows: Tensor, width: int) -> Tensor:
    """(B, T) to (B, width), zeros on the left: masked ids, or the mask of such."""
    return nn.functional.pad(rows, (width - rows.shape[1], 0))


def _rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks; gradients flow back to where the rows came from."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return rows
    if not rows.requires_grad:
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(rows.contiguous()))


# -- data ----------------------------------------------------------------------------------------------------------


def training_pairs(dataset: Dataset, hard_negatives: int = 1, seed: int = 0) -> Dataset:
    """One row per (query, positive), with `hard_negatives` of the query's negatives drawn by `seed`.

    Every row has the same number of negatives: where a query has too few, other rows' positives stand in (as random
    negatives), so that batches are rectangular and equal on every device.

    Raises:
        ValueError: Columns are missing, or there is nothing to train on.
    """
    from datasets import Dataset, Features

    if missing := [name for name in COLUMNS if name not in dataset.column_names]:
        raise ValueError(
            f"the training data lacks {', '.join(missing)}: read it with laser_lab.data.readers.read_dataset"
        )
    if not len(dataset):
        raise ValueError("the training data is empty")
    rng = random.Random(seed)
    every = [(i, text) for row in dataset for i, text in zip(row["positive_ids"], row["positives"])]
    rows = []
    for row in dataset:
        for doc_id, text in zip(row["positive_ids"], row["positives"]):
            candidates = list(zip(row["negative_ids"], row["negatives"]))
            drawn = rng.sample(candidates, min(hard_negatives, len(candidates)))
            while len(drawn) < hard_negatives:
                drawn.append(rng.choice(every))
            rows.append(
                {
                    "id": row["id"],
                    "query": row["query"],
                    "reasoning": row["reasoning"],
                    "documents": [text, *(t for _, t in drawn)],
                    "document_ids": [doc_id, *(i for i, _ in drawn)],
                    "positive_ids": row["positive_ids"],
                }
            )
    kinds = dataset.features  # texts, or images, which only their own type can hold
    schema = {name: kinds[name] for name in ("id", "query", "reasoning", "positive_ids")}
    schema |= {"documents": kinds["positives"], "document_ids": kinds["positive_ids"]}
    return Dataset.from_list(rows, features=Features(schema))


def _key(doc_id: str) -> int:
    """A document id as an integer that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(doc_id.encode(), digest_size=7).digest(), "big")


class Collator:
    """Rows of :func:`training_pairs` to the model's features: ``query_*``, ``document_*`` and ``explicit_*``.

    The documents of a batch are N = B·(1+n), positives first, then the negatives, with their ``keys`` (N,). One that
    stands there more than once is encoded once: the features are those of the U different ones, and ``rows`` (N,) says
    which of them each is.
    """

    valid_label_columns: tuple[str, ...] = ()

    def __init__(self, model: LatentRetriever, method: Method, explicit_max_length: int = EXPLICIT_MAX_LENGTH) -> None:
        self.encoder = model.encoder
        self.query_prompt = model.prompts.get("query") or ""
        self.document_prompt = model.prompts.get("document") or ""
        self.method = method
        self.explicit_max_length = explicit_max_length

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        ordered = list(zip(*(zip(row["document_ids"], row["documents"]) for row in rows)))
        documents = [pair for column in ordered for pair in column]
        different = dict(documents)
        position = {doc_id: row for row, doc_id in enumerate(different)}
        parts = {
            "query": self.encoder.preprocess([row["query"] for row in rows], prompt=self.query_prompt),
            "document": self.encoder.preprocess(list(different.values()), prompt=self.document_prompt),
        }
        keys = [[_key(i) for i in row["positive_ids"]] for row in rows]
        width = max(map(len, keys))
        parts["query"]["positive_keys"] = torch.tensor([row + row[:1] * (width - len(row)) for row in keys])
        parts["document"]["keys"] = torch.tensor([_key(i) for i, _ in documents])
        parts["document"]["rows"] = torch.tensor([position[i] for i, _ in documents])
        if self.method.needs_reasoning:
            parts["explicit"] = explicit_features(
                self.encoder,
                [row["query"] for row in rows],
                [row["reasoning"] for row in rows],
                prompt=self.query_prompt,
                steps=self.method.thinking_steps,
                rule=self.method.downsampling,
                max_length=self.explicit_max_length,
            )
        batch: dict[str, Any] = {
            f"{part}_{key}": value for part, keyed in parts.items() for key, value in keyed.items()
        }
        batch["ids"] = [row["id"] for row in rows]
        return batch


# -- the trainer ---------------------------------------------------------------------------------------------------


class StepEvaluator(BaseEvaluator):
    """Held-out quality of the pooled embedding and of every step: ``ndcg@10``, ``ndcg@10_step1``, ..."""

    def __init__(self, task: RetrievalTask, thinking_steps: int, batch_size: int = 64) -> None:
        super().__init__()
        self.task, self.thinking_steps, self.batch_size = task, thinking_steps, batch_size
        self.primary_metric = "ndcg@10"

    def __call__(self, model: LatentRetriever, output_path: str | None = None, epoch: int = -1, steps: int = -1):
        options: dict[str, Any] = dict(thinking_steps=self.thinking_steps, batch_size=self.batch_size)
        queries = think(model, list(self.task.queries.values()), prompt_name="query", **options)
        documents = think(model, list(self.task.corpus.values()), prompt_name="document", **options)
        means = score_steps(queries, documents, self.task).groupby("thinking_steps")["ndcg@10"].mean()
        metrics = {f"ndcg@10_step{step}": float(value) for step, value in means.items()}
        return {"ndcg@10": float(means.iloc[-1])} | metrics


class LatentTrainer(SentenceTransformerTrainer):
    """The SentenceTransformer trainer, plus: whole checkpoints only, a stop at the first non-finite loss, the schedule
    of the distillation, and the frozen teacher of ``teacher_first``."""

    def validate_column_names(self, dataset: Any, dataset_name: str | None = None) -> None:
        """The collator reads ids and lists; nothing is trained on by column order."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self._batch_ids = inputs.pop("ids", [])
        return super().compute_loss(model, inputs, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """A step; the gradients of a backbone that is frozen at this point of the training are dropped. Its parameters
        stay known to the optimizer and to other processes, so the stages can change in the middle of a run."""
        loss: DualViewLoss = self.loss
        loss.progress = self.state.global_step / max(1, self.state.max_steps)
        if loss.method.teacher_first and not loss.explicit_only and loss.teacher is None:
            loss.teacher = self._frozen_teacher()
        backbone = self.accelerator.unwrap_model(self.model).encoder.backbone
        with folded(backbone):
            value = super().training_step(*args, **kwargs)
        if getattr(loss, "backbone_frozen", False):
            for parameter in backbone.parameters():
                parameter.grad = None
        return value

    def track_loss_components(self, loss: dict[str, Tensor]) -> None:
        bad = [name for name, value in loss.items() if not torch.isfinite(value)]
        if bad:
            raise NonFiniteLoss(
                f"the loss term {', '.join(bad)} is not finite at step {self.state.global_step} "
                f"(batch ids {list(self._batch_ids)}); the last whole checkpoint in {self.args.output_dir} is untouched"
            )
        super().track_loss_components(loss)

    def _frozen_teacher(self) -> nn.Module:
        """A copy of the model as it is when its explicit view is trained; kept on disk for a resumed run."""
        folder = Path(self.args.output_dir) / "teacher"
        if folder.exists():
            teacher: nn.Module = load(folder, device=self.args.device)
        else:
            teacher = copy.deepcopy(self.accelerator.unwrap_model(self.model))
            if self.args.should_save:
                with atomic_folder(folder) as temporary:
                    teacher.save_pretrained(str(temporary), create_model_card=False)
        teacher.encoder.backbone.merge_adapter()
        return teacher.eval().requires_grad_(False)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            (folder / COMPLETE).write_text(f"{self.state.global_step}\n")


def last_checkpoint(output_dir: str | os.PathLike[str]) -> Path | None:
    """The newest checkpoint that was written to its end, or None. Half ones are removed."""
    import shutil

    whole = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        if (folder / COMPLETE).exists():
            whole.append(folder)
        else:
            logger.warning("removing the half-written %s", folder)
            shutil.rmtree(folder, ignore_errors=True)
    return max(whole, key=lambda folder: int(folder.name.rsplit("-", 1)[1]), default=None)


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
        model: A retriever, or what :func:`laser_lab.load` takes. It is trained in place.
        dataset: In the schema of :data:`laser_lab.data.readers.COLUMNS`. LaME on a vision-language backbone also takes
            images: ``query``, ``positives`` and ``negatives`` may hold ``{"text": ..., "image": ...}``.
        method: A row of :data:`laser_lab.METHODS` by name, or a :class:`laser_lab.methods.Method`.
        dev: Held-out task. With it, quality is measured at every evaluation and the best checkpoint by nDCG@10 is
            what is returned; without it, the last one is.
        lora: Settings of ``peft.LoraConfig`` over the paper's (r=64, alpha=32, all linear layers); True for the
            paper's; False for full fine-tuning. A model that has an adapter keeps it.
        hard_negatives: n, per query.
        resume: Continue from the last whole checkpoint in `output_dir`, to the result an unbroken run would have had.
        thinking_steps: K, over the method's own.
        arguments: Of ``SentenceTransformerTrainingArguments`` (``max_steps``, ``per_device_train_batch_size``,
            ``learning_rate``, ``gradient_accumulation_steps``, ``gradient_checkpointing``, ``report_to``, ...).
            Defaults are the paper's: one epoch, AdamW at 1e-4, linear warm-up over a tenth of the steps.

    Returns:
        The trained retriever; its K and pooling are the method's.

    Raises:
        ValueError: The method does not exist, needs reasoning that the data lacks, or the data is empty.
        FileExistsError: `output_dir` holds a run and `resume` is off.
        NonFiniteLoss: A loss term is NaN or infinite; the message names step, term and batch ids.
    """
    method = method_of(method, **({} if thinking_steps is None else {"thinking_steps": thinking_steps}))
    output_dir = Path(output_dir)
    pairs = training_pairs(dataset, hard_negatives, seed)
    if method.needs_reasoning and not any(pairs["reasoning"]):
        raise ValueError("this method distils from the explicit view, but the data has no reasoning")
    if not resume and output_dir.exists() and any(output_dir.iterdir()):
        raise FileExistsError(f"{output_dir} holds a run: pass resume=True to continue it, or choose another folder")
    # A loss or an evaluation never decides what the weights start from: everything random follows from the seed.
    from transformers import set_seed

    set_seed(seed)
    if not isinstance(model, LatentRetriever):
        model = load(model)
    one_pass = isinstance(method, ReasonMethod)
    if one_pass:
        take_up(model, method)
    elif isinstance(model.encoder, ReasonEncoder):
        raise ValueError("a model with reason tokens is trained by a method with them, such as 'lame'")
    encoder = model.encoder
    encoder.thinking_steps, encoder.pooling = method.thinking_steps, method.pooling
    if lora is not False and not hasattr(encoder.backbone.model, "peft_config"):
        add_lora(model, {} if lora is True else dict(lora))
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
    if dev is not None:
        settings |= dict(
            eval_strategy=settings["save_strategy"],
            eval_steps=arguments.get("save_steps", settings["save_steps"]),
            load_best_model_at_end=True,
            metric_for_best_model="eval_ndcg@10",
            greater_is_better=True,
        )
    settings |= arguments
    args = SentenceTransformerTrainingArguments(
        output_dir=str(output_dir), seed=seed, data_seed=seed, remove_unused_columns=False, **settings
    )
    args.logging_nan_inf_filter = False
    trainer = LatentTrainer(
        model=model,
        args=args,
        train_dataset=pairs,
        loss=(BottleneckLoss if one_pass else DualViewLoss)(model, method),
        evaluator=None if dev is None else StepEvaluator(dev, method.thinking_steps),
        data_collator=Collator(model, method, explicit_max_length),
    )
    checkpoint = last_checkpoint(output_dir) if resume else None
    started = time.time()
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    model.eval()
    if trainer.is_world_process_zero():
        card = run_card(trainer, method, dataset, settings, seed, time.time() - started, checkpoint)
        final = output_dir / "final"
        import shutil

        shutil.rmtree(final, ignore_errors=True)
        with atomic_folder(final) as temporary:
            model.save_pretrained(str(temporary))
            (temporary / RUN_CARD).write_text(json.dumps(card, indent=2, sort_keys=True))
    model.history = trainer.state.log_history
    return model


def add_lora(model: LatentRetriever, changes: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    backbone = model.encoder.backbone
    config = LoraConfig(**(LORA | {"task_type": "CAUSAL_LM"} | changes))
    backbone.model = get_peft_model(backbone.model, config)


@contextmanager
def folded(model: nn.Module) -> Iterator[None]:
    """Inside, every small LoRA layer is one product by W + s·B·A, which is built at the door: the same function and the
    same gradients of A and B, up to rounding, in a third of the calls. A big layer stays as it is: its gradient by the
    whole matrix would cost more than the calls."""
    from peft.tuners.lora import Linear as LoraLinear

    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, LoraLinear)
        and isinstance(layer.base_layer, nn.Linear)
        and layer.base_layer.weight.numel() <= FOLDED
        and layer.active_adapters == [*layer.lora_A]  # one, and it acts
        and len(layer.lora_A) == 1
        and not (layer.merged or layer.disable_adapters or layer.lora_variant)
        and not any(getattr(dropout, "p", 0) for dropout in layer.lora_dropout.values())
    ]
    try:
        for layer in layers:
            weight = layer.base_layer.weight + layer.get_delta_weight(layer.active_adapters[0])
            layer.forward = partial(linear, weight=weight, bias=layer.base_layer.bias)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def run_card(
    trainer: LatentTrainer,
    method: Method,
    dataset: Dataset,
    settings: dict[str, Any],
    seed: int,
    seconds: float,
    resumed_from: Path | None,
) -> dict[str, Any]:
    """What is needed to know, and to repeat, a run: saved beside its weights."""
    state = trainer.state
    return {
        "method": method.as_dict(),
        "settings": {key: value for key, value in settings.items() if isinstance(value, (str, int, float, bool))},
        "seed": seed,
        "base": trainer.model.encoder.base,
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "dataset": {"rows": len(dataset), "fingerprint": fingerprint(dataset)},
        "steps": state.global_step,
        "best": {"ndcg@10": state.best_metric, "step": state.best_global_step},
        "seconds": round(seconds, 1),
        "resumed_from_step": None if resumed_from is None else int(resumed_from.name.rsplit("-", 1)[1]),
        "processes": trainer.args.world_size,
        "device": str(trainer.args.device),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("laser_lab", "torch", "transformers", "sentence-transformers", "peft")},
        },
        "history": state.log_history,
    }


def fingerprint(dataset: Dataset) -> str:
    """A hash of the dataset's rows, the same wherever they were read from."""
    digest = hashlib.sha256()
    for row in dataset:
        kept = {name: row[name] for name in COLUMNS}
        digest.update(json.dumps(kept, sort_keys=True, default=lambda image: image.tobytes().hex()).encode())
    return digest.hexdigest()[:16]


def main(arguments: Sequence[str] | None = None) -> int:
    """``accelerate launch -m laser_lab.training CONFIG.yaml``: the arguments of :func:`train`, from a file.

    ``model`` and ``dataset`` are what :func:`laser_lab.load` and :func:`laser_lab.data.readers.read_dataset` take
    (``hopworld`` too); ``dev`` is a folder or True for the ``dev`` split of `dataset`.
    """
    import yaml

    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if len(arguments) != 1 or not os.path.isfile(arguments[0]):
        print("usage: accelerate launch -m laser_lab.training CONFIG.yaml", file=sys.stderr)
        return 2
    with open(arguments[0], encoding="utf-8") as file:
        config = yaml.safe_load(file)
    if not isinstance(config, dict) or not {"model", "dataset", "output_dir"} <= config.keys():
        print(f"{arguments[0]} must name at least model, dataset and output_dir", file=sys.stderr)
        return 2
    from laser_lab.data.readers import read_dataset, read_task

    source, dev = config.pop("dataset"), config.pop("dev", None)
    if source == "hopworld":
        from laser_lab.data.hopworld import HopWorld

        world = HopWorld()
        data, task = world.dataset("train"), world.task("dev") if dev else None
    else:
        data = read_dataset(source)
        task = read_task(source if dev is True else dev) if dev else None
    trained = train(config.pop("model"), data, dev=task, **config)
    print(json.dumps({"output": str(Path(config["output_dir"]) / "final"), "log": trained.history[-1]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
