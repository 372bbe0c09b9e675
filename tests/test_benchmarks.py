"""The speed benchmark measures what it says, and its ways do the same thing."""

import json

import pytest
import torch
from conftest import REPOSITORY
from stage_runs import run
from test_lora import random_adapter
from transformers import AutoModelForCausalLM

from utils.lora.bank import LoraBank, merge
from utils.models import generate
from utils.store.folders import load_adapter, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of peft


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))


def test_the_three_ways_are_measured_and_agree(tmp_path, monkeypatch, capsys):
    import speed

    amounts = "--passages 2 --published_passages 2 --questions 8 --published_questions 2"
    short = "--repetitions 1 --padded_length 300 --max_new_tokens 12 --adapters_per_batch 2"
    file = tmp_path / "speed.json"
    flags = ("--architecture", "tiny", *amounts.split(), *short.split(), "--json", str(file))
    run(speed, *flags, monkeypatch=monkeypatch)
    result = json.loads(file.read_text())
    encode, answer = result["encode"], result["answer"]
    for way in (*encode.values(), *(answer[n] for n in ("published", "ours", "closed_book"))):
        assert len(way["seconds"]) == 1
        assert min(way["seconds"]) > 0
        assert way["failure"] is None
    assert encode["published"]["tokens"] == 2 * 5 * 300
    assert encode["unpadded"]["tokens"] == encode["unpadded"]["prompt_tokens"]
    assert encode["ours"]["tokens"] >= encode["ours"]["prompt_tokens"]
    assert encode["ours"]["times_published"] == pytest.approx(
        encode["published"]["seconds_per_item"] / encode["ours"]["seconds_per_item"]
    )
    for name in ("published", "unpadded"):
        assert encode[name]["agreement"]["within_contract"], encode[name]["agreement"]
    agreement = answer["agreement"]
    assert agreement["questions"] == agreement["equal"] == agreement["equal_strong"] == 2
    assert agreement["changed_strong"] > 0  # equal answers would say nothing otherwise
    assert result["provenance"]["versions"]["torch"] == torch.__version__
    assert result["machine"]["cores"] > 0
    shown = capsys.readouterr().out
    assert shown.count("as the contract asks") == 2
    assert "2 of 2 equal" in shown


def test_the_published_loop_merges_all_adapters_for_every_question(tmp_path):
    from published_loop import answer_question
    from random_work import ARCHITECTURES, TokenNumbers, random_model, random_prompts

    config = ARCHITECTURES["tiny"]()
    models = [random_model(config, torch.float32, torch.device("cpu")) for _ in range(2)]
    tokenizer = TokenNumbers(config)
    bank = LoraBank(models[0], 2, 32)
    adapters = [random_adapter(bank, 2, seed) for seed in range(3)]
    for number, adapter in enumerate(adapters):
        save_adapter(adapter, tmp_path / str(number), 2, 32, "", {})
    folders = [tmp_path / str(number) for number in range(3)]
    for prompt in random_prompts(config, "direct", 1, 3)[1]:
        answers = []
        for merged in (adapters, adapters[:1]):
            bank.load([merge(merged)])
            answers += generate(models[0], tokenizer, [prompt], 8)
        assert answers[0] != answers[1]  # one adapter alone answers otherwise
        assert answer_question(models[1], tokenizer, folders, prompt, 8) == answers[0]


def test_adapters_that_differ_are_seen(tmp_path):
    from random_work import ARCHITECTURES, random_model
    from speed_report import agreement

    config = ARCHITECTURES["tiny"]()
    bank = LoraBank(random_model(config, torch.float32, torch.device("cpu")), 2, 32)
    adapter = bank.new_base_adapter(0)
    save_adapter(adapter, tmp_path / "one", 2, 32, "", {})
    save_adapter(adapter, tmp_path / "same", 2, 32, "", {})
    other = load_adapter(tmp_path / "one", bank.shapes(2))
    next(iter(other.values()))[1][0, 0] += 1e-3  # one element of all
    save_adapter(other, tmp_path / "other", 2, 32, "", {})
    pairs = [(tmp_path / "one", tmp_path / "same")]
    assert agreement(pairs, bank.shapes(2))["within_contract"]
    found = agreement([*pairs, (tmp_path / "one", tmp_path / "other")], bank.shapes(2))
    assert found["largest_difference"] == pytest.approx(1e-3)
    assert not found["within_contract"]


