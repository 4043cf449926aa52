"""Latency: what latent thinking costs beside the published loop and one basic pass, on this machine.

``python -m laser_lab.lab.latency`` times them on the same weights and batches, says on what machine, and writes tables
and a figure.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

from laser_lab.backbone import Backbone
from laser_lab.base.files import write_text
from laser_lab.base.kernels import multiplies_bfloat16
from laser_lab.lab.loops import benchmark, stock, sweep
from laser_lab.lab.machine import machine
from laser_lab.lab.stopwatch import busy_core, measure, summarize

PARTS = ("loops", "price", "busy", "corpus", "training", "methods", "rewriting")
ALONE = PARTS[:2]
"""What needs a backbone alone, with any weights."""


def random_gemma(dtype: torch.dtype, device: str) -> Backbone:
    """Gemma 3 270M's shape with random weights, for machines that have no other: a product takes as long."""
    config = Gemma3TextConfig(
        vocab_size=262_144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        sliding_window=512,
        query_pre_attn_scalar=256,
        layer_types=[*["sliding_attention"] * 5, "full_attention"] * 3,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    return Backbone(model, tokenizer, name="random")


def busy(name: str, repeats: int) -> pd.DataFrame:
    """Texts per second alone and beside a process that keeps one core busy, in batches of 8: ``name`` (``ours``;
    ``stock``, PyTorch's layers and its number of threads), ``quiet``, ``busy``, and their ``ratio``."""
    from laser_lab.loading import load

    model = load(name, device="cpu")
    texts = ["why is the sky blue and the sea so green today"] * 16
    other = stock(model.encoder.backbone)

    def by_stock() -> None:
        features = model.preprocess(texts[:8], prompt=model.prompts["document"])
        with torch.inference_mode():
            for _ in range(2):
                type(model.encoder)(other, thinking_steps=model.encoder.thinking_steps)(dict(features))

    calls = {"ours": lambda: model.encode_document(texts, batch_size=8), "stock": by_stock}
    quiet = summarize(measure(calls, repeats, warmup=1)).set_index("name")["median"]
    with busy_core():
        beside = summarize(measure(calls, repeats, warmup=0)).set_index("name")["median"]
    table = pd.DataFrame({"quiet": len(texts) / quiet, "busy": len(texts) / beside})
    return table.assign(ratio=table["busy"] / table["quiet"]).reset_index()


def shape(text: str) -> tuple[int, int]:
    """``8x64`` to a batch and its tokens."""
    batch, tokens = map(int, text.split("x"))
    return batch, tokens


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write them as CSV and the figure beside them."""
    parser = argparse.ArgumentParser(prog="python -m laser_lab.lab.latency", description=main.__doc__)
    parser.add_argument("--model", default="gemma-3-270m", help="what load takes; random: its shape, random weights")
    parser.add_argument("--corpus", help="folder with a corpus.jsonl to encode")
    parser.add_argument("--parts", nargs="*", choices=PARTS, help="default: all")
    parser.add_argument("--shapes", nargs="*", type=shape, default=[(8, 16), (8, 64), (8, 256)], help="as 8x64")
    parser.add_argument("--dtypes", nargs="*", help="default: float32, and bfloat16 where it is multiplied")
    parser.add_argument("--machine", help="its label in the tables; default: from what it says of itself")
    parser.add_argument("--out", default="figures", help="folder of the figures; the tables go into its data")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all cores)")
    options = parser.parse_args(arguments)
    needed = {"corpus": options.corpus, **{part: options.model != "random" for part in PARTS if part not in ALONE}}
    parts = options.parts or [part for part in PARTS if needed.get(part, True)]
    if "corpus" in parts and not options.corpus:
        parser.error("the part corpus needs --corpus FOLDER")
    if options.model == "random" and not set(parts) <= set(ALONE):
        parser.error(f"random weights have no tokenizer: only {' and '.join(ALONE)}")
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    here = machine(device, options.machine)
    print("  ".join(f"{name}: {value}" for name, value in here.items() if value != ""), flush=True)
    stem = "latency" if options.model in ("gemma-3-270m", "random") else f"latency_{Path(options.model).name}"

    def keep(table: pd.DataFrame, part: str) -> pd.DataFrame:
        print(f"\n{part}\n{table.to_string(index=False, float_format='%.4g')}", flush=True)
        table, file = table.assign(**here, weights=options.model), Path(options.out) / "data" / f"{stem}_{part}.csv"
        if "layers" in table and file.exists():  # a long run may be cut into shapes
            before = pd.read_csv(file)
            again = pd.MultiIndex.from_frame(before[["batch", "tokens"]]).isin(options.shapes)
            table = pd.concat([before[~again], table]).sort_values(["batch", "tokens"], kind="stable")
        write_text(file, table.to_csv(index=False, float_format="%.5g"))
        return table

    if set(parts) & set(ALONE):
        _loops(options, parts, device, keep, here["machine"])
    if "busy" in parts:
        keep(busy(options.model, options.repeats), "busy")
    if {"corpus", "training", "methods", "rewriting"} & set(parts):
        _costs(options, parts, device, keep)
    return 0


def _backbone(name: str, dtype: str, device: str) -> Backbone:
    if name == "random":
        return random_gemma(getattr(torch, dtype), device)
    from laser_lab.weights import load_backbone

    return load_backbone(name, device=device, dtype=getattr(torch, dtype))


def _loops(options: argparse.Namespace, parts: Sequence[str], device: str, keep: Any, label: str) -> None:
    """The parts in :data:`ALONE`, and the figure of the first."""
    fast = device != "cpu" or multiplies_bfloat16()
    dtypes = options.dtypes or (["float32", "bfloat16"] if fast else ["float32"])
    backbones = {dtype: _backbone(options.model, dtype, device) for dtype in dtypes}
    tables = []
    if "loops" in parts:
        tables.append(keep(benchmark(backbones, options.shapes, options.repeats), label))
    if "price" in parts:
        line, price = sweep(next(iter(backbones.values())), repeats=options.repeats)
        tables.append(keep(line, "sweep"))
        keep(price, "price")
    if len(tables) == len(ALONE):
        try:
            from laser_lab.lab import figures
        except ImportError as error:
            print(f"no figure: {error}")
            return
        whole = pd.concat(tables)
        figures.save(figures.latency(whole), whole, f"latency_{label}", options.out)


def _costs(options: argparse.Namespace, parts: Sequence[str], device: str, keep: Any) -> None:
    """The parts that need a retriever."""
    from laser_lab.data.readers import read_corpus
    from laser_lab.lab import costs
    from laser_lab.loading import load

    if "corpus" in parts:
        model = load(options.model, device=device)
        keep(costs.corpus(model, list(read_corpus(options.corpus).values())), "corpus")
    if "training" in parts:
        runs = costs.training_runs(load(options.model, device=device))
        keep(costs.training_table(runs, "published", repeats=3), "training")
    if "methods" in parts:
        _, (model, _) = costs.training_runs(load(options.model, device=device)).values()
        runs = {name: (model, name) for name in costs.METHODS_TIMED}
        shape = dict(batch=16, lengths=(32, 24, 96))
        keep(costs.training_table(runs, "latent", options.repeats, **shape), "methods")
    if "rewriting" in parts:
        keep(costs.rewriting(load(options.model, device=device), repeats=options.repeats), "rewriting")


if __name__ == "__main__":
    sys.exit(main())
