"""Passages that share a pool of adapters: the numbers, the files, growing, stopping, refusals."""

import json
import shutil

import peft
import pytest
import torch
from adapter_runs import demo_bank, random_adapter, stopped, tiny_bank
from conftest import edited
from stage_runs import COMMON, DEV, MODEL, answer, refused, run, tree
from test_lora import model_in, random_examples
from transformers import AutoModelForCausalLM

import adapters
import encode
from utils.lora import objectives, shared
from utils.lora.bank import LoraBank
from utils.lora.examples import Steps
from utils.lora.merges import score, total
from utils.lora.shared import in_turns, routed, train_shared
from utils.lora.training import halving, train_adapters
from utils.store import links
from utils.store.folders import load_adapter, stored_fingerprint

FLAGS = ("--learning_rate", "4e-3", "--shared", "3", "--sample", "2")
SHARED = [*COMMON, *DEV, *FLAGS, "--adapters_per_batch", "4"]
PLACE = "offline/demo-model/rank=2_alpha=32/demo/lr=0.004_epoch=1_shared=3/aug_model=demo-model"


# in the middle, after a checkpoint, and when the pool and some weights are on the disk
STOPS = (shared, "weights_of", 6), (shared, "weights_of", 4), (links, "save_adapter", 3)


def test_with_one_hot_weights_the_pool_is_the_plain_bank():
    examples = random_examples([4, 4, 4])
    bank = LoraBank(model_in(torch.float64, "llama", True), 2, 8)
    base = {name: (A.double(), B.double()) for name, (A, B) in bank.new_base_adapter(1).items()}
    steps = [Steps(own, 1, 2) for own in examples]
    alone = train_adapters(bank, base, steps, objectives.lm, 3e-3, schedule=halving)
    pool = {name: (A.repeat(3, 1), B.repeat(1, 3)) for name, (A, B) in base.items()}
    numbers = 1e4 * torch.eye(3).double()[:, None].repeat(1, len(base), 1)
    turns = in_turns(steps, 3, 0)
    weights = train_shared(bank, pool, numbers, steps, objectives.lm, 3e-3, turns, halving)
    assert torch.equal(weights[:, 0], torch.eye(3).double())
    for i, adapter in enumerate(alone):
        rows = slice(2 * i, 2 * i + 2)
        for name, (A, B) in adapter.items():
            assert (pool[name][0][rows] - A).abs().max() < 1e-12
            assert (pool[name][1][:, rows] - B).abs().max() < 1e-12
            assert B.abs().max() > 1e-3


def test_weights_of_one_pool_are_added_as_their_adapters_would_be():
    bank = tiny_bank()
    pool = random_adapter(bank, 6, 0)
    weights = torch.rand((2, len(pool), 3))
    one, two = (routed(pool, own) for own in weights)
    both = routed(pool, weights)
    entries = [{"score": 3.0}, {"score": 1.0}]
    for name, (A, B) in one.items():
        assert torch.equal(both[name][0][0], A) and torch.equal(both[name][1][0], B)
        loose = B @ A + two[name][1] @ two[name][0]
        A, B = total([one, two], [], None)[name]
        assert len(A) == 6 and (B @ A - loose).abs().max() < 1e-5
        loose = 1.5 * one[name][1] @ A + 0.5 * two[name][1] @ A
        A, B = score([one, two], entries, None)[name]
        assert len(A) == 6 and (B @ A - loose).abs().max() < 1e-5
        plain = {name: (A.clone(), B) for name, (A, B) in two.items()}
        assert len(total([one, plain], [], None)[name][0]) == 12


