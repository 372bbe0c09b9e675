import csv
import gzip
import json
import shutil

import pytest
from conftest import REPOSITORY
from fake_elasticsearch import FakeElasticsearch
from hypothesis import given
from hypothesis import strategies as st
from stage_runs import refused, run, tree

import prep_elastic
from utils.layout import index_folder
from utils.metrics import answer_presence
from utils.questions import load_questions
from utils.retrieval import embedded as retrieval
from utils.retrieval.corpus import COLUMNS, read_corpus, settle_ties
from utils.retrieval.embedded import EmbeddedIndex, build_index
from utils.retrieval.english import ANY_WORD, LATIN_TEXT, LATIN_WORD, english_terms

HEADER = b"id\ttext\ttitle\n"
DATA = REPOSITORY / "tests" / "data"
REAL = REPOSITORY.parent / "shared" / "data"

PASSAGES = [  # id, text, title
    ("p1", "The cat sat on the mat and the cats slept", "Cats"),
    ("p2", "A dog chased the cat", "Dog"), ("p3", "Dogs run in the park near a river", "Park"),
    ("p4", "The river Thames runs through London", "Thames"),
    ("p5", "London is the capital of England", "London"), ("p6", 'He said "cat" and left', ""),
]  # fmt: skip


def write_corpus(path, passages):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([COLUMNS, *passages])
    return path


def index_of(folder, passages):
    build_index(write_corpus(folder / "corpus.tsv", passages), folder / "index/wiki")
    return EmbeddedIndex(folder / "index/wiki")


def ids(hits):
    return [hit["id"] for hit in hits]


def test_the_ranking_is_that_of_lucene(tmp_path):
    """Of the demo's corpus, every second title removed: `LuceneReference.java` in benchmarks/."""
    reference = json.loads((DATA / "lucene_ranking.json").read_text())
    lines = (REPOSITORY / "data/demo/corpus.tsv").read_text(encoding="utf-8").split("\n")
    lines[1::2] = [line.rpartition("\t")[0] + "\t" if line else "" for line in lines[1::2]]
    (tmp_path / "corpus.tsv").write_text("\n".join(lines), encoding="utf-8")
    build_index(tmp_path / "corpus.tsv", tmp_path / "demo")
    questions = [entry["question"] for entry in reference["questions"]]
    found = EmbeddedIndex(tmp_path / "demo").search(questions, topk=10)
    for hits, entry in zip(found, reference["questions"], strict=True):
        names, scores = zip(*entry["hits"], strict=True)
        assert ids(hits) == [*names]
        assert [hit["score"] for hit in hits] == pytest.approx(scores, rel=3e-5)


def test_terms_are_those_of_lucene():
    stored = (DATA / "lucene_english.json").read_text(encoding="utf-8")
    texts = json.loads(stored)["texts"]
    assert len(texts) > 1000
    assert [(text, terms) for text, terms in texts if english_terms(text) != terms] == []
    assert english_terms("half \ud83d a pair") == ["half", "pair"]  # not valid text


@given(st.text(st.characters(codec=None), max_size=300))
def test_any_text_gives_terms_without_white_space(text):
    for term in english_terms(text):
        assert term and len(term) <= 255 and not set(term) & set(" \t\n\r\f\v")


@given(st.text("abcXYZsS'’‘.,;:_-\" 0189–éÉß£°()“”ı\n", max_size=40))  # noqa: RUF001
def test_both_word_patterns_agree_on_latin_text(text):
    assert LATIN_TEXT(text)
    assert LATIN_WORD.findall(text) == ANY_WORD.findall(text)


def rows_of(index) -> list[tuple[str, str, str]]:
    return [(one["id"], one["text"], one["title"]) for one in index.passages()]


def test_worker_processes_give_the_same_index(tmp_path, monkeypatch):
    passages = [(f"p{i}", f"the cat number{i} of {'dogs ' * (i % 7)}", "") for i in range(2500)]
    plain = index_of(tmp_path, passages)
    assert rows_of(plain) == passages
    monkeypatch.setattr(retrieval, "BYTES_WORTH_WORKERS", 0)
    assert build_index(tmp_path / "corpus.tsv", tmp_path / "parallel") == 2500
    questions = ["cats", "number1 number2499", "dog number1700"]
    assert EmbeddedIndex(tmp_path / "parallel").search(questions, 20) == plain.search(questions, 20)


