"""Reading a corpus: a TSV `id<TAB>text<TAB>title` with that header, plain or `.gz`.

Rows are streamed, so memory does not grow with the corpus, and checked: a bad one is named by its
line.
"""

import csv
import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from utils.files import relative
from utils.running import InputError

LOOKS_LIKE_ROWS = re.compile(r"\n[^\t\n]*\t[^\t\n]*\t")
COLUMNS = ["id", "text", "title"]


def read_corpus(corpus: Path) -> Iterator[tuple[str, str, str]]:
    """Yield `(id, text, title)` of each row, with a progress bar over the file's bytes.

    A field with quotes, tabs or line breaks is quoted as the csv module writes it.

    Raises `InputError` for a file that is missing, damaged or empty, and for a bad row.
    """
    if corpus.is_dir():
        raise InputError(
            f"the corpus {relative(corpus)} is a folder; give the TSV or .tsv.gz file in it"
        )
    if not corpus.is_file():
        raise InputError(
            f"the corpus {relative(corpus)} does not exist; give a TSV or .tsv.gz file"
        )
    rows = 0
    try:
        with (
            open(corpus, "rb") as raw,
            gzip.open(raw) if corpus.suffix == ".gz" else raw as stream,
            tqdm(total=corpus.stat().st_size, unit="B", unit_scale=True, desc="indexing") as bar,
        ):
            for row in _read_rows(stream, relative(corpus)):
                if rows % 1000 == 0:
                    bar.update(raw.tell() - bar.n)
                rows += 1
                yield row
            bar.update(raw.tell() - bar.n)
    except gzip.BadGzipFile as error:
        raise InputError(
            f"the corpus {relative(corpus)} cannot be read as gzip ({error}); it is damaged: fetch "
            "it again, or it is no gzip file: take .gz off its name"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"the corpus {relative(corpus)} cannot be read to its end ({error}); "
            "it may be cut off: fetch it again"
        ) from None
    if rows == 0:
        raise InputError(f"the corpus {relative(corpus)} has no passage below its header")


def _read_rows(stream: BinaryIO, name: str) -> Iterator[tuple[str, str, str]]:
    """Yield the checked rows of the TSV in `stream`; `name` and the line name a bad one."""
    # A quote that is not closed or not doubled is an error, else it would swallow what follows.
    reader = csv.reader(_decode_lines(stream, name), delimiter="\t", strict=True)
    line = 1
    csv.field_size_limit(1 << 30)  # of a passage; the module's own is 131,072 characters
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
    if any(LOOKS_LIKE_ROWS.search(value) for value in row):
        raise InputError(
            f"{where} begins a field that holds whole rows, as one does whose quote is not closed; "
            'close it, or write each " of a field twice and the field between "'
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
