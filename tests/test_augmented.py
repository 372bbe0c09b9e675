import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.augmentation.records import data_types_of, model_keys, parse_pairs, read_augmented
from utils.files import write_json
from utils.running import InputError

MODEL = "small-model"


# ------------------------------------------------------------------------------------------------
# Files


@pytest.fixture
def augmented(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("utils.layout.ROOT_DIR", tmp_path)
    return tmp_path / "data_aug" / "tiny"


def qa(text: str = "Orr") -> list[dict]:
    return [{"question": "Who?", "answer": text, "full_answer": f"It is {text}."}] * 3


def entry(pid: int, *models: str) -> dict:
    value = {"pid": pid, "passage": f"p{pid}"}
    for model in models:
        value |= {f"{model}_rewrite": f"{model} wrote", f"{model}_qa": qa(model)}
    return value


def record(test_id: int, question: str, *entries: dict) -> dict:
    return {"test_id": test_id, "question": question, "answer": "Orr", "augment": list(entries)}


def bare(test_id: int, question: str, data_type: str) -> dict:
    return {"test_id": test_id, "question": question, "answer": "Orr", "type": data_type}


def test_only_the_passages_of_the_wanted_model_are_read_without_its_prefix(augmented):
    records = [record(0, "Who?", entry(0, "other"), entry(1, MODEL, "other")), record(1, "Where?")]
    write_json(augmented / "dev.json", records)
    read = read_augmented("tiny", "dev", f"models/{MODEL}/")
    wanted = {"pid": 1, "passage": "p1", "rewrite": f"{MODEL} wrote", "qa": qa(MODEL)}
    assert [r["augment"] for r in read] == [[wanted], []]
    assert read[0]["question"] == "Who?"


def test_a_model_without_work_is_answered_with_the_models_present_and_the_command(augmented):
    write_json(augmented / "dev.json", [record(0, "Who?", entry(0, "b-model", "a-model"))])
    with pytest.raises(InputError, match=r"a-model, b-model.*augment.py --model_name small-model"):
        read_augmented("tiny", "dev", MODEL)
    with pytest.raises(InputError, match=r"test\.json does not exist.*--dataset tiny"):
        read_augmented("tiny", "test", MODEL)


def test_the_released_layout_is_read_and_its_bare_total_filled_past_an_exhausted_type(
    augmented, capsys
):
    folder = augmented / MODEL
    write_json(folder / "bridge.json", [record(0, "B0?", entry(0, MODEL))])
    comparison = [record(1, "C1?", entry(1, MODEL)), record(9, "C1?", entry(9, MODEL))]
    write_json(folder / "comparison.json", comparison)
    total = [bare(0, "B0?", "bridge"), bare(5, "B5?", "bridge"), bare(9, "C1?", "comparison")]
    write_json(folder / "total.json", total)
    write_json(folder / "notes.json", {"stray": "file"})
    read = read_augmented("tiny", "total", MODEL)
    assert [(r["test_id"], r["augment"][0]["pid"]) for r in read] == [(0, 0), (9, 9)]
    assert "1 of 3 questions are left out" in capsys.readouterr().err
    assert len(read_augmented("tiny", "comparison", MODEL)) == 2


def test_an_own_file_of_another_model_does_not_hide_the_released_one(augmented):
    write_json(augmented / "total.json", [record(0, "Who?", entry(0, "other"))])
    write_json(augmented / MODEL / "total.json", [record(0, "Who?", entry(4, MODEL))])
    assert read_augmented("tiny", "total", MODEL)[0]["augment"][0]["pid"] == 4


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda r: r.pop("augment"), "record 1: augment is missing"),
        (lambda r: r.update(test_id="1"), "record 1: test_id is a text"),
        (lambda r: r["augment"].append(None), r"record 1: augment\[1\] is null"),
        (lambda r: r["augment"][0].pop("passage"), r"record 1: augment\[0\].passage is missing"),
        (lambda r: r["augment"][0].update({f"{MODEL}_rewrite": 3}), "_rewrite is a number"),
        (lambda r: r["augment"][0].update({f"{MODEL}_qa": []}), "_qa is an empty list"),
        (lambda r: r["augment"][0].update({f"{MODEL}_qa": ["x"]}), r"_qa\[0\] is a text"),
        (lambda r: r["augment"][0].update({f"{MODEL}_qa": [{}]}), r"_qa\[0\].question is missing"),
    ],
)
def test_a_broken_augmented_record_is_named_by_index_and_field(change, problem, augmented):
    broken = record(1, "Where?", entry(0, MODEL))
    change(broken)
    write_json(augmented / "dev.json", [record(0, "Who?", entry(0, MODEL)), broken])
    with pytest.raises(InputError, match=problem):
        read_augmented("tiny", "dev", MODEL)


def test_answers_of_the_released_archive_become_texts(augmented):
    one = entry(0, MODEL)
    answers = (["Orr", "Hale"], 1311, None)
    one[f"{MODEL}_qa"] = [{"question": "?", "answer": a, "full_answer": "x"} for a in answers]
    write_json(augmented / "dev.json", [record(0, "Who?", one)])
    pairs = read_augmented("tiny", "dev", MODEL)[0]["augment"][0]["qa"]
    assert [pair["answer"] for pair in pairs] == ["Orr, Hale", "1311", "Unknown"]


