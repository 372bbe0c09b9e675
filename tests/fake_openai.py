"""A small OpenAI-compatible server for tests: real HTTP, faults on demand."""

import threading
from collections.abc import Callable

from augment_runs import PAIRS
from fake_server import FakeServer
from stage_runs import MODEL

from utils.generation import generate
from utils.models import load_model, load_tokenizer

NAME = "served-model"


def instant(body: dict) -> str:
    message = body["messages"][0]["content"]
    return PAIRS if "JSON list" in message else "rewritten " + message[-60:]


def bundled() -> Callable[[dict], str]:
    """What the bundled model says to a request."""
    tokenizer = load_tokenizer(MODEL)
    model, lock = load_model(MODEL, "float32", tokenizer), threading.Lock()

    def text(body: dict) -> str:
        how = {"add_generation_prompt": True, "return_dict": False}
        ids = tokenizer.apply_chat_template(body["messages"], **how)
        sampling = {"temperature": body["temperature"], "top_k": body.get("top_k", 50)}
        sampling["seeds"] = [body["seed"]]
        with lock:
            return generate(model, tokenizer, [ids], body["max_tokens"], **sampling)[0]

    return text


def error(status: int, message: str) -> tuple[int, dict]:
    return status, {"error": {"message": message, "code": status}}


class FakeOpenAI(FakeServer):
    """What it does is set as attributes.

    `fault(number, body)` is asked for each chat request, counted from 1; it gives None, "drop", an
    event to wait for, "drip", or what is sent instead: (status, content).
    """

    def __init__(self, text=instant, models=(NAME,), key=None):
        self.text, self.models, self.key = text, models, key
        self.fault = lambda number, body: None
        self.listing = None  # (status, content) that it answers `/models` with
        self.refused = set()  # fields that it answers with 400
        self.requests, self.authorizations = [], []
        self.headers = {"Content-Type": "application/json"}
        super().__init__()
        self.url += "/v1"

    def respond(self, request, lines):
        self.authorizations.append(request.headers.get("Authorization"))
        if self.key and self.authorizations[-1] != f"Bearer {self.key}":
            return error(401, f"Incorrect key: {self.authorizations[-1].removeprefix('Bearer ')}")
        if request.path == "/v1/models" and self.listing:
            return self.listing
        if request.path == "/v1/models" and self.models is not None:
            return 200, {"data": [{"id": name} for name in self.models]}
        if request.path != "/v1/chat/completions":
            return error(404, "Not Found")
        [body] = lines
        if refused := self.refused & body.keys():
            return error(400, f"Unrecognized request argument: {min(refused)}")
        with self.lock:
            self.requests.append(body)
            number = len(self.requests)
        fault = self.fault(number, body)
        if isinstance(fault, threading.Event):
            fault = fault.wait(60) and None
        choice = {"index": 0, "message": {"role": "assistant", "content": self.text(body)}}
        return fault or (200, {"choices": [choice]})
