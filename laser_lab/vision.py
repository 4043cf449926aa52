"""The backbone that also reads images: a vision-language model.

Images are read in one pass, by LaME (:class:`laser_lab.lame.ReasonEncoder`); the loop that feeds soft tokens back
reads texts only, on these backbones too.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from laser_lab.backbone import Backbone

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedModel, ProcessorMixin


class VisionBackbone(Backbone):
    """A vision-language model and its processor: texts as in every backbone, and images in one pass.

    ``model`` holds the vision encoder, the projector and the language model, so what freezes, trains or saves the
    backbone does it to all three. Images reach :meth:`read` alone, with all that the family does with them
    (placeholders, positions in two dimensions, features fed to deeper layers): the model's own forward does it.
    """

    def __init__(self, model: PreTrainedModel | nn.Module, processor: ProcessorMixin, name: str = "") -> None:
        super().__init__(model, processor.tokenizer, name)
        self.processor = processor

    def preprocess(self, texts: Sequence[str], images: Sequence[Image | None]) -> dict[str, Tensor]:
        """Features of texts, each with an image or without, padded on the left. A text without one is tokenized as in
        every backbone; with one it goes through the processor's chat template, or behind the image where there is
        none."""
        blank = self.tokenizer.bos_token or self.tokenizer.eos_token  # an empty text has a position too
        prompts = [text or blank if image is None else self._render(text) for text, image in zip(texts, images)]
        nested = [[] if image is None else [image.convert("RGB")] for image in images]
        return dict(self.processor(text=prompts, images=nested, padding=True, padding_side="left", return_tensors="pt"))

    def _render(self, text: str) -> str:
        if not self.processor.chat_template:
            return f"{self.processor.image_token} {text}".rstrip()
        parts = [{"type": "image"}] + ([{"type": "text", "text": text}] if text else [])
        prompt = self.processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
        start = self.tokenizer.bos_token
        doubled = start and self.tokenizer("")["input_ids"][:1] == [self.tokenizer.bos_token_id]
        return prompt.removeprefix(start) if doubled else prompt  # some templates begin with what the tokenizer adds

    def read(self, features: dict[str, Tensor], appended: Tensor) -> Tensor:
        """States after the final norm, (B, N, D), of (B, N, D) vectors behind the (B, T) `features` of
        :meth:`preprocess`.

        The vectors stand in for the embeddings of as many eos tokens behind the text: only with token ids does every
        family place its images.
        """
        body = self.causal_lm.base_model
        known = inspect.signature(body.forward).parameters  # the trainer's own columns are not the model's
        inputs = {name: value for name, value in features.items() if name in known}
        shape, dtype = appended.shape[:2], self.embedding_table.dtype
        for name, value in inputs.items():
            if name == "input_ids":
                inputs[name] = torch.cat([value, value.new_full(shape, self.tokenizer.eos_token_id)], dim=1)
            elif name == "attention_mask":
                inputs[name] = torch.cat([value, value.new_ones(shape)], dim=1)
            elif name.endswith("token_type_ids"):  # 0 is text in every family
                inputs[name] = torch.cat([value, value.new_zeros(shape)], dim=1)
            elif value.is_floating_point():
                inputs[name] = value.to(dtype)

        def put(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return torch.cat([output[:, : -shape[1]], appended.to(output.dtype)], dim=1)

        handle = self.causal_lm.get_input_embeddings().register_forward_hook(put)
        try:
            return body(**inputs, use_cache=False).last_hidden_state[:, -shape[1] :]
        finally:
            handle.remove()
