"""A small OpenAI-compatible server for tests: real HTTP, the bundled model, faults on demand."""

import json
import threading
import time
from functools import cache
from http.server import BaseHTTPRequestHandler

from fake_server import QuietServer
from stage_runs import MODEL

from utils.models import generate, load_model, load_tokenizer

NAME = "served-model"


@cache
def demo_model():
    tokenizer = load_tokenizer(MODEL)
    return load_model(MODEL, "float32", tokenizer), tokenizer


def from_demo_model(body: dict) -> str:
    """The text that the local path would get for the same prompt and seed."""
    model, tokenizer = demo_model()
    text = tokenizer.apply_chat_template(
        body["messages"], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    sampling = {"temperature": body["temperature"], "top_k": body.get("top_k", 50)}
    return generate(
        model, tokenizer, [ids], body["max_tokens"], seeds=[body.get("seed", 0)], **sampling
    )[0]


def completion(content: object) -> dict:
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "model": NAME, "choices": [choice]}


class FakeOpenAI:
    """`with FakeOpenAI() as fake:` serves at `fake.url`; what it does is set as attributes.

    `fault(number, body)` is asked for each chat request, counted from 1; it gives None or what is
    sent instead: (status, headers, bytes), "half a body", "drop", or seconds to sleep before.
    """

    def __init__(self, text=from_demo_model, models=(NAME,), key=None, base="/v1"):
        self.text, self.models, self.key, self.base = text, models, key, base
        self.known = (NAME,)  # models that it has
        self.fault = lambda number, body: None
        self.refused = set()  # fields that it answers with 400
        self.context = None  # most characters of a prompt
        self.requests, self.authorizations = [], []
        self.running = self.most_running = 0
        self.lock, self.model_lock = threading.Lock(), threading.Lock()

    def __enter__(self):
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            do_GET = do_POST = lambda self: fake.serve(self)

            def log_message(self, *_):
                pass

        self.server = QuietServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}{self.base}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def serve(self, handler):
        size = int(handler.headers.get("Content-Length") or 0)
        body = json.loads(handler.rfile.read(size)) if size else None
        status, headers, data = self.answer(handler, body)
        half = status == "half a body"
        if status == "drop":
            handler.close_connection = True
            return
        handler.send_response(200 if half else status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data) * (2 if half else 1)))
        handler.end_headers()
        handler.wfile.write(data)
        handler.close_connection = handler.close_connection or half

    def answer(self, handler, body):
        def error(status, message):
            return status, {}, json.dumps({"error": {"message": message, "code": status}}).encode()

        given = handler.headers.get("Authorization") or ""
        with self.lock:
            self.authorizations.append(given)
        if self.key and given != f"Bearer {self.key}":
            return error(401, f"Incorrect key: {given.removeprefix('Bearer ')}")
        if handler.path == f"{self.base}/models" and self.models is not None:
            listed = [{"id": name, "object": "model"} for name in self.models]
            return 200, {}, json.dumps({"object": "list", "data": listed}).encode()
        if handler.path != f"{self.base}/chat/completions":
            return error(404, "Not Found")
        if refused := self.refused & body.keys():
            return error(400, f"Unrecognized request argument: {min(refused)}")
        if body["model"] not in self.known:
            return error(404, f"The model `{body['model']}` does not exist.")
        length = len(body["messages"][0]["content"])
        if self.context and length > self.context:
            return error(400, f"maximum context length is {self.context}, you have {length}")
        with self.lock:
            self.requests.append(body)
            number = len(self.requests)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            fault = self.fault(number, body)
            if isinstance(fault, tuple):
                return fault
            if isinstance(fault, float):
                time.sleep(fault)
            elif fault == "drop":
                return "drop", {}, b""
            with self.model_lock:
                data = json.dumps(completion(self.text(body))).encode()
            return (fault if isinstance(fault, str) else 200), {}, data
        finally:
            with self.lock:
                self.running -= 1
