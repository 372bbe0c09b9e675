"""Engine `elasticsearch`: BM25 by an Elasticsearch 8 server, with the embedded engine's scores.

A load is whole or nothing: rows go into a new index, and only when all of them are counted does the
alias that searches use move to it.
"""

import argparse
import logging
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from utils.arguments import positive_integer, positive_number
from utils.files import relative
from utils.retrieval.corpus import content_of, different_texts, read_corpus, worked_on
from utils.running import InputError

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

DEFAULT_URL = "http://localhost:9200"
CREDENTIALS = {
    "user": "user to sign in as",
    "password": "the user's password; the variable keeps it out of the process list",
    "api_key": "encoded key instead of a user",
}
REMEDY = (
    "start a server of version 8, or correct --es_url (http://HOST:PORT, special characters of a "
    "password as %XX), the credentials (--es_user, --es_password or --es_api_key) or --es_ca_file; "
    "if it is busy, try again later or raise --es_timeout; --engine embedded needs no server"
)
FIELDS = ["title", "txt"]
MADE_BY = {"made_by": "prep_elastic.py of the Parametric RAG toolkit"}
MAPPINGS = {
    "_meta": MADE_BY,
    "dynamic": "strict",
    "properties": {name: {"type": "text", "analyzer": "english"} for name in FIELDS}
    | {"row": {"type": "integer", "index": False}},  # the corpus's order, by which ties are settled
}
SETTINGS = {
    "number_of_replicas": 0,
    "refresh_interval": "-1",
    "similarity": {"default": {"type": "BM25", "k1": 1.2, "b": 0.75}},
}
SEARCHES = 4  # at the same time
LARGEST_RESULT = 10_000  # index.max_result_window
PAGE = 1000  # passages that are read at a time
# The bulk helper tries again what a busy server rejects; pauses in seconds
LOADING = {"chunk_size": 2000, "max_retries": 8, "initial_backoff": 0.5, "max_backoff": 20}


def add_flags(parser: argparse.ArgumentParser, building: bool) -> None:
    """The server's address and credentials; for `building` also shards and threads."""
    add = parser.add_argument_group("Elasticsearch (with --engine elasticsearch)").add_argument
    add("--es_url", help=f"server (not set: $ELASTICSEARCH_URL, else {DEFAULT_URL})")
    for name, meaning in CREDENTIALS.items():
        add(f"--es_{name}", help=f"{meaning} (not set: $ELASTICSEARCH_{name.upper()})")
    authority = "PEM file of the authority that signed an https server's certificate"
    add("--es_ca_file", help=f"{authority} (not set: the system's authorities)")
    add("--es_timeout", type=positive_number, default=60.0, help="seconds to wait for an answer")
    if building:
        shards = "parts of the index, which can be on several machines"
        add("--number_of_shards", type=positive_integer, default=1, help=shards)
        add("--threads", type=positive_integer, default=4, help="requests sent at the same time")


def _given(options: argparse.Namespace, name: str, default: str = "") -> str:
    """The flag, else its environment variable, else `default`."""
    variable = f"ELASTICSEARCH_{name.upper()}"
    return getattr(options, f"es_{name}") or os.environ.get(variable) or default


def shown_url(options: argparse.Namespace) -> str:
    """The server's URL without what is before its @, which may hold a password."""
    return re.sub(r"(https?://)?.*@", r"\1...@", _given(options, "url", DEFAULT_URL))


