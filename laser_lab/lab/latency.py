"""Latency: what latent thinking costs, against the published loop and against one basic pass.

``python -m laser_lab.lab.latency`` times the loops interleaved, on the same weights and batches, and writes a table
and a figure. :func:`measure` is the stopwatch; it knows nothing of models, so anything that can
be called can be compared.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from laser_lab.backbone import Backbone
from laser_lab.base.kernels import use_fast_linear
from laser_lab.encoder import LatentEncoder, LatentRetriever
from laser_lab.loading import load
from laser_lab.thinking import latent_thinking, pool

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedConfig

SHAPES = ((8, 16), (8, 64), (8, 256))
"""(batch, tokens) of the benchmark."""

STEPS = (1, 2, 3, 4, 6, 8)
"""K at 64 tokens, from which the price of one more step is read."""

COST_SHAPES = ((1, 16), (8, 16), (32, 16), (8, 64), (8, 256))
"""(batch, tokens) that the model of the cost is fitted on."""


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


def stock(backbone: Backbone) -> Backbone:
    """The same weights behind PyTorch's own linear layers: what the published loop runs on."""
    parts = (*backbone.parameters(), *backbone.buffers(), backbone.tokenizer)
    twin: Backbone = copy.deepcopy(backbone, {id(part): part for part in parts})
    use_fast_linear(twin.model, False)
    return twin


class PublishedEncoder(LatentEncoder):
    """The published loop as an encoder; the explicit view, too, asks the causal LM for everything it has."""

    def think(
        self, features: dict[str, Tensor], thinking_steps: int | None = None, **options: Any
    ) -> dict[str, Tensor]:
        ids, mask = features["input_ids"], features["attention_mask"]
        states = published_thinking(self.backbone, ids, mask, self.steps_of(thinking_steps))
        taken = ids.new_full((len(ids),), states.shape[1])
        return {"states": states, "weights": mask.new_ones(states.shape[:2]), "steps_taken": taken}

    def forward(self, features: dict[str, Tensor], thinking_steps: int | None = None) -> dict[str, Tensor]:
        if "segment_ends" not in features:
            return super().forward(features, thinking_steps)
        output = self.backbone.causal_lm(
            input_ids=features["input_ids"], attention_mask=features["attention_mask"], output_hidden_states=True
        )
        every = output.hidden_states[-1]
        rows = torch.arange(len(every), device=every.device)[:, None]
        # a training written on full logits keeps them to its end
        return {"states": every[rows, features["segment_ends"]], "sentence_embedding": pool(every[:, -1:]),
                "logits": output.logits}  # fmt: skip


def published(model: LatentRetriever) -> LatentRetriever:
    """`model` behind the published loop, on the same weights."""
    own = model.encoder
    encoder = PublishedEncoder(stock(own.backbone), thinking_steps=own.thinking_steps, max_length=own.max_length)
    return LatentRetriever(modules=[encoder], device=str(model.device), prompts=model.prompts)


def loops(backbone: Backbone, batch: int, tokens: int, thinking_steps: int = 3) -> dict[str, Callable[[], Tensor]]:
    """Loops on one random batch without padding: ``published``, ``ours``, ``stock`` (ours on PyTorch's own linear
    layers) and ``basic`` (ours at K=1)."""
    table = backbone.embedding_table
    generator = torch.Generator().manual_seed(batch * 100_003 + tokens)
    ids = torch.randint(len(table), (batch, tokens), generator=generator).to(table.device)
    mask, twin = torch.ones_like(ids), stock(backbone)
    return {
        "published": torch.inference_mode()(lambda: published_thinking(twin, ids, mask, thinking_steps)),
        "ours": torch.inference_mode()(lambda: latent_thinking(backbone, ids, mask, thinking_steps).states),
        "stock": torch.inference_mode()(lambda: latent_thinking(twin, ids, mask, thinking_steps).states),
        "basic": torch.inference_mode()(lambda: latent_thinking(backbone, ids, mask, 1).states),
    }


