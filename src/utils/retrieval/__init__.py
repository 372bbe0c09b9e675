"""Engines that find passages. Each is a module of this package with three functions:

    add_flags(parser, building)   its flags; `building` for prep_elastic.py, else for augment.py
    build(corpus, options)        index the corpus's file -> (number of rows, where the index is);
                                  0 rows: the index of this corpus is there already
    open_index(options)           the index -> an object as `PassageIndex` describes it

`options` are the parsed flags. Heavy packages are imported inside the functions: flags come first.
What engines share is in `corpus.py` and, for an index in a folder, `folders.py`.
"""

import argparse
from collections.abc import Iterator
from types import ModuleType
from typing import Protocol

from utils.retrieval import dense, elasticsearch, embedded
from utils.running import InputError

ENGINES: dict[str, ModuleType] = {
    "embedded": embedded,
    "dense": dense,
    "elasticsearch": elasticsearch,
}


def add_index_flags(
    parser: argparse.ArgumentParser, group: argparse._ArgumentGroup, golden: str = ""
) -> None:
    """`--engine`, `--index_name` in `group`, and the flags of every engine that opens an index.
    With `golden`, which says what it means, there is an engine of that name too."""
    names, meaning = [*ENGINES] + ["golden"] * bool(golden), f"search engine{golden}"
    group.add_argument("--engine", choices=names, default="embedded", help=meaning)
    group.add_argument("--index_name", default="wiki", help="index made by prep_elastic.py")
    for engine in ENGINES.values():
        engine.add_flags(parser, building=False)


def open_index(options: argparse.Namespace, topk: int, flag: str) -> "PassageIndex":
    """The index that the flags name. Raises `InputError` if it cannot be used or holds fewer
    passages than `topk`, which `flag` asks of it."""
    index = ENGINES[options.engine].open_index(options)
    if (rows := index.identity.get("rows", topk)) < topk:
        raise InputError(
            f"the index {options.index_name} holds {rows} passages, fewer than {flag} {topk}; give "
            "a smaller number, or another --index_name"
        )
    return index


def index_settings(options: argparse.Namespace, index: "PassageIndex | None") -> dict:
    """Which index was asked, as it is kept in files."""
    made_of = {"name": options.index_name, **index.identity} if index else None
    return {"engine": options.engine, "index": made_of}


class PassageIndex(Protocol):
    """What `open_index` returns."""

    identity: dict  # JSON values: what the index was made of

    def passages(self) -> Iterator[dict]:
        """All passages `{"id": str, "title": str, "text": str}` in the corpus's order, repeated
        texts too. Raises `InputError` if the engine does not know the order."""

    def search(self, questions: list[str], topk: int) -> list[list[dict]]:
        """The `topk` best passages of each question, in the order of `questions`.

        A hit is `{"id": str, "title": str, "text": str, "score": float}`. Hits come best first,
        equal scores in the corpus's order; of passages with the same text only the first is kept.
        A question that an engine cannot search for has none, with a warning.
        """
