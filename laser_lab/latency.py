"""Latency: what latent thinking costs, against the published loop and against one basic pass.

``python -m laser_lab.latency`` times the loops interleaved, on the same weights and batches, and writes a table and a
figure. :func:`measure` is the stopwatch; it knows nothing of models, so anything that can be called can be compared.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from laser_lab.backbones import Backbone
from laser_lab.thinking import latent_thinking

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedConfig

SHAPES = ((8, 16), (8, 64), (8, 256))
"""(batch, tokens) of the benchmark."""

STEPS = (1, 2, 3, 4, 5, 6)
"""K at 64 tokens, from which the price of one more step is read."""


def published_thinking(
    backbone: Backbone, input_ids: Tensor, attention_mask: Tensor, thinking_steps: int = 3
) -> Tensor:
    """(B, K, D) states as the steps on LaSER's model card compute them: the comparator, slow on purpose.

    Every call of the causal LM returns logits for all its positions and the hidden states of all its layers, the
    cache grows by concatenation, the softmax is written out, and the soft token is spliced into a copy of the inputs.
    One thing is added: the family's embedding scale (1 for Qwen3, for which the card was written).
    """
    model, embedding = backbone.causal_lm, backbone.causal_lm.get_input_embeddings()
    batch, length = input_ids.shape
    slots = input_ids.new_full((batch, thinking_steps - 1), backbone.tokenizer.eos_token_id)
    inputs = embedding(torch.cat([input_ids, slots], dim=1))
    mask = torch.cat([attention_mask, torch.ones_like(slots)], dim=1)
    cache, states = None, []
    for end in range(length, length + thinking_steps):
        new = inputs[:, :end] if cache is None else inputs[:, end - 1 : end]
        output = model(
            inputs_embeds=new,
            attention_mask=mask[:, :end],
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
        )
        cache = output.past_key_values
        states.append(output.hidden_states[-1][:, -1])
        if end < length + thinking_steps - 1:
            probabilities = torch.softmax(output.logits[:, -1], dim=-1)
            soft_token = probabilities @ embedding.weight * backbone.embedding_scale
            inputs = torch.cat([inputs[:, :end], soft_token[:, None], inputs[:, end + 1 :]], dim=1)
    return torch.stack(states, dim=1)


# -- the stopwatch -------------------------------------------------------------------------------------------------


def measure(encoders: dict[str, Callable[[], Any]], repeats: int = 10, warmup: int = 2) -> pd.DataFrame:
    """Time callables interleaved, so that a slow moment of the machine hits all of them alike.

    Every round calls each encoder once, in an order that turns from round to round.

    Args:
        encoders: Name to callable without arguments.
        repeats: Timed rounds, after `warmup` rounds that are not timed.

    Returns:
        One row per round and name, in the order they ran: ``repeat`` (from 0), ``name``, ``seconds``.

    Raises:
        ValueError: No encoder, or `repeats` below 1.
    """
    import pandas as pd

    if not encoders or repeats < 1:
        raise ValueError(f"measure needs an encoder and a repeat, got {len(encoders)} encoders and repeats={repeats}")
    names, rows = list(encoders), []
    for repeat in range(-warmup, repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            _synchronize()
            start = time.perf_counter()
            encoders[name]()
            _synchronize()
            if repeat >= 0:
                rows.append({"repeat": repeat, "name": name, "seconds": time.perf_counter() - start})
    return pd.DataFrame(rows)


def summarize(times: pd.DataFrame, by: Sequence[str] = ("name",)) -> pd.DataFrame:
    """Median and 95th percentile of ``seconds`` for each value of the columns `by`, in order of appearance."""
    seconds = times.groupby(list(by), sort=False)["seconds"]
    return seconds.quantile([0.5, 0.95]).unstack().set_axis(["median", "p95"], axis=1).reset_index()


def ratio(times: pd.DataFrame, slow: str, fast: str) -> float:
    """How many times longer `slow` takes than `fast`: the median over rounds of the ratio within the round."""
    wide = times.pivot(index="repeat", columns="name", values="seconds")
    return float((wide[slow] / wide[fast]).median())


def peak_memory(call: Callable[[], Any]) -> tuple[float, float]:
    """(growth, total) in MiB: the peak during one call, above what was held before it, and as it stands.

    On CUDA what PyTorch allocated; elsewhere the resident set of the process, whose high-water mark only Linux lets
    a process reset (NaN on other systems).
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        peak = torch.cuda.max_memory_allocated()
        return (peak - before) / 2**20, peak / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier calls freed must not hide what this one needs
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
    except OSError:
        return float("nan"), float("nan")
    call()
    peak = _resident("VmHWM")
    return peak - before, peak


