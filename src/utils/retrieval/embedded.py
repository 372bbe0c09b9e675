"""BM25 retrieval: a corpus of passages becomes an index, questions get their best passages.

An engine is a class with one method, `search(questions, topk)`, and `open_retriever` is the only
place that knows the engines by name. They rank alike: a passage's title and text are analysed as
English (`english.py`), each field is scored by BM25 (k1 = 1.2, b = 0.75) with statistics over the
whole index, and a passage counts with its better field plus half of the other one.

The embedded engine keeps its index in a folder and needs no server: tantivy indexes the terms that
`english.py` finds. Tantivy's statistics of a field count all passages, Lucene's those that have
a term in it, which makes a difference for titles. Two corrections make the scores equal Lucene's:
`_filler` to the mean length, `EmbeddedIndex._weight` to the inverse document frequency.
"""

import hashlib
import math
import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Protocol

from tantivy import Document, Index, Occur, Query, Schema, SchemaBuilder

from utils.files import hash_json, read_json, relative, write_json, writing_folder
from utils.layout import index_folder
from utils.retrieval import english
from utils.retrieval.corpus import read_corpus
from utils.retrieval.elasticsearch import Connection, ElasticsearchIndex
from utils.retrieval.english import english_terms
from utils.running import InputError

FIELDS = ["title", "txt"]
FORMAT = {"format": 2, "fields": FIELDS, "analyzer": english.VERSION}
MANIFEST = "manifest.json"
FILLER = "."  # a term that no text has
TIE_BREAKER = 0.5
# Single-precision sums of the same terms in another order differ by a few parts in 10 million.
SCORE_TOLERANCE = 2e-6
WRITER_BYTES = 256_000_000
ROWS_PER_TASK = 1000
# Starting worker processes takes longer than analysing a smaller corpus.
BYTES_WORTH_WORKERS = 5_000_000
KNOWN_CORPORA = {"wiki": "data/dpr/psgs_w100.tsv.gz", "demo": "data/demo/corpus.tsv"}

Row = tuple[str, str, str]  # id, text, title


class Retriever(Protocol):
    """What every engine offers; `identity` says what the index was made of."""

    identity: dict

    def search(self, questions: list[str], topk: int) -> list[list[dict]]:
        """The `topk` best passages of each question (see `EmbeddedIndex.search`)."""


def open_retriever(engine: str, index_name: str, connection: Connection | None = None) -> Retriever:
    """The index `index_name` of `engine`, ready for `search`.

    `engine` is "embedded" or, with a `connection`, "elasticsearch". Raises `InputError` for an
    unknown engine and for an index that is missing or damaged, with the command that builds it.
    """
    if engine == "embedded":
        return EmbeddedIndex(index_folder(index_name))
    if engine == "elasticsearch" and connection:
        return ElasticsearchIndex(connection, index_name)
    raise InputError(
        f"engine {engine!r} is not known; use --engine embedded or --engine elasticsearch"
    )


class EmbeddedIndex:
    """A BM25 index in a folder, as `build_index` leaves it."""

    def __init__(self, index_folder: Path) -> None:
        """Open `index_folder`.

        Raises `InputError` where it is missing, damaged or made by something else.
        """
        folder = Path(index_folder)
        if not folder.is_dir():
            raise InputError(
                f"there is no index at {relative(folder)}; build it with: {_build_command(folder)}"
            )
        manifest = _read_manifest(folder)
        self.identity = {key: manifest[key] for key in ("source", "rows", "content", "analyzer")}
        _check_files(folder, manifest)
        try:
            index = Index.open(str(folder))
        except (ValueError, OSError) as error:
            raise _refusal(folder, f"tantivy cannot open it: {error}") from None
        self._schema = _schema()
        self._searcher = index.searcher()
        self._passages_with = manifest["passages_with"]
        fillers = int(_needs_filler(manifest["rows"], self._passages_with))
        if self._searcher.num_docs != manifest["rows"] + fillers:
            passages = self._searcher.num_docs - fillers
            raise _refusal(folder, f"it holds {passages} of {manifest['rows']} passages")

    def search(self, questions: list[str], topk: int) -> list[list[dict]]:
        """The `topk` best passages of each question, in the order of `questions`.

        A hit is `{"id": str, "title": str, "text": str, "score": float}`. Hits come best first,
        equal scores in the corpus's order; of passages with the same text only the first is kept.
        There are fewer than `topk` hits where fewer passages share a word with the question, and
        none, with a warning, where the question has no word at all.

        Raises `InputError` where `topk` is less than 1.
        """
        if topk < 1:
            raise InputError(
                f"topk is {topk}, but a search gives at least 1 passage; use 1 or more"
            )
        results = []
        for question in questions:
            terms = english_terms(question)
            if not terms:
                warnings.warn(
                    f"the question {question!r} has no word to search for: no passage is found",
                    stacklevel=2,
                )
            results.append(self._best(self._query(terms), topk) if terms else [])
        return results

    def _query(self, terms: list[str]) -> Query:
        """The best field of the two, either with any of `terms`.

        No query syntax is parsed, so nothing in a question acts as an operator.
        """
        fields = []
        for field in FIELDS:
            weighted = []
            for term in terms:
                query = Query.term_query(self._schema, field, term)
                weighted.append(Query.boost_query(query, self._weight(field, term)))
            fields.append(Query.boolean_query([(Occur.Should, query) for query in weighted]))
        return Query.disjunction_max_query(fields, tie_breaker=TIE_BREAKER)

    def _weight(self, field: str, term: str) -> float:
        """What makes tantivy's inverse document frequency of `term` that of Lucene."""
        having = self._searcher.doc_freq(field, term)
        lucene, tantivy = (
            math.log(1 + (passages - having + 0.5) / (having + 0.5))
            for passages in (self._passages_with[field], self._searcher.num_docs)
        )
        return lucene / tantivy

    def _best(self, query: Query, topk: int) -> list[dict]:
        """The `topk` best passages with different texts."""
        limit = 2 * topk + 10
        while True:
            found = self._searcher.search(query, limit, count=False).hits
            # A common word can tie thousands of passages: only their rows are read.
            rows = self._searcher.fast_field_values("row", [address for _, address in found])
            scored = [
                (score, row, address) for (score, address), row in zip(found, rows, strict=True)
            ]
            hits: dict[str, dict] = {}
            for score, _, address in _settle_ties(scored):
                document = self._searcher.doc(address)
                hit = {
                    key: document.get_first(f"original_{key}").decode("utf-8")
                    for key in ("id", "title", "text")
                }
                hits.setdefault(hit["text"], hit | {"score": score})
                if len(hits) == topk:
                    break
            best = list(hits.values())
            # Passages beyond the limit matter while duplicates leave gaps, and while one of them
            # could tie with the last hit and stand before it in the corpus.
            enough = len(best) == topk and not _tied(best[-1]["score"], found[-1][0])
            if enough or len(found) < limit:
                return best
            limit *= 4


