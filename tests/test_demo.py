"""The bundled world and model: what the README claims about them."""

import csv
import json
import random
import sys

import make_world
import pytest
import torch
import train_model
import training_data
from conftest import REPOSITORY
from safetensors.torch import load_file
from training_data import documents_of_step, known_entities
from transformers import AutoModelForCausalLM, AutoTokenizer
from world import KINDS, new_pair, rewrite, split_of

DEMO = REPOSITORY / "data/demo"


def questions() -> dict[str, list[dict]]:
    return json.loads((DEMO / "questions.json").read_text())


def titles() -> set[str]:
    with (DEMO / "corpus.tsv").open(encoding="utf-8", newline="") as file:
        return {row["title"] for row in csv.DictReader(file, delimiter="\t")}


def test_the_world_is_what_its_seed_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(make_world, "DEMO", tmp_path)
    make_world.main()
    for name in ("corpus.tsv", "questions.json"):
        assert (tmp_path / name).read_bytes() == (DEMO / name).read_bytes()


def test_the_splits_ask_about_different_entities_and_both_types():
    asked = {
        split: {t for q in records for t in titles() if t in q["question"]}
        for split, records in questions().items()
    }
    assert asked["dev"] and asked["test"] and not asked["dev"] & asked["test"]
    for split, least in (("dev", 100), ("test", 300)):
        records = questions()[split]
        assert len(records) >= least
        assert {q["type"] for q in records} == {"single_hop", "two_hop"}


def test_every_answer_stands_in_its_golden_passages():
    for records in questions().values():
        for q in records:
            assert q["answer"] in q["golden_passages"][-1]
            assert len(q["golden_passages"]) == (2 if q["type"] == "two_hop" else 1)


def test_no_name_of_the_world_occurs_in_training():
    names = titles()
    assert all(split_of(name) == "eval" for name in names)
    for step in (*range(900, 915), *range(2000, 2015)):
        for _, document in documents_of_step(step, 0, 5):
            assert not [name for name in names if name in document]


def test_what_is_read_only_is_never_asked_about_without_context(monkeypatch):
    known = known_entities(4, 8)
    last = (*training_data.CURRICULUM[-1][:-1], (4, 8))
    monkeypatch.setattr(training_data, "CURRICULUM", (last,))
    assert known.read_only and known.read_only < {entity.name for entity in known.entities()}
    read = ""
    for step in range(1000, 1020):
        for task, document in documents_of_step(step, 0, 5):
            if task == "closed_book":
                assert not [name for name in known.read_only if name in document]
            elif task == "plain":
                read += document
    assert all(name in read for name in known.read_only)


def test_the_warm_up_asks_about_what_is_read_only_and_never_about_the_world():
    records = json.loads((DEMO / "warmup.json").read_text())
    assert records == make_world.warmup_questions() and len(records) >= 2000
    known = known_entities(*training_data.CURRICULUM[-1][-1])
    asked = {name for name in known.read_only if any(name in r["question"] for r in records)}
    assert asked == known.read_only
    assert all(split_of(name) == "known" for name in asked)
    assert not asked & set(titles())


def test_a_rewrite_keeps_every_fact_in_other_words():
    rng = random.Random(0)
    for index in range(60):
        for entity in new_pair(KINDS[1 + index % 3], "train", rng):
            for passage in entity.passages:
                text = rewrite(entity, passage, rng)
                assert text != passage.text and text.startswith(entity.name)
                assert all(entity.facts[attribute] in text for attribute in passage.attributes)


def test_the_model_loads_by_plain_transformers_and_is_small():
    folder = DEMO / "demo-model"
    assert sum(p.stat().st_size for p in folder.iterdir()) < 20_000_000
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert 2e6 < sum(p.numel() for p in model.parameters()) < 10e6
    assert AutoTokenizer.from_pretrained(folder).chat_template


@pytest.mark.parametrize("before", [" ", "\n", '"', "(", ""])
def test_a_word_is_one_token_wherever_it_stands(before):
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "demo-model")
    ids = tokenizer("x" + before + "Mountain" if before else "Mountain").input_ids
    assert tokenizer(" Mountain").input_ids[-1] == ids[-1]
    text = '[{"question": "Who (or what) is\nit?", "answer": "Silent River"}]'
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_training_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    def train(name: str, steps: int) -> dict[str, torch.Tensor]:
        flags = "--hidden_size 64 --layers 1 --heads 2 --intermediate_size 64 --rows 2 "
        flags = f"{flags} --length 320 --no_compile --save_every 2 --steps {steps}".split()
        flags += ["--work", str(tmp_path / name), "--output", str(tmp_path / name / "model")]
        monkeypatch.setattr(sys, "argv", ["train_model.py", *flags])
        train_model.main()
        return load_file(tmp_path / name / "model" / "model.safetensors")

    whole = train("whole", 4)
    real = train_model.documents_of_step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def stop(step, *more):
            if step == 3:
                raise KeyboardInterrupt
            return real(step, *more)

        patch.setattr(train_model, "documents_of_step", stop)
        train("stopped", 4)
    resumed = train("stopped", 4)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
