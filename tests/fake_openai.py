"""A small OpenAI-compatible server for tests: real HTTP, faults on demand."""

import json
import threading
from http.server import BaseHTTPRequestHandler

from augment_runs import PAIRS
from fake_server import QuietServer

NAME = "served-model"


def instant(body: dict) -> str:
    """What a perfect model says."""
    message = body["messages"][0]["content"]
    return PAIRS if "JSON list" in message else "rewritten " + message[-60:]


def error(status: int, message: str) -> tuple[int, bytes]:
    """An answer that refuses a request."""
    return status, json.dumps({"error": {"message": message, "code": status}}).encode()


class FakeOpenAI:
    """`with FakeOpenAI() as fake:` serves at `fake.url`; what it does is set as attributes.

    `fault(number, body)` is asked for each chat request, counted from 1; it gives None, "drop", an
    event to wait for, or what is sent instead: (status, bytes).
    """

    def __init__(self, text=instant, models=(NAME,), key=None):
        self.text, self.models, self.key = text, models, key
        self.fault = lambda number, body: None
        self.refused = set()  # fields that it answers with 400
        self.requests, self.authorizations = [], []
        self.lock = threading.Lock()

    def __enter__(self):
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            do_GET = do_POST = lambda self: fake.serve(self)

            def log_message(self, *_):
                pass

        self.server = QuietServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def serve(self, handler) -> None:
        size = int(handler.headers.get("Content-Length") or 0)
        body = json.loads(handler.rfile.read(size)) if size else None
        answer = self.answer(handler, body)
        if answer == "drop":
            handler.close_connection = True
            return
        handler.send_response(answer[0])
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(answer[1])))
        handler.end_headers()
        handler.wfile.write(answer[1])

    def answer(self, handler, body):
        self.authorizations.append(handler.headers.get("Authorization"))
        if self.key and self.authorizations[-1] != f"Bearer {self.key}":
            return error(401, f"Incorrect key: {self.authorizations[-1].removeprefix('Bearer ')}")
        if handler.path == "/v1/models" and self.models is not None:
            return 200, json.dumps({"data": [{"id": name} for name in self.models]}).encode()
        if handler.path != "/v1/chat/completions":
            return error(404, "Not Found")
        if refused := self.refused & body.keys():
            return error(400, f"Unrecognized request argument: {min(refused)}")
        with self.lock:
            self.requests.append(body)
            number = len(self.requests)
        fault = self.fault(number, body)
        if isinstance(fault, threading.Event):
            fault = fault.wait(60) and None
        choice = {"index": 0, "message": {"role": "assistant", "content": self.text(body)}}
        return fault or (200, json.dumps({"choices": [choice]}).encode())
