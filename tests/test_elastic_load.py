"""Loading into Elasticsearch over real HTTP: a fake server, or a real one at $ELASTICSEARCH_URL."""

import pytest
from fake_elasticsearch import error_body
from test_elastic import TITLED, concrete, fake_only, load
from test_retrieval import ids, write_corpus

from utils import elastic_load
from utils.retrieval.elasticsearch import Connection, ElasticsearchIndex, connected
from utils.retrieval.elasticsearch_load import load_index
from utils.running import InputError

pytest_plugins = ["elastic_fixtures"]
pytestmark = pytest.mark.usefixtures("own_environment")
BUSY_ITEM = (429, "es_rejected_execution_exception", "rejected execution of primary operation")


def test_the_index_is_as_it_is_described(tmp_path, connection, name):
    load(tmp_path, connection, name, shards=2)
    [(index, found)] = concrete(connection, name).items()
    assert index.startswith(f"{name}-") and list(found["aliases"]) == [name]
    mappings = found["mappings"]
    assert mappings["dynamic"] == "strict"
    assert mappings["properties"]["txt"] == {"type": "text", "analyzer": "english"}
    assert mappings["properties"]["title"] == {"type": "text", "analyzer": "english"}
    assert (mappings["_meta"]["source"], mappings["_meta"]["rows"]) == ("corpus.tsv", 6)
    settings = found["settings"].get("index", found["settings"])
    assert str(settings["number_of_shards"]) == "2"
    assert settings.get("refresh_interval") is None
    assert settings["auto_expand_replicas"] == "0-1"
    assert {k: str(v) for k, v in settings["similarity"]["default"].items()} == {
        "type": "BM25",
        "k1": "1.2",
        "b": "0.75",
    }


def test_an_index_is_replaced_only_with_overwrite(tmp_path, connection, name):
    load(tmp_path, connection, name)
    [first] = concrete(connection, f"{name}*")
    other = [("z", "a zebra", "Zebra")]
    with pytest.raises(InputError, match=f"'{name}' already.*--overwrite"):
        load(tmp_path, connection, name, other)
    assert list(concrete(connection, f"{name}*")) == [first]
    rows, index = load(tmp_path, connection, name, other, overwrite=True)
    assert (rows, index.search(["cat"], topk=1)) == (1, [[]])
    [second] = concrete(connection, f"{name}*")
    assert second != first


def test_overwrite_replaces_a_plain_index_of_that_name(tmp_path, connection, name):
    with connected(connection) as client:
        client.indices.create(index=name)
    with pytest.raises(InputError, match="--overwrite"):
        load(tmp_path, connection, name)
    load(tmp_path, connection, name, overwrite=True)
    [(index, found)] = concrete(connection, f"{name}*").items()
    assert index.startswith(f"{name}-") and list(found["aliases"]) == [name]


def test_overwrite_only_removes_what_this_program_made(tmp_path, connection, name):
    foreign = f"{name}-foreign"
    with connected(connection) as client:
        client.indices.create(index=foreign, aliases={name: {}})
        client.indices.update_aliases(actions=[{"add": {"index": foreign, "alias": name}}])
    load(tmp_path, connection, name, overwrite=True)
    [mine] = concrete(connection, name)
    with connected(connection) as client:
        client.indices.update_aliases(actions=[{"add": {"index": mine, "alias": f"{name}-prod"}}])
    load(tmp_path, connection, name, overwrite=True)
    [newest] = concrete(connection, name)
    found = concrete(connection, f"{name}*")
    assert sorted(found) == sorted([foreign, mine, newest])
    assert not found[foreign]["aliases"] and list(found[mine]["aliases"]) == [f"{name}-prod"]


def interrupt(monkeypatch, after):
    read_corpus = elastic_load.read_corpus

    def interrupted(corpus):
        for count, row in enumerate(read_corpus(corpus)):
            if count == after:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr(elastic_load, "read_corpus", interrupted)


def test_an_interrupted_load_leaves_the_old_index_in_its_place(
    tmp_path, connection, name, monkeypatch
):
    _, index = load(tmp_path, connection, name)
    before = list(concrete(connection, f"{name}*"))
    interrupt(monkeypatch, after=2500)
    many = [(str(i), f"w{i}", "") for i in range(6000)]
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path, connection, name, many, overwrite=True, threads=2)
    assert list(concrete(connection, f"{name}*")) == before
    assert ids(index.search(["England"], topk=1)[0]) == ["p5"]


def test_what_a_killed_load_left_is_named_and_removed_with_overwrite(
    tmp_path, connection, name, capsys
):
    left, other = f"{name}-{'1' * 20}", f"{name}-notes"
    meta = {"_meta": {"made_by": elastic_load.MADE_BY}}
    with connected(connection) as client:
        client.indices.create(index=left, mappings=meta)
        client.indices.create(index=other, mappings=meta)
    load(tmp_path, connection, name)
    assert f"{left} of an interrupted load takes up space; --overwrite" in capsys.readouterr().out
    assert left in concrete(connection, f"{name}*")
    load(tmp_path, connection, name, overwrite=True)
    assert f"{left} of an interrupted load is removed" in capsys.readouterr().out
    [newest] = concrete(connection, name)
    assert sorted(concrete(connection, f"{name}*")) == sorted([newest, other])


