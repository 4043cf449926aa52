"""What a corpus costs, by measurement and arithmetic: the numbers of docs/scale.md.

``python -m laser_lab.lab.scale`` measures seconds of processor time on one core, so that what else runs does not count
(but for the caches that it shares), and writes ``scale_*.csv``; ``--parts plan`` works out hours and money from them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from laser_lab.base.files import write_text
from laser_lab.corpus import encode_corpus
from laser_lab.encoder import LatentRetriever
from laser_lab.index.folder import Shard, VectorFolder
from laser_lab.index.search import VectorIndex
from laser_lab.lab.stopwatch import measure, summarize
from laser_lab.loading import load

PARTS = ("encoding", "tokenizing", "searching", "workers", "gpu", "plan")
TOKENS = (16, 128, 512)
DOCUMENTS = (10**6, 10**7, 10**9)
GPUS = {"L4": (121e12, 0.8), "A100": (312e12, 2.5), "H100": (989e12, 4.0)}
"""Operations a second of dense bfloat16 by the maker's data sheet, and dollars an hour (assumed)."""
GPU_SHARE = 0.3
"""Of these operations that a model this small is taken to reach, where no measurement is at hand."""
GPU_BATCH_TOKENS = 2**16
TOKENIZER_CORES = 8
"""Cores that tokenize for a GPU, before it computes and not meanwhile (assumed)."""
CORE_PRICE = 0.05
"""Dollars for an hour of a core (assumed)."""


