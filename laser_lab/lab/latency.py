"""Latency: what latent thinking costs beside the published loop and one basic pass.

``python -m laser_lab.lab.latency`` times them on the same weights and batches, and writes tables and a figure.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from laser_lab.backbone import Backbone
from laser_lab.base.files import write_text
from laser_lab.base.kernels import use_fast_linear
from laser_lab.data.readers import read_corpus
from laser_lab.encoder import LatentEncoder, LatentRetriever
from laser_lab.lab.stopwatch import measure, peak_memory, ratio, summarize
from laser_lab.loading import load
from laser_lab.methods import method_of
from laser_lab.thinking import latent_thinking, pool
from laser_lab.training.objectives import DualViewLoss
from laser_lab.training.run import add_lora, set_method

PARTS = ("loops", "corpus", "training", "methods", "rewriting")
METHODS_TIMED = ("basic", "latent", "lexical", "laser")


def published_thinking(
    backbone: Backbone, input_ids: Tensor, attention_mask: Tensor, thinking_steps: int = 3
) -> Tensor:
    """(B, K, D) states by the loop of LaSER's model card, slow on purpose: every call returns the logits of all
    positions and the states of all layers. Ours is the embedding scale (1 for the card's Qwen3)."""
    model, embedding = backbone.causal_lm, backbone.causal_lm.get_input_embeddings()
    new, mask, cache, states = embedding(input_ids), attention_mask, None, []
    while True:
        asked = dict(attention_mask=mask, past_key_values=cache, use_cache=True, output_hidden_states=True)
        output = model(inputs_embeds=new, **asked)
        cache = output.past_key_values
        states.append(output.hidden_states[-1][:, -1])
        if len(states) == thinking_steps:
            return torch.stack(states, dim=1)
        probabilities = torch.softmax(output.logits[:, -1:], dim=-1)
        new = probabilities @ embedding.weight * backbone.embedding_scale
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)


def stock(backbone: Backbone) -> Backbone:
    """The same weights behind PyTorch's linear layers, as the published loop has them."""
    parts = (*backbone.parameters(), *backbone.buffers(), backbone.tokenizer)
    twin: Backbone = copy.deepcopy(backbone, {id(part): part for part in parts})
    use_fast_linear(twin.model, False)
    return twin


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


def loops(backbone: Backbone, batch: int, tokens: int, thinking_steps: int = 3) -> dict[str, Callable[[], Tensor]]:
    """Loops on one random batch without padding; ``stock`` is ours on PyTorch's layers, ``basic`` ours at K=1."""
    table = backbone.embedding_table
    generator = torch.Generator().manual_seed(batch * 100_003 + tokens)
    ids = torch.randint(len(table), (batch, tokens), generator=generator).to(table.device)
    mask, twin = torch.ones_like(ids), stock(backbone)
    calls = {
        "published": lambda: published_thinking(twin, ids, mask, thinking_steps),
        "ours": lambda: latent_thinking(backbone, ids, mask, thinking_steps).states,
        "stock": lambda: latent_thinking(twin, ids, mask, thinking_steps).states,
        "basic": lambda: latent_thinking(backbone, ids, mask, 1).states,
    }
    return {name: torch.inference_mode()(call) for name, call in calls.items()}


def step_parts(backbone: Backbone, batch: int) -> dict[str, Callable[[], Tensor]]:
    """What a step cannot do without: ``forward`` of a token per text, and ``reading`` the embedding matrix once."""
    table = backbone.embedding_table
    token = torch.zeros(batch, 1, table.shape[1], dtype=table.dtype, device=table.device)
    mask = torch.ones(batch, 1, dtype=torch.long, device=table.device)
    vector = torch.ones(table.shape[1], dtype=table.dtype, device=table.device)
    return {
        "forward": torch.inference_mode()(lambda: backbone.last_states(token, mask)),
        "reading": torch.inference_mode()(lambda: table @ vector),
    }


