"""laser_lab: a laboratory for latent thinking in dense retrieval.

=====================  ===========================================================================================
load                   a hub id, folder, adapter or built-in name to a retriever that thinks
think, Thoughts        what it thinks about texts, step by step: states, weights, embeddings
nearest_tokens         the vocabulary tokens that each thought is closest to
logit_lens             what every layer would say at each step
swap, knock_out        interventions: feed something else back, take a step out (more in :mod:`laser_lab.probing`)
fit_lens, TunedLens    an affine map per layer, so that early layers can be read too
linear_probes          what a linear probe reads from every layer and step
train, METHODS         train a retriever by a row of the table of methods, published ones and ours
evaluate, rank         score a retriever on a task, see its ranking
encode_corpus,         encode a corpus of any size to a folder of vectors,
open_corpus            and search it
explore                a window on all of this in a notebook cell
rewrite_then_retrieve  the comparator that reasons in words
LatentEncoder          the module inside a retriever: tokenize, think, pool
TrajectoryAlignment    the loss that aligns thinking steps with written reasoning (LaSER)
LexicalAlignment       the loss that lets each step say its words (ours)
=====================  ===========================================================================================

The method is described in docs/method.md.
"""

from typing import Any

from laser_lab.corpus import encode_corpus, open_corpus
from laser_lab.data.prompts import query_prompt
from laser_lab.encoder import LatentEncoder, LatentRetriever, think
from laser_lab.evaluation import evaluate, rank
from laser_lab.loading import load
from laser_lab.losses import LexicalAlignment, TrajectoryAlignment
from laser_lab.methods import METHODS, LatentMethod, Method, ReasonMethod
from laser_lab.probing.causal import knock_out, swap
from laser_lab.probing.geometry import linear_probes
from laser_lab.probing.lens import TunedLens, fit_lens
from laser_lab.probing.vocabulary import logit_lens, nearest_tokens
from laser_lab.rewriting import rewrite_then_retrieve
from laser_lab.thinking import Thoughts
from laser_lab.training.run import train

__all__ = [
    "METHODS",
    "LatentEncoder",
    "LatentMethod",
    "LatentRetriever",
    "LexicalAlignment",
    "Method",
    "ReasonMethod",
    "Thoughts",
    "TrajectoryAlignment",
    "TunedLens",
    "encode_corpus",
    "evaluate",
    "explore",
    "fit_lens",
    "knock_out",
    "linear_probes",
    "load",
    "logit_lens",
    "nearest_tokens",
    "open_corpus",
    "query_prompt",
    "rank",
    "rewrite_then_retrieve",
    "swap",
    "think",
    "train",
]


def __getattr__(name: str) -> Any:
    if name != "explore":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from laser_lab.explorer import explore  # needs a package of the notebooks

    return explore
