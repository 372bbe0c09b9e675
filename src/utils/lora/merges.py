"""How the adapters of a question's passages become one: `--merge`.

A merge takes the k adapters in the order of the passages, the passages' entries of `data_aug`
(with "passage", "rewrite", "qa" and, if they are there, the hit's "score", "id" and "title"), and
`base`, which loads the adapter that all of them started from. It gives one adapter of any rank. To
add one: a function here and a line in `MERGES`. A merge that needs a key of the entries names it in
its attribute `needs`; passages without it are refused before a model is loaded.
"""

from collections.abc import Callable

from utils.lora.bank import Adapter, WeightedSum

Entries = list[dict]
Base = Callable[[], Adapter]


def weighted(adapters: list[Adapter], weights: list[float]) -> Adapter:
    """One adapter whose delta is the weighted sum of the deltas: A `[k * rank, in]` and
    B `[out, k * rank]`, concatenated along the rank (`combination_type="cat"` of `peft`). Those of
    one pool have the same A: the sum of their B is as much, at the rank of one."""
    first, *others = adapters
    if others and all(one is not first and _share_A(first, one) for one in others):
        pairs = list(zip(weights, adapters, strict=True))
        return {n: (A, sum(w * one[n][1] for w, one in pairs)) for n, (A, _) in first.items()}
    return WeightedSum(adapters, weights)


def _share_A(one: Adapter, other: Adapter) -> bool:
    """Whether these are passages' adapters of one pool: a matrix A is the same tensor."""
    name = next(iter(one))
    return one[name][0] is other[name][0]


def total(adapters: list[Adapter], passages: Entries, base: Base) -> Adapter:
    """The sum of the deltas (paper, section 3.3)."""
    return weighted(adapters, [1.0] * len(adapters))


def mean(adapters: list[Adapter], passages: Entries, base: Base) -> Adapter:
    """The mean of the deltas: for passages that share a pool, whose weights then still sum to 1."""
    return weighted(adapters, [1.0 / len(adapters)] * len(adapters))


def base_once(adapters: list[Adapter], passages: Entries, base: Base) -> Adapter:
    """The sum of the base's delta and of what each passage changed in it: the plain sum holds the
    delta of a warmed-up base k times. The rank is `(k + 1) * rank`."""
    return weighted([*adapters, base()], [1.0] * len(adapters) + [1.0 - len(adapters)])


def score(adapters: list[Adapter], passages: Entries, base: Base) -> Adapter:
    """The sum of the deltas, weighted by the retrieval scores, which are made to sum to k. A score
    below 0, as a cosine may be, counts as 0; without any above 0 all weigh the same."""
    scores = [max(0.0, entry["score"]) for entry in passages]
    whole = sum(scores)
    weights = [len(scores) * one / whole if whole else 1.0 for one in scores]
    return weighted(adapters, weights)


score.needs = ("score",)


MERGES = {
    "sum": total,
    "mean": mean,
    "base_once": base_once,
    "score": score,
}


def scaled(adapter: Adapter, scale: float) -> Adapter:
    """The adapter whose delta is `scale` times as large: `--merge_scale`."""
    return weighted([adapter], [scale])