def test_a_repeated_id_is_named_and_nothing_is_published(tmp_path, connection, name):
    passages = [*TITLED, ("p2", "another dog", "Dog")]
    with pytest.raises(InputError, match=r"has 7 rows, but Elasticsearch counts 6.*such as 'p2'"):
        load(tmp_path, connection, name, passages)
    assert concrete(connection, f"{name}*") == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id\ttext\ttitle\n1\tcat\tCat\n2\tdog\n", "line 3 .* has 2 columns"),
        (b"id\ttext\ttitle\n", "has no passage"),
        (b"id\ttext\ttitle\n" + b"i" * 513 + b"\tcat\tCat\n", "row 1 .* longer than the 512 bytes"),
    ],
)
def test_a_bad_corpus_leaves_nothing(tmp_path, connection, name, content, message):
    (tmp_path / "bad.tsv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_index(tmp_path / "bad.tsv", connection, name)
    assert concrete(connection, f"{name}*") == {}


@fake_only
def test_rejected_rows_requests_and_lost_connections_are_tried_again(
    tmp_path, fake, connection, name, monkeypatch
):
    monkeypatch.setattr(elastic_load, "ROWS_PER_REQUEST", 100)
    rejected, bulks = set(), []

    def reject_once(document_id, _):
        if int(document_id) % 7 == 0 and document_id not in rejected:
            rejected.add(document_id)
            return BUSY_ITEM
        return None

    def disturb(_, path, __):
        if path == "/_bulk":
            bulks.append(path)
            if len(bulks) % 5 == 1:
                return "drop"
            if len(bulks) % 5 == 3:
                return error_body(429, "es_rejected_execution_exception", "queue capacity")
        return None

    fake.item_fault, fake.faults = reject_once, [disturb]
    passages = [(str(i), f"cat number{i}", "") for i in range(1000)]
    rows, index = load(tmp_path, connection, name, passages, threads=3)
    assert rows == 1000 and len(rejected) == 143
    assert len(bulks) > 10 + 10 + 4  # ten requests, ten of their rejected rows, and the disturbed
    assert ids(index.search(["number999"], topk=2)[0]) == ["999"]


@fake_only
def test_refused_rows_are_counted_and_shown_and_stop_the_load(tmp_path, fake, connection, name):
    def refuse(document_id, _):
        if int(document_id) % 100 == 5:
            return 400, "document_parsing_exception", "failed to parse field"
        return None

    fake.item_fault = refuse
    passages = [(str(i), "cat", "") for i in range(1000)]
    with pytest.raises(InputError, match=r"refused 10 of the first 1000 rows") as caught:
        load(tmp_path, connection, name, passages, threads=1)
    assert "'5': document_parsing_exception: failed to parse field; '105': " in str(caught.value)
    assert fake.indices == {}
    fake.item_fault = lambda *_: None
    too_large = error_body(413, "content_too_long", "entity content is too long")
    fake.faults = [lambda _, path, __: too_large if path == "/_bulk" else None]
    with pytest.raises(InputError, match=r"refused 6 of .*: content_too_long: entity"):
        load(tmp_path, connection, name)
    fake.faults, fake.item_fault = [], lambda *_: BUSY_ITEM
    with pytest.raises(InputError, match=r"refused 6 .* es_rejected_execution_.* fewer --threads"):
        load(tmp_path, connection, name)


@fake_only
def test_a_load_that_cannot_succeed_does_not_read_the_corpus_to_its_end(
    tmp_path, fake, connection, name
):
    fake.item_fault = lambda *_: (400, "strict_dynamic_mapping_exception", "not allowed")
    passages = [(str(i), "cat", "") for i in range(20_000)]
    with pytest.raises(InputError, match="strict_dynamic_mapping_exception"):
        load(tmp_path, connection, name, passages, threads=2)
    assert sum(path == "/_bulk" for _, path in fake.requests) < 6


def test_the_mapping_takes_no_other_field(tmp_path, connection, name, monkeypatch):
    mappings = {**elastic_load.MAPPINGS, "properties": {"txt": {"type": "text"}}}
    monkeypatch.setattr(elastic_load, "MAPPINGS", mappings)
    with pytest.raises(InputError, match="strict_dynamic_mapping_exception"):
        load(tmp_path, connection, name)
    assert concrete(connection, f"{name}*") == {}


@pytest.mark.parametrize(
    "bad",
    ["", "Wiki", "-wiki", "_all", "+w", ".w", "wi*", "a,b", "a b", "a/b", "ä" * 128, "w#", "a\n"],
)
def test_a_bad_index_name_is_refused_before_anything_is_sent(tmp_path, bad):
    nowhere = Connection("http://127.0.0.1:9")
    corpus = write_corpus(tmp_path / "corpus.tsv", TITLED)
    for attempt in (
        lambda: load_index(corpus, nowhere, bad),
        lambda: ElasticsearchIndex(nowhere, bad),
    ):
        with pytest.raises(InputError, match="cannot be the name of an Elasticsearch index"):
            attempt()
