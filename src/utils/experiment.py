"""A recipe opened: its prompts, tokenizer, records, work list and folders; no model weights yet."""

from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from transformers import PreTrainedModel

from utils.augmentation.records import read_sample
from utils.controls import controlled
from utils.files import hash_json
from utils.layout import (
    adapters_folder,
    experiment_folder,
    folder_name,
    passage_folder,
    pool_folder,
    rank_folder,
    warmup_folder,
)
from utils.lora.bank import LoraBank
from utils.lora.examples import Example
from utils.lora.objectives import OBJECTIVES
from utils.model_files import model_identity, resolve_model
from utils.models import (
    context_length,
    dtype_name,
    load_model,
    load_skeleton,
    load_tokenizer,
)
from utils.neighbours import read_groups
from utils.prompting import PromptEncoder, load_prompts
from utils.recipe import Recipe
from utils.running import InputError
from utils.store.base import check_init_adapter
from utils.warmup import refuse_trained_questions


@dataclass
class Work:
    """One adapter to make: its examples, their hash, and every folder that it is for; with
    neighbours also the hash of its group, whom it is trained `beside`, and the passage's entry."""

    examples: list[Example]
    data: str
    folders: list[Path]
    group: str | None = None
    beside: list[list[str]] | None = None
    entry: dict | None = None

    @property
    def record(self) -> dict:
        """What its `training_config.json` says of its data."""
        beside = {"beside": self.beside, "group": self.group} if self.group else {}
        return {"data": self.data} | beside


