"""Which adapters an experiment should have: those of its passages, made from their texts."""

import argparse
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from utils.augmentation.records import data_types_of, read_augmented
from utils.files import hash_json, relative
from utils.flags import adapters_of, training_settings
from utils.layout import passage_folder
from utils.models import load_tokenizer, resolve_model
from utils.prompting import PromptEncoder, load_prompts
from utils.questions import take_sample
from utils.running import InputError
from utils.store.adapter_packs import open_pack
from utils.store.folders import in_order, stored_adapters, unpacked_adapters


@dataclass
class Wanted:
    """What a data type's adapters should be: the record of each by its folder.

    `needed` are the folders of the passages that the flags choose; where the augmented data is not
    there, both are empty.
    """

    records: dict[Path, dict] = field(default_factory=dict)
    needed: set[Path] = field(default_factory=set)


def wanted_adapters(options: argparse.Namespace, chosen: list[Path]) -> dict[Path, Wanted]:
    """What should stand in each data type's folder, those with adapters and those without.

    Where the augmented data is not there to compare, a line says so.
    """
    augment_model = options.augment_model or options.model_name
    names = {adapters.name for adapters in chosen}
    with suppress(InputError):  # each data type's line says it
        names |= set(data_types_of(options.dataset, options.data_type, augment_model))
    wanted: dict[Path, Wanted] = {}
    settings = encoder = None
    for name in sorted(names):
        adapters = adapters_of(options, name)
        try:
            records = read_augmented(options.dataset, name, augment_model)
        except InputError as error:
            if adapters in chosen:
                print(f"in {relative(adapters)} only what stands was checked: {error}")
                wanted[adapters] = Wanted()
            continue
        if encoder is None:
            settings, encoder = settings_and_encoder(options)
        wanted[adapters] = wanted_of(adapters, records, settings, encoder, options)
    return wanted


def settings_and_encoder(options: argparse.Namespace) -> tuple[dict, PromptEncoder]:
    """What adapters are made with, and what makes their prompts; this needs no weights."""
    prompts = load_prompts(options.prompts, options.dataset, options.with_cot)
    tokenizer = load_tokenizer(options.model_name, options.trust_remote_code)
    settings = training_settings(options, prompts)
    model = Path(resolve_model(options.model_name))
    if model.is_dir() and not any(model.glob("*.safetensors")):
        del settings["model"]  # it has a hash of the weights, which are not here
    return settings, PromptEncoder(tokenizer, prompts, options.with_cot, options.max_length)


def wanted_of(
    adapters: Path,
    records: list[dict],
    settings: dict,
    encoder: PromptEncoder,
    options: argparse.Namespace,
) -> Wanted:
    """What should stand for `records`; a sample needs its part, but more may stand."""
    sampled = len(take_sample({"": records}, options.sample)[""])
    standing, wanted = set(readable_adapters(adapters)[0]), Wanted()
    bar = tqdm(records, unit="question", leave=False, desc=f"read passages {adapters.name}")
    for did, record in enumerate(bar):
        for entry in record["augment"]:
            folder = passage_folder(adapters, did, entry["pid"])
            if did < sampled:
                wanted.needed.add(folder)
            elif folder not in standing:
                continue
            prompts = encoder.passage_examples(
                entry["passage"], entry["rewrite"], entry["qa"], options.augment_parts
            )
            wanted.records[folder] = {**settings, "data": hash_json(prompts)}
    return wanted


def readable_adapters(adapters: Path) -> tuple[list[Path], str | None]:
    """The adapters that stand, and what is wrong with the pack: then those in folders alone."""
    try:
        folders = stored_adapters(adapters)
        if packed := open_pack(adapters):
            packed.assert_opens()
        return folders, None
    except InputError as error:
        return in_order(unpacked_adapters(adapters)), str(error)
