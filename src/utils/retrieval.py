"""BM25 retrieval: a corpus of passages becomes an index, questions get their best passages.

An engine is a class with one method, `search(questions, topk)`, and `open_retriever` is the only
place that knows the engines by name. The embedded engine keeps its index in a folder and needs no
server: tantivy scores each field with BM25 (k1 = 1.2, b = 0.75), and a passage counts with its
better field, title or text, plus half of the other one.
"""

import csv
import gzip
import warnings
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

from tantivy import (
    DocAddress,
    Document,
    Filter,
    Index,
    Occur,
    Query,
    Schema,
    SchemaBuilder,
    TextAnalyzer,
    TextAnalyzerBuilder,
    Tokenizer,
)
from tqdm import tqdm

from root_dir_path import ROOT_DIR
from utils.paths import InputError, folder_name, read_json, relative, write_json, writing_folder

FIELDS = ["title", "text"]
COLUMNS = ["id", "text", "title"]
ANALYZER = "en_stem"
FORMAT = {"fields": FIELDS, "analyzer": ANALYZER}
TIE_BREAKER = 0.5
# Single-precision sums of the same terms in another order differ by a few parts in 10 million.
SCORE_TOLERANCE = 2e-6
WRITER_BYTES = 256_000_000
KNOWN_CORPORA = {"wiki": "data/dpr/psgs_w100.tsv", "demo": "data/demo/corpus.tsv"}


def index_folder(index_name: str) -> Path:
    """`index/{index_name}`, where the embedded engine keeps an index.

    Raises `InputError` where `index_name` is no usable folder name.
    """
    return ROOT_DIR / "index" / folder_name(index_name)


def open_retriever(engine: str, index_name: str) -> "EmbeddedIndex":
    """The index `index_name` of `engine` ("embedded"), ready for `search`.

    Raises `InputError` for an unknown engine and for an index that is missing or damaged, with
    the command that builds it.
    """
    if engine != "embedded":
        raise InputError(f"engine {engine!r} is not known; use --engine embedded")
    return EmbeddedIndex(index_folder(index_name))


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
        try:
            index = Index.open(str(folder))
        except (ValueError, OSError) as error:
            raise _refusal(folder, f"tantivy cannot open it: {error}") from None
        self._analyzer = _analyzer()
        self._schema = _schema()
        self._searcher = index.searcher()
        if self._searcher.num_docs != manifest["rows"]:
            raise _refusal(
                folder, f"it holds {self._searcher.num_docs} of {manifest['rows']} passages"
            )

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
            query = self._query(question)
            if query is None:
                warnings.warn(
                    f"the question {question!r} has no word to search for: no passage is found",
                    stacklevel=2,
                )
            results.append([] if query is None else self._best(query, topk))
        return results

    def _query(self, question: str) -> Query | None:
        """`question` as a query built of its terms, or None where it has none.

        No query syntax is parsed, so nothing in a question acts as an operator.
        """
        # JSON can carry half a surrogate pair, which is no text to search for.
        terms = self._analyzer.analyze(question.encode("utf-8", "ignore").decode("utf-8"))
        if not terms:
            return None
        fields = [
            Query.boolean_query(
                [(Occur.Should, Query.term_query(self._schema, field, term)) for term in terms]
            )
            for field in FIELDS
        ]
        return Query.disjunction_max_query(fields, tie_breaker=TIE_BREAKER)

    def _best(self, query: Query, topk: int) -> list[dict]:
        """The `topk` best passages with different texts."""
        limit = 2 * topk + 10
        while True:
            found = self._searcher.search(query, limit, count=False).hits
            # Only rows are kept of what was found: a common word can tie thousands of passages.
            scored = [
                (score, self._searcher.doc(address).get_first("row"), address)
                for score, address in found
            ]
            hits: dict[str, dict] = {}
            for score, _, address in _settle_ties(scored):
                document = self._searcher.doc(address)
                hit = {
                    "id": document.get_first("id").decode("utf-8"),
                    "title": document.get_first("title"),
                    "text": document.get_first("text"),
                    "score": score,
                }
                hits.setdefault(hit["text"], hit)
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
    """Index the passages of `corpus` into `index_folder`; the number of rows.

    `corpus` is a TSV `id<TAB>text<TAB>title` with that header, plain or `.gz`, fields with quotes
    or tabs quoted as the csv module writes them. Rows are streamed, so memory does not grow with
    the corpus. The folder appears when the index is complete; with `overwrite` it takes the place
    of an older one.

    Raises `InputError` for an unreadable corpus, for a bad row (by its line) and where an index
    stands in `index_folder` already.
    """
    corpus, folder = Path(corpus), Path(index_folder)
    if folder.exists() and not overwrite:
        raise InputError(
            f"the index {relative(folder)} exists already; use it as it is, or build it again with "
            "--overwrite"
        )
    if not corpus.is_file():
        raise InputError(
            f"the corpus {relative(corpus)} does not exist; give a TSV or .tsv.gz file"
        )
    with writing_folder(folder) as temporary:
        index = Index(_schema(), path=str(temporary))
        index.register_tokenizer(ANALYZER, _analyzer())
        rows = 0
        # Leaving the block waits for tantivy's threads, so that none writes into a moved folder.
        with index.writer(heap_size=WRITER_BYTES) as writer:
            for passage_id, text, title in _read_corpus(corpus):
                document = Document()
                document.add_text("title", title)
                document.add_text("text", text)
                document.add_bytes("id", passage_id.encode("utf-8"))
                document.add_unsigned("row", rows)
                writer.add_document(document)
                rows += 1
            writer.commit()
        if rows == 0:
            raise InputError(f"the corpus {relative(corpus)} has no passage below its header")
        for file in temporary.iterdir():
            file.chmod(0o644)  # tantivy makes files that only their owner can read
        source = {"source": corpus.name, "bytes": corpus.stat().st_size, "rows": rows}
        write_json(temporary / "manifest.json", source | FORMAT | {"tantivy": version("tantivy")})
    return rows


