"""Which model a `--model_name` means, and what tells it from every other model."""

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import shorten

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging
from transformers.utils.hub import cached_file, extract_commit_hash

from utils import layout
from utils.files import read_json, read_object, relative, write_json, writing_folder
from utils.running import InputError

SHORT_NAMES = Path(__file__).parents[2] / "configs" / "models.json"
# what decides the numbers of a model in a folder
MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.py", "*.jinja")
MODEL_FILES += ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*")
MODEL_FILES += ("vocab*", "merges.txt", "*.model", "*.tiktoken")
PICKLES = ("*.bin", "*.pt", "*.pth")
GGUF_FOLDER = ".gguf"  # in offline/: models that came as one file
LARGE = 1 << 26  # bytes; smaller files are hashed in no time


def resolve_model(name: str) -> str:
    """What `from_pretrained` takes for `--model_name`: a short name, a folder, a hub id, or a
    `.gguf` file, which is dequantised into a folder the first time."""
    known = read_json(SHORT_NAMES, "the list of models")
    if name in known:
        return known[name]
    for path in (Path(name), layout.ROOT_DIR / name):
        if (path / "config.json").is_file():
            return str(path)
        if _is_gguf(path) and path.is_file():
            return str(_dequantised(name, path))
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or _is_gguf(Path(name)):
        raise InputError(
            f"--model_name {name}: there is no such file or folder, or no config.json in it; give "
            f"a folder, a .gguf file, a hub id such as owner/name, or one of {', '.join(known)}"
        )
    return name


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def _dequantised(name: str, file: Path) -> Path:
    """The folder of the model in `file`, every weight in float32, named after the file's hash.

    It is an ordinary model folder, so adapters load in `peft` on it. transformers takes half a
    minute to read even a small GGUF file, which every stage would spend.
    """
    folder = layout.ROOT_DIR / "offline" / GGUF_FOLDER / f"{file.name}@{_file_hash(file)[:16]}"
    if folder.is_dir():
        return folder
    print(f"{relative(file)}: dequantised into {relative(folder)}, once", file=sys.stderr)
    logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    with failures_named("model", name, str(file)):
        read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        # what was read counts as quantised, which transformers does not save
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(**source))
        model.load_state_dict(read.state_dict(), assign=True)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    with writing_folder(folder, keep=Path.is_dir) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
    return folder


def model_identity(name: str) -> str:
    """What tells one model from another: `{name}@{short hash}+{hash}` for a folder (that of a
    `.gguf` file is named after the file's hash), for a hub id the id and its commit.

    The hash is of every byte that decides numbers: weights, configuration, tokenizer and template.
    The short one, of the configuration and both ends of the weights, is all that commit ee391bc and
    before recorded (see `journal.agree`).
    """
    path = Path(resolve_model(name))
    if not path.is_dir():
        with failures_named("model", name, str(path)):
            commit = extract_commit_hash(cached_file(str(path), "config.json"), None)
        return f"{path}+{commit}" if commit else str(path)
    digest = hashlib.sha256((path / "config.json").read_bytes())
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as weights:
            size = file.stat().st_size
            digest.update(f"{file.name} {size}".encode() + weights.read(1 << 20))
            weights.seek(max(0, size - (1 << 20)))
            digest.update(weights.read())
    files = sorted({file for pattern in MODEL_FILES for file in path.glob(pattern)})
    whole = hashlib.sha256("".join(f"{f.name} {_file_hash(f)} " for f in files).encode())
    return f"{path.resolve().name}@{digest.hexdigest()[:16]}+{whole.hexdigest()[:16]}"


def _file_hash(file: Path) -> str:
    """The hash of every byte of a file; that of a large one is kept under `offline/`."""
    stat, where = file.stat(), str(file.resolve())
    state = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    kept, found = layout.ROOT_DIR / "offline" / ".model_hashes.json", {}
    if stat.st_size >= LARGE:
        with suppress(InputError):  # there is none yet, or it is damaged
            found = read_object(kept, "the hashes")
    if found.get(where, [])[1:] == state:
        return found[where][0]
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if stat.st_size >= LARGE:
        with suppress(InputError):  # a disk that takes no file: hashed again next time
            write_json(kept, found | {where: [digest, *state]})
    return digest


@contextmanager
def failures_named(what: str, name: str, path: str) -> Iterator[None]:
    """Make an `InputError` of whatever transformers raises on a model that it cannot load."""
    try:
        yield
    except Exception as error:  # it documents none, and a bad configuration makes it raise many
        if isinstance(error, MemoryError | RuntimeError) and "memory" in f"{error!r}".lower():
            raise
        words = shorten(str(error), 400) or type(error).__name__
        remedy = "check the name, the network and your access, or download it and give its folder"
        if Path(path).is_file():
            remedy = "fetch the file again, or give a model folder if transformers has no such kind"
        if Path(path).is_dir():
            remedy = "check its files (config.json, tokenizer, safetensors), or fetch them again"
            pickles = [file.name for kind in PICKLES for file in sorted(Path(path).glob(kind))]
            if what == "model" and pickles and not any(Path(path).glob("*.safetensors")):
                words = f"its weights ({pickles[0]}) are a pickle, which can run code"
                remedy = "convert them, such as with save_pretrained of transformers: safetensors"
        raise InputError(
            f"the {what} of --model_name {name} ({path}) cannot be loaded: "
            f"{words.rstrip(' .:')}; {remedy}"
        ) from None
