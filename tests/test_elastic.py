"""The Elasticsearch engine over real HTTP: a fake server, or a real one at $ELASTICSEARCH_URL."""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from fake_elasticsearch import FakeElasticsearch, error_body, failed_search
from test_retrieval import PASSAGES, ids, write_corpus

from utils.retrieval import elasticsearch_load as elastic_load
from utils.retrieval.elasticsearch import (
    Connection,
    ElasticsearchIndex,
    add_elasticsearch_flags,
    connected,
    connection_of,
)
from utils.retrieval.elasticsearch_load import load_index
from utils.retrieval.embedded import EmbeddedIndex, build_index, open_retriever
from utils.running import InputError

pytest_plugins = ["elastic_fixtures"]
pytestmark = pytest.mark.usefixtures("own_environment")
REPOSITORY = Path(__file__).parents[1]
SECRET = "hunter2-nobody-may-see"
fake_only = pytest.mark.skipif(
    bool(os.environ.get("ELASTICSEARCH_URL")), reason="a real server does not fail on demand"
)
# Without empty titles: Lucene counts such a passage out of the statistics, tantivy does not.
TITLED = [(passage_id, text, title or "Quote") for passage_id, text, title in PASSAGES]


def load(tmp_path, connection, name, passages=TITLED, **flags):
    corpus = write_corpus(tmp_path / "corpus.tsv", passages)
    rows = load_index(corpus, connection, name, **flags)
    return rows, ElasticsearchIndex(connection, name)


def concrete(connection, pattern):
    with connected(connection) as client:
        return dict(client.indices.get(index=pattern, ignore_unavailable=True))


# Searching


def test_both_engines_rank_alike_with_the_same_scores(tmp_path, connection, name):
    # The 2.2 in each BM25 term that Lucene dropped is there in tantivy and in Elasticsearch 8.
    questions = ["Which cats sat near London?", "the river, the dog park", "capital", "zebra"]
    build_index(write_corpus(tmp_path / "corpus.tsv", TITLED), tmp_path / "index")
    rows, index = load(tmp_path, connection, name, shards=3)
    assert rows == len(TITLED)
    expected = EmbeddedIndex(tmp_path / "index").search(questions, topk=5)
    found = index.search(questions, topk=5)
    assert [ids(hits) for hits in found] == [ids(hits) for hits in expected]
    assert [len(hits) for hits in found] == [5, 3, 1, 0]
    for hits, others in zip(found, expected, strict=True):
        for hit, other in zip(hits, others, strict=True):
            assert hit == other | {"score": pytest.approx(other["score"], rel=1e-5)}


def test_the_engine_opens_by_name(tmp_path, connection, name):
    load(tmp_path, connection, name)
    index = open_retriever("elasticsearch", name, connection)
    assert ids(index.search(["England"], topk=1)[0]) == ["p5"]
    size = (tmp_path / "corpus.tsv").stat().st_size
    assert index.identity == {"source": "corpus.tsv", "bytes": size, "rows": len(TITLED)}


@pytest.mark.parametrize(
    "question", ["title: cat AND (", '"cat mat', "cat* OR -sat^9", "cat\\", "\ud800cat \x00"]
)
def test_query_syntax_in_a_question_is_only_words(tmp_path, connection, name, question):
    _, index = load(tmp_path, connection, name)
    words = "".join(c if c.isalnum() else " " for c in question.replace("\ud800", " "))
    assert index.search([question], topk=5) == index.search([words], topk=5) != [[]]


