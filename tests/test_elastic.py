"""The Elasticsearch engine over real HTTP: a fake server, or a real one at $ELASTICSEARCH_URL."""

import argparse
import base64
import os
import time

import pytest
from fake_elasticsearch import FakeElasticsearch, error_body
from stage_runs import refused, run
from test_retrieval import PASSAGES, ids, index_of, rows_of, write_corpus

import prep_elastic
from utils.retrieval import elasticsearch as engine
from utils.retrieval.elasticsearch import ElasticsearchIndex, connected
from utils.running import InputError

REAL_URL = os.environ.get("ELASTICSEARCH_URL")
SECRET = "hunter2-nobody-may-see"
BUSY_ITEM = (429, "es_rejected_execution_exception", "rejected execution of primary operation")
fake_only = pytest.mark.skipif(bool(REAL_URL), reason="a real server does not fail on demand")


def flags_of(*words):
    parser = argparse.ArgumentParser()
    engine.add_flags(parser, building=True)
    return parser.parse_args(words)


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch):
    if not REAL_URL:
        for name in ("URL", "USER", "PASSWORD", "API_KEY"):
            monkeypatch.delenv(f"ELASTICSEARCH_{name}", raising=False)
    monkeypatch.setitem(engine.LOADING, "initial_backoff", 0.001)
    monkeypatch.setitem(engine.LOADING, "max_backoff", 0.004)


@pytest.fixture
def fake():
    with FakeElasticsearch() as server:
        yield server


@pytest.fixture
def options(request):
    """The flags of a load into an index of this test alone; nothing stays on the server."""
    options = flags_of()
    options.es_url = None if REAL_URL else request.getfixturevalue("fake").url
    options.index_name = f"prag-test-{os.getpid()}-{time.time_ns()}"
    options.overwrite = False
    yield options
    with connected(options) as client:
        for index in client.indices.get(index=f"{options.index_name}*"):
            client.indices.delete(index=index)


def load(tmp_path, options, passages=PASSAGES, **flags):
    vars(options).update(flags)
    rows, _ = engine.build(write_corpus(tmp_path / "corpus.tsv", passages), options)
    return rows, ElasticsearchIndex(options)


def indices(options, end="*"):
    with connected(options) as client:
        return dict(client.indices.get(index=options.index_name + end, ignore_unavailable=True))


def test_both_engines_rank_alike_with_the_same_scores(tmp_path, options):
    # Without empty titles: the embedded engine corrects for them only in a corpus of some size.
    questions = ["Which cats sat near London?", "the river, the dog park", "capital", "zebra"]
    questions += ["cat\\ (\ud800 \x00"]  # nothing in a question is syntax
    titled = [(passage_id, text, title or "Quote") for passage_id, text, title in PASSAGES]
    rows, index = load(tmp_path, options, titled, number_of_shards=3)
    size = (tmp_path / "corpus.tsv").stat().st_size
    assert index.identity == {"source": "corpus.tsv", "bytes": size, "rows": rows}
    expected = index_of(tmp_path, titled).search(questions, topk=5)
    found = index.search(questions, topk=5)
    assert [len(hits) for hits in found] == [5, 3, 1, 0, 3]
    for hits, others in zip(found, expected, strict=True):
        for hit, other in zip(hits, others, strict=True):
            assert hit == other | {"score": pytest.approx(other["score"], rel=1e-5)}
    with pytest.warns(UserWarning, match="'to be or not to be'"):
        assert index.search(["to be or not to be"], topk=2) == [[]]


def test_duplicates_are_left_out_and_ties_come_in_the_order_of_the_corpus(
    tmp_path, options, monkeypatch
):
    passages = [(f"d{i}", "cat cat cat", "") for i in range(300)]
    passages += [("last", "the cat sat down", ""), *((f"p{i}", f"dog n{i}", "") for i in range(50))]
    _, index = load(tmp_path, options, passages, threads=3, number_of_shards=2)
    monkeypatch.setattr(engine, "PAGE", 100)
    assert rows_of(index) == passages
    dogs, cats, other = index.search(["dog", "cat", "n7 dog"], topk=2)
    assert (ids(dogs), ids(cats), ids(other)) == (["p0", "p1"], ["d0", "last"], ["p7", "p0"])