@pytest.fixture(scope="module")
def encoded(finished, tmp_path_factory):
    """A root with a pool and the weights of two questions' passages; do not change."""
    root = tmp_path_factory.mktemp("shared") / "root"
    shutil.copytree(finished, root, ignore=shutil.ignore_patterns("offline", "output"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.layout.ROOT_DIR", root)
        run(encode, *SHARED)
        answer_shared()
    return root


@pytest.fixture
def own(encoded, root):
    """The encoded root's content in this test's own root."""
    shutil.copytree(encoded, root, dirs_exist_ok=True)
    return root


def answer_shared(*more: str) -> None:
    answer("prag", "--num_train_epochs", "1", *FLAGS, *more)


def answers(root) -> list[str]:
    [file] = (root / "output").rglob("prag/dev/predict.json")
    return [row["text"] for row in json.loads(file.read_text())]


def test_what_is_stored_is_a_pool_and_a_few_numbers_for_a_passage(own, capsys):
    run(adapters, "list")
    run(adapters, "verify", *COMMON, *DEV, *FLAGS)
    said = capsys.readouterr().out
    assert "dev: 6 adapters, " in said and ", beside a pool of " in said and " 0 of them m" in said
    place = own / PLACE / "dev/data_0/passage_0"
    assert sorted(file.name for file in place.iterdir()) == [
        "routing.safetensors", "training_config.json",
    ]  # fmt: skip
    assert (place / "routing.safetensors").stat().st_size < 400
    record = json.loads((place / "training_config.json").read_text())
    assert record["shared"] == 3 and record["base"] == stored_fingerprint(own / PLACE / "pool")


def test_an_exported_adapter_answers_as_the_pool_does(own):
    run(adapters, "export", *COMMON, *DEV, *FLAGS, "--question_id", "1", "--output",
        str(own / "one"))  # fmt: skip
    bank, ids = demo_bank(), torch.arange(5, 25)[None]
    places = [own / PLACE / f"dev/data_1/passage_{pid}" for pid in range(3)]
    loaded = [load_adapter(place, bank.shapes(2)) for place in places]
    separate = [{name: (A.clone(), B) for name, (A, B) in one.items()} for one in loaded]
    logits = []
    for merged in (total(loaded, [], None), total(separate, [], None)):
        bank.load([merged])
        logits.append(bank.model(ids).logits)
    oracle = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(MODEL), own / "one"
    )
    assert oracle.peft_config["default"].r == 8
    assert all((one - oracle(ids).logits).abs().max() < 1e-4 for one in logits)


def test_a_stopped_training_ends_with_the_same_bytes(own, monkeypatch):
    whole, texts = tree(own / PLACE), answers(own)
    monkeypatch.setattr("utils.sources.shared.SAVE_STEPS", 4)
    shutil.rmtree(own / PLACE)
    for module, name, calls in STOPS:
        stopped(module, name, calls, encode, *SHARED)
        assert (own / PLACE / ".pool.checkpoint.safetensors").exists()
    refused("is of other passages; use the same", run, encode, *SHARED, "--sample", "1")
    refused("--adapters_per_batch 4; leave", run, encode, *SHARED[:-1], "5")
    run(encode, *SHARED)
    assert tree(own / PLACE) == whole
    monkeypatch.undo()
    monkeypatch.setattr("utils.layout.ROOT_DIR", own)
    stopped(shared, "weights_of", 3, encode, *SHARED, "--overwrite")
    assert tree(own / PLACE) == whole
    stopped(links, "save_adapter", 3, encode, *SHARED, "--overwrite")
    unfinished = own / PLACE / ".pool.checkpoint.safetensors"
    left = unfinished.read_bytes()
    run(encode, *SHARED)
    assert tree(own / PLACE) == whole
    answer_shared()
    assert answers(own) == texts
    unfinished.write_bytes(left)  # as a kill just before its removal leaves it
    run(encode, *SHARED, "--sample", "3")
    assert whole.items() <= tree(own / PLACE).items() and not unfinished.exists()


def test_new_passages_train_their_weights_alone(own, monkeypatch):
    shutil.rmtree(own / PLACE)
    run(encode, *SHARED, "--sample", "1")
    before = tree(own / PLACE)
    run(encode, *SHARED)
    after = tree(own / PLACE)
    assert before.items() <= after.items() and len(after) > len(before)
    bank = demo_bank()
    places = [own / PLACE / f"dev/data_{did}/passage_0" for did in (0, 1)]
    old, new = (load_adapter(place, bank.shapes(2)) for place in places)
    assert all(new[name][0] is A for name, (A, _) in old.items())
    assert any((new[name][1] != B).any() for name, (_, B) in old.items())
    shutil.rmtree(own / PLACE / "dev/data_1")
    monkeypatch.setattr("utils.sources.shared.SAVE_STEPS", 1)
    stopped(shared, "weights_of", 3, encode, *SHARED)
    run(encode, *SHARED)
    assert tree(own / PLACE) == after
    answer_shared("--overwrite")


def test_a_damaged_pool_or_routing_is_named_and_made_again(own):
    whole, place = tree(own / PLACE), own / PLACE / "dev/data_0/passage_0"
    file = place / "routing.safetensors"
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused("passage_0/routing.safetensors cannot be read .*hash differs", answer_shared)
    run(encode, *SHARED)  # alone, as the pool is sound
    answer_shared("--overwrite")
    weights = own / PLACE / "pool/adapter_model.safetensors"
    for change in (lambda: weights.write_bytes(b"no"), lambda: shutil.rmtree(weights.parent)):
        change()
        refused("pool.* cannot be read .*make it again|train it again", answer_shared)
        run(encode, *SHARED)
        assert tree(own / PLACE) == whole
    with edited(own / PLACE / "pool/training_config.json") as record:
        record["prompts"] = "another"
    shutil.rmtree(own / PLACE / "dev/data_0")
    refused("the pool .* was made with prompts", run, encode, *SHARED)
    run(encode, *SHARED, "--seed", "1", "--overwrite")
    refused("was made with seed", answer_shared)
    other = tree(own / PLACE)["dev/data_0/passage_0/routing.safetensors"]
    run(encode, *SHARED, "--overwrite")
    assert tree(own / PLACE) == whole
    file.write_bytes(other)  # of the other pool
    refused("hash differs", answer_shared)


def test_what_shares_nothing_is_refused(own):
    shutil.rmtree(own / PLACE)
    refused("in one process; start it with python", run, encode, *SHARED, "--shard", "0/2")
    (own / "data_aug/demo/pool.json").write_text((own / "data_aug/demo/dev.json").read_text())
    named = [*COMMON, "--dataset", "demo", "--data_type", "pool", *FLAGS]
    refused("cannot be called 'pool'", run, encode, *named)
