"""laser_lab: research on latent thinking in dense retrieval. The public names, nothing else."""

from typing import Any

from laser_lab import adapters  # noqa: F401  their names are built-in ones
from laser_lab.encoder import LatentRetriever, think
from laser_lab.evaluation import evaluate, rank
from laser_lab.loading import load, query_prompt
from laser_lab.methods import METHODS, Method
from laser_lab.probing.lens import TunedLens, fit_lens
from laser_lab.probing.vocabulary import nearest_tokens
from laser_lab.rewriting import rewrite_then_retrieve
from laser_lab.thinking import Thoughts

__all__ = [
    "METHODS",
    "LatentRetriever",
    "Method",
    "Thoughts",
    "TunedLens",
    "evaluate",
    "explore",
    "fit_lens",
    "load",
    "nearest_tokens",
    "query_prompt",
    "rank",
    "rewrite_then_retrieve",
    "think",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "train":  # the trainer imports much that looking at a model does not need
        from laser_lab.training.run import train

        return train
    if name == "explore":  # as do the explorer's parts
        from laser_lab.explorer import explore

        return explore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
