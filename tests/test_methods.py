"""The paper's baselines and ablations with the real scripts: what each changes, and only that."""

import json
import os

import pytest
import torch
from adapter_runs import demo_bank
from conftest import REPOSITORY, edited, put
from stage_runs import ADAPTERS, ENCODE, MODEL, RESULTS, answer, refused, run, watched

import encode
import get_warmup_data
import warmup_lora
from utils import batches
from utils.lora.bank import LoraBank
from utils.lora.merges import base_once
from utils.recipe import Recipe
from utils.sources import trained
from utils.sources.others import exchanged
from utils.store import folders, merging
from utils.store.folders import (
    load_adapter,
    read_training,
    save_adapter,
    stored_fingerprint,
    weights_hash,
)
from utils.store.links import link_adapter


def predictions(root, method: str) -> list[dict]:
    return json.loads((root / RESULTS / method / "dev/predict.json").read_text())


def test_da_icl_reads_the_augmentation_in_the_context(copy, monkeypatch):
    calls = watched(monkeypatch, batches, "generate")
    answer("da_icl", "--overwrite")
    seen = [tokenizer.decode(p) for _, tokenizer, prompts, *_ in calls for p in prompts]
    for record in json.loads((copy / "data_aug/demo/dev.json").read_text()):
        [prompt] = [p for p in seen if record["question"].rstrip("?") in p.split("Question: ")[-1]]
        for entry in record["augment"]:
            assert entry["passage"] in prompt and entry["demo-model_rewrite"].strip() in prompt
            for pair in entry["demo-model_qa"]:
                assert f"{pair['question']} {pair['answer']}" in prompt
    assert len(predictions(copy, "da_icl")) == 4


@pytest.mark.parametrize(("flag", "value", "prompts"), [
    ("augment_parts", "none", 1), ("augment_parts", "rewrite", 2), ("augment_parts", "qa", 3),
    ("objective", "answer", 5),  # the question and its context are not learnt
])  # fmt: skip
def test_an_ablation_has_its_own_prompts_numbers_and_folder(
    copy, monkeypatch, flag, value, prompts
):
    calls = watched(monkeypatch, trained, "train_as_fits")
    run(encode, *ENCODE, f"--{flag}", value)
    assert {own.per_epoch for _, _, steps, *_ in calls for own in steps} == {prompts}
    label = f"epoch=2_{flag.removeprefix('augment_')}={value}"
    folder = copy / ADAPTERS.replace("epoch=2", label)
    assert len([*folder.glob("data_*/passage_*")]) == 12
    places = [place / "data_0/passage_0" for place in (folder, copy / ADAPTERS)]
    assert stored_fingerprint(places[0]) != stored_fingerprint(places[1])
    own, plain = map(read_training, places)
    differ = {name for name in own if own[name] != plain[name]}
    assert differ == {"objective"} if flag == "objective" else "data" in differ
    answer("prag", f"--{flag}", value)
    leaf = copy / RESULTS.replace("epoch=2", label) / "prag/dev"
    assert json.loads((leaf / "config.json").read_text())[flag] == value


def test_merging_and_scoring_take_what_the_flags_say(copy, monkeypatch):
    calls = watched(monkeypatch, LoraBank, "ready")
    answer("prag", "--merge_topk", "2", "--merge_scale", "0.25", "--answer_cut", "none")
    rows = predictions(copy, "prag_topk=2_scale=0.25_cut=none")
    uncut = [row["text"].strip().split("\n")[0].strip() for row in rows]
    assert len(rows) == 4 and [row["eval_predict"] for row in rows] == uncut
    merged = [adapter for _, adapters, _ in calls for adapter in adapters]
    deltas = [{name: B @ A for name, (A, B) in adapter.items()} for adapter in merged]
    shapes, expected = demo_bank().shapes(2), []
    for did in range(4):
        places = [copy / ADAPTERS / f"data_{did}/passage_{pid}" for pid in range(2)]
        own = [load_adapter(place, shapes) for place in places]
        expected.append({n: 0.25 * sum(a[n][1] @ a[n][0] for a in own) for n in own[0]})
    for one in expected:
        assert any(all(torch.allclose(one[n], d[n], atol=1e-6) for n in one) for d in deltas)


