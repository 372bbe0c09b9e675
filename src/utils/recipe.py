"""What an adapter and an answer are made with, each setting said once.

From the fields of `Recipe` follow the flags of all stages, `training_config.json`, `config.json`,
the folders under `offline/` and `output/`, what the report compares and what is refused. A setting
that a file does not hold has its default, so a new field leaves every adapter and result valid.
"""

import argparse
import ast
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from utils.arguments import (
    positive_integer,
    positive_number,
    probability,
    sample_number,
    seed_number,
    whole_number,
)
from utils.layout import folder_name


def names_in(room: str, registry: str) -> tuple[str, ...]:
    """The keys of the dict `registry` in `utils/{room}`, read as text: its imports are heavy."""
    tree = ast.parse((Path(__file__).parent / room).read_text(encoding="utf-8"))
    for node in tree.body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if any(getattr(target, "id", None) == registry for target in targets):
            return tuple(k.value for k in node.value.keys if isinstance(k, ast.Constant))
    raise LookupError(f"utils/{room} has no dict {registry}")


ACTIVE = names_in("active/__init__.py", "ACTIVE")
AT_ONCE = ("closed_book", "icl", "da_icl", "prag", "combine")  # of these: a prompt, an answer
METHODS = (*AT_ONCE, *ACTIVE)
IN_CONTEXT = ("icl", "da_icl", "combine")  # of these: passages are in the prompt
IN_PARAMETERS = ("prag", "combine")  # of these: adapters are in the model
DTYPES = ("auto", "float32", "bfloat16", "float16")
SAVE_DTYPES = DTYPES[1:]
SERVER_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those of vLLM's --max-lora-rank
AUGMENT_PARTS = ("rewrite", "qa")
# what a field belongs to -> the title of its flags in --help
GROUPS = {
    "model": "model and prompts",
    "data": "data",
    "adapter": "adapters (the same in encode.py and inference.py)",
    "merging": "merging (prag and combine)",
    "control": "controls: what separates knowledge from format (docs/evidence.md)",
    "answer": "answering",
    "active": "retrieval while answering (flare and dragin: docs/methods.md)",
    "flare": "flare (arXiv:2305.06983)",
    "dragin": "dragin (arXiv:2403.10081)",
}
# groups of settings that only some methods read -> these, and why others do not
ONLY_OF = {
    "merging": (IN_PARAMETERS, "merges no adapters"),
    "active": (ACTIVE, "does not retrieve while it answers"),
    "flare": (("flare",), "has no such setting"),
    "dragin": (("dragin",), "has no such setting"),
}


def augment_parts(text: str) -> str:
    """`--augment_parts` in its one form: "rewrite,qa", "rewrite", "qa" or "none"."""
    parts = set() if text == "none" else set(text.split(","))
    if unknown := parts - set(AUGMENT_PARTS):
        raise argparse.ArgumentTypeError(
            f"{min(unknown)!r} is not a part; use rewrite,qa or rewrite or qa or none"
        )
    return ",".join(part for part in AUGMENT_PARTS if part in parts) or "none"


