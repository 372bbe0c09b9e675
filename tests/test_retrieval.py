import csv
import gzip
import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from utils.retrieval import embedded as retrieval
from utils.retrieval.embedded import EmbeddedIndex, build_index, open_retriever
from utils.running import InputError

REPOSITORY = Path(__file__).parents[1]

PASSAGES = [  # id, text, title
    ("p1", "The cat sat on the mat and the cats slept", "Cats"),
    ("p2", "A dog chased the cat", "Dog"),
    ("p3", "Dogs run in the park near a river", "Park"),
    ("p4", "The river Thames runs through London", "Thames"),
    ("p5", "London is the capital of England", "London"),
    ("p6", 'He said "cat" and left', ""),
]
STEMS = {"cats": "cat", "slept": "slept", "dogs": "dog", "runs": "run", "chased": "chase"}
STEMS |= {"thames": "thame", "capital": "capit"}
STOP_WORDS = {"a", "and", "in", "is", "of", "on", "the"}


def write_corpus(path, passages, header=("id", "text", "title")):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([header, *passages])
    return path


def index_of(folder, passages):
    build_index(write_corpus(folder / "corpus.tsv", passages), folder / "index" / "wiki")
    return EmbeddedIndex(folder / "index" / "wiki")


def ids(hits):
    return [hit["id"] for hit in hits]


def terms_of(text):
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return [STEMS.get(word, word) for word in words if word not in STOP_WORDS]


def textbook_bm25(question, fields):
    """BM25 of each document of one field: k1 = 1.2, b = 0.75, idf = ln(1 + (N-n+0.5)/(n+0.5))."""
    documents = [terms_of(field) for field in fields]
    having = [document for document in documents if document]  # as Lucene counts them
    mean_length = sum(map(len, having)) / len(having)
    scores = []
    for document in documents:
        score = 0.0
        for term in terms_of(question):
            n = sum(term in other for other in documents)
            idf = math.log(1 + (len(having) - n + 0.5) / (n + 0.5))
            tf = document.count(term)
            norm = 1.2 * (1 - 0.75 + 0.75 * len(document) / mean_length)
            score += idf * 2.2 * tf / (tf + norm)
        scores.append(score)
    return scores


@pytest.mark.parametrize("question", ["Which cats sat near London?", "the river, the dog park"])
def test_scores_are_textbook_bm25_of_the_better_field_plus_half_of_the_other(tmp_path, question):
    passages = [*PASSAGES[:5], ("p6", PASSAGES[5][1], "The cat")]
    texts = textbook_bm25(question, [text for _, text, _ in passages])
    titles = textbook_bm25(question, [title for _, _, title in passages])
    expected = {
        passage_id: max(pair) + 0.5 * min(pair)
        for (passage_id, _, _), pair in zip(passages, zip(texts, titles, strict=True), strict=True)
        if max(pair) > 0
    }
    [hits] = index_of(tmp_path, passages).search([question], topk=10)
    assert {hit["id"]: hit["score"] for hit in hits} == pytest.approx(expected, rel=1e-5)
    assert ids(hits) == sorted(expected, key=expected.get, reverse=True)


def test_the_ranking_is_that_of_lucene(tmp_path):
    """Of the demo's corpus, every second title removed: `LuceneReference.java` in benchmarks/."""
    reference = json.loads((Path(__file__).parent / "data" / "lucene_ranking.json").read_text())
    lines = (REPOSITORY / "data/demo/corpus.tsv").read_text(encoding="utf-8").split("\n")
    lines[1::2] = [line.rpartition("\t")[0] + "\t" if line else "" for line in lines[1::2]]
    (tmp_path / "corpus.tsv").write_text("\n".join(lines), encoding="utf-8")
    build_index(tmp_path / "corpus.tsv", tmp_path / "demo")
    questions = [entry["question"] for entry in reference["questions"]]
    found = EmbeddedIndex(tmp_path / "demo").search(questions, topk=10)
    for hits, entry in zip(found, reference["questions"], strict=True):
        assert ids(hits) == [passage_id for passage_id, _ in entry["hits"]]
        assert [hit["score"] for hit in hits] == pytest.approx(
            [score for _, score in entry["hits"]], rel=3e-5
        )


def test_worker_processes_give_the_same_index(tmp_path, monkeypatch):
    passages = [(f"p{i}", f"the cat number{i} of {'dogs ' * (i % 7)}", "") for i in range(2500)]
    plain = index_of(tmp_path, passages)
    monkeypatch.setattr(retrieval, "BYTES_WORTH_WORKERS", 0)
    assert build_index(tmp_path / "corpus.tsv", tmp_path / "parallel") == 2500
    questions = ["cats", "number1 number2499", "dog number1700"]
    assert EmbeddedIndex(tmp_path / "parallel").search(questions, 20) == plain.search(questions, 20)


