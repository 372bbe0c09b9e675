"""An Elasticsearch that fails in the middle of a search; the rest is in test_elastic(_load).py."""

import socket
import threading
from dataclasses import replace

import pytest
from fake_elasticsearch import error_body
from test_retrieval import PASSAGES, write_corpus

from utils.retrieval.elasticsearch import Connection, ElasticsearchIndex
from utils.retrieval.elasticsearch_load import load_index
from utils.running import InputError

pytest_plugins = ["elastic_fixtures"]


@pytest.fixture
def searchable(own_environment, fake, tmp_path):
    connection = Connection(fake.url, timeout=5)
    load_index(write_corpus(tmp_path / "corpus.tsv", PASSAGES), connection, "wiki")
    return ElasticsearchIndex(connection, "wiki")


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (429, "es_rejected_execution_exception", r"is too busy .*; try again later"),
        (503, "unavailable_shards_exception", r"is too busy .*; try again later"),
        (500, "null_pointer_exception", r"status 500: null_pointer_exception.*see its log"),
    ],
)
def test_a_server_that_stays_busy_or_fails_is_one_sentence(searchable, fake, status, kind, message):
    tries = []

    def fault(method, path, body):
        tries.append(path)
        return error_body(status, kind, "no")

    fake.faults = [fault]
    with pytest.raises(InputError, match=message):
        searchable.search(["cat"], 1)
    assert len(tries) == (1 if status == 500 else 9)


def test_a_server_that_stops_answering_is_one_sentence(searchable, fake):
    index = searchable
    index._connection = replace(index._connection, timeout=0.1)
    release = threading.Event()
    fake.faults = [lambda *_: release.wait(3) and None]
    try:
        with pytest.raises(InputError, match=r"no answer within 0\.1 s.*--es_timeout"):
            index.search(["cat"], 1)
    finally:
        release.set()


@pytest.mark.parametrize("sent", ["half a body", "half a header", "no JSON", "no object"])
def test_half_an_answer_is_one_sentence(searchable, sent):
    """A server that closes the connection in the middle, or a proxy that answers for it."""
    head = (
        "HTTP/1.1 200 OK\r\nX-Elastic-Product: Elasticsearch\r\n"
        "Content-Type: application/vnd.elasticsearch+json;compatible-with=8\r\n"
    )
    answers = {
        "half a body": head + 'Content-Length: 900\r\n\r\n{"responses": [{"took',
        "half a header": head[:60],
        "no JSON": head + "Content-Length: 6\r\n\r\n<html>",
        "no object": head + "Content-Length: 2\r\n\r\n[]",
    }
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.recv(100_000)
                connection.sendall(answers[sent].encode())

    threading.Thread(target=serve, daemon=True).start()
    index = searchable
    index._connection = Connection(f"http://127.0.0.1:{server.getsockname()[1]}", timeout=5)
    try:
        with pytest.raises(InputError, match=r"^Elasticsearch at http://127.*; "):
            index.search(["cat"], 1)
    finally:
        server.close()
