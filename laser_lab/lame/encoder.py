"""LaME: thinking in one pass with learned reason tokens.

K reason tokens and [EMBED] follow the input. The reason tokens' states are the thoughts: from them alone a decoder
head must rebuild the retrieval target. [EMBED]'s state becomes the embedding.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor
from torch.nn.functional import normalize, pad

from laser_lab.backbone import Backbone
from laser_lab.base.inputs import Input, check_inputs, check_steps, image_of, text_of
from laser_lab.encoder import LatentEncoder, LatentRetriever
from laser_lab.lame.heads import TARGET_LENGTH, ReasonTokens
from laser_lab.thinking import Edit, Thoughts, at_least_float32
from laser_lab.vision import VisionBackbone

WEIGHTS_FILE = "reason_tokens.safetensors"


# -- thinking ------------------------------------------------------------------------------------------------------


def one_pass_thinking(
    backbone: Backbone,
    input_ids: Tensor,
    attention_mask: Tensor,
    thinking_steps: int,
    tokens: Tensor,
    edit: Edit | None = None,
    images: dict[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Think in one pass: K learned reason tokens and [EMBED] behind the input (LaME).

        h_1, ..., h_K, h_[EMBED] = the last states of f(E[ids], r_1, ..., r_K, [EMBED])

    Attention is causal: h_k is the same for every K >= k.

    Args:
        input_ids, attention_mask: (B, T), padded on the left.
        tokens: (at least K + 1, D), as the embedding module would return them; [EMBED] last.
        edit: Returns what is read instead of reason token r_k.
        images: All features of inputs with images (:meth:`laser_lab.vision.VisionBackbone.preprocess`).

    Returns:
        (B, K, D) states h_1..h_K and the (B, D) state of [EMBED], after the final norm, in the backbone's dtype.
    """
    chosen = torch.cat([tokens[:thinking_steps], tokens[-1:]]).to(backbone.embedding_table.dtype)
    appended = chosen.expand(len(input_ids), -1, -1)
    if edit is not None:
        rows = torch.arange(len(input_ids), device=input_ids.device)
        read = [edit(k, token, rows) for k, token in enumerate(appended[:, :-1].unbind(1), 1)]
        appended = torch.stack([*read, appended[:, -1]], dim=1)
    if images is not None:
        states = backbone.read(images, appended)
    else:
        mask = torch.cat([attention_mask, attention_mask.new_ones(appended.shape[:2])], dim=1)
        inputs = torch.cat([backbone.embed(input_ids), appended], dim=1)
        states = backbone.last_states(inputs, mask)[:, -thinking_steps - 1 :]
    return states[:, :-1], states[:, -1]


