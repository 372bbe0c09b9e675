r"""Stage 2: every passage becomes an adapter (LoRA on the feed-forward layers).

    python src/encode.py --model_name data/demo/demo-model --prompts demo --dataset demo \
        --data_type test --sample 10 --learning_rate 4e-3 --num_train_epochs 1

    python src/encode.py --model_name llama3.2-1b-instruct --dataset 2wikimultihopqa --sample 300 \
        --with_cot --per_device_train_batch_size 1 --num_train_epochs 1 --learning_rate 3e-4 \
        --lora_rank 2 --lora_alpha 32

Reads what `augment.py` wrote and writes, under `offline/{model}/rank=…_alpha=…/{dataset}/…/`, a
PEFT folder `data_{did}/passage_{pid}/` for each (Additional Parameter Training, arXiv:2501.15915,
section 3.2.2). Equal training data is trained once and stands once on the disk: further folders are
hard links. Started again after a stop, it trains what is missing.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from utils.arguments import new_parser, positive_integer
from utils.augmentation.records import fewer_than_asked, read_sample
from utils.files import hash_json, relative, remove_folder
from utils.flags import (
    SAVE_DTYPES,
    adapters_of,
    add_data_flags,
    add_model_flags,
    add_training_flags,
    init_folder,
    model_of,
    shared_flags,
    training_settings,
)
from utils.journal import refuse_difference
from utils.layout import passage_folder, rank_folder
from utils.lora.bank import Adapter, LoraBank
from utils.lora.memory import adapters_that_fit
from utils.lora.training import group_by_cost, train_as_fits
from utils.models import dtype_name, load_tokenizer, pick_device, pick_dtype, resolve_model
from utils.processes import add_shard_flag, start_processes
from utils.prompting import PromptEncoder, load_prompts
from utils.running import run_stage
from utils.store.base import make_base_again
from utils.store.folders import (
    check_init_adapter,
    fingerprint,
    load_adapter,
    open_base_adapter,
    read_training,
    save_adapter,
    stored_fingerprint,
)
from utils.store.links import Shared, share_standing
from utils.warmup import refuse_trained_questions


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    add_model_flags(parser)
    add_data_flags(parser)
    add_training_flags(parser)
    running = parser.add_argument_group("running")
    running.add_argument(
        "--adapters_per_batch",
        type=positive_integer,
        help="adapters trained side by side (not set: as many as fit)",
    )
    running.add_argument(
        "--save_dtype", choices=SAVE_DTYPES, default="float32", help="dtype of the saved adapters"
    )
    add_shard_flag(running)
    running.add_argument(
        "--overwrite", action="store_true", help="train adapters anew that stand there already"
    )
    return parser.parse_args(arguments)


@dataclass
class Work:
    """One adapter to train: its prompts as token ids, and every folder that it is for."""

    prompts: list[list[int]]
    data: str  # hash of the prompts
    folders: list[Path]


def collect_work(records: dict[str, list[dict]], encoder: PromptEncoder, options) -> list[Work]:
    """The adapters to train, each distinct training data once, in order of first appearance."""
    works: dict[str, Work] = {}
    for data_type, of_type in records.items():
        for did, record in enumerate(of_type):
            for entry in record["augment"]:
                prompts = encoder.passage_examples(
                    entry["passage"], entry["rewrite"], entry["qa"], options.augment_parts
                )
                work = works.setdefault(key := hash_json(prompts), Work(prompts, key, []))
                folder = passage_folder(adapters_of(options, data_type), did, entry["pid"])
                work.folders.append(folder)
    return list(works.values())


def refuse_other_bases(bases: set[str], base: str) -> None:
    """Raise `InputError` where adapters that stand were trained from another base than `base`."""
    for other in bases - {base}:
        refuse_difference(
            "an adapter of this experiment",
            {"base": other},
            {"base": base},
            "what passages start from was replaced; --overwrite trains all adapters anew",
        )


def main() -> None:
    """Check, load, train group by group, save each adapter as it is finished."""
    options = parse_arguments()
    processes = start_processes(options.shard, options.device_map)

    # 1. Check everything that needs no model
    augment_model = options.augment_model or options.model_name
    base_model = resolve_model(options.model_name)
    base_folder = init_folder(options)
    prompts = load_prompts(options.prompts, options.dataset, options.with_cot)
    records = read_sample(options.dataset, options.data_type, augment_model, options.sample)
    if short := fewer_than_asked(records, options.sample):
        processes.say(short)
    if base_folder:
        check_init_adapter(base_folder, options.lora_rank, options.lora_alpha)
        asked = [record["question"] for of_type in records.values() for record in of_type]
        refuse_trained_questions(base_folder, asked)
    else:
        rank = rank_folder(options.model_name, options.lora_rank, options.lora_alpha)
        base_folder = rank / "base_weight"
    tokenizer = load_tokenizer(options.model_name, options.trust_remote_code)
    encoder = PromptEncoder(tokenizer, prompts, options.with_cot, options.max_length)
    works = collect_work(records, encoder, options)
    if encoder.shortened:
        processes.say(
            f"{encoder.shortened} prompts were longer than --max_length: passages shortened"
        )
    settings = {
        **training_settings(options, prompts),
        "dtype": dtype_name(options.dtype),
        "save_dtype": options.save_dtype,
    }
    missing = {folder for work in works for folder in work.folders}
    bases = set()
    for work in works if not options.overwrite else ():
        for folder in work.folders:
            made_with = read_training(folder)
            if made_with is not None:
                bases.add(made_with.pop("base", None))
                refuse_difference(
                    f"the adapter {relative(folder)}",
                    made_with,
                    {**settings, "data": work.data},
                    "use the settings it was made with, or --overwrite to train anew",
                )
                missing.discard(folder)
    stands = stored_fingerprint(base_folder)
    if bases and not stands and not init_folder(options):
        stands = make_base_again(options, bases)
    if bases and stands:
        refuse_other_bases(bases, stands)
    total = sum(len(work.folders) for work in works)
    processes.say(
        f"{total} passages, {len(works)} with different training data; "
        f"{total - len(missing)} adapters stand already"
    )
    trained, shared = 0, Shared()
    if missing and stands and not options.overwrite:
        wanted = {work.data: work.folders for work in works}
        experiment = adapters_of(options, next(iter(records))).parent
        shared = share_standing(wanted, missing, experiment, {**settings, "base": stands})

    if processes.agree(bool(missing)):
        # 2. Load
        model = model_of(options, tokenizer)
        bank = LoraBank(model, options.lora_rank, options.lora_alpha)
        if options.init_adapter == "random":
            if processes.is_main:
                open_base_adapter(bank, base_folder, base_model, options.seed)
            processes.wait()
            base = open_base_adapter(bank, base_folder, base_model, options.seed)
        else:
            base = load_adapter(base_folder, bank.shapes(bank.rank))
        settings["base"] = fingerprint(base)
        refuse_other_bases(bases, settings["base"])

        # 3. Train. The groups depend on the whole list, so a resumed run trains the same ones
        group_size = processes.agree(
            options.adapters_per_batch
            or adapters_that_fit(
                bank, [work.prompts for work in works], options.per_device_train_batch_size
            )
        )
        groups = processes.share(group_by_cost([work.prompts for work in works], group_size))
        mine = {folder for group in groups for i in group for folder in works[i].folders}
        bar = processes.bar("encode", "passage", len(mine), len(mine & missing))
        for folder in sorted(mine & missing) if options.overwrite else ():
            remove_folder(folder)  # now, so that an interrupted run goes on without --overwrite

        def save(members: list[Work], adapters: list[Adapter]) -> None:
            nonlocal trained
            for work, adapter in zip(members, adapters, strict=True):
                lacking = [folder for folder in work.folders if folder in missing]
                if not lacking:  # trained along, so that the group is the one of the first run
                    continue
                first, *others = lacking
                save_adapter(
                    adapter,
                    first,
                    options.lora_rank,
                    options.lora_alpha,
                    base_model,
                    {**settings, "data": work.data},
                    pick_dtype(options.save_dtype, pick_device()),
                    options.overwrite,
                )
                trained += 1
                for folder in others:
                    shared.give(first, folder, options.overwrite)
                bar.update(len(lacking))

        with ThreadPoolExecutor(1) as writer:  # saves one group while the next one is trained
            saving = None
            for group in groups:
                members = [works[i] for i in group]
                if not any(folder in missing for work in members for folder in work.folders):
                    continue
                adapters = train_as_fits(
                    bank,
                    base,
                    [work.prompts for work in members],
                    options.learning_rate,
                    options.num_train_epochs,
                    options.per_device_train_batch_size,
                    tokenizer.pad_token_id,
                )

                # 4. Save
                if saving:
                    saving.result()  # raises what went wrong
                saving = writer.submit(save, members, adapters)
            if saving:
                saving.result()
        bar.close()
        processes.wait()
    if processes.is_shard:
        processes.say_part_is_done()
        return

    if processes.count == 1:
        print(f"{trained} adapters trained, {shared}")
    where = relative(adapters_of(options, next(iter(records))).parent)
    processes.say(f"adapters of {', '.join(records)}: {where}")
    processes.say(f"next: python src/inference.py {shared_flags(options)} --inference_method prag")


if __name__ == "__main__":
    run_stage(main)
