"""Training data for the warm-up, from the latter part of each data set: none of it is evaluated.

    python src/get_warmup_data.py --dataset demo --data_path data/demo/warmup.json --sample 0

    python src/get_warmup_data.py --model_name llama3.2-1b-instruct

The second command reads the paper's data sets in `data/` and makes

* `data_aug/warmup/direct.json`: questions with their answers, from popqa and complexwebquestions
* `data_aug/warmup/{model}/cot.json`: with a reasoning (chain of thought, CoT) that the model
  writes from the supporting sentences and the known answer, from 2wikimultihopqa and hotpotqa

With `--dataset` the files stand in `data_aug/warmup/{dataset}/`. Without `--model_name` the direct
data alone are made. `--sample` must not be smaller than in any later stage. Started again after a
stop, it goes on where it was.
"""

import argparse
import random
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from utils.arguments import new_parser, positive_integer, seed_number, whole_number
from utils.files import hash_json, read_object, relative, write_json
from utils.flags import add_model_flags, model_of
from utils.journal import Journal, refuse_difference, remove_journal
from utils.models import (
    context_length,
    dtype_name,
    generate,
    load_tokenizer,
    model_identity,
)
from utils.processes import refuse_launcher
from utils.prompting import PromptEncoder, load_prompts, room_for_prompt
from utils.questions import TYPES
from utils.running import InputError, run_stage
from utils.warmup import (
    COT_DATASETS,
    DIRECT_DATASETS,
    ReasoningRequest,
    Source,
    open_source,
    usable_reasoning,
    warmup_candidates,
    warmup_file,
)

PAPER_SKIP = 1000


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    add_model_flags(parser)
    model = next(action for action in parser._actions if action.dest == "model_name")
    model.required = False
    model.help = "model that writes the reasoning of CoT data (not set: direct data alone)"
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data_path",
        default="data/",
        help="folder that holds the folders of the paper's data sets; with --dataset that data "
        "set's own folder or one's own JSON file",
    )
    data.add_argument("--dataset", help="one data set only (not set: the paper's four)")
    data.add_argument(
        "--data_type",
        help="data type of one's own JSON file to take records from (only where it has several)",
    )
    data.add_argument(
        "--sample",
        type=whole_number,
        default=300,
        help="first N questions of each data type that the stages evaluate (0, for one's own "
        "file: none of --data_type)",
    )
    data.add_argument(
        "--skip",
        type=whole_number,
        help="records left out at the head of a direct data set, and past the last evaluated one "
        "of a CoT data set (not set: 1000, for one's own file 0)",
    )
    data.add_argument(
        "--direct_records", type=whole_number, default=1000, help="direct records of each data set"
    )
    data.add_argument(
        "--cot_records", type=whole_number, default=300, help="CoT records of each data set"
    )
    data.add_argument(
        "--seed", type=seed_number, default=0, help="seed of the choice and of the order"
    )
    writing = parser.add_argument_group("writing the reasoning")
    writing.add_argument(
        "--max_new_tokens", type=positive_integer, default=128, help="tokens of a reasoning at most"
    )
    writing.add_argument(
        "--max_candidates",
        type=positive_integer,
        default=3000,
        help="questions of each data set that are tried, once each, before it is left incomplete",
    )
    writing.add_argument(
        "--batch_size", type=positive_integer, default=32, help="texts generated side by side"
    )
    writing.add_argument("--overwrite", action="store_true", help="make data anew that stand there")
    options = parser.parse_args(arguments)
    if options.skip is None:
        own = options.dataset and options.dataset not in TYPES
        options.skip = 0 if own else PAPER_SKIP
    return options


def open_sources(options: argparse.Namespace) -> list[Source]:
    """The data sets that the flags name; of the paper's four those that have a folder."""
    path = Path(options.data_path)
    if options.dataset:
        return [open_source(options.dataset, path, options.data_type, options.sample)]
    sources = []
    for dataset in TYPES:
        if (path / dataset).is_dir():
            sources.append(open_source(dataset, path / dataset, options.data_type, options.sample))
        else:
            print(f"{dataset}: there is no folder {relative(path / dataset)}, so it is left out")
    if not sources:
        raise InputError(
            f"--data_path {options.data_path} holds no folder named {', '.join(TYPES)}; download "
            "these data sets (see README.md), or give --dataset and --data_path for one's own"
        )
    return sources


