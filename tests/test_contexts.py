"""`prep_elastic.py --from_contexts`: a corpus of what a data set shows beside its questions."""

import json
import shutil

import pytest
from conftest import REPOSITORY
from fake_elasticsearch import FakeElasticsearch
from stage_runs import refused, run, tree

import prep_elastic
from utils.layout import index_folder
from utils.metrics import answer_presence
from utils.questions import load_questions
from utils.retrieval.corpus import read_corpus
from utils.retrieval.embedded import EmbeddedIndex

DATA = REPOSITORY / "tests" / "data"
REAL = REPOSITORY.parent / "shared" / "data"


def indexed(folder, *more: str) -> None:
    run(prep_elastic, "--from_contexts", str(folder), "--index_name", "own", *more)


def test_each_paragraph_of_any_layout_is_a_row_once(root, capsys):
    indexed(DATA / "hub")  # the first three records have it in three layouts
    rows = list(read_corpus(root / "index/own.tsv"))
    assert rows == [("0", "Bob sang.", "Bob"), ("1", "Ann was born. She lived in Foo.", "Ann")]
    next_step = f"--dataset hotpotqa --data_path {DATA / 'hub'} --index_name own"
    first, before = capsys.readouterr().out, tree(root)
    indexed(DATA / "hub")
    again = capsys.readouterr().out
    assert "2 rows indexed" in first and "of this corpus exists already" in again
    assert next_step in first and next_step in again and tree(root) == before
    refused("own exists already, of another corpus", indexed, DATA / "hotpotqa")
    assert tree(root) == before
    (index_folder("own") / "meta.json").write_text("{}")
    refused(r"--data_path \S*index/own\.tsv --index_name own --overwrite", indexed, DATA / "hub")
    with FakeElasticsearch() as fake:
        indexed(DATA / "hotpotqa", "--engine", "elasticsearch", "--es_url", fake.url)
    rows = len(list(read_corpus(root / "index/own.tsv")))
    assert f"{rows} rows indexed (elasticsearch)" in capsys.readouterr().out


def test_golden_passages_are_found_word_for_word(root):
    indexed(DATA / "hotpotqa")
    texts = {text for _, text, _ in read_corpus(root / "index/own.tsv")}
    total = load_questions("hotpotqa", DATA / "hotpotqa")["total"]
    assert {"Hale is a town. Tamsin Roe founded it."} < texts
    assert {passage for one in total for passage in one["golden_passages"]} <= texts
    refused(r"record 4 of \S+dev\.json has no context; --from", indexed, DATA / "2wikimultihopqa")


@pytest.mark.parametrize("context, message", [
    (None, "record 1 of .* has no context; --from_contexts must be .*download it again from http"),
    ([], "has no context"), ("[[", "record 1 of .* is not valid JSON"),
    ([["Ann", "She sang."]], "is damaged or another one"),
    ([[None, ["She sang."]]], "is damaged or another one"), ([["Ann"]], "damaged or another one"),
])  # fmt: skip
def test_a_record_whose_context_cannot_be_used_is_named(root, context, message):
    records = [{"context": [["Bob", ["He sang."]]]}, {"context": context}]
    (root / "hotpot_dev_distractor_v1.json").write_text(json.dumps(records))
    refused(message, indexed, root)
    assert not (root / "index").exists()


def test_a_folder_must_hold_one_data_set_with_contexts(root):
    faults = {DATA / "popqa": "holds popqa", root / "none": "does not exist", root: "no data set"}
    for folder, fault in faults.items():
        refused(rf"{fault}; give .* id_aliases\.json \(2wikimultihopqa\), or hot", indexed, folder)
    for name in ("hotpotqa", "2wikimultihopqa"):
        shutil.copytree(DATA / name, root / "both", dirs_exist_ok=True)
    refused("holds 2wikimultihopqa and hotpotqa; give", indexed, root / "both")


@pytest.mark.parametrize("words, message", [
    ("--from_context x", "--data_path --from_contexts is required; there is no --from_context\n"),
    ("--data_path x --from_contexts y", "argument --from_contexts: not allowed with argument"),
])  # fmt: skip
def test_a_corpus_comes_from_one_place(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        run(prep_elastic, *words.split())
    assert ended.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared data is not here")
@pytest.mark.parametrize(
    "dataset, found", [("hotpotqa", 145 / 230), ("2wikimultihopqa", 143 / 271)]
)
def test_real_questions_find_a_right_answer_in_three_passages(root, dataset, found):
    indexed(REAL / dataset)
    total = load_questions(dataset, REAL / dataset)["total"]
    asked = [one for one in total if one["answer"] not in ("yes", "no")]
    hits = EmbeddedIndex(index_folder("own")).search([one["question"] for one in asked], 3)
    present = [
        max(answer_presence(hit["text"], one["answer"]) for hit in own)
        for own, one in zip(hits, asked, strict=True)
    ]
    assert sum(present) / len(present) == pytest.approx(found)
    texts = {text for _, text, _ in read_corpus(root / "index/own.tsv")}
    assert {passage for one in total for passage in one["golden_passages"]} <= texts
