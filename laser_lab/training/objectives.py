"""Objectives: what a method minimises, composed from the losses. They take the features of the collator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from laser_lab.lame import Diversity, targets
from laser_lab.losses import InfoNCE, OutputKL, StepwiseContrastive, TrajectoryAlignment
from laser_lab.methods import Method, ReasonMethod

CALLS_WORTH = 3e8  # multiply-adds of padding that are cheaper than a rollout's calls of their own
IDS = ("input_ids", "attention_mask")  # what the model reads of a text
THOUGHT = ("states", "sentence_embedding")  # what it gives


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
        self.process = TrajectoryAlignment(method.process_temperature)
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


class BottleneckLoss(nn.Module):
    """L = contrastive·CL([EMBED]) + reconstruction·CE(decoder) + diversity·mean cos², in two stages (METHOD 4).

    The decoder head rebuilds each query's positive document from the query's bottleneck states alone ("Only-Answer
    decoding"); of an image, its text, which may be empty. In the first stage the trainer keeps the backbone as it is,
    vision encoder and projector included; in the second it trains all of it that is trainable: every weight, or with
    LoRA the adapters of every linear layer, those of the vision encoder too
    (``lora={"exclude_modules": ".*vision.*"}`` leaves that as it is for good). Takes the features of
    :class:`laser_lab.training.Collator` and returns every weighted term by name.
    """

    def __init__(self, model: nn.Module, method: ReasonMethod) -> None:
        super().__init__()
        self.model = model
        self.method = method
        self.eos: int = model.encoder.tokenizer.eos_token_id
        self.progress = 0.0
        """Share of the steps done, set by the trainer."""
        self.contrastive = InfoNCE(method.temperature)
        self.diversity = Diversity()

    @property
    def backbone_frozen(self) -> bool:
        """The first stage, the bottleneck warm-up. The progress decides, so a resumed run is in the right stage."""
        return self.progress < self.method.bottleneck_warmup

    def forward(self, features: list[dict[str, Tensor]], labels: Tensor | None = None) -> dict[str, Tensor]:
        queries, documents = features[:2]
        method, count = self.method, len(queries["input_ids"])
        asked = dict(queries)
        if method.reconstruction:  # positives stand first among the documents
            names = ("text_ids", "text_mask") if "text_ids" in documents else ("input_ids", "attention_mask")
            positives = documents["rows"][:count]
            ids, mask = targets(*(documents[name][positives] for name in names), self.eos)
            asked |= {"target_ids": ids, "target_mask": mask}
        encoded = spread(self.model(dict(documents), thinking_steps=method.thinking_steps), documents["rows"])
        latent = self.model(asked, thinking_steps=method.thinking_steps)
        terms: dict[str, Tensor] = {}
        if method.contrastive:
            keys, vectors = gather(documents["keys"]), gather(encoded["sentence_embedding"])
            positives = torch.arange(count, device=keys.device) + _rank() * len(documents["keys"])
            ignored = (queries["positive_keys"][:, :, None] == keys).any(1)
            loss = self.contrastive(latent["sentence_embedding"], vectors, positives, ignored)
            terms["contrastive"] = method.contrastive * loss
        if method.reconstruction:
            terms["reconstruction"] = method.reconstruction * latent["reconstruction"].mean()
        if method.diversity:
            loss = (self.diversity(latent["states"]) + self.diversity(encoded["states"])) / 2
            terms["diversity"] = method.diversity * loss
        return terms
