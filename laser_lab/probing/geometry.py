"""Where thoughts lie: linear probes, similarity to the explicit view, and collapse."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import normalize

from laser_lab.base.stats import proportion
from laser_lab.data.hopworld import Composition
from laser_lab.probing.tracing import LayerThoughts
from laser_lab.thinking import Thoughts

# -- linear probes -------------------------------------------------------------------------------------------------


def hop_labels(compositions: Sequence[Composition]) -> dict[str, list[str]]:
    """HopWorld targets to a label per query: ``start``, ``bridge 1`` ... and ``relation 1`` ... (in order of thinking).
    ValueError: the queries differ in depth."""
    depths = sorted({c.depth for c in compositions})
    if len(depths) > 1:
        raise ValueError(f"queries of one depth have the same labels, these have depths {depths}: take one at a time")
    labels = {"start": [c.start for c in compositions]}
    for hop in range(depths[0] if depths else 0):
        labels[f"bridge {hop + 1}"] = [c.bridges[hop] for c in compositions]
        labels[f"relation {hop + 1}"] = [c.relations[hop] for c in compositions]
    return labels


def linear_probes(
    train: LayerThoughts,
    test: LayerThoughts,
    train_labels: Mapping[str, Sequence[Any]],
    test_labels: Mapping[str, Sequence[Any]],
    seed: int = 0,
) -> pd.DataFrame:
    """Logistic regressions on standardised states: what can be read linearly at each layer and step? Beside it stand
    the *majority* training label and a *control task* (Hewitt and Liang, 2019): the same probe on random labels, which
    shows what it can learn by heart.

    Args:
        train_labels, test_labels: Target to (B,) labels, for a probe per step, or (B, K) labels, for one over all
            steps.

    Returns:
        A row per ``target``, ``step`` and ``layer`` (0: before the first): test ``accuracy``, its 95 % Wilson interval
        ``low``, ``high``; ``majority``; ``control``, ``control_low``, ``control_high``; ``chance`` (1 / classes),
        ``classes`` and ``texts``.

    Raises:
        ValueError: Training and test differ in targets, steps, layers or width, a target has fewer than two classes, or
            there is not a label per text.
    """
    if list(train_labels) != list(test_labels):
        raise ValueError(f"targets differ: {', '.join(train_labels)} in training, {', '.join(test_labels)} in test")
    if test.layers.shape[1:] != train.layers.shape[1:]:
        shapes = f"{tuple(train.layers.shape)} and {tuple(test.layers.shape)}"
        raise ValueError(f"training and test thoughts differ in steps, layers or width: {shapes}")
    rows = []
    for at, target in enumerate(train_labels):
        known, asked = np.asarray(train_labels[target]), np.asarray(test_labels[target])
        for labels, thoughts in ((known, train), (asked, test)):
            count, steps = thoughts.layers.shape[:2]
            if labels.shape not in ((count,), (count, steps)):
                raise ValueError(f"{target}: {labels.shape} labels for {count} texts and {steps} steps")
        classes, frequency = np.unique(known, return_counts=True)
        if len(classes) < 2:
            raise ValueError(f"{target} has only the label {classes[0]!r} in training: nothing to tell apart")
        majority = float((asked == classes[frequency.argmax()]).mean())
        # a stream of its own: the labels may themselves have been drawn by default_rng(seed)
        rng = np.random.default_rng([*b"control", seed, at])
        right = _right(train.layers, known, test.layers, asked)
        by_chance = _right(
            train.layers, rng.choice(classes, known.shape), test.layers, rng.choice(classes, asked.shape)
        )
        rows += [
            (target, step + 1, layer, *proportion(right[step, layer]), majority, *proportion(by_chance[step, layer]))
            + (1 / len(classes), len(classes), len(asked))
            for step in range(right.shape[0])
            for layer in range(right.shape[1])
        ]
    columns = "target step layer accuracy low high majority control control_low control_high chance classes texts"
    return pd.DataFrame(rows, columns=columns.split())


def _right(states: Tensor, labels: np.ndarray, test_states: Tensor, test_labels: np.ndarray) -> np.ndarray:
    """(K, L+1, B_test) from (B, K, L+1, D) states: which test labels a probe gets right."""
    _, steps, layers, _ = states.shape
    right = np.zeros((steps, layers, len(test_labels)), dtype=bool)
    # one thread: the matrices are so small that several take ten times as long
    with threadpool_limits(1):
        for layer in range(layers):
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            if labels.ndim == 2:  # one probe for all steps
                probe.fit(states[:, :, layer].flatten(0, 1).numpy(), labels.reshape(-1))
            for step in range(steps):
                if labels.ndim == 1:
                    probe.fit(states[:, step, layer].numpy(), labels)
                truth = test_labels if labels.ndim == 1 else test_labels[:, step]
                right[step, layer] = probe.predict(test_states[:, step, layer].numpy()) == truth
    return right


# -- steps beside the explicit view --------------------------------------------------------------------------------


def cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment (Kornblith et al., 2019) of the states of the same n texts, (n, D) and (n, D').
    1: equal up to rotation and scale; about 0, or just below, if unrelated (debiased); NaN if constant. ValueError:
    fewer than four texts, or not equally many."""
    if len(x) != len(y) or len(x) < 4:
        raise ValueError(f"CKA needs the states of the same texts, at least four; got {len(x)} and {len(y)}")
    kernels = []
    for states in (x, y):
        centred = states.double() - states.double().mean(0)
        kernels.append((centred @ centred.T).fill_diagonal_(0))
    k, l = kernels  # noqa: E741
    own = _hsic(k, k) * _hsic(l, l)
    return float(_hsic(k, l) / own.sqrt()) if own > 0 else float("nan")


