"""Load a corpus into an Elasticsearch 8 server, for the engine of `utils.retrieval.elasticsearch`.

A load is whole or nothing: rows go into an index of its own, and only when all of them are counted
does the alias that searches use move to it.
"""

import re
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from utils.files import relative
from utils.retrieval.corpus import read_corpus
from utils.retrieval.elasticsearch import (
    BUSY,
    FIELDS,
    FIRST_WAIT,
    LONGEST_WAIT,
    MAX_RETRIES,
    STAMP_LENGTH,
    Connection,
    check_name,
    connected,
    indices_of,
    reason_of,
)
from utils.running import InputError

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

MADE_BY = "prep_elastic.py of the Parametric RAG toolkit"
SIMILARITY = {"type": "BM25", "k1": 1.2, "b": 0.75}
MAPPINGS = {
    "dynamic": "strict",
    "properties": {name: {"type": "text", "analyzer": "english"} for name in FIELDS}
    | {"row": {"type": "integer", "index": False}},  # the corpus's order, by which ties are settled
}
ROWS_PER_REQUEST = 2000  # of 100 words each: about 1.5 MB
BYTES_PER_REQUEST = 10_000_000
LONGEST_ID = 512  # bytes; a longer one makes Elasticsearch refuse all rows of its request
REFUSED_ROWS = 100  # so many end the loading
SHOWN = 3


def load_index(
    corpus: Path,
    connection: Connection,
    index_name: str,
    shards: int = 1,
    threads: int = 4,
    overwrite: bool = False,
) -> int:
    """Load the passages of `corpus` (see `read_corpus`) into the server; the number of rows.

    Rows go into a new index `{index_name}-{time}`. When it is complete and counted, the alias
    `{index_name}` moves to it in one step, and what it replaces is removed. An interrupted load
    leaves at most an index without alias, which the next load names, or removes with `overwrite`.
    `threads` requests are under way at a time.

    Raises `InputError` where `index_name` exists and `overwrite` is off, where the corpus is bad,
    and where Elasticsearch cannot be reached or does not take a row.
    """
    corpus = Path(corpus)
    check_name(index_name)
    for flag, value in (("--number_of_shards", shards), ("--threads", threads)):
        if value < 1:
            raise InputError(f"{flag} is {value}; use 1 or more")
    if not corpus.is_file():
        raise InputError(
            f"the corpus {relative(corpus)} does not exist; give a TSV or .tsv.gz file"
        )
    with connected(connection, threads) as client:
        present = indices_of(client.options(max_retries=0), index_name)
        _refuse_present(present, index_name, overwrite)
        _clear_leftovers(client, index_name, overwrite)
        index = _concrete_name(index_name)
        meta = {"made_by": MADE_BY, "source": corpus.name, "bytes": corpus.stat().st_size}
        client.indices.create(
            index=index,
            mappings={**MAPPINGS, "_meta": meta},
            settings={
                "number_of_shards": shards,
                "number_of_replicas": 0,
                "refresh_interval": "-1",
                "similarity": {"default": SIMILARITY},
            },
        )
        try:
            rows, repeated = _send_rows(client, corpus, index, threads)
            # A second copy as soon as there is a second machine; the server's default of 1 would
            # leave a cluster of one machine without the green status for ever.
            settings = {"refresh_interval": None, "auto_expand_replicas": "0-1"}
            client.indices.put_settings(index=index, settings={"index": settings})
            patient = client.options(request_timeout=max(600.0, connection.timeout))
            patient.indices.refresh(index=index)
            counted = client.count(index=index)["count"]
            if counted != rows:
                such = f", such as {', '.join(map(repr, repeated))}" if repeated else ""
                raise InputError(
                    f"the corpus {relative(corpus)} has {rows} rows, but Elasticsearch counts "
                    f"{counted}: {max(0, rows - counted)} rows repeat the id of another{such}; "
                    "give each row an id of its own"
                )
            client.indices.put_mapping(index=index, meta={**meta, "rows": rows})
            present = indices_of(client, index_name)  # it may have changed in the meantime
            _refuse_present(present, index_name, overwrite)
        except BaseException:
            with suppress(Exception):
                client.options(max_retries=0).indices.delete(index=index)
            raise
        _publish(client, index_name, index, present)
    return rows


def _concrete_name(index_name: str) -> str:
    return f"{index_name}-{datetime.now(UTC):%Y%m%d%H%M%S%f}"


def _is_ours(index: dict) -> bool:
    return index["mappings"].get("_meta", {}).get("made_by") == MADE_BY


