"""Engines that find passages. Each is a module of this package with three functions:

    add_flags(parser, building)   its flags; `building` for prep_elastic.py, else for augment.py
    build(corpus, options)        index the corpus's file -> (number of rows, where the index is);
                                  0 rows: the index of this corpus is there already
    open_index(options)           the index -> an object as `PassageIndex` describes it

`options` are the parsed flags. Heavy packages are imported inside the functions: flags come first.
What engines share is in `corpus.py` and, for an index in a folder, `folders.py`.
"""

from importlib import import_module
from types import ModuleType
from typing import Protocol

ENGINES: dict[str, ModuleType] = {
    "embedded": import_module("utils.retrieval.embedded"),
    "dense": import_module("utils.retrieval.dense"),
    "elasticsearch": import_module("utils.retrieval.elasticsearch"),
}


class PassageIndex(Protocol):
    """What `open_index` returns."""

    identity: dict  # JSON values: what the index was made of

    def search(self, questions: list[str], topk: int) -> list[list[dict]]:
        """The `topk` best passages of each question, in the order of `questions`.

        A hit is `{"id": str, "title": str, "text": str, "score": float}`. Hits come best first,
        equal scores in the corpus's order; of passages with the same text only the first is kept.
        A question that an engine cannot search for has none, with a warning.
        """