def benchmark(
    backbone: Backbone,
    shapes: Sequence[tuple[int, int]] = ((8, 16), (8, 64), (8, 256)),
    steps: Sequence[int] = (1, 2, 3, 4, 6, 8),
    repeats: int = 10,
    warmup: int = 2,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Time and peak memory of the :func:`loops` over `shapes` at K=3, and of ours over `steps` at 8 x 64 tokens.

    Returns:
        (table, price). ``table``, a row per loop, shape and K: ``name``, ``batch``, ``tokens``, ``thinking_steps``,
        ``median`` and ``p95`` (seconds), ``peak_mib`` above the weights, ``ratio`` to ours (of ours: to ``basic``).
        ``price``, one row: seconds of one more ``step`` (a line over K), of ``forward`` and ``reading``
        (:func:`step_parts`), ``ratio`` to their sum, and ``sweep``, the cost of reading every K to that of the largest.
    """
    tables = []
    for batch, tokens in shapes:
        encoders = loops(backbone, batch, tokens)
        times = measure(encoders, repeats, warmup)
        ratios = {name: ratio(times, name, "ours") for name in encoders} | {"ours": ratio(times, "ours", "basic")}
        table = summarize(times).assign(batch=batch, tokens=tokens)
        table["thinking_steps"] = [1 if name == "basic" else 3 for name in table["name"]]
        table["peak_mib"] = [peak_memory(encoders[name])[0] for name in table["name"]]
        tables.append(table.assign(ratio=table["name"].map(ratios)))
    batch, tokens = 8, 64
    encoders = {str(k): loops(backbone, batch, tokens, k)["ours"] for k in steps}
    longest = str(max(steps))

    def every_k() -> list[Tensor]:
        states = encoders[longest]()
        return [pool(states[:, :k]) for k in range(1, states.shape[1] + 1)]

    times = measure(encoders | step_parts(backbone, batch) | {"every K": every_k}, repeats, warmup)
    medians = summarize(times).set_index("name")["median"]
    step = float(np.polyfit(list(steps), [medians[str(k)] for k in steps], 1)[0])
    price = {"step": step, "forward": medians["forward"], "reading": medians["reading"]}
    price["ratio"] = step / (price["forward"] + price["reading"])
    price["sweep"] = ratio(times, "every K", longest)
    swept = summarize(times[times["name"].isin(encoders)])
    swept = swept.assign(thinking_steps=swept["name"].astype(int), name="sweep", batch=batch, tokens=tokens)
    columns = ["name", "batch", "tokens", "thinking_steps", "median", "p95", "peak_mib", "ratio"]
    return pd.concat([*tables, swept]).reindex(columns=columns).reset_index(drop=True), pd.DataFrame([price])


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write them as CSV and the figure beside them."""
    from laser_lab.lab import figures

    parser = argparse.ArgumentParser(prog="python -m laser_lab.lab.latency", description=main.__doc__)
    parser.add_argument("--model", default="gemma-3-270m", help="what load takes")
    parser.add_argument("--corpus", help="folder with a corpus.jsonl to encode")
    parser.add_argument("--parts", nargs="*", choices=PARTS, help="default: all")
    parser.add_argument("--out", default="figures", help="folder of the figures; the tables go into its data")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all cores)")
    options = parser.parse_args(arguments)
    parts = options.parts or [part for part in PARTS if part != "corpus" or options.corpus]
    if "corpus" in parts and not options.corpus:
        parser.error("the part corpus needs --corpus FOLDER")
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = (retriever := load(options.model, device=device)).encoder.backbone.eval()
    print(f"{options.model}, {backbone.embedding_table.dtype}, {device}, {torch.get_num_threads()} threads", flush=True)
    name = "latency" if options.model == "gemma-3-270m" else f"latency_{Path(options.model).name}"

    def keep(table: pd.DataFrame, part: str) -> None:
        print(f"\n{part}\n{table.to_string(index=False, float_format='%.4g')}", flush=True)
        write_text(Path(options.out) / "data" / f"{name}_{part}.csv", table.to_csv(index=False, float_format="%.5g"))

    if "loops" in parts:
        table, price = benchmark(backbone, repeats=options.repeats)
        print(table.to_string(index=False, float_format="%.3f"), flush=True)
        figures.save(figures.latency(table), table, name, options.out)
        keep(price, "price")
    if "corpus" in parts:
        keep(corpus(retriever, list(read_corpus(options.corpus).values())), "corpus")
    if "training" in parts:
        keep(training_table(training_runs(load(options.model, device=device)), "published", repeats=3), "training")
    if "methods" in parts:
        _, (model, _) = training_runs(load(options.model, device=device)).values()
        runs = {name: (model, name) for name in METHODS_TIMED}
        keep(training_table(runs, "latent", options.repeats, batch=16, lengths=(32, 24, 96)), "methods")
    if "rewriting" in parts:
        keep(rewriting(retriever, repeats=options.repeats), "rewriting")
    return 0


if __name__ == "__main__":
    sys.exit(main())
