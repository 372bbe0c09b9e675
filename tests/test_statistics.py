"""The bootstrap interval and the paired test, against scipy and by their properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from utils.reporting.statistics import bootstrap_interval, paired_test

F1 = [0.0, 0.0, 0.0, 1.0, 1.0, 2 / 3, 0.5, 0.4, 0.8]


def f1_scores(n, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(n) < shift, 1.0, rng.choice(F1, n))


def scipy_p(a, b, **more):
    how = {"permutation_type": "samples", "rng": 0, **more}
    return stats.permutation_test((a, b), lambda x, y, axis: (x - y).mean(axis), **how).pvalue


def test_the_interval_is_scipys():
    scores = f1_scores(300, 2)
    how = {"n_resamples": 20_000, "method": "percentile", "batch": 1000, "rng": 0}
    low, high = stats.bootstrap((scores,), np.mean, **how).confidence_interval
    ours = bootstrap_interval(scores, 20_000)
    assert ours == pytest.approx((low, high), abs=0.03 * (high - low))
    assert bootstrap_interval([0.25] * 9) == (0.25, 0.25)
    assert bootstrap_interval(scores, 500, 7) == bootstrap_interval(scores[::-1], 500, 7)
    assert bootstrap_interval(scores, 500, 7) != bootstrap_interval(scores, 500, 8)


@pytest.mark.parametrize("shift", [0.0, 0.06, 0.15])
def test_the_p_value_is_scipys_on_random_flips(shift):
    a, b = f1_scores(200, 5), f1_scores(200, 6, shift)
    expected = scipy_p(a, b, n_resamples=9_999, batch=1000)
    error = 4 * (2 * expected * (1 - expected) / 10_000) ** 0.5 + 1e-3
    assert paired_test(a, b) == pytest.approx(expected, abs=error)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(F1), st.sampled_from(F1)), min_size=2, max_size=10))
def test_the_p_value_is_scipys_exact_one_on_small_samples(pairs):
    a, b = np.array(pairs).T
    p = paired_test(a, b)
    assert p == pytest.approx(scipy_p(a, b, n_resamples=np.inf), abs=0.025)
    assert paired_test(b, a) == p == paired_test(a, b) and 0 < p <= 1


def test_rounding_does_not_decide_and_what_cannot_be_averaged_or_paired_is_refused():
    assert paired_test([0.1, 0.9, 0.5], [0.1, 0.9, 0.5]) == 1.0
    # the differences are 0.2 and -0.2, but not in binary: each flip is as far as the observed one
    assert paired_test([0.3, 0.1], [0.1, 0.3]) == 1.0
    # a constant difference: only the two flips of all signs are as far
    assert paired_test([1.0] * 20, [0.0] * 20) == pytest.approx(1e-4, abs=1e-5)
    for scores in ([], [0.5, float("nan")], [[0.5]]):
        with pytest.raises(ValueError, match="finite numbers"):
            bootstrap_interval(scores)
    with pytest.raises(ValueError, match="of 2 and of 1 questions"):
        paired_test([0, 1], [1])