def encoding(name: str, tokens: Sequence[int] = TOKENS, repeats: int = 5, device: str = "cpu") -> pd.DataFrame:
    """Documents per second of one core, or one GPU, in one pass (K=1), tokenizing aside: ``dtype, tokens, batch,
    median, p95`` (seconds for a batch: of processor time, on a GPU of the clock), ``documents_per_second``."""
    models = {dtype: load(name, device=device, dtype=dtype, thinking_steps=1) for dtype in ("float32", "bfloat16")}
    on_cpu = device == "cpu"
    tables = []
    for length in tokens:
        batch = max(1, min(32, 1024 // length)) if on_cpu else GPU_BATCH_TOKENS // length
        ids = torch.randint(10, 20, (batch, length), generator=torch.Generator().manual_seed(0)).to(device)
        features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

        def encode(model: LatentRetriever, features: dict[str, Any] = features) -> None:
            with torch.inference_mode():
                model.eval()(dict(features))

        calls = {dtype: lambda m=model: encode(m) for dtype, model in models.items()}
        table = summarize(
            measure(calls, repeats, 1 if on_cpu else 3, time.process_time if on_cpu else time.perf_counter)
        )
        tables.append(table.rename(columns={"name": "dtype"}).assign(tokens=length, batch=batch))
    table = pd.concat(tables)
    return table.assign(documents_per_second=table["batch"] / table["median"])


def tokenizing(name: str, tokens: Sequence[int] = TOKENS, repeats: int = 10) -> pd.DataFrame:
    """Texts per second that one core turns into tokens, in batches of 32: what a graphics processor waits for."""
    model = load(name, device="cpu")
    tables = []
    for length in tokens:
        texts = ["why is the sky blue and the sea green " * (length // 8)] * 32
        times = measure({"tokenizer": lambda texts=texts: model.preprocess(texts)}, repeats, 2, time.process_time)
        tables.append(summarize(times).assign(tokens=length, batch=32))
    table = pd.concat(tables)
    return table.assign(documents_per_second=table["batch"] / table["median"])


def synthetic(folder: Path, documents: int, dimension: int, shard: int = 10_000) -> VectorIndex:
    """A finished folder of unit vectors around 1,000 centres."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((1000, dimension), np.float32)
    vectors = VectorFolder(folder)
    vectors.begin({"dimension": dimension, "similarity": "cosine"}, {})
    shards = -(-documents // shard)
    for number in range(shards):
        ids = [str(i) for i in range(number * shard, min(documents, (number + 1) * shard))]
        made = centres[random.integers(1000, size=len(ids))]
        made = made + random.standard_normal(made.shape, np.float32)
        made = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float16)
        vectors.write_shard(number, Shard(ids, made, np.ones(len(ids), np.int16), 0).to_bytes())
    vectors.finish(vectors.totals(shards))
    return VectorIndex(folder)


def searching(documents: int, dimension: int, approximate: bool, repeats: int = 20) -> pd.DataFrame:
    """Seconds of one query (top 100) by kind of index, on one core: ``index, documents, dimension, median, p95, build,
    bytes_per_document, recall``; ``build`` in seconds."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        start = synthetic(Path(folder), documents, dimension)
        query = next(start.blocks())[:1]
        kinds = {"exact": documents, "exact, by shard": documents, "IVF-PQ": 0}
        for kind in kinds if approximate else list(kinds)[:2]:
            index = VectorIndex(folder, exact_up_to=kinds[kind])
            search = index.exactly if kind == "exact, by shard" else index.nearest
            began = time.process_time()
            search(query, 100)  # builds
            build = time.process_time() - began
            some = 3 if kind == "exact, by shard" else repeats
            found = summarize(measure({kind: lambda s=search: s(query, 100)}, some, 1, time.process_time))
            note = {} if index.is_exact else index._approximate.note
            size = {"exact": 4 * dimension, "IVF-PQ": note.get("code_bytes", 0) + 8}.get(kind, 2 * dimension)
            rows.append(found.assign(build=build, bytes_per_document=size, recall=note.get("recall", 1.0)))
    table = pd.concat(rows).rename(columns={"name": "index"})
    return table.assign(documents=documents, dimension=dimension)


def workers(model: LatentRetriever, documents: Mapping[str, str], counts: Sequence[int] = (1, 2)) -> pd.DataFrame:
    """Documents per second of the whole call with so many Ray workers, and between the first shard and the last, when
    all is running. Needs as many cores for itself."""
    import ray

    import laser_lab.corpus.encode as encode

    rows, real = [], encode.run_on_ray

    def noting(*args: Any) -> Any:
        for progress in real(*args):
            moments.append(time.perf_counter())
            yield progress

    encode.run_on_ray = noting
    ray.init(include_dashboard=False, log_to_driver=False)  # once: its start is not what is measured
    try:
        for count in counts:
            moments: list[float] = []
            with tempfile.TemporaryDirectory() as folder:
                how = dict(engine="ray", workers=count, shard_size=32, show_progress_bar=False)
                found = encode_corpus(model, documents, Path(folder) / "out", **how)
            steady = (len(documents) - 32) / (moments[-1] - moments[0])
            rows.append((count, len(documents), len(documents) / found["seconds"], steady))
            print("workers, documents, documents per second of the whole call and steady:", rows[-1], flush=True)
    finally:
        encode.run_on_ray = real
        ray.shutdown()
    return pd.DataFrame(rows, columns=["workers", "documents", "whole", "steady"])


def operations(config: Any, tokens: int) -> float:
    """Floating-point operations of one pass over a document: products with the body's matrices, and attention over all
    positions. The embedding table is looked up and the head is not read."""
    text = config.get_text_config()
    heads = text.head_dim * text.num_attention_heads
    keys = text.head_dim * text.num_key_value_heads
    layer = text.hidden_size * (2 * heads + 2 * keys + 3 * text.intermediate_size)
    return text.num_hidden_layers * tokens * (2 * layer + 4 * heads * tokens)


def plan(
    encoded: pd.DataFrame,
    tokenized: pd.DataFrame,
    config: Any,
    documents: Sequence[int] = DOCUMENTS,
    on_gpu: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """``device, tokens, documents_per_second`` of one core (as measured) or GPU (as measured, ``on_gpu``, or its limit
    times GPU_SHARE), after TOKENIZER_CORES have tokenized, and hours and dollars for so many documents on one of them;
    ten take a tenth of the hours and the same dollars."""
    rows, measured = [], {}
    for row in encoded.itertuples():
        rows.append((f"core, {row.dtype}", row.tokens, row.documents_per_second, CORE_PRICE, "measured"))
    for row in () if on_gpu is None else on_gpu.itertuples():
        best = max(row.documents_per_second, measured.get((row.device, row.tokens), 0))
        measured[row.device, row.tokens] = best
    for name, (limit, price) in GPUS.items():
        for row in tokenized.itertuples():
            rates = [rate for (device, tokens), rate in measured.items() if name in device and tokens == row.tokens]
            computing = 1 / rates[0] if rates else operations(config, row.tokens) / (GPU_SHARE * limit)
            seconds = 1 / (TOKENIZER_CORES * row.documents_per_second) + computing
            rows.append((name, row.tokens, 1 / seconds, price, "measured" if rates else "arithmetic"))
    table = pd.DataFrame(rows, columns=["device", "tokens", "documents_per_second", "price", "source"])
    for count in documents:
        table[f"hours_{count:.0e}"] = hours = count / table["documents_per_second"] / 3600
        table[f"dollars_{count:.0e}"] = hours * table["price"]
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables and write them as CSV."""
    parser = argparse.ArgumentParser(prog="python -m laser_lab.lab.scale", description=main.__doc__)
    parser.add_argument("--model", default="gemma-3-270m", help="what load takes")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=["plan"])
    parser.add_argument("--tokens", type=int, nargs="*", default=TOKENS, help="lengths of documents")
    parser.add_argument("--documents", type=int, nargs="*", default=[10**5], help="vectors that are searched")
    parser.add_argument("--approximate-up-to", type=int, default=10**5, help="beyond, only exact search is measured")
    parser.add_argument("--out", default="figures/data", help="folder of the tables")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)

    def keep(part: str, table: pd.DataFrame) -> None:
        print(f"\n{part}\n{table.to_string(index=False, float_format='%.4g')}", flush=True)
        write_text(Path(options.out) / f"scale_{part}.csv", table.to_csv(index=False, float_format="%.5g"))

    if "encoding" in options.parts:
        keep("encoding", encoding(options.model, options.tokens, options.repeats))
    if "gpu" in options.parts:
        if not torch.cuda.is_available():
            parser.error("there is no GPU here")
        found = encoding(options.model, options.tokens, options.repeats, "cuda")
        keep("gpu", found.assign(device=torch.cuda.get_device_name()))
    if "tokenizing" in options.parts:
        keep("tokenizing", tokenizing(options.model, options.tokens))
    if "searching" in options.parts:
        import faiss

        faiss.omp_set_num_threads(1)
        dimension = load(options.model, device="cpu").get_embedding_dimension()
        sizes = [(count, dimension, count <= options.approximate_up_to) for count in options.documents]
        keep("searching", pd.concat([searching(*size) for size in sizes]))
    if "workers" in options.parts:
        texts = {str(i): f"{i} " + "why is the sky blue and the sea green " * 3 for i in range(640)}
        keep("workers", workers(load(options.model, device="cpu", thinking_steps=1), texts))
    if "plan" in options.parts:
        config = load(options.model, device="cpu").encoder.backbone.config
        encoded, tokenized = (pd.read_csv(Path(options.out) / f"scale_{part}.csv") for part in PARTS[:2])
        measured = Path(options.out) / "scale_gpu.csv"
        keep("plan", plan(encoded, tokenized, config, on_gpu=pd.read_csv(measured) if measured.exists() else None))
    return 0


if __name__ == "__main__":
    sys.exit(main())
