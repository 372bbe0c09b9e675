"""Where adapters come from: `--adapters`. A source is a line in `SOURCES` and a module here with:

works(experiment) -> list[Work]               the adapters to make, each different one once
make(experiment, works, saver, processes, adapters_per_batch) -> None
    makes those that `saver.needs`: `saver.begin(works, base)` once, then `saver.save(...)`
"""

from utils.sources import average, others, random_norm, trained

SOURCES = {
    "trained": trained,
    "average": average,
    "others": others,
    "random": random_norm,
}
