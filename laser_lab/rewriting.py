"""Rewrite-then-retrieve: a causal LM reasons in words, then query and reasoning are encoded."""

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from laser_lab.backbone import Backbone
from laser_lab.base.inputs import check_texts, in_batches
from laser_lab.encoder import DEFAULT_MAX_LENGTH, LatentRetriever


@torch.inference_mode()
def generate_reasoning(
    backbone: Backbone,
    queries: Sequence[str],
    *,
    template: str = "{query}",
    max_new_tokens: int = 128,
    batch_size: int = 16,
    show_progress_bar: bool = False,
) -> list[str]:
    """What a causal LM writes after each query, greedily, up to its eos. `template` is its prompt, with ``{query}`` in
    it (else a ValueError); a prompt over 512 tokens loses its beginning."""
    _check_template(template)
    texts = [template.replace("{query}", query) for query in check_texts(queries)]
    tokenizer, model = backbone.tokenizer, backbone.model
    written = [""] * len(texts)
    model.eval()
    for rows in in_batches(texts, batch_size, "Rewriting" if show_progress_bar else None):
        ids = [tokenizer(texts[i])["input_ids"][-DEFAULT_MAX_LENGTH:] or [tokenizer.eos_token_id] for i in rows]
        batch = tokenizer.pad({"input_ids": ids}, padding=True, return_tensors="pt").to(model.device)
        out = model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        texts_out = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for row, text in zip(rows, texts_out):
            written[row] = text.strip()
    return written


class RewriteRetriever(LatentRetriever):
    """A retriever whose queries are rewritten first. Made by :func:`rewrite_then_retrieve`."""

    generator: Backbone
    options: dict[str, Any]
    end: str

    def rewrite(self, queries: Sequence[str], show_progress_bar: bool = False) -> list[str]:
        """Each query, a blank line, and what the generator wrote."""
        texts = check_texts(queries)
        reasoning = generate_reasoning(self.generator, texts, show_progress_bar=show_progress_bar, **self.options)
        return [f"{text}\n\n{r}{self.end}" if r else text for text, r in zip(texts, reasoning)]

    def encode_query(self, inputs: str | Sequence[str], *args: Any, **kwargs: Any) -> Any:
        """:meth:`LatentRetriever.encode_query` of the rewritten queries; the generator sees no prompt."""
        show = bool(kwargs.get("show_progress_bar"))
        rewritten = self.rewrite([inputs], show)[0] if isinstance(inputs, str) else self.rewrite(inputs, show)
        return super().encode_query(rewritten, *args, **kwargs)


def rewrite_then_retrieve(
    generator: SentenceTransformer | Backbone,
    retriever: LatentRetriever,
    *,
    template: str = "{query}",
    end: str = "",
    max_new_tokens: int = 128,
    batch_size: int = 16,
) -> RewriteRetriever:
    """A retriever of [q ; generated r], with `retriever`'s weights and settings: `generator` reasons in words first.

    Args:
        generator: A loaded retriever (its backbone writes) or a :class:`Backbone`; may be `retriever` itself.
        template: The generator's prompt, with ``{query}`` in it; else a ValueError.
        end: What follows the reasoning: the tokenizer's eos for a retriever trained as ``METHODS["rewrite"]``.
    """
    _check_template(template)
    backbone = generator if isinstance(generator, Backbone) else generator[0].backbone
    combined = RewriteRetriever(
        modules=[retriever.encoder],
        device=str(retriever.device),
        prompts=dict(retriever.prompts),
        similarity_fn_name=retriever.similarity_fn_name,
    )
    # a plain attribute: the generator is no part of the retriever's weights
    object.__setattr__(combined, "generator", backbone)
    combined.end = end
    combined.options = dict(template=template, max_new_tokens=max_new_tokens, batch_size=batch_size)
    return combined


def _check_template(template: str) -> None:
    if "{query}" not in template:
        raise ValueError(f"template must hold {{query}}, got {template!r}")