class Experiment:
    """What a recipe means on this machine.

    `records` are each data type's augmented records, `encoder` makes training prompts. Raises
    `InputError` if the recipe's model, prompts or data cannot be read.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.base_model = resolve_model(recipe.model_name)
        self.prompts = load_prompts(recipe.prompts, recipe.dataset, recipe.with_cot)
        self.records = read_sample(recipe.dataset, recipe.data_type, recipe.writer, recipe.sample)
        self.tokenizer = load_tokenizer(recipe.model_name, recipe.trust_remote_code)
        longest = context_length(recipe.model_name, recipe.trust_remote_code)
        self.encoder = self.encoder_for(min(recipe.max_length, longest))
        self._made: dict[tuple, tuple[list[Example], str]] = {}  # a passage is found many times

    @cached_property
    def settings(self) -> dict:
        """What the adapters are made with, apart from their data, as it is kept in files."""
        return {
            "model": model_identity(self.recipe.model_name),
            "augment_model": folder_name(self.recipe.writer),
            "prompts": self.prompts.fingerprint,
            **self.recipe.settings("adapter"),
        }

    @property
    def dtype(self) -> str:
        """The name of the dtype that the model has on this machine."""
        return dtype_name(self.recipe.dtype)

    @property
    def short_of(self) -> str:
        """A sentence if a data type has fewer questions than `--sample`, else ""."""
        asked = self.recipe.sample
        short = [f"{name} has {len(r)}" for name, r in self.records.items() if len(r) < asked]
        return f"fewer questions than --sample {asked}: {', '.join(short)}" if short else ""

    @property
    def corpora(self) -> list[str]:
        """The data types without questions: the passages of an index."""
        of_each = self.records.items()
        return [name for name, rows in of_each if all(one["question"] is None for one in rows)]

    def leave_out_corpora(self) -> str:
        """Keep the data types that have questions; a sentence if others are left out, else "".
        Raises `InputError` if there is nothing to ask."""
        corpora = self.corpora
        self.records = {name: self.records[name] for name in self.records if name not in corpora}
        if not self.records:
            raise InputError(
                f"{', '.join(corpora)} of {self.recipe.dataset} has passages but no questions, so "
                "there is nothing to answer and score; augment questions of its index with "
                "augment.py --data_path, or ask one with ask.py"
            )
        return f"without questions, left out: {', '.join(corpora)}" if corpora else ""

    @cached_property
    def trained(self) -> "Experiment":
        """The same with trained adapters, of which other sources make theirs."""
        trained = Experiment(replace(self.recipe, adapters="trained"))
        trained.records = {name: trained.records[name] for name in self.records}
        return trained

    @cached_property
    def asked(self) -> dict[str, list[dict]]:
        """The records as they are answered: of the recipe's controls, without any the `records`."""
        return {name: controlled(rows, self.recipe) for name, rows in self.records.items()}

    def encoder_for(self, max_length: int) -> PromptEncoder:
        """What makes prompts of at most `max_length` tokens."""
        return PromptEncoder(self.tokenizer, self.prompts, self.recipe.with_cot, max_length)

    def _examples(self, entry: dict) -> tuple[list[Example], str]:
        """The training examples of a passage's entry of the augmented data, and their hash."""
        key = (entry["passage"], entry["rewrite"], hash_json(entry["qa"]))
        if key not in self._made:
            examples = self.encoder.passage_examples(
                entry["passage"],
                entry["rewrite"],
                entry["qa"],
                self.recipe.augment_parts,
                getattr(OBJECTIVES[self.recipe.objective], "reads_teachers", False),
            )
            self._made[key] = examples, hash_json([example.ids for example in examples])
        return self._made[key]

    def forget_examples(self) -> None:
        """Give back the memory of the examples, once the works are checked."""
        self._made.clear()

    def works(
        self, passages: list[tuple[Path, dict]] | None = None, grouped: bool = True
    ) -> list[Work]:
        """The adapters of `passages` (None: all), each distinct training data once, in order. With
        neighbours, if `grouped`, once for each group that `neighbours.json` has it in."""
        if passages is None:
            questions = [one for data_type in self.records for one in self.passages(data_type)]
            passages = [passage for question in questions for passage in question]
        works: dict[tuple, Work] = {}
        groups = cache(read_groups) if self.recipe.neighbours and grouped else lambda adapters: {}
        for folder, entry in passages:
            examples, data = self._examples(entry)
            group, beside = groups(folder.parents[1]).get(data, (None, None))
            work = Work(examples, data, [], group, beside, entry)
            works.setdefault((data, group), work).folders.append(folder)
        return list(works.values())

    def passages(
        self, data_type: str, records: list[dict] | None = None
    ) -> list[list[tuple[Path, dict]]]:
        """Each question's passages: an adapter's folder and the entry of the augmented data. Those
        of `records` (None: the data type's own) may be "of" another question."""
        adapters = adapters_folder(self.recipe, data_type)

        def folder(did: int, entry: dict) -> Path:
            return passage_folder(adapters, entry.get("of", did), entry["pid"])

        rows = self.records[data_type] if records is None else records
        return [
            [(folder(did, entry), entry) for entry in record["augment"]]
            for did, record in enumerate(rows)
        ]

    @property
    def folder(self) -> Path:
        """The folder that holds the adapters of all its data types."""
        return experiment_folder("offline", self.recipe)

    @property
    def start(self) -> Path | None:
        """The adapter that `--init_adapter` names; None for random."""
        of = self.recipe
        if of.init_adapter == "warmup":
            return warmup_folder(of.model_name, of.lora_rank, of.lora_alpha, of.with_cot)
        return None if of.init_adapter == "random" else Path(of.init_adapter)

    @property
    def base_folder(self) -> Path:
        """The folder of the adapter that all passages start from, or of their pool (`--shared`)."""
        of = self.recipe
        if of.shared:
            return pool_folder(self.folder)
        return self.start or rank_folder(of.model_name, of.lora_rank, of.lora_alpha) / "base_weight"

    def check_start(self) -> None:
        """Raise `InputError` if passages cannot start from what `--init_adapter` names."""
        if self.start:
            check_init_adapter(self.start, self.recipe.lora_rank, self.recipe.lora_alpha)

    def refuse_trained_questions(self) -> None:
        """Raise `InputError` if the warm-up was trained on a question that is answered here."""
        if self.start:
            rows = [record for rows in self.asked.values() for record in rows]
            asked = [row["question"] for row in rows if row["question"] is not None]
            refuse_trained_questions(self.start, asked)

    def load_model(self) -> PreTrainedModel:
        """The model, frozen, on the best device."""
        of = self.recipe
        trusted = of.trust_remote_code
        return load_model(of.model_name, of.dtype, self.tokenizer, trusted, of.device_map)

    def bank(self, model: PreTrainedModel | None = None) -> LoraBank:
        """The places for adapters in `model`, or in one without weights that needs no memory."""
        if model is None:
            model = load_skeleton(self.recipe.model_name, self.recipe.trust_remote_code)
        return LoraBank(model, self.recipe.lora_rank, self.recipe.lora_alpha)