def _hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    """Unbiased HSIC of two (n, n) kernels with a zero diagonal (Song et al., 2012, eq. 5)."""
    n = len(k)
    across = k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) @ l.sum(0)) / (n - 2)
    return ((k * l).sum() + across) / (n * (n - 3))


def cka_with_segments(thoughts: Thoughts, segment_states: Tensor) -> pd.DataFrame:
    """:func:`cka` over texts of each ``step`` and reasoning ``segment``; `segment_states` is (B, M, D)
    (:func:`laser_lab.explicit.explicit_thoughts`)."""
    rows = [
        (step + 1, segment + 1, cka(thoughts.states[:, step], segment_states[:, segment]))
        for step in range(thoughts.thinking_steps)
        for segment in range(segment_states.shape[1])
    ]
    return pd.DataFrame(rows, columns=["step", "segment", "cka"])


# -- drift and collapse --------------------------------------------------------------------------------------------


def drift(thoughts: Thoughts) -> pd.DataFrame:
    """A row per text and step: cosine of h_k ``to_first`` state, ``to_previous`` (NaN at step 1), ``to_others``, the
    mean over the other texts at this step (1: collapsed), and ``to_other_steps``, over these at all other steps."""
    unit = normalize(thoughts.states.double(), dim=-1)
    count, steps, _ = unit.shape
    frames, every = [], unit.sum(1)
    for k in range(steps):
        here = unit[:, k]
        others = (here @ here.sum(0) - 1) / (count - 1) if count > 1 else torch.full((count,), torch.nan)
        previous = (here * unit[:, k - 1]).sum(-1) if k else torch.full((count,), torch.nan)
        first = (here * unit[:, 0]).sum(-1)
        elsewhere = every - here  # the sum over the other steps
        apart = (here * (elsewhere.sum(0) - elsewhere)).sum(-1) / max(1, (count - 1) * (steps - 1))
        apart = apart if count > 1 and steps > 1 else torch.full((count,), torch.nan)
        cosines = {"to_first": first, "to_previous": previous, "to_others": others, "to_other_steps": apart}
        frames.append(pd.DataFrame({"text": range(count), "step": k + 1} | cosines))
    return pd.concat(frames, ignore_index=True)


def effective_rank(states: Tensor) -> float:
    """Directions that n texts span, from 1 to min(n - 1, D): exp of the entropy of the normalised singular values of
    their centred (n, D) states (Roy and Vetterli, 2007); 0 if all are equal."""
    states = states.double()
    values = torch.linalg.svdvals(states - states.mean(0))
    if not values.sum() > 1e-9 * states.abs().max():
        return 0.0
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())


def effective_ranks(thoughts: Thoughts) -> pd.DataFrame:
    """:func:`effective_rank` at every ``step``, and its ``highest`` possible value."""
    count, steps, size = thoughts.states.shape
    ranks = [(k + 1, effective_rank(thoughts.states[:, k]), min(count - 1, size)) for k in range(steps)]
    return pd.DataFrame(ranks, columns=["step", "effective_rank", "highest"])