def collect(sources: list[Source], with_cot: bool, options: argparse.Namespace) -> list[list[dict]]:
    """The candidates of each data set that data of this kind come from; says what was dropped."""
    not_of_this_kind = DIRECT_DATASETS if with_cot else COT_DATASETS
    evaluated = set().union(*(source.evaluated for source in sources))
    collected = []
    for source in sources:
        if source.dataset in not_of_this_kind:
            continue
        candidates, dropped = warmup_candidates(
            source, options.skip, evaluated, with_cot, options.seed
        )
        print(
            f"{'CoT' if with_cot else 'direct'} data, {source.dataset}: {len(candidates)} of "
            f"{len(source.records)} records can be used"
            + (f"; {dropped} more dropped, their questions are evaluated" if dropped else "")
        )
        if candidates:
            collected.append(candidates)
    return collected


def settings_of(options: argparse.Namespace, wanted: int, candidates: list[list[dict]]) -> dict:
    """What the data are made with, apart from a model."""
    return {
        "datasets": sorted({own[0]["dataset"] for own in candidates}),
        "sample": options.sample,
        "skip": options.skip,
        "records": wanted,
        "seed": options.seed,
        "candidates": hash_json(candidates),
    }


def stands(path: Path, settings: dict, overwrite: bool) -> bool:
    """Whether `path` was made with `settings`; `overwrite` forgets what stands or is unfinished.

    Raises `InputError` where it was made with others, or by something else.
    """
    if overwrite:
        remove_journal(journal_file(path))
        for old in (settings_file(path), path):
            old.unlink(missing_ok=True)
    if not path.exists():
        return False
    if not settings_file(path).exists():
        raise InputError(
            f"{relative(path)} was not made by this script; move it away, or use --overwrite"
        )
    refuse_difference(
        relative(path),
        read_object(settings_file(path), "the settings file"),
        settings,
        "use the same settings, or --overwrite to make it anew",
    )
    remove_journal(journal_file(path))  # a kill may have come just before its removal
    return True


def settings_file(path: Path) -> Path:
    """The settings that made the data at `path`; hidden, as those of `augment.py`."""
    return path.with_name(f".{path.stem}.settings")


def journal_file(path: Path) -> Path:
    """The journal of the unfinished data at `path`."""
    return path.with_name(f".{path.stem}.journal")


def save(path: Path, settings: dict, records: list[dict], seed: int) -> None:
    """Write the records of all data sets, shuffled, and the settings that made them."""
    random.Random(seed).shuffle(records)
    write_json(settings_file(path), settings)
    write_json(path, records)
    counts = Counter(record["dataset"] for record in records)
    shares = ", ".join(f"{number} of {name}" for name, number in sorted(counts.items()))
    print(f"{relative(path)}: {len(records)} records ({shares})")


def write_reasoning(
    collected: list[list[dict]], prompts: dict, journal: Journal, options: argparse.Namespace
) -> list[dict]:
    """CoT records: `--cot_records` of each data set that the model gave a usable reasoning for.

    Candidates are tried in their order, batch by batch, each once (greedy decoding would only
    repeat itself); finished batches are in `journal`.
    """
    tokenizer = load_tokenizer(options.model_name, options.trust_remote_code)
    longest = context_length(options.model_name, options.trust_remote_code)
    room = room_for_prompt(longest, options.max_new_tokens)
    model = None
    finished = iter(list(journal.items))
    taken, shortened = [], 0
    for candidates in collected:
        dataset = candidates[0]["dataset"]
        kept, rejected, tried = [], Counter(), 0
        bar = tqdm(total=options.cot_records, unit="record", desc=f"reasoning {dataset}")
        candidates = candidates[: options.max_candidates]
        while len(kept) < options.cot_records and tried < len(candidates):
            batch = candidates[tried : tried + options.batch_size]
            tried += len(batch)
            if (item := next(finished, None)) is None:
                if model is None:
                    model = model_of(options, tokenizer)
                requests = []
                for one in batch:
                    request = ReasoningRequest(prompts[dataset], one["answer"])
                    encoder = PromptEncoder(tokenizer, request, True, room)
                    requests.append(encoder.question(one["question"], one["evidence"]))
                    shortened += encoder.shortened
                texts = generate(model, tokenizer, requests, options.max_new_tokens)
                item = {"kept": [], "rejected": []}
                for one, text in zip(batch, texts, strict=True):
                    reasoning, problem = usable_reasoning(text, one["answer"])
                    if reasoning is None:
                        item["rejected"].append(problem)
                    else:
                        record = {key: one[key] for key in one if key != "evidence"}
                        item["kept"].append({**record, "full_answer": reasoning})
                journal.add(item)
            kept += item["kept"]
            rejected.update(item["rejected"])
            bar.update(min(len(item["kept"]), bar.total - bar.n))
        bar.close()
        taken += kept[: options.cot_records]
        reasons = ", ".join(f"{number} {reason}" for reason, number in rejected.most_common())
        print(
            f"CoT data, {dataset}: {tried} candidates tried, {len(kept)} usable, "
            f"{rejected.total()} rejected" + (f" ({reasons})" if reasons else "")
        )
        if len(kept) < options.cot_records:
            print(f"{dataset}: {options.cot_records - len(kept)} fewer than --cot_records")
    if shortened:
        print(f"{shortened} requests did not fit into the model and were shortened")
    return taken


