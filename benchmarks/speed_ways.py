"""The ways of encoding and answering that `speed.py` measures, and the work that they do."""

import argparse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from clock import Stage
from published_loop import answer_question, encode_passage
from random_work import TokenNumbers, config_of, random_model, random_prompts
from speed_report import agreement
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from utils.augmentation.records import read_sample
from utils.files import hash_json
from utils.generation import generate
from utils.layout import passage_folder
from utils.lora.bank import Adapter, LoraBank
from utils.lora.examples import Example, Steps
from utils.lora.memory import adapters_that_fit, prompts_that_fit, training_bytes
from utils.lora.neighbours import Neighbours
from utils.lora.objectives import OBJECTIVES
from utils.lora.training import group_by_cost, train_as_fits
from utils.model_files import resolve_model
from utils.models import (
    load_model,
    load_tokenizer,
    pick_device,
    pick_dtype,
)
from utils.prompting import PromptEncoder, load_prompts
from utils.recipe import Recipe
from utils.running import InputError
from utils.store.folders import save_adapter
from utils.store.links import link_adapter
from utils.store.merging import Merger

RANK, ALPHA, LEARNING_RATE, TOPK = 2, 32, 3e-4, 3  # the paper's settings
MAX_LENGTH = 3000
STRONG = 32.0  # adapters of one epoch change few answers; compared are answers with these weights
FEW_SHOT = "2wikimultihopqa"  # examples in cot mode, whatever the data set


@dataclass
class Work:
    """What is encoded and answered, and the two models: one of them is changed for the bank."""

    passages: list[list[Example]]  # the training prompts of each passage
    questions: list[list[int]]  # the prompt of each question, as token ids
    tokenizer: PreTrainedTokenizerBase | TokenNumbers
    published: PreTrainedModel  # float32
    ours: PreTrainedModel

    @cached_property
    def bank(self) -> LoraBank:
        """The places for adapters in `ours`."""
        return LoraBank(self.ours, RANK, ALPHA)

    @cached_property
    def lengths(self) -> list[int]:
        """The tokens of each passage's prompts."""
        return [sum(len(example.ids) for example in own) for own in self.passages]

    def group_size(self, options: argparse.Namespace) -> int:
        """The adapters that this toolkit trains side by side."""
        size = options.adapters_per_batch or adapters_that_fit(self.bank, self.passages, 1)
        return min(size, len(self.passages))


def open_work(options: argparse.Namespace) -> Work:
    """The work that the flags of `speed.py` describe. Raises `InputError` (see `text_work`)."""
    return random_work(options) if options.architecture else text_work(options)


def random_work(options: argparse.Namespace) -> Work:
    """Random weights and tokens in the shape of `--architecture`."""
    config, device = config_of(options.architecture), pick_device()
    passages, questions = random_prompts(config, options.mode, options.passages, options.questions)
    examples = [[Example(ids) for ids in prompts] for prompts in passages]
    published = random_model(config, torch.float32, device).cpu()
    ours = random_model(config, pick_dtype(options.dtype, device), device).cpu()
    return Work(examples, questions, TokenNumbers(config), published, ours)


def text_work(options: argparse.Namespace) -> Work:
    """The model in `--model` and its prompts for the first passages and questions of a data set.

    Raises `InputError` if the data set is not augmented or too small.
    """
    with_cot = options.mode == "cot"
    path = resolve_model(options.model)
    prompts = load_prompts(options.prompts, FEW_SHOT if with_cot else options.dataset, with_cot)
    of = options.dataset, options.data_type, options.augment_model or options.model
    records = read_sample(*of, -1)[options.data_type]
    tokenizer = load_tokenizer(options.model)
    encoder = PromptEncoder(tokenizer, prompts, with_cot, MAX_LENGTH)
    passages = {}
    for entry in (entry for record in records for entry in record["augment"]):
        if len(passages) < options.passages:
            examples = encoder.passage_examples(
                entry["passage"], entry["rewrite"], entry["qa"], "rewrite,qa"
            )
            passages.setdefault(hash_json([example.ids for example in examples]), examples)
    for wanted, there, what in (
        (options.passages, len(passages), "passages"),
        (options.questions, len(records), "questions"),
    ):
        if there < wanted:
            raise InputError(
                f"--{what} {wanted}: {options.dataset} {options.data_type} has only {there} "
                f"different ones; give --{what} {there}, or augment more questions"
            )
    questions = [encoder.question(r["question"], []) for r in records[: options.questions]]
    ours = load_model(options.model, options.dtype, tokenizer).cpu()
    published = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    published.eval().requires_grad_(False)
    published.generation_config = ours.generation_config
    return Work(list(passages.values()), questions, tokenizer, published, ours)


# ------------------------------------------------------------------------------------------------
# The ways


def typical(lengths: list[int], count: int) -> list[int]:
    """Indices of `count` items spread evenly over all items in the order of their lengths."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return [order[(2 * i + 1) * len(order) // (2 * count)] for i in range(count)]


def encode_ours(work: Work, folder: Path, options: argparse.Namespace, neighbours: int = 0) -> None:
    """All passages as `encode.py` does it, into `{folder}/{number}`, each beside `neighbours`."""
    base = work.bank.new_base_adapter(0)

    def save(group: list[int], adapters: list[Adapter]) -> None:
        for i, adapter in zip(group, adapters, strict=True):
            save_adapter(adapter, folder / str(i), ALPHA, "", {})

    with ThreadPoolExecutor(1) as writer:  # saves one group while the next one is trained
        saving = None
        for group in group_by_cost(work.passages, work.group_size(options)):
            steps = [Steps(work.passages[i], 1, 1) for i in group]
            count = min(neighbours, len(group) - 1)
            met = next_places(len(group), count) if count else None
            adapters = train_as_fits(
                work.bank, base, steps, OBJECTIVES["lm"], LEARNING_RATE, neighbours=met
            )
            if saving:
                saving.result()
            saving = writer.submit(save, group, adapters)
        saving.result()


def next_places(size: int, count: int) -> Neighbours:
    """At every step the `count` adapters that come after one's own, around and around."""
    return lambda adapter, step: [(adapter + k) % size for k in range(1, count + 1)]


