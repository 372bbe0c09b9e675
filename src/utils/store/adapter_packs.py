"""Many adapters in two files: one safetensors file, memory-mapped for reading, and an index.

    {data_type}/packed/{hash}.safetensors   every distinct weights file once, as its bytes (U8)
    {data_type}/packed/index.json           which adapter has which files, and their small texts

The index names the weights file, so a pack is replaced by the one rename of its index. Weights keep
the bytes of their own file: an adapter is read in one piece, unpacking gives the same bytes, and
the header stays far below safetensors' limit of 100 MB, which the hundred tensors of each of some
ten thousand adapters would exceed.
"""

import hashlib
import json
import re
import struct
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError, safe_open

from utils.files import (
    hash_json,
    read_object,
    relative,
    write_text,
    writing_file,
    writing_folder,
)
from utils.running import InputError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
TRAINING_FILE = "training_config.json"
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE, TRAINING_FILE)
PACKED, INDEX = "packed", "index.json"
FORMAT = 1
TRIES = 5  # at reading what another process may be packing or unpacking
HASH = "[0-9a-f]{32}"
NAME = r"data_\d+/passage_-?\d+"  # of an adapter, below its data type
REMEDY = (
    "run python src/adapters.py verify --remove_bad with the flags that made it, then encode.py "
    "again"
)

Files = dict[str, str]  # an adapter's: name -> content hash


def content_hash(data: bytes) -> str:
    """The name of a file's content in a pack."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class Pack:
    """The adapters that were packed in one data type's folder.

    `adapters` are their files by name ("data_0/passage_1"). Raises `InputError` where the index is
    missing, damaged, or names anything outside of its folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.what = f"the index of packed adapters {relative(folder / INDEX)}"
        index = read_object(folder / INDEX, "the index of packed adapters")
        problem = _problem_of(index)
        if problem:
            raise InputError(f"{self.what} is damaged: {problem}; {REMEDY}")
        self.adapters: dict[str, Files] = index["adapters"]
        self.texts: dict[str, str] = index["texts"]
        self.weights = folder / index["weights"]
        self._mapped = None

    def text(self, name: str, file: str) -> str | None:
        """The adapter's configuration or record, or None where the pack does not hold it."""
        return self.texts[self.adapters[name][file]] if name in self.adapters else None

    def weights_of(self, name: str) -> bytes | None:
        """The bytes of the adapter's weights file, or None where the pack does not hold it.

        Raises `InputError` where they are not those that were packed.
        """
        return self.content(self.adapters[name][WEIGHTS_FILE]) if name in self.adapters else None

    def content(self, held: str) -> bytes:
        """The weights file with the hash `held`. Raises `InputError` as `weights_of` does."""
        problem = None
        try:
            data = self._map().get_tensor(held).tobytes()
        except (OSError, SafetensorError) as error:
            problem = f"cannot be read ({error})"
        else:
            if content_hash(data) != held:
                problem = "was changed after it was packed: its hash differs"
        if problem:
            names = [n for n, files in self.adapters.items() if files[WEIGHTS_FILE] == held]
            raise InputError(
                f"packed adapter {names[0] if names else held} in {relative(self.weights)} "
                f"{problem}; {REMEDY}"
            )
        return data

    def size(self, name: str) -> int:
        """The bytes of the adapter's weights file. Raises `InputError` where it cannot be read."""
        try:
            return self._map().get_slice(self.adapters[name][WEIGHTS_FILE]).get_shape()[0]
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{relative(self.weights)} cannot be read ({error}); {REMEDY}"
            ) from None

    def assert_opens(self) -> None:
        """Raise `InputError` where the weights file cannot be opened: all in it is lost."""
        try:
            self._map()
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"the {len(self.adapters)} packed adapters in {relative(self.weights)} cannot be "
                f"read ({error}); {REMEDY}"
            ) from None

    def _map(self) -> safe_open:
        """The weights file in memory. A file that was cut off since would end the process: look."""
        state = self.weights.stat()
        known = (state.st_ino, state.st_size, state.st_mtime_ns)
        if self._mapped is None or self._mapped[0] != known:
            self._mapped = known, safe_open(self.weights, "np")
        return self._mapped[1]