def _resident(field: str) -> float:
    """MiB of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# -- the benchmark -------------------------------------------------------------------------------------------------


def loops(backbone: Backbone, batch: int, tokens: int, thinking_steps: int = 3) -> dict[str, Callable[[], Tensor]]:
    """The three loops on one random batch without padding: ``published``, ``ours`` and ``basic`` (K=1)."""
    table = backbone.embedding_table
    generator = torch.Generator().manual_seed(batch * 100_003 + tokens)
    ids = torch.randint(len(table), (batch, tokens), generator=generator).to(table.device)
    mask = torch.ones_like(ids)
    return {
        "published": torch.inference_mode()(lambda: published_thinking(backbone, ids, mask, thinking_steps)),
        "ours": torch.inference_mode()(lambda: latent_thinking(backbone, ids, mask, thinking_steps)),
        "basic": torch.inference_mode()(lambda: latent_thinking(backbone, ids, mask, 1)),
    }


def step_parts(backbone: Backbone, batch: int, tokens: int) -> dict[str, Callable[[], Tensor]]:
    """What one more thinking step cannot do without: ``forward`` of one token per text, and ``reading`` the
    embedding matrix once."""
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
    shapes: Sequence[tuple[int, int]] = SHAPES,
    steps: Sequence[int] = STEPS,
    repeats: int = 10,
    warmup: int = 2,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Time and peak memory of the three loops over `shapes` at K=3, and of ours over `steps` at 64 tokens.

    Returns:
        (table, price). ``table`` has a row per loop, shape and K: ``name``, ``batch``, ``tokens``, ``thinking_steps``,
        ``median`` and ``p95`` in seconds, ``peak_mib`` above the weights, and ``ratio``, how many times longer than
        ours (for ours itself: than the basic pass). ``price`` has one row: seconds of one more ``step`` (a line through
        the medians over K), of ``forward`` and ``reading`` (:func:`step_parts`), and ``ratio`` to their sum.
    """
    import pandas as pd

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
    times = measure(encoders | step_parts(backbone, batch, tokens), repeats, warmup)
    medians = summarize(times).set_index("name")["median"]
    step = _slope(list(steps), [medians[str(k)] for k in steps])
    price = {"step": step, "forward": medians["forward"], "reading": medians["reading"]}
    price["ratio"] = step / (price["forward"] + price["reading"])
    swept = summarize(times[times["name"].isin(encoders)])
    swept = swept.assign(thinking_steps=swept["name"].astype(int), name="sweep", batch=batch, tokens=tokens)
    columns = ["name", "batch", "tokens", "thinking_steps", "median", "p95", "peak_mib", "ratio"]
    return pd.concat([*tables, swept]).reindex(columns=columns).reset_index(drop=True), pd.DataFrame([price])


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    import numpy as np

    return float(np.polyfit(x, y, 1)[0])


# -- limits from the shapes ----------------------------------------------------------------------------------------


def shortest_seconds(
    config: PreTrainedConfig,
    batch: int,
    tokens: int,
    thinking_steps: int,
    *,
    operations: float,
    bandwidth: float,
    bytes_per_weight: int = 2,
) -> float:
    """The time no implementation can beat, from the shapes alone.

        prefill = max(arithmetic / operations, bytes of the body / bandwidth)
        each further step = (bytes of the body + bytes of the embedding matrix) / bandwidth

    Arithmetic is two operations per weight of the body and token, and causal attention's two products.

    Args:
        operations: The device's multiply and add operations per second, e.g. 990e12 (H200, bf16, dense).
        bandwidth: Its bytes per second from memory, e.g. 4.8e12 (H200).
    """
    import transformers

    with torch.device("meta"):  # counts weights without making them
        body = transformers.AutoModel.from_config(config)
    text = config.get_text_config()
    embedding = text.vocab_size * text.hidden_size
    weights = sum(p.numel() for p in body.parameters()) - embedding
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    attention = 2 * batch * tokens**2 * text.num_attention_heads * head * text.num_hidden_layers
    arithmetic = 2 * weights * batch * tokens + attention
    prefill = max(arithmetic / operations, weights * bytes_per_weight / bandwidth)
    return prefill + (thinking_steps - 1) * (weights + embedding) * bytes_per_weight / bandwidth


# -- the command line ----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m laser_lab.latency``: measure, print the table, write the CSV and the figure beside it."""
    from laser_lab import figures
    from laser_lab.retriever import load

    parser = argparse.ArgumentParser(prog="python -m laser_lab.latency", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--out", default="figures/data/latency.csv", help="the CSV; the figure goes beside its folder")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all cores)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    backbone = load(options.model)[0].backbone.eval()
    table, price = benchmark(backbone, repeats=options.repeats)
    device = backbone.embedding_table.device
    print(f"{options.model}, {backbone.embedding_table.dtype}, {device}, {torch.get_num_threads()} threads")
    print(table.to_string(index=False, float_format="%.3f"))
    print(price.to_string(index=False, float_format="%.3f"))
    out = Path(options.out)
    figures.save(figures.latency(table), table, out.stem, out.parent.parent)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
