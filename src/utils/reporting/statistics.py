"""How sure a mean score is: its bootstrap interval, and a paired test of two methods.

Both draw how often each of the few distinct scores occurs, which takes milliseconds.
"""

from collections.abc import Sequence

import numpy as np

Scores = Sequence[float]
LEVEL = 0.95  # of the intervals; a p-value below 1 - LEVEL is called significant
DECIMALS = 12  # differences that agree this far are one value: 0.3 - 0.1 and 0.2


def bootstrap_interval(values: Scores, samples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """The 95% percentile bootstrap interval (low, high) of the mean of `values`.

    `samples` means are drawn; the same `seed` gives the same interval in any order of the values.
    Raises `ValueError` if there is no value or one is not finite.
    """
    distinct, counts = np.unique(_finite(values), return_counts=True)
    size = counts.sum()
    draws = np.random.default_rng(seed).multinomial(size, counts / size, size=samples)
    low, high = np.quantile(draws @ distinct / size, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired_test(a: Scores, b: Scores, samples: int = 10_000, seed: int = 0) -> float:
    """The two-sided p-value of a paired randomisation test of equal means of `a` and `b`.

    `a[i]` and `b[i]` are two methods' scores on question i. `samples` times the sign of each
    difference is tossed (Fisher's sign flips; Noreen 1989). The observed signs count too, so that
    no p-value is 0. Raises `ValueError` if the lengths differ, are 0, or a score is not finite.
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


def cohens_kappa(a: Scores, b: Scores) -> float:
    """Cohen's kappa of two raters' verdicts 0 or 1 on the same answers: (p_o - p_e) / (1 - p_e),
    p_o being the share on which they agree and p_e the share on which they would by chance, each
    with its own share of ones (Cohen 1960). NaN if p_e is 1: both say the same of everything."""
    a, b = _finite(a), _finite(b)
    observed = float((a == b).mean())
    expected = float(a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean()))
    return (observed - expected) / (1 - expected) if expected < 1 else float("nan")


def _finite(values: Scores) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError("scores must be a list of finite numbers that is not empty")
    return array
