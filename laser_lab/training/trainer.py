"""The trainer: the SentenceTransformer trainer with whole checkpoints, stages and a stop at the first bad loss."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch import Tensor, nn
from transformers import TrainerState
from transformers.trainer_pt_utils import LengthGroupedSampler

from laser_lab.base.files import atomic_folder
from laser_lab.base.inputs import text_of
from laser_lab.base.kernels import linear
from laser_lab.base.numbers import NotFinite, likely_cause
from laser_lab.data.readers import RetrievalTask
from laser_lab.encoder import LatentRetriever, think
from laser_lab.evaluation import score_steps
from laser_lab.loading import load
from laser_lab.training.objectives import Objective
from laser_lab.training.resume import begin, finish, is_at_its_end

FOLDED = 2**16  # weights of the largest LoRA layer whose products are cheaper than its calls


class NonFiniteLoss(RuntimeError):
    """A loss term became NaN or infinite; the last checkpoint is untouched."""


class StepEvaluator(BaseEvaluator):
    """Held-out quality of the pooled embedding and of every step: ``ndcg@10``, ``ndcg@10_step1``, ..."""

    def __init__(self, task: RetrievalTask, batch_size: int = 64) -> None:
        super().__init__()
        self.task, self.batch_size = task, batch_size
        self.primary_metric = "ndcg@10"

    def __call__(self, model: LatentRetriever, output_path: str | None = None, epoch: int = -1, steps: int = -1):
        queries, documents = (
            think(model, list(texts.values()), prompt_name=side, prompts=prompts, batch_size=self.batch_size)
            for texts, side, prompts in (
                (self.task.queries, "query", self.task.query_prompts),
                (self.task.corpus, "document", ()),
            )
        )
        means = score_steps(queries, documents, self.task).groupby("thinking_steps")["ndcg@10"].mean()
        metrics = {f"ndcg@10_step{step}": float(value) for step, value in means.items()}
        return {"ndcg@10": float(means.iloc[-1])} | metrics


class LatentTrainer(SentenceTransformerTrainer):
    """The SentenceTransformer trainer with whole checkpoints, a stop at a non-finite loss, the distillation's schedule
    and the frozen teacher of ``teacher_first``."""

    run: dict[str, Any] = {}
    """what the run is, for its checkpoints (:func:`laser_lab.training.resume.identity`)"""

    def validate_column_names(self, dataset: Any, dataset_name: str | None = None) -> None:
        """The collator reads ids and lists; nothing is trained on by column order."""

    def get_batch_sampler(self, dataset: Any, batch_size: int, drop_last: bool, **kwargs: Any) -> Any:
        """The stock trainer's, which does not read ``train_sampling_strategy="group_by_length"``: questions of like
        length in a batch, which pads them less."""
        if self.args.train_sampling_strategy != "group_by_length":
            return super().get_batch_sampler(dataset, batch_size, drop_last, **kwargs)
        lengths = [len(text_of(query)) for query in dataset["query"]]
        rows = LengthGroupedSampler(batch_size, lengths=lengths, generator=kwargs.get("generator"))
        return DefaultBatchSampler(rows, batch_size=batch_size, drop_last=drop_last, **kwargs)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self._batch_ids, self._batch = inputs.pop("ids", []), inputs
        return super().compute_loss(model, inputs, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """A step, without the gradients of a frozen backbone; the optimizer keeps its parameters, so stages can change
        in a run."""
        loss: Objective = self.loss
        loss.progress = self.state.global_step / max(1, self.state.max_steps)
        if loss.needs_teacher:
            loss.teacher = self._frozen_teacher()
        backbone = self.accelerator.unwrap_model(self.model).encoder.backbone
        with folded(backbone):
            value = super().training_step(*args, **kwargs)
        if loss.backbone_frozen:
            for parameter in backbone.parameters():
                parameter.grad = None
        return value

    def track_loss_components(self, loss: dict[str, Tensor]) -> None:
        bad = [name for name, value in loss.items() if not torch.isfinite(value)]
        if bad:
            raise NonFiniteLoss(
                f"the loss term {', '.join(bad)} is not finite at step {self.state.global_step} (batch ids "
                f"{list(self._batch_ids)}): {self._why()}; the last whole checkpoint in {self.args.output_dir} is "
                "untouched"
            )
        super().track_loss_components(loss)

    @torch.no_grad()
    def _why(self) -> str:
        """Which text of the batch has no finite embedding, if one has none, and the likely cause."""
        ids, (queries, documents, *explicit) = self._batch_ids, self.collect_features(self._batch)[0]
        places = documents["rows"].tolist()  # of each query's positive, then of its negatives
        reads = [("query", queries, {}, int), ("document", documents, {}, lambda row: places.index(row) % len(ids))]
        reads += [("reasoning", part, {"segment_ends": part["segment_ends"]}, int) for part in explicit]
        for what, part, how, row_of in reads:
            try:
                self.model(dict(part), **how)
            except NotFinite as error:
                error.name(map(row_of, error.rows), lambda row, what=what: f"the {what} of {ids[row]!r}")
                return str(error)
        return likely_cause(self.model)

    def _frozen_teacher(self) -> nn.Module:
        """A copy of the model; kept on disk for a resumed run."""
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

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """File by file: the checkpoint is marked as half, and other processes write into it too."""
        SentenceTransformer.save(self.model, output_dir or self.args.output_dir)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            begin(folder)
        super()._save_checkpoint(*args, **kwargs)
        if self.args.should_save:
            finish(folder, self.state.global_step, self.run)

    def go_on(self, checkpoint: Path | None) -> None:
        """Train from the start or from a checkpoint. After the last step there is nothing to train, only the weights
        to read (the stock trainer would take one step more)."""
        if checkpoint is None or not is_at_its_end(checkpoint):
            self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            return
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        self._load_from_checkpoint(str(checkpoint))
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()


@contextmanager
def folded(model: nn.Module) -> Iterator[None]:
    """Inside, every small LoRA layer is one product by W + s·B·A: the same function and gradients up to rounding, in a
    third of the calls. For a big layer the gradient by the whole matrix would cost more."""
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