def test_a_way_that_runs_out_of_memory_does_not_stop_the_others():
    from clock import Stage
    from random_work import ARCHITECTURES, random_model

    model = random_model(ARCHITECTURES["tiny"](), torch.float32, torch.device("cpu"))
    calls = []

    def fails():
        calls.append("fails")
        raise torch.OutOfMemoryError

    ways = {"fails": (model, fails), "works": (model, lambda: calls.append("works"))}
    timings = Stage(torch.device("cpu")).measure(ways, 2)
    assert calls == ["fails", "works", "works", "works"]  # an uncounted round and two
    assert timings["fails"].failure == "out of memory"
    assert len(timings["works"].seconds) == 2


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [
        ("llama3.2-1b", 1_235_814_400),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("llama3-8b", 8_030_261_248),
    ],
)
def test_architectures_have_the_size_of_the_released_models(architecture, parameters):
    from random_work import ARCHITECTURES, random_prompts

    config = ARCHITECTURES[architecture]()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == parameters
    passages, questions = random_prompts(config, "direct", 20, 4)
    assert {len(prompts) for prompts in passages} == {5}
    assert len(questions) == 4
    mean = sum(len(prompt) for prompts in passages for prompt in prompts) / 20
    assert 900 < mean < 1100


def test_the_storage_benchmark_measures_what_its_shapes_say(monkeypatch, tmp_path):
    import storage

    (tmp_path / "root").mkdir()
    monkeypatch.setattr(storage, "MODELS", ("tiny",))
    options = storage.parse_arguments(
        ["sizes", "--root", str(tmp_path / "root"), "--passages", "2", "--repetitions", "1"]
    )
    rows = storage.sizes(options)
    numbers = 2 * 2 * 3 * (32 + 48)  # layers, rank, modules, both sides of A and B
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16", "float16"]
    for row in rows:
        width = 4 if row["dtype"] == "float32" else 2
        assert row["bytes_of_the_numbers"] == width * numbers
        assert row["bytes_of_the_numbers"] < row["bytes_of_the_weights_file"] < row["bytes_packed"]
        assert row["bytes_of_the_weights_file"] < row["bytes_unpacked"]
    timed = storage.loading(options)
    assert {(row["way"], row["from"]) for row in timed} == {
        (way, cache) for way in ("unpacked", "packed") for cache in ("disk", "memory")
    }
    assert all(row["milliseconds"] > 0 and len(row["rounds"]) == 1 for row in timed)


def test_the_scaling_benchmark_measures_in_turn_and_its_costs_add_up(monkeypatch, tmp_path, capsys):
    import scaling

    (tmp_path / "data_aug/demo").mkdir(parents=True)
    monkeypatch.setenv("PRAG_ROOT", str(tmp_path))
    order = []

    def encode_seconds(processes, source, options):
        order.append(processes)
        return 60.0 / processes, 30

    monkeypatch.setattr(scaling, "encode_seconds", encode_seconds)
    file = tmp_path / "scaling.json"
    run(scaling, "--repetitions", "2", "--json", str(file), monkeypatch=monkeypatch)
    assert order == [1, 2, 1, 2]
    result = json.loads(file.read_text())
    assert result["encode"]["2"]["adapters_per_second"] == 1.0
    shown = capsys.readouterr().out
    assert "2.00" in shown and "llama3-8b" in shown
    cost = result["cost_model"]["llama3.2-1b"]
    operations = 4 * cost["parameters_in_products"] * cost["tokens_per_passage"]
    assert cost["passages_per_second"] * operations == pytest.approx(0.35 * 989e12)
    hours = scaling.WIKIPEDIA / cost["passages_per_second"] / 3600
    assert cost["gpu_hours"] == pytest.approx(hours)
    # 983,040 numbers of four bytes, and what stands beside them
    least = scaling.WIKIPEDIA * 4 * 983_040 / 1e12
    assert least < cost["terabytes"]["float32"]["packed"] < 1.01 * least