def test_hits_are_the_rows_of_the_corpus_in_question_order(tmp_path):
    results = index_of(tmp_path, PASSAGES).search(["left", "zebra", "capital of England"], topk=1)
    [left], none, [capital] = results
    assert none == []
    assert (left["id"], left["title"], left["text"]) == ("p6", "", 'He said "cat" and left')
    assert (capital["id"], capital["title"]) == ("p5", "London")


@pytest.mark.parametrize(
    "question",
    ["title: cat AND (", '"cat mat', "cat* OR -sat^9", "+cat [a TO", "cat\\", "\ud800cat \x00"],
)
def test_query_syntax_in_a_question_is_only_words(tmp_path, question):
    index = index_of(tmp_path, PASSAGES)
    words = "".join(c if c.isalnum() else " " for c in question.replace("\ud800", ""))
    assert index.search([question], topk=5) == index.search([words], topk=5)
    assert {"p1", "p2", "p6"} <= set(ids(index.search([question], topk=5)[0]))


def test_a_question_without_a_word_warns_and_finds_nothing(tmp_path):
    index = index_of(tmp_path, PASSAGES)
    with pytest.warns(UserWarning, match=r"\?!\.\.\."):
        results = index.search(["cat", "?!...", "dog"], topk=2)
    assert [len(hits) for hits in results] == [2, 0, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert index.search(["zebra"], topk=2) == [[]]


def test_a_text_appears_once_however_often_the_corpus_has_it(tmp_path):
    passages = [(f"d{i}", "cat cat cat", "") for i in range(300)]
    passages += [("last", "the cat sat down", ""), ("other", "a dog", "")]
    [hits] = index_of(tmp_path, passages).search(["cat"], topk=2)
    assert ids(hits) == ["d0", "last"]


def test_ties_come_in_the_order_of_the_corpus(tmp_path):
    # The distinct word makes 2000 texts of the same length that all score the same.
    passages = [(f"p{i}", f"cat number{i}", "") for i in range(2000)]
    index = index_of(tmp_path, passages)
    assert ids(index.search(["cat"], topk=4)[0]) == ["p0", "p1", "p2", "p3"]
    assert ids(index.search(["number1999 cat"], topk=3)[0]) == ["p1999", "p0", "p1"]


def test_scores_that_differ_by_rounding_are_ties():
    scored = [(7.228016, 8, "c"), (9.0, 9, "a"), (7.228015, 2, "b"), (7.2279, 1, "d")]
    assert [name for _, _, name in retrieval._settle_ties(scored)] == ["a", "b", "c", "d"]


def test_topk_below_one_is_refused(tmp_path):
    with pytest.raises(InputError, match="topk is 0"):
        index_of(tmp_path, PASSAGES).search(["cat"], topk=0)


def test_a_gzipped_corpus_gives_the_same_index_and_a_cut_off_one_is_named(tmp_path):
    plain = index_of(tmp_path, PASSAGES)
    packed = write_corpus(tmp_path / "corpus.tsv.gz", PASSAGES)
    assert build_index(packed, tmp_path / "packed") == len(PASSAGES)
    question = ["the cat of London"]
    assert EmbeddedIndex(tmp_path / "packed").search(question, 5) == plain.search(question, 5)
    whole = packed.read_bytes()
    for damaged in (whole[:-20], whole[:40] + b"\xff" * 20 + whole[60:], b"id\ttext\ttitle\n"):
        packed.write_bytes(damaged)
        with pytest.raises(
            InputError, match=r"corpus\.tsv\.gz cannot be read (to its end|as gzip)"
        ):
            build_index(packed, tmp_path / "damaged")
        assert not (tmp_path / "damaged").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id\ttext\ttitle\n1\tcat\tCat\n2\tdog\n", "line 3 .* has 2 columns"),
        (b"id\ttext\ttitle\n1\ta\tb\tCat\n", "line 2 .* has 4 columns"),
        (b'id\ttext\ttitle\n1\t"a\nb"\tCat\n2\t \tDog\n', "line 4 .* has an empty text"),
        (b"id\ttext\ttitle\n\tcat\tCat\n", "line 2 .* has an empty id"),
        (b'id\ttext\ttitle\n1\tcat\tCat\n2\t"x" is\tX\n', "line 3 .* is no valid TSV"),
        (b'id\ttext\ttitle\n1\t"cat\tCat\n2\tdog\tDog\n', "line 2 .* is no valid TSV"),
        (b"id\ttext\ttitle\n1\tcat\tCat\n2\t\xff\tX\n", "line 3 .* is not UTF-8"),
        (b"1\tcat\tCat\n", "not with the header"),
        (b'id\ttext\ttitle\n1\t"a\tA\n2\tb\tB\n3\tc"\tC\n', "line 2 .* quote is not closed"),
        (b"id\ttext\ttitle\n", "has no passage"),
        (b"", "has no passage"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_left(tmp_path, content, message):
    corpus = tmp_path / "corpus.tsv"
    corpus.write_bytes(content)
    with pytest.raises(InputError, match=message):
        build_index(corpus, tmp_path / "indexes" / "wiki")
    assert list((tmp_path / "indexes").iterdir()) == []


def test_an_interrupted_build_leaves_nothing_new_and_the_old_index_whole(tmp_path, monkeypatch):
    index_of(tmp_path, PASSAGES)
    folder = tmp_path / "index" / "wiki"
    many = write_corpus(tmp_path / "many.tsv", [(str(i), f"w{i}", "") for i in range(3000)])
    read_corpus = retrieval.read_corpus

    def interrupted(corpus):
        for count, row in enumerate(read_corpus(corpus)):
            if count == 2500:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr(retrieval, "read_corpus", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_index(many, folder, overwrite=True)
    assert list(folder.parent.iterdir()) == [folder]
    assert ids(EmbeddedIndex(folder).search(["England"], topk=1)[0]) == ["p5"]


def test_an_index_is_replaced_only_with_overwrite(tmp_path):
    index_of(tmp_path, PASSAGES)
    folder = tmp_path / "index" / "wiki"
    other = write_corpus(tmp_path / "other.tsv", [("z", "a zebra", "Zebra")])
    with pytest.raises(InputError, match="--overwrite"):
        build_index(other, folder)
    assert build_index(other, folder, overwrite=True) == 1
    assert EmbeddedIndex(folder).search(["cat"], topk=1) == [[]]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["source"], manifest["rows"]) == ("other.tsv", 1)
    assert manifest["bytes"] == other.stat().st_size
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in folder.iterdir())


@pytest.mark.parametrize("name", ["a/b", "../x", "x y", "-x", "", ".."])
def test_a_name_that_is_no_folders_name_is_refused(name):
    with pytest.raises(InputError, match=r"cannot be used|no name of a folder"):
        retrieval.index_folder(name)


def test_an_index_of_another_content_has_another_identity(tmp_path):
    first = index_of(tmp_path, [("1", "cat", "x"), ("2", "dog", "y")]).identity
    write_corpus(tmp_path / "corpus.tsv", [("1", "cat", "x"), ("2", "dot", "y")])
    build_index(tmp_path / "corpus.tsv", tmp_path / "index/wiki", overwrite=True)
    assert EmbeddedIndex(tmp_path / "index/wiki").identity != first


def test_a_missing_index_is_told_with_the_command_that_builds_it(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.layout.ROOT_DIR", tmp_path)
    command = "python prep_elastic.py --data_path data/dpr/psgs_w100.tsv.gz --index_name wiki"
    with pytest.raises(InputError, match=f"{command}$"):
        open_retriever("embedded", "wiki")
    with pytest.raises(InputError, match="--engine embedded"):
        open_retriever("lucene", "wiki")


@pytest.mark.parametrize(
    "change", [{"analyzer": "whitespace"}, {"fields": ["text"]}, {"rows": 5}, {"rows": None}, None]
)
def test_a_foreign_or_damaged_index_is_refused_with_the_remedy(tmp_path, change):
    index_of(tmp_path, PASSAGES)
    folder = tmp_path / "index" / "wiki"
    file = folder / "manifest.json"
    if change is None:
        file.unlink()
    else:
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match="--index_name wiki --overwrite"):
        EmbeddedIndex(folder)


def test_an_index_that_lost_a_file_is_refused(tmp_path):
    index_of(tmp_path, PASSAGES)
    (tmp_path / "index" / "wiki" / "meta.json").unlink()
    with pytest.raises(InputError, match=r"its file meta\.json is missing"):
        EmbeddedIndex(tmp_path / "index" / "wiki")


def test_the_script_builds_an_index_and_a_second_run_stops(tmp_path):
    corpus = write_corpus(tmp_path / "corpus.tsv", PASSAGES)
    command = [sys.executable, str(REPOSITORY / "prep_elastic.py"), "--index_name", "demo"]
    command += ["--data_path", str(corpus)]
    environment = os.environ | {"PRAG_ROOT": str(tmp_path)}
    first = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "6 rows indexed" in first.stdout
    assert "python src/augment.py" in first.stdout
    assert len(EmbeddedIndex(tmp_path / "index" / "demo").search(["cat"], topk=9)[0]) == 3
    second = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert second.returncode == 1
    assert second.stderr.startswith("error: the index ")


def test_a_folder_that_is_no_index_is_never_replaced(tmp_path):
    corpus = write_corpus(tmp_path / "corpus.tsv", PASSAGES)
    (tmp_path / "index").mkdir()
    (tmp_path / "index/thesis.txt").write_text("three years of work")
    (tmp_path / "file").write_text("more")
    for place in ("index", "file"):
        for overwrite in (False, True):
            with pytest.raises(InputError, match="is no index of this program; give another"):
                build_index(corpus, tmp_path / place, overwrite)
    assert (tmp_path / "index/thesis.txt").read_text() == "three years of work"


def test_a_long_passage_is_indexed(tmp_path):
    long = ("1", "word " * 40_000, "Long")  # the csv module's own limit is 131,072 characters
    assert build_index(write_corpus(tmp_path / "corpus.tsv", [long]), tmp_path / "index") == 1
