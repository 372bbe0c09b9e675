"""A server in the test's own process, and what it should say."""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvicorn
from conftest import use_root
from stage_runs import ALL, RESULTS

import serve
from utils.recipe import AT_ONCE
from utils.serving.app import new_app
from utils.serving.worker import Worker
from utils.session import Session

FLAGS = [*ALL, "--max_new_tokens", "12", "--index_name", "demo"]


def opened(root: Path, *more: str) -> Session:
    """The session of what is in `root`, its model loaded."""
    with pytest.MonkeyPatch.context() as patch:
        use_root(root, patch)
        options, recipe = serve.parse_arguments([*FLAGS, *more])
        own = Session(recipe, options)
        own.load()
        return own


@contextmanager
def server_of(session: Session, key: str | None = None) -> Iterator[SimpleNamespace]:
    """A server in a thread: its port, worker and session."""
    worker = Worker(session, 32)
    app = new_app(worker, "demo-model", 3, key, "127.0.0.1")
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    listening = serve.open_port("127.0.0.1", 0, None)
    listening.listen()  # the thread may begin later
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield SimpleNamespace(port=listening.getsockname()[1], worker=worker, session=session)
    server.should_exit = True
    thread.join()
    assert not worker.is_alive()


def send(port: int, body, path: str = "/v1/chat/completions", **headers) -> tuple[int, dict, dict]:
    """What the server says to a body (a JSON value, or bytes): status, value, headers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    given = {"Content-Type": "application/json"} | {
        k.replace("_", "-"): v for k, v in headers.items()
    }
    connection.request("GET" if body is None else "POST", path, data, given)
    reply = connection.getresponse()
    value = reply.read()
    is_json = reply.headers["Content-Type"] == "application/json"
    return reply.status, json.loads(value) if is_json else value, dict(reply.headers)


def question(text: str, **prag) -> dict:
    return {"messages": [{"role": "user", "content": text}], "prag": prag}


def expected(root) -> list[tuple[str, str, list[str], str]]:
    """Method, question, ids of the passages and text of each answer of inference.py."""
    records = json.loads((root / "data_aug/demo/dev.json").read_text())
    found = []
    for method in AT_ONCE:
        rows = json.loads((root / RESULTS / method / "dev/predict.json").read_text())
        for record, row in zip(records, rows, strict=True):
            ids = [entry["id"] for entry in record["augment"]]
            found.append((method, record["question"], ids, row["text"]))
    return found