def test_hits_are_the_rows_of_the_corpus_in_question_order(tmp_path):
    index = index_of(tmp_path, PASSAGES)
    questions = ["left", "zebra", "?!...", "capital of England"]
    with pytest.warns(UserWarning, match=r"\?!\.\.\."):
        [left], zebra, no_word, [capital] = index.search(questions, topk=1)
    assert zebra == no_word == []
    assert (left["id"], left["title"], left["text"]) == ("p6", "", 'He said "cat" and left')
    assert (capital["id"], capital["title"]) == ("p5", "London")
    # query syntax is only words
    for question in ("title: cat AND (", '"cat mat', "cat* OR -sat^9", "cat\\", "\ud800cat \x00"):
        words = "".join(c if c.isalnum() else " " for c in question.replace("\ud800", ""))
        asked, plain = index.search([question, words], topk=5)
        assert asked == plain and {"p1", "p2", "p6"} <= set(ids(asked))


def test_a_text_appears_once_and_ties_come_in_the_order_of_the_corpus(tmp_path):
    # The distinct word makes 2000 texts of the same length that all score the same.
    passages = [(f"p{i}", f"cat number{i}", "") for i in range(2000)]
    passages += [(f"d{i}", "dog dog dog", "") for i in range(300)]
    passages += [("last", "the dog sat down", "")]
    cats, one, dogs = index_of(tmp_path, passages).search(["cat", "number1999 cat", "dog"], 3)
    assert ids(cats) == ["p0", "p1", "p2"]
    assert ids(one) == ["p1999", "p0", "p1"]
    assert ids(dogs) == ["d0", "last"]
    rounded = [(7.228016, 8, "c"), (9.0, 9, "a"), (7.228015, 2, "b"), (7.2279, 1, "d")]
    assert [name for _, _, name in settle_ties(rounded)] == ["a", "b", "c", "d"]


def test_a_gzipped_corpus_gives_the_same_rows_and_a_cut_off_one_is_named(tmp_path):
    long = ("1", "word " * 40_000, "Long")  # the csv module's own limit is 131,072 characters
    tables = [
        ("7", "Ann.\n\n\t\t\n\t\t", ""), ("8", "Born\tName\n1990\tAnn\tA\n3\tBo\tB", "Born"),
        ("9", "Name\tBorn\nAnn\t1990", "Named"), ("10", "One\ttab", "A title\nof two lines"),
    ]  # fmt: skip
    packed = write_corpus(tmp_path / "corpus.tsv.gz", [*PASSAGES, long, *tables])
    assert list(read_corpus(packed)) == [*PASSAGES, long, *tables]
    packed.write_bytes(packed.read_bytes()[:-20])
    refused(r"corpus\.tsv\.gz cannot be read to its end", build_index, packed, tmp_path / "damaged")
    assert not (tmp_path / "damaged").exists()


SWALLOWED = [  # rows of which a quote is closed by a later row's, or by the end of the file
    b'1\t"a\tA\n2\tb"\tB\n3\tc\tC\n', b'1\t"a\tA\n2\tb\tB\n3\tc"\tC\n4\td\tD\n',
    b'a1\t"a\tA\r\nb7\tb"\tB\r\n', b'1\t"a\nof two lines\tA\n\n2\tb"\tB\n',
    b'1\ta\t"A\n2\tb\tB"\n', b'1\ta\t"A\n2\tb"\tB\n',  # in the title
    b'"1\ta\tA\n2"\tb\tB\n', b'1\t"a\tA\n2\tb\tB"',
]  # fmt: skip