def _setting(
    of: str,
    default: Any,
    help: str,
    label: Callable[[Any], str] | None = None,
    recorded: bool = True,
    **flag: Any,
) -> Any:
    """A field of `Recipe` in the group `of`, with argparse's arguments of its flag.

    `label` gives what a value other than the default adds to the folder's name; `recorded` says
    whether the value itself is kept in settings files (else `Experiment` keeps what it stands for).
    """
    flag |= {"help": help, "default": default}
    if default is False:
        flag["action"] = "store_true"
    metadata = {"of": of, "flag": flag, "label": label, "recorded": recorded}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Recipe:
    """All settings of an experiment. The order of the fields is the order of a folder's labels."""

    # fmt: off
    model_name: str = _setting(
        "model", None, "short name of configs/models.json, a folder, a .gguf file, or a hub id",
        required=True, recorded=False,
    )
    dtype: str = _setting(
        "model", "auto", "auto: bfloat16 on a GPU, float32 on a CPU", choices=DTYPES, recorded=False
    )
    prompts: str = _setting(
        "model", "default", "prompt set: a name in src/prompts/ or a .json file", recorded=False
    )
    trust_remote_code: bool = _setting(
        "model", False, "run code that comes with a model (only if you trust it)", recorded=False
    )
    device_map: str | None = _setting(
        "model", None, "auto: spread a model too large for one GPU over all (not set: one GPU)",
        choices=["auto"], recorded=False,
    )

    dataset: str = _setting(
        "data", None, "a published data set (docs/datasets.md), or your own name",
        required=True, recorded=False,
    )
    data_type: str | None = _setting(
        "data", None, "one data type only (not set: all of the data set)", recorded=False
    )
    sample: int = _setting(
        "data", -1, "first N questions of each data type (-1: all)", type=sample_number
    )

    augment_model: str | None = _setting(
        "adapter", None, "model that wrote the augmentation (not set: --model_name)", recorded=False
    )
    with_cot: bool = _setting(
        "adapter", False, "answers with their reasoning (chain of thought)", label=lambda _: "_cot"
    )
    lora_rank: int = _setting("adapter", 2, "rank of an adapter", type=positive_integer)
    lora_alpha: float = _setting("adapter", 32, "adapters count alpha / rank", type=positive_number)
    learning_rate: float = _setting("adapter", 3e-4, "AdamW's constant rate", type=positive_number)
    num_train_epochs: int = _setting("adapter", 1, "passes over the prompts", type=positive_integer)
    per_device_train_batch_size: int = _setting(
        "adapter", 1, "prompts per optimiser step of one adapter", type=positive_integer
    )
    max_length: int = _setting(
        "adapter", 3000, "tokens of a training prompt; a longer one has its passage shortened",
        type=positive_integer,
    )
    seed: int = _setting(
        "adapter", 0, "seed of the base adapter that all passages start from", type=seed_number
    )
    init_adapter: str = _setting(
        "adapter", "random",
        "what every passage starts from: random, warmup (warmup_lora.py), or a PEFT folder",
        label=lambda name: "_warmup" if name == "warmup" else f"_init={folder_name(name)}",
    )
    augment_parts: str = _setting(
        "adapter", "rewrite,qa", "augmentation in the prompts: rewrite,qa or rewrite or qa or none",
        type=augment_parts, label=lambda parts: f"_parts={parts}",
    )
    objective: str = _setting(
        "adapter", "lm", "loss that adapters are trained on (lm: all tokens, as the paper)",
        choices=names_in("lora/objectives.py", "OBJECTIVES"),
        label=lambda name: f"_objective={name}",
    )
    adapters: str = _setting(
        "adapter", "trained", "where adapters come from",
        choices=names_in("sources/__init__.py", "SOURCES"), label=lambda name: f"_adapters={name}",
    )
    neighbours: int = _setting(
        "adapter", 0, "passages whose adapters each one meets while it is trained (0: the paper)",
        type=whole_number, label=lambda count: f"_neighbours={count}",
    )
    schedule: str = _setting(
        "adapter", "constant",
        "learning rate over the passes (halving: each begins AdamW again at half the rate)",
        choices=names_in("lora/training.py", "SCHEDULES"),
        label=lambda name: f"_schedule={name}",
    )
    shared: int = _setting(
        "adapter", 0,
        "adapters in a pool that all passages share: each keeps its weights of them alone (0: the "
        "paper, an adapter for each passage)",
        type=whole_number, label=lambda count: f"_shared={count}",
    )

    merge_topk: int | None = _setting(
        "merging", None, "passages to merge (not set: all of them)", type=positive_integer,
        label=lambda topk: f"_topk={topk}",
    )
    merge: str = _setting(
        "merging", "sum", "how a question's adapters become one",
        choices=names_in("lora/merges.py", "MERGES"), label=lambda name: f"_{name}",
    )
    merge_scale: float = _setting(
        "merging", 1.0, "factor of the merged adapter", type=positive_number,
        label=lambda scale: f"_scale={scale:g}",
    )

    leave_out: str | None = _setting(
        "control", None,
        "gold: passages that hold a right answer, or that the data set names as supporting, are "
        "neither merged nor in the prompt (not set: none is left out)",
        choices=["gold"], label=lambda what: f"_without={what}",
    )
    noise: str | None = _setting(
        "control", None,
        "passages of each question that others of the data type replace at random, in the prompt "
        "and among the adapters (not set: none)",
        choices=["first", "last", "all"], label=lambda place: f"_noise={place}",
    )
    locality: str | None = _setting(
        "control", None,
        "JSON file of other questions, which are asked while each question's passages and adapters "
        "stay (not set: the data set's own questions)",
        label=lambda path: f"_locality={folder_name(Path(path).stem)}", recorded=False,
    )

    inference_method: str = _setting(
        "answer", None, "where the passages go", choices=METHODS, required=True
    )
    max_new_tokens: int = _setting("answer", 20, "most tokens of an answer", type=positive_integer)
    answer_cut: str = _setting(
        "answer", "mark",
        "where the scored answer ends: at the first comma or full stop, or with its line",
        choices=["mark", "none"], label=lambda cut: f"_cut={cut}",
    )
    batch_size: int | None = _setting(
        "answer", None, "questions answered side by side (not set: as many as fit)",
        type=positive_integer,
    )

    look_ahead: int = _setting(
        "active", 64, "tokens written at once, of which whole sentences are kept (both papers')",
        type=positive_integer, label=lambda count: f"_ahead={count}",
    )
    retrieve_topk: int = _setting(
        "active", 3, "passages per query (DRAGIN's; FLARE has 2 for 2WikiMultihopQA)",
        type=positive_integer, label=lambda count: f"_passages={count}",
    )
    max_retrievals: int = _setting(
        "active", 10, "most queries of a question (the papers: no limit but one per sentence)",
        type=positive_integer, label=lambda count: f"_rounds={count}",
    )
    flare_theta: float = _setting(
        "flare", 0.8,
        "retrieve for a sentence that has a token less probable than this (section 3.2.1; the "
        "paper's for 2WikiMultihopQA)",
        type=probability, label=lambda theta: f"_theta={theta:g}",
    )
    flare_beta: float = _setting(
        "flare", 0.4,
        "tokens less probable than this are left out of the query (section 3.2.2; the paper's)",
        type=probability, label=lambda beta: f"_beta={beta:g}",
    )
    dragin_threshold: float = _setting(
        "dragin", 1.0,
        "retrieve for a sentence that has a word with a larger score (section 3.1; the authors: "
        "0.75 to 1.5, this for Llama-2-7B on 2WikiMultihopQA)",
        type=positive_number, label=lambda score: f"_threshold={score:g}",
    )
    dragin_words: int = _setting(
        "dragin", 25, "most words of a query (section 3.2; the authors: 25 or 35)",
        type=positive_integer, label=lambda count: f"_words={count}",
    )
    # fmt: on

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Recipe":
        """The recipe that parsed flags describe; a flag that a script does not have is default."""
        return cls(**{name: value for name, value in vars(options).items() if name in _FIELDS})

    @property
    def writer(self) -> str:
        """The model that wrote the augmentation."""
        return self.augment_model or self.model_name

    @property
    def training_label(self) -> str:
        """`lr={rate}_epoch={epochs}` and what differs from a plain adapter: a folder's name."""
        return f"lr={self.learning_rate}_epoch={self.num_train_epochs}" + self._labels("adapter")

    @property
    def method_label(self) -> str:
        """The method and what differs from a plain answer: a result's folder."""
        groups = ("merging", "control", "answer", "active", *ACTIVE)
        return self.inference_method + "".join(map(self._labels, groups))

    def _labels(self, group: str) -> str:
        """The labels of the settings of `group` that differ from their defaults."""
        labelled = {n: f for n, f in _FIELDS.items() if f.metadata["label"]}
        return "".join(
            f.metadata["label"](getattr(self, name))
            for name, f in labelled.items()
            if f.metadata["of"] == group and getattr(self, name) != f.default
        )

    @property
    def answer_settings(self) -> dict[str, Any]:
        """What an answer is made with beside adapters and data, as it is kept in files."""
        own = [self.inference_method] if self.inference_method in ACTIVE else []
        return self.settings("answer", "merging", *(own and ["active", *own]))

    def settings(self, *groups: str) -> dict[str, Any]:
        """The recorded settings of these groups, as they are kept in files."""
        return {
            name: getattr(self, name)
            for name, f in _FIELDS.items()
            if f.metadata["of"] in groups and f.metadata["recorded"]
        }

    def flags(self, *groups: str) -> str:
        """The flags of these groups that differ from their defaults, as typed in a shell."""
        words = []
        for name, f in _FIELDS.items():
            value = getattr(self, name)
            if f.metadata["of"] in groups and value not in (None, False, f.default):
                words += [f"--{name}"] + ([] if value is True else [str(value)])
        return shlex.join(words)

    def problem(self) -> str | None:
        """Why these settings make no sense together, for the parser's error, if they do not."""
        method = self.inference_method
        if method in ("closed_book", *ACTIVE) and (self.leave_out or self.noise):
            why = "reads none of the passages of stage 1; leave out --leave_out, --noise"
            return f"--inference_method {method} {why}"
        if method in ACTIVE and self.locality:
            why = "keeps no passages for other questions; leave out --locality"
            return f"--inference_method {method} {why}"
        if self.noise and self.adapters == "others":
            return "--noise is among the question's own adapters; leave out --adapters others"
        if self.objective != "lm" and "qa" not in self.augment_parts:
            return f"--objective {self.objective} needs questions; add qa to --augment_parts"
        if self.shared and self.neighbours:
            return "--neighbours trains an adapter for each passage; leave out --shared"
        if self.shared and self.adapters != "trained":
            return f"--adapters {self.adapters} is made of adapters alone; leave out --shared"
        if self.shared and self.merge == "base_once":
            return "--merge base_once needs a base in each adapter; leave out --shared"
        for group, (methods, why) in ONLY_OF.items():
            if method and method not in methods and (words := self.flags(group)):
                return f"--inference_method {method} {why}; leave out {words}"
        if self.merge == "base_once" and self.init_adapter == "random":
            return "--merge base_once needs --init_adapter: the delta of a random base is zero"
        return None


