"""The bundled world and model: what the README claims about them."""

import csv
import json
import sys

import make_world
import pytest
import torch
import train_model
import training_data
from conftest import REPOSITORY
from safetensors.torch import load_file
from training_data import documents_of_step, known_entities
from transformers import AutoTokenizer
from world import split_of

DEMO = REPOSITORY / "data/demo"


def read(name: str) -> dict | list:
    return json.loads((DEMO / name).read_text())


def titles() -> set[str]:
    with (DEMO / "corpus.tsv").open(encoding="utf-8", newline="") as file:
        return {row["title"] for row in csv.DictReader(file, delimiter="\t")}


def test_the_world_is_what_its_seed_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(make_world, "DEMO", tmp_path)
    make_world.main()
    for name in ("corpus.tsv", "questions.json", "warmup.json"):
        assert (tmp_path / name).read_bytes() == (DEMO / name).read_bytes()


def test_the_splits_ask_about_different_entities_and_their_passages_hold_the_answers():
    names, asked = titles(), {}
    for (split, records), least in zip(read("questions.json").items(), (100, 300), strict=True):
        asked[split] = {name for q in records for name in names if name in q["question"]}
        assert len(records) >= least
        assert {q["type"] for q in records} == {"single_hop", "two_hop"}
        for q in records:
            assert q["answer"] in q["golden_passages"][-1]
            assert len(q["golden_passages"]) == (2 if q["type"] == "two_hop" else 1)
    assert asked["dev"] and asked["test"] and not asked["dev"] & asked["test"]


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
    text = ""
    for step in range(1000, 1020):
        for task, document in documents_of_step(step, 0, 5):
            if task == "closed_book":
                assert not [name for name in known.read_only if name in document]
            elif task == "plain":
                text += document
    assert all(name in text for name in known.read_only)


def test_the_warm_up_asks_about_what_is_read_only_and_never_about_the_world():
    records = read("warmup.json")
    assert len(records) >= 2000
    known = known_entities(*training_data.CURRICULUM[-1][-1])
    asked = {name for name in known.read_only if any(name in r["question"] for r in records)}
    assert asked == known.read_only
    assert all(split_of(name) == "known" for name in asked)
    assert not asked & titles()


def test_the_model_is_small_and_a_word_is_one_token_whatever_is_before_it():
    folder = DEMO / "demo-model"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 20_000_000
    tokenizer = AutoTokenizer.from_pretrained(folder)
    word = tokenizer("Mountain").input_ids[-1]
    for before in (" ", "x ", "x\n", 'x"', "x("):
        assert tokenizer(f"{before}Mountain").input_ids[-1] == word
    text = '[{"question": "Who (or what) is\nit?", "answer": "Silent River"}]'
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_training_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    def train(name: str) -> dict[str, torch.Tensor]:
        flags = "--hidden_size 64 --layers 1 --heads 2 --intermediate_size 64 --rows 2 "
        flags = f"{flags} --length 320 --no_compile --save_every 2 --steps 4".split()
        flags += ["--work", str(tmp_path / name), "--output", str(tmp_path / name / "model")]
        monkeypatch.setattr(sys, "argv", ["train_model.py", *flags])
        train_model.main()
        return load_file(tmp_path / name / "model" / "model.safetensors")

    def stop(step, *more):
        if step == 3:
            raise KeyboardInterrupt
        return documents_of_step(step, *more)

    whole = train("whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_model, "documents_of_step", stop)
        train("stopped")
    resumed = train("stopped")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