def answer_ours(work: Work, merger: Merger | None, options: argparse.Namespace) -> list[str]:
    """All questions as `inference.py` answers them; without `merger` as `closed_book`."""
    prompts, bank = work.questions, work.bank
    size = options.batch_size or prompts_that_fit(bank.model, prompts, options.max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    bank.clear()
    texts = [""] * len(prompts)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    for batch, merged in merger.ahead(batches) if merger else ((b, None) for b in batches):
        if merger:
            merger.use(merged, list(range(len(batch))), None)
        asked = [prompts[did] for did in batch]
        answers = generate(bank.model, work.tokenizer, asked, options.max_new_tokens)
        for did, text in zip(batch, answers, strict=True):
            texts[did] = text
    bank.clear()
    return texts


def measure_encoding(work: Work, stage: Stage, folder: Path, options: argparse.Namespace) -> dict:
    """Times of the four ways, and how far their adapters agree; ours are left in `folder`."""
    few = typical(work.lengths, options.published_passages)
    save_adapter(work.bank.new_base_adapter(0), folder / "base", ALPHA, "", {})
    stage.hold(work.ours)
    expected = training_bytes(work.bank, work.passages, 1, work.group_size(options))

    def ours(name: str = "ours", neighbours: int = 0) -> None:
        encode_ours(work, folder / name, options, neighbours)

    def published(name: str, padded_length: int | None) -> None:
        for i in few:
            encode_passage(
                work.published,
                folder / "base",
                [example.ids for example in work.passages[i]],
                folder / name / str(i),
                LEARNING_RATE,
                work.tokenizer.pad_token_id,
                padded_length,
            )

    peak = stage.peak_of(work.ours, ours)
    timings = stage.measure(
        {
            "published": (work.published, lambda: published("published", options.padded_length)),
            "unpadded": (work.published, lambda: published("unpadded", None)),
            "ours": (work.ours, ours),
            "neighbours": (work.ours, lambda: ours("neighbours", options.neighbours)),
        },
        options.repetitions,
    )
    result = {}
    for name, timing in timings.items():
        chosen = few if name in ("published", "unpadded") else range(len(work.passages))
        result[name] = vars(timing) | {
            "items": len(chosen),
            "prompt_tokens": sum(work.lengths[i] for i in chosen),
        }
        if chosen is few and not timing.failure:
            pairs = [(folder / name / str(i), folder / "ours" / str(i)) for i in few]
            result[name]["agreement"] = agreement(pairs, work.bank.shapes(RANK))
    result["ours"] |= {"adapters_per_batch": work.group_size(options)}
    result["ours"] |= {"expected_bytes": expected, "peak_bytes": peak}
    return result


def measure_answering(work: Work, stage: Stage, folder: Path, options: argparse.Namespace) -> dict:
    """Times of the two ways, of ours without adapters, and how many answers are the same.

    Question i has three of the adapters in `folder`/ours, from number 3 i on, around and around.
    Answers are compared once more, uncounted, with adapters strong enough to change them.
    """
    passages = [
        [(passage_folder(folder / "questions", did, pid), {"pid": pid}) for pid in range(TOPK)]
        for did in range(len(work.questions))
    ]
    for number, (own, _) in enumerate(entry for entries in passages for entry in entries):
        link_adapter(folder / "ours" / str(number % len(work.passages)), own)  # as encode.py does
    few = typical(list(map(len, work.questions)), options.published_questions)
    texts: dict[str, list[str]] = {}

    def published(name: str, weight: float) -> None:
        texts[name] = [
            answer_question(
                work.published,
                work.tokenizer,
                [own for own, _ in passages[did]],
                work.questions[did],
                options.max_new_tokens,
                weight,
            )
            for did in few
        ]

    def ours(name: str, weight: float) -> None:
        base, recipe = partial(work.bank.new_base_adapter, 0), Recipe(merge_scale=weight)
        merger = Merger(work.bank, recipe, passages, base) if weight else None
        texts[name] = answer_ours(work, merger, options)

    def equal(few_texts: str, all_texts: str) -> int:
        return sum(
            text == texts[all_texts][did] for did, text in zip(few, texts[few_texts], strict=True)
        )

    timings = stage.measure(
        {
            "published": (work.published, lambda: published("published", 1.0)),
            "ours": (work.ours, lambda: ours("ours", 1.0)),
            "closed_book": (work.ours, lambda: ours("closed_book", 0.0)),
        },
        options.repetitions,
    )
    result = {name: vars(timing) for name, timing in timings.items()}
    for name in result:
        result[name]["items"] = len(few) if name == "published" else len(work.questions)
    if not timings["published"].failure:
        stage.hold(work.published)
        published("strong published", STRONG)
        stage.hold(work.ours)
        ours("strong ours", STRONG)
        result["agreement"] = {
            "questions": len(few),
            "equal": equal("published", "ours"),
            "equal_strong": equal("strong published", "strong ours"),
            "changed_strong": sum(
                texts["strong ours"][did] != texts["closed_book"][did] for did in few
            ),
        }
    return result
