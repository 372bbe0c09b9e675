"""Stage 1 with the bundled model: passages taken and dropped, other models, data of one's own."""

import json
import shutil

import pytest
from conftest import REPOSITORY
from stage_runs import (
    ADAPTERS,
    AUGMENT,
    COMMON,
    DEV,
    MODEL,
    RESULTS,
    TRAIN,
    answer,
    run,
    stop_after,
    tree,
)

import augment
import encode
import inference
import prep_elastic
from utils import writing
from utils.paths import InputError
from utils.retrieval import open_retriever


def test_a_passage_whose_questions_never_parse_is_replaced_after_bounded_attempts(
    copy, monkeypatch, capsys
):
    shutil.rmtree(copy / "data_aug")
    shutil.rmtree(copy / "offline")
    tries = []

    def generate(model, tokenizer, prompts, *more, **keywords):
        texts = []
        for prompt in prompts:
            shown = tokenizer.decode(prompt)
            is_pairs = "JSON list" in shown
            passage = shown.split("Passage: ")[1].split("<|eot|>")[0]
            if is_pairs and passage == bad_passage:
                tries.append(passage)
                texts.append("[{'question': 'only one'}")
            elif is_pairs:
                pair = {"question": "Q?", "answer": "A", "full_answer": "A."}
                texts.append(json.dumps([pair] * 3))
            else:
                texts.append("rewritten " + passage)
        return texts

    question = json.loads((REPOSITORY / "data/demo/questions.json").read_text())["dev"][0]
    hits = open_retriever("embedded", "demo").search([question["question"]], 5)[0]
    bad_passage = hits[1]["text"]
    monkeypatch.setattr(writing, "generate", generate)
    flags = ("--sample", "1", "--max_attempts", "3")
    run(augment, *AUGMENT, *flags, monkeypatch=monkeypatch)
    record = json.loads((copy / "data_aug/demo/dev.json").read_text())[0]
    assert len(tries) == 3
    assert record["passages"] == [hits[i]["text"] for i in (0, 2, 3)]
    assert "3 taken, 1 dropped, 6 attempts" in capsys.readouterr().out


def test_a_second_model_adds_its_texts_beside_the_first_ones(copy, monkeypatch):
    other = copy / "other-model"
    shutil.copytree(MODEL, other)
    before = json.loads((copy / "data_aug/demo/dev.json").read_text())
    flags = [*AUGMENT, "--model_name", str(other), "--temperature", "0"]
    run(augment, *flags, monkeypatch=monkeypatch)
    after = json.loads((copy / "data_aug/demo/dev.json").read_text())
    entry = after[0]["augment"][0]
    assert entry["demo-model_qa"] == before[0]["augment"][0]["demo-model_qa"]
    assert entry["other-model_rewrite"] and len(entry["other-model_qa"]) == 3
    flags = [*DEV, *TRAIN, "--augment_model", str(other)]
    run(encode, *COMMON, *flags, monkeypatch=monkeypatch)
    assert (copy / ADAPTERS.replace("aug_model=demo-model", "aug_model=other-model")).is_dir()
    answer("combine", "--augment_model", str(other), monkeypatch=monkeypatch)
    leaf = copy / RESULTS.replace("aug_model=demo-model", "aug_model=other-model") / "combine/dev"
    assert len(json.loads((leaf / "predict.json").read_text())) == 4


def test_data_of_ones_own_goes_through_all_stages(copy, monkeypatch):
    corpus = copy / "mine.tsv"
    rows = ["Lake Orra lies in Vessland.", "Brun is the capital of Vessland.", "Tiro is a poet."]
    lines = [f"{i}\t{text}\tTitle {i}" for i, text in enumerate(rows)]
    corpus.write_text("id\ttext\ttitle\n" + "\n".join(lines) + "\n")
    questions = copy / "quiz.json"
    questions.write_text(
        json.dumps(
            [
                {"question": "Where is Lake Orra?", "answer": ["Vessland", "the Vessland"]},
                {"question": "What is the capital of Vessland?", "answer": "Brun"},
            ]
        )
    )
    pair = {"question": "Where is it?", "answer": "Vessland", "full_answer": "It is there."}
    monkeypatch.setattr(
        writing, "generate", lambda m, t, prompts, *a, **k: [json.dumps([pair] * 3)] * len(prompts)
    )
    index = ("--data_path", str(corpus), "--index_name", "mine")
    run(prep_elastic, *index, monkeypatch=monkeypatch)
    data = ("--dataset", "quizzes", "--data_path", str(questions), "--index_name", "mine")
    run(augment, *COMMON, *data, "--topk", "2", monkeypatch=monkeypatch)
    run(encode, *COMMON, "--dataset", "quizzes", *TRAIN, monkeypatch=monkeypatch)
    flags = ("--dataset", "quizzes", *TRAIN, "--inference_method", "combine")
    run(inference, *COMMON, *flags, monkeypatch=monkeypatch)
    leaf = copy / RESULTS.replace("/demo/", "/quizzes/") / "combine/quiz"
    assert len(json.loads((leaf / "predict.json").read_text())) == 2


def test_a_stopped_augmentation_goes_on_and_ends_with_the_same_bytes(finished, copy, monkeypatch):
    shutil.rmtree(copy / "data_aug")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "augment_block", stop_after(2, augment.augment_block))
        with pytest.raises(KeyboardInterrupt):
            run(augment, *AUGMENT, monkeypatch=patch)
    assert not (copy / "data_aug/demo/dev.json").exists()
    calls = []
    original = augment.augment_block
    monkeypatch.setattr(
        augment, "augment_block", lambda *a: (calls.append(len(a[0])), original(*a))[1]
    )
    run(augment, *AUGMENT, monkeypatch=monkeypatch)
    assert sum(calls) < 4  # the finished block was not made again
    assert tree(copy / "data_aug") == tree(finished / "data_aug")


def test_golden_passages_take_the_place_of_retrieval(root, monkeypatch, capsys):
    pair = {"question": "Where is it?", "answer": "Vessland", "full_answer": "It is there."}
    monkeypatch.setattr(
        writing, "generate", lambda m, t, prompts, *a, **k: [json.dumps([pair] * 3)] * len(prompts)
    )
    questions = root / "quiz.json"
    records = [
        {"question": "Where?", "answer": "A", "golden_passages": ["one", "two", "one"]},
        {"question": "Who?", "answer": "B"},
    ]
    questions.write_text(json.dumps(records))
    flags = ("--dataset", "quizzes", "--data_path", str(questions), "--engine", "golden")
    run(augment, *COMMON, *flags, monkeypatch=monkeypatch)
    written = json.loads((root / "data_aug/quizzes/quiz.json").read_text())
    assert [record["passages"] for record in written] == [["one", "two"], []]
    assert "1 of 2 questions have no golden passage" in capsys.readouterr().out
    questions.write_text(json.dumps(records[1:]))
    with pytest.raises(InputError, match="no question of quizzes has golden_passages"):
        run(augment, *COMMON, *flags, "--overwrite", monkeypatch=monkeypatch)
