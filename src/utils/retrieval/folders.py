"""An index in a folder: never replaced by mistake, checked when it is opened.

Its manifest says what the index was made of and holds a hash of each of its files.
"""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from utils.files import hash_json, missing, read_object, refuse_link, relative, write_json
from utils.layout import made_corpus
from utils.retrieval.corpus import content_of
from utils.running import InputError

MANIFEST = "manifest.json"
KNOWN_CORPORA = {"wiki": "data/dpr/psgs_w100.tsv.gz", "demo": "data/demo/corpus.tsv"}


def exists_already(
    folder: Path, overwrite: bool, corpus: Path, expected: dict, flags: str = ""
) -> bool:
    """Whether the index of `corpus` is in `folder`, whole: a kill came late. Raises `InputError` if
    `folder` is a link to be replaced or holds something else, without `overwrite` any other index;
    for `expected` and `flags` see `read_manifest`."""
    is_index = (folder / MANIFEST).is_file()
    if overwrite or not is_index:
        refuse_link(folder)
    if folder.is_file() or (folder.is_dir() and not is_index and any(folder.iterdir())):
        raise InputError(
            f"{relative(folder)} exists and is not an index of this program; give another "
            "--index_name, or move it away"
        )
    if overwrite or not is_index:
        return False
    if read_manifest(folder, expected, flags).get("content") != content_of(corpus):
        raise InputError(
            f"the index {relative(folder)} exists already, of another corpus; use it, give another "
            "--index_name, or replace it with --overwrite"
        )
    return True


def write_manifest(folder: Path, made_of: dict) -> None:
    """Write the manifest of the finished index in `folder`; `made_of` are JSON values."""
    files = _digests(folder, [file.name for file in folder.iterdir() if file.suffix != ".lock"])
    manifest = made_of | {"files": files}
    write_json(folder / MANIFEST, manifest | {"digest": hash_json(manifest)})


def read_manifest(folder: Path, expected: dict, flags: str = "") -> dict:
    """The manifest of the index in `folder`, which has the values of `expected`.

    Every byte of the index is read, about a gigabyte a second: a flipped bit would give other
    passages. Raises `InputError` if the index is missing, damaged or made by something else, with
    the command that builds it; `flags` are those of its engine.
    """
    if not folder.is_dir():
        command = _build_command(folder, flags)
        place = f"{relative(folder)}, which {missing(folder)}"
        raise InputError(f"there is no index at {place}; build it with: {command}")
    try:
        manifest = read_object(folder / MANIFEST, "the manifest")
        if not (cause := _fault(folder, manifest, expected)):
            return manifest
    except (InputError, OSError) as error:
        cause = str(error)
    raise refusal(folder, cause, flags)


def refusal(folder: Path, cause: str, flags: str = "") -> InputError:
    """The error for an index in `folder` that cannot be used, with the command that mends it."""
    return InputError(
        f"{relative(folder)} is not an index that this program can use ({cause}); build it again "
        f"with: {_build_command(folder, flags)} --overwrite"
    )


def _build_command(folder: Path, flags: str) -> str:
    known, made = KNOWN_CORPORA.get(folder.name, "CORPUS.tsv"), made_corpus(folder)
    corpus = relative(made) if made.is_file() else known
    return f"python prep_elastic.py {flags}--data_path {corpus} --index_name {folder.name}"


def _fault(folder: Path, manifest: dict, expected: dict) -> str | None:
    """Why the index in `folder` cannot be used; None if it can."""
    for key, value in expected.items():
        if manifest.get(key) != value:
            return f"its {key}: {manifest.get(key)!r}, not {value!r}"
    if manifest.get("digest") != hash_json({k: v for k, v in manifest.items() if k != "digest"}):
        return f"its {MANIFEST} was changed"
    for name, digest in _digests(folder, manifest["files"]).items():
        if manifest["files"][name] != digest:
            return f"its file {name} is damaged"
    return None


def _digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    def digest(name: str) -> str:
        with (folder / name).open("rb") as content:
            return hashlib.file_digest(content, "blake2b").hexdigest()[:16]

    with ThreadPoolExecutor(8) as readers:
        return dict(zip(names, readers.map(digest, names), strict=True))
