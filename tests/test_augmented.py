"""Augmented files as every stage reads them, and the question lists in a model's answers."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stage_runs import refused

from utils.augmentation import records as augmented_records
from utils.augmentation.records import data_types_of, parse_pairs, read_augmented
from utils.files import write_json

MODEL = "small-model"


@pytest.fixture
def augmented(root) -> Path:
    return root / "data_aug" / "tiny"


def qa(text: str) -> list[dict]:
    return [{"question": "Who?", "answer": text, "full_answer": f"It is {text}."}] * 3


def entry(pid: int, *models: str) -> dict:
    value = {"pid": pid, "passage": f"p{pid}"}
    for model in models:
        value |= {f"{model}_rewrite": f"{model} wrote", f"{model}_qa": qa(model)}
    return value


def record(test_id: int, question: str, *entries: dict) -> dict:
    return {"test_id": test_id, "question": question, "answer": "Orr", "augment": list(entries)}


def test_only_the_passages_of_the_wanted_model_are_read_without_its_prefix(augmented):
    """The hit comes along if there is one, and keys that nobody knows are passed over."""
    hit = {"id": "7", "title": "T", "score": 1.5}
    entries = entry(0, "other"), entry(1, MODEL, "other") | hit | {"mood": "calm"}, entry(2, MODEL)
    entries[2][f"{MODEL}_qa"] = [{**pair, "answer": [MODEL]} for pair in qa(MODEL)]  # as released
    write_json(augmented / "dev.json", [record(0, "Who?", *entries), record(1, "Where?")])
    read = read_augmented("tiny", "dev", f"models/{MODEL}/")
    texts = {"rewrite": f"{MODEL} wrote", "qa": qa(MODEL)}
    wanted = [{"pid": 1, "passage": "p1", **hit, **texts}, {"pid": 2, "passage": "p2", **texts}]
    assert [r["augment"] for r in read] == [wanted, []]
    assert read[0]["question"] == "Who?" and read[0]["passages"] == ["p1", "p2"]


def test_the_released_layout_is_read_and_its_total_filled_past_an_exhausted_type(augmented, capsys):
    folder = augmented / MODEL
    write_json(folder / "bridge.json", [record(0, "B0?", entry(0, MODEL))])
    comparison = [record(1, "C1?", entry(1, MODEL)), record(9, "C1?", entry(9, MODEL))]
    write_json(folder / "comparison.json", comparison)
    rows = ((0, "B0?", "bridge"), (5, "B5?", "bridge"), (9, "C1?", "comparison"))
    total = [{"test_id": i, "question": q, "answer": "Orr", "type": kind} for i, q, kind in rows]
    write_json(folder / "total.json", total)
    write_json(folder / "notes.json", {"stray": "file"})
    write_json(augmented / "total.json", [record(0, "Who?", entry(0, "other"))])  # not in its way
    read = read_augmented("tiny", "total", MODEL)
    assert [(r["test_id"], r["augment"][0]["pid"]) for r in read] == [(0, 0), (9, 9)]
    assert "1 of 3 questions are left out" in capsys.readouterr().err
    assert len(read_augmented("tiny", "comparison", MODEL)) == 2


@pytest.mark.parametrize("change, problem", [
    (lambda r: r["augment"].append(None), r"record 1: augment\[1\] is null"),
    (lambda r: r["augment"][0].update({f"{MODEL}_rewrite": 3}), "_rewrite is a number"),
    (lambda r: r["augment"][0].update(pid=10**4000), r"augment\[0\].pid has more than 9 digits"),
    (lambda r: r["augment"][0].update({f"{MODEL}_qa": [{}]}), r"_qa\[0\].question is missing"),
])  # fmt: skip
def test_a_broken_augmented_record_is_named_by_index_and_field(change, problem, augmented):
    broken = record(1, "Where?", entry(0, MODEL))
    change(broken)
    write_json(augmented / "dev.json", [record(0, "Who?", entry(0, MODEL)), broken])
    refused(problem, read_augmented, "tiny", "dev", MODEL)


def test_data_types_are_sorted_with_total_last_and_without_stray_files(augmented):
    for name in ("total.json", "inference.json", ".hidden.json", "dev.json.bak", "log.txt"):
        write_json(augmented / name, [])
    write_json(augmented / MODEL / "bridge.json", [])
    write_json(augmented / "other" / "zebra.json", [])
    assert data_types_of("tiny", None, MODEL) == ["bridge", "inference", "total"]
    assert data_types_of("tiny", "inference", MODEL) == ["inference"]
    refused(r"'dev'.*bridge, .*run python src/augment.py", data_types_of, "tiny", "dev", MODEL)


FIELDS = ["question", "answer", "full_answer"]
PAIRS = [dict(zip(FIELDS, (f"Q{n}?", f"A{n}", f"It's A{n}."), strict=True)) for n in range(4)]
WANTED = PAIRS[:3]
LIST = json.dumps(WANTED)


def changed(**fields) -> str:
    """The list with a second pair that has other `fields`."""
    return json.dumps([PAIRS[0], {**PAIRS[1], **fields}, PAIRS[2]])


@pytest.mark.parametrize("text", [
    f"Sure! Here are [3] questions:\n```json\n{LIST}\n```\nLet me know [if] {{you}} need more.",
    json.dumps(WANTED, indent=4), f"<think>{{a}}</think>{LIST}", LIST[:-3],
    LIST.replace("}]", "},]"), f'{{"result": {{"questions": {LIST}, "count": 3}}}}',
    "\n".join(json.dumps(pair) for pair in WANTED), json.dumps(dict(enumerate(WANTED))),
    json.dumps(["x", 3, None, {"question": "no answer?"}, *WANTED]),
    " " * 1_000_000 + json.dumps(WANTED) + "[" * 1_000_000,
], ids=lambda text: text[:20] + text[-12:])  # fmt: skip
def test_a_question_list_is_found_whatever_stands_around_it(text):
    assert parse_pairs(text) == WANTED


def test_an_answer_of_another_kind_becomes_text():
    texts = [(["Orr", 7], "Orr, 7"), (1.5, "1.5"), (None, "Unknown"), ("\ud83d Orr\n", "Orr")]
    for value, text in texts:
        assert parse_pairs(changed(answer=value)) == json.loads(changed(answer=text))


def test_fewer_than_three_valid_pairs_are_no_question_list():
    bad = ({"question": ["Q"]}, {"answer": {"a": "b"}}, {"full_answer": " \n"})
    long = LIST.replace('"full_answer"', '"long_answer"')
    for text in ("", json.dumps(PAIRS[:2]), LIST[:-40], long, *(changed(**pair) for pair in bad)):
        assert parse_pairs(text) is None


def test_of_nonsense_only_the_beginning_is_read():
    for part in ("[", "{", "1]\n, "):  # json_repair would take quadratic time
        read = augmented_records._list_text('[{"' + part * 100_000)
        assert len(read) <= augmented_records.REPAIRED_CHARACTERS + 1
        assert sum(map(read.count, "[]{")) <= augmented_records.REPAIRED_MARKS


TOKENS = ["[", "]", "{", "}", '"', "'", ":", ",", "\\", "```json", "null", "9", " ", "\\ud83d"]
TOKENS += [*(f'"{field}": ' for field in FIELDS), json.dumps(PAIRS[0]), LIST]


@settings(max_examples=150, deadline=None, database=None)
@given(st.lists(st.sampled_from(TOKENS) | st.text(max_size=3), max_size=30).map("".join))
def test_any_text_gives_a_valid_list_or_none(text):
    pairs = parse_pairs(text)
    assert pairs is None or [list(pair) for pair in pairs] == [FIELDS] * 3
    for value in [value for pair in pairs or () for value in pair.values()]:
        assert value and value == value.strip()
        value.encode()
