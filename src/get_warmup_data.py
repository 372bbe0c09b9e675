"""Training data for the warm-up, from the latter part of each data set: none of it is evaluated.

    python src/get_warmup_data.py --dataset demo --data_path data/demo/warmup.json --sample 0
    python src/get_warmup_data.py --model_name llama3.2-1b-instruct

The second command reads the data sets of the paper in `data/` and makes
* `data_aug/warmup/direct.json`: questions with their answers, from popqa and complexwebquestions
* `data_aug/warmup/{model}/cot.json`: with a reasoning (chain of thought, CoT) that the model
  writes from the supporting sentences and the known answer, from 2wikimultihopqa and hotpotqa

With `--dataset` the files are in `data_aug/warmup/{dataset}/`. `--sample` must not be smaller than
in any later stage. Started again after a stop, it goes on where it was.
"""

import argparse
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from utils import warmup
from utils.arguments import new_parser, positive_integer, seed_number, whole_number
from utils.datasets import DATASETS, PAPER
from utils.files import hash_json, read_object, relative, write_json
from utils.journal import Journal, refuse_difference, remove_journal
from utils.prompting import PromptEncoder, PromptSet, load_prompts, room_for_prompt
from utils.recipe import add_flags
from utils.running import InputError, run_stage
from utils.warmup import COT, DIRECT, warmup_file

WRITING = ("max_new_tokens", "max_candidates", "batch_size")  # flags that decide the texts
Writer = Callable[[list[dict]], list[str]]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    add_flags(parser, "model")
    model = parser._option_string_actions["--model_name"]
    model.required, model.help = False, "model that writes CoT data (not set: direct data alone)"
    # fmt: off
    add = parser.add_argument_group("data").add_argument
    add("--data_path", default="data/",
        help="folder of the paper's data sets; with --dataset its own folder, or your JSON file")
    add("--dataset", help="one data set only (not set: the paper's four)")
    add("--data_type", help="data type to take records from (only if your JSON file has several)")
    add("--sample", type=whole_number, default=300,
        help="first N questions of each data type that the stages evaluate (0: none)")
    add("--skip", type=whole_number,
        help="records left out at the head of direct data, and past the last evaluated one of CoT "
             "data (not set: 1000, for your own file 0)")
    add("--direct_records", type=whole_number, default=1000, help="direct records per data set")
    add("--cot_records", type=whole_number, default=300, help="CoT records per data set")
    add("--seed", type=seed_number, default=0, help="seed of the choice and of the order")
    add = parser.add_argument_group("writing the reasoning").add_argument
    add("--max_new_tokens", type=positive_integer, default=128, help="tokens of a reasoning")
    add("--max_candidates", type=positive_integer, default=3000,
        help="questions of each data set that are tried, once each, before it is left incomplete")
    add("--batch_size", type=positive_integer, default=32, help="texts generated side by side")
    add("--overwrite", action="store_true", help="make data again that exist already")
    # fmt: on
    options = parser.parse_args(arguments)
    if options.skip is None:
        options.skip = 1000 if options.dataset in (None, *DATASETS) else 0
    return options


def open_sources(options: argparse.Namespace) -> list[warmup.Source]:
    """The data sets that the flags name; of the paper's those that have a folder."""
    path = Path(options.data_path)
    folders = {name: path / name for name in PAPER if (path / name).is_dir()}
    if options.dataset:
        folders = {options.dataset: path}
    elif missing := set(PAPER) - folders.keys():
        print(f"{relative(path)} holds no folder of {', '.join(sorted(missing))}: left out")
    if not folders:
        raise InputError(
            f"--data_path {options.data_path} holds no folder named {', '.join(PAPER)}; download"
            " these data sets (see README.md), or give --dataset and --data_path for your own"
        )
    return [warmup.open_source(*one, options.data_type, options.sample) for one in folders.items()]


def settings_of(options: argparse.Namespace, kind: str, collected: dict, prompts: dict) -> dict:
    """What data of this `kind` are made with; `prompts` are those of each data set for CoT."""
    from utils.model_files import model_identity
    from utils.models import dtype_name

    settings = {
        "datasets": sorted(collected),
        **{name: getattr(options, name) for name in ("sample", "skip", "seed")},
        "records": options.direct_records if kind == DIRECT else options.cot_records,
        "candidates": hash_json(list(collected.values())),
    }
    if kind == COT:
        settings |= {name: getattr(options, name) for name in WRITING}
        settings["model"] = model_identity(options.model_name)
        settings["dtype"] = dtype_name(options.dtype)
        settings["prompts"] = hash_json([prompts[name].fingerprint for name in sorted(prompts)])
    return settings


def beside(path: Path, what: str) -> Path:
    """The hidden file with the "settings" or the "journal" of the data at `path`."""
    return path.with_name(f".{path.stem}.{what}")


