"""BM25 retrieval by an Elasticsearch 8 server, where one machine is not enough.

The ranking is that of the embedded engine: fields `title` and `txt` with the `english` analyzer,
BM25 (k1 = 1.2, b = 0.75), a passage's better field plus half of the other, statistics over all
shards. Elasticsearch 8 keeps BM25's constant factor k1 + 1 = 2.2, which Lucene itself has dropped,
so that its scores equal the embedded engine's.

Nothing here connects, nor is the client imported, before an index is loaded or opened.
"""

import argparse
import logging
import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from utils.retrieval.english import english_terms
from utils.running import InputError

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

DEFAULT_URL = "http://localhost:9200"
FIELDS = ["title", "txt"]
STAMP_LENGTH = 21  # `-` and the time that `load_index` puts behind an index name
SEARCHES_PER_REQUEST = 100
LARGEST_RESULT = 10_000  # index.max_result_window
BUSY = (429, 502, 503, 504)  # statuses that are worth a later try
MAX_RETRIES = 8
FIRST_WAIT = 0.5  # seconds, doubled with every further try
LONGEST_WAIT = 20.0


# ------------------------------------------------------------------------------------------------
# Connection


@dataclass(frozen=True)
class Connection:
    """Where the server is, without credentials in `url`, and how to sign in; timeout in seconds."""

    url: str = DEFAULT_URL
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    timeout: float = 60.0


def add_elasticsearch_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """`--es_url`, `--es_user`, `--es_password`, `--es_api_key`, `--es_ca_file`, `--es_timeout`."""
    group = parser.add_argument_group("Elasticsearch (with --engine elasticsearch)")
    group.add_argument("--es_url", help=f"server (not set: $ELASTICSEARCH_URL, else {DEFAULT_URL})")
    group.add_argument("--es_user", help="user to sign in as (not set: $ELASTICSEARCH_USER)")
    group.add_argument(
        "--es_password",
        help="the user's password; the variable keeps it out of the process list "
        "(not set: $ELASTICSEARCH_PASSWORD)",
    )
    group.add_argument(
        "--es_api_key", help="encoded key instead of a user (not set: $ELASTICSEARCH_API_KEY)"
    )
    group.add_argument(
        "--es_ca_file",
        help="PEM file of the authority that signed an https server's certificate "
        "(not set: the system's authorities)",
    )
    group.add_argument(
        "--es_timeout", type=float, default=60.0, help="seconds to wait for an answer"
    )
    return group


def connection_of(options: argparse.Namespace) -> Connection:
    """The connection that the flags of `add_elasticsearch_flags` and the environment describe.

    A flag goes before its variable; where any credential is a flag or part of the URL, the
    variables only complete it. Raises `InputError` for settings that contradict each other or
    cannot work; no message holds a password or key.
    """
    flag = {
        "user": options.es_user,
        "password": options.es_password,
        "api_key": options.es_api_key,
    }
    variable = {name: os.environ.get(f"ELASTICSEARCH_{name.upper()}") for name in flag}
    url = options.es_url or os.environ.get("ELASTICSEARCH_URL") or DEFAULT_URL
    url, in_url = _split_url(url.strip())
    if in_url and any(flag.values()):
        raise InputError(
            "credentials stand in the Elasticsearch URL and in --es_ flags too; use one of both"
        )
    found = in_url or flag
    if not any(found.values()):
        found = variable
    elif not found["api_key"]:
        found = {name: found[name] or variable[name] for name in ("user", "password")}
    user, password, api_key = (found.get(name) or None for name in flag)
    if api_key and (user or password):
        raise InputError(
            "an Elasticsearch API key and a user or password are both given (flags --es_... or "
            "variables ELASTICSEARCH_...); leave one of them away"
        )
    if bool(user) != bool(password):
        given, missing = ("user", "password") if user else ("password", "user")
        raise InputError(
            f"an Elasticsearch {given} is given without its {missing}; set --es_{missing} or "
            f"ELASTICSEARCH_{missing.upper()}"
        )
    if api_key and not re.fullmatch(r"[!-~]+", api_key := api_key.strip()):
        raise InputError(
            "the Elasticsearch API key has characters that no key has; use its encoded form"
        )
    ca_file = options.es_ca_file
    if ca_file and not Path(ca_file).is_file():
        raise InputError(f"--es_ca_file {ca_file} does not exist; give the server's CA as PEM file")
    if ca_file and not url.startswith("https:"):
        raise InputError(
            f"--es_ca_file is given, but {url} uses no certificate; write https:// in --es_url"
        )
    timeout = options.es_timeout
    if not 0 < timeout < float("inf"):
        raise InputError(f"--es_timeout {timeout} is not a number of seconds above 0")
    return Connection(url, user, password, api_key, Path(ca_file) if ca_file else None, timeout)