def test_a_question_without_a_word_warns_and_is_not_sent(tmp_path, connection, name):
    _, index = load(tmp_path, connection, name)
    with pytest.warns(UserWarning, match="'to be or not to be'"):
        results = index.search(["cat", "to be or not to be", "dog"], topk=2)
    assert [len(hits) for hits in results] == [2, 0, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert index.search([], topk=2) == []


def test_a_text_appears_once_however_often_the_corpus_has_it(tmp_path, connection, name):
    passages = [(f"d{i}", "cat cat cat", "") for i in range(300)]
    passages += [("last", "the cat sat down", ""), ("other", "a dog", "")]
    _, index = load(tmp_path, connection, name, passages)
    few, many = index.search(["dog", "cat"], topk=2)
    assert (ids(few), ids(many)) == (["other"], ["d0", "last"])


def test_ties_come_in_the_order_of_the_corpus_and_many_questions_in_theirs(
    tmp_path, connection, name, monkeypatch
):
    monkeypatch.setattr(elastic_load, "ROWS_PER_REQUEST", 50)
    passages = [(f"p{i}", f"cat number{i}", "") for i in range(400)]
    _, index = load(tmp_path, connection, name, passages, threads=3, shards=2)
    questions = [f"number{i} cat" for i in reversed(range(250))]  # three requests
    for number, hits in zip(reversed(range(250)), index.search(questions, topk=3), strict=True):
        first = [f"p{i}" for i in range(4) if i != number]
        assert ids(hits) == [f"p{number}", *first[:2]]


def test_an_index_of_the_original_software_is_used_as_it_is(tmp_path, connection, name):
    text = {"type": "text", "analyzer": "english"}
    with connected(connection) as client:
        client.indices.create(index=name, mappings={"properties": {"title": text, "txt": text}})
        source = {"title": "Cats", "txt": "The cat sat"}
        operations = [{"index": {"_index": name, "_id": "7"}}, source]
        client.bulk(operations=operations, refresh=True)
        client.indices.refresh(index=name)
    index = ElasticsearchIndex(connection, name)
    [[hit]] = index.search(["a cat"], topk=3)
    assert (hit["id"], hit["title"], hit["text"]) == ("7", "Cats", "The cat sat")
    assert index.identity == {"indices": [name]}


@pytest.mark.parametrize("topk", [0, 10_001])
def test_a_topk_out_of_range_is_refused(tmp_path, connection, name, topk):
    _, index = load(tmp_path, connection, name)
    with pytest.raises(InputError, match=f"topk is {topk}"):
        index.search(["cat"], topk)


def test_a_missing_index_and_one_of_other_fields_are_told_with_the_command(connection, name):
    command = f"prep_elastic.py --engine elasticsearch --data_path CORPUS.tsv --index_name {name}"
    with pytest.raises(InputError, match=command):
        ElasticsearchIndex(connection, name)
    with connected(connection) as client:
        client.indices.create(index=name, mappings={"properties": {"txt": {"type": "keyword"}}})
    with pytest.raises(InputError, match=f"title and txt.*{command} --overwrite"):
        ElasticsearchIndex(connection, name)


@fake_only
def test_a_failed_search_names_its_question_and_the_reason(tmp_path, fake, connection, name):
    _, index = load(tmp_path, connection, name)
    long = "cat " * 600
    with pytest.raises(InputError, match=r"question 'cat cat .*\.\.\.': too_many_.*shorten it$"):
        index.search(["dog", long], topk=1)
    answers = {"dog": failed_search("circuit_breaking_exception", "Data too large", 500)}
    fake.search_fault = answers.get
    with pytest.raises(InputError, match="'dog': circuit_breaking_exception: Data too large"):
        index.search(["cat", "dog"], topk=1)
    # one of two shards: Elasticsearch gives what the other one has, with status 200
    shards = {"total": 2, "successful": 1, "failed": 1}
    shards["failures"] = [{"shard": 1, "reason": {"type": "io", "reason": "disk gone"}}]
    partial = {"_shards": shards, "timed_out": False, "hits": {"hits": []}, "status": 200}
    fake.search_fault = {"dog": partial}.get
    with pytest.raises(InputError, match="'dog': io: disk gone"):
        index.search(["dog"], topk=1)


@fake_only
def test_a_search_that_is_rejected_is_tried_again(tmp_path, fake, connection, name):
    _, index = load(tmp_path, connection, name)
    expected = index.search(["dog"], topk=1)
    tries = []

    def reject(question):
        tries.append(question)
        if len(tries) < 4:
            return failed_search("es_rejected_execution_exception", "queue full", 429)
        return None

    fake.search_fault = reject
    assert index.search(["dog"], topk=1) == expected
    whole = [error_body(429, "circuit_breaking_exception", "too much") for _ in range(3)]
    fake.faults = [lambda _, path, __: whole.pop() if whole and "_msearch" in path else None]
    assert index.search(["dog"], topk=1) == expected
    assert not whole


# Connection


def flags_of(*words):
    parser = argparse.ArgumentParser()
    add_elasticsearch_flags(parser)
    return parser.parse_args(words)


def run_script(*words, root, **environment):
    variables = {k: v for k, v in os.environ.items() if not k.startswith("ELASTICSEARCH_")}
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "prep_elastic.py"), *map(str, words)],
        env=variables | {"PRAG_ROOT": str(root)} | environment,
        capture_output=True,
        text=True,
    )


