"""What a corpus, a training step and a query that is rewritten cost, by the published loop and by ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from laser_lab.encoder import LatentEncoder, LatentRetriever
from laser_lab.lab.loops import published_thinking, stock
from laser_lab.lab.stopwatch import measure, peak_memory, ratio, summarize
from laser_lab.methods import method_of
from laser_lab.thinking import latent_thinking, pool
from laser_lab.training.objectives import DualViewLoss
from laser_lab.training.run import add_lora, set_method

METHODS_TIMED = ("basic", "latent", "lexical", "laser")


class PublishedEncoder(LatentEncoder):
    """The published loop as an encoder; its explicit view, too, asks for all logits and states."""

    def think(
        self, features: dict[str, Tensor], thinking_steps: int | None = None, **options: Any
    ) -> dict[str, Tensor]:
        ids, mask = features["input_ids"], features["attention_mask"]
        states = published_thinking(self.backbone, ids, mask, self.steps_of(thinking_steps))
        taken = ids.new_full((len(ids),), states.shape[1])
        return {"states": states, "weights": mask.new_ones(states.shape[:2]), "steps_taken": taken}

    def forward(
        self,
        features: dict[str, Tensor],
        thinking_steps: int | None = None,
        segment_ends: Tensor | None = None,
        words: Tensor | None = None,
    ) -> dict[str, Tensor]:
        if segment_ends is None:
            return super().forward(features, thinking_steps)
        read = {name: features[name] for name in ("input_ids", "attention_mask")}
        output = self.backbone.causal_lm(**read, output_hidden_states=True)
        every = output.hidden_states[-1]
        rows = torch.arange(len(every), device=every.device)[:, None]
        states, embedding = every[rows, segment_ends], pool(every[:, -1:])
        return {"states": states, "sentence_embedding": embedding, "logits": output.logits}  # which take memory


def published_loop(model: LatentRetriever) -> LatentRetriever:
    """`model` with the published loop, on the same weights."""
    own = model.encoder
    encoder = PublishedEncoder(stock(own.backbone), thinking_steps=own.thinking_steps, max_length=own.max_length)
    return LatentRetriever(modules=[encoder], device=str(model.device), prompts=model.prompts)


def corpus(model: LatentRetriever, texts: Sequence[str], sample: int = 256, repeats: int = 3) -> pd.DataFrame:
    """One row: documents per second of the ``published`` loop and of ``ours`` on a `sample`, their ``ratio``, and the
    process's peak in MiB while it encodes a sixth of the texts (``peak_part``) and all (``peak_all``); ``growth`` is
    their quotient."""
    some = list(texts[:: max(1, len(texts) // sample)])
    models = {"published": published_loop(model), "ours": model}
    times = measure({n: lambda m=m: m.encode_document(some) for n, m in models.items()}, repeats, warmup=0)
    rates = len(some) / summarize(times).set_index("name")["median"]
    part = list(texts[: max(1, len(texts) // 6)])
    peaks = {"peak_part": peak_memory(lambda: model.encode_document(part))[1]}
    peaks["peak_all"] = peak_memory(lambda: model.encode_document(list(texts)))[1]
    growth = peaks["peak_all"] / peaks["peak_part"]
    row = {**rates, "ratio": ratio(times, "published", "ours"), **peaks, "growth": growth, "documents": len(texts)}
    return pd.DataFrame([row])


def training_runs(model: LatentRetriever) -> dict[str, tuple[LatentRetriever, str]]:
    """LaSER with the ``published`` loop and with ``ours``, on the same weights and LoRA adapter (a new one of rank 16
    if the model has none)."""
    if not hasattr(model.encoder.backbone.model, "peft_config"):
        add_lora(model, {"r": 16})
    return {"published": (published_loop(model), "laser"), "ours": (model, "laser")}


def training_steps(
    runs: Mapping[str, tuple[LatentRetriever, str]], batch: int = 8, lengths: tuple[int, int, int] = (48, 24, 160)
) -> dict[str, Callable[[], None]]:
    """One step (forward and backward) of each (retriever, method), on the same random batch and with all terms.

    Args:
        batch: Queries; there are twice as many documents.
        lengths: Tokens of queries, documents and reasoning (with its query).
    """
    generator = torch.Generator().manual_seed(0)
    table = next(iter(runs.values()))[0].encoder.backbone.embedding_table

    def texts(rows: int, *tokens: int) -> Tensor:
        return torch.randint(len(table), (rows, *tokens), generator=generator).to(table.device)

    ids = [texts(rows, n) for rows, n in zip((batch, 2 * batch, batch), lengths)]
    queries, documents, explicit = ({"input_ids": x, "attention_mask": torch.ones_like(x)} for x in ids)
    documents["keys"] = documents["rows"] = torch.arange(2 * batch, device=table.device)
    queries["positive_keys"] = documents["keys"][:batch, None]

    def step(retriever: LatentRetriever, name: str) -> Callable[[], None]:
        method = method_of(name)
        words = texts(batch, method.thinking_steps + 1, 8)  # and the end
        said = {"lexical_ids": words, "lexical_targets": torch.full(words.shape, 1 / 8, device=table.device)}
        ends = torch.linspace(lengths[2] // 2, lengths[2] - 2, method.thinking_steps).long().to(table.device)
        view = explicit | {"segment_ends": ends.expand(batch, -1)}
        features = [queries | said if method.lexical else queries, documents]
        features += [view] if method.needs_explicit else []
        loss = DualViewLoss(retriever, method)
        loss.progress = 1.0

        def once() -> None:
            if not isinstance(retriever.encoder, PublishedEncoder):
                set_method(retriever, method)
            retriever.train()
            retriever.zero_grad(set_to_none=True)
            sum(loss([*map(dict, features)]).values()).backward()

        return once

    return {name: step(*run) for name, run in runs.items()}


def training_table(
    runs: Mapping[str, tuple[LatentRetriever, str]], reference: str, repeats: int, **shape: Any
) -> pd.DataFrame:
    """A row per :func:`training_steps` of some `shape`: ``name``, ``median`` and ``p95`` in seconds, ``peak_mib`` above
    the weights (gradients count), and ``time_ratio`` and ``memory_ratio`` to the step `reference`."""
    steps = training_steps(runs, **shape)
    times = measure(steps, repeats, warmup=1)
    table, peaks = summarize(times), {}
    for name, (model, _) in runs.items():
        model.zero_grad(set_to_none=True)
        peaks[name] = peak_memory(steps[name])[0]
    table["peak_mib"] = table["name"].map(peaks)
    table["time_ratio"] = [ratio(times, name, reference) for name in table["name"]]
    return table.assign(memory_ratio=table["peak_mib"] / peaks[reference])


def rewriting(
    model: LatentRetriever, words: Sequence[int] = (3, 15, 30, 60), batch: int = 8, tokens: int = 24, repeats: int = 5
) -> pd.DataFrame:
    """Time of queries that think (K=3) and of queries that are rewritten first, by so many written tokens: ``name,
    words, median, p95, ratio``, seconds per batch and the ratio to thinking. The model is made to write to the end."""
    backbone = model.encoder.backbone
    generator = torch.Generator().manual_seed(0)
    table = backbone.embedding_table
    ids = torch.randint(len(table), (batch, tokens), generator=generator).to(table.device)
    mask = torch.ones_like(ids)

    def rewrite(count: int) -> Tensor:
        fixed = dict(max_new_tokens=count, min_new_tokens=count, do_sample=False)
        written = backbone.model.generate(
            input_ids=ids, attention_mask=mask, pad_token_id=backbone.tokenizer.pad_token_id, **fixed
        )
        return latent_thinking(backbone, written, torch.ones_like(written), 1).states

    calls = {"thinking": lambda: latent_thinking(backbone, ids, mask, 3).states}
    calls |= {f"rewrite {count}": partial(rewrite, count) for count in words}
    with torch.inference_mode():
        times = measure(calls, repeats, warmup=1)
    table = summarize(times)
    table["words"] = [0, *words]
    return table.assign(ratio=[ratio(times, name, "thinking") for name in table["name"]])