def test_the_warm_up_goes_through_all_stages_and_its_base_can_count_once(copy):
    """Trained on dev's questions past the fourth, which are all that the other stages know."""
    questions = ("--data_path", str(REPOSITORY / "data/demo/questions.json"), "--data_type", "dev")
    data = copy / "data_aug/warmup/demo/direct.json"
    warm, once = ("--init_adapter", "warmup"), ("--merge", "base_once")
    run(get_warmup_data, "--dataset", "demo", *questions, "--sample", "4")
    run(warmup_lora, "--model_name", MODEL, "--prompts", "demo", "--data", str(data))
    run(encode, *ENCODE, *warm)
    answer("prag", *warm, *once)
    start = copy / "offline/demo-model/rank=2_alpha=32/warmup_direct"
    folder = copy / ADAPTERS.replace("epoch=2", "epoch=2_warmup")
    bases = {read_training(one)["base"] for one in folder.glob("data_*/passage_*")}
    assert bases == {stored_fingerprint(start)}
    leaf = copy / RESULTS.replace("epoch=2", "epoch=2_warmup") / "prag_base_once/dev"
    evaluated = {p["question"] for p in json.loads((leaf / "predict.json").read_text())}
    assert len(evaluated) == 4
    assert not evaluated & {record["question"] for record in json.loads(data.read_text())}
    places, shapes = [folder / f"data_0/passage_{pid}" for pid in range(3)], demo_bank().shapes(2)
    base, *own = (load_adapter(place, shapes) for place in (start, *places))
    for name, (A, B) in base_once(own, [], lambda: base).items():
        base_delta = base[name][1] @ base[name][0]
        changes = sum(a[name][1] @ a[name][0] - base_delta for a in own)
        assert torch.allclose(B @ A, base_delta + changes, atol=1e-5)
    scaled = {name: (A, 0.5 * B) for name, (A, B) in base.items()}
    save_adapter(scaled, start, 32, MODEL, {"made": "in a test"})
    refused("replaced", run, encode, *ENCODE, *warm)
    refused("replaced", answer, "combine", *warm, *once)


def test_what_links_share_is_read_once_and_damage_is_seen_before_the_next_use(copy, monkeypatch):
    folder, linked = copy / ADAPTERS / "data_0/passage_0", copy / "linked"
    link_adapter(folder, linked)
    reads = watched(monkeypatch, merging, "load_adapter")
    records = watched(monkeypatch, folders, "read_object")
    merger = merging.Merger(demo_bank(), Recipe(), [[(folder, {}), (linked, {})]], None)
    for name, (A, B) in [*merger.merged(0).items(), *merger.merged(0).items()]:
        once = reads[0][-1][name]
        assert torch.equal(B @ A, torch.cat([once[1]] * 2, 1) @ torch.cat([once[0]] * 2))
    assert (
        len({weights_hash(place) for place in (folder, linked)}) == len(reads) == len(records) == 1
    )
    weights = folder / "adapter_model.safetensors"
    before, data = weights.stat(), bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)  # in place, of the same size
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    refused("changed after it was saved", merger.merged, 0)


@pytest.mark.parametrize(("change", "message"), [
    ({"r": 4}, "has r = 4, but this run needs 2"),
    ({"use_rslora": True}, "use_rslora = .* needs null"),
    ({"alpha_pattern": {"up": 1}}, "alpha_pattern = .* needs null"),
    ({"target_modules": ["q_proj"]}, "target_modules"),
    ({"peft_type": "IA3"}, "peft_type"),
])  # fmt: skip
def test_a_start_of_another_shape_is_refused_before_the_model(copy, monkeypatch, change, message):
    folder = copy / ADAPTERS / "data_0/passage_0"
    with edited(folder / "adapter_config.json") as config:
        config |= change
    monkeypatch.setattr("utils.models.AutoModelForCausalLM", None)  # no model is loaded
    refused(message, run, encode, *ENCODE, "--init_adapter", str(folder))


def test_a_result_of_adapters_that_were_trained_again_is_refused(copy):
    """A changed method under an old name: the old numbers must not pass for the new ones."""
    answer("prag")
    folder = copy / ADAPTERS / "data_2/passage_0"
    adapter = load_adapter(folder, demo_bank().shapes(2))
    adapter = {name: (A, 2 * B) for name, (A, B) in adapter.items()}
    save_adapter(adapter, folder, 32, MODEL, read_training(folder))
    refused("the adapters were trained again", answer, "prag")
    with edited(copy / RESULTS / "prag/dev/config.json") as settings:
        del settings["weights"]
    answer("prag")  # an older result does not say it


