"""A fake Elasticsearch 8 for tests: real HTTP, real error shapes, everything kept in memory.

It speaks what the Elasticsearch engine needs, checks the headers as 8.x does, and
fails on demand. Its ranking is textbook BM25 over `english_terms`, written here once more.
"""

import base64
import json
import math
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from fake_server import QuietServer

from utils.retrieval.english import english_terms

MEDIA_TYPE = re.compile(
    r"application/(?:vnd\.elasticsearch\+(?:json|x-ndjson); ?compatible-with=(\d+)|json|x-ndjson)"
)
MAX_CLAUSES = 1024


def error_body(status, kind, reason, **more):
    cause = {"type": kind, "reason": reason, **more}
    return status, {"error": {"root_cause": [cause], **cause}, "status": status}


class Index:
    def __init__(self, body):
        self.mappings = body.get("mappings", {})
        self.settings = body.get("settings", {})
        self.aliases = {}
        self.documents = {}  # id -> source
        self.searchable = {}  # what the last refresh made visible
        self.counts = {}

    def refresh(self):
        self.searchable = dict(self.documents)
        self.counts = {  # field -> id -> how often it has each term
            name: {
                document_id: Counter(english_terms(source.get(name) or ""))
                for document_id, source in self.searchable.items()
            }
            for name in self.mappings.get("properties", {})
            if name != "row"
        }


