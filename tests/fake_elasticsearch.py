"""A fake Elasticsearch 8: real HTTP, what the engine needs, textbook BM25, faults on demand."""

import fnmatch
import math
from collections import Counter
from urllib.parse import parse_qs, unquote, urlsplit

from fake_server import FakeServer

from utils.retrieval.english import english_terms

DONE = 200, {"acknowledged": True}


def error_body(status, kind, reason):
    cause = {"type": kind, "reason": reason}
    return status, {"error": {"root_cause": [cause], **cause}, "status": status}


class Index:
    def __init__(self, body):
        self.mappings = body.get("mappings", {})
        self.settings = body.get("settings", {})
        self.aliases = {}
        self.documents = {}  # id -> source
        self.searchable = {}  # what the last refresh made visible


class FakeElasticsearch(FakeServer):
    def __init__(self, authorization=None):
        self.indices = {}
        self.fault = lambda path, body: None  # -> None, (status, body) or "drop"
        self.item_fault = lambda document_id: None  # -> None or (status, type, reason)
        self.authorization = authorization  # the header that every request needs
        kind = "application/vnd.elasticsearch+json;compatible-with=8"
        self.headers = {"X-Elastic-Product": "Elasticsearch", "Content-Type": kind}
        super().__init__()

    def respond(self, request, body):
        parts = urlsplit(request.path)
        path = [unquote(part) for part in parts.path.strip("/").split("/") if part]
        with self.lock:
            if self.authorization not in (None, request.headers.get("Authorization")):
                return error_body(401, "security_exception", "unable to authenticate")
            fault = self.fault(path[-1], body)
            return fault or self.answer(request.command, path, parse_qs(parts.query), body)

    def answer(self, method, path, flags, body):
        content = body[0] if body else {}
        if path == ["_bulk"]:
            return self.bulk(zip(body[::2], body[1::2], strict=True))
        if path == ["_aliases"]:
            return self.change_aliases(content["actions"])
        if len(path) == 1 and method == "PUT":
            self.indices[path[0]] = Index(content)
            return DONE
        found = {n: i for n, i in self.indices.items() if fnmatch.filter([n, *i.aliases], path[0])}
        if len(path) == 1 and method == "GET":
            keys = ("aliases", "mappings", "settings")
            return 200, {n: {k: getattr(i, k) for k in keys} for n, i in found.items()}
        if path[1:2] == ["_alias"]:
            self.indices[path[0]].aliases[path[2]] = {}
            return DONE
        if len(path) == 1 and method == "DELETE":
            del self.indices[path[0]]
            return DONE
        if path[1] == "_search":
            assert "query" not in content or flags["search_type"] == ["dfs_query_then_fetch"]
            assert flags["allow_partial_search_results"] == ["false"]
            return 200, {"took": 1, "hits": {"hits": self.search(found, content)}}
        [index] = found.values()
        if path[1] == "_count":
            return 200, {"count": len(index.searchable)}
        if path[1] == "_settings":
            index.settings |= content["index"]
        elif path[1] == "_mapping":
            index.mappings |= content
        else:
            assert path[1] == "_refresh"
            index.searchable = dict(index.documents)
        return DONE

    def change_aliases(self, actions):
        for kind, target in (pair for action in actions for pair in action.items()):
            if kind == "add":
                self.indices[target["index"]].aliases[target["alias"]] = {}
            elif kind == "remove":
                del self.indices[target["index"]].aliases[target["alias"]]
            else:
                del self.indices[target["index"]]
        return DONE

    def bulk(self, pairs):
        items = []
        for action, source in pairs:
            item = dict(action["index"], status=201)
            if fault := self.item_fault(item["_id"]):
                status, kind, reason = fault
                item |= {"status": status, "error": {"type": kind, "reason": reason}}
            else:  # an index that does not exist is made on the way
                index = self.indices.setdefault(item["_index"], Index({}))
                index.documents[item["_id"]] = source
            items.append({"index": item})
        return 200, {"errors": any("error" in item["index"] for item in items), "items": items}

    def search(self, found, body):
        """The hits as Elasticsearch shows them; a document without a row counts as the last."""
        documents = {k: v for index in found.values() for k, v in index.searchable.items()}
        if "query" not in body:  # all of them, page by page
            assert body["sort"] == [{"row": "asc"}]
            [after] = body.get("search_after", [-1])
            rows = sorted((v["row"], k) for k, v in documents.items() if v["row"] > after)
            return [
                {"_id": key, "sort": [row], "_source": documents[key]}
                for row, key in rows[: body["size"]]
            ]
        match = body["query"]["multi_match"]
        assert match["type"] == "best_fields" and body["size"] <= 10_000
        terms = english_terms(match["query"])
        by_field = [bm25(terms, name, documents) for name in match["fields"]]
        hits = []
        for document_id, source in reversed(documents.items()):
            *others, best = sorted(field[document_id] for field in by_field)
            if best > 0:
                score = round(best + match["tie_breaker"] * sum(others), 6)
                hits.append({"_id": document_id, "sort": [score, source.get("row", 2**31)]})
        assert "row" in body["sort"][1]
        hits = sorted(hits, key=lambda hit: (-hit["sort"][0], hit["sort"][1]))[: body["size"]]
        for hit in hits:
            hit["_source"] = {name: documents[hit["_id"]][name] for name in body["_source"]}
        return hits


def bm25(terms, name, documents):
    """id -> BM25 score of one field; as in Lucene, a document without the field does not count."""
    counts = {key: Counter(english_terms(s.get(name) or "")) for key, s in documents.items()}
    counts = {key: count for key, count in counts.items() if count}
    mean = sum(count.total() for count in counts.values()) / max(1, len(counts))
    scores = Counter()
    for term in terms:
        having = {key: count for key, count in counts.items() if term in count}
        idf = math.log(1 + (len(counts) - len(having) + 0.5) / (len(having) + 0.5))
        for key, count in having.items():
            tf, norm = count[term], 1.2 * (1 - 0.75 + 0.75 * count.total() / mean)
            scores[key] += idf * 2.2 * tf / (tf + norm)
    return scores