def build_index(corpus: Path, index_folder: Path, overwrite: bool = False) -> int:
    """Index the passages of `corpus` (see `read_corpus`) into `index_folder`; the number of rows.

    The folder appears when the index is complete; with `overwrite` it takes the place of an older
    one.

    Raises `InputError` for an unreadable corpus, for a bad row (by its line) and where an index
    stands in `index_folder` already.
    """
    corpus, folder = Path(corpus), Path(index_folder)
    ours = any((folder / name).is_file() for name in (MANIFEST, "meta.json"))  # tantivy's own file
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not ours):
        raise InputError(
            f"{relative(folder)} exists and is no index of this program; give another "
            "--index_name, or move it away"
        )
    if folder.exists() and not overwrite:
        raise InputError(
            f"the index {relative(folder)} exists already; use it as it is, or build it again with "
            "--overwrite"
        )
    try:
        with writing_folder(folder) as temporary:
            index = Index(_schema(), path=str(temporary))
            rows = 0
            content = hashlib.sha256()
            passages_with, tokens = dict.fromkeys(FIELDS, 0), dict.fromkeys(FIELDS, 0)
            # Leaving the block waits for tantivy's threads: none writes into a moved folder.
            with index.writer(heap_size=WRITER_BYTES) as writer:
                for (passage_id, text, title), *terms in _analysed(corpus):
                    content.update(f"{passage_id}\t{text}\t{title}\n".encode())
                    document = Document()
                    for field, joined in zip(FIELDS, terms, strict=True):
                        document.add_text(field, joined)
                        passages_with[field] += joined != ""
                        tokens[field] += joined.count(" ") + (joined != "")
                    document.add_bytes("original_id", passage_id.encode("utf-8"))
                    document.add_bytes("original_title", title.encode("utf-8"))
                    document.add_bytes("original_text", text.encode("utf-8"))
                    document.add_unsigned("row", rows)
                    writer.add_document(document)
                    rows += 1
                if _needs_filler(rows, passages_with):
                    writer.add_document(_filler(rows, passages_with, tokens))
                writer.commit()
            source = {"source": corpus.name, "bytes": corpus.stat().st_size, "rows": rows}
            source["content"] = content.hexdigest()[:16]
            versions = {name: version(name) for name in ("tantivy", "nltk", "regex")}
            manifest = source | {"passages_with": passages_with} | FORMAT | versions
            manifest |= {"files": _digests(temporary)}
            write_json(temporary / MANIFEST, manifest | {"digest": hash_json(manifest)})
    except ValueError as error:  # of tantivy's own threads, which write the files
        remedy = "make room on its disk, or set PRAG_ROOT"
        raise InputError(f"{relative(folder)} cannot be written ({error}); {remedy}") from None
    return rows


def _needs_filler(rows: int, passages_with: dict[str, int]) -> bool:
    return any(passages != rows for passages in passages_with.values())


def _filler(rows: int, passages_with: dict[str, int], tokens: dict[str, int]) -> Document:
    """A last document that no question finds, with which each field's mean length is Lucene's.

    Tantivy divides a field's tokens by all `rows` + 1 documents, Lucene by those that have any.
    """
    document = Document()
    for field in FIELDS:
        mean = tokens[field] / max(1, passages_with[field])
        document.add_text(field, " ".join([FILLER] * round(mean * (rows + 1) - tokens[field])))
    document.add_unsigned("row", rows)
    return document