def _split_url(url: str) -> tuple[str, dict[str, str | None] | None]:
    """`url` with its port and without credentials, and the credentials that stood in it."""
    before, _, shown = url.rpartition("@")  # what stands before the last @ may be a password
    problem = InputError(
        f"the Elasticsearch URL {'...@' if before else ''}{shown} is not usable; it must read "
        "http://HOST:PORT or https://HOST:PORT, special characters of a password as %XX"
    )
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        host = parts.hostname
    except ValueError:
        raise problem from None
    if (
        parts.scheme not in ("http", "https")
        or not port
        or not host
        or "@" in parts.path
        or parts.query
        or parts.fragment
    ):
        raise problem
    host = f"[{host}]" if ":" in host else host
    credentials = None
    if "@" in parts.netloc:
        credentials = {"user": parts.username, "password": parts.password, "api_key": None}
        credentials = {name: value and unquote(value) for name, value in credentials.items()}
    return f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}", credentials


@contextmanager
def connected(connection: Connection, threads: int = 1) -> Iterator["Elasticsearch"]:
    """A client; what it raises inside the block becomes an `InputError` with the remedy."""
    import elasticsearch

    where = f"Elasticsearch at {connection.url}"
    # A failure that matters is raised; the libraries would also log each try with a traceback.
    for name in ("elastic_transport", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    settings: dict[str, Any] = {}
    if connection.api_key:
        settings["api_key"] = connection.api_key
    elif connection.user:
        settings["basic_auth"] = (connection.user, connection.password)
    if connection.ca_file:
        settings["ca_certs"] = str(connection.ca_file)
    try:
        client = elasticsearch.Elasticsearch(
            connection.url,
            request_timeout=connection.timeout,
            retry_on_timeout=True,
            retry_on_status=(),  # those are tried again here, with a pause
            connections_per_node=threads,
            **settings,
        )
    except OSError as error:
        raise InputError(
            f"--es_ca_file {connection.ca_file} cannot be used ({error}); give a PEM file"
        ) from None
    try:
        with client:
            yield client
    except elasticsearch.ConnectionTimeout:
        raise InputError(
            f"{where} gave no answer within {connection.timeout:g} s; see whether it is "
            "overloaded, raise --es_timeout, or use --engine embedded"
        ) from None
    except elasticsearch.SSLError as error:
        remedy = "write http:// in --es_url if the server does not use TLS"
        if connection.ca_file or "CERTIFICATE" in _cause(error).upper():
            remedy = "give the authority that signed the server's certificate with --es_ca_file"
        raise InputError(f"no secure connection to {where} ({_cause(error)}); {remedy}") from None
    except elasticsearch.ConnectionError as error:
        raise InputError(
            f"{where} cannot be reached ({_cause(error)}); start it, correct --es_url, or "
            "use --engine embedded, which needs no server"
        ) from None
    except (elasticsearch.UnsupportedProductError, elasticsearch.TransportError):
        # anything that is no answer of an Elasticsearch server
        raise InputError(f"{where} is no Elasticsearch 8 server; correct --es_url") from None
    except elasticsearch.ApiError as error:
        if error.status_code in (401, 403):
            remedy = "correct --es_user and --es_password, or --es_api_key, or their variables"
            cause = f"refuses the credentials or their rights ({reason_of(error.body)})"
        elif error.status_code in BUSY:
            cause, remedy = f"is too busy ({reason_of(error.body)})", "try again later"
        else:
            cause = f"answered with status {error.status_code}: {reason_of(error.body)}"
            remedy = "the server must be version 8 (or 9), see its log"
        raise InputError(f"{where} {cause}; {remedy}") from None


def reason_of(error: Any) -> str:
    """The most specific reason in an error as Elasticsearch words it."""
    if isinstance(error, dict) and "error" in error:
        return reason_of(error["error"])
    if not isinstance(error, dict):
        return _short(str(error or "no reason given"))
    shards = error.get("failed_shards") or [{}]
    inner = error.get("caused_by") or shards[0].get("reason")
    return reason_of(inner) if inner else _short(f"{error.get('type')}: {error.get('reason')}")


def _cause(error: Exception) -> str:
    """What the network said; the client's own words are only `Connection error`."""
    return _short(str(error.__cause__ or error).rpartition("Caused by ")[2].rpartition(": ")[2])


def _short(text: str, length: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[:length] + "..."


def check_name(index_name: str) -> None:
    """Refuse what Elasticsearch does not allow as a name, or would read as several names."""
    forbidden = set('\\/*?"<>|,#: ')
    if (
        not index_name
        or index_name[0] in "-_+."
        or index_name != index_name.lower()
        or len(index_name.encode("utf-8", "replace")) > 255 - STAMP_LENGTH
        or any(c in forbidden or not c.isprintable() for c in index_name)
    ):
        raise InputError(
            f"{_short(index_name, 60)!r} cannot be the name of an Elasticsearch index; use "
            "lower-case letters, digits, '-', '_' and '.', a letter or digit first, at most "
            f"{255 - STAMP_LENGTH} bytes"
        )


def indices_of(client: "Elasticsearch", name: str) -> dict[str, dict]:
    """The indices behind `name` (an index, an alias or a pattern), with aliases and mappings."""
    return dict(client.indices.get(index=name, ignore_unavailable=True))


# ------------------------------------------------------------------------------------------------
# Searching


class ElasticsearchIndex:
    """An index or alias on an Elasticsearch server, with the text fields `title` and `txt`."""

    def __init__(self, connection: Connection, index_name: str) -> None:
        """Check that the server answers and has the index.

        Raises `InputError` where it does not, with the remedy.
        """
        check_name(index_name)
        self._connection = connection
        self._name = index_name
        command = (
            "python prep_elastic.py --engine elasticsearch --data_path CORPUS.tsv "
            f"--index_name {index_name}"
        )
        with connected(connection) as client:
            present = indices_of(client.options(max_retries=0), index_name)
        if not present:
            raise InputError(
                f"Elasticsearch at {connection.url} has no index {index_name!r}; load it with: "
                f"{command}"
            )
        for name, index in present.items():
            properties = index["mappings"].get("properties", {})
            if any(properties.get(known, {}).get("type") != "text" for known in FIELDS):
                raise InputError(
                    f"the Elasticsearch index {name!r} has not the text fields title and txt; use "
                    f"another --index_name, or load it again with: {command} --overwrite"
                )
        made_of = [index["mappings"].get("_meta", {}) for index in present.values()]
        known = {key: made_of[0].get(key) for key in ("source", "bytes", "rows")}
        # An index that this program did not load has no such record; its own name must do.
        self.identity = known if all(known.values()) else {"indices": sorted(present)}

    def search(self, questions: list[str], topk: int) -> list[list[dict]]:
        """The `topk` best passages of each question, in the order of `questions`.

        A hit is `{"id": str, "title": str, "text": str, "score": float}`. Hits come best first,
        equal scores in the corpus's order; of passages with the same text only the first is kept.
        There are fewer than `topk` hits where fewer passages share a word with the question (or
        where the best 10,000 are duplicates), and none, with a warning, where the question has no
        word at all.

        Raises `InputError` where `topk` is less than 1 or above 10,000, and where a search fails.
        """
        if not 1 <= topk <= LARGEST_RESULT:
            raise InputError(f"topk is {topk}; a search gives 1 to {LARGEST_RESULT} passages")
        results: list[list[dict]] = [[] for _ in questions]
        waiting = []
        for number, question in enumerate(questions):
            if english_terms(question):
                waiting.append(number)
            else:
                warnings.warn(
                    f"the question {question!r} has no word to search for: no passage is found",
                    stacklevel=2,
                )
        size = min(2 * topk + 10, LARGEST_RESULT)
        while waiting:
            short = []
            with connected(self._connection) as client:
                for start in range(0, len(waiting), SEARCHES_PER_REQUEST):
                    batch = waiting[start : start + SEARCHES_PER_REQUEST]
                    found = self._ask(client, [questions[number] for number in batch], size)
                    for number, hits in zip(batch, found, strict=True):
                        different: dict[str, dict] = {}
                        for hit in hits:
                            different.setdefault(hit["text"], hit)
                        results[number] = list(different.values())[:topk]
                        if len(different) < topk and len(hits) == size < LARGEST_RESULT:
                            short.append(number)  # duplicates left gaps
            waiting, size = short, min(4 * size, LARGEST_RESULT)
        return results

    def _ask(self, client: "Elasticsearch", questions: list[str], size: int) -> list[list[dict]]:
        """The first `size` hits of each question, in one request."""
        from elasticsearch import ApiError

        searches: list[dict] = []
        for question in questions:
            searches += [{}, _search_body(question, size)]
        for attempt in range(MAX_RETRIES + 1):
            last = attempt == MAX_RETRIES
            try:
                answers = client.msearch(
                    searches=searches, index=self._name, search_type="dfs_query_then_fetch"
                )["responses"]
                if last or all(answer.get("status") not in BUSY for answer in answers):
                    break
            except ApiError as error:
                if last or error.status_code not in BUSY:
                    raise
            except (AttributeError, KeyError, TypeError):
                raise InputError(
                    f"Elasticsearch at {self._connection.url} gave no answer to a search, but "
                    "something else; see its log, or that of a proxy before it"
                ) from None
            time.sleep(min(FIRST_WAIT * 2**attempt, LONGEST_WAIT))
        return [_hits(question, a) for question, a in zip(questions, answers, strict=True)]


def _search_body(question: str, size: int) -> dict:
    # JSON can carry half a surrogate pair, which cannot be sent.
    text = question.encode("utf-8", "replace").decode("utf-8")
    match = {"query": text, "type": "best_fields", "fields": FIELDS, "tie_breaker": 0.5}
    # The published PRAG software made indices without `row`: there ties stay as they come.
    in_order = {"row": {"order": "asc", "unmapped_type": "integer"}}
    return {
        "query": {"multi_match": match},
        "size": size,
        "sort": [{"_score": "desc"}, in_order],
        "track_total_hits": False,
        "_source": FIELDS,
    }


def _hits(question: str, answer: dict) -> list[dict]:
    """The hits of one search; refused where it failed as a whole or on some of the shards."""
    error = answer.get("error")
    if not error and answer["_shards"]["failed"]:
        error = {"failed_shards": answer["_shards"].get("failures")}
    if not error and answer["timed_out"]:
        error = "it took too long and was stopped"
    if error:
        reason = reason_of(error)
        remedy = "shorten it" if "clause" in reason else "see the server's log"
        raise InputError(
            f"Elasticsearch failed at the question {_short(question, 200)!r}: {reason}; {remedy}"
        )
    return [
        {
            "id": hit["_id"],
            "title": hit["_source"].get("title") or "",
            "text": hit["_source"].get("txt") or "",
            "score": hit["sort"][0],
        }
        for hit in answer["hits"]["hits"]
    ]