# ------------------------------------------------------------------------------------------------
# Index format


def _analyzer() -> TextAnalyzer:
    """Tantivy's English analyzer `en_stem`: the one definition for passages and questions."""
    builder = TextAnalyzerBuilder(Tokenizer.simple()).filter(Filter.remove_long(40))
    return builder.filter(Filter.lowercase()).filter(Filter.stemmer("english")).build()


def _schema() -> Schema:
    builder = SchemaBuilder()
    for field in FIELDS:
        builder.add_text_field(field, stored=True, tokenizer_name=ANALYZER, index_option="freq")
    builder.add_bytes_field("id", stored=True)
    builder.add_unsigned_field("row", stored=True)
    return builder.build()


def _read_manifest(folder: Path) -> dict:
    """The manifest of the index in `folder`; refused where it is not one of this module's."""
    try:
        manifest = read_json(folder / "manifest.json", "the manifest")
    except InputError as error:
        raise _refusal(folder, str(error)) from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("rows"), int):
        raise _refusal(folder, "its manifest.json was written by something else")
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


def _settle_ties(
    scored: list[tuple[float, int, DocAddress]],
) -> list[tuple[float, int, DocAddress]]:
    """`(score, row, address)` best first; tied ones get the same score and the corpus's order."""
    settled = []
    level = float("inf")
    for score, row, address in sorted(scored, key=lambda hit: -hit[0]):
        if level == float("inf") or not _tied(level, score):
            level = score
        settled.append((level, row, address))
    return sorted(settled, key=lambda hit: (-hit[0], hit[1]))


# ------------------------------------------------------------------------------------------------
# Corpus


def _read_corpus(corpus: Path) -> Iterator[tuple[str, str, str]]:
    """Yield `(id, text, title)` of each row, with a progress bar over the file's bytes."""
    try:
        with (
            open(corpus, "rb") as raw,
            gzip.open(raw) if corpus.suffix == ".gz" else raw as stream,
            tqdm(total=corpus.stat().st_size, unit="B", unit_scale=True, desc="indexing") as bar,
        ):
            for count, row in enumerate(_read_rows(stream, relative(corpus))):
                if count % 1000 == 0:
                    bar.update(raw.tell() - bar.n)
                yield row
            bar.update(raw.tell() - bar.n)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"the corpus {relative(corpus)} cannot be read to its end ({error}); "
            "it may be cut off: fetch it again"
        ) from None


def _read_rows(stream: BinaryIO, name: str) -> Iterator[tuple[str, str, str]]:
    """Yield the checked rows of the TSV in `stream`; `name` and the line name a bad one."""
    # A quote that is not closed or not doubled is an error, else it would swallow what follows.
    reader = csv.reader(_decode_lines(stream, name), delimiter="\t", strict=True)
    line = 1
    try:
        for row in reader:
            if line == 1:
                if row != COLUMNS:
                    raise InputError(
                        f"the corpus {name} begins with {row!r:.200}, not with the header "
                        "id<TAB>text<TAB>title; add that line"
                    )
            elif row:
                yield _checked_row(row, f"line {line} of the corpus {name}")
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"line {line} of the corpus {name} is no valid TSV ({error}); put a field that has a "
            'quote, tab or line break between " and write each " in it twice'
        ) from None


def _checked_row(row: list[str], where: str) -> tuple[str, str, str]:
    if len(row) != len(COLUMNS):
        raise InputError(
            f"{where} has {len(row)} columns, not the 3 of id<TAB>text<TAB>title; correct that line"
        )
    passage_id, text, title = row
    for column, value in (("id", passage_id), ("text", text)):
        if not value.strip():
            raise InputError(f"{where} has an empty {column}; fill it or remove the line")
    return passage_id, text, title


def _decode_lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """Yield the lines of `stream` as text, so that a byte that is not UTF-8 is named by line."""
    for number, line in enumerate(stream, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise InputError(
                f"line {number} of the corpus {name} is not UTF-8; convert the file to UTF-8"
            ) from None
