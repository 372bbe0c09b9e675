"""Raw data sets become question records; what is broken is named."""

from pathlib import Path

import pytest
from stage_runs import refused

from utils import questions
from utils.files import write_json
from utils.questions import DATASETS, DataSet, load_questions, load_sample, take_sample

DATA = Path(__file__).parent / "data"
WHO = {"question": "Who?", "answer": "Orr"}


def test_2wikimultihopqa_takes_aliases_and_gives_each_type_and_total():
    loaded = load_questions("2wikimultihopqa", DATA / "2wikimultihopqa")
    assert list(loaded) == [*DATASETS["2wikimultihopqa"].types, "total"]
    total = loaded["total"]
    assert [record["qid"] for record in total] == ["w0", "w1", "w2", "w3", "w4"]
    assert [record["answer"] for record in total] == [
        ["Odo Torn", "Old Odo"],
        "yes",  # no answer_id
        "Sorrel Bay",  # an answer_id without an alias entry
        "Orr Tower",  # an alias entry that is empty
        ["Elm", "Elm (film)"],
    ]
    every = load_questions("2wikimultihopqa", DATA / "2wikimultihopqa", "all")["total"]
    every = {record["qid"]: record["answer"] for record in every}
    assert every["w0"] == ["Odo the Elder", "Odo Torn", "Old Odo"] and every["w1"] == "yes"
    assert every["w4"] == ["Elm", "Elm (film)", "Elmish"]  # with the demonym
    assert [r["qid"] for r in loaded["comparison"]] == ["w1", "w3"]
    for records in loaded.values():
        assert [record["test_id"] for record in records] == list(range(len(records)))


def test_golden_passages_are_the_supporting_paragraphs_once_each_in_order_of_mention():
    wiki = load_questions("2wikimultihopqa", DATA / "2wikimultihopqa")["total"]
    bram, ilva = wiki[0]["golden_passages"]
    assert bram == "Bram Torn is the son of Odo Torn."
    assert ilva == "Ilva Torn is a weaver. Her father is Bram Torn."
    # a title that is in no context, and a sentence index beyond the end
    assert wiki[1]["golden_passages"] == ["The Quell flows in Vessel.", "The Marn flows in Vessel."]
    hotpot = load_questions("hotpotqa", DATA / "hotpotqa")["bridge"]
    assert hotpot[0]["golden_passages"][0] == "Hale is a town. Tamsin Roe founded it."
    # supporting sentences are under their titles, and lost ones are passed over
    texts = questions.load_supporting_sentences("2wikimultihopqa", DATA / "2wikimultihopqa")
    assert texts[0] == [f"Bram Torn: {bram}", f"Ilva Torn: {ilva}"]
    # a lost title, and an index beyond the end
    assert texts[1] == ["Quell: The Quell flows in Vessel."]
    assert texts[4] == []
    hotpot = questions.load_supporting_sentences("hotpotqa", DATA / "hotpotqa")
    # the second sentence of Hale alone, not its whole paragraph
    assert hotpot[0] == ["Hale: Tamsin Roe founded it.", "Quell: The Quell is a river."]


def test_popqa_and_complexwebquestions_give_every_answer_and_quoted_cells_as_they_are():
    loaded = load_questions("popqa", DATA / "popqa")
    assert list(loaded) == ["total"]
    assert [record["answer"] for record in loaded["total"]] == [
        ["weaver", "cloth maker", '"loom" hand'], ["Orr"], ["Ula Fenn", "U. Fenn"],
        ["NA", "Nova Arda"],
    ]  # fmt: skip
    every = load_questions("popqa", DATA / "popqa", "all")["total"][2]["answer"]
    assert every == ["Ula Fenn", "U. Fenn", "Ula\tFenn"]  # the last one of possible_answers
    assert loaded["total"][2]["question"] == 'Who is the author of The "Blue\tDoor"?'
    # all answers are joined, and nameless ones left out
    loaded = load_questions("complexwebquestions", DATA / "complexwebquestions")
    first = (0, "c0", ["Orr", "Orr City", "City of Orr", "Hale"])
    rows = [first, (1, "c1", ["Tam", "Tamsin Roe"]), (2, "c3", ["Orr"])]
    assert [(r["test_id"], r["qid"], r["answer"]) for r in loaded["total"]] == rows


ROE, HALE = "The Quell is a river. Tamsin Roe mapped it.", "Hale lies at the mouth of the Quell."
WEAVER = "Ilva Torn is a weaver. She moved to Hale when Orr Tower was built."


