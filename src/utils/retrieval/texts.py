"""A folder of `.md` and `.txt` files as a corpus of passages of 100 words.

As in DPR's Wikipedia (arXiv:2004.04906, section 4.1): texts are cut into blocks of 100 words that
do not overlap, and each keeps its title: the name of its file and, in Markdown, the heading above.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from utils.files import missing, read_text, relative
from utils.running import InputError

WORDS = 100
SUFFIXES = {".md", ".txt"}
HEADING = re.compile(r" {0,3}#{1,6}(?:\s+(.*?))?(?:\s+#+)?\s*$")
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")  # around code, in which # begins a comment


def load_texts(folder: Path) -> list[tuple[str, str]]:
    """Title and text of each passage of the files below `folder`, in the order of their names.

    Hidden files and folders are passed over; files without text are named on stderr. Raises
    `InputError` if there is no text at all, or if a file is not UTF-8.
    """
    where = f"--from_text {relative(folder)}"
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else missing(folder)
        raise InputError(f"{where} {what}; give a folder of .md or .txt files")
    names = sorted(path.relative_to(folder).parts for path in folder.rglob("[!.]*"))
    shown = [folder.joinpath(*name) for name in names if not any(p[0] == "." for p in name)]
    files = [file for file in shown if file.suffix.lower() in SUFFIXES and file.is_file()]
    found = {file: list(_passages(file)) for file in files}
    passages = [passage for own in found.values() for passage in own]
    if not passages:
        holds = f"{len(found)} .md and .txt files without text" if found else "no .md or .txt file"
        raise InputError(f"{where} holds {holds}; give a folder of documents")
    if empty := [relative(file) for file, own in found.items() if not own]:
        names = ", ".join(empty[:5])
        print(f"{len(empty)} files without text are left out: {names}", file=sys.stderr)
    return passages


def _passages(file: Path) -> Iterator[tuple[str, str]]:
    """Title and text of each passage of `file`; a passage is of one section."""
    name = " ".join(file.stem.encode(errors="replace").decode().split())
    for heading, lines in _sections(read_text(file, "the document").splitlines(), file):
        words = " ".join(lines).split()
        for start in range(0, len(words), WORDS):
            yield f"{name}: {heading}" if heading else name, " ".join(words[start : start + WORDS])


def _sections(lines: list[str], file: Path) -> Iterator[tuple[str, list[str]]]:
    """Each heading of a Markdown file, "" at its beginning, with the lines below it; a text file
    has no headings."""
    heading, own, fence = "", [], ""
    for line in lines:
        mark = FENCE.match(line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        found = HEADING.match(line) if file.suffix.lower() == ".md" and not fence else None
        if found:
            yield heading, own
            heading, own = " ".join((found[1] or "").split()), []
        else:
            own.append(line)
    yield heading, own
