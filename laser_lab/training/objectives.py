"""Objectives: what a method minimises, composed from the losses. They take the features of the collator."""

from __future__ import annotations

import torch
from sentence_transformers.util.distributed import all_gather, get_rank, get_world_size
from torch import Tensor, nn

from laser_lab.base.numbers import named_rows
from laser_lab.lame import Diversity, targets
from laser_lab.losses import InfoNCE, LexicalAlignment, OutputKL, StepwiseContrastive, TrajectoryAlignment
from laser_lab.methods import LatentMethod, ReasonMethod
from laser_lab.thinking import pool

CALLS_WORTH = 3e8  # multiply-adds of padding that are cheaper than a rollout's calls of their own
GROUP_WORTH = 1e10  # multiply-adds of padding that are cheaper than one more group on the CPU, per thinking step,
READING_WORTH = 100  # and tokens of padding that are cheaper than reading the weights once more
IDS = ("input_ids", "attention_mask")  # what the model reads of a text
THOUGHT = ("states", "sentence_embedding")  # what it gives


class Objective(nn.Module):
    """What a method minimises; ``progress`` is the share of the steps done, set by the trainer."""

    backbone_frozen = needs_teacher = False

    def __init__(self, model: nn.Module, method: LatentMethod | ReasonMethod) -> None:
        super().__init__()
        self.model, self.method, self.progress = model, method, 0.0
        self.contrastive = InfoNCE(method.temperature)


