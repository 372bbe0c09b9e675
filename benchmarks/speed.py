"""Measure encoding and answering: the published way, the same without padding, and this toolkit.

    python benchmarks/speed.py                                  # demo model, after `make demo`
    python benchmarks/speed.py --architecture llama3.2-1b --json benchmarks/results/speed_1b.json
    python benchmarks/speed.py --architecture llama3.2-1b --mode cot
    python benchmarks/speed.py --model MODEL --prompts default --dataset popqa --data_type total

All ways run in one process, in turn, over and over (a, b, c, a, b, c, ...), after one round that is
not counted; medians are shown. The published way (`published_loop.py`) is slow and gets few of the
passages and questions, those of typical length. Prompts are tokenized beforehand for all; written
adapters and their loading count. One pass over a passage's prompts, learning rate 3e-4, rank 2,
one prompt a step. The model that is not being measured waits in the machine's memory, not on the
GPU. With `--architecture` weights and tokens are random: no download, and answers hardly ever end
before `--max_new_tokens`.
"""

import argparse
import resource
import shutil
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from clock import Stage
from machine import machine
from published_loop import answer_question, encode_passage
from random_work import ARCHITECTURES, TokenNumbers, random_model, random_prompts
from speed_report import add_ratios, agreement, print_tables

from utils.arguments import new_parser, positive_integer
from utils.augmentation.records import read_sample
from utils.files import hash_json, write_json
from utils.layout import passage_folder
from utils.lora.bank import Adapter, LoraBank
from utils.lora.memory import adapters_that_fit, prompts_that_fit, training_bytes
from utils.lora.training import group_by_cost, train_as_fits
from utils.models import (
    DTYPES,
    generate,
    load_model,
    load_tokenizer,
    pick_device,
    pick_dtype,
    resolve_model,
)
from utils.prompting import PromptEncoder, load_prompts
from utils.provenance import provenance
from utils.running import InputError, run_stage
from utils.store.folders import save_adapter
from utils.store.merging import Merger

