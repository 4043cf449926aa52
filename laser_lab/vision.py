"""Vision-language backbones. Only LaME (:class:`laser_lab.lame.ReasonEncoder`) reads images; the loop reads texts."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from laser_lab.backbone import Backbone


class VisionBackbone(Backbone):
    """A vision-language model and its processor. ``model`` holds vision encoder, projector and language model:
    freezing, training and saving act on all. Only :meth:`read` sees images, by the model's own forward."""

    def __init__(self, model: PreTrainedModel | nn.Module, processor: ProcessorMixin, name: str = "") -> None:
        super().__init__(model, processor.tokenizer, name)
        self.processor = processor

    def preprocess(self, texts: Sequence[str], images: Sequence[Any]) -> dict[str, Tensor]:
        """Left-padded features of texts, each with a PIL image or None. With one, the text goes through the processor's
        chat template, or follows the image if there is none."""
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
        return prompt.removeprefix(start) if doubled else prompt  # else the bos stands there twice

    def read(self, features: dict[str, Tensor], appended: Tensor) -> Tensor:
        """States after the final norm, (B, N, D), of (B, N, D) vectors behind the (B, T) `features`. The model gets eos
        ids, whose embeddings the vectors replace, as families place images by token ids."""
        body = self.causal_lm.base_model
        known = inspect.signature(body.forward).parameters  # drops what only the trainer reads
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