@dataclass(frozen=True)
class ReasonThoughts(Thoughts):
    """Thoughts whose embedding is read at [EMBED], not pooled."""

    vectors: Tensor = None
    """(B, K, D) float32, unit length: the embedding with the first 1, ..., K reason tokens"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vectors is None:  # of no text
            object.__setattr__(self, "vectors", torch.zeros_like(self.states))

    @property
    def embeddings(self) -> Tensor:
        return self.vectors[:, -1]

    def embeddings_at(self, step: int, without: int | None = None) -> Tensor:
        """The embedding after `step`; no state is pooled, so `without` changes nothing."""
        super().embeddings_at(step)  # checks the step
        return self.vectors[:, step - 1]


# -- the encoder ---------------------------------------------------------------------------------------------------


class ReasonEncoder(LatentEncoder):
    """The :class:`LatentEncoder` that thinks in one pass; on a vision-language backbone also about images.

    Args:
        thinking_steps: K, at most `reason_tokens`. Pooling is ``"generated"``: state k is that of token k.
        reason_tokens: How many are learned; default: `thinking_steps`.
        decoder: Whether there is a decoder head.
    """

    config_keys = ["thinking_steps", "document_steps", "max_length", "template", "add_special_tokens", "base"]
    config_keys += ["reason_tokens", "decoder"]
    forward_kwargs = {"thinking_steps", "segment_ends", "targets"}
    thoughts_class = ReasonThoughts

    def __init__(
        self,
        backbone: Backbone,
        *,
        thinking_steps: int,
        reason_tokens: int | None = None,
        decoder: bool = True,
        **settings: Any,
    ) -> None:
        if settings.pop("halting", False) or settings.pop("pooling", "generated") != "generated":
            raise ValueError("a model with reason tokens thinks in one pass: pooling and halting cannot be set")
        if settings.get("template") and isinstance(backbone, VisionBackbone):
            raise ValueError("images go through their processor's own template: none can be set")
        super().__init__(backbone, thinking_steps=thinking_steps, pooling="generated", **settings)
        count = thinking_steps if reason_tokens is None else reason_tokens
        self.reasoner = ReasonTokens(backbone, check_steps(count), decoder)
        self.steps_of()

    @property
    def reason_tokens(self) -> int:
        """How many are learned: the largest K."""
        return len(self.reasoner.tokens) - 1

    max_steps = reason_tokens

    @property
    def decoder(self) -> bool:
        return self.reasoner.decoder is not None

    @property
    def modalities(self) -> list[Any]:
        """What :meth:`preprocess` takes, as sentence-transformers names it (``message``: a mixed batch)."""
        vision = isinstance(self.backbone, VisionBackbone)
        return ["text", "image", ("image", "text"), "message"] if vision else ["text"]

    def check_inputs(self, inputs: Sequence[Input]) -> list[Input]:
        return check_inputs(inputs) if isinstance(self.backbone, VisionBackbone) else super().check_inputs(inputs)

    def preprocess(self, inputs: Sequence[Input], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """As :meth:`LatentEncoder.preprocess`, with images the processor's features; also the texts alone as
        ``text_ids`` and ``text_mask``, which a decoder is asked for. ``max_length`` counts the tokens of prompt and
        text."""
        inputs = self.check_inputs(inputs)
        texts, images = [text_of(item) for item in inputs], [image_of(item) for item in inputs]
        features = super().preprocess(texts, prompt, **kwargs)
        ids, mask = features["input_ids"], features["attention_mask"]
        alone = {"text_ids": ids, "text_mask": mask, "inputs": inputs}
        if all(image is None for image in images):
            return features | alone
        shortened = [
            (prompt or "") + text
            if kept.sum() < self.max_length
            else self.tokenizer.decode(row[kept.bool()], skip_special_tokens=True)
            for text, row, kept in zip(texts, ids, mask)
        ]
        return self.backbone.preprocess(shortened, images) | alone

    def steps_of(self, thinking_steps: int | None = None, side: str | None = None) -> int:
        """As :meth:`LatentEncoder.steps_of`; ValueError if fewer reason tokens are learned."""
        steps = super().steps_of(thinking_steps, side)
        if steps > self.reason_tokens:
            raise ValueError(
                f"thinking_steps={steps}, but the model has learned {self.reason_tokens} reason tokens: one "
                "pass cannot think longer than it was trained to."
            )
        return steps

    def one_pass(
        self, features: dict[str, Tensor], thinking_steps: int | None = None, edit: Edit | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, K, D) states of the reason tokens and (B, D) embeddings of unit length, float32 or better."""
        steps = self.steps_of(thinking_steps)
        ids, mask = features["input_ids"], features["attention_mask"]
        self.check_room(ids, steps + 1, f"{steps} reason tokens with [EMBED]")
        images = features if "pixel_values" in features else None
        states, embed = one_pass_thinking(self.backbone, ids, mask, steps, self.reasoner.tokens, edit, images)
        return states, normalize(self.reasoner.head(at_least_float32(embed)), dim=-1)

    def think(
        self,
        features: dict[str, Tensor],
        thinking_steps: int | None = None,
        *,
        threshold: float | None = None,
        edit: Edit | None = None,
    ) -> dict[str, Tensor]:
        """The fields of :class:`ReasonThoughts` by name, by a pass per step, as [EMBED] follows the last token.
        `threshold` has no effect; `edit` changes reason tokens."""
        read: dict[int, Tensor] = {}

        def once(k: int, token: Tensor, rows: Tensor) -> Tensor:  # an edit may count, or draw: it sees a token once
            if k not in read:
                read[k] = token if edit is None else edit(k, token, rows)
            return read[k]

        steps = self.steps_of(thinking_steps)
        passes = [self.one_pass(features, step, once) for step in range(1, steps + 1)]
        return {"states": passes[-1][0], "vectors": torch.stack([vectors for _, vectors in passes], dim=1)}

    def forward(
        self,
        features: dict[str, Tensor],
        thinking_steps: int | None = None,
        segment_ends: Tensor | None = None,
        targets: tuple[Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """As :meth:`LatentEncoder.forward`. With `targets`, ids and mask (B, T), also ``reconstruction`` (B,), of
        :meth:`ReasonTokens.reconstruction`."""
        if segment_ends is not None:
            return super().forward(features, segment_ends=segment_ends)
        states, embeddings = self.one_pass(features, thinking_steps)
        self.check_finite(embeddings, features.get("inputs", ()))
        found = {**features, "states": states, "sentence_embedding": embeddings}
        if targets is not None:
            found["reconstruction"] = self.reasoner.reconstruction(self.backbone, states, *targets)
        return found

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        super().save(output_path, *args, **kwargs)
        save_model(self.reasoner, os.path.join(output_path, WEIGHTS_FILE))

    @classmethod
    def load(cls, model_name_or_path: str, **kwargs: Any) -> Self:
        """What :meth:`save` wrote. ValueError: reason tokens are missing, or do not fit the backbone."""
        encoder = super().load(model_name_or_path, **kwargs)
        source = kwargs.get("adapter") or model_name_or_path
        file = cls.load_file_path(source, WEIGHTS_FILE, revision=kwargs.get("revision"))
        if file is None:
            raise ValueError(f"{source} thinks with reason tokens, but {WEIGHTS_FILE} is not there")
        try:
            load_model(encoder.reasoner, file)
        except RuntimeError as error:
            raise ValueError(f"The reason tokens in {file} do not fit {encoder.base!r}: {error}") from error
        return encoder


def use_reason_tokens(model: LatentRetriever, count: int, *, decoder: bool = True, start_word: str = "") -> None:
    """Let a retriever think with `count` reason tokens; backbone and adapter stay. Tokens of another number or kind are
    drawn anew, at `start_word` if there is one."""
    before = model.encoder
    needed = dict(reason_tokens=count, decoder=decoder)
    if isinstance(before, ReasonEncoder) and all(getattr(before, name) == value for name, value in needed.items()):
        return
    model[0] = ReasonEncoder(before.backbone, thinking_steps=count, max_length=before.max_length, **needed)
    if start_word:
        model[0].reasoner.start_at(before.backbone, start_word)


@torch.inference_mode()
def reconstruct(model: LatentRetriever, thoughts: Thoughts) -> list[str]:
    """The document that the decoder head reads (greedily) from the states of each thought, as text. ValueError: the
    model has no decoder head."""
    encoder = model[0]
    if not isinstance(encoder, ReasonEncoder) or not encoder.decoder:
        raise ValueError("this model has no decoder head: train it with a method such as 'lame'")
    backbone, tokenizer = encoder.backbone, encoder.tokenizer
    model.eval()
    texts = []
    for states in thoughts.states.to(backbone.embedding_table.device).split(64):
        ids = torch.zeros(len(states), 0, dtype=torch.long, device=states.device)
        for _ in range(TARGET_LENGTH):
            predicted = encoder.reasoner.decoder(states, backbone.embed(pad(ids, (0, 1))))[:, -1]
            ids = torch.cat([ids, backbone.logits(predicted).argmax(-1, keepdim=True)], dim=1)
            if (ids == tokenizer.eos_token_id).any(1).all():
                break
        for row in ids.tolist():
            end = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row)
            texts.append(tokenizer.decode(row[:end], skip_special_tokens=True))
    return texts
