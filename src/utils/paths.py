"""Where every file stands, and how it is written: whole or not at all.

Layouts are those of the original software (`data_aug/`, `offline/`, `output/`). Every write goes
to a temporary neighbour first and appears under its name by one rename, so a killed run never
leaves half a file behind.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from root_dir_path import ROOT_DIR


class InputError(Exception):
    """Something that the user gave is wrong; the message says what, where and what to do."""


def run_stage(main: Callable[[], None]) -> None:
    """Run a script's `main`; an `InputError` becomes one sentence on stderr and exit code 1."""
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: start the same command again and it goes on from what is complete")


# ------------------------------------------------------------------------------------------------
# Names and layouts


def folder_name(name: str) -> str:
    """`name` as one safe path component: a model folder or hub id becomes its last part.

    Raises `InputError` where nothing usable is left, so that no name from a flag or a file
    can leave its folder.
    """
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    safe = re.sub(r"[^\w.+=-]", "_", last)
    if not safe.strip("._") or len(safe.encode()) > 150:
        raise InputError(
            f"{name!r} cannot be used as a folder name; use letters, digits, '.', '-' and '_', "
            "at most 150 bytes"
        )
    return safe


def augmented_file(dataset: str, data_type: str) -> Path:
    """`data_aug/{dataset}/{data_type}.json`, the product of `augment.py`."""
    return ROOT_DIR / "data_aug" / folder_name(dataset) / f"{folder_name(data_type)}.json"


def rank_folder(model_name: str, rank: int, alpha: float) -> Path:
    """`offline/{model}/rank={rank}_alpha={alpha}`, which holds `base_weight` and all adapters."""
    return ROOT_DIR / "offline" / folder_name(model_name) / f"rank={rank}_alpha={alpha:g}"


def experiment_folder(
    root: str,
    model_name: str,
    rank: int,
    alpha: float,
    dataset: str,
    training: str,
    augment_model: str,
) -> Path:
    """`{root}/{model}/rank=…_alpha=…/{dataset}/{training}/aug_model={augment_model}`.

    `root` is "offline", where the data types' adapters stand below, or "output", where the methods'
    results do; `training` names how the adapters were made (see `training_name`).
    """
    return (
        ROOT_DIR
        / root
        / folder_name(model_name)
        / f"rank={rank}_alpha={alpha:g}"
        / folder_name(dataset)
        / training
        / f"aug_model={folder_name(augment_model)}"
    )


def training_name(
    learning_rate: float, epochs: int, with_cot: bool, init_adapter: str, parts: tuple[str, ...]
) -> str:
    """`lr={rate}_epoch={epochs}[_cot][_warmup|_init={name}][_parts={parts}]`.

    What differs from a plain run is appended, so that adapters made in other ways never share a
    folder. `parts` are those of `--augment_parts`.
    """
    name = f"lr={learning_rate}_epoch={epochs}" + ("_cot" if with_cot else "")
    if init_adapter == "warmup":
        name += "_warmup"
    elif init_adapter != "random":
        name += f"_init={folder_name(init_adapter)}"
    if len(parts) < 2:
        name += f"_parts={parts[0] if parts else 'none'}"
    return name


def warmup_folder(model_name: str, rank: int, alpha: float, with_cot: bool) -> Path:
    """Where `warmup_lora.py` leaves the adapter that passages can start from."""
    kind = "cot" if with_cot else "direct"
    return rank_folder(model_name, rank, alpha) / f"warmup_{kind}"


def passage_folder(adapters: Path, did: int, pid: int) -> Path:
    """`{adapters}/data_{did}/passage_{pid}`: one passage's PEFT adapter."""
    return adapters / f"data_{did}" / f"passage_{pid}"


def relative(path: Path) -> str:
    """`path` as shown to the user: relative to the working folder where that is shorter."""
    try:
        return str(Path(path).resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


# ------------------------------------------------------------------------------------------------
# Whole-or-nothing writing


@contextmanager
def writing_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes `path`'s place when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    os.chmod(name, 0o644)  # mkstemp makes files that only their owner can read
    try:
        yield Path(name)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it takes `path`'s place when the block ends well.

    A folder that stands at `path` already is replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}.", suffix=".tmp", dir=path.parent))
    os.chmod(temporary, 0o755)
    try:
        yield temporary
        for file in temporary.iterdir():
            file.chmod(0o644)  # tantivy and safetensors make files that only their owner can read
        if path.exists():
            shutil.rmtree(path)
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all."""
    with writing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


# ------------------------------------------------------------------------------------------------
# Reading


def read_text(path: Path, what: str) -> str:
    """The text of the file at `path`; `what` names it in errors ("the prompt set").

    Raises `InputError` where the file is missing, unreadable or not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{what} {relative(path)} does not exist") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{what} {relative(path)} is not UTF-8 (byte {error.start}); convert it to UTF-8"
        ) from None
    except OSError as error:
        raise InputError(f"{what} {relative(path)} cannot be read: {error.strerror}") from None


def read_json(path: Path, what: str) -> Any:
    """The JSON value in the file at `path`. Raises `InputError` where it is missing or broken."""
    text = read_text(path, what)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{what} {relative(path)} is no valid JSON: {error.msg} in line {error.lineno}, "
            f"column {error.colno}; the file is damaged or cut off"
        ) from None


def hash_json(value: Any) -> str:
    """A short, stable fingerprint of a JSON value (settings, training data)."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