REPOSITORY = Path(__file__).resolve().parents[1]
RANK, ALPHA, LEARNING_RATE, TOPK = 2, 32, 3e-4, 3  # the paper's settings
MAX_LENGTH = 3000
STRONG = 32.0  # adapters of one epoch change few answers; compared are answers with these weights
FEW_SHOT = "2wikimultihopqa"  # examples in cot mode, whatever the data set


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; what is not set depends on device and mode."""
    parser = new_parser(__doc__)
    group = parser.add_argument_group("model and prompts")
    group.add_argument("--model", default=str(REPOSITORY / "data/demo/demo-model"), help="a folder")
    group.add_argument("--architecture", choices=list(ARCHITECTURES), help="instead of --model")
    group.add_argument("--mode", choices=["direct", "cot"], default="direct", help="prompts")
    group.add_argument("--prompts", default="demo", help="prompt set, with --model")
    group.add_argument("--dataset", default="demo", help="augmented data set, with --model")
    group.add_argument("--data_type", default="test", help="its data type")
    group = parser.add_argument_group("amounts")
    group.add_argument(
        "--passages", type=positive_integer, help="passages to encode (not set: 96; GPU: 512)"
    )
    group.add_argument(
        "--published_passages",
        type=positive_integer,
        default=2,
        help="how many of them the published way and the one without padding encode",
    )
    group.add_argument(
        "--questions", type=positive_integer, help="questions to answer (not set: 64; GPU: 256)"
    )
    group.add_argument(
        "--published_questions",
        type=positive_integer,
        default=4,
        help="how many of them the published way answers",
    )
    group.add_argument("--repetitions", type=positive_integer, default=5, help="counted rounds")
    group.add_argument(
        "--max_new_tokens", type=positive_integer, help="of an answer (not set: 20; cot: 128)"
    )
    group.add_argument(
        "--padded_length",
        type=positive_integer,
        default=MAX_LENGTH,
        help="tokens to which the published way pads a training prompt",
    )
    group = parser.add_argument_group("this toolkit's way")
    group.add_argument("--dtype", choices=DTYPES, default="auto", help="auto: bfloat16 on a GPU")
    group.add_argument(
        "--adapters_per_batch", type=positive_integer, help="not set: as many as fit"
    )
    group.add_argument(
        "--batch_size", type=positive_integer, help="questions side by side (not set: as many)"
    )
    parser.add_argument("--json", type=Path, help="file for the raw result (not set: none)")
    options = parser.parse_args(arguments)
    gpu = pick_device().type == "cuda"
    options.passages = options.passages or (512 if gpu else 96)
    options.questions = options.questions or (256 if gpu else 64)
    options.max_new_tokens = options.max_new_tokens or (128 if options.mode == "cot" else 20)
    options.published_passages = min(options.published_passages, options.passages)
    options.published_questions = min(options.published_questions, options.questions)
    return options


@dataclass
class Work:
    """What is encoded and answered, and the two models: one of them is changed for the bank."""

    passages: list[list[list[int]]]  # the training prompts of each passage, as token ids
    questions: list[list[int]]  # the prompt of each question
    tokenizer: PreTrainedTokenizerBase | TokenNumbers
    published: PreTrainedModel  # float32
    ours: PreTrainedModel


def random_work(options: argparse.Namespace) -> Work:
    """Random weights and tokens in the shape of `--architecture`."""
    config, device = ARCHITECTURES[options.architecture](), pick_device()
    prompts = random_prompts(config, options.mode, options.passages, options.questions)
    published = random_model(config, torch.float32, device).cpu()
    ours = random_model(config, pick_dtype(options.dtype, device), device).cpu()
    return Work(*prompts, TokenNumbers(config), published, ours)


def text_work(options: argparse.Namespace) -> Work:
    """The model in `--model` and its prompts for the first passages and questions of a data set.

    Raises `InputError` where the data set is not augmented or too small.
    """
    with_cot = options.mode == "cot"
    path = resolve_model(options.model)
    prompts = load_prompts(options.prompts, FEW_SHOT if with_cot else options.dataset, with_cot)
    records = read_sample(options.dataset, options.data_type, options.model, -1)[options.data_type]
    tokenizer = load_tokenizer(options.model)
    encoder = PromptEncoder(tokenizer, prompts, with_cot, MAX_LENGTH)
    passages = {}
    for entry in (entry for record in records for entry in record["augment"]):
        if len(passages) < options.passages:
            texts = entry["passage"], entry["rewrite"], entry["qa"]
            examples = encoder.passage_examples(*texts, ("rewrite", "qa"))
            passages.setdefault(hash_json(examples), examples)
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


def group_size(work: Work, bank: LoraBank, options: argparse.Namespace) -> int:
    """The adapters that this toolkit trains side by side."""
    size = options.adapters_per_batch or adapters_that_fit(bank, work.passages, 1)
    return min(size, len(work.passages))


def encode_ours(work: Work, bank: LoraBank, folder: Path, options: argparse.Namespace) -> None:
    """All passages as `encode.py` does it, into `{folder}/{number}`."""
    base = bank.new_base_adapter(0)

    def save(group: list[int], adapters: list[Adapter]) -> None:
        for i, adapter in zip(group, adapters, strict=True):
            save_adapter(adapter, folder / str(i), RANK, ALPHA, "", {})

    with ThreadPoolExecutor(1) as writer:  # saves one group while the next one is trained
        saving = None
        for group in group_by_cost(work.passages, group_size(work, bank, options)):
            adapters = train_as_fits(
                bank,
                base,
                [work.passages[i] for i in group],
                LEARNING_RATE,
                1,
                1,
                work.tokenizer.pad_token_id,
            )
            if saving:
                saving.result()
            saving = writer.submit(save, group, adapters)
        saving.result()


def answer_ours(
    work: Work, bank: LoraBank, merger: Merger | None, options: argparse.Namespace
) -> list[str]:
    """All questions as `inference.py` answers them; without `merger` as `closed_book`."""
    prompts = work.questions
    size = options.batch_size or prompts_that_fit(bank.model, prompts, options.max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    bank.clear()
    texts = [""] * len(prompts)
    records = [{"augment": [{"pid": pid} for pid in range(TOPK)]}] * len(prompts)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    ahead = merger.ahead(batches, records) if merger else ((batch, None) for batch in batches)
    for batch, merged in ahead:
        if merger:
            merger.use(merged, list(range(len(batch))), None)
        asked = [prompts[did] for did in batch]
        answers = generate(bank.model, work.tokenizer, asked, options.max_new_tokens)
        for did, text in zip(batch, answers, strict=True):
            texts[did] = text
    bank.clear()
    return texts


def measure_encoding(
    work: Work, bank: LoraBank, stage: Stage, folder: Path, options: argparse.Namespace
) -> dict:
    """Times of the three ways, and how far their adapters agree; ours are left in `folder`."""
    lengths = [sum(map(len, prompts)) for prompts in work.passages]
    few = typical(lengths, options.published_passages)
    save_adapter(bank.new_base_adapter(0), folder / "base", RANK, ALPHA, "", {})
    stage.hold(work.ours)
    expected = training_bytes(bank, work.passages, 1, group_size(work, bank, options))
    peak = stage.peak_of(work.ours, lambda: encode_ours(work, bank, folder / "ours", options))

    def published(name: str, padded_length: int | None) -> None:
        for i in few:
            encode_passage(
                work.published,
                folder / "base",
                work.passages[i],
                folder / name / str(i),
                LEARNING_RATE,
                work.tokenizer.pad_token_id,
                padded_length,
            )

    timings = stage.measure(
        {
            "published": (work.published, lambda: published("published", options.padded_length)),
            "unpadded": (work.published, lambda: published("unpadded", None)),
            "ours": (work.ours, lambda: encode_ours(work, bank, folder / "ours", options)),
        },
        options.repetitions,
    )
    result = {}
    for name, timing in timings.items():
        chosen = range(len(lengths)) if name == "ours" else few
        result[name] = vars(timing) | {
            "items": len(chosen),
            "prompt_tokens": sum(lengths[i] for i in chosen),
        }
        if name != "ours" and not timing.failure:
            pairs = [(folder / name / str(i), folder / "ours" / str(i)) for i in few]
            result[name]["agreement"] = agreement(pairs, bank.shapes(RANK))
    result["ours"] |= {"adapters_per_batch": group_size(work, bank, options)}
    result["ours"] |= {"expected_bytes": expected, "peak_bytes": peak}
    return result


def measure_answering(
    work: Work, bank: LoraBank, stage: Stage, folder: Path, options: argparse.Namespace
) -> dict:
    """Times of the two ways, of ours without adapters, and how many answers are the same.

    Question i has three of the adapters in `folder`/ours, from number 3 i on, around and around.
    Answers are compared once more, uncounted, with adapters strong enough to change them.
    """
    adapters = folder / "questions"
    for did in range(len(work.questions)):
        for pid in range(TOPK):
            number = (did * TOPK + pid) % len(work.passages)
            shutil.copytree(folder / "ours" / str(number), passage_folder(adapters, did, pid))
    few = typical(list(map(len, work.questions)), options.published_questions)
    texts: dict[str, list[str]] = {}

    def published(name: str, weight: float) -> None:
        texts[name] = [
            answer_question(
                work.published,
                work.tokenizer,
                [passage_folder(adapters, did, pid) for pid in range(TOPK)],
                work.questions[did],
                options.max_new_tokens,
                weight,
            )
            for did in few
        ]

    def ours(name: str, weight: float) -> None:
        merging = argparse.Namespace(lora_rank=RANK, merge="sum", merge_topk=None)
        merging.merge_scale = weight
        merger = Merger(bank, merging, adapters, None) if weight else None
        texts[name] = answer_ours(work, bank, merger, options)

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
            "equal": sum(
                one == texts["ours"][did] for did, one in zip(few, texts["published"], strict=True)
            ),
            "equal_strong": sum(
                one == texts["strong ours"][did]
                for did, one in zip(few, texts["strong published"], strict=True)
            ),
            "changed_strong": sum(
                texts["strong ours"][did] != texts["closed_book"][did] for did in few
            ),
        }
    return result


def main() -> None:
    """Load, measure encoding, then answering; show; save."""
    options = parse_arguments()
    for message in ("Adapter merged was active", "`is_gradient_checkpointing`"):
        warnings.filterwarnings("ignore", message)  # peft's own doing
    work = random_work(options) if options.architecture else text_work(options)
    parameters = sum(p.numel() for p in work.ours.parameters())
    if not work.ours.config.tie_word_embeddings:  # a look-up costs no arithmetic
        parameters -= work.ours.get_input_embeddings().weight.numel()
    dtype = str(work.ours.dtype).removeprefix("torch.")
    bank = LoraBank(work.ours, RANK, ALPHA)
    stage = Stage(pick_device())
    with tempfile.TemporaryDirectory(prefix="speed_") as folder:
        encoding = measure_encoding(work, bank, stage, Path(folder), options)
        answering = measure_answering(work, bank, stage, Path(folder), options)
    result = {
        "arguments": vars(options) | {"json": None, "dtype": dtype},
        "parameters_in_products": parameters,
        "machine": machine() | {"threads": torch.get_num_threads()},
        "provenance": provenance(),
        "process_peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "encode": encoding,
        "answer": answering,
    }
    add_ratios(result)
    print_tables(result)
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    run_stage(main)