_FIELDS = {f.name: f for f in fields(Recipe)}
# the value of a setting that a file does not hold
DEFAULTS = {name: f.default for name, f in _FIELDS.items() if f.metadata["recorded"]}
DEFAULTS |= {"answers": "published", "pairs": 3}  # of augment.py
DEFAULTS |= {"constrained": False, "check_answers": False}


def add_flags(
    parser: argparse.ArgumentParser, *groups: str, **changed: dict | None
) -> dict[str, Any]:
    """Add the flags of these groups of settings; gives argparse's group of each for more. `changed`
    has other arguments for the flag of a name; None leaves it out."""
    made = {group: parser.add_argument_group(GROUPS[group]) for group in groups}
    for name, f in _FIELDS.items():
        group, other = made.get(f.metadata["of"]), changed.get(name, {})
        if group and other is not None:
            group.add_argument(f"--{name}", **{**f.metadata["flag"], **other})
    return made


def parse_recipe(
    parser: argparse.ArgumentParser, arguments: list[str] | None
) -> tuple[argparse.Namespace, Recipe]:
    """The parsed flags and the recipe among them; settings that contradict end the program."""
    options = parser.parse_args(arguments)
    recipe = Recipe.of(options)
    if problem := recipe.problem():
        parser.error(problem)
    return options, recipe