def exists_already(path: Path, settings: dict, overwrite: bool) -> bool:
    """Whether the data exist, made with the same settings; with `overwrite` they do not count."""
    if overwrite or not path.exists():
        return False
    with suppress(InputError):  # a kill came just before its removal, or another run overwrites
        remove_journal(beside(path, "journal"))
    if not beside(path, "settings").exists():
        problem = f"{relative(path)} has no settings file beside it that says how it was made"
        raise InputError(f"{problem}; move it away, or use --overwrite to make it again")
    made_with = read_object(beside(path, "settings"), "the settings file")
    remedy = "use the same settings, or --overwrite to make it again"
    refuse_difference(relative(path), made_with, settings, remedy)
    print(f"{relative(path)} exists already")
    return True


def save(path: Path, settings: dict, records: list[dict]) -> None:
    """Write the records of all data sets, shuffled, and what made them."""
    random.Random(settings["seed"]).shuffle(records)
    path.unlink(missing_ok=True)  # older data must not pass for those of these settings
    write_json(beside(path, "settings"), settings)
    write_json(path, records)
    print(f"{relative(path)}: {len(records)} records")


def load_writer(options: argparse.Namespace, prompts: dict[str, PromptSet]) -> Writer:
    """What gives the model's text about each of some candidates, with `prompts` of each data set;
    the model is loaded."""
    from utils.generation import generate
    from utils.models import context_length, load_model, load_tokenizer

    name, trusted, most = options.model_name, options.trust_remote_code, options.max_new_tokens
    tokenizer = load_tokenizer(name, trusted)
    room = room_for_prompt(context_length(name, trusted), most)
    model = load_model(name, options.dtype, tokenizer, trusted, options.device_map)

    def request(one: dict) -> list[int]:
        asked = warmup.ReasoningRequest(prompts[one["dataset"]], one["answer"])
        encoder = PromptEncoder(tokenizer, asked, True, room)
        return encoder.question(one["question"], one["evidence"])

    return lambda batch: generate(model, tokenizer, [request(one) for one in batch], most)


def write_reasoning(
    collected: dict, write: Writer, journal: Journal, options: argparse.Namespace, path: Path
) -> list[dict]:
    """CoT records: `--cot_records` of each data set that the model gives a usable reasoning for.

    Candidates are tried in their order, each once, as decoding is greedy. Finished batches are in
    `journal`; the first takes the place of older data at `path`, so that a stopped `--overwrite`
    goes on without the flag. Raises `InputError` if no reasoning is usable.
    """
    from tqdm import tqdm

    finished, records, wanted = iter(list(journal.items)), [], options.cot_records
    for dataset, candidates in collected.items():
        kept, tried = [], candidates[: options.max_candidates]
        starts = range(0, len(tried), options.batch_size)
        for start in tqdm(starts, unit="batch", desc=f"reasoning {dataset}"):
            if len(kept) >= wanted:
                break
            batch = tried[start : start + options.batch_size]
            if (item := next(finished, None)) is None:
                item = {"kept": warmup.usable_records(batch, write(batch))}
                journal.add(item)
                if item["kept"]:
                    path.unlink(missing_ok=True)
            kept += item["kept"]
        records += kept[:wanted]
        print(f"CoT data, {dataset}: {len(kept)} with a usable reasoning, {wanted} wanted")
    if not records:
        journal.remove()
        sentence = f"{options.model_name} wrote no reasoning that can be used"
        raise InputError(f"{sentence}; use a model that is large enough, or other --prompts")
    return records


def main() -> None:
    """Check, choose, save the direct data, let the model write the reasoning, save the CoT data."""
    options = parse_arguments()
    from utils.processes import refuse_launcher  # imports torch, which takes seconds

    refuse_launcher("get_warmup_data.py")
    sources, chosen, files = open_sources(options), {}, {}
    wanted = {DIRECT: options.direct_records, COT: options.model_name and options.cot_records}
    for kind in (kind for kind in wanted if wanted[kind]):
        if collected := warmup.collect(sources, kind, options.skip, options.seed):
            chosen[kind] = collected
    if not chosen:
        remedy = "give a smaller --skip or --sample, more records, or --model_name for CoT data"
        raise InputError(f"no record can be used; {remedy}")
    prompts = {name: load_prompts(options.prompts, name, True) for name in chosen.get(COT, ())}
    for prompt_set in prompts.values():
        warmup.ReasoningRequest(prompt_set, "")  # refuses one that cannot ask
    for kind, collected in chosen.items():
        path = warmup_file(options.dataset, options.model_name if kind == COT else None)
        files[kind] = path, settings_of(options, kind, collected, prompts)
    waiting = [kind for kind in files if not exists_already(*files[kind], options.overwrite)]

    if DIRECT in waiting:
        taken = [candidates[: options.direct_records] for candidates in chosen[DIRECT].values()]
        save(*files[DIRECT], sum(taken, []))
    if COT in waiting:
        (path, settings), write = files[COT], load_writer(options, prompts)
        if options.overwrite:
            remove_journal(beside(path, "journal"))
        with Journal(beside(path, "journal"), settings) as journal:
            save(path, settings, write_reasoning(chosen[COT], write, journal, options, path))
            journal.remove()
    kind, (path, _) = next(iter(files.items()))
    words = ["--data", relative(path)] if options.dataset else []
    words += ["--with_cot"] if kind == COT else []
    print("next: python src/warmup_lora.py --model_name", options.model_name or "MODEL", *words)


if __name__ == "__main__":
    run_stage(main)
