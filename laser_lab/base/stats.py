"""Intervals and paired tests in which seeds and questions are both samples."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

NOT_TRAINED = -1
"""The ``seed`` of what no training made: BM25, a model as it was pretrained."""


def interval(values: ArrayLike, seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95 % percentile bootstrap interval of (n,) values, or of (seeds, questions), where both are resampled
    (Owen, "The pigeonhole bootstrap", 2007). Too narrow with two or three seeds that disagree: claims about a
    difference rest on :func:`compare`."""
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if values.size < 2 or np.ptp(values) == 0:
        return mean, mean, mean
    options = dict(method="percentile", rng=np.random.default_rng(seed), n_resamples=2000)
    if values.ndim == 1 or 1 in values.shape:
        found = stats.bootstrap((values.ravel(),), np.mean, **options)
    else:
        every_seed, every_question = (np.arange(size) for size in values.shape)

        def resampled(seeds: np.ndarray, questions: np.ndarray, axis: int = -1) -> np.ndarray:
            weights = (seeds[..., None] == every_seed).mean(axis=-2)
            return np.take_along_axis(weights @ values, questions, axis=axis).mean(axis=axis)

        found = stats.bootstrap((every_seed, every_question), resampled, vectorized=True, **options)
    return mean, float(found.confidence_interval.low), float(found.confidence_interval.high)


def proportion(hits: Sequence[bool]) -> tuple[float, float, float]:
    """Share of true `hits` and its 95 % Wilson interval."""
    found = stats.binomtest(int(np.sum(hits)), len(hits))
    limits = found.proportion_ci(method="wilson")
    return float(found.statistic), float(limits.low), float(limits.high)


def failure_rate(values: ArrayLike, threshold: float = 0.9) -> tuple[float, float, float]:
    """Share of trainings (a value each) below `threshold`, with its Wilson interval. ValueError: no values, or NaN."""
    values = np.asarray(values, dtype=float)
    if not values.size or np.isnan(values).any():
        raise ValueError(f"failure_rate needs a number per training, got {values.tolist()}")
    return proportion(values < threshold)


def summarise(frame: pd.DataFrame, by: Sequence[str], measure: str = "ndcg@10") -> pd.DataFrame:
    """Mean and :func:`interval` over seeds and queries per group: ``by..., measure, low, high, seeds, queries``.

    Args:
        frame: A row per seed and query: ``seed``, ``query_id``, `measure` and the columns of `by`.

    Raises:
        ValueError: A group's seeds do not have the same queries.
    """
    rows = []
    for key, group in frame.groupby(list(by), sort=False, dropna=False):
        table = group.pivot_table(index="seed", columns="query_id", values=measure).to_numpy()
        if np.isnan(table).any():
            raise ValueError(f"{key}: the seeds were not read on the same queries")
        rows.append([*key, *interval(table), *table.shape])
    return pd.DataFrame(rows, columns=[*by, measure, "low", "high", "seeds", "queries"])


def compare(frame: pd.DataFrame, pairs: str | Iterable[tuple[str, str]], by: str = "method") -> pd.DataFrame:
    """:func:`paired_test` of first minus second in nDCG@10, a row per pair. The seeds that both have are paired; a side
    that was not trained (its only seed is :data:`NOT_TRAINED`) stands against all seeds of the other.

    Args:
        frame: As for :func:`summarise`.
        pairs: Pairs of values of `by`, or one value to test all others against.

    Returns:
        ``first, second, difference, low, high, seeds, queries, least, most, p, p_adjusted``: `least` and `most` are the
        extreme differences by seed, ``p_adjusted`` is Benjamini-Hochberg over the rows.

    Raises:
        ValueError: An unknown name, no seed in common, or different queries.
    """
    tables = {name: t.pivot_table(index="seed", columns="query_id", values="ndcg@10") for name, t in frame.groupby(by)}
    if isinstance(pairs, str):
        pairs = [(name, pairs) for name in frame[by].unique() if name != pairs]
    rows = []
    for first, second in pairs:
        if missing := [name for name in (first, second) if name not in tables]:
            raise ValueError(f"no {by} {missing[0]!r}; there are {', '.join(map(str, tables))}")
        left, right = tables[first], tables[second]
        if not left.columns.equals(right.columns) or left.isna().any(axis=None) or right.isna().any(axis=None):
            raise ValueError(f"{first} and {second} were not read on the same queries")
        if NOT_TRAINED not in (*left.index, *right.index):
            left, right = left.align(right, join="inner", axis=0)
        differences = left.to_numpy() - right.to_numpy()
        if not len(differences):
            raise ValueError(f"{first} and {second} have no seed in common")
        mean, low, high, p = paired_test(differences)
        by_seed = differences.mean(axis=1)
        rows.append([first, second, mean, low, high, *differences.shape, by_seed.min(), by_seed.max(), p])
    columns = "first second difference low high seeds queries least most p".split()
    result = pd.DataFrame(rows, columns=columns)
    return result.assign(p_adjusted=stats.false_discovery_control(result["p"]) if rows else [])


def paired_test(differences: ArrayLike) -> tuple[float, float, float, float]:
    """Mean of paired (seeds, questions) differences, its 95 % interval and the two-sided p that it is 0.

    Both samples are drawn anew and their errors added: the questions' means by the bootstrap; the seeds', which are too
    few for it, from Student's t with seeds - 1 degrees of freedom. What a training does on one question alone is
    counted once, with the seeds. In simulations without a difference (2 to 10 seeds, 30 or 400 questions) p is below
    0.05 in 1 to 8 %; with 3 or 5 seeds, drawing both with replacement gave 9 to 23 %, averaging over seeds first 33 to
    88 %. With one seed: the bootstrap over questions and a permutation test.
    """
    differences = np.atleast_2d(np.asarray(differences, dtype=float))
    seeds, questions = differences.shape
    if min(seeds, questions) == 1:
        return *interval(differences), sign_flip(differences.ravel())
    mean, of_seeds, of_questions = differences.mean(), differences.mean(axis=1), differences.mean(axis=0)
    if np.ptp(differences) <= 1e-12 * abs(mean):
        return float(mean), float(mean), float(mean), float(mean == 0)
    rest = differences - of_seeds[:, None] - of_questions + mean
    noise = (rest**2).sum() / ((seeds - 1) * (questions - 1)) / seeds  # in the variance of a question's mean
    share = max(0.0, 1 - noise / of_questions.var(ddof=1)) if np.ptp(of_questions) else 0.0
    rng, draws = np.random.default_rng(0), 9999
    found = stats.bootstrap((of_questions,), np.mean, method="percentile", n_resamples=draws, batch=500, rng=rng)
    errors = np.copysign(np.sqrt(share), mean) * (found.bootstrap_distribution - mean)  # the same for -differences
    errors = np.sort(np.abs(errors + rng.standard_t(seeds - 1, draws) * of_seeds.std(ddof=1) / np.sqrt(seeds)))
    reach = errors[-(5 * (draws + 1) // 100 - 1)]  # p < 0.05 just where the interval leaves out 0
    p = (1 + np.sum(errors >= abs(mean))) / (draws + 1)
    return float(mean), float(mean - reach), float(mean + reach), float(p)


def sign_flip(differences: ArrayLike) -> float:
    """p of the two-sided permutation test of paired differences; 1 where all are 0."""
    differences = np.asarray(differences, dtype=float)
    if not differences.any():
        return 1.0
    found = stats.permutation_test(
        (differences,),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        batch=500,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)
