"""(for `serving.py`) From which passage length on `prag` costs less per question than `icl`."""

import random
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

from utils.running import InputError

if TYPE_CHECKING:
    from utils.session import Session

PASSAGES = 3


def in_turn(ways: dict[str, Callable], rounds: int) -> dict[str, list]:
    """What each way gives in each round, the first one left out."""
    found = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            value = way()
            if number:
                found[name].append(value)
    return found


def crossover(session: "Session", size: int, lengths: list[int], repetitions: int) -> dict:
    """Seconds per question, `size` at once, of `prag` and of `icl` by the passages' tokens."""
    from utils.session import Request, Row

    most = session.recipe.max_new_tokens
    session.model.generation_config.min_new_tokens = most  # else an answer of nonsense ends sooner
    chosen = random.Random(0)
    plain = session.encoder.question("Who was the first to see it?", [])
    known = range(len(session.experiment.tokenizer) // 2, len(session.experiment.tokenizer))
    folders = [(one.folder, one.entry) for one in session.by_text.values() if one.folder]
    if len(folders) < PASSAGES:
        raise InputError(f"{len(folders)} passages have adapters; encode {PASSAGES} at least")
    request = Request("", session.recipe, PASSAGES)

    def answer(length: int) -> float:
        began = time.perf_counter()
        rows = []
        session.merger.read.cache_clear()
        for number in range(size):
            first = PASSAGES * number
            own = [folders[(first + k) % len(folders)] for k in range(PASSAGES)]
            merged = None if length else session.merger.merge(own, session.recipe)
            added = chosen.choices(known, k=PASSAGES * length)
            prompt = [*plain[:1], *added, *plain[1:]]
            rows.append(Row(request, [], prompt, merged, False))
        answers = session.answer(rows)
        seconds = (time.perf_counter() - began) / size
        if any(one.tokens < most for one in answers):
            raise InputError("an answer has ended early; use another --max_new_tokens")
        return seconds

    ways = {str(length): lambda length=length: answer(length) for length in (0, *lengths)}
    rounds = in_turn(ways, repetitions)
    prag, *icl = (statistics.median(one) for one in rounds.values())
    found = meeting(lengths, icl, prag)
    shown = ", ".join(f"{n}: {s:.4f}" for n, s in zip(lengths, icl, strict=True))
    print(
        f"{size} at once: prag {prag:.4f} s a question, icl {shown}; crossover: {found}", flush=True
    )
    return {"batch": size, "prag": prag, "icl": icl, "crossover": found, "rounds": rounds}


def meeting(lengths: list[int], icl: list[float], prag: float) -> float | str:
    """The length, between two that were measured, from which on `icl` costs more than `prag`."""
    if icl[0] > prag:
        return "below the shortest"
    points = list(zip(lengths, icl, strict=True))
    for (a, before), (b, after) in pairwise(points):
        if before <= prag < after:
            return round(a + (b - a) * (prag - before) / (after - before), 1)
    return "above the longest"
