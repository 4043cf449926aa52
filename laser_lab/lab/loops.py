"""The loops that are timed: the one of LaSER's model card, ours, one basic pass, and thoughts that end themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from laser_lab.backbone import Backbone
from laser_lab.base.kernels import use_fast_linear
from laser_lab.lab.stopwatch import measure, peak_memory, ratio, spread, summarize
from laser_lab.thinking import latent_thinking, pool

Calls = dict[str, Callable[[], Tensor]]
DEPTHS = (1, 2, 3, 4)
"""Steps after which thoughts end, as often as one another, in :func:`halting`; the last is the budget."""


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


def twin(backbone: Backbone) -> Backbone:
    """Another backbone on the same weights."""
    parts = (*backbone.parameters(), *backbone.buffers(), backbone.tokenizer)
    return copy.deepcopy(backbone, {id(part): part for part in parts})


def stock(backbone: Backbone) -> Backbone:
    """The same weights behind PyTorch's linear layers, as the published loop has them."""
    other = twin(backbone)
    use_fast_linear(other.model, False)
    return other


def _random_ids(backbone: Backbone, batch: int, tokens: int) -> Tensor:
    """(B, T) ids, the same at every call."""
    generator = torch.Generator().manual_seed(batch * 100_003 + tokens)
    table = backbone.embedding_table
    return torch.randint(len(table), (batch, tokens), generator=generator).to(table.device)


def loops(backbone: Backbone, batch: int, tokens: int, thinking_steps: int = 3) -> Calls:
    """``published``, ``ours`` and ``basic`` (ours at K=1) on one random batch without padding."""
    ids = _random_ids(backbone, batch, tokens)
    mask = torch.ones_like(ids)
    calls = {
        "published": lambda: published_thinking(backbone, ids, mask, thinking_steps),
        "ours": lambda: latent_thinking(backbone, ids, mask, thinking_steps).states,
        "basic": lambda: latent_thinking(backbone, ids, mask, 1).states,
    }
    return {name: torch.inference_mode()(call) for name, call in calls.items()}


class _EndsAfter:
    """In the place of :meth:`Backbone.log_probabilities`: says that row i of a batch ends after ``depths[i]`` steps, at
    the price of the real one. `depths` must rise."""

    def __init__(self, backbone: Backbone, depths: Sequence[int]) -> None:
        self.real, self.depths, self.step = backbone.log_probabilities, torch.tensor(depths), 0

    def __call__(self, states: Tensor, ids: Tensor, log_normalisers: Tensor) -> Tensor:
        found = self.real(states, ids, log_normalisers)
        self.step = 1 if len(states) == len(self.depths) else self.step + 1
        ends = self.depths[len(self.depths) - len(states) :] <= self.step
        return torch.where(ends.to(found.device)[:, None], 0.0, -30.0).to(found)


def halting(backbone: Backbone, batch: int, tokens: int, depths: Sequence[int] = DEPTHS) -> Calls:
    """What ends earn, with a budget of the largest depth: ``fixed budget``; ``ends by depth``, where as many rows end
    at each depth and leave the batch; ``ends at once``, where all end with the first state, as documents do. Which row
    ends when is set here, as this backbone's own thoughts were not trained to end; all that it costs is real."""
    ids = _random_ids(backbone, batch, tokens)
    mask, budget = torch.ones_like(ids), max(depths)
    by_depth = sorted(depths[row % len(depths)] for row in range(batch))
    calls: Calls = {"fixed budget": lambda: latent_thinking(backbone, ids, mask, budget).states}
    for name, ends in (("ends by depth", by_depth), ("ends at once", [1] * batch)):
        other = twin(backbone)
        other.log_probabilities = _EndsAfter(backbone, ends)
        how = dict(end_token=0, threshold=1e-3)
        calls[name] = lambda b=other, how=how: latent_thinking(b, ids, mask, budget, **how).states
    return {name: torch.inference_mode()(call) for name, call in calls.items()}


def step_parts(backbone: Backbone, batch: int) -> Calls:
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
    backbones: Mapping[str, Backbone],
    shapes: Sequence[tuple[int, int]] = ((8, 16), (8, 64), (8, 256)),
    repeats: int = 10,
    warmup: int = 1,
) -> pd.DataFrame:
    """Time and peak memory of the :func:`loops` at K=3 over `shapes`, and of :func:`halting` at the first of them.

    Args:
        backbones: By dtype, ``float32`` first; others are compared with it.

    Returns:
        A row per loop, layers, dtype and shape: ``name``, ``layers`` (``stock``: PyTorch's; ``ours``, where they differ
        from those), ``dtype``, ``batch``, ``tokens``, ``thinking_steps``, ``median`` and ``p95`` (seconds),
        ``peak_mib`` above the weights; ``gain``, how many times longer the published loop takes on stock layers in the
        first dtype, and ``passes``, how many times longer than one pass on the same layers this takes, both with the
        10th and 90th percentile over rounds (``_low``, ``_high``).
    """
    tables = []
    reference = ("published", "stock", next(iter(backbones)))
    for batch, tokens in shapes:
        calls = {}
        for dtype, backbone in backbones.items():
            kinds = {"stock": stock(backbone)}
            if backbone.embedding_table.device.type == "cpu" and dtype == "float32":
                kinds["ours"] = backbone
            for layers, kind in kinds.items():
                calls |= {(name, layers, dtype): call for name, call in loops(kind, batch, tokens).items()}
            if (batch, tokens) == tuple(shapes[0]):
                calls |= {(name, layers, dtype): call for name, call in halting(kind, batch, tokens).items()}
        times = measure({" ".join(key): call for key, call in calls.items()}, repeats, warmup)
        table = summarize(times).drop(columns="name")
        for column, values in zip(("name", "layers", "dtype"), zip(*calls)):
            table[column] = values
        table = table.assign(batch=batch, tokens=tokens)
        table["thinking_steps"] = [{"basic": 1, "ours": 3, "published": 3}.get(name, max(DEPTHS)) for name, *_ in calls]
        table["peak_mib"] = [peak_memory(call)[0] for call in calls.values()]
        gains = [spread(times, " ".join(reference), " ".join(key)) for key in calls]
        passes = [spread(times, " ".join(key), " ".join(("basic", *key[1:]))) for key in calls]
        for column, found in (("gain", gains), ("passes", passes)):
            table[[column, f"{column}_low", f"{column}_high"]] = found
        tables.append(table)
    first = ["name", "layers", "dtype", "batch", "tokens", "thinking_steps"]
    table = pd.concat(tables, ignore_index=True)
    return table[[*first, *(name for name in table if name not in first)]]


def sweep(
    backbone: Backbone,
    steps: Sequence[int] = (1, 2, 3, 4, 6, 8),
    shape: tuple[int, int] = (8, 64),
    repeats: int = 10,
    warmup: int = 2,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Our loop over K. Returns (table, price): ``name``, ``batch``, ``tokens``, ``thinking_steps``, ``median`` and
    ``p95``; and one row, seconds of one more ``step`` (a line over K), of ``forward`` and ``reading``
    (:func:`step_parts`), ``ratio`` to their sum, and ``sweep``, the cost of reading every K to that of the largest."""
    batch, tokens = shape
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
    table = summarize(times[times["name"].isin(encoders)])
    table = table.assign(thinking_steps=table["name"].astype(int), name="sweep", batch=batch, tokens=tokens)
    return table[["name", "batch", "tokens", "thinking_steps", "median", "p95"]], pd.DataFrame([price])
