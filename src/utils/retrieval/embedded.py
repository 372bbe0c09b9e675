"""Engine `embedded`: BM25 in a folder, without a server.

BM25 (k1 = 1.2, b = 0.75) of title and text, analysed by `english.py`: the better field plus half of
the other one. Tantivy's statistics of a field count all passages, Lucene's those that have a term
in it: `_filler` and `EmbeddedIndex._weight` make the scores equal.
"""

import argparse
import hashlib
import math
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from utils.files import relative, remove_busy, writing_folder
from utils.layout import index_folder
from utils.retrieval.corpus import (
    different_texts,
    hashed_line,
    read_corpus,
    settle_ties,
    tied,
    worked_on,
)
from utils.retrieval.folders import exists_already, read_manifest, refusal, write_manifest

if TYPE_CHECKING:
    from tantivy import Document, Query, Schema, Searcher

FIELDS = ["title", "txt"]
# Another analyzer means that the terms of an index may differ from a question's.
FORMAT = {"format": 2, "fields": FIELDS, "analyzer": "lucene-english-1"}
ORIGINALS = ["id", "title", "text"]
FILLER = "."  # a term that no text has
WRITER_BYTES = 256_000_000
ROWS_PER_TASK = 1000
BYTES_WORTH_WORKERS = 5_000_000  # starting workers takes longer than analysing a smaller corpus

Terms = dict[str, str]  # field -> a row's terms, joined by spaces


def add_flags(parser: argparse.ArgumentParser, building: bool) -> None:
    """It has none."""


def build(corpus: Path, options: argparse.Namespace) -> tuple[int, str]:
    """Index `corpus` into `index/{index_name}` -> (number of rows, that folder)."""
    folder = index_folder(options.index_name)
    return build_index(corpus, folder, options.overwrite), relative(folder)


def open_index(options: argparse.Namespace) -> "EmbeddedIndex":
    """The index in `index/{index_name}`."""
    return EmbeddedIndex(index_folder(options.index_name))


class EmbeddedIndex:
    """A BM25 index in a folder, as `build_index` leaves it."""

    def __init__(self, folder: Path) -> None:
        """Raises `InputError` if the index is missing, damaged or made by something else."""
        manifest = read_manifest(folder, FORMAT)
        self.identity = {key: manifest[key] for key in ("source", "rows", "content", "analyzer")}
        try:
            self._searcher = _open(folder)
        except ValueError as error:
            raise refusal(folder, f"this tantivy cannot open it: {error}") from None
        self._schema, self._passages_with = _schema(), manifest["passages_with"]

    def search(self, questions: list[str], topk: int) -> list[list[dict]]:
        """See `PassageIndex.search`."""
        from utils.retrieval.english import question_terms

        found = map(question_terms, questions)
        return [self._best(self._query(terms), topk) if terms else [] for terms in found]

    def passages(self) -> Iterator[dict]:
        """See `PassageIndex.passages`."""
        from tantivy import Order, Query

        rows = self.identity["rows"]
        in_order = {"order_by_field": "row", "order": Order.Asc}
        found = self._searcher.search(Query.all_query(), rows, count=False, **in_order)
        for _, address in found.hits:
            yield self._stored(address)

    def _query(self, terms: list[str]) -> "Query":
        """The better field of the two, either with any of `terms`; no query syntax is parsed."""
        from tantivy import Occur, Query

        def weighted(field: str, term: str) -> tuple[Occur, Query]:
            query = Query.term_query(self._schema, field, term)
            return Occur.Should, Query.boost_query(query, self._weight(field, term))

        fields = [Query.boolean_query([weighted(f, term) for term in terms]) for f in FIELDS]
        return Query.disjunction_max_query(fields, tie_breaker=0.5)

    def _weight(self, field: str, term: str) -> float:
        """What makes tantivy's inverse document frequency of `term` that of Lucene."""
        having = self._searcher.doc_freq(field, term)
        lucene, tantivy = (
            math.log(1 + (passages - having + 0.5) / (having + 0.5))
            for passages in (self._passages_with[field], self._searcher.num_docs)
        )
        return lucene / tantivy

    def _best(self, query: "Query", topk: int) -> list[dict]:
        limit = 2 * topk + 10
        while True:
            found = self._searcher.search(query, limit, count=False).hits
            # A common word can tie thousands of passages: only their rows are read.
            rows = self._searcher.fast_field_values("row", [address for _, address in found])
            scored = [(score, row, at) for (score, at), row in zip(found, rows, strict=True)]
            hits = (self._hit(at, score) for score, _, at in settle_ties(scored))
            best = different_texts(hits, topk)
            # Passages beyond the limit matter while duplicates leave gaps, and while one of them
            # could tie with the last hit and come before it in the corpus.
            enough = len(best) == topk and not tied(best[-1]["score"], found[-1][0])
            if enough or len(found) < limit:
                return best
            limit *= 4

    def _hit(self, address: object, score: float) -> dict:
        return self._stored(address) | {"score": score}

    def _stored(self, address: object) -> dict:
        stored = self._searcher.doc(address)
        return {key: stored.get_first(f"original_{key}").decode("utf-8") for key in ORIGINALS}


