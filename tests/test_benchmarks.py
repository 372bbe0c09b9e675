"""The benchmarks measure what they say and compare ways that do the same; the demo's effect."""

import itertools
import json
import sys

import pandas as pd
import pytest
import torch
from conftest import REPOSITORY
from stage_runs import run, watched

from utils.files import write_json
from utils.lora.bank import LoraBank
from utils.running import InputError
from utils.store.folders import load_adapter, save_adapter

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import check
import effect_plots
import effect_summary as effect
import scaling
import speed
import storage
import storage_files
import writing
from random_work import config_of, random_model, random_prompts, skeleton_of
from speed_report import agreement
from speed_ways import open_work

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of peft


def test_the_three_ways_are_measured_and_agree(tmp_path, capsys):
    amounts = "--passages 2 --published_passages 2 --questions 8 --published_questions 2"
    short = "--repetitions 1 --padded_length 300 --max_new_tokens 12 --adapters_per_batch 2"
    file = tmp_path / "speed.json"
    flags = ("--architecture", "tiny", *amounts.split(), *short.split(), "--json", str(file))
    run(speed, *flags)
    result = json.loads(file.read_text())
    encode, answer = result["encode"], result["answer"]
    ways = [way for way in encode.values() if isinstance(way, dict)]
    for way in (*ways, *(answer[n] for n in ("published", "ours", "closed_book"))):
        assert len(way["seconds"]) == 1 and way["failure"] is None
        assert 0 < way["utilisation"] * result["matmul_rate"] < float("inf")
    assert encode["published"]["tokens"] == 2 * 5 * 300
    assert encode["unpadded"]["tokens"] == encode["unpadded"]["prompt_tokens"]
    assert encode["ours"]["tokens"] >= encode["ours"]["prompt_tokens"]
    seconds = {name: encode[name]["seconds_per_item"] for name in ("published", "ours")}
    ratio = seconds["published"] / seconds["ours"]
    assert encode["ours"]["times_published"] == pytest.approx(ratio)
    for name in ("published", "unpadded"):
        assert encode[name]["agreement"]["within_bounds"], encode[name]["agreement"]
    same = answer["agreement"]
    assert same["questions"] == same["equal"] == same["equal_strong"] == 2
    assert same["changed_strong"] > 0  # equal answers would say nothing otherwise
    shown = capsys.readouterr().out
    assert shown.count("1e-6, within the bounds") == 2 and "2 of 2 equal" in shown


def test_what_grew_beyond_the_baseline_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(check, "BASELINES", tmp_path)
    ours = {"times_unpadded": 4.0, "utilisation": 0.5, "peak_bytes": 1000}
    result = {
        "encode": {"ours": ours, "extra_cost_of_neighbours": 0.2},
        "answer": {"ours": {"times_published": 30.0}, "extra_cost_of_prag": 0.1},
        "machine": {"threads": 2, "features": ["avx2", "avx512f"]},
        "provenance": {"device": "cpu"}, "arguments": {},
    }  # fmt: skip
    file = tmp_path / "speed.json"
    write_json(file, result)
    with pytest.raises(InputError, match="no baseline of a machine of the kind cpu-avx512f-2"):
        run(check, str(file))
    run(check, str(file), "--write")
    ours |= {"times_unpadded": 3.5, "utilisation": 0.43, "peak_bytes": 1051}
    write_json(file, result)
    with pytest.raises(InputError) as grown:
        run(check, str(file))
    said = str(grown.value)
    assert "matrix products grew by 16.3% (allowed: 15%)" in said and "memory of" in said
    assert "one adapter at a time" not in said and "5.1%" in said


def test_the_writing_benchmark_counts_the_same_texts_here_and_at_a_server(tmp_path, capsys):
    amounts = "--widths 2 --repetitions 1 --max_new_tokens 5 --temperature 0"
    model = str(REPOSITORY / "data/demo/demo-model")
    corpus, file = str(REPOSITORY / "data/demo/corpus.tsv"), tmp_path / "writing.json"
    flags = ["--model_name", model, "--prompts", "demo", "--corpus", corpus, *amounts.split()]
    run(writing, *flags, "--json", str(file))
    rows = json.loads(file.read_text())["rows"]
    assert [row["way"] for row in rows] == ["rewrites", "lists"]  # no grammar for this tokenizer
    for row in rows:
        assert row["rounds"][0]["tokens"] in range(4, 4 * 6 + 1) and row["utilisation"] > 0
        assert row["rounds"][0]["given"] > 4 * 30  # four prompts are read
    assert capsys.readouterr().out.count("2 side by side") == 2