def _refuse_present(present: dict[str, dict], index_name: str, overwrite: bool) -> None:
    if present and not overwrite:
        raise InputError(
            f"Elasticsearch has an index {index_name!r} already; use it as it is, or load it again "
            "with --overwrite"
        )


def _clear_leftovers(client: "Elasticsearch", index_name: str, overwrite: bool) -> None:
    """Name what interrupted loads of `index_name` left behind; with `overwrite` remove it."""
    for name, index in indices_of(client, f"{index_name}-*").items():
        own_name = re.fullmatch(re.escape(index_name) + rf"-\d{{{STAMP_LENGTH - 1}}}", name)
        if own_name and _is_ours(index) and not index["aliases"]:
            if overwrite:
                client.indices.delete(index=name, ignore_unavailable=True)
            print(
                f"the index {name} of an interrupted load "
                + ("is removed" if overwrite else "takes up space; --overwrite removes it")
            )


def _publish(
    client: "Elasticsearch", index_name: str, index: str, present: dict[str, dict]
) -> None:
    """Let the alias `index_name` mean `index` from now on, in place of `present`.

    An index behind the alias that this program did not make, or that has other aliases too, stays
    and only loses this alias.
    """
    actions: list[dict] = [{"add": {"index": index, "alias": index_name}}]
    for name, old in present.items():
        if name == index_name or (_is_ours(old) and set(old["aliases"]) == {index_name}):
            actions.append({"remove_index": {"index": name}})
        else:
            actions.append({"remove": {"index": name, "alias": index_name}})
    # Once only: sent again after a lost answer, it would miss the indices that it has removed.
    client.options(max_retries=0).indices.update_aliases(actions=actions)


class _Actions:
    """The rows of a corpus as bulk actions, handed out one by one to several threads."""

    def __init__(self, corpus: Path, index: str) -> None:
        self._passages = read_corpus(corpus)
        self._index = index
        self._lock = threading.Lock()
        self.rows = 0
        self.stopped = False

    def __iter__(self) -> "_Actions":
        return self

    def __next__(self) -> dict:
        with self._lock:
            if self.stopped:
                raise StopIteration
            passage_id, text, title = next(self._passages)
            row = self.rows
            self.rows += 1
        if len(passage_id.encode()) > LONGEST_ID:
            raise InputError(
                f"row {row + 1} of the corpus has the id {passage_id[:40]!r}..., longer than the "
                f"{LONGEST_ID} bytes that Elasticsearch takes; shorten it"
            )
        source = {"title": title, "txt": text, "row": row}
        return {"_op_type": "index", "_index": self._index, "_id": passage_id, "_source": source}

    def close(self) -> None:
        self._passages.close()


def _send_rows(
    client: "Elasticsearch", corpus: Path, index: str, threads: int
) -> tuple[int, list[str]]:
    """Send all rows, `threads` requests at a time; their number, and some ids that came twice."""
    from elasticsearch.helpers import streaming_bulk

    actions = _Actions(corpus, index)
    refused: list[str] = []
    repeated: list[str] = []

    def send() -> None:
        # The helper tries rejected rows and rejected requests again, with pauses; parallel_bulk,
        # its sister, does not.
        for ok, item in streaming_bulk(
            client,
            actions,
            chunk_size=ROWS_PER_REQUEST,
            max_chunk_bytes=BYTES_PER_REQUEST,
            retry_on_status=BUSY,
            max_retries=MAX_RETRIES,
            initial_backoff=FIRST_WAIT,
            max_backoff=LONGEST_WAIT,
            raise_on_error=False,
            raise_on_exception=False,
        ):
            outcome = item["index"]
            if not ok:
                error = outcome.get("exception")
                reason = reason_of(error.body if error else outcome["error"])
                refused.append(f"{outcome['_id']!r}: {reason}")
                actions.stopped = actions.stopped or len(refused) >= REFUSED_ROWS
            elif outcome["result"] == "updated" and len(repeated) < SHOWN:
                repeated.append(outcome["_id"])

    with ThreadPoolExecutor(threads) as pool:
        try:
            for sender in as_completed([pool.submit(send) for _ in range(threads)]):
                sender.result()
        except BaseException:
            actions.stopped = True
            raise
    actions.close()
    if refused:
        raise InputError(
            f"Elasticsearch refused {len(refused)} of the first {actions.rows} rows of "
            f"{relative(corpus)}, so that no index is made: {'; '.join(refused[:SHOWN])}; correct "
            "these rows, or use fewer --threads where it was too busy"
        )
    return actions.rows, repeated