def step_parts(backbone: Backbone, batch: int) -> dict[str, Callable[[], Tensor]]:
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
    """Time and peak memory of the :func:`loops` over `shapes` at K=3, and of ours over `steps` at 8 x 64 tokens.

    Returns:
        (table, price). ``table`` has a row per loop, shape and K: ``name``, ``batch``, ``tokens``, ``thinking_steps``,
        ``median`` and ``p95`` in seconds, ``peak_mib`` above the weights, and ``ratio``, how many times longer than
        ours (for ours itself: than the basic pass). ``price`` has one row: seconds of one more ``step`` (a line through
        the medians over K), of ``forward`` and ``reading`` (:func:`step_parts`), ``ratio`` to their sum, and ``sweep``,
        how many times longer than the largest K alone a rollout takes that is read at every K up to it.
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
    """Documents per second of the published loop and of ours, on `sample` of `texts` in the same batches, and the
    memory of ours.

    Returns:
        One row: ``published`` and ``ours`` in documents per second, their ``ratio``, and the process's peak in MiB
        while it encodes a sixth of the texts (``peak_part``) and all of them (``peak_all``), and their quotient
        ``growth``.
    """
    import pandas as pd

    some = list(texts[:: max(1, len(texts) // sample)])
    models = {"published": published(model), "ours": model}
    times = measure({n: lambda m=m: m.encode_document(some) for n, m in models.items()}, repeats, warmup=0)
    rates = len(some) / summarize(times).set_index("name")["median"]
    part = list(texts[: max(1, len(texts) // 6)])
    peaks = {"peak_part": peak_memory(lambda: model.encode_document(part))[1]}
    peaks["peak_all"] = peak_memory(lambda: model.encode_document(list(texts)))[1]
    growth = peaks["peak_all"] / peaks["peak_part"]
    row = {**rates, "ratio": ratio(times, "published", "ours"), **peaks, "growth": growth, "documents": len(texts)}
    return pd.DataFrame([row])


def training_step(
    model: LatentRetriever,
    batch: int = 8,
    lengths: tuple[int, int, int] = (48, 24, 160),
    repeats: int = 3,
) -> pd.DataFrame:
    """Time and peak memory of one LaSER step (forward and backward, LoRA): ours and the published loop's.

    Args:
        batch: Queries; there are twice as many documents.
        lengths: Tokens of queries, documents and reasoning (with its query), of random tokens.

    Returns:
        One row per loop: ``name``, ``median`` and ``p95`` in seconds, ``peak_mib`` above the weights, and the
        ``time_ratio`` and ``memory_ratio`` of ours to it.
    """
    from laser_lab.methods import method_of
    from laser_lab.training.objectives import DualViewLoss
    from laser_lab.training.run import add_lora

    method, generator = method_of("laser"), torch.Generator().manual_seed(0)
    if not hasattr(model.encoder.backbone.model, "peft_config"):
        add_lora(model, {"r": 16})
    device = model.encoder.backbone.embedding_table.device

    def texts(rows: int, tokens: int) -> dict[str, Tensor]:
        ids = torch.randint(len(model.encoder.backbone.embedding_table), (rows, tokens), generator=generator)
        return {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}

    queries, documents, explicit = (texts(rows, n) for rows, n in zip((batch, 2 * batch, batch), lengths))
    documents["keys"] = documents["rows"] = torch.arange(2 * batch, device=device)
    queries["positive_keys"] = documents["keys"][:batch, None]
    ends = torch.linspace(lengths[2] // 2, lengths[2] - 2, method.thinking_steps).long().to(device)
    explicit["segment_ends"] = ends.expand(batch, -1)

    def step(retriever: LatentRetriever) -> Callable[[], None]:
        loss = DualViewLoss(retriever, method)
        loss.progress = 1.0  # all terms act

        def once() -> None:
            retriever.train()
            sum(loss([dict(queries), dict(documents), dict(explicit)]).values()).backward()
            retriever.zero_grad(set_to_none=True)

        return once

    steps = {"published": step(published(model)), "ours": step(model)}
    times = measure(steps, repeats, warmup=1)
    table = summarize(times)
    table["peak_mib"] = [peak_memory(steps[name])[0] for name in table["name"]]
    own = table.set_index("name").loc["ours"]
    table["time_ratio"] = [1 / ratio(times, name, "ours") for name in table["name"]]
    return table.assign(memory_ratio=own["peak_mib"] / table["peak_mib"])


# -- a model of the cost -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CostModel:
    """Seconds of a batch from its shape: a sum of what it must do, each at a rate that the measurements give.

        seconds = calls·K + body·W·n + attention·n·T + reading·(K-1)·V·D + mixing·(K-1)·B·V·D

    with n = B·(T + K - 1) tokens, W the weights of the body, V·D the embedding matrix. Rates are fitted by
    non-negative least squares on relative errors.
    """

    rates: dict[str, float]
    weights: int
    """W"""
    vocabulary: int
    """V·D, of the model that is predicted"""

    @staticmethod
    def work(weights: int, vocabulary: int, batch: int, tokens: float, thinking_steps: int) -> dict[str, float]:
        """What the rates multiply."""
        n, more = batch * (tokens + thinking_steps - 1), thinking_steps - 1
        return {
            "calls": thinking_steps,
            "body": weights * n,
            "attention": n * tokens,
            "reading": more * vocabulary,
            "mixing": more * batch * vocabulary,
        }

    @classmethod
    def fit(cls, points: pd.DataFrame) -> CostModel:
        """From a table with ``weights``, ``vocabulary`` (both in numbers), ``batch``, ``tokens``, ``thinking_steps``
        and ``median`` seconds; predictions are for the largest vocabulary in it."""
        from scipy.optimize import nnls

        names = ["weights", "vocabulary", "batch", "tokens", "thinking_steps"]
        work = [cls.work(*row) for row in points[names].itertuples(index=False)]
        matrix = np.array([list(w.values()) for w in work]) / points["median"].to_numpy()[:, None]
        scale = matrix.max(axis=0)
        found, _ = nnls(matrix / scale, np.ones(len(points)))
        rates = dict(zip(work[0], (found / scale).tolist()))
        return cls(rates, int(points["weights"].iloc[0]), int(points["vocabulary"].max()))

    def seconds(self, batch: int, tokens: float, thinking_steps: int, vocabulary: int | None = None) -> float:
        work = self.work(self.weights, vocabulary or self.vocabulary, batch, tokens, thinking_steps)
        return sum(self.rates[name] * amount for name, amount in work.items())

    def corpus_hours(self, documents: float, tokens: float, thinking_steps: int, batch: int = 32) -> float:
        """Hours for a corpus of so many documents of `tokens` tokens each."""
        return documents / batch * self.seconds(batch, tokens, thinking_steps) / 3600


def cost_points(backbone: Backbone, repeats: int = 5) -> pd.DataFrame:
    """Medians to fit a :class:`CostModel` on: batches, lengths and K, with the vocabulary and with its first quarter.

    Returns:
        A row per shape, K and vocabulary: the columns that :meth:`CostModel.fit` reads.
    """
    import pandas as pd

    quarter = stock(backbone)
    use_fast_linear(quarter.model)
    rows = len(backbone.embedding_table) // 4
    head, table = quarter.head, quarter.causal_lm.get_input_embeddings()
    tied = head.weight is table.weight
    table.weight = nn.Parameter(table.weight.detach()[:rows])
    head.weight = table.weight if tied else nn.Parameter(head.weight.detach()[:rows])
    weights = sum(p.numel() for p in backbone.causal_lm.base_model.parameters()) - backbone.embedding_table.numel()
    parts = []
    for model, shapes in ((backbone, COST_SHAPES), (quarter, COST_SHAPES[1:3])):
        for batch, tokens in shapes:
            encoders = {str(k): loops(model, batch, tokens, k)["ours"] for k in (1, 3, 6)}
            part = summarize(measure(encoders, repeats, warmup=1)).assign(batch=batch, tokens=tokens)
            parts.append(part.assign(vocabulary=model.embedding_table.numel()))
    points = pd.concat(parts, ignore_index=True).assign(weights=weights)
    return points.assign(thinking_steps=points.pop("name").astype(int))


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


def against_limit(
    backbone: Backbone,
    shapes: Sequence[tuple[int, int]] = ((8, 32), (8, 128), (8, 512)),
    thinking_steps: int = 3,
    *,
    operations: float,
    bandwidth: float,
    repeats: int = 10,
) -> pd.DataFrame:
    """Ours and one basic pass against :func:`shortest_seconds`, whose arguments `operations` and `bandwidth` are.

    Returns:
        A row per shape: ``batch``, ``tokens``, ``ours``, ``basic`` and ``limit`` in milliseconds, and ``to_basic`` and
        ``to_limit``, how many times longer ours takes.
    """
    import pandas as pd

    rows, size = [], backbone.embedding_table.element_size()
    for batch, tokens in shapes:
        encoders = loops(backbone, batch, tokens, thinking_steps)
        times = measure({name: encoders[name] for name in ("ours", "basic")}, repeats)
        row = {"batch": batch, "tokens": tokens} | dict(1000 * summarize(times).set_index("name")["median"])
        rates = dict(operations=operations, bandwidth=bandwidth, bytes_per_weight=size)
        row["limit"] = 1000 * shortest_seconds(backbone.config, batch, tokens, thinking_steps, **rates)
        rows.append(row | {"to_basic": ratio(times, "ours", "basic"), "to_limit": row["ours"] / row["limit"]})
    return pd.DataFrame(rows)


QWEN3 = {
    "qwen3-0.6b": dict(hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
                       tie_word_embeddings=True),
    "qwen3-8b": dict(hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
                     tie_word_embeddings=False),
}  # fmt: skip
"""Shapes of the published backbones, by their model cards; key-value heads, head size and vocabulary are the same."""


def random_backbone(shape: str, device: str, dtype: torch.dtype) -> Backbone:
    """A backbone of a shape of :data:`QWEN3` with random weights, made on the device: for time, not for thought."""
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    config = transformers.Qwen3Config(
        num_key_value_heads=8, head_dim=128, vocab_size=151_936, max_position_embeddings=32_768, **QWEN3[shape]
    )
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    words = Tokenizer(WordLevel({"<eos>": 0}, unk_token="<eos>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>")
    return Backbone(model, tokenizer).eval()


# -- the command line ----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m laser_lab.lab.latency``: measure, print the tables, write them as CSV and the figure beside them."""
    from laser_lab.data.readers import read_corpus
    from laser_lab.lab import figures

    parser = argparse.ArgumentParser(prog="python -m laser_lab.lab.latency", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="gemma-3-270m", help=f"what load takes, or {', '.join(QWEN3)} at random")
    parser.add_argument("--corpus", help="folder with a corpus.jsonl to encode")
    parser.add_argument("--parts", nargs="*", choices=("loops", "corpus", "training", "cost", "limit"),
                        help="default: loops, training and cost; corpus where there is one")  # fmt: skip
    parser.add_argument("--out", default="figures", help="folder of the figures; the tables go into its data")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all cores)")
    parser.add_argument("--operations", type=float, default=990e12, help="of the device, per second (limit)")
    parser.add_argument("--bandwidth", type=float, default=4.8e12, help="bytes of the device, per second (limit)")
    options = parser.parse_args(arguments)
    parts = options.parts or ["loops", *(["corpus"] if options.corpus else []), "training", "cost"]
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def model() -> LatentRetriever:
        if options.model not in QWEN3:
            return load(options.model, device=device)
        backbone = random_backbone(options.model, device, torch.bfloat16 if device == "cuda" else torch.float32)
        return LatentRetriever(modules=[LatentEncoder(backbone)], device=device)

    backbone = (retriever := model()).encoder.backbone.eval()
    print(f"{options.model}, {backbone.embedding_table.dtype}, {device}, {torch.get_num_threads()} threads", flush=True)
    name = "latency" if options.model == "gemma-3-270m" else f"latency_{Path(options.model).name}"
    folder = Path(options.out) / "data"
    folder.mkdir(parents=True, exist_ok=True)

    def keep(table: pd.DataFrame, part: str) -> None:
        print(f"\n{part}\n{table.to_string(index=False, float_format='%.4g')}", flush=True)
        temporary = folder / f"{name}_{part}.part"
        table.to_csv(temporary, index=False, float_format="%.5g")
        temporary.replace(folder / f"{name}_{part}.csv")

    if "loops" in parts:
        table, price = benchmark(backbone, repeats=options.repeats)
        print(table.to_string(index=False, float_format="%.3f"), flush=True)
        figures.save(figures.latency(table), table, name, options.out)
        keep(price, "price")
    if "cost" in parts:
        points = cost_points(backbone, max(3, options.repeats // 2))
        cost = CostModel.fit(points)
        shapes = points[["batch", "tokens", "thinking_steps", "vocabulary"]].itertuples(index=False)
        points["predicted"] = [cost.seconds(*shape) for shape in shapes]
        keep(points.assign(error=points["predicted"] / points["median"] - 1), "cost")
        print(json.dumps(cost.rates))
        for documents in (1e6, 1e9):
            hours = {k: round(cost.corpus_hours(documents, 16, k), 1) for k in (1, 3)}
            print(f"{documents:.0e} documents of 16 tokens: hours at K = {hours}")
    if "limit" in parts:
        keep(against_limit(backbone, operations=options.operations, bandwidth=options.bandwidth), "limit")
    if "corpus" in parts:
        if not options.corpus:
            parser.error("the part corpus needs --corpus FOLDER")
        keep(corpus(retriever, list(read_corpus(options.corpus).values())), "corpus")
    if "training" in parts:
        keep(training_step(model()), "training")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