class FakeElasticsearch:
    """`with FakeElasticsearch() as fake:` serves at `fake.url`; faults are set as attributes."""

    def __init__(self, user=None, password=None, api_key=None):
        self.indices = {}
        self.requests = []  # (method, path)
        self.lock = threading.Lock()
        self.faults = []  # callables (method, path, body) -> None, (status, body) or "drop"
        self.item_fault = lambda document_id, source: None  # -> None or (status, type, reason)
        self.search_fault = lambda question: None  # -> None or an answer of _msearch
        self.product_header = True
        self.credentials = None
        if user:
            token = base64.b64encode(f"{user}:{password}".encode()).decode()
            self.credentials = f"Basic {token}"
        elif api_key:
            self.credentials = f"ApiKey {api_key}"

    def __enter__(self):
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = lambda self: fake.serve(self)

            def log_message(self, *_):
                pass

        self.server = QuietServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    # HTTP

    def serve(self, handler):
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        parts = urlsplit(handler.path)
        path = [unquote(part) for part in parts.path.strip("/").split("/") if part]
        flags = {key: values[0] for key, values in parse_qs(parts.query).items()}
        with self.lock:
            self.requests.append((handler.command, parts.path))
            answer = self.refusal(handler, body, path)
            for fault in self.faults:
                answer = answer or fault(handler.command, parts.path, body)
            answer = answer or self.answer(handler.command, path, flags, body)
        if answer == "drop":
            handler.close_connection = True
            handler.connection.shutdown(2)
            return
        status, content = answer
        data = json.dumps(content).encode()
        handler.send_response(status)
        if self.product_header:
            handler.send_header("X-Elastic-Product", "Elasticsearch")
        if status == 401:
            handler.send_header("WWW-Authenticate", 'Basic realm="security", ApiKey')
        handler.send_header("Content-Type", "application/vnd.elasticsearch+json;compatible-with=8")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(data)

    def refusal(self, handler, body, path):
        """The answer to a request with headers that 8.x does not take, or wrong credentials."""
        if self.credentials and handler.headers.get("Authorization") != self.credentials:
            reason = "unable to authenticate user for REST request"
            return error_body(401, "security_exception", reason)
        for header in ("Accept", "Content-Type"):
            value = handler.headers.get(header)
            if value is None:
                if header == "Content-Type" and body:
                    return 406, {"error": "Content-Type header is missing", "status": 406}
                continue
            match = MEDIA_TYPE.match(value)
            if not match:
                status = 415 if header == "Content-Type" else 406
                return status, {"error": f"{header} [{value}] is not supported", "status": status}
            if match[1] and int(match[1]) not in (7, 8):
                reason = (
                    f"{header} version must be either version 8 or 7, but found {match[1]}. "
                    f"{header}={value}"
                )
                return error_body(400, "media_type_header_exception", reason)
        lines = path[-1:] in (["_bulk"], ["_msearch"])
        if lines and "x-ndjson" not in handler.headers.get("Content-Type", ""):
            return 406, {"error": "Content-Type header is not supported", "status": 406}
        return None

    def answer(self, method, path, flags, body):
        if lines := path[-1:] in (["_bulk"], ["_msearch"]):
            if not body.endswith(b"\n"):
                reason = "The bulk request must be terminated by a newline [\\n]"
                return error_body(400, "illegal_argument_exception", reason)
            content = [json.loads(line) for line in body.splitlines()]
        else:
            content = json.loads(body) if body else {}
        if not path:
            return 200, {"version": {"number": "8.19.3"}, "tagline": "You Know, for Search"}
        if path == ["_bulk"]:
            return self.bulk(content)
        if path == ["_aliases"]:
            return self.change_aliases(content["actions"])
        if len(path) == 1 and method == "PUT":
            return self.create(path[0], content)
        found = self.named(path[0])
        lenient = flags.get("ignore_unavailable") == "true" or "*" in path[0]
        if not found and not lenient:
            reason = f"no such index [{path[0]}]"
            return error_body(404, "index_not_found_exception", reason, index=path[0])
        if lines:
            pairs = zip(content[::2], content[1::2], strict=True)
            answers = [self.search(found, body, flags) for _, body in pairs]
            return 200, {"took": 1, "responses": answers}
        match (method, *path[1:]):
            case ("GET" | "HEAD",):
                keys = ("aliases", "mappings", "settings")
                return 200, {n: {k: getattr(i, k) for k in keys} for n, i in found.items()}
            case ("DELETE",):
                for name in found:
                    del self.indices[name]
            case ("PUT", "_settings"):
                for index in found.values():
                    index.settings |= content["index"]
            case ("PUT", "_mapping"):
                for index in found.values():
                    index.mappings |= content
            case ("POST", "_refresh"):
                for index in found.values():
                    index.refresh()
            case ("POST" | "GET", "_count"):
                return 200, {"count": sum(len(i.searchable) for i in found.values())}
            case _:
                reason = f"no handler found for uri [{'/'.join(path)}] and method [{method}]"
                return 400, {"error": reason, "status": 400}
        return 200, {"acknowledged": True}

    def named(self, name):
        """The indices that `name` means: an index, an alias or a pattern."""
        pattern = re.compile(".*".join(map(re.escape, name.split("*"))))
        return {
            index_name: index
            for index_name, index in self.indices.items()
            if pattern.fullmatch(index_name) or any(map(pattern.fullmatch, index.aliases))
        }

    def create(self, name, content):
        if self.named(name):
            reason = f"index [{name}] already exists"
            return error_body(400, "resource_already_exists_exception", reason)
        if name != name.lower() or name[0] in "-_+" or set(name) & set('\\/*?"<>| ,#:'):
            return error_body(400, "invalid_index_name_exception", f"Invalid index name [{name}]")
        self.indices[name] = Index(content)
        return 200, {"acknowledged": True, "shards_acknowledged": True, "index": name}

    def change_aliases(self, actions):
        """All actions or none, as one change of the cluster's state."""
        for action in actions:
            [(kind, target)] = action.items()
            if target["index"] not in self.indices:
                reason = f"no such index [{target['index']}]"
                return error_body(404, "index_not_found_exception", reason)
        removed = {a["remove_index"]["index"] for a in actions if "remove_index" in a}
        for action in actions:
            [(kind, target)] = action.items()
            if kind == "add" and target["alias"] in set(self.indices) - removed:
                reason = f"an index exists with the same name as the alias [{target['alias']}]"
                return error_body(400, "invalid_alias_name_exception", reason)
        for action in actions:
            [(kind, target)] = action.items()
            if kind == "add":
                self.indices[target["index"]].aliases[target["alias"]] = {}
            elif kind == "remove":
                del self.indices[target["index"]].aliases[target["alias"]]
            else:
                del self.indices[target["index"]]
        return 200, {"acknowledged": True}

    def bulk(self, content):
        items = []
        for action, source in zip(content[::2], content[1::2], strict=True):
            [(operation, target)] = action.items()
            assert operation == "index"
            item = {"_index": target["_index"], "_id": target["_id"]}
            # As the real server does, an index that does not exist is made on the way.
            index = self.indices.setdefault(target["_index"], Index({}))
            fault = self.item_fault(target["_id"], source) or self.strictness(index, source)
            if fault:
                status, kind, reason = fault
                item |= {"status": status, "error": {"type": kind, "reason": reason}}
            else:
                again = target["_id"] in index.documents
                index.documents[target["_id"]] = source
                item |= {
                    "result": "updated" if again else "created",
                    "status": 200 if again else 201,
                }
            items.append({"index": item})
        errors = any("error" in item["index"] for item in items)
        return 200, {"took": 1, "errors": errors, "items": items}

    @staticmethod
    def strictness(index, source):
        known = index.mappings.get("properties", {})
        for name, value in source.items():
            if name not in known and index.mappings.get("dynamic") == "strict":
                reason = (
                    f"[1:1] mapping set to strict, dynamic introduction of [{name}] within [_doc] "
                    "is not allowed"
                )
                return 400, "strict_dynamic_mapping_exception", reason
            if known.get(name, {}).get("type") == "integer" and not isinstance(value, int):
                reason = f"failed to parse field [{name}] of type [integer]"
                return 400, "document_parsing_exception", reason
        return None

    # Search

    def search(self, found, body, flags):
        match = body["query"]["multi_match"]
        assert match["type"] == "best_fields"
        assert flags["search_type"] == "dfs_query_then_fetch"
        if body["size"] > 10_000:
            _, answer = error_body(400, "illegal_argument_exception", "Result window is too large")
            return answer
        if fault := self.search_fault(match["query"]):
            return fault
        terms = english_terms(match["query"])
        if len(terms) * len(match["fields"]) > MAX_CLAUSES:
            kind = "too_many_nested_clauses"
            reason = (
                f"Query contains too many nested clauses; maxClauseCount is set to {MAX_CLAUSES}"
            )
            return failed_search(kind, reason)
        documents = {k: v for index in found.values() for k, v in index.searchable.items()}
        by_field = [bm25(terms, name, found.values()) for name in match["fields"]]
        hits = []
        by_row = any("row" in order for order in body["sort"])
        for document_id, source in reversed(documents.items()):  # ties come in any order
            scores = sorted((field.get(document_id, 0.0) for field in by_field), reverse=True)
            if scores[0] > 0:
                score = scores[0] + match["tie_breaker"] * sum(scores[1:])
                row = source.get("row", 2**31 - 1) if by_row else 0
                hits.append((-round(score, 6), row, document_id, source))
        hits = sorted(hits, key=lambda hit: hit[:2])[: body["size"]]
        shown = [
            {
                "_id": document_id,
                "_score": None,
                "_source": {name: source[name] for name in body["_source"] if name in source},
                "sort": [-negative, row],
            }
            for negative, row, document_id, source in hits
        ]
        shards = {"total": 1, "successful": 1, "skipped": 0, "failed": 0}
        answer = {"took": 1, "timed_out": False, "_shards": shards, "status": 200}
        return answer | {"hits": {"max_score": None, "hits": shown}}


