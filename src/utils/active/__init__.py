"""Methods that retrieve while they answer. Each is a function of this package:

    method(aheads, recipe, model) -> for each look-ahead `(number, query)` or None

`aheads` are what the model would write next (`texts.Ahead`), one for each question; `number` is the
first of its sentences that needs passages, `query` what the engine is asked for them. With the
attribute `begins` the first sentence is written with passages that the question itself finds.
`rounds.py` does the rest, in batches: write, search, write that sentence again.
"""

from collections.abc import Callable

from utils.active.dragin import dragin
from utils.active.flare import flare

ACTIVE: dict[str, Callable] = {
    "flare": flare,
    "dragin": dragin,
}