def test_data_types_are_sorted_with_total_last_and_without_stray_files(augmented):
    for name in ("total.json", "inference.json", ".hidden.json", "dev.json.bak", "log.txt"):
        write_json(augmented / name, [])
    write_json(augmented / MODEL / "bridge.json", [])
    write_json(augmented / "other" / "zebra.json", [])
    assert data_types_of("tiny", None, MODEL) == ["bridge", "inference", "total"]
    assert data_types_of("tiny", None) == ["bridge", "inference", "zebra", "total"]
    assert data_types_of("tiny", "inference") == ["inference"]
    with pytest.raises(InputError, match=r"'dev'.*bridge, .*run python src/augment.py"):
        data_types_of("tiny", "dev")
    with pytest.raises(InputError, match="no augmented file of any data type; run python"):
        data_types_of("absent", None)


def test_the_keys_of_a_model_hold_its_folder_name():
    assert model_keys("hub/small model/") == ("small_model_rewrite", "small_model_qa")
    with pytest.raises(InputError, match="folder name"):
        model_keys("..")


# ------------------------------------------------------------------------------------------------
# A model's answer


FIELDS = ["question", "answer", "full_answer"]
PAIRS = [dict(zip(FIELDS, (f"Q{n}?", f"A{n}", f"It's A{n}."), strict=True)) for n in range(4)]
WANTED = PAIRS[:3]
LIST = json.dumps(WANTED)
LINES = "\n".join(json.dumps(pair) for pair in WANTED)


def changed(**fields) -> str:
    """The list with a second pair that has other `fields`."""
    return json.dumps([PAIRS[0], {**PAIRS[1], **fields}, PAIRS[2]])


@pytest.mark.parametrize(
    "text",
    [
        LIST,
        json.dumps(WANTED, indent=4),
        json.dumps([{**pair, "topic": "x"} for pair in PAIRS]),
        json.dumps([{field: f" {value}\n" for field, value in pair.items()} for pair in PAIRS]),
        f"Sure! Here are [3] questions:\n```json\n{LIST}\n```\nLet me know [if] {{you}} need more.",
        f"<think>{{a}}</think>{LIST}",
        LIST[:-1],
        LIST[:-3],
        LIST.replace("}]", "},]"),
        LIST.replace("}, {", "}\n{"),
        str(WANTED),
        f'{{"questions": {LIST}}}',
        f'{{"result": {{"questions": {LIST}, "count": 3}}}}',
        f"[[{LIST}]]",
        LINES,
        json.dumps(dict(enumerate(WANTED))),
        json.dumps(["x", 3, None, *WANTED]),
        json.dumps([{"question": "no answer?"}, *WANTED]),
        json.dumps([{**PAIRS[3], "answer": " "}, *WANTED]),
        json.dumps(PAIRS * 20_000),
        json.dumps(WANTED) + "[" * 1_000_000,
        " " * 1_000_000 + LIST,
    ],
    ids=lambda text: text[:20] + text[-12:],
)
def test_a_question_list_is_found_whatever_stands_around_it(text):
    assert parse_pairs(text) == WANTED


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (["Orr", 7], "Orr, 7"),
        (1311, "1311"),
        (0, "0"),
        (1.5, "1.5"),
        (None, "Unknown"),
        (" Orr ", "Orr"),
        ("\ud83d Orr", "Orr"),
        ('the "Orr"', 'the "Orr"'),
    ],
)
def test_an_answer_of_another_kind_becomes_text(value, answer):
    for field in ("answer", "full_answer"):
        assert parse_pairs(changed(**{field: value})) == [
            PAIRS[0],
            {**PAIRS[1], field: answer},
            PAIRS[2],
        ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot do that.",
        "[]",
        "null",
        json.dumps(PAIRS[:2]),
        LIST[:-40],
        changed(question=" "),
        changed(question=7),
        changed(question=None),
        changed(question=["Q"]),
        changed(answer=""),
        changed(answer=[]),
        changed(answer={"a": "b"}),
        changed(answer=True),
        changed(full_answer=" \n"),
        LIST.replace('"full_answer"', '"long_answer"'),
    ],
)
def test_fewer_than_three_valid_pairs_are_no_question_list(text):
    assert parse_pairs(text) is None


@pytest.mark.parametrize("start", ["", "[{", '[{"'])
@pytest.mark.parametrize(
    "part", ["[", "{", "'\"", '["a', 'a" b', "(", "`", "1]\n, ", '{"a":', "\\", "“"]
)
def test_nonsense_takes_no_long_time(start, part):
    begin = time.process_time()
    assert parse_pairs(start + part * 100_000) is None
    assert time.process_time() - begin < 3


TOKENS = ["[", "]", "{", "}", '"', "'", ":", ",", "\\", "```json", "null", "9", " ", "\\ud83d"]
TOKENS += [*(f'"{field}": ' for field in FIELDS), json.dumps(PAIRS[0]), LIST]


@settings(max_examples=150, deadline=None, database=None)
@given(
    st.text()
    | st.lists(st.sampled_from(TOKENS) | st.text(max_size=3), max_size=30).map("".join)
    | st.lists(
        st.fixed_dictionaries(
            {field: st.none() | st.floats() | st.lists(st.text()) | st.text() for field in FIELDS}
        )
    ).map(json.dumps)
)
def test_any_text_gives_a_valid_list_or_none(text):
    pairs = parse_pairs(text)
    if pairs is not None:
        assert len(pairs) == 3
        for pair in pairs:
            assert list(pair) == FIELDS
            assert all(value and value == value.strip() for value in pair.values())
        json.dumps(pairs, ensure_ascii=False).encode()
