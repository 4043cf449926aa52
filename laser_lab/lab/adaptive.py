"""Adaptive K: a trained model read as its thoughts end, at a fixed K, at random numbers of steps and at the true depth;
and what each way costs.

``python -m laser_lab.lab.adaptive figures/data/adaptive.csv`` reads the mixed-depth trainings of ``recipes``, and times
one of them into ``adaptive_times.csv`` beside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from laser_lab.base.files import write_text
from laser_lab.data.hopworld import HopWorld, HopWorldConfig
from laser_lab.encoder import LatentEncoder, LatentRetriever, think
from laser_lab.evaluation import score
from laser_lab.lab.cells import WEIGHS, Cell
from laser_lab.lab.recipes import GROUPS
from laser_lab.lab.stopwatch import measure
from laser_lab.thinking import Thoughts


def stopped(thoughts: Thoughts, steps: torch.Tensor) -> torch.Tensor:
    """(B, D): the embedding of each text at its own number of steps, (B,) from 1 to K."""
    every = torch.stack([thoughts.embeddings_at(k) for k in range(1, thoughts.thinking_steps + 1)])
    return every[steps - 1, torch.arange(len(steps))]


def readings(model: LatentRetriever, world: HopWorld, split: str = "test", seed: int = 0) -> pd.DataFrame:
    """``reading, query_id, depth, steps, ndcg@10``, by reading: ``halting``; ``random``, its steps dealt out at random;
    ``depth``, the oracle; ``fixed K`` up to the deepest depth."""
    task, compositions = world.task(split), getattr(world, split)
    queries = think(model, list(task.queries.values()), prompt_name="query", threshold=0.0)
    documents = think(model, list(task.corpus.values()), prompt_name="document").embeddings.numpy()
    chosen = (queries.weights > WEIGHS).sum(1)
    depth = torch.tensor([c.depth for c in compositions])
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))
    steps = {"halting": chosen, "random": chosen[order], "depth": depth.clamp(max=queries.thinking_steps)}
    steps |= {f"fixed {k}": torch.full_like(chosen, k) for k in range(1, int(depth.max()) + 1)}
    frames = []
    for name, taken in steps.items():
        vectors = queries.embeddings if name == "halting" else stopped(queries, taken)
        frame = score(vectors.numpy(), documents, task, per_query=True)
        frames.append(frame.assign(reading=name, depth=depth.numpy(), steps=taken.numpy()))
    return pd.concat(frames, ignore_index=True)[["reading", "query_id", "depth", "steps", "ndcg@10"]]


def table(cells: Sequence[Cell]) -> pd.DataFrame:
    """A row per reading, seed and depth (0: all) of the finished cells; those of ``latent`` are at their own K."""
    frames = []
    for cell in cells:
        if not cell.done:
            continue
        if cell.method == "latent":
            own = cell.frame().query("thinking_steps == train_steps")
            frame = own[["query_id", "depth", "steps", "ndcg@10"]].assign(reading=f"trained at K={cell.steps}")
        else:
            frame = readings(cell.load(), HopWorld(HopWorldConfig(**cell.world)), cell.split)
        frames.append(frame.assign(seed=cell.seed))
    whole = pd.concat(frames)
    whole = pd.concat([whole.assign(depth=0), whole])
    return whole.groupby(["reading", "seed", "depth"], sort=False, as_index=False)[["steps", "ndcg@10"]].mean()


def times(model: LatentRetriever, world: HopWorld, split: str = "test", repeats: int = 5) -> pd.DataFrame:
    """What a text costs, with thoughts that end themselves and at a fixed K of the same weights: ``side, reading,
    batch, ms, p95, ratio``, milliseconds per text, its median and 95th percentile over rounds that alternate, and its
    ratio to one pass. Texts come one by one (``batch`` 1, a fifth of the queries) and 64 at a time."""
    task = world.task(split)
    backbone, budget = model.encoder.backbone, model.encoder.thinking_steps
    fixed = {
        f"fixed {k}": LatentRetriever(
            modules=[LatentEncoder(backbone, thinking_steps=k)], device="cpu", prompts=model.prompts
        )
        for k in [*range(1, world.config.max_hops + 1), budget]
    }
    frames = []
    for side, texts in (("query", list(task.queries.values())), ("document", list(task.corpus.values()))):
        for batch in (1, 64):
            some = texts[::5] if batch == 1 else texts
            encoders = {
                name: partial(getattr(m, f"encode_{side}"), some, batch_size=batch)
                for name, m in {"halting": model, **fixed}.items()
            }
            wide = measure(encoders, repeats).pivot(index="repeat", columns="name", values="seconds")[list(encoders)]
            found = (1000 * wide / len(some)).quantile([0.5, 0.95]).T.set_axis(["ms", "p95"], axis=1)
            found["ratio"] = wide.div(wide["fixed 1"], axis=0).median()
            frames.append(found.rename_axis("reading").reset_index().assign(side=side, batch=batch))
    return pd.concat(frames)[["side", "reading", "batch", "ms", "p95", "ratio"]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the finished trainings of the mixed-depth world in every way."""
    parser = argparse.ArgumentParser(prog="python -m laser_lab.lab.adaptive", description=main.__doc__)
    parser.add_argument("file", help="CSV to write")
    options = parser.parse_args(arguments)
    latent = [cell for cell in GROUPS["mixed-others"].cells() if cell.method == "latent"]
    trained = [cell for cell in GROUPS["mixed"].cells() if cell.done]
    if not trained:
        parser.error("no training of the mixed world is done: run python -m laser_lab.lab.recipes first")
    found = table([*trained, *latent])
    write_text(options.file, found.to_csv(index=False, float_format="%.6g"))
    print(found.groupby(["reading", "depth"], sort=False)[["steps", "ndcg@10"]].mean().unstack("depth").round(3))
    torch.set_num_threads(1)
    spent = times(trained[0].load(), HopWorld(HopWorldConfig(**trained[0].world)))
    write_text(Path(options.file).with_name("adaptive_times.csv"), spent.to_csv(index=False, float_format="%.4g"))
    print(spent.round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