@pytest.mark.parametrize("dataset, types, answers, golden, evidence", [
    ("musique", {"2hop": 1, "3hop": 1, "4hop": 1},  # in the order of the steps
        [["Tamsin Roe", "T. Roe"], ["Sorrel Bay"], ["Vessel"]],
        [[HALE, ROE], [HALE, ROE, "Tamsin Roe was born in Sorrel Bay in 1850."], [ROE]],
        [f"Hale: {HALE}", f"Quell: {ROE}"]),
    ("strategyqa", {}, ["no", "yes", "yes"],
        [["Fish live in water.", "It has no windows.", "Orr Tower is in Hale."], [], []],
        ["Orr Tower has no windows.", "Fish live in water."]),
    ("iirc", {}, [["1801", "1820"], ["29"], ["no"]],  # "none" is left out
        [[WEAVER, "It was flooded in 1801. Again in 1820.", "Built in 1830."], [WEAVER],
         ["The Quell is a river.", "The Marn is the longest river."]],
        [f"Ilva Torn: {WEAVER}", "hale: It was flooded in 1801. Again in 1820.",
         "orr tower: Built in 1830."]),
    ("triviaqa", {}, [["Orr", "Orr Town"]], None, None),
    ("nq_open", {}, [["Tamsin Roe", "Roe"], ["1830"]], None, None),
    ("webquestions", {}, [["Sorrel Bay", "Hale", "Orr (town)", 'The "Door"'], ["1830"]],
        None, None),
])  # fmt: skip
def test_a_published_format_gives_answers_support_and_types(
    dataset, types, answers, golden, evidence
):
    loaded = load_questions(dataset, DATA / dataset)
    total = loaded.pop("total")
    assert [record["answer"] for record in total] == answers
    assert {name: len(records) for name, records in loaded.items()} == types
    assert all(record["question"] for record in total)
    if golden:
        assert [record["golden_passages"] for record in total] == golden
        assert len({record["qid"] for record in total}) == len(total)
        assert questions.load_supporting_sentences(dataset, DATA / dataset)[0] == evidence


@pytest.mark.parametrize("dataset, said", [
    ("musique", ["1 of 4 questions have no answer", "1 of 3 questions lack supporting paragraphs"]),
    ("strategyqa", ["1 of 3 questions lack supporting paragraphs"]),
    ("iirc", ["1 of 4 questions have no answer", "1 of 3 questions have several answer spans"]),
])  # fmt: skip
def test_what_a_published_format_leaves_out_or_lacks_is_counted(dataset, said, capsys):
    load_questions(dataset, DATA / dataset)
    lines = capsys.readouterr().err.splitlines()
    assert all(words in line for words, line in zip(said, lines, strict=True))


@pytest.mark.parametrize("dataset, change, problem", [
    ("musique", ('"answerable"', '"a"'), "is damaged or another one"),  # as in its test set
    ("musique", ("\n", "\n{]\n"), "line 2 of .*jsonl is not valid JSON"),
    ("strategyqa", ("false", '"no"'), "is damaged or another one"),
    ("iirc", ('"questions"', '"asked"'), "is damaged or another one"),
    ("triviaqa", ('"Data"', '"data"'), "is damaged or another one"),
    ("nq_open", ('["1830"]', '"1830"'), "is damaged or another one"),
    ("webquestions", ("1830)", '\\"1830)'), "is damaged or another one"),  # an answer not read
    ("webquestions", ("when was orr tower built?", " "), "record 1: question is an empty text"),
])  # fmt: skip
def test_a_published_format_that_is_not_as_it_should_be_is_refused(
    dataset, change, problem, tmp_path
):
    for file in (DATA / dataset).iterdir():
        (tmp_path / file.name).write_text(file.read_text().replace(*change))
    refused(f"{problem}.*download it again from https", load_questions, dataset, tmp_path)


def test_layouts_of_the_hub_are_read_and_what_is_left_out_or_lost_is_counted(capsys):
    hotpot = load_questions("hotpotqa", DATA / "hub")["total"]
    assert [r["qid"] for r in hotpot] == ["columns", "text", "rows", "lost"]
    passages = [["Ann was born. She lived in Foo."]] * 3
    assert [r["golden_passages"] for r in hotpot] == [*passages, []]
    evidence = questions.load_supporting_sentences("hotpotqa", DATA / "hub")
    assert evidence == [["Ann: She lived in Foo."]] * 3 + [[]]
    web = load_questions("complexwebquestions", DATA / "hub")["total"]
    assert ["|".join(r["answer"]) for r in web] == ["Baz", "Hum|Hymn", "Ann|Bob|A. Orr", "Bo"]
    unanswered, lost, both = capsys.readouterr().err.splitlines()
    assert "v1.json: 1 of 5 questions have no answer and are left out" in unanswered
    assert "v1.json: 1 of 4 questions lack supporting paragraphs" in lost
    assert "Questions_dev.json: 2 of 6 questions have no answer" in both


