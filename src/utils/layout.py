"""Where every file is: `data_aug/`, `offline/` and `output/` as the original software has them."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from root_dir_path import ROOT_DIR
from utils.running import InputError

if TYPE_CHECKING:
    from utils.recipe import Recipe


# what else is in the folders that a data set's name is put into
NO_DATASETS = ("warmup", "base_weight", "warmup_direct", "warmup_cot")

CORPUS = "corpus"  # the data type of all passages of an index
POOL = "pool"  # the adapters that all passages of an experiment share (`--shared`)
COUNTERFACTUAL = "_counterfactual"  # ends a data type that benchmarks/counterfactual.py makes


def folder_name(name: str) -> str:
    """`name` as one safe path component: a model folder or hub id becomes its last part. Raises
    `InputError` if nothing usable is left: no name may lead out of its folder, or hide in it."""
    safe = re.sub(r"[^\w.+=-]", "_", re.split(r"[/\\]", name.rstrip("/\\"))[-1])
    if not safe.strip("._") or safe[0] == "." or len(safe.encode()) > 150:
        raise InputError(
            f"{name!r} cannot be used as a folder name; use letters, digits, '-', '_' and, but not "
            "first, '.', at most 150 bytes"
        )
    return safe


def dataset_folder(dataset: str) -> str:
    """The `folder_name` of a data set. Raises `InputError` if other things have that folder."""
    if (name := folder_name(dataset)) in NO_DATASETS:
        raise InputError(
            f"a data set cannot be called {name!r}: that folder is the warm-up's or "
            "the base adapter's; give another --dataset"
        )
    return name


def index_folder(index_name: str) -> Path:
    """`index/{index_name}`, where the embedded engine keeps an index."""
    if folder_name(index_name) != index_name or index_name.startswith("-"):
        raise InputError(
            f"--index_name {index_name!r}: use letters, digits, '.', '_' and, but not first, '-'"
        )
    return ROOT_DIR / "index" / index_name


def made_corpus(index: Path) -> Path:
    """`index/{index_name}.tsv`, the corpus that `prep_elastic.py` makes of contexts or texts."""
    return index.with_name(f"{index.name}.tsv")


def augmented_file(dataset: str, data_type: str) -> Path:
    """`data_aug/{dataset}/{data_type}.json`, the product of `augment.py`."""
    return ROOT_DIR / "data_aug" / dataset_folder(dataset) / f"{folder_name(data_type)}.json"


def rank_folder(model_name: str, rank: int, alpha: float, root: str = "offline") -> Path:
    """`{root}/{model}/rank={rank}_alpha={alpha}`; in "offline" with `base_weight`, all adapters."""
    return ROOT_DIR / root / folder_name(model_name) / f"rank={rank}_alpha={alpha:g}"


def experiment_folder(root: str, recipe: "Recipe") -> Path:
    """`{root}/{model}/rank=…/{dataset}/{training}/aug_model={model}`; root: "offline", "output"."""
    rank = rank_folder(recipe.model_name, recipe.lora_rank, recipe.lora_alpha, root)
    training = rank / dataset_folder(recipe.dataset) / recipe.training_label
    return training / f"aug_model={folder_name(recipe.writer)}"


def adapters_folder(recipe: "Recipe", data_type: str) -> Path:
    """The folder of one data type's adapters, which are in `data_{did}/passage_{pid}/` below it."""
    if recipe.shared and folder_name(data_type) == POOL:
        raise InputError(f"with --shared a data type cannot be called {POOL!r}; rename its file")
    return experiment_folder("offline", recipe) / folder_name(data_type)


def pool_folder(experiment: Path) -> Path:
    """The folder, in that of an experiment, of the adapters that its passages share."""
    return experiment / POOL


def pool_of(adapter: Path) -> Path:
    """The folder of the pool that the passage in the folder `adapter` has its weights of."""
    return pool_folder(adapter.parents[2])


def results_folder(recipe: "Recipe", data_type: str) -> Path:
    """The folder under `output/` that holds `config.json`, `predict.json` and `result.txt`."""
    return experiment_folder("output", recipe) / recipe.method_label / folder_name(data_type)


def neighbours_file(adapters: Path) -> Path:
    """What says beside which passages a data type's adapters were trained (`--neighbours`)."""
    return adapters / "neighbours.json"


def groups_file(recipe: "Recipe") -> Path:
    """In which groups the adapters of an experiment with a corpus were trained."""
    return experiment_folder("offline", recipe) / "groups.json"


def packed_file(adapters: Path) -> Path:
    """The tar that `adapters.py pack` makes of a data type's folder of adapters."""
    return adapters.with_name(f"{adapters.name}.tar")


def data_types_under(experiment: Path) -> list[Path]:
    """The folders of the data types that have adapters in the folder `experiment`, sorted."""
    return sorted(f for f in experiment.glob("[!.]*") if any(f.glob("data_*")))


def experiments() -> list[Path]:
    """The folders of all experiments that have adapters under `offline/`, sorted."""
    return sorted((ROOT_DIR / "offline").glob("[!.]*/rank=*/[!.]*/lr=*/aug_model=*"))


def warmup_folder(model_name: str, rank: int, alpha: float, with_cot: bool) -> Path:
    """Where `warmup_lora.py` leaves the adapter that passages can start from."""
    return rank_folder(model_name, rank, alpha) / f"warmup_{'cot' if with_cot else 'direct'}"


def passage_folder(adapters: Path, did: int, pid: int) -> Path:
    """`{adapters}/data_{did}/passage_{pid}`: one passage's PEFT adapter."""
    return adapters / f"data_{did}" / f"passage_{pid}"
