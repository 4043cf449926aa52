"""Statistics: intervals and paired tests over seeds and questions, by scipy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Mean and its 95 % percentile bootstrap interval over `values` (scipy); of one value, or equal ones, itself."""
    from scipy.stats import bootstrap

    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:
        return mean, mean, mean
    found = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(seed), n_resamples=2000)
    return mean, float(found.confidence_interval.low), float(found.confidence_interval.high)


def proportion(hits: Sequence[bool]) -> tuple[float, float, float]:
    """Share of true `hits` and its 95 % Wilson interval (scipy), which has a width even where all or none are."""
    from scipy.stats import binomtest

    hits = np.asarray(hits, dtype=bool)
    found = binomtest(int(hits.sum()), len(hits))
    limits = found.proportion_ci(method="wilson")
    return float(hits.mean()), float(limits.low), float(limits.high)


def summarise(frame: pd.DataFrame, by: Sequence[str], measure: str = "ndcg@10", seed: int = 0) -> pd.DataFrame:
    """Mean and 95 % bootstrap interval of `measure` per group: ``by..., measure, low, high, seeds, queries``.

    Seeds and queries are both samples: each resample draws seeds and, independently, queries (scipy).

    Raises:
        ValueError: A group's seeds were not all read on the same queries.
    """
    import pandas as pd
    from scipy.stats import bootstrap

    rows = []
    for key, group in frame.groupby(list(by), sort=False, dropna=False):
        table = group.pivot_table(index="seed", columns="query_id", values=measure).to_numpy()
        if np.isnan(table).any():
            raise ValueError(f"{key}: the seeds were not read on the same queries")
        seeds, queries = (np.arange(size) for size in table.shape)
        if np.ptp(table) == 0 or table.size == 1:
            low = high = table.mean()
        elif min(table.shape) == 1:
            low, high = interval(table.ravel(), seed)[1:]
        else:
            found = bootstrap(
                (seeds, queries),
                lambda s, q, table=table: table[np.ix_(s, q)].mean(),
                vectorized=False,
                method="percentile",
                n_resamples=2000,
                rng=np.random.default_rng(seed),
            ).confidence_interval
            low, high = found.low, found.high
        rows.append([*key, table.mean(), low, high, *table.shape])
    return pd.DataFrame(rows, columns=[*by, measure, "low", "high", "seeds", "queries"])


def compare(
    frame: pd.DataFrame, against: str, by: str = "method", measure: str = "ndcg@10", seed: int = 0
) -> pd.DataFrame:
    """Paired tests on per-query values: every `by` minus `against`, a row each.

    Per query the value is the mean over seeds; the test is scipy's permutation test of the paired differences (signs
    flipped), two-sided, and the interval is a 95 % bootstrap of their mean. ``p_adjusted`` controls the false
    discovery rate over the rows (Benjamini-Hochberg).

    Returns:
        ``by, against, difference, low, high, p, p_adjusted, queries``.

    Raises:
        ValueError: `against` is not there, or the queries differ.
    """
    import pandas as pd
    from scipy.stats import false_discovery_control

    table = frame.pivot_table(index="query_id", columns=by, values=measure)
    if against not in table:
        raise ValueError(f"no {by} {against!r}; there are {', '.join(map(str, table.columns))}")
    if table.isna().any(axis=None):
        raise ValueError("not every row was read on the same queries")
    rows = []
    for name in [name for name in frame[by].unique() if name != against]:
        differences = (table[name] - table[against]).to_numpy()
        p = sign_flip(differences, seed)
        rows.append([name, against, *interval(differences, seed), p])
    result = pd.DataFrame(rows, columns=[by, "against", "difference", "low", "high", "p"])
    result["p_adjusted"] = false_discovery_control(result["p"]) if len(result) else []
    return result.assign(queries=len(table))


def sign_flip(differences: Sequence[float], seed: int = 0) -> float:
    """p of the two-sided permutation test of paired differences, their signs flipped (scipy); 1 where all are 0."""
    from scipy.stats import permutation_test

    differences = np.asarray(differences, dtype=float)
    if not differences.any():
        return 1.0
    found = permutation_test(
        (differences,),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        batch=500,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def contrasts(
    frame: pd.DataFrame, pairs: Iterable[tuple[str, str]], by: str = "method", measure: str = "ndcg@10", seed: int = 0
) -> pd.DataFrame:
    """Chosen pairs on per-query values: the first minus the second, a row each. As :func:`compare`, but the interval
    is over seeds too (:func:`summarise`), which widens it where the seeds disagree.

    A side with a single seed stands against every seed of the other; else the seeds that both have are paired.

    Returns:
        ``first, second, difference, low, high, seeds, queries, least, most, p, p_adjusted``: `least` and `most` are
        the ends of the differences by seed; the p-values are adjusted over the pairs (Benjamini-Hochberg).

    Raises:
        ValueError: A name of a pair is not there, or the two have no seed in common, or other queries.
    """
    import pandas as pd
    from scipy.stats import false_discovery_control

    tables = {name: t.pivot_table(index="seed", columns="query_id", values=measure) for name, t in frame.groupby(by)}
    rows = []
    for first, second in pairs:
        if missing := [name for name in (first, second) if name not in tables]:
            raise ValueError(f"no {by} {missing[0]!r}; there are {', '.join(map(str, tables))}")
        left, right = tables[first], tables[second]
        if not left.columns.equals(right.columns):
            raise ValueError(f"{first} and {second} were not read on the same queries")
        if len(left) > 1 and len(right) > 1:
            left, right = left.align(right, join="inner", axis=0)
        difference = left.to_numpy() - right.to_numpy()
        if not len(difference):
            raise ValueError(f"{first} and {second} have no seed in common")
        long = pd.DataFrame(difference).melt(ignore_index=False, var_name="query_id", value_name="difference")
        long = long.rename_axis("seed").reset_index().assign(first=first, second=second)
        found = summarise(long, ["first", "second"], "difference", seed)
        by_seed = difference.mean(axis=1)
        p = sign_flip(difference.mean(axis=0), seed)
        rows.append(found.assign(least=by_seed.min(), most=by_seed.max(), p=p))
    if not rows:
        columns = "first second difference low high seeds queries least most p p_adjusted"
        return pd.DataFrame(columns=columns.split())
    result = pd.concat(rows, ignore_index=True)
    return result.assign(p_adjusted=false_discovery_control(result["p"]))