@pytest.mark.parametrize("content, problem", [
    ("question\tobj\to_aliases\nWho?\tOrr\t__import__('os')\n", "record 0: o_aliases is not v"),
    ('question\tobj\to_aliases\nWho?\tOrr\t[]\n"Where\tOrr', "damaged or another one"),
    ('question\tobj\to_aliases\nWho?\tOrr\t"""Orr"""\n', "damaged or another one"),
    ("question\tobj\to_aliases\n", "holds no question"),
    ("question\tobj\to_aliases\n\tOrr\t[]\n", "record 0: question is an empty text"),
    (None, "does not exist"),
])  # fmt: skip
def test_a_broken_published_file_is_named_with_its_source(content, problem, tmp_path):
    if content:
        (tmp_path / "popQA.tsv").write_text(content)
    problem = f"{problem}.*popQA.tsv: download it again from htt"
    refused(problem, load_questions, "popqa", tmp_path)


def test_another_raw_data_set_is_a_loader_and_a_line(tmp_path, monkeypatch):
    def load(file: Path) -> list[dict]:
        rows = [line.split(";") for line in file.read_text().splitlines()]
        return [{"question": q, "answer": a, "type": t, "evidence": [e]} for q, a, t, e in rows]

    line = DataSet("http://quiz", ("quiz.csv",), load, types=("easy", "hard"), evidence=True)
    monkeypatch.setitem(questions.DATASETS, "quiz", line)
    (tmp_path / "quiz.csv").write_text("Who?;Orr;hard;It was Orr.\nWhere?;Hale;odd;In Hale.\n")
    loaded = load_questions("quiz", tmp_path)
    who = {"test_id": 0, "question": "Who?", "answer": "Orr", "type": "hard"}
    where = {"test_id": 1, "question": "Where?", "answer": "Hale", "type": "odd"}
    assert loaded == {"hard": [who], "total": [who, where]}
    assert questions.load_supporting_sentences("quiz", tmp_path) == [["It was Orr."], ["In Hale."]]


def test_a_custom_list_is_named_by_its_file_and_an_object_by_its_keys(tmp_path):
    record = {"question": "Who?", "answer": ["Orr", "Hale"], "qid": "q7", "mood": "calm"}
    wanted = {"test_id": 0, "question": "Who?", "answer": ["Orr", "Hale"], "qid": "q7"}
    write_json(tmp_path / "my_split.v2.json", [record])
    assert load_questions("mine", tmp_path / "my_split.v2.json") == {"my_split.v2": [wanted]}
    write_json(tmp_path / "both.json", {"test": [record], "dev": [record, record]})
    loaded = load_questions("mine", str(tmp_path / "both.json"))
    assert loaded == {"test": [wanted], "dev": [wanted, {**wanted, "test_id": 1}]}


@pytest.mark.parametrize("content, problem", [
    ([WHO, {"question": "Who?", "answer": ["Orr", None]}], r"record 1: answer\[1\] is null"),
    ([WHO, {**WHO, "golden_passages": {}}], "record 1: golden_passages is an empty object"),
    ([WHO, "Who?"], "record 1 is a text"),
    ({"dev": [{"question": "W"}] * 8}, "dev, record 4: answer is missing; and 3 more;"),
    ([], "is an empty list"), (WHO, "holds one record; put it into a list"),
    ({"a b": [WHO], "x/a_b": [WHO]}, "'a b' and 'x/a_b' would have one folder; rename one"),
    ({"dev": [WHO], ".hidden": [WHO]}, "'.hidden' cannot be used as a folder name"),
    (None, "is a folder"),
])  # fmt: skip
def test_a_bad_custom_file_is_named_with_record_and_field(content, problem, tmp_path):
    file = tmp_path / "dev.json"
    if content is None:
        file.mkdir()
    else:
        write_json(file, content)
    said = refused(problem, load_questions, "mine", file)
    assert "record 5" not in said  # of many problems five are shown


def test_a_sample_is_the_first_questions_of_each_type_and_of_the_whole_order():
    loaded = load_questions("2wikimultihopqa", DATA / "2wikimultihopqa")
    sample = take_sample(loaded, 1)
    qids = [[record["qid"] for record in records] for records in sample.values()]
    assert qids == [["w1"], ["w4"], ["w0"], ["w2"], ["w0"]]
    assert take_sample(loaded, -1) == loaded
    one = load_sample("2wikimultihopqa", DATA / "2wikimultihopqa", "inference", 1)
    assert one == {"inference": sample["inference"]}
    words = "--data_type odd: 2wikimultihopqa has comparison, "
    refused(words, load_sample, "2wikimultihopqa", DATA / "2wikimultihopqa", "odd", 1)