def failed_search(kind, reason, status=400):
    """An answer of `_msearch` as of a search that fails on every shard."""
    cause = {"type": kind, "reason": reason}
    shard = {"shard": 0, "index": "wiki", "node": "n", "reason": {**cause, "index": "wiki"}}
    error = {
        "root_cause": [cause],
        "type": "search_phase_execution_exception",
        "reason": "all shards failed",
        "phase": "dfs",
        "grouped": True,
        "failed_shards": [shard],
        "caused_by": cause,
    }
    return {"error": error, "status": status}


def bm25(terms, name, indices):
    """id -> BM25 score of one field; as in Lucene, a document without the field does not count."""
    counts = {
        document_id: count
        for index in indices
        for document_id, count in index.counts.get(name, {}).items()
        if count
    }
    if not counts:
        return {}
    mean = sum(count.total() for count in counts.values()) / len(counts)
    scores = Counter()
    for term in terms:
        having = {document_id: count for document_id, count in counts.items() if term in count}
        idf = math.log(1 + (len(counts) - len(having) + 0.5) / (len(having) + 0.5))
        for document_id, count in having.items():
            tf, norm = count[term], 1.2 * (1 - 0.75 + 0.75 * count.total() / mean)
            # Elasticsearch 8 keeps the factor 2.2 that Lucene has dropped.
            scores[document_id] += idf * 2.2 * tf / (tf + norm)
    return scores