def test_the_speed_benchmark_takes_the_texts_of_a_data_set(root):
    pairs = [{"question": "Who?", "answer": a, "full_answer": a} for a in ("x", "y", "z")]
    texts = {"demo-model_rewrite": "A rewrite.", "demo-model_qa": pairs}
    passages = [{"pid": pid, "passage": f"Text {pid}.", **texts} for pid in range(2)]
    record = {"test_id": 0, "question": "Who is it?", "answer": "x", "augment": passages}
    write_json(root / "data_aug/demo/test.json", [record, {**record, "test_id": 1}])
    work = open_work(speed.parse_arguments(["--passages", "2", "--questions", "2"]))
    assert len(work.questions) == 2 and work.published.dtype == torch.float32
    for number, examples in enumerate(work.passages):
        shown = [work.tokenizer.decode(example.ids) for example in examples]
        assert len(shown) == 5 and f"Text {number}." in shown[0] and shown[4].endswith("z.")


def test_adapters_that_differ_are_seen(tmp_path):
    bank = LoraBank(random_model(config_of("tiny"), torch.float32, torch.device("cpu")), 2, 32)
    one, same, other = tmp_path / "one", tmp_path / "same", tmp_path / "other"
    for folder in (one, same):
        save_adapter(bank.new_base_adapter(0), folder, 32, "", {})
    changed = load_adapter(one, bank.shapes(2))
    next(iter(changed.values()))[1][0, 0] += 1e-3  # one element of all
    save_adapter(changed, other, 32, "", {})
    assert agreement([(one, same)], bank.shapes(2))["within_bounds"]
    found = agreement([(one, same), (one, other)], bank.shapes(2))
    assert found["largest_difference"] == pytest.approx(1e-3) and not found["within_bounds"]


@pytest.mark.parametrize("architecture, parameters", [
    ("llama3.2-1b", 1_235_814_400), ("qwen2.5-1.5b", 1_543_714_304), ("llama3-8b", 8_030_261_248),
])  # fmt: skip
def test_architectures_have_the_size_of_the_released_models(architecture, parameters):
    skeleton = skeleton_of(architecture)
    assert sum(p.numel() for p in skeleton.parameters()) == parameters
    passages, _ = random_prompts(skeleton.config, "direct", 20, 4)
    assert 900 < sum(len(prompt) for prompts in passages for prompt in prompts) / 20 < 1100


def test_the_storage_benchmark_measures_what_its_shapes_say(monkeypatch, tmp_path):
    monkeypatch.setattr(storage_files, "MODELS", ("tiny",))
    few = ["--root", str(tmp_path), "--passages", "2", "--repetitions", "1"]
    options = storage.parse_arguments(["sizes", *few])
    rows = storage_files.sizes(options)
    numbers = 2 * 2 * 3 * (32 + 48)  # layers, rank, modules, both sides of A and B
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16", "float16"]
    for row, width in zip(rows, (4, 2, 2), strict=True):
        assert row["bytes_of_the_numbers"] == width * numbers < row["bytes_of_the_weights_file"]
        assert row["bytes_of_the_weights_file"] < row["bytes_unpacked"]
    timed = storage_files.loading(options)
    assert [row["from"] for row in timed] == ["disk", "memory"] * 2
    assert all(len(row["rounds"]) == 1 for row in timed)


def test_the_scaling_benchmark_measures_in_turn_and_its_costs_add_up(monkeypatch, tmp_path, capsys):
    (tmp_path / "data_aug/demo").mkdir(parents=True)
    monkeypatch.setenv("PRAG_ROOT", str(tmp_path))
    order = []
    monkeypatch.setattr(scaling, "encode_seconds", lambda n, *_: (order.append(n) or 60 / n, 30))
    file = tmp_path / "scaling.json"
    run(scaling, "--repetitions", "2", "--json", str(file))
    assert order == [1, 2, 1, 2]
    result = json.loads(file.read_text())
    assert result["encode"]["2"]["adapters_per_second"] == 1.0
    assert "llama3-8b" in capsys.readouterr().out
    cost = result["cost_model"]["llama3.2-1b"]
    operations = 4 * cost["parameters_in_products"] * cost["tokens_per_passage"]
    assert cost["passages_per_second"] * operations == pytest.approx(0.35 * 989e12)
    least = scaling.WIKIPEDIA * 4 * 983_040 / 1e12  # numbers of an adapter, without its records
    assert least < cost["terabytes"]["float32"] < 1.01 * least


