"""The bootstrap interval and the paired test, against scipy and by their properties."""

import statistics
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from utils.reporting.statistics import bootstrap_interval, paired_test

F1 = [0.0, 0.0, 0.0, 1.0, 1.0, 2 / 3, 0.5, 0.4, 0.8]


def f1_scores(n, seed, shift=0.0):
    """Scores as questions have them: few distinct values, many of them 0 or 1."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(n) < shift, 1.0, rng.choice(F1, n))


def scipy_test(a, b, **more):
    def difference(x, y, axis):
        return np.mean(x, axis=axis) - np.mean(y, axis=axis)

    return stats.permutation_test((a, b), difference, permutation_type="samples", rng=0, **more)


def test_the_standard_librarys_module_of_this_name_stays_reachable():
    assert statistics.fmean([1, 2]) == 1.5


@pytest.mark.parametrize(("n", "seed"), [(60, 1), (300, 2), (1000, 3)])
def test_the_interval_is_scipys(n, seed):
    scores = f1_scores(n, seed)
    expected = stats.bootstrap(
        (scores,), np.mean, n_resamples=20_000, method="percentile", batch=1000, rng=0
    ).confidence_interval
    width = expected.high - expected.low
    ours = bootstrap_interval(scores, 20_000)
    assert ours == pytest.approx((expected.low, expected.high), abs=0.03 * width)
    assert width == pytest.approx(2 * 1.96 * scores.std() / n**0.5, rel=0.05)


def test_the_interval_of_equal_scores_is_a_point_and_order_does_not_matter():
    assert bootstrap_interval([0.25] * 9) == (0.25, 0.25)
    scores = f1_scores(50, 4)
    assert bootstrap_interval(scores, 500, 7) == bootstrap_interval(scores[::-1], 500, 7)
    assert bootstrap_interval(scores, 500, 7) != bootstrap_interval(scores, 500, 8)


@pytest.mark.parametrize("shift", [0.0, 0.06, 0.15, 0.4])
def test_the_p_value_is_scipys_on_random_flips(shift):
    a, b = f1_scores(200, 5), f1_scores(200, 6, shift)
    expected = scipy_test(a, b, n_resamples=9_999, batch=1000).pvalue
    error = 4 * (2 * expected * (1 - expected) / 10_000) ** 0.5 + 1e-3
    assert paired_test(a, b) == pytest.approx(expected, abs=error)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(F1), st.sampled_from(F1)), min_size=1, max_size=10))
def test_the_p_value_is_scipys_exact_one_on_small_samples(pairs):
    """Here scipy goes through all 2^n flips."""
    a, b = (np.array(scores) for scores in zip(*pairs, strict=True))
    expected = 1.0 if len(pairs) == 1 else scipy_test(a, b, n_resamples=np.inf).pvalue
    p = paired_test(a, b)
    assert p == pytest.approx(expected, abs=0.025)
    assert paired_test(b, a) == p == paired_test(a, b)
    assert 0 < p <= 1


def test_equal_methods_never_differ_and_rounding_does_not_decide():
    assert paired_test([0.1, 0.9, 0.5], [0.1, 0.9, 0.5]) == 1.0
    # the differences are 0.2 and -0.2, but not in binary: each flip is as far as the observed one
    assert paired_test([0.3, 0.1], [0.1, 0.3]) == 1.0
    # a constant difference: only the two flips of all signs are as far
    assert paired_test([1.0] * 20, [0.0] * 20) == pytest.approx(1e-4, abs=1e-5)


def test_under_the_null_five_in_a_hundred_are_significant():
    p_values = [paired_test(f1_scores(80, i), f1_scores(80, 1000 + i), 999) for i in range(400)]
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.085


@pytest.mark.parametrize("scores", [[], [0.5, float("nan")], [[0.5]], [float("inf")]])
def test_scores_that_cannot_be_averaged_are_refused(scores):
    with pytest.raises(ValueError, match="finite numbers"):
        bootstrap_interval(scores)
    with pytest.raises(ValueError, match="finite numbers"):
        paired_test(scores, scores)


def test_scores_of_different_numbers_of_questions_are_not_paired():
    with pytest.raises(ValueError, match="of 2 and of 1 questions"):
        paired_test([0, 1], [1])


def test_a_large_report_takes_seconds():
    a, b = f1_scores(14_000, 8), f1_scores(14_000, 9)
    start = time.perf_counter()
    for _ in range(10):
        bootstrap_interval(a)
        paired_test(a, b)
        paired_test(b, a)
    assert time.perf_counter() - start < 5  # scipy: about 7 s for one of the tests
