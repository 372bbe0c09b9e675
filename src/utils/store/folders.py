"""Adapters on disk: folders that `PeftModel.from_pretrained` loads, and a record of what made them.

Whatever is read is checked, because an adapter that loads as nothing, or as another one, gives
wrong numbers without a word.
"""

import hashlib
import json
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from utils.files import (
    parse_json,
    parse_object,
    read_json,
    read_object,
    relative,
    writing_folder,
)
from utils.lora.bank import TARGET_MODULES, Adapter, LoraBank
from utils.provenance import PROVENANCE, provenance
from utils.running import InputError
from utils.store.adapter_packs import (
    CONFIG_FILE,
    REMEDY,
    TRAINING_FILE,
    TRIES,
    WEIGHTS_FILE,
    is_name,
    name_of,
    open_pack,
    pack_of,
)

WEIGHTS_HASH = "weights_hash"  # in the training file, so that a damaged adapter never passes


def _key(name: str, part: str) -> str:
    return f"base_model.model.{name}.lora_{part}.weight"


def fingerprint(adapter: Adapter) -> str:
    """A short hash of an adapter's numbers: tells whether passages started from the same base."""
    digest = hashlib.sha256()
    for name in sorted(adapter):
        for tensor in adapter[name]:
            digest.update(tensor.float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def stored_fingerprint(folder: Path) -> str | None:
    """The fingerprint of the adapter in `folder`, or None where none stands; needs no model."""
    if not is_stored(folder):
        return None
    tensors = read_weights(folder)
    names = {key.rsplit(".lora_", 1)[0].removeprefix("base_model.model.") for key in tensors}
    return fingerprint(
        {
            name: tuple(tensors[key] for part in "AB" if (key := _key(name, part)) in tensors)
            for name in names
        }
    )


def stands_unpacked(folder: Path) -> bool:
    """Whether the adapter's own folder is there: it comes before a pack that holds it too."""
    return (folder / WEIGHTS_FILE).is_file()


def is_stored(folder: Path) -> bool:
    """Whether the adapter stands, in its folder or in the pack of its data type."""
    if stands_unpacked(folder):
        return True
    pack = pack_of(folder)
    return pack is not None and name_of(folder) in pack.adapters


def stored_adapters(adapters: Path) -> list[Path]:
    """The folders of a data type's adapters, whether they stand or are packed, in their order.

    Raises `InputError` where the pack's index is damaged.
    """
    found = unpacked_adapters(adapters)
    if pack := open_pack(adapters):
        found |= {adapters / name for name in pack.adapters}
    return in_order(found)


def unpacked_adapters(adapters: Path) -> set[Path]:
    """The data type's adapters whose own folders stand."""
    folders = adapters.glob("data_*/passage_*")
    return {f for f in folders if is_name(name_of(f)) and stands_unpacked(f)}


def in_order(folders: set[Path]) -> list[Path]:
    """Adapters of a data type in the order of their questions and passages."""
    return sorted(folders, key=lambda f: [int(part.rpartition("_")[2]) for part in f.parts[-2:]])


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of the adapter in `folder`, as they were saved.

    Raises `InputError` where they cannot be read, or are not those that `save_adapter` hashed.
    """
    return _checked(folder)[0]


def read_adapter(folder: Path) -> dict[str, bytes]:
    """The adapter's three files by name, checked as `read_weights` does it.

    Raises `InputError` where one is missing or damaged.
    """
    files = {WEIGHTS_FILE: _checked(folder)[1]}
    for name in (CONFIG_FILE, TRAINING_FILE):
        try:
            if stands_unpacked(folder):
                files[name] = (folder / name).read_bytes()
                files[name].decode()
            else:
                files[name] = _packed_text(folder, name).encode()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{relative(folder / name)} cannot be read ({error}); {_remedy(folder)}"
            ) from None
    return files


def _remedy(folder: Path) -> str:
    packed = not stands_unpacked(folder) and is_stored(folder)
    return REMEDY if packed else f"delete {relative(folder)} and make it again"


def _checked(folder: Path) -> tuple[dict[str, torch.Tensor], bytes]:
    """The tensors and the bytes that they were read from."""
    path = folder / WEIGHTS_FILE
    try:
        data, is_sound = _weights_bytes(folder)
        tensors = load(data)
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(
            f"adapter {relative(path)} cannot be read ({error}); {_remedy(folder)}"
        ) from None
    lacking = stands_unpacked(folder) and not (folder / TRAINING_FILE).exists()
    if not is_sound and not lacking:
        made = _record(folder) or {}
        if WEIGHTS_HASH in made and made[WEIGHTS_HASH] != _hash(data):
            raise InputError(
                f"adapter {relative(path)} was changed after it was saved: its hash differs; "
                f"{_remedy(folder)}"
            )
    return tensors, data


def _weights_bytes(folder: Path) -> tuple[bytes, bool]:
    """The content of the weights file, and whether its hash was checked: a pack does that itself.

    Raises `OSError` where there is none.
    """
    path, name = folder / WEIGHTS_FILE, name_of(folder)
    for _ in range(TRIES):
        try:
            return path.read_bytes(), False
        except FileNotFoundError:
            pack = pack_of(folder)
        if pack is not None and name in pack.adapters:
            try:
                return pack.weights_of(name), True
            except InputError:
                if pack_of(folder) is pack:  # else it has just been replaced
                    raise
    return path.read_bytes(), False


def _record(folder: Path) -> dict | None:
    """The content of the adapter's training file, or None where no adapter stands.

    Raises `InputError` where it is missing or damaged.
    """
    path, what = folder / TRAINING_FILE, "the record of an adapter,"
    failure = InputError(f"{what} {relative(path)} does not exist")
    for _ in range(TRIES):
        if stands_unpacked(folder):
            try:
                return read_object(path, what)
            except InputError as error:
                failure = error
        elif (text := _packed_text(folder, TRAINING_FILE)) is not None:
            return parse_object(text, f"{what} {relative(path)}")
        elif not stands_unpacked(folder):
            return None
    raise failure


def _packed_text(folder: Path, file: str) -> str | None:
    pack = pack_of(folder)
    return pack.text(name_of(folder), file) if pack else None


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def save_adapter(
    adapter: Adapter,
    folder: Path,
    rank: int,
    alpha: float,
    base_model: str,
    training: dict,
    dtype: torch.dtype = torch.float32,
    replace: bool = True,
) -> None:
    """Write the adapter as a folder that `PeftModel.from_pretrained` loads, whole or not at all.

    `training` says what made it and goes into `training_config.json` beside the weights. Where an
    adapter stands it is replaced; without `replace` it stays, one that another process has just
    written included.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=list(TARGET_MODULES),
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=base_model,
    ).to_dict()
    # peft keeps this one as a set, whose order changes from run to run
    config["target_modules"] = sorted(config["target_modules"])
    tensors = {}
    for name, (A, B) in adapter.items():
        tensors[_key(name, "A")] = A.to(dtype).contiguous()
        tensors[_key(name, "B")] = B.to(dtype).contiguous()
    with writing_folder(folder, None if replace else stands_unpacked) as temporary:
        save_file(tensors, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        weights_hash = _hash((temporary / WEIGHTS_FILE).read_bytes())
        made = {**training, WEIGHTS_HASH: weights_hash, PROVENANCE: provenance()}
        for name, value in ((CONFIG_FILE, config), (TRAINING_FILE, made)):
            text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
            (temporary / name).write_text(text, encoding="utf-8")


def load_adapter(
    folder: Path, shapes: dict[str, tuple[tuple[int, int], tuple[int, int]]]
) -> Adapter:
    """The adapter in `folder` as float32, checked against the bank's `shapes`.

    Raises `InputError` where a key is missing or unexpected, a shape differs or a number is not
    finite: an adapter must never load as nothing.
    """
    path = folder / WEIGHTS_FILE
    remedy = _remedy(folder)
    tensors = read_weights(folder)
    expected = {
        _key(name, part): shape
        for name, both in shapes.items()
        for part, shape in zip("AB", both, strict=True)
    }
    missing, unexpected = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or unexpected:
        raise InputError(
            f"adapter {relative(path)} does not fit this model: {len(missing)} keys missing, "
            f"{len(unexpected)} unexpected, such as {min(missing | unexpected)}; {remedy}"
        )
    for key, shape in expected.items():
        if tuple(tensors[key].shape) != shape:
            raise InputError(
                f"adapter {relative(path)}: {key} has shape {tuple(tensors[key].shape)}, "
                f"the model needs {shape}; {remedy}"
            )
    # all at once: a check for each of some hundred small tensors takes longer than reading them
    if not torch.isfinite(torch.cat([tensor.flatten() for tensor in tensors.values()])).all():
        bad = min(key for key, tensor in tensors.items() if not torch.isfinite(tensor).all())
        raise InputError(f"adapter {relative(path)}: {bad} holds NaN or infinity; {remedy}")
    return {
        name: (tensors[_key(name, "A")].float(), tensors[_key(name, "B")].float())
        for name in shapes
    }


def read_training(folder: Path) -> dict | None:
    """What made the adapter in `folder`, or None where no whole adapter stands there.

    Its hash and who made it when are left out: they are no settings. Raises `InputError` where
    the record is damaged.
    """
    training = _record(folder)
    for name in (PROVENANCE, WEIGHTS_HASH) if training else ():
        training.pop(name, None)
    return training


def open_base_adapter(bank: LoraBank, folder: Path, base_model: str, seed: int) -> Adapter:
    """The base adapter in `folder`, made and saved there where it does not exist yet.

    Of several processes that make it at once the first one's stays: all make the same numbers.
    Raises `InputError` where the one that stands there was made from another seed.
    """
    made_with = {"seed": seed, "initialisation": "A kaiming_uniform(a=sqrt(5)), B zeros"}
    if not stands_unpacked(folder):
        adapter = bank.new_base_adapter(seed)
        save_adapter(adapter, folder, bank.rank, bank.alpha, base_model, made_with, replace=False)
    present = read_training(folder)
    if present != made_with:
        raise InputError(
            f"{relative(folder)} was made with {json.dumps(present)}, but this run asks for "
            f"{json.dumps(made_with)}; use --seed {present.get('seed')}, or move the folder "
            f"{relative(folder.parent)} away to start anew"
        )
    return load_adapter(folder, bank.shapes(bank.rank))


# settings of peft with which the same weights mean something else than alpha / rank times B A
OTHER_KINDS = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save")


def check_config(folder: Path, rank: int, alpha: float, what: str, remedy: str) -> None:
    """Refuse the adapter in `folder` unless it is LoRA of this rank and alpha on the right layers.

    `what` begins the sentence ("--init_adapter: "), `remedy` ends it. Raises `InputError`.
    """
    path = folder / CONFIG_FILE
    if stands_unpacked(folder):
        config = read_json(path, "the adapter's configuration")
    else:
        text = _packed_text(folder, CONFIG_FILE)
        config = parse_json(text or "", f"the adapter's configuration {relative(path)}")
    if not isinstance(config, dict):
        raise InputError(f"{relative(path)} holds no object; {remedy}")
    wanted = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha}
    wanted["target_modules"] = sorted(TARGET_MODULES)
    wanted |= dict.fromkeys(OTHER_KINDS)
    for name, value in wanted.items():
        found = config.get(name) or None  # of OTHER_KINDS any empty value says no
        found = sorted(found) if isinstance(found, list) else found
        if found != value:
            raise InputError(
                f"{what}{relative(path)} has {name} = {json.dumps(found)}, but this run "
                f"needs {json.dumps(value)}; {remedy}"
            )


def check_init_adapter(folder: Path, rank: int, alpha: float) -> None:
    """Refuse what stands in `folder` as a start for passages; this needs no model.

    Raises `InputError` unless it is a PEFT folder of LoRA weights with this rank and alpha, on the
    layers that passages are trained on.
    """
    remedy = "train one with: python src/warmup_lora.py, or give another --init_adapter"
    if not (folder / CONFIG_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise InputError(f"--init_adapter: there is no adapter in {relative(folder)}; {remedy}")
    check_config(folder, rank, alpha, "--init_adapter: ", remedy)
