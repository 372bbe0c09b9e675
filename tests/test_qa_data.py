import json
import shutil
from pathlib import Path

import pytest

from utils.files import write_json
from utils.questions import load_questions, load_supporting_sentences, take_sample
from utils.running import InputError

DATA = Path(__file__).parent / "data"


# ------------------------------------------------------------------------------------------------
# Published data sets


def test_2wikimultihopqa_takes_aliases_and_gives_each_type_and_total():
    loaded = load_questions("2wikimultihopqa", DATA / "2wikimultihopqa")
    assert list(loaded) == [
        "comparison",
        "bridge_comparison",
        "inference",
        "compositional",
        "total",
    ]
    total = loaded["total"]
    assert [record["qid"] for record in total] == ["w0", "w1", "w2", "w3", "w4"]
    assert [record["answer"] for record in total] == [
        ["Odo Torn", "Old Odo"],
        "yes",  # no answer_id
        "Sorrel Bay",  # an answer_id without an alias entry
        "Orr Tower",  # an alias entry that is empty
        ["Elm", "Elm (film)"],
    ]
    assert [r["qid"] for r in loaded["comparison"]] == ["w1", "w3"]
    for records in loaded.values():
        assert [record["test_id"] for record in records] == list(range(len(records)))


def test_golden_passages_are_the_supporting_paragraphs_once_each_in_order_of_mention():
    wiki = load_questions("2wikimultihopqa", DATA / "2wikimultihopqa")["total"]
    assert wiki[0]["golden_passages"] == [
        "Bram Torn is the son of Odo Torn.",
        "Ilva Torn is a weaver. Her father is Bram Torn.",
    ]
    # a title that is in no context, and a sentence index beyond the end
    assert wiki[1]["golden_passages"] == ["The Quell flows in Vessel.", "The Marn flows in Vessel."]
    hotpot = load_questions("hotpotqa", DATA / "hotpotqa")["bridge"]
    assert hotpot[0]["golden_passages"][0] == "Hale is a town. Tamsin Roe founded it."


def test_the_result_does_not_depend_on_stray_files(tmp_path):
    folder = shutil.copytree(DATA / "hotpotqa", tmp_path / "hotpotqa")
    before = load_questions("hotpotqa", folder)
    for name in ("notes.json", "a.json", ".DS_Store", "total.json"):
        (folder / name).write_text("stray")
    assert load_questions("hotpotqa", folder) == before
    assert list(before) == ["bridge", "comparison", "total"]


def test_popqa_reads_quoted_cells_with_tabs_and_quotes_and_keeps_na_as_text():
    loaded = load_questions("popqa", DATA / "popqa")
    assert list(loaded) == ["total"]
    assert [record["answer"] for record in loaded["total"]] == [
        ["weaver", "cloth maker", '"loom" hand'],
        ["Orr"],
        ["Ula Fenn", "U. Fenn"],
        ["NA", "Nova Arda"],
    ]
    assert loaded["total"][2]["question"] == 'Who is the author of The "Blue\tDoor"?'


def test_a_popqa_cell_is_never_run_as_code(tmp_path):
    target = tmp_path / "written"
    cell = f"__import__('pathlib').Path({str(target)!r}).touch() or []"
    (tmp_path / "popQA.tsv").write_text(f"question\tobj\to_aliases\nWho?\tOrr\t{cell}\n")
    with pytest.raises(InputError, match="record 0: o_aliases is no JSON list"):
        load_questions("popqa", tmp_path)
    assert not target.exists()


def test_a_popqa_cell_may_be_longer_than_the_csv_modules_default(tmp_path):
    cell = json.dumps(["x" * 200_000]).replace('"', '""')
    (tmp_path / "popQA.tsv").write_text(f'question\tobj\to_aliases\nWho?\tOrr\t"{cell}"\n')
    assert len(load_questions("popqa", tmp_path)["total"][0]["answer"][1]) == 200_000


def test_a_popqa_file_cut_off_inside_a_quoted_cell_is_an_error(tmp_path):
    (tmp_path / "popQA.tsv").write_text('question\tobj\to_aliases\nWho?\tOrr\t[]\n"Where\tOrr')
    with pytest.raises(InputError, match="no valid TSV"):
        load_questions("popqa", tmp_path)


def test_a_web_page_saved_as_popqa_is_recognised(tmp_path):
    (tmp_path / "popQA.tsv").write_text("<!DOCTYPE html>\n<html></html>\n")
    with pytest.raises(InputError, match=r"no columns .* download it from https://raw"):
        load_questions("popqa", tmp_path)


def test_complexwebquestions_joins_all_answers_and_leaves_out_nameless_ones():
    loaded = load_questions("complexwebquestions", DATA / "complexwebquestions")
    assert [(r["test_id"], r["qid"], r["answer"]) for r in loaded["total"]] == [
        (0, "c0", ["Orr", "Orr City", "City of Orr", "Hale"]),
        (1, "c1", ["Tam", "Tamsin Roe"]),
        (2, "c3", ["Orr"]),
    ]


@pytest.mark.parametrize(
    ("dataset", "file"),
    [
        ("2wikimultihopqa", "dev.json"),
        ("2wikimultihopqa", "id_aliases.json"),
        ("hotpotqa", "hotpot_dev_distractor_v1.json"),
        ("popqa", "popQA.tsv"),
        ("complexwebquestions", "ComplexWebQuestions_dev.json"),
    ],
)
def test_a_missing_raw_file_is_named_with_its_source(dataset, file, tmp_path):
    folder = shutil.copytree(DATA / dataset, tmp_path / dataset)
    (folder / file).unlink()
    with pytest.raises(InputError, match=rf"{file} does not exist; .* comes from http"):
        load_questions(dataset, folder)


