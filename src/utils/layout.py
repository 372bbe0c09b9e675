"""Where every file is: `data_aug/`, `offline/` and `output/` as the original software has them."""

import re
from pathlib import Path

from root_dir_path import ROOT_DIR
from utils.running import InputError


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


def index_folder(index_name: str) -> Path:
    """`index/{index_name}`, where the embedded engine keeps an index.

    Raises `InputError` where `index_name` is no usable folder name.
    """
    if folder_name(index_name) != index_name or index_name.startswith("-"):
        raise InputError(
            f"--index_name {index_name!r} is no name of a folder; use letters, digits, '.', '-' "
            "and '_', no '-' first"
        )
    return ROOT_DIR / "index" / index_name


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


def experiments() -> list[Path]:
    """The folders of all experiments whose adapters stand under `offline/`, sorted."""
    return sorted((ROOT_DIR / "offline").glob("[!.]*/rank=*/[!.]*/lr=*/aug_model=*"))


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