def test_an_index_of_the_original_software_is_used_as_it_is(tmp_path, options):
    name, text = options.index_name, {"type": "text", "analyzer": "english"}
    message = f"has no index '{name}' with the text fields title and txt;.*--index_name {name}"
    refused(message, ElasticsearchIndex, options)
    source = {"title": "Cats", "txt": "The cat sat"}
    with connected(options) as client:
        client.indices.create(index=name, mappings={"properties": dict.fromkeys(source, text)})
        client.bulk(operations=[{"index": {"_index": name, "_id": "7"}}, source])
        client.indices.refresh(index=name)
    index = ElasticsearchIndex(options)
    [[hit]] = index.search(["a cat"], topk=3)
    assert (hit["id"], hit["title"], hit["text"]) == ("7", "Cats", "The cat sat")
    assert index.identity == {"indices": [name]}
    refused("was not loaded by this program, so its passages have no order", rows_of, index)
    load(tmp_path, options, overwrite=True)
    [found] = indices(options).values()
    assert list(found["aliases"]) == [name]


@pytest.mark.parametrize("words, message", [
    (["--es_api_key", SECRET, "--es_user", "me", "--es_password", SECRET], "settings of Elas"),
    (["--es_url", f"http://me:{SECRET}/@localhost:x"], "settings of Elas.*HOST:PORT.*as %XX"),
    (["--es_url", f"http://127.0.0.1:9/{SECRET}@localhost:9"], r"at http://\.\.\.@loc"),
    (["--es_url", "http://127.0.0.1:9", "--es_api_key", f"ä{SECRET}"], "127.* cannot be used"),
    (["--es_url", "https://127.0.0.1:9"], r"used \(HTTPS.* refused\); start .*embedded needs"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused_without_their_secrets(words, message):
    with pytest.raises(InputError, match=message) as caught, connected(flags_of(*words)) as client:
        client.options(max_retries=0).info()
    assert SECRET not in str(caught.value)


@fake_only
@pytest.mark.parametrize("way", ["user", "url", "api_key"])
def test_secrets_sign_in_and_are_never_printed(tmp_path, monkeypatch, capsys, way):
    encoded = base64.b64encode(f"me:{SECRET}".encode()).decode()
    corpus = str(write_corpus(tmp_path / "corpus.tsv", PASSAGES))
    command = ["--engine", "elasticsearch", "--index_name", "demo", "--data_path", corpus]
    with FakeElasticsearch(f"ApiKey {SECRET}" if way == "api_key" else f"Basic {encoded}") as fake:
        url = fake.url.replace("//", f"//me:{SECRET}@") if way == "url" else fake.url
        monkeypatch.setenv("ELASTICSEARCH_URL", url)
        if way != "url":
            monkeypatch.setenv("ELASTICSEARCH_USER", "me" if way == "user" else "")
            secret = "PASSWORD" if way == "user" else "API_KEY"
            monkeypatch.setenv(f"ELASTICSEARCH_{secret}", SECRET)
            wrong = [f"--es_{secret.lower()}", SECRET + "-wrong"]  # goes before the variable
            words = r"used \(Authent.*the credentials"
            assert SECRET not in refused(words, run, prep_elastic, *command, *wrong)
        run(prep_elastic, *command)
        run(prep_elastic, *command)  # as after a kill that came late
        shown = capsys.readouterr()
        place = fake.url.replace("//", "//...@") if way == "url" else fake.url
        assert f"6 rows indexed (elasticsearch) in {place} in" in shown.out
        assert f"of this corpus exists already in {place}\nnext: " in shown.out
        assert SECRET not in shown.out + shown.err


def test_a_bad_index_name_is_refused_before_anything_is_sent():
    options = flags_of("--es_url", "http://127.0.0.1:9")
    for options.index_name in ("", "Wiki", "-wiki", "_all", "wi*", "a,b", "a/b"):
        refused("cannot be the name of an Elasticsearch index", ElasticsearchIndex, options)


def test_the_index_is_as_described_and_overwrite_removes_only_our_own(tmp_path, options):
    load(tmp_path, options, number_of_shards=2)
    [(first, found)] = indices(options, "").items()
    assert first.startswith(f"{options.index_name}-")
    assert list(found["aliases"]) == [options.index_name]
    assert found["mappings"]["properties"]["txt"] == {"type": "text", "analyzer": "english"}
    settings = found["settings"].get("index", found["settings"])
    assert str(settings["number_of_shards"]) == "2" and settings["auto_expand_replicas"] == "0-1"
    other = [("z", "a zebra", "Zebra")]
    assert load(tmp_path, options)[0] == 0 and list(indices(options)) == [first]
    refused(f"'{options.index_name}' already.*--overwrite", load, tmp_path, options, other)
    notes, of_others = (f"{options.index_name}-{end}" for end in ("notes", "of-others"))
    with connected(options) as client:
        client.indices.create(index=notes, mappings={"_meta": engine.MADE_BY})
        client.indices.create(index=of_others)
        client.indices.put_alias(index=of_others, name=options.index_name)
        rows, index = load(tmp_path, options, other, overwrite=True)
        assert (rows, index.search(["cat"], topk=1)) == (1, [[]])
        [mine] = indices(options, "")
        assert sorted(indices(options)) == sorted([mine, notes, of_others])
        client.indices.put_alias(index=mine, name=f"{options.index_name}-prod")
    load(tmp_path, options)
    [newest] = indices(options, "")
    found = indices(options)
    assert sorted(found) == sorted([mine, newest, notes, of_others])
    assert not found[of_others]["aliases"]
    assert list(found[mine]["aliases"]) == [f"{options.index_name}-prod"]


def test_a_bad_corpus_and_an_interruption_leave_the_old_index(tmp_path, options, monkeypatch):
    _, index = load(tmp_path, options)
    before = list(indices(options))
    options.overwrite = True
    twice = [("1", "cat", ""), ("2", "dog", ""), ("1", "cow", "")]
    refused("has 3 rows, but .* counts 2.*its own id", load, tmp_path, options, twice)

    def interrupted(corpus):
        yield from ((str(i), f"w{i}", "") for i in range(2500))
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "read_corpus", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path, options, threads=2)
    assert list(indices(options)) == before
    assert ids(index.search(["England"], topk=1)[0]) == ["p5"]


@fake_only
def test_a_busy_server_is_asked_again_and_a_fault_is_named(tmp_path, fake, options, monkeypatch):
    monkeypatch.setitem(engine.LOADING, "chunk_size", 100)
    faults = ["drop", *[error_body(429, "rejected", "queue capacity")] * 5]
    fake.fault = lambda path, _: faults.pop() if path == "_bulk" and faults else None
    rejected = {str(number): BUSY_ITEM for number in range(0, 1000, 7)}
    fake.item_fault = lambda document_id: rejected.pop(document_id, None)
    passages = [(str(i), f"cat number{i}", "") for i in range(1000)]
    rows, index = load(tmp_path, options, passages, threads=3)
    assert (rows, faults, rejected) == (1000, [], {})
    faults += [error_body(429, "circuit_breaking_exception", "too much"), "drop"]
    fake.fault = lambda *_: faults.pop() if faults else None
    assert ids(index.search(["number994"], topk=2)[0]) == ["994"] and not faults
    failed = error_body(500, "search_phase_execution_exception", "disk gone")
    fake.fault = lambda path, body: failed if "dog" in str(body) else None
    refused(r"used \(.*500.*disk gone.*busy, try again later", index.search, ["cat", "dog"], topk=1)


@fake_only
def test_refused_rows_stop_the_load_and_the_first_is_named(tmp_path, fake, options):
    refusal = (400, "document_parsing_exception", "failed to parse field")
    passages = [(str(i), "cat", "") for i in range(20_000)]
    fake.item_fault = lambda document_id: refusal if int(document_id) % 100 == 5 else None
    words = r"20 of the first 2000 rows.* '5' .*document_pars.*to pa"
    refused(words, load, tmp_path, options, passages, threads=1)
    fake.item_fault = lambda *_: BUSY_ITEM
    refused(r"refused 6 .*es_rejected_execution_.* fewer --threads", load, tmp_path, options)
    assert fake.indices == {}