# ------------------------------------------------------------------------------------------------
# Custom data sets and samples


def test_a_custom_list_is_named_by_its_file_and_an_object_by_its_keys(tmp_path):
    record = {"question": "Who?", "answer": ["Orr", "Hale"], "qid": "q7", "mood": "calm"}
    wanted = {"test_id": 0, "question": "Who?", "answer": ["Orr", "Hale"], "qid": "q7"}
    write_json(tmp_path / "my_split.v2.json", [record])
    assert load_questions("mine", tmp_path / "my_split.v2.json") == {"my_split.v2": [wanted]}
    write_json(tmp_path / "both.json", {"test": [record], "dev": [record, record]})
    loaded = load_questions("mine", str(tmp_path / "both.json"))
    assert loaded == {"test": [wanted], "dev": [wanted, {**wanted, "test_id": 1}]}


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"answer": "Orr"}, "record 1 has no question"),
        ({"question": "Who?"}, "record 1 has no answer"),
        ({"question": " ", "answer": "Orr"}, "record 1: question is an empty text"),
        ({"question": ["Who?"], "answer": "Orr"}, "record 1: question is a list"),
        ({"question": "Who?", "answer": 1311}, "record 1: answer is a number"),
        ({"question": "Who?", "answer": ""}, "record 1: answer is an empty text"),
        ({"question": "Who?", "answer": []}, "record 1: answer is an empty list"),
        ({"question": "Who?", "answer": ["Orr", None]}, "record 1: answer has an element .* null"),
        ({"question": "W?", "answer": "O", "golden_passages": "p"}, "record 1: golden_passages is"),
        ("Who?", "record 1 is a text"),
    ],
)
def test_a_bad_custom_record_is_named_by_index_and_field(record, problem, tmp_path):
    write_json(tmp_path / "dev.json", [{"question": "Who?", "answer": "Orr"}, record])
    with pytest.raises(InputError, match=problem):
        load_questions("mine", tmp_path / "dev.json")


def test_five_problems_are_shown_and_the_rest_counted(tmp_path):
    write_json(tmp_path / "dev.json", {"dev": [{"question": "Who?"}] * 8})
    with pytest.raises(InputError) as error:
        load_questions("mine", tmp_path / "dev.json")
    assert "dev, record 4 has no answer; and 3 more;" in str(error.value)
    assert "record 5" not in str(error.value)


def test_custom_paths_that_hold_no_questions_give_a_sentence(tmp_path):
    (tmp_path / "cut.json").write_text('[{"question": "Wh')
    for value, name in (([], "list.json"), ({}, "object.json"), ("text", "text.json")):
        write_json(tmp_path / name, value)
    write_json(tmp_path / "clash.json", {"a b": [], "a_b": []})
    for name, problem in {
        "": "is a folder",
        "none.json": "does not exist",
        "cut.json": "no valid JSON",
        "list.json": "expected a list of records, found an empty list",
        "object.json": "found an empty object",
        "text.json": "found a text",
        "clash.json": "same file name",
    }.items():
        with pytest.raises(InputError, match=problem):
            load_questions("mine", tmp_path / name)


def test_a_sample_is_the_first_questions_of_each_type_and_of_the_whole_order():
    loaded = load_questions("2wikimultihopqa", DATA / "2wikimultihopqa")
    sample = take_sample(loaded, 1)
    assert {name: [r["qid"] for r in records] for name, records in sample.items()} == {
        "comparison": ["w1"],
        "bridge_comparison": ["w4"],
        "inference": ["w0"],
        "compositional": ["w2"],
        "total": ["w0"],
    }
    assert take_sample(loaded, -1) == loaded
    for wrong in (0, -2):
        with pytest.raises(InputError, match=f"--sample {wrong} "):
            take_sample(loaded, wrong)


# ------------------------------------------------------------------------------------------------
# Supporting sentences


def test_supporting_sentences_stand_under_their_titles_and_lost_ones_are_passed_over():
    texts = load_supporting_sentences("2wikimultihopqa", DATA / "2wikimultihopqa")
    assert texts[:2] == [
        [
            "Bram Torn: Bram Torn is the son of Odo Torn.",
            "Ilva Torn: Ilva Torn is a weaver. Her father is Bram Torn.",
        ],
        ["Quell: The Quell flows in Vessel."],  # a lost title, and an index beyond the end
    ]
    assert texts[4] == []
    hotpot = load_supporting_sentences("hotpotqa", DATA / "hotpotqa")
    # the second sentence of Hale alone, not its whole paragraph
    assert hotpot[0] == ["Hale: Tamsin Roe founded it.", "Quell: The Quell is a river."]


def test_a_supporting_sentence_that_is_no_text_does_not_shift_the_others(tmp_path):
    facts = [["A", 2], ["A", "0"], ["A", 1], ["B", 0], ["A"]]
    raw = {"question": "Who?", "answer": "Orr", "type": "bridge", "supporting_facts": facts}
    raw["context"] = [["A", ["same", None, "same", "other"]], ["B", "text"]]
    write_json(tmp_path / "hotpot_dev_distractor_v1.json", [raw, {**raw, "context": None}])
    assert load_supporting_sentences("hotpotqa", tmp_path) == [["A: same"], []]
