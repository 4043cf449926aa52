"""Adaptive K: a trained model read as its thoughts end, at a fixed K, at random numbers of steps and at the true depth.

``python -m laser_lab.lab.adaptive figures/data/adaptive.csv`` reads the mixed-depth trainings of ``recipes``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import pandas as pd
import torch

from laser_lab.base.files import write_text
from laser_lab.data.hopworld import HopWorld, HopWorldConfig
from laser_lab.encoder import LatentRetriever, think
from laser_lab.evaluation import score
from laser_lab.lab.cells import WEIGHS, Cell
from laser_lab.lab.recipes import GROUPS
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the finished trainings of the mixed-depth world in every way."""
    parser = argparse.ArgumentParser(prog="python -m laser_lab.lab.adaptive", description=main.__doc__)
    parser.add_argument("file", help="CSV to write")
    options = parser.parse_args(arguments)
    latent = [cell for cell in GROUPS["mixed-others"].cells() if cell.method == "latent"]
    found = table([*GROUPS["mixed"].cells(), *latent])
    write_text(options.file, found.to_csv(index=False, float_format="%.6g"))
    print(found.groupby(["reading", "depth"], sort=False)[["steps", "ndcg@10"]].mean().unstack("depth").round(3))
    return 0


if __name__ == "__main__":
    sys.exit(main())