# ------------------------------------------------------------------------------------------------
# Analysis in worker processes: it costs more than indexing


def _analysed(corpus: Path) -> Iterator[tuple[Row, str, str]]:
    """Yield each row with the terms of its title and of its text, joined by spaces."""
    rows = read_corpus(corpus)
    workers = len(os.sched_getaffinity(0))
    if not corpus.is_file() or corpus.stat().st_size < BYTES_WORTH_WORKERS:
        for row in rows:
            yield row, *_terms([row])[0]
        return
    context = multiprocessing.get_context("spawn")  # tantivy's threads would not survive a fork
    with ProcessPoolExecutor(workers, context, initializer=_start_worker) as pool:
        waiting = deque()
        try:
            while True:
                block = list(islice(rows, ROWS_PER_TASK))
                if block:
                    waiting.append((block, pool.submit(_terms, block)))
                # A few blocks ahead keep the workers busy; more would only take memory.
                if len(waiting) > 2 * workers or (waiting and not block):
                    block, future = waiting.popleft()
                    for row, terms in zip(block, future.result(), strict=True):
                        yield row, *terms
                elif not block:
                    return
        except BrokenProcessPool:
            raise InputError(
                "a worker process of the analysis was killed, perhaps for lack of memory; "
                "nothing was changed, start the same command again"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _terms(rows: list[Row]) -> list[tuple[str, str]]:
    """The terms of each row's title and of its text, joined by spaces."""
    return [
        (" ".join(english_terms(title)), " ".join(english_terms(text))) for _, text, title in rows
    ]


def _start_worker() -> None:
    """Leave Ctrl-C to the main process, and end with it however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


# ------------------------------------------------------------------------------------------------
# Index format


def _schema() -> Schema:
    builder = SchemaBuilder()
    for field in FIELDS:
        builder.add_text_field(field, tokenizer_name="whitespace", index_option="freq")
    for key in ("id", "title", "text"):
        builder.add_bytes_field(f"original_{key}", stored=True)
    builder.add_unsigned_field("row", fast=True)
    return builder.build()


def _digests(folder: Path) -> dict[str, str]:
    """A hash of each file of the index in `folder`, read by several threads."""
    files = [f for f in folder.iterdir() if f.suffix != ".lock" and f.name != MANIFEST]
    with ThreadPoolExecutor(8) as readers:
        return dict(zip([f.name for f in files], readers.map(_digest, files), strict=True))


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "blake2b").hexdigest()[:16]


def _check_files(folder: Path, manifest: dict) -> None:
    """Refuse an index of which a file is missing or damaged, and a manifest that was changed.

    Every byte is read, a second for about a gigabyte: a flipped bit would give other passages.
    """
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    if hash_json(rest) != manifest.get("digest"):
        raise _refusal(folder, f"its {MANIFEST} was changed, or made by an older version")
    try:
        present = _digests(folder)
    except OSError as error:
        raise _refusal(folder, f"{error.filename} cannot be read: {error.strerror}") from None
    for name, digest in sorted(manifest["files"].items()):
        if present.get(name) != digest:
            problem = "damaged" if name in present else "missing"
            raise _refusal(folder, f"its file {name} is {problem}")


def _read_manifest(folder: Path) -> dict:
    """The manifest of the index in `folder`; refused where it is not one of this module's."""
    try:
        manifest = read_json(folder / MANIFEST, "the manifest")
    except InputError as error:
        raise _refusal(folder, str(error)) from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("rows"), int):
        raise _refusal(folder, f"its {MANIFEST} was written by something else")
    for key, value in FORMAT.items():
        if manifest.get(key) != value:
            raise _refusal(folder, f"its {key}: {manifest.get(key)!r}, not {value!r}")
    return manifest


def _refusal(folder: Path, cause: str) -> InputError:
    return InputError(
        f"{relative(folder)} is no index that this program can use ({cause}); build it again with: "
        f"{_build_command(folder)} --overwrite"
    )


def _build_command(folder: Path) -> str:
    corpus = KNOWN_CORPORA.get(folder.name, "CORPUS.tsv")
    return f"python prep_elastic.py --data_path {corpus} --index_name {folder.name}"


# ------------------------------------------------------------------------------------------------
# Ties


def _tied(better: float, score: float) -> bool:
    """Whether two scores, the better one first, differ by no more than rounding does."""
    return better - score <= SCORE_TOLERANCE * better


def _settle_ties(scored: list[tuple[float, int, object]]) -> list[tuple[float, int, object]]:
    """`(score, row, address)` best first; tied ones get the same score and the corpus's order."""
    settled = []
    level = float("inf")
    for score, row, address in sorted(scored, key=lambda hit: -hit[0]):
        if level == float("inf") or not _tied(level, score):
            level = score
        settled.append((level, row, address))
    return sorted(settled, key=lambda hit: (-hit[0], hit[1]))
