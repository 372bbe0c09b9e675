"""What all engines share: a corpus's rows, work on them in parallel, ties and repeated texts.

A corpus is a TSV `id<TAB>text<TAB>title` with that header, plain or `.gz`; rows are streamed.
"""

import codecs
import csv
import gzip
import hashlib
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

from tqdm import tqdm

from utils.files import missing, relative
from utils.running import InputError

COLUMNS = ["id", "text", "title"]
# Single-precision sums of the same terms in another order differ by a few parts in 10 million.
SCORE_TOLERANCE = 2e-6
T = TypeVar("T")
R = TypeVar("R")


def read_corpus(corpus: Path, doing: str = "indexing") -> Iterator[tuple[str, str, str]]:
    """Yield `(id, text, title)` of each row, with a progress bar over the file's bytes. Raises
    `InputError` for a file that is missing, damaged or empty, and for a bad row by its line."""
    name = relative(corpus)
    if not corpus.is_file():
        raise InputError(f"the corpus {name} {missing(corpus)}; give a .tsv or .tsv.gz file")
    rows = 0
    try:
        with (
            open(corpus, "rb") as raw,
            gzip.open(raw) if corpus.suffix == ".gz" else raw as stream,
            tqdm(total=corpus.stat().st_size, unit="B", unit_scale=True, desc=doing) as bar,
        ):
            for rows, row in enumerate(_read_rows(stream, name), 1):
                if rows % 1000 == 0:
                    bar.update(raw.tell() - bar.n)
                yield row
            bar.update(raw.tell() - bar.n)
    except (OSError, EOFError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
        raise InputError(
            f"the corpus {name} cannot be read to its end ({error}); fetch it again if it is cut "
            "off, or take .gz off its name if it is not gzip"
        ) from None
    if rows == 0:
        raise InputError(f"the corpus {name} has no passage below its header")


def write_corpus(corpus: Path, passages: Iterable[tuple[str, str]]) -> None:
    """Write `(title, text)` of each passage as a corpus; the ids are 0, 1, 2, …"""
    with open(corpus, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter="\t")
        rows.writerow(COLUMNS)
        rows.writerows([number, text, title] for number, (title, text) in enumerate(passages))


def _read_rows(stream: BinaryIO, name: str) -> Iterator[tuple[str, str, str]]:
    # strict: a quote that is not closed or not doubled would swallow what follows
    reader = csv.reader(codecs.iterdecode(stream, "utf-8-sig"), delimiter="\t", strict=True)
    csv.field_size_limit(1 << 30)  # of a passage; the module's own is 131,072 characters
    line = 1
    try:
        _check_header(next(reader, COLUMNS))
        line = 2
        for row in reader:
            if row:
                _check(row)
                yield tuple(row)
            line = reader.line_num + 1
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(
            f"line {line} of the corpus {name} cannot be used ({error}); use id<TAB>text<TAB>title "
            'in UTF-8, a field with a quote, tab or line break between " and each " in it twice'
        ) from None


def _check_header(names: list[str]) -> None:
    """Raise `csv.Error` if `names` are not those of the columns."""
    if names == COLUMNS:
        return
    known = re.search("id|text|title|name|content|passage", " ".join(names).lower())
    if known and all(name.strip().isidentifier() for name in names):
        order = "bring these into the order id, text, title in every line, under these names"
        raise csv.Error(f"its columns are {', '.join(names)}: {order}")
    raise csv.Error("it is not the header")


def _check(row: list[str]) -> None:
    """Raise `csv.Error` with what is wrong with a row."""
    if _holds_rows(row):
        raise csv.Error("a field of it holds whole rows: a quote is not closed")
    if len(row) != len(COLUMNS):
        raise csv.Error(f"it has {len(row)} columns")
    if not (row[0].strip() and row[1].strip()):
        raise csv.Error("it has an empty id or text")


def _holds_rows(row: list[str]) -> bool:
    """Whether a quote in `row` was closed by a later row's quote.

    Then each line of it is a row by itself, with an id like its own: a table in a text begins or
    ends otherwise. Or, if the text has lines of its own, a later line is the row with the next id.
    """
    if not any("\n" in field for field in row):
        return False
    lines = [line.split("\t") for line in re.split("\r*\n", "\t".join(row)) if line]
    if len(lines) < 2:  # none of a field that is a line break alone
        return False
    own, *later = lines
    held = [line for line in later if len(line) == 3 and line[0].strip() and line[1].strip()]
    following = re.sub(r"\d{1,18}$", lambda n: f"{int(n[0]) + 1:0{len(n[0])}}", own[0])
    if any(line[0] == following != own[0] for line in held):
        return True
    alike = all(line[0].isdecimal() == own[0].isdecimal() for line in held)
    return len(own) == 3 and held == later != [] and alike


def hashed_line(row: tuple[str, str, str]) -> bytes:
    """What a hash of a corpus takes of a row."""
    return ("\t".join(row) + "\n").encode()


def content_of(corpus: Path) -> str:
    """A hash of the rows of `corpus`, whichever way the file quotes or packs them."""
    content = hashlib.sha256()
    for row in read_corpus(corpus, "comparing"):
        content.update(hashed_line(row))
    return content.hexdigest()[:16]


def worked_on(
    items: Iterator[T], work: Callable[[list[T]], R], pool: Executor, size: int, ahead: int
) -> Iterator[tuple[list[T], R]]:
    """Yield blocks of `size` items, in order, with what `work` makes of each in `pool`. At most
    `ahead` + 1 blocks are held at a time."""
    waiting: deque[tuple[list[T], Future[R]]] = deque()
    try:
        while (block := list(islice(items, size))) or waiting:
            if block:
                waiting.append((block, pool.submit(work, block)))
            if not block or len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def tied(better: float, score: float) -> bool:
    """Whether two scores, the better one first, differ by no more than rounding does."""
    return better - score <= SCORE_TOLERANCE * abs(better)


def settle_ties(scored: Iterable[tuple[float, int, T]]) -> list[tuple[float, int, T]]:
    """`(score, row, place)` best first; tied ones get the same score and the corpus's order."""
    settled: list[tuple[float, int, T]] = []
    for score, row, place in sorted(scored, key=lambda hit: -hit[0]):
        if settled and tied(settled[-1][0], score):
            score = settled[-1][0]
        settled.append((score, row, place))
    return sorted(settled, key=lambda hit: (-hit[0], hit[1]))


def different_texts(hits: Iterable[dict], topk: int) -> list[dict]:
    """The first `topk` of `hits` that have different texts; no more of them are read."""
    different: dict[str, dict] = {}
    for hit in hits:
        different.setdefault(hit["text"], hit)
        if len(different) == topk:
            break
    return list(different.values())