@pytest.mark.parametrize("content, message", [
    (HEADER + b"1\tcat\tCat\n2\tdog\n", r"line 3 .*it has 2 columns.*id<TAB>text<TAB>title"),
    (HEADER + b'1\t"a\nb"\tCat\n2\t \tDog\n', "line 4 .* an empty id or text"),
    (HEADER + b'1\tcat\tCat\n2\t"x" is\tX\n', "line 3 .* expected after"),
    (HEADER + b"1\tcat\tCat\n2\t\xff\tX\n", "line 3 .* UTF-8"), (HEADER, "has no passage"),
    *((HEADER + b"0\tx\tX\n" + rows, "line 3 .* a quote is not closed") for rows in SWALLOWED),
    (b"1\tcat\tCat\n", "line 1 .*it is not the header"),
    (b"id\ttitle\ttext\n1\tA\ta\n", "its columns are id, title, text: .*order id, text, title"),
    (b"text\tid\tname\turl\n", "its columns are text, id, name, url: bring these into the order"),
])  # fmt: skip
def test_a_bad_row_is_named_and_the_old_index_is_left_whole(tmp_path, content, message):
    index_of(tmp_path, PASSAGES)
    folder, corpus = tmp_path / "index" / "wiki", tmp_path / "bad.tsv"
    corpus.write_bytes(content)
    refused(message, build_index, corpus, folder, overwrite=True)
    assert list(folder.parent.iterdir()) == [folder]
    assert ids(EmbeddedIndex(folder).search(["England"], topk=1)[0]) == ["p5"]


def test_overwrite_replaces_an_index_and_nothing_else(tmp_path):
    first = index_of(tmp_path, PASSAGES).identity
    folder = tmp_path / "index" / "wiki"
    other = write_corpus(tmp_path / "corpus.tsv", [*PASSAGES[1:], ("p1", "the cats slept", "Cats")])
    refused(r"exists already, of another corpus.*--overwrite", build_index, other, folder)
    assert build_index(other, folder, overwrite=True) == len(PASSAGES)
    assert build_index(other, folder) == 0  # as after a kill that came late
    assert EmbeddedIndex(folder).identity != first  # of another content
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in folder.iterdir())
    for place in (folder.parent, other):  # neither is an index
        words = "is not an index of this program; give another"
        refused(words, build_index, other, place, overwrite=True)


def test_an_index_is_read_through_a_link_and_on_a_disk_that_takes_no_lock(tmp_path):
    plain = index_of(tmp_path, PASSAGES).search(["cat"], 3)
    lock, link = tmp_path / "index/wiki/.tantivy-meta.lock", tmp_path / "link"
    lock.unlink()
    lock.mkdir()  # tantivy cannot lock it, as on a read-only disk
    link.symlink_to(tmp_path / "index/wiki")
    assert EmbeddedIndex(link).search(["cat"], 3) == plain
    words = "link is a link to .*index/wiki: .*remove the link"
    refused(words, build_index, tmp_path / "corpus.tsv", link, overwrite=True)
    shutil.rmtree(tmp_path / "index")
    refused(r"no index at .*link, which is a link to nothing; build", EmbeddedIndex, link)


def test_a_damaged_or_different_index_is_refused_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.layout.ROOT_DIR", tmp_path)
    command = "python prep_elastic.py --data_path data/dpr/psgs_w100.tsv.gz --index_name wiki"
    index_of(tmp_path, PASSAGES)
    file = index_folder("wiki") / "manifest.json"
    whole = file.read_text()
    for change, cause in (({"analyzer": "x"}, "its analyzer: 'x'"), ({"rows": 5}, "was changed")):
        file.write_text(json.dumps(json.loads(whole) | change))
        refused(f"can use .*{cause}.*{command} --overwrite", EmbeddedIndex, index_folder("wiki"))
    file.write_text(whole)
    (index_folder("wiki") / "meta.json").write_text("{}")
    refused(r"its file meta\.json is damaged.*--overwrite", EmbeddedIndex, index_folder("wiki"))


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


@pytest.mark.parametrize("dataset, text", [
    ("hotpotqa", "Hale is a town. Tamsin Roe founded it."),
    ("musique", "Vessel is a land in the north."),  # a distractor
    ("strategyqa", "Nobody asks about this."),
])  # fmt: skip
def test_golden_passages_are_found_word_for_word(root, dataset, text):
    indexed(DATA / dataset)
    texts = {text for _, text, _ in read_corpus(root / "index/own.tsv")}
    total = load_questions(dataset, DATA / dataset)["total"]
    assert {text} < texts
    assert {passage for one in total for passage in one["golden_passages"]} <= texts


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
