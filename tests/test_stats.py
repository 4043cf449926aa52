"""Intervals and paired tests: seeds and questions are both samples."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laser_lab.base.stats import (
    NOT_TRAINED,
    compare,
    failure_rate,
    interval,
    paired_test,
    proportion,
    sign_flip,
    summarise,
)


def table(values, methods=("a", "b")):
    """(method, seed, query) array to a frame."""
    return pd.DataFrame(
        dict(method=m, seed=s, query_id=f"q{q}", **{"ndcg@10": values[i, s, q]})
        for i, m in enumerate(methods)
        for s in range(values.shape[1])
        for q in range(values.shape[2])
    )


def test_intervals_hold_the_mean_and_narrow():
    rng = np.random.default_rng(0)
    for size in (5, 500):
        mean, low, high = interval(rng.random(size))
        assert low < mean < high
    assert high - low < 0.1
    assert interval([0.5]) == interval([0.5, 0.5]) == (0.5, 0.5, 0.5)


def test_summaries_count_seeds_and_queries():
    rng = np.random.default_rng(0)
    within = rng.random((1, 3, 50))
    apart = within + np.array([-0.3, 0, 0.3])[None, :, None]  # the seeds disagree
    one, other = (summarise(table(values, ["a"]), ["method"]).iloc[0] for values in (within, apart))
    assert (one.seeds, one.queries) == (3, 50)
    assert one["ndcg@10"] == pytest.approx(within.mean())
    assert other.high - other.low > 2 * (one.high - one.low), "seeds that disagree widen the interval"
    with pytest.raises(ValueError, match="same queries"):
        summarise(table(within, ["a"]).iloc[1:], ["method"])


def test_compare_finds_a_shift_and_not_noise():
    rng = np.random.default_rng(0)
    values = rng.random((3, 3, 80))
    values[1] = values[0] + 0.05 + 0.1 * rng.standard_normal((3, 80))
    found = compare(table(values, "abc"), "a").set_index("first")
    assert found.loc["b", "p_adjusted"] < 0.05 and found.loc["b", "low"] > 0
    assert found.loc["c", "p"] > 0.05 and found.loc["c", "low"] < 0 < found.loc["c", "high"]
    assert (found["p_adjusted"] >= found["p"]).all() and (found["second"] == "a").all()
    assert compare(table(np.ones((2, 1, 9))), "a")["p"].tolist() == [1.0]
    with pytest.raises(ValueError, match="there are a, b"):
        compare(table(values[:2]), "z")


def test_compare_sees_that_seeds_disagree():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.random((1, 1, 80)), 3, axis=0).repeat(3, axis=1) + 0.01 * rng.standard_normal((3, 3, 80))
    values[1] += 0.1  # with every seed
    values[2] += np.array([[0.3], [0.1], [-0.1]])  # as much on average
    found = compare(table(values, "abc"), [("b", "a"), ("c", "a")]).set_index("first")
    assert found.loc["b", "difference"] == pytest.approx(0.1, abs=0.005)
    assert found.loc["b", "low"] > 0.09 and found.loc["b", "p"] <= 1e-4
    assert found.loc["c", "difference"] == pytest.approx(0.1, abs=0.005)
    assert found.loc["c", "low"] < 0 and found.loc["c", "p"] > 0.2
    assert found.loc["c", ["least", "most"]].tolist() == pytest.approx([-0.1, 0.3], abs=0.01)
    assert (found["seeds"] == 3).all() and (found["queries"] == 80).all()


def test_compare_pairs_what_can_be_paired():
    values = np.arange(40.0).reshape(2, 2, 10) / 40
    frame = table(values, "ab")
    first = frame[(frame["method"] == "b") & (frame["seed"] == 0)]
    trained_once = compare(pd.concat([frame[frame["method"] == "a"], first]), [("a", "b")])
    assert trained_once["seeds"].item() == 1, "one training says nothing of others"
    assert trained_once["difference"].item() == pytest.approx(values[0, 0].mean() - values[1, 0].mean())
    untrained = first.assign(seed=NOT_TRAINED)
    both = pd.concat([frame[frame["method"] == "a"], untrained])
    found = compare(both, [("a", "b")])
    expected = values[0].mean(1) - values[1, 0].mean()
    assert found["seeds"].item() == 2 and found[["least", "most"]].to_numpy()[0] == pytest.approx(sorted(expected))
    assert compare(frame, []).empty
    with pytest.raises(ValueError, match="there are a, b"):
        compare(frame, [("a", "z")])
    with pytest.raises(ValueError, match="same queries"):
        compare(frame.drop(index=frame.index[-10:-9].append(frame.index[-20:-19])), [("a", "b")])
    with pytest.raises(ValueError, match="no seed in common"):
        compare(frame.assign(seed=frame["seed"] + 5 * (frame["method"] == "b")), [("a", "b")])


numbers = st.floats(-1, 1, allow_nan=False)


@settings(max_examples=25, deadline=None)
@given(st.lists(numbers, min_size=2, max_size=30))
def test_with_one_seed_a_paired_test_is_that_over_questions(values):
    mean, low, high, p = paired_test([values])
    assert (mean, low, high) == interval(values) and p == sign_flip(values)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 6), st.integers(2, 30), st.integers(0, 10**6), st.floats(0.01, 100))
def test_a_paired_test_has_no_direction_and_no_unit(seeds, questions, seed, unit):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((seeds, 1)) + rng.standard_normal((seeds, questions))
    mean, low, high, p = paired_test(values)
    assert low < mean < high and 0 <= p <= 1
    assert (p < 0.05) == (low > 0 or high < 0), "the interval and the test say the same"
    assert paired_test(-unit * values) == pytest.approx((-unit * mean, -unit * high, -unit * low, p))
    assert paired_test(values[rng.permutation(seeds)])[0] == pytest.approx(mean)


def test_seeds_that_do_not_differ_add_no_evidence():
    one = np.random.default_rng(0).standard_normal((1, 40)) + 0.3
    first, many = paired_test(one), paired_test(np.repeat(one, 5, axis=0))
    assert many[0] == pytest.approx(first[0]) and many[1:3] == pytest.approx(first[1:3], abs=0.05)
    assert many[3] == pytest.approx(first[3], abs=0.02)
    assert paired_test(np.zeros((3, 4))) == (0, 0, 0, 1)
    assert paired_test(np.ones((3, 4))) == (1, 1, 1, 0)


@pytest.mark.parametrize(
    ("seeds", "spread"), [(2, (0.1, 0.05, 0.1)), (3, (0.1, 0.05, 0.1)), (5, (0.05, 0.1, 0.2)), (5, (0.0, 0.2, 0.2))]
)
def test_false_positives_stay_rare_where_seeds_disagree(seeds, spread):
    """400 differences that are none, with effects of seed, question and both of these sizes."""
    rng = np.random.default_rng(0)
    ours, averaged, covered = [], [], []
    for _ in range(400):
        between, among, rest = (size * rng.standard_normal(shape)
                                for size, shape in zip(spread, ((seeds, 1), (1, 100), (seeds, 100))))  # fmt: skip
        values = between + among + rest
        mean, low, high, p = paired_test(values)
        over = values.mean(axis=0)  # what averaging over the seeds first sees
        ours.append(p < 0.05)
        covered.append(low <= 0 <= high)
        averaged.append(abs(over.mean()) > 1.984 * over.std(ddof=1) / 10)
    assert np.mean(ours) <= 0.1 and np.mean(covered) >= 0.9
    if spread[0]:
        assert np.mean(averaged) > 0.25, "the seeds do disagree here"


def test_a_difference_of_the_size_of_the_noise_is_found():
    """Power: five seeds that hardly differ find 0.05 among 300 questions as often as the test over questions does."""
    rng = np.random.default_rng(0)
    found = [
        paired_test(0.05 + 0.005 * rng.standard_normal((5, 1)) + 0.2 * rng.standard_normal((1, 300))
                    + 0.2 * rng.standard_normal((5, 300)))[3] < 0.05
        for _ in range(200)
    ]  # fmt: skip
    assert np.mean(found) > 0.9


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0, 1))
def test_failure_rate_counts_what_is_below(values, threshold):
    share, low, high = failure_rate(values, threshold)
    assert share == sum(value < threshold for value in values) / len(values) and low <= share <= high
    assert high - low > 0 and (share, low, high) == proportion([value < threshold for value in values])


def test_failure_rate_wants_numbers():
    assert failure_rate([0.2, 0.95, 0.99])[0] == pytest.approx(1 / 3)
    for wrong in ([], [0.5, float("nan")]):
        with pytest.raises(ValueError, match="a number per training"):
            failure_rate(wrong)