def _open(folder: Path) -> "Searcher":
    """Open it through links to its files: tantivy wants to lock the folder that it opens, which
    may be on a read-only disk. Once opened, the files are mapped and the links not needed."""
    from tantivy import Index

    links = Path(tempfile.mkdtemp())
    try:
        for file in folder.iterdir():
            if file.suffix != ".lock":
                (links / file.name).symlink_to(file.resolve())
        return Index.open(str(links)).searcher()
    finally:
        remove_busy(links)


def build_index(corpus: Path, folder: Path, overwrite: bool = False) -> int:
    """Index the passages of `corpus` (see `read_corpus`) into `folder`; the number of rows, 0 if
    this index is there already.

    The folder appears when the index is complete. Raises `InputError` for a bad corpus, and if
    `folder` has the index of another one and `overwrite` is off.
    """
    if exists_already(folder, overwrite, corpus, FORMAT):
        return 0
    with writing_folder(folder) as temporary:
        made_of = _write_index(corpus, temporary) | FORMAT
        made_of |= {name: version(name) for name in ("tantivy", "nltk", "regex")}
        write_manifest(temporary, made_of)
    return made_of["rows"]


def _write_index(corpus: Path, folder: Path) -> dict:
    """Index the rows of `corpus` into `folder`; what the manifest says about them."""
    from tantivy import Index

    rows, content = 0, hashlib.sha256()
    passages_with, tokens = dict.fromkeys(FIELDS, 0), dict.fromkeys(FIELDS, 0)
    try:
        # Leaving the block waits for tantivy's threads: none writes into a moved folder.
        with Index(_schema(), path=str(folder)).writer(heap_size=WRITER_BYTES) as writer:
            for row, terms in _analysed(corpus):
                passage_id, text, title = row
                content.update(hashed_line(row))
                for field, joined in terms.items():
                    passages_with[field] += joined != ""
                    tokens[field] += len(joined.split())
                writer.add_document(_document(rows, terms, id=passage_id, title=title, text=text))
                rows += 1
            if any(passages != rows for passages in passages_with.values()):
                writer.add_document(_filler(rows, passages_with, tokens))
            writer.commit()
    except ValueError as error:  # of tantivy, if its threads cannot write
        raise OSError(str(error)) from None
    return {
        "source": corpus.name,
        "bytes": corpus.stat().st_size,
        "rows": rows,
        "content": content.hexdigest()[:16],
        "passages_with": passages_with,
    }


def _schema() -> "Schema":
    from tantivy import SchemaBuilder

    builder = SchemaBuilder()
    for field in FIELDS:
        builder.add_text_field(field, tokenizer_name="whitespace", index_option="freq")
    for key in ORIGINALS:
        builder.add_bytes_field(f"original_{key}", stored=True)
    builder.add_unsigned_field("row", fast=True)
    return builder.build()


def _document(row: int, terms: Terms, **originals: str) -> "Document":
    from tantivy import Document

    document = Document()
    for field, joined in terms.items():
        document.add_text(field, joined)
    for key, value in originals.items():
        document.add_bytes(f"original_{key}", value.encode("utf-8"))
    document.add_unsigned("row", row)
    return document


def _filler(rows: int, passages_with: dict[str, int], tokens: dict[str, int]) -> "Document":
    """A last document that no question finds; with it each field's mean length is Lucene's. Tantivy
    divides a field's tokens by all `rows` + 1 documents, Lucene by those that have any."""
    terms = {}
    for field in FIELDS:
        mean = tokens[field] / max(1, passages_with[field])
        terms[field] = " ".join([FILLER] * round(mean * (rows + 1) - tokens[field]))
    return _document(rows, terms)


def _analysed(corpus: Path) -> Iterator[tuple[tuple[str, str, str], Terms]]:
    """Yield each row `(id, text, title)` with its terms, found by worker processes."""
    rows = read_corpus(corpus)
    if not corpus.is_file() or corpus.stat().st_size < BYTES_WORTH_WORKERS:
        yield from ((row, _terms([row])[0]) for row in rows)
        return
    workers = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")  # tantivy's threads would not survive a fork
    with ProcessPoolExecutor(workers, context, initializer=_start_worker) as pool:
        for block, terms in worked_on(rows, _terms, pool, ROWS_PER_TASK, 2 * workers):
            yield from zip(block, terms, strict=True)


def _terms(rows: list[tuple[str, str, str]]) -> list[Terms]:
    """The terms of each row's title and of its text."""
    from utils.retrieval.english import english_terms

    return [
        {"title": " ".join(english_terms(title)), "txt": " ".join(english_terms(text))}
        for _, text, title in rows
    ]


def _start_worker() -> None:
    """Leave Ctrl-C to the main process, and end with it however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
