"""The recipe: flags, settings, folder labels and defaults follow from one place."""

import shlex
from dataclasses import fields

import pytest

import encode
import inference
from utils.active import ACTIVE
from utils.arguments import new_parser
from utils.lora.merges import MERGES
from utils.lora.objectives import OBJECTIVES
from utils.recipe import DEFAULTS, GROUPS, Recipe, add_flags, names_in
from utils.sources import SOURCES


def recipe(*more: str) -> Recipe:
    """The recipe of encode.py's flags for a model M and a data set D."""
    given = ["--model_name", "some/M", "--dataset", "D", "--augment_model", "A"]
    return encode.parse_arguments([*given, *more])[1]


@pytest.mark.parametrize("more, name", [
    ("--learning_rate 3e-4", "lr=0.0003_epoch=1"), ("--learning_rate 1", "lr=1.0_epoch=1"),
    ("--learning_rate 1e-5 --num_train_epochs 12", "lr=1e-05_epoch=12"),
    ("--with_cot --init_adapter warmup", "lr=0.0003_epoch=1_cot_warmup"),
    ("--init_adapter 'else/my start'", "lr=0.0003_epoch=1_init=my_start"),
    ("--augment_parts qa,rewrite", "lr=0.0003_epoch=1"),
    ("--augment_parts none", "lr=0.0003_epoch=1_parts=none"),
    ("--init_adapter warmup --augment_parts qa", "lr=0.0003_epoch=1_warmup_parts=qa"),
])  # fmt: skip
def test_what_differs_from_a_plain_adapter_is_in_the_folders_name(more, name):
    assert recipe(*shlex.split(more)).training_label == name


def test_a_result_has_the_labels_of_its_merging_and_scoring():
    words = "--merge_scale 0.5 --answer_cut none --merge_topk 2 --inference_method prag"
    given = shlex.split(f"--model_name M --dataset D {words}")
    assert inference.parse_arguments(given)[1].method_label == "prag_topk=2_scale=0.5_cut=none"
    words = "--flare_theta 0.5 --look_ahead 32 --inference_method flare --answer_cut none"
    given = shlex.split(f"--model_name M --dataset D {words}")
    assert inference.parse_arguments(given)[1].method_label == "flare_cut=none_ahead=32_theta=0.5"
    added = Recipe(inference_method="prag", merge_topk=2, merge="median")  # a user's own way
    assert added.method_label == "prag_topk=2_median"


def test_the_next_command_carries_every_setting_that_is_not_the_default():
    words = shlex.split(
        "--model_name 'my models/m' --dataset D --data_type T --prompts demo --with_cot "
        "--learning_rate 1e-05 --lora_alpha 0.5 --seed 3 --max_length 90 --dtype bfloat16 "
        "--augment_model A --trust_remote_code --per_device_train_batch_size 2 "
        "--init_adapter warmup --augment_parts none"
    )
    given = encode.parse_arguments(words)[1]
    again = encode.parse_arguments(shlex.split(given.flags("model", "data", "adapter")))[1]
    assert again == given
    plain = Recipe("m", dataset="D")
    assert plain.flags("model", "data", "adapter") == "--model_name m --dataset D"


def test_a_setting_is_said_once():
    """A new field has its flag, its default for files that do not hold it, and its place."""
    parser = new_parser("")
    add_flags(parser, *GROUPS)
    actions = {action.dest: action for action in parser._actions}
    for one in fields(Recipe):
        assert actions[one.name].default == one.default
        assert one.metadata["of"] in GROUPS
        if one.metadata["recorded"]:
            assert DEFAULTS[one.name] == one.default
    assert Recipe().settings("adapter").keys() <= DEFAULTS.keys()


def test_a_registrys_names_are_read_without_importing_it():
    assert names_in("lora/merges.py", "MERGES") == tuple(MERGES)
    assert names_in("lora/objectives.py", "OBJECTIVES") == tuple(OBJECTIVES)
    assert names_in("sources/__init__.py", "SOURCES") == tuple(SOURCES)
    assert names_in("active/__init__.py", "ACTIVE") == tuple(ACTIVE)
    with pytest.raises(LookupError):
        names_in("lora/merges.py", "NOTHING")