def record(number: int, passages: list[str], answer: str = "red") -> dict:
    pairs = [{"answer": answer} for answer in ("blue", "red", "green")]
    augment = [{"passage": passage, "m_qa": pairs} for passage in passages]
    return {"question": f"{number}?", "answer": answer, "passages": passages, "augment": augment}


def made_up() -> tuple[dict, pd.DataFrame]:
    names = [f"q{i}" for i in range(40)]
    types = ["single_hop"] * 30 + ["two_hop"] * 10
    questions = pd.DataFrame({"type": types, "qid": names}, index=names)

    def f1_of(right: int, seed: int) -> pd.Series:
        return pd.Series([float((i * 7 + seed) % 40 < right) for i in range(40)], index=names)

    level = {"closed_book": 0, "icl": 36, "prag": 20, "combine": 40}
    scores = {name: {seed: f1_of(n, seed) for seed in (0, 1)} for name, n in level.items()}
    return scores, questions


def test_the_summary_has_means_over_seeds_intervals_and_tests():
    scores, questions = made_up()
    for name in ("icl, gold passages", "prag, gold passages", "icl, eight passages"):
        scores[name] = scores["combine"]
    summary = effect.summary_of(scores, questions)
    prag = summary["prag"]["all"]
    assert prag["f1"] == pytest.approx(0.5) and prag["low"] < 0.5 < prag["high"]
    assert prag["n"] == 40 and summary["prag"]["two_hop"]["n"] == 10
    assert prag["seeds"] == {"0": 0.5, "1": 0.5}
    assert prag["p_icl"] < 0.05 and "p_prag" not in prag
    # with other passages the reference is what answers from the same ones
    gold, icl_gold = summary["prag, gold passages"]["all"], summary["icl, gold passages"]["all"]
    assert gold["p_icl"] == icl_gold["p_prag"] == 1 and gold["p_prag"] < 0.05
    assert icl_gold["p_icl"] == summary["combine"]["all"]["p_icl"] < 1
    assert "p_prag" not in summary["icl, eight passages"]["all"]
    assert all(effect.reference_of(name, "icl") in effect.CONDITIONS for name in effect.CONDITIONS)
    text = effect.table_of(summary, {"not asked": effect.describe(pd.Series([0.0, 1.0]))})
    assert "| `prag` | 0.500 [" in text and "†" in text and "0.500 / 0.500" in text


def test_coverage_counts_single_hop_questions_by_what_the_pairs_ask_for():
    kinds = {"red": "asked in context", "green": "asked without context", "black": "not asked"}
    for answer, kind in kinds.items():
        assert effect._coverage(record(0, ["p", "o"], answer), "p") == kind
    assert effect._coverage(record(0, ["p", "o"]), "q") == "not retrieved"
    scores, questions = made_up()
    kinds = pd.Series(["asked in context"] * 20 + ["not asked"] * 20, index=questions.index)
    coverage = {0: kinds, 1: kinds.replace("not asked", "asked without context")}
    summary = effect.coverage_summary(scores["prag"], coverage, questions["type"])
    counts = {kind: entry["n"] for kind, entry in summary.items()}
    assert counts == {"asked without context": 10, "asked in context": 20, "not asked": 10}
    assert summary["not asked"]["f1"] == pytest.approx(scores["prag"][0].iloc[20:30].mean())


def test_wrong_answers_of_the_subjects_own_name_are_counted():
    said = {"Ana Berg": 0, "Ana": 0, "Ana Cole": 0, "Dora Cole": 0, "": 0, "red": 1}
    asked = {"question": "Who is Ana Berg's son?"}
    rows = [{**asked, "eval_predict": text, "em": em} for text, em in said.items()]
    types = pd.Series(["single_hop"] * 6 + ["two_hop"])
    counts = effect.names_in_wrong_answers([*rows, rows[0]], types)
    assert counts == {"wrong": 5, "name": 2, "part": 1}


def test_the_figures_are_drawn(tmp_path, monkeypatch):
    drawn = watched(monkeypatch, effect_plots, "_save")
    effect_plots.plot_conditions(effect.summary_of(*made_up()), tmp_path / "effect.png")
    assert drawn[0][0].axes[0].get_ylim()[0] == -4.7  # four bars, no room for groups without any
    names = ("method", "learning_rate", "num_train_epochs")
    same = {"f1": 0.3, "low": 0.2, "high": 0.4}
    settings = itertools.product(("prag", "combine", "icl"), (3e-4, 2e-3), (1, 4))
    rows = [dict(zip(names, setting, strict=True)) | same for setting in settings]
    effect_plots.plot_sweep(rows, (2e-3, 4), tmp_path / "sweep.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in ("effect", "sweep"))
