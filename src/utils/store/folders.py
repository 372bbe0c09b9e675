"""Adapters on disk: folders that `PeftModel.from_pretrained` loads, and a record of what made them.

With `--shared` a passage's folder has its weights of the pool's adapters and the record alone; the
pool is a folder for peft, once for an experiment. What reads here gives the adapter in both cases.

What is read is checked: an adapter that loads as nothing gives wrong numbers without a word.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from threading import Lock

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from utils.files import read_object, relative, writing_folder
from utils.layout import pool_of
from utils.lora.bank import FUSED_MODULES, TARGET_MODULES, Adapter
from utils.lora.shared import routed
from utils.provenance import PROVENANCE, provenance
from utils.running import InputError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
TRAINING_FILE = "training_config.json"
ROUTING_FILE = "routing.safetensors"  # in the place of the first two: weights of the pool's M
WEIGHTS_HASH = "weights_hash"  # in the training file, so that a damaged adapter never passes
# settings of peft with which the same weights mean something else than alpha / rank times B A
OTHER_KINDS = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save")

READING = Lock()  # threads read passages of one pool: it must not be read twice

Shapes = dict[str, tuple[tuple[int, int], tuple[int, int]]]


@dataclass(frozen=True)
class Content:
    """What a file holds now: equal for all folders that hard links give the same file, and another
    one as soon as the file is written again."""

    path: Path = field(compare=False)
    identity: tuple[int, ...]

    @classmethod
    def of(cls, path: Path) -> "Content":
        """The content of the file at `path`; `OSError` without one."""
        found = path.stat()
        return cls(path, (found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns))


def _key(name: str, part: str) -> str:
    return f"base_model.model.{name}.lora_{part}.weight"


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def is_shared(folder: Path) -> bool:
    """Whether the adapter in `folder` is its weights of a pool."""
    return (folder / ROUTING_FILE).is_file()


def weights_file(folder: Path) -> Path:
    """The file of the adapter's own numbers in `folder`."""
    return folder / (ROUTING_FILE if is_shared(folder) else WEIGHTS_FILE)


def adapter_files(folder: Path) -> tuple[str, ...]:
    """The names of the files that the adapter in `folder` is."""
    if is_shared(folder):
        return ROUTING_FILE, TRAINING_FILE
    return CONFIG_FILE, WEIGHTS_FILE, TRAINING_FILE


def is_stored(folder: Path) -> bool:
    """Whether there is an adapter in `folder`."""
    return weights_file(folder).is_file()


def stored_adapters(adapters: Path) -> list[Path]:
    """The folders of a data type's adapters, in the order of their questions and passages."""
    named = re.compile(r"data_(\d{1,9})/passage_(\d{1,9})")  # and not "data_0 (copy)"
    places = {f: named.fullmatch("/".join(f.parts[-2:])) for f in adapters.glob("data_*/passage_*")}
    folders = [folder for folder, place in places.items() if place and is_stored(folder)]
    return sorted(folders, key=lambda folder: [int(number) for number in places[folder].groups()])