def test_an_unreachable_server_gives_one_sentence(tmp_path):
    corpus = write_corpus(tmp_path / "corpus.tsv", TITLED)
    result = run_script(
        *("--engine", "elasticsearch", "--data_path", corpus, "--index_name", "demo"),
        root=tmp_path,
        ELASTICSEARCH_URL=f"http://elastic:{SECRET}@127.0.0.1:9",
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert "http://127.0.0.1:9 cannot be reached" in result.stderr
    assert "start it" in result.stderr and "--engine embedded" in result.stderr
    assert SECRET not in result.stderr


@fake_only
@pytest.mark.parametrize("way", ["flags", "variables", "url", "key"])
def test_secrets_sign_in_and_are_never_printed(tmp_path, way):
    corpus = write_corpus(tmp_path / "corpus.tsv", TITLED)
    words = ["--engine", "elasticsearch", "--data_path", corpus, "--index_name", "demo"]
    wrong = SECRET + "-wrong"

    def settings(url, secret):
        port = url.rpartition(":")[2]
        return {
            "flags": (["--es_url", url, "--es_user", "me", "--es_password", secret], {}),
            "variables": (
                ["--es_url", url],
                {"ELASTICSEARCH_USER": "me", "ELASTICSEARCH_PASSWORD": secret},
            ),
            "url": (["--es_url", f"http://me:{secret}@127.0.0.1:{port}"], {}),
            "key": (["--es_url", url], {"ELASTICSEARCH_API_KEY": secret}),
        }[way]

    sign_in = {"api_key": SECRET} if way == "key" else {"user": "me", "password": SECRET}
    with FakeElasticsearch(**sign_in) as fake:
        for secret, code, message in (
            (wrong, 1, "refuses the credentials"),
            (SECRET, 0, "6 rows indexed (elasticsearch)"),
        ):
            more, variables = settings(fake.url, secret)
            result = run_script(*words, *more, root=tmp_path, **variables)
            output = result.stdout + result.stderr
            assert result.returncode == code and message in output, output
            assert SECRET not in output and "Traceback" not in output
        [stored] = fake.indices.values()
        assert SECRET not in json.dumps([stored.mappings, stored.settings, stored.documents])


@pytest.mark.parametrize(
    ("words", "variables", "message"),
    [
        (["--es_user", "me"], {}, "user is given without its password"),
        (["--es_password", SECRET], {}, "password is given without its user"),
        (["--es_api_key", SECRET, "--es_user", "me"], {}, "API key and a user"),
        ([], {"API_KEY": SECRET, "USER": "me", "PASSWORD": SECRET}, "API key and a user"),
        (
            ["--es_url", f"http://me:{SECRET}@h:1", "--es_user", "me"],
            {},
            "in the Elasticsearch URL",
        ),
        (["--es_url", "localhost:9200"], {}, "URL localhost:9200 is not usable"),
        (["--es_url", f"me:{SECRET}@localhost:9200"], {}, r"URL \.\.\.@localhost:9200 is not"),
        (["--es_url", f"ftp://me:{SECRET}@localhost:9200"], {}, "is not usable"),
        (["--es_url", f"http://me:1/{SECRET}@localhost:9200"], {}, "as %XX"),
        (["--es_url", f"http://me:12#{SECRET}@localhost:9200"], {}, "as %XX"),
        (["--es_url", f"http://me:{SECRET}/@localhost:x"], {}, "is not usable"),
        (["--es_url", "https://h", "--es_ca_file", "no.pem"], {}, r"no\.pem does not exist"),
        (["--es_url", "http://h", "--es_ca_file", __file__], {}, "uses no certificate"),
        (["--es_timeout", "0"], {}, "--es_timeout 0.0"),
        (["--es_timeout", "nan"], {}, "--es_timeout nan"),
        (["--es_api_key", f"{SECRET}\nx"], {}, "has characters that no key has"),
    ],
)
def test_settings_that_cannot_work_are_refused_without_their_secrets(
    monkeypatch, words, variables, message
):
    for key in ("URL", "USER", "PASSWORD", "API_KEY"):
        monkeypatch.delenv(f"ELASTICSEARCH_{key}", raising=False)
    for key, value in variables.items():
        monkeypatch.setenv(f"ELASTICSEARCH_{key}", value)
    with pytest.raises(InputError, match=message) as caught:
        connection_of(flags_of(*words))
    assert SECRET not in str(caught.value)


@fake_only
def test_flags_go_before_variables_and_the_url_gives_up_its_password(monkeypatch):
    assert connection_of(flags_of()) == Connection()
    monkeypatch.setenv("ELASTICSEARCH_URL", "https://me:p%40ss@[::1]/es/")
    connection = connection_of(flags_of())
    assert connection == Connection("https://[::1]:443/es", "me", "p@ss")
    assert "p@ss" not in repr(connection)
    monkeypatch.setenv("ELASTICSEARCH_URL", "http://h:1")
    monkeypatch.setenv("ELASTICSEARCH_API_KEY", "key\n")
    assert connection_of(flags_of()) == Connection("http://h:1", api_key="key")
    monkeypatch.setenv("ELASTICSEARCH_PASSWORD", "secret")
    words = ["--es_url", "http://i:2", "--es_user", "me", "--es_timeout", "5"]
    assert connection_of(flags_of(*words)) == Connection("http://i:2", "me", "secret", timeout=5.0)


def test_help_shows_no_secret(monkeypatch, capsys):
    for key in ("USER", "PASSWORD", "API_KEY"):
        monkeypatch.setenv(f"ELASTICSEARCH_{key}", SECRET)
    monkeypatch.setenv("ELASTICSEARCH_URL", f"http://me:{SECRET}@localhost:9200")
    with pytest.raises(SystemExit):
        flags_of("--help")
    assert SECRET not in capsys.readouterr().out


@fake_only
def test_other_servers_and_slow_ones_give_one_sentence(fake, connection):
    fake.product_header = False
    with pytest.raises(InputError, match="is no Elasticsearch 8 server"):
        ElasticsearchIndex(connection, "wiki")
    fake.product_header = True
    fake.faults = [lambda *_: time.sleep(0.5)]
    with pytest.raises(InputError, match=r"no answer within 0\.1 s.*--es_timeout"):
        ElasticsearchIndex(replace(connection, timeout=0.1), "wiki")
    fake.faults = [lambda *_: error_body(403, "security_exception", "action is unauthorized")]
    with pytest.raises(InputError, match=r"rights \(security_exception.*--es_api_key"):
        ElasticsearchIndex(connection, "wiki")
    with pytest.raises(InputError, match=r"no secure connection.*http://"):
        ElasticsearchIndex(replace(connection, url="https" + connection.url[4:]), "wiki")


@fake_only
def test_the_fake_refuses_the_headers_of_another_major_version(fake, connection):
    with connected(connection) as client:
        for value, status in (("compatible-with=9", 400), ("compatible-with=8", 200)):
            accept = f"application/vnd.elasticsearch+json; {value}"
            answer = client.options(ignore_status=400).perform_request(
                "GET", "/", headers={"accept": accept}
            )
            assert answer.meta.status == status


def test_nothing_of_the_client_is_imported_before_it_is_needed():
    code = (
        "import sys; sys.path.insert(0, 'src'); import utils.retrieval.elasticsearch, "
        "utils.retrieval.elasticsearch_load; "
        "print([m for m in sys.modules if m.startswith('elastic') or m == 'urllib3'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.stdout == "[]\n", result.stderr
