"""How sure a mean score is: its bootstrap interval, and a paired test of two methods.

Both are the textbook procedures, drawn by counts instead of by elements: scores of questions take
few distinct values, so how often each is drawn decides the mean. A data set of 14,000 questions
then costs milliseconds; scipy, which draws every element, is the oracle in the tests.
"""

from collections.abc import Sequence

import numpy as np

SAMPLES = 10_000
LEVEL = 0.95  # of the intervals; a p-value below 1 - LEVEL is called significant
DECIMALS = 12  # differences that agree this far are one value: 0.3 - 0.1 and 0.2


def bootstrap_interval(
    values: Sequence[float], samples: int = SAMPLES, seed: int = 0
) -> tuple[float, float]:
    """The 95% percentile bootstrap interval of the mean of `values`, as (low, high).

    `samples` means are drawn with replacement over the questions. The same `seed` gives the same
    interval, in whatever order the values come. Raises `ValueError` where there is no value or one
    is not finite.
    """
    values = _finite(values)
    distinct, counts = np.unique(values, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(values.size, counts / values.size, size=samples)
    means = draws @ distinct / values.size
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired_test(
    a: Sequence[float], b: Sequence[float], samples: int = SAMPLES, seed: int = 0
) -> float:
    """The two-sided p-value of a paired randomisation test of equal means of `a` and `b`.

    `a[i]` and `b[i]` are the scores of two methods on question i. Under the null hypothesis the two
    are exchangeable, so the sign of each difference is a coin's toss (Fisher's sign flips; Noreen
    1989). `samples` tosses of all signs are drawn, and the p-value counts the observed one among
    them, so it is never 0. Symmetric in `a` and `b`; the same `seed` gives the same value.
    Raises `ValueError` where the lengths differ, are 0, or a score is not finite.
    """
    a, b = _finite(a), _finite(b)
    if a.size != b.size:
        raise ValueError(f"paired scores of {a.size} and of {b.size} questions")
    differences = np.round(a - b, DECIMALS)
    sizes, counts = np.unique(np.abs(differences), return_counts=True)
    plus = np.random.default_rng(seed).binomial(counts, 0.5, size=(samples, counts.size))
    sums = np.abs((2 * plus - counts) @ sizes)
    as_far = sums >= abs(differences.sum()) - 10.0**-DECIMALS * a.size
    return float((1 + as_far.sum()) / (1 + samples))


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError("scores must be a list of finite numbers that is not empty")
    return array