def fingerprint(adapter: Adapter) -> str:
    """A short hash of an adapter's numbers."""
    digest = hashlib.sha256()
    for name in sorted(adapter):
        for tensor in adapter[name]:
            digest.update(tensor.float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def stored_fingerprint(folder: Path) -> str | None:
    """The fingerprint of the adapter in `folder`, None without one."""
    if not is_stored(folder):
        return None
    adapter: dict[str, tuple[torch.Tensor, ...]] = {}
    for key, tensor in sorted(read_weights(folder).items()):  # A before B
        name = key.rpartition(".lora_")[0]
        adapter[name] = (*adapter.get(name, ()), tensor)
    return fingerprint(adapter)


def sound_fingerprint(folder: Path) -> str | None:
    """The fingerprint of the adapter in `folder`, None without one that can be read."""
    try:
        return stored_fingerprint(folder)
    except InputError:
        return None


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors in `folder`, as saved; `InputError` if they cannot be read or were changed, or
    if they are weights of another pool than the one that is there."""
    try:
        data = weights_file(folder).read_bytes()
        tensors, found = load(data), _hash(data)
        # an adapter that something else made has no record
        record = _record(folder) if (folder / TRAINING_FILE).exists() else {}
        if record.get(WEIGHTS_HASH, found) != found:
            raise ValueError("its hash differs: it was changed after it was saved")
    except (OSError, SafetensorError, ValueError) as error:
        raise _refusal(folder, f"cannot be read ({error})") from None
    if is_shared(folder) and record.get("base") != _pool(folder)[1]:
        raise _refusal(folder, f"has weights of another pool than {relative(pool_of(folder))}")
    return tensors


def _pool(folder: Path) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors, as float32, and the fingerprint of the pool of which `folder` has weights."""
    pool = pool_of(folder)
    try:
        files = [Content.of(pool / name) for name in (WEIGHTS_FILE, TRAINING_FILE)]
    except OSError as error:
        where = relative(pool)
        raise InputError(
            f"the pool {where} cannot be read ({error.strerror}); put it back, or run "
            "encode.py to train it again"
        ) from None
    with READING:
        return _read_pool(*files)


@lru_cache(maxsize=2)  # passages of one pool have the same tensors: a merge adds them
def _read_pool(weights: Content, record: Content) -> tuple[dict[str, torch.Tensor], str]:
    pool = weights.path.parent
    return {key: t.float() for key, t in read_weights(pool).items()}, stored_fingerprint(pool)


def _refusal(folder: Path, problem: str) -> InputError:
    where = relative(folder)
    file = relative(weights_file(folder))
    return InputError(f"adapter {file} {problem}; delete {where} and make it again")


def _record(folder: Path) -> dict:
    if not (folder / TRAINING_FILE).exists():
        problem = f"adapter {relative(folder)} has no {TRAINING_FILE} that says how it was made"
        raise InputError(f"{problem}; put it back, or delete the folder and make it again")
    return _read_record(Content.of(folder / TRAINING_FILE))


@lru_cache(1 << 13)  # each is asked for by the check, the result's settings and the weights' reader
def _read_record(file: Content) -> dict:
    return read_object(file.path, "the record of an adapter,")


def weights_hash(folder: Path) -> str | None:
    """The hash of the weights that were saved in `folder`; None if something else made them."""
    return _record(folder).get(WEIGHTS_HASH)


def read_training(folder: Path) -> dict | None:
    """The settings that made the adapter in `folder`, None without one."""
    if not is_stored(folder):
        return None
    record = _record(folder)
    return {name: record[name] for name in record if name not in (PROVENANCE, WEIGHTS_HASH)}


def save_adapter(
    adapter: Adapter | torch.Tensor,
    folder: Path,
    alpha: float,
    base_model: str,
    training: dict,
    dtype: torch.dtype = torch.float32,
    replace: bool = True,
) -> None:
    """Write the adapter as a folder that `PeftModel.from_pretrained` loads, whole or not at all; of
    one that is the weights `[L, M]` of a pool's adapters these, for `load_adapter` alone.

    `training` says what made it. An adapter that is there is replaced; without `replace` it stays,
    also one that another process has just written. `InputError` if it is not finite in `dtype`.
    """
    shared = isinstance(adapter, torch.Tensor)
    tensors = (
        {"routing": adapter}
        if shared
        else {
            _key(name, part): tensor
            for name, pair in adapter.items()
            for part, tensor in zip("AB", pair, strict=True)
        }
    )
    tensors = {key: tensor.to(dtype).contiguous() for key, tensor in tensors.items()}
    if not _finite(tensors):
        raise InputError(
            f"the adapter for {relative(folder)} has numbers that are not finite in {dtype}; use "
            "--save_dtype float32, or a smaller --merge_scale or --learning_rate"
        )
    config = None if shared else _config(adapter, alpha, base_model)
    with writing_folder(folder, None if replace else is_stored) as temporary:
        file = temporary / (ROUTING_FILE if shared else WEIGHTS_FILE)
        save_file(tensors, file, metadata={"format": "pt"})
        made = {**training, WEIGHTS_HASH: _hash(file.read_bytes()), PROVENANCE: provenance()}
        for name, value in ((CONFIG_FILE, config), (TRAINING_FILE, made))[shared:]:
            text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
            (temporary / name).write_text(text, encoding="utf-8")


def _config(adapter: Adapter, alpha: float, base_model: str) -> dict:
    """What peft has to know of an adapter."""
    targets = sorted({name.rpartition(".")[2] for name in adapter})
    config = LoraConfig(
        r=len(next(iter(adapter.values()))[0]),
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=targets,
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=base_model,
    ).to_dict()
    return {**config, "target_modules": targets}  # peft's set has another order in each run


def load_adapter(folder: Path, shapes: Shapes) -> Adapter:
    """The adapter in `folder` as float32; it must never load as nothing. Raises `InputError` unless
    it is finite and fits the bank's `shapes`; one that is weights of a pool's M has M times their
    rank."""
    tensors = read_weights(folder)
    if not is_shared(folder):
        return _fitting(folder, tensors, shapes)
    weights = tensors.get("routing", torch.empty(0))
    if weights.shape[:1] != (len(shapes),) or weights.dim() != 2 or not _finite(tensors):
        raise _refusal(folder, f"does not fit this model: it has shape {tuple(weights.shape)}")
    count = weights.shape[1]
    wide = {n: ((count * A[0], A[1]), (B[0], count * B[1])) for n, (A, B) in shapes.items()}
    return routed(_fitting(pool_of(folder), _pool(folder)[0], wide), weights.float())


def _fitting(folder: Path, tensors: dict[str, torch.Tensor], shapes: Shapes) -> Adapter:
    """The adapter of the `tensors` that are stored in `folder`."""
    expected = {
        _key(name, part): shape
        for name, both in shapes.items()
        for part, shape in zip("AB", both, strict=True)
    }
    missing, unexpected = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or unexpected:
        found = f"{len(missing)} keys missing, {len(unexpected)} unexpected"
        raise _refusal(folder, f"does not fit this model: {found}: {min(missing | unexpected)}")
    for key, shape in expected.items():
        if (found := tuple(tensors[key].shape)) != shape:
            raise _refusal(folder, f"does not fit this model: {key} has shape {found}, not {shape}")
    if not _finite(tensors):
        raise _refusal(folder, "holds NaN or infinity")
    parts = [tensors[key].float() for key in expected]
    return dict(zip(shapes, zip(parts[::2], parts[1::2], strict=True), strict=True))


def _finite(tensors: dict[str, torch.Tensor]) -> bool:
    # all at once: a check for each of some hundred small tensors takes longer than reading them.
    # The largest is NaN if one is; `isfinite` takes ten times as long
    every = torch.cat([tensor.flatten() for tensor in tensors.values()])
    return bool(every.abs().max() < torch.inf)


def check_config(folder: Path, rank: int, alpha: float, what: str, remedy: str) -> None:
    """Raise `InputError` unless `folder` holds LoRA of this rank and alpha on the right layers.
    `what` begins the sentence ("--init_adapter: "), `remedy` ends it."""
    path, layers = folder / CONFIG_FILE, sorted(TARGET_MODULES)
    config = read_object(path, "the adapter's configuration")
    if set(config.get("target_modules") or ()) == {*FUSED_MODULES}:
        layers = sorted(FUSED_MODULES)  # whether they are the model's, its weights' names tell
    wanted = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": layers}
    wanted |= dict.fromkeys(OTHER_KINDS)
    for name, value in wanted.items():
        found = config.get(name) or None  # of OTHER_KINDS any empty value says no
        found = sorted(found) if isinstance(found, list) else found
        if found != value:
            raise InputError(
                f"{what}{relative(path)} has {name} = {json.dumps(found)}, but this run needs "
                f"{json.dumps(value)}; {remedy}"
            )