def test_adapters_are_weighted_by_their_retrieval_scores_if_they_have_them(copy, monkeypatch):
    merged = []
    original = merging.MERGES["score"]

    def watch(adapters, passages, base):
        merged.append((adapters, passages, original(adapters, passages, base)))
        return merged[-1][-1]

    watch.needs = original.needs
    monkeypatch.setitem(merging.MERGES, "score", watch)
    answer("prag", "--merge", "score")
    assert len(predictions(copy, "prag_score")) == len(merged) == 4
    for adapters, passages, result in merged:
        scores = torch.tensor([entry["score"] for entry in passages])
        weights = 3 * scores / scores.sum()
        assert len(set(weights.tolist())) > 1
        for name, (A, B) in result.items():
            deltas = [adapter[name][1] @ adapter[name][0] for adapter in adapters]
            expected = sum(w * delta for w, delta in zip(weights, deltas, strict=True))
            assert torch.allclose(B @ A, expected, atol=1e-5)
    with edited(copy / "data_aug/demo/dev.json") as records:
        for entry in records[1]["augment"]:
            del entry["score"]  # as an older version wrote it
    answer("prag", "--overwrite")
    refused("--merge score needs the score of every passage, ", answer, "prag", "--merge", "score")


@pytest.mark.parametrize("scale", ["1e+38", "1e+30"])  # the second adapter is finite itself
def test_answers_of_a_model_that_is_not_finite_are_refused(copy, scale):
    words = r"output with the merged adapters of question \d .* a smaller --merge_scale"
    refused(words, answer, "prag", "--merge_scale", scale)
    assert not list((copy / RESULTS / f"prag_scale={scale}").rglob("*.json"))


def test_the_adapters_of_others_are_those_of_a_question_that_shares_no_passage(copy, capsys):
    flags = [*ENCODE, "--adapters", "others"]
    with edited(copy / "data_aug/demo/dev.json") as records:  # in the demo all share some
        for did, record in enumerate(records):
            for entry in record["augment"]:
                entry["passage"] += f" {did}"
            record["passages"] = [entry["passage"] for entry in record["augment"]]
        del records[3]["augment"][2], records[3]["passages"][2]
    run(encode, *ENCODE, "--overwrite")
    run(encode, *flags)
    folder = copy / ADAPTERS.replace("epoch=2", "epoch=2_adapters=others")
    trained = {
        stored_fingerprint(copy / ADAPTERS / f"data_{did}/passage_{pid}"): did
        for did, record in enumerate(records)
        for pid in range(len(record["augment"]))
    }
    givers = [
        {trained[stored_fingerprint(path)] for path in (folder / f"data_{did}").iterdir()}
        for did in range(4)
    ]
    assert sorted(map(list, givers)) == [[0], [1], [2], [3]]  # each gives once
    assert all({did} != giver for did, giver in enumerate(givers))
    answer("prag", "--adapters", "others")
    capsys.readouterr()
    run(encode, *flags)
    assert "11 adapters exist already" in capsys.readouterr().out
    with edited(copy / "data_aug/demo/dev.json") as records:
        records[0]["augment"][0]["passage"] = records[1]["augment"][0]["passage"]
    del records[2:]
    put(copy / "data_aug/demo/dev.json", json.dumps(records))
    refused("question 0 shares a passage with each of the 2 questions", run, encode, *flags)


@pytest.mark.parametrize("seed", range(5))
def test_a_question_gives_more_than_once_if_too_many_share_a_passage(seed):
    held = [{"a"}, {"a", "b"}, {"a", "c"}, {"a", "d"}, {"e"}, {"f"}, set()]
    questions = [[(None, {"passage": one}) for one in own] for own in held]
    givers = exchanged(questions, seed)
    assert all(not held[i] & held[giver] and held[giver] for i, giver in enumerate(givers[:-1]))
    assert givers[-1] == 6 and len(set(givers)) < 7


def test_the_average_adapter_is_one_for_all_passages_of_a_data_type(copy, capsys):
    flags = [*ENCODE, "--adapters", "average"]
    records = json.loads((copy / "data_aug/demo/dev.json").read_text())
    (copy / "data_aug/demo/two.json").write_text(json.dumps(records[:2]))
    run(encode, *flags)
    assert "1 adapters average, 11 linked" in capsys.readouterr().out
    answer("prag", "--adapters", "average")
    folder = copy / ADAPTERS.replace("epoch=2", "epoch=2_adapters=average")
    shapes, places = demo_bank().shapes(2), sorted((copy / ADAPTERS).glob("*/*"))
    different = {stored_fingerprint(place): place for place in places}.values()
    trained = [load_adapter(place, shapes) for place in different]
    average = load_adapter(folder / "data_2/passage_1", shapes)
    for name, pair in average.items():
        for part, tensor in enumerate(pair):
            mean = torch.stack([adapter[name][part] for adapter in trained]).mean(0)
            assert torch.allclose(tensor, mean, atol=1e-7)
    assert len({path.stat().st_ino for path in folder.glob("*/*/*.safetensors")}) == 1
    run(encode, *flags)
    assert "12 adapters exist already" in capsys.readouterr().out
    words = r"no adapter in .*/two/.*run first: python src/encode.py"
    refused(words, run, encode, *flags, "--data_type", "two")
