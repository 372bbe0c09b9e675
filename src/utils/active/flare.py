"""FLARE (Active Retrieval Augmented Generation, arXiv:2305.06983): look ahead by a sentence.

Built is FLARE_direct (section 3.2) with masked sentences as implicit queries (section 3.2.2): what
the paper takes for 2WikiMultihopQA, with theta 0.8 and beta 0.4. It needs nothing but the model
itself; questions as explicit queries were written by a second, larger model, and the variant of
section 3.1 by prompts that teach a model to search. The first sentence is written with passages
that the question finds, every later look-ahead without any (section 3.3).

The authors' software differs: it leaves the last passages in the prompt while it looks ahead. So
does the reimplementation in the software of DRAGIN, with which its authors compare: no passages for
the first sentence, a threshold for the mean or largest 1 - probability, no beta.
"""

import re

from utils.active.texts import Ahead
from utils.recipe import Recipe


def flare(aheads: list[Ahead], recipe: Recipe, model: object) -> list[tuple[int, str] | None]:
    """The first sentence that has a token with a probability below theta (section 3.2.1), and it
    without its tokens below beta as the query. Without a word left there is no query."""
    return [_need(ahead, recipe.flare_theta, recipe.flare_beta) for ahead in aheads]


flare.begins = True


def _need(ahead: Ahead, theta: float, beta: float) -> tuple[int, str] | None:
    for number, sentence in enumerate(ahead.sentences):
        own = range(sentence.start, sentence.end)
        if min(ahead.probabilities[token] for token in own) >= theta:
            continue
        kept = [ahead.pieces[t] if ahead.probabilities[t] >= beta else " " for t in own]
        query = " ".join("".join(kept).split())
        if re.search(r"\w", query):
            return number, query
    return None