@contextmanager
def connected(options: argparse.Namespace, threads: int = 1) -> Iterator["Elasticsearch"]:
    """A client for `threads`; what it raises in the block becomes an `InputError` with a remedy."""
    import elasticsearch as library

    # The libraries would also log each try with a traceback.
    for name in ("elastic_transport", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    user, password, api_key = (_given(options, name) for name in CREDENTIALS)
    try:
        client = library.Elasticsearch(
            _given(options, "url", DEFAULT_URL),
            basic_auth=(user, password) if user or password else None,
            api_key="".join(api_key.split()) or None,
            ca_certs=options.es_ca_file,
            request_timeout=options.es_timeout,
            retry_on_timeout=True,
            connections_per_node=threads,
        )
    except ValueError:  # its words may hold a password
        raise InputError(f"the settings of Elasticsearch cannot be used; {REMEDY}") from None
    try:
        with client:
            yield client
    except (library.TransportError, library.ApiError, UnicodeEncodeError) as error:
        cause = shorten(str(error.__cause__ or error), 300)  # below it is the network's own error
        where = f"Elasticsearch at {shown_url(options)}"
        raise InputError(f"{where} cannot be used ({cause}); {REMEDY}") from None


def _indices(client: "Elasticsearch", name: str) -> dict[str, dict]:
    """The indices behind `name` (an index or an alias), with aliases and mappings."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name):  # or it would mean several indices
        allowed = "a-z, 0-9, '-', '_' and '.', a letter or digit first"
        raise InputError(f"{name!r} cannot be the name of an Elasticsearch index; use {allowed}")
    return client.indices.get(index=name, ignore_unavailable=True).body


class ElasticsearchIndex:
    """An index or alias on a server, with the text fields `title` and `txt`."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Raises `InputError` if the server does not have the index `options.index_name`."""
        self._options = options
        with connected(options) as client:
            present = _indices(client.options(max_retries=0), options.index_name)
        properties = [index["mappings"].get("properties", {}) for index in present.values()]
        if not properties or any(name not in of_one for of_one in properties for name in FIELDS):
            raise InputError(
                f"Elasticsearch at {shown_url(options)} has no index {options.index_name!r} with "
                "the text fields title and txt; load one with: python prep_elastic.py --engine "
                f"elasticsearch --data_path CORPUS.tsv --index_name {options.index_name}"
            )
        made_of = next(iter(present.values()))["mappings"].get("_meta", {})
        known = {key: made_of.get(key) for key in ("source", "bytes", "rows")}
        # An index that this program did not load has no such record.
        self.identity = known if all(known.values()) else {"indices": sorted(present)}

    def search(self, questions: list[str], topk: int) -> list[list[dict]]:
        """See `PassageIndex.search`; raises `InputError` if a search fails on any shard. Only a
        question's best 10,000 passages are seen, which matters if they repeat few texts."""
        with connected(self._options, SEARCHES) as client, ThreadPoolExecutor(SEARCHES) as pool:
            return list(pool.map(lambda question: self._best(client, question, topk), questions))

    def passages(self) -> Iterator[dict]:
        """See `PassageIndex.passages`; an index that another program made has no order."""
        if "rows" not in self.identity:
            raise InputError(
                f"the index {self._options.index_name} was not loaded by this program, so its "
                "passages have no order; load its corpus with prep_elastic.py"
            )
        after: list[int] = []
        while True:
            with connected(self._options) as client:
                answer = client.search(
                    index=self._options.index_name,
                    size=PAGE,
                    sort=[{"row": "asc"}],
                    search_after=after or None,
                    source=FIELDS,
                    allow_partial_search_results=False,
                    track_total_hits=False,
                )
            hits = answer["hits"]["hits"]
            for hit in hits:
                yield _passage(hit)
            if len(hits) < PAGE:
                return
            after = hits[-1]["sort"]

    def _best(self, client: "Elasticsearch", question: str, topk: int) -> list[dict]:
        from utils.retrieval.english import question_terms

        if not question_terms(question):
            return []
        size = min(2 * topk + 10, LARGEST_RESULT)
        while True:
            hits = self._ask(client, question, size)
            best = different_texts(hits, topk)
            if len(best) == topk or len(hits) < size or size == LARGEST_RESULT:
                return best
            size = min(4 * size, LARGEST_RESULT)

    def _ask(self, client: "Elasticsearch", question: str, size: int) -> list[dict]:
        """The first `size` hits; texts may be repeated."""
        text = question.encode("utf-8", "replace").decode("utf-8")  # half a pair cannot be sent
        match = {"query": text, "type": "best_fields", "fields": FIELDS, "tie_breaker": 0.5}
        answer = client.search(
            index=self._options.index_name,
            query={"multi_match": match},
            size=size,
            # An index of the published PRAG software has no `row`: there ties stay as they come.
            sort=[{"_score": "desc"}, {"row": {"order": "asc", "unmapped_type": "integer"}}],
            source=FIELDS,
            search_type="dfs_query_then_fetch",
            allow_partial_search_results=False,
            track_total_hits=False,
        )
        return [_passage(hit) | {"score": hit["sort"][0]} for hit in answer["hits"]["hits"]]


def _passage(hit: dict) -> dict:
    """The id, title and text of a hit."""
    source = hit["_source"]
    texts = {"title": source.get("title") or "", "text": source.get("txt") or ""}
    return {"id": hit["_id"], **texts}


open_index = ElasticsearchIndex


def build(corpus: Path, options: argparse.Namespace) -> tuple[int, str]:
    """Load `corpus` into a new index `{index_name}-{time}`; (number of rows, the server's URL).
    0 rows: an index of this corpus has the name already, and `--overwrite` is off.

    Then the alias `{index_name}` moves to it in one step, and what it replaces is removed. A load
    that fails removes its index; a killed one leaves it, without the alias.
    """
    index = f"{options.index_name}-{datetime.now(UTC):%Y%m%d%H%M%S%f}"
    settings = SETTINGS | {"number_of_shards": options.number_of_shards}
    with connected(options, options.threads) as client:
        present = _indices(client.options(max_retries=0), options.index_name).values()
        content = content_of(corpus)
        same = [one["mappings"].get("_meta", {}).get("content") == content for one in present]
        if any(same) and all(same) and not options.overwrite:
            return 0, shown_url(options)
        _replaced(client, options)
        client.indices.create(index=index, mappings=MAPPINGS, settings=settings)
        try:
            rows = _send_rows(client, corpus, index, options.threads)
            made_of = {"source": corpus.name, "bytes": corpus.stat().st_size, "rows": rows}
            made_of["content"] = content  # an index that an older version loaded has none
            client.indices.put_mapping(index=index, meta=MADE_BY | made_of)
            old = _replaced(client, options)  # another load may have ended meanwhile
        except BaseException:
            with suppress(Exception):
                client.indices.delete(index=index)
            raise
        _publish(client, options.index_name, index, old)
    return rows, shown_url(options)


def _replaced(client: "Elasticsearch", options: argparse.Namespace) -> dict[str, dict]:
    """The indices that have the name already. Raises `InputError` if `--overwrite` is off."""
    present = _indices(client, options.index_name)
    if present and not options.overwrite:
        raise InputError(
            f"Elasticsearch has an index {options.index_name!r} already, of another corpus or of "
            "an older version; use it, or give --overwrite"
        )
    return present


def _send_rows(client: "Elasticsearch", corpus: Path, index: str, threads: int) -> int:
    """Send all rows, `threads` requests at a time, and make them searchable; their number."""
    from elasticsearch.helpers import bulk

    sent, send = 0, partial(bulk, client, raise_on_error=False, **LOADING)
    rows = (
        {"_index": index, "_id": passage_id, "title": title, "txt": text, "row": row}
        for row, (passage_id, text, title) in enumerate(read_corpus(corpus))
    )
    with ThreadPoolExecutor(threads) as pool:
        for block, (_, refused) in worked_on(rows, send, pool, LOADING["chunk_size"], threads):
            sent += len(block)
            if refused:
                first = refused[0]["index"]
                raise InputError(
                    f"Elasticsearch refused {len(refused)} of the first {sent} rows (id "
                    f"{first['_id']!r} and so on: {first['error']!s:.300}); correct them in "
                    f"{relative(corpus)}, or use fewer --threads if it was too busy"
                )
    # A second copy once there is a second machine: with 1, one machine alone is never green.
    settings = {"refresh_interval": None, "auto_expand_replicas": "0-1"}
    client.indices.put_settings(index=index, settings={"index": settings})
    client.options(request_timeout=600).indices.refresh(index=index)
    if (counted := client.count(index=index)["count"]) != sent:
        raise InputError(
            f"the corpus has {sent} rows, but Elasticsearch counts {counted}; give each its own id"
        )
    return sent


def _publish(client: "Elasticsearch", alias: str, index: str, old: dict[str, dict]) -> None:
    """Let `alias` mean `index`; of `old`, what is not ours or has other aliases only loses it."""
    actions: list[dict] = [{"add": {"index": index, "alias": alias}}]
    for name, replaced in old.items():
        ours = MADE_BY.items() <= replaced["mappings"].get("_meta", {}).items()
        if name == alias or (ours and set(replaced["aliases"]) <= {alias}):
            actions.append({"remove_index": {"index": name}})
        else:
            actions.append({"remove": {"index": name, "alias": alias}})
    # Once only: sent again after a lost answer, it would miss the indices that it has removed.
    client.options(max_retries=0).indices.update_aliases(actions=actions)