def main() -> None:
    """Check, choose, save the direct data, let the model write the reasoning, save the CoT data."""
    options = parse_arguments()
    refuse_launcher("get_warmup_data.py")

    # 1. Check and choose: no model is needed yet
    sources = open_sources(options)
    direct = collect(sources, False, options) if options.direct_records else []
    direct_path = warmup_file(options.dataset)
    cot, cot_path = [], None
    if not options.model_name:
        print("CoT data need a model that writes their reasoning: give --model_name to make them")
    elif options.cot_records:
        cot = collect(sources, True, options)
        cot_path = warmup_file(options.dataset, options.model_name)
    if not direct and not cot:
        raise InputError(
            "no record can be used; give a smaller --skip or --sample, or more records, and "
            "--model_name for CoT data"
        )
    names = [candidates[0]["dataset"] for candidates in cot]
    try:
        prompts = {name: load_prompts(options.prompts, name, with_cot=True) for name in names}
    except InputError as error:  # here --model_name is the flag that asks for CoT
        raise InputError(str(error).replace("--with_cot", "--model_name")) from None
    for prompt_set in prompts.values():
        ReasoningRequest(prompt_set, "")  # raises where the set has no such request
    direct_settings = settings_of(options, options.direct_records, direct)
    cot_settings = settings_of(options, options.cot_records, cot)
    if cot:
        cot_settings |= {
            "model": model_identity(options.model_name),
            "dtype": dtype_name(options.dtype),
            "prompts": hash_json([prompts[name].fingerprint for name in sorted(prompts)]),
            "max_new_tokens": options.max_new_tokens,
            "max_candidates": options.max_candidates,
            "batch_size": options.batch_size,
        }
    direct_stands = bool(direct) and stands(direct_path, direct_settings, options.overwrite)
    cot_stands = bool(cot) and stands(cot_path, cot_settings, options.overwrite)

    # 2. The direct data
    if direct_stands:
        print(f"{relative(direct_path)} stands already")
    elif direct:
        chosen = [record for own in direct for record in own[: options.direct_records]]
        save(direct_path, direct_settings, chosen, options.seed)

    # 3. The CoT data: load the model, write the reasoning, save
    if cot_stands:
        print(f"{relative(cot_path)} stands already")
    elif cot:
        with Journal(journal_file(cot_path), cot_settings) as journal:
            records = write_reasoning(cot, prompts, journal, options)
        if not records:
            remove_journal(journal_file(cot_path))
            raise InputError(
                f"{options.model_name} wrote no reasoning that can be used; use a model that is "
                "large enough to reason, or other --prompts"
            )
        save(cot_path, cot_settings, records, options.seed)
        remove_journal(journal_file(cot_path))
    made = direct_path if direct else cot_path
    print(
        f"next: python src/warmup_lora.py --model_name {options.model_name or 'MODEL'}"
        + (f" --data {relative(made)}" if options.dataset else "")
        + ("" if direct else " --with_cot")
    )


if __name__ == "__main__":
    run_stage(main)