class DualViewLoss(Objective):
    """L = CL(latent) + λ1·CL(explicit) + λ2·KL_out + λ3·KL_mid + lexical·CE, or GIRCSE's (LaSER, eq. 11).

    Takes the :class:`Collator`'s features of queries, documents and perhaps the explicit view; returns every weighted
    term by name. Distillation targets carry no gradient, nor do its documents unless the method says so.
    """

    def __init__(self, model: nn.Module, method: LatentMethod) -> None:
        super().__init__(model, method)
        self.teacher: nn.Module | None = None
        """A frozen copy that gives the distillation targets instead of the explicit view of the model itself."""
        self.output = OutputKL(method.output_temperature)
        self.trajectory = TrajectoryAlignment(method.trajectory_temperature)
        self.lexical = LexicalAlignment()
        self.stepwise = StepwiseContrastive(method.temperature)
        self.parameter_count = sum(parameter.numel() for parameter in model.parameters())

    @property
    def explicit_only(self) -> bool:
        """The first stage of ``teacher_first``: only the explicit view is trained."""
        return self.progress < self.method.teacher_first

    @property
    def needs_teacher(self) -> bool:
        """The second stage of ``teacher_first``, before the frozen copy is there."""
        return bool(self.method.teacher_first) and not self.explicit_only and self.teacher is None

    @property
    def distil_share(self) -> float:
        """The current factor of λ2 and λ3."""
        since = self.progress - self.method.teacher_first - self.method.distil_start
        return min(1.0, max(0.0, since) / self.method.distil_warmup) if self.method.distil_warmup else float(since >= 0)

    def think(
        self, queries: dict[str, Tensor], documents: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor] | None, dict[str, Tensor]]:
        """What the model thinks of the queries (None in the first stage of ``teacher_first``) and of the documents.

        One rollout serves both where they think equally long and the padding costs less than the calls of a second
        one: with a small model the calls are where the time is. The numbers are those of two. Several processes always
        make two: each call of theirs waits for the others.
        """
        steps = self.method.thinking_steps
        document_steps = self.method.index_steps
        parts = [ids_of(queries), ids_of(documents)]
        if self.explicit_only:
            return None, spread(self.read(self.model, parts[1], document_steps), documents["rows"])
        sizes = [part["input_ids"].shape for part in parts]
        width = max(length for _, length in sizes)
        padding = sum(count * (width - length) for count, length in sizes)
        apart = steps != document_steps or self.method.lexical or get_world_size() > 1
        if apart or padding * self.parameter_count > CALLS_WORTH:
            words = queries["lexical_ids"] if self.method.lexical else None
            asked = steps if words is None else words.shape[1]  # one more where the end after K steps is taught
            latent = self.read(self.model, parts[0], asked, words=words)
            encoded = self.read(self.model, parts[1], document_steps)
            if asked > steps:
                latent = latent | {name: latent[name][:, :steps] for name in ("states", "weights")}
                latent["sentence_embedding"] = pool(latent["states"], latent["weights"])
        else:
            left = [(width - length, 0) for _, length in sizes]
            both = {key: torch.cat([nn.functional.pad(p[key], pad) for p, pad in zip(parts, left)]) for key in IDS}
            thought = self.read(self.model, both, steps)
            split = [thought[key].split([count for count, _ in sizes]) for key in THOUGHT]
            latent, encoded = (dict(zip(THOUGHT, rows)) for rows in zip(*split))
        return latent, spread(encoded, documents["rows"])

    def read(
        self, model: nn.Module, part: dict[str, Tensor], steps: int | None = None, **per_text: Tensor | None
    ) -> dict[str, Tensor]:
        """What `model` gives for the texts of `part`: after K = `steps`, or in one pass with ``segment_ends``.

        One process on the CPU reads texts of like length together, in as many calls as save padding. Without dropout
        the numbers are those of one call, up to rounding.
        """
        options = {} if steps is None else {"thinking_steps": steps}
        per_text = {name: x for name, x in per_text.items() if x is not None}
        mask, groups, found = part["attention_mask"], [], []
        if mask.device.type == "cpu" and get_world_size() == 1:
            worth = (steps or 1) * (GROUP_WORTH / self.parameter_count + READING_WORTH)
            groups = groups_of_like_length(mask.sum(1).tolist(), worth)
        if len(groups) < 2:
            return model(part, **options, **per_text)
        for rows in groups:
            padding = mask.shape[1] - int(mask[rows].sum(1).max())  # of the longest text of the group
            some = {name: x[rows] for name, x in per_text.items()}
            if "segment_ends" in some:
                some["segment_ends"] -= padding
            with named_rows(rows.__getitem__):
                found.append(model({name: part[name][rows, padding:] for name in IDS}, **options, **some))
        order = torch.tensor(sum(groups, [])).argsort()
        return {name: torch.cat([some[name] for some in found])[order] for name in found[0] if name not in part}

    def forward(self, features: list[dict[str, Tensor]], labels: Tensor | None = None) -> dict[str, Tensor]:
        queries, documents = features[:2]
        method = self.method
        latent, encoded = self.think(queries, documents)
        vectors = gather(encoded["sentence_embedding"])
        positives, ignored = positives_of(queries, documents)
        ignored &= method.mask_positives
        terms: dict[str, Tensor] = {}
        if latent is not None and method.contrastive:
            loss = self.contrastive(latent["sentence_embedding"], vectors, positives, ignored)
            terms["contrastive"] = method.contrastive * loss
        if latent is not None and method.lexical:
            terms["lexical"] = method.lexical * self.lexical(latent["lexical"], queries["lexical_targets"])
        if latent is not None and (method.stepwise or method.monotonicity):
            # the penalty is no mean over queries, so every process computes it for the queries of all
            states, rows = gather(latent["states"]), gather(encoded["states"])
            stepwise, penalty = self.stepwise(states, rows, gather(positives), gather(ignored))
            terms["stepwise"] = method.stepwise * stepwise
            terms["monotonicity"] = method.monotonicity * penalty
        if method.needs_explicit:
            terms |= self.explicit_terms(features[2], documents, latent, vectors, positives, ignored)
        return terms

    def explicit_terms(
        self,
        explicit: dict[str, Tensor],
        documents: dict[str, Tensor],
        latent: dict[str, Tensor] | None,
        vectors: Tensor,
        positives: Tensor,
        ignored: Tensor,
    ) -> dict[str, Tensor]:
        """The explicit view's contrastive loss, and both distillations."""
        method = self.method
        terms: dict[str, Tensor] = {}
        view, ends = ids_of(explicit), explicit["segment_ends"]
        if self.teacher is None:
            teacher, teacher_vectors = self.read(self.model, view, segment_ends=ends), None
            if method.explicit:
                loss = self.contrastive(teacher["sentence_embedding"], vectors, positives, ignored)
                terms["explicit"] = method.explicit * loss
        else:
            with torch.no_grad():
                teacher = self.read(self.teacher, view, segment_ends=ends)
                own = spread(self.read(self.teacher, ids_of(documents), method.index_steps), documents["rows"])
                teacher_vectors = gather(own["sentence_embedding"])
        fixed = vectors if method.distil_documents else vectors.detach()
        if latent is not None and method.output:
            student, target = latent["sentence_embedding"], teacher["sentence_embedding"]
            loss = self.output(student, target, fixed, teacher_vectors)
            terms["output"] = self.distil_share * method.output * loss
        if latent is not None and method.trajectory:
            loss = self.trajectory(latent["states"], teacher["states"], fixed, teacher_vectors)
            terms["trajectory"] = self.distil_share * method.trajectory * loss
        return terms


