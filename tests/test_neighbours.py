"""Adapters that are trained beside their neighbours: the numbers against peft, plans, resuming."""

import json
import os
import shutil
from types import SimpleNamespace

import peft
import pytest
import torch
from adapter_runs import stopped
from conftest import edited
from stage_runs import COMMON, DEV, answer, refused, run, tree
from test_lora import model_in, random_examples

import encode
from utils.augmentation.sampling import Sampling
from utils.augmentation.writing import write_chunk
from utils.lora.bank import LoraBank
from utils.lora.examples import Steps
from utils.lora.neighbours import drawn
from utils.lora.objectives import lm
from utils.lora.training import halving, train_adapters
from utils.neighbours import neighbour_lists, partition
from utils.running import InputError
from utils.store.base import open_base_adapter

FEW = ("--sample", "2", "--learning_rate", "4e-3")
BESIDE = ("--neighbours", "2", "--index_name", "demo", "--adapters_per_batch", "4")
LISTS = [[[1, 2], [3]], [[0, 2]], [[], [3, 1]], [[0]]]  # of each adapter, by place


def train_with_peft(base_folder, examples, epochs, rate, met):
    """Every adapter by peft, one at a time: `met(i, step)` are active too, but do not learn."""
    model = peft.PeftModel.from_pretrained(
        model_in(torch.float64, "llama", True), base_folder, "0", True, autocast_adapter_dtype=False
    )
    for i in range(1, len(examples)):
        model.load_adapter(base_folder, str(i), is_trainable=True, autocast_adapter_dtype=False)
    named = list(model.double().named_parameters())
    own = [[p for n, p in named if f".{i}.weight" in n] for i in range(len(examples))]
    optimizers = {}
    for step in range(epochs * max(map(len, examples))):
        training = [i for i, mine in enumerate(examples) if step < epochs * len(mine)]
        for i in training:  # all see the adapters of the step's beginning
            model.base_model.set_adapter([str(one) for one in (i, *met(i, step))])
            ids = torch.tensor([examples[i][step % len(examples[i])].ids])
            logits = model(input_ids=ids).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
            for parameter, gradient in zip(own[i], torch.autograd.grad(loss, own[i]), strict=True):
                parameter.grad = gradient
        for i in training:
            passes, taken = divmod(step, len(examples[i]))
            if taken == 0:
                optimizers[i] = torch.optim.AdamW(own[i], lr=rate * 0.5**passes)
            optimizers[i].step()
    return own


@pytest.mark.parametrize("side_by_side", [None, 3])
def test_beside_neighbours_equals_peft_one_adapter_at_a_time(tmp_path, side_by_side):
    examples = random_examples([3, 5, 1, 4])
    bank = LoraBank(model_in(torch.float64, "llama", True), 2, 8)
    base = open_base_adapter(bank, tmp_path / "base", "tiny", seed=1)
    base = {name: (A.double(), B.double()) for name, (A, B) in base.items()}
    met, steps = drawn(LISTS, list("abcd")), [Steps(own, 1, 3) for own in examples]
    assert {tuple(met(0, step)) for step in range(20)} == {(1, 2), (3,)}
    more = {"schedule": halving, "side_by_side": side_by_side}
    mine = train_adapters(bank, base, steps, lm, 3e-3, neighbours=met, **more)
    oracle = train_with_peft(tmp_path / "base", examples, 3, 3e-3, met)
    alone = train_adapters(bank, base, steps, lm, 3e-3, **more)
    for adapter, other, parameters in zip(mine, alone, oracle, strict=True):
        expected = [tensor for pair in adapter.values() for tensor in pair]
        for tensor, parameter in zip(expected, parameters, strict=True):
            assert (tensor - parameter).abs().max() < 1e-7
        name = next(iter(adapter))
        assert (adapter[name][1] - other[name][1]).abs().max() > 1e-4


def test_groups_hold_who_is_retrieved_together_and_every_passage_once():
    lists = {name: [[]] for name in "abcdefg"} | {"a": [["e", "c"]], "c": [["e"]], "f": [["b"]]}
    assert partition(lists, 3) == [["a", "c", "e"], ["b", "f", "d"], ["g"]]
    assert partition(lists, 100) == [["a", "c", "e", "b", "f", "d", "g"]]


def test_neighbours_are_the_first_other_passages_that_this_run_encodes():
    class Index:
        def search(self, questions, topk):
            found = {"Q1": "xPRS", "Q2": "SxyP", "Q3": "R"}
            return [[{"text": text} for text in found[question]] for question in questions]

    def work(passage, *questions):
        entry = {"passage": passage, "qa": [{"question": one} for one in questions]}
        return SimpleNamespace(data=passage.lower(), entry=entry)

    works = [work("P", "Q1", "Q2"), work("R", "Q3"), work("S", "Q1")]
    expected = {"p": [["r", "s"], ["s"]], "r": [[]], "s": [["p", "r"]]}
    assert neighbour_lists(works, Index(), 2) == expected
    with pytest.raises(InputError, match="holds none of the encoded passages; give the --index"):
        neighbour_lists([work("T", "Q1")], Index(), 2)


def test_a_stopped_run_and_a_split_one_end_with_the_same_bytes_and_its_plan_is_checked(
    copy, capsys
):
    train = [*COMMON, *DEV, *FEW, *BESIDE]
    run(encode, *train)
    assert "passages in 2 groups" in capsys.readouterr().out
    [plan] = copy.glob("offline/**/*_neighbours=2/**/neighbours.json")
    whole, lists = tree(plan.parent), json.loads(plan.read_text())["lists"]
    for file in plan.parent.rglob("training_config.json"):
        record = json.loads(file.read_text())
        assert record["group"] and record["beside"] == lists[record["data"]]
    for file in plan.parent.glob("data_1/passage_*/*"):
        file.unlink()
    stopped(os, "rename", 2, encode, *train)
    run(encode, *train)
    assert tree(plan.parent) == whole
    for folder in plan.parent.glob("data_*"):
        shutil.rmtree(folder)
    plan.unlink()
    for part in ("1/2", "0/2"):
        run(encode, *train, "--shard", part)
    assert tree(plan.parent) == whole
    asked = ("prag", "--num_train_epochs", "1", *FEW, *BESIDE[:2])
    answer(*asked)
    refused("was trained with other neighbours: the index, the te", run, encode, *train[:-1], "6")
    run(encode, *train[:-1], "6", "--overwrite")
    refused("was made with weights = .* trained again", answer, *asked)
    with edited(plan) as changed:
        changed["lists"] = {data: [[]] for data in lists}
    refused(r"made with (group|beside) = .*another plan", answer, *asked, "--overwrite")


def test_more_pairs_come_from_further_lists_and_no_question_twice():
    def listed(*numbers: int) -> str:
        return json.dumps(
            [{"question": f"Q{n}", "answer": "A", "full_answer": "A"} for n in numbers]
        )

    class Author:
        sampling = Sampling(9, 0.7, 50, 2, seed=0, pairs=5, constrained=False, check_answers=False)

        def write(self, requests, then):
            [one] = requests
            while one:
                one = then(one, texts.pop(0))

    texts = [listed(0, 1, 2), listed(1, 2, 3), "nonsense", listed(4, 5, 6), "rewritten"]

    [result] = write_chunk({"key": "passage"}, Author())["results"].values()
    assert [pair["question"] for pair in result["qa"]] == ["Q0", "Q1", "Q2", "Q3", "Q4"]
    assert (result["attempts"], result["rewrite"]) == (4, "rewritten")
