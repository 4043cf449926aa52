"""Where thoughts lie: what a linear probe reads at every layer and step, how steps resemble the explicit view, and
whether thoughts collapse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from laser_lab.base.stats import proportion
from laser_lab.data.hopworld import Composition
from laser_lab.probing.tracing import LayerThoughts
from laser_lab.thinking import Thoughts

if TYPE_CHECKING:
    import pandas as pd


# -- linear probes -------------------------------------------------------------------------------------------------


def hop_labels(compositions: Sequence[Composition]) -> dict[str, list[str]]:
    """What a thought about each HopWorld query may hold: target to a label per query. ``start``, ``bridge 1`` ... (the
    entity after each hop) and ``relation 1`` ... (in order of thinking).

    Raises:
        ValueError: The queries differ in depth, so that some have no such hop.
    """
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
    """Logistic regressions on standardised states: can a label be read linearly at this layer and step?

    A probe can also learn by heart. So each is compared with the *majority* label of the training texts, and with the
    same probe on a *control task* (Hewitt and Liang, 2019): random labels, drawn evenly from the same classes, which
    it can get right by chance only, once in ``classes`` times.

    Args:
        train_labels, test_labels: Target to a label per text, B of them, for a probe at every step; or to (B, K)
            labels, one per step, for one probe over all steps (which hop is a thought at?).

    Returns:
        A row per target, step and layer (0: before the first): ``target``, ``step``, ``layer``, ``accuracy`` on the
        test texts with its 95 % interval (Wilson) ``low`` and ``high``, ``majority``, ``control`` with
        ``control_low`` and ``control_high``, ``chance`` (1 / classes), ``classes`` and ``texts``.

    Raises:
        ValueError: The targets or steps of training and test differ, a target has fewer than two classes, or not a
            label per text.
    """
    import pandas as pd

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
    """(K, L+1, B_test): which test labels a probe gets right at each step and layer; (B, K, L+1, D) states."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

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
    """Linear centred kernel alignment of two sets of states of the same n texts, (n, D) and (n, D').

    1: the same up to rotation and scale. The debiased estimate (Kornblith et al., 2019; HSIC of Song et al., 2012) is
    0 on average for unrelated states, however few texts, and can fall slightly below. Constant states give NaN.

    Raises:
        ValueError: Fewer than four texts, or different numbers of them.
    """
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
    """Does step k resemble the state at the end of reasoning segment m? A row per ``step`` and ``segment``, with
    ``cka`` over texts.

    Args:
        segment_states: (B, M, D), of :func:`laser_lab.explicit.explicit_thoughts`, in the order of `thoughts`.
    """
    import pandas as pd

    rows = [
        (step + 1, segment + 1, cka(thoughts.states[:, step], segment_states[:, segment]))
        for step in range(thoughts.thinking_steps)
        for segment in range(segment_states.shape[1])
    ]
    return pd.DataFrame(rows, columns=["step", "segment", "cka"])


# -- drift and collapse --------------------------------------------------------------------------------------------


def drift(thoughts: Thoughts) -> pd.DataFrame:
    """How far each thought moves: a row per text and step with the cosine of h_k ``to_first`` state, ``to_previous``
    (NaN at the first step) and ``to_others``, the mean over the other texts' states at this step (1: collapsed)."""
    import pandas as pd

    unit = torch.nn.functional.normalize(thoughts.states.double(), dim=-1)
    count, steps, _ = unit.shape
    frames = []
    for k in range(steps):
        here = unit[:, k]
        others = (here @ here.sum(0) - 1) / (count - 1) if count > 1 else torch.full((count,), torch.nan)
        previous = (here * unit[:, k - 1]).sum(-1) if k else torch.full((count,), torch.nan)
        first = (here * unit[:, 0]).sum(-1)
        values = {"to_first": first, "to_previous": previous, "to_others": others}
        columns = {name: value.numpy() for name, value in values.items()}
        frames.append(pd.DataFrame({"text": range(count), "step": k + 1} | columns))
    return pd.concat(frames, ignore_index=True)


def effective_rank(states: Tensor) -> float:
    """How many directions n texts spread over, from 1 to min(n - 1, D): exp of the entropy of the normalised singular
    values of their centred (n, D) states (Roy and Vetterli, 2007). 0 where all states are the same."""
    values = torch.linalg.svdvals(states.double() - states.double().mean(0))
    if not values.sum() > 1e-9 * states.double().abs().max():
        return 0.0
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())


def effective_ranks(thoughts: Thoughts) -> pd.DataFrame:
    """:func:`effective_rank` of the states of every ``step``, and ``highest``, the most it could be."""
    import pandas as pd

    count, steps, size = thoughts.states.shape
    ranks = [(k + 1, effective_rank(thoughts.states[:, k]), min(count - 1, size)) for k in range(steps)]
    return pd.DataFrame(ranks, columns=["step", "effective_rank", "highest"])