def groups_of_like_length(lengths: list[int], worth: float) -> list[list[int]]:
    """The texts of a batch in order of length, cut wherever that saves more than `worth` tokens of padding."""

    def cut(rows: list[int]) -> list[list[int]]:
        saved = [at * (lengths[rows[-1]] - lengths[rows[at - 1]]) for at in range(1, len(rows))]
        if not saved or max(saved) <= worth:
            return [rows]
        at = saved.index(max(saved)) + 1
        return cut(rows[:at]) + cut(rows[at:])

    return cut(sorted(range(len(lengths)), key=lengths.__getitem__))


def positives_of(queries: dict[str, Tensor], documents: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(B,) the own positive of each query among the N documents of all processes, and (B, N): all its positives."""
    keys = gather(documents["keys"])
    positives = torch.arange(len(queries["input_ids"]), device=keys.device) + get_rank() * len(documents["keys"])
    return positives, (queries["positive_keys"][:, :, None] == keys).any(1)


def spread(encoded: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Thoughts of the different documents (U, ...) at all their places in the batch (N, ...)."""
    return {key: encoded[key][rows] for key in THOUGHT}


def ids_of(features: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the model reads of a text, without what only the loss reads."""
    return {key: features[key] for key in IDS}


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes in rank order; gradients flow back."""
    return all_gather(rows.contiguous(), with_grad=rows.requires_grad) if get_world_size() > 1 else rows


class BottleneckLoss(Objective):
    """L = contrastive·CL([EMBED]) + reconstruction·CE(decoder) + diversity·mean cos², in two stages (LaME).

    The decoder rebuilds each query's positive document (of an image, its text) from the query's states alone. The
    backbone, vision encoder and projector included, is frozen in the first stage; in the second all that is trainable
    trains, with LoRA also the vision encoder's adapters (``lora={"exclude_modules": ".*vision.*"}`` excludes them).
    Takes the features of :class:`laser_lab.training.Collator`; returns every weighted term by name.
    """

    def __init__(self, model: nn.Module, method: ReasonMethod) -> None:
        super().__init__(model, method)
        self.eos: int = model.encoder.tokenizer.eos_token_id
        self.diversity = Diversity()

    @property
    def backbone_frozen(self) -> bool:
        """The first stage, the bottleneck warm-up."""
        return self.progress < self.method.bottleneck_warmup

    def forward(self, features: list[dict[str, Tensor]], labels: Tensor | None = None) -> dict[str, Tensor]:
        queries, documents = features[:2]
        method, count = self.method, len(queries["input_ids"])
        asked = None
        if method.reconstruction:
            positives = documents["rows"][:count]  # they stand first among the documents
            asked = targets(documents["text_ids"][positives], documents["text_mask"][positives], self.eos)
        encoded = spread(self.model(dict(documents), thinking_steps=method.index_steps), documents["rows"])
        latent = self.model(dict(queries), thinking_steps=method.thinking_steps, targets=asked)
        terms: dict[str, Tensor] = {}
        if method.contrastive:
            vectors = gather(encoded["sentence_embedding"])
            loss = self.contrastive(latent["sentence_embedding"], vectors, *positives_of(queries, documents))
            terms["contrastive"] = method.contrastive * loss
        if method.reconstruction:
            terms["reconstruction"] = method.reconstruction * latent["reconstruction"].mean()
        if method.diversity:
            loss = (self.diversity(latent["states"]) + self.diversity(encoded["states"])) / 2
            terms["diversity"] = method.diversity * loss
        return terms