def _problem_of(index: dict) -> str | None:
    """What is wrong with the content of an index, if anything."""
    adapters, texts = index.get("adapters"), index.get("texts")
    if index.get("format") != FORMAT:
        return f"its format is {index.get('format')!r}, not {FORMAT}"
    if not re.fullmatch(rf"{HASH}\.safetensors", str(index.get("weights"))):
        return f"its weights file is called {index.get('weights')!r}"
    if not isinstance(adapters, dict) or not isinstance(texts, dict):
        return "its adapters or texts are missing"
    for name, files in adapters.items():
        if not is_name(name):
            return f"no adapter can be called {name!r}"
        if not isinstance(files, dict) or set(files) != set(ADAPTER_FILES):
            return f"the files of {name} are not {', '.join(ADAPTER_FILES)}"
        for file, held in files.items():
            if not re.fullmatch(HASH, str(held)):
                return f"{file} of {name} has no hash"
            if file != WEIGHTS_FILE and not isinstance(texts.get(held), str):
                return f"the text of {file} of {name} is missing"
    if index.get("digest") != _digest(index):
        return "its digest differs"
    return None


def _digest(index: dict) -> str:
    return hash_json({name: index[name] for name in index if name != "digest"})


def open_pack(adapters: Path) -> Pack | None:
    """The pack of the data type's folder `adapters`, or None where nothing was packed there.

    The index is read again only where it was replaced. Raises `InputError` as `Pack` does.
    """
    folder = adapters / PACKED
    failure = InputError(
        f"the index of packed adapters {relative(folder / INDEX)} does not exist; {REMEDY}"
    )
    for _ in range(TRIES):
        try:
            state = (folder / INDEX).stat()
            return _opened(folder, state.st_ino, state.st_mtime_ns, state.st_size)
        except (FileNotFoundError, NotADirectoryError):
            if not folder.exists():
                return None
        except OSError as error:
            failure = InputError(f"{relative(folder)} cannot be read: {error.strerror}")
        except InputError as error:
            failure = error
    raise failure


@lru_cache(maxsize=8)
def _opened(folder: Path, *state: int) -> Pack:
    return Pack(folder)


def pack_of(folder: Path) -> Pack | None:
    """The pack that may hold the adapter whose folder is `folder`."""
    return open_pack(folder.parent.parent) if is_name(name_of(folder)) else None


def name_of(folder: Path) -> str:
    """The name of the adapter whose folder is `folder` in a pack: "data_0/passage_1"."""
    return f"{folder.parent.name}/{folder.name}"


def is_name(name: str) -> bool:
    """Whether an adapter of a data type can have this name; no other one reaches a pack."""
    return re.fullmatch(NAME, name) is not None


def write_pack(
    adapters: Path,
    contents: dict[str, Files],
    texts: dict[str, str],
    sizes: dict[str, int],
    read: Callable[[str], bytes],
) -> None:
    """Write the pack of the data type's folder `adapters`, in place of the one that stands there.

    `contents` are the files of each adapter by its name, `texts` the small files' content by hash.
    The weights files are asked for one by one, `read(hash)`, and have `sizes[hash]` bytes.
    The new pack appears by one rename, when it is on the disk. Raises `InputError` where the disk
    is full or refuses.
    """
    weights = f"{content_hash(json.dumps(sorted(sizes)).encode())}.safetensors"
    index = {"format": FORMAT, "weights": weights, "texts": texts, "adapters": contents}
    text = json.dumps({**index, "digest": _digest(index)}, ensure_ascii=False, indent=1) + "\n"

    def write_into(folder: Path) -> None:
        with writing_file(folder / weights) as temporary:
            _write_weights(temporary, sizes, read)
        write_text(folder / INDEX, text)

    folder = adapters / PACKED
    if (folder / INDEX).exists():
        write_into(folder)  # the old weights file is left to who holds the lock
    else:
        with writing_folder(folder) as temporary:
            write_into(temporary)


def _write_weights(path: Path, sizes: dict[str, int], read: Callable[[str], bytes]) -> None:
    """A safetensors file of the weights files, written one by one: they need not fit in memory."""
    header, offset = {}, 0
    for held, size in sizes.items():
        header[held] = {"dtype": "U8", "shape": [size], "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for held in sizes:
            file.write(read(held))
