"""Fixtures of the Elasticsearch tests, a pytest plugin: a server and an index name on it."""

import argparse
import os
import time

import pytest
from fake_elasticsearch import FakeElasticsearch

from utils.retrieval import elasticsearch as elastic
from utils.retrieval import elasticsearch_load as elastic_load
from utils.retrieval.elasticsearch import Connection, connected, connection_of

REAL_URL = os.environ.get("ELASTICSEARCH_URL")


@pytest.fixture
def own_environment(monkeypatch):
    if not REAL_URL:
        for name in ("URL", "USER", "PASSWORD", "API_KEY"):
            monkeypatch.delenv(f"ELASTICSEARCH_{name}", raising=False)
    for module in (elastic, elastic_load):  # waits of milliseconds, but just as many
        monkeypatch.setattr(module, "FIRST_WAIT", 0.001)
        monkeypatch.setattr(module, "LONGEST_WAIT", 0.004)


@pytest.fixture
def fake():
    with FakeElasticsearch() as server:
        yield server


@pytest.fixture
def connection(request):
    """A connection to the real server where there is one, else to the test's `fake`."""
    if REAL_URL:
        return connection_of(argparse.Namespace())
    return Connection(request.getfixturevalue("fake").url, timeout=10)


@pytest.fixture
def name(connection):
    """An index name of this test alone; nothing of it stays on the server."""
    own = f"prag-test-{os.getpid()}-{time.time_ns()}"
    yield own
    with connected(connection) as client:
        for index in client.indices.get(index=f"{own}*"):
            client.indices.delete(index=index)
