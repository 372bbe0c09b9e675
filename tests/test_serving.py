"""ask.py and serve.py: the answers of inference.py, whoever asks beside whom; what is refused."""

import asyncio
import http.client
import json
import os
import queue
import shutil
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace

import pytest
from conftest import edited, use_root
from openai import BadRequestError, OpenAI
from stage_runs import ADAPTERS, ALL, RESULTS, refused, run, watched

import ask
import serve
from utils import running, session
from utils.recipe import METHODS
from utils.serving.guard import Guard
from utils.serving.requests import Request
from utils.serving.worker import Worker
from utils.session import Session

FLAGS = [*ALL, "--max_new_tokens", "12", "--index_name", "demo"]


def opened(*more: str) -> Session:
    """The finished root's session, its model loaded."""
    options, recipe = serve.parse_arguments([*FLAGS, *more])
    own = Session(recipe, options)
    own.load()
    return own


@pytest.fixture(scope="module")
def served(finished):
    """A server in a thread: its address, its worker and its session."""
    import uvicorn

    from utils.serving.app import new_app

    with pytest.MonkeyPatch.context() as patch:
        use_root(finished, patch)
        worker = Worker(opened(), 4)
    app = new_app(worker, "demo-model", 3, None, "127.0.0.1")
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    listening = serve.open_port("127.0.0.1", 0, None)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    port = listening.getsockname()[1]
    yield SimpleNamespace(port=port, worker=worker, session=worker.session)
    server.should_exit = True
    thread.join()
    assert not worker.is_alive()


@pytest.fixture
def client(served):
    return OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="none", max_retries=0)


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
    for method in METHODS:
        rows = json.loads((root / RESULTS / method / "dev/predict.json").read_text())
        for record, row in zip(records, rows, strict=True):
            ids = [entry["id"] for entry in record["augment"]]
            found.append((method, record["question"], ids, row["text"]))
    return found


def test_one_batch_of_all_methods_says_what_inference_says(served, finished, monkeypatch):
    batches = watched(monkeypatch, session, "answer_batch")
    answers, own = expected(finished), served.session
    requests = [
        Request(asked, replace(own.recipe, inference_method=method), 3, ids)
        for method, asked, ids, _ in answers
    ]
    rows = own.prepare(requests)
    assert [answer.text for answer in own.answer(rows)] == [text for *_, text in answers]
    assert [len(prompts) for _, _, prompts, *_ in batches] == [20]
    assert len({text for *_, text in answers}) > 5
    merged = [row.merged for row in rows]
    assert [one is None for one in merged] == [m not in ("prag", "combine") for m, *_ in answers]


@pytest.mark.parametrize("clients", [1, 16])
def test_many_clients_get_what_inference_says(served, client, finished, clients):
    served.worker.waiting.maxsize = 32

    def asked(one):
        method, text, ids, expected = one
        stream = len(text) % 2 == 0
        how = {"model": "demo-model", "extra_body": {"prag": {"method": method, "passages": ids}}}
        messages = [{"role": "user", "content": text}]
        reply = client.chat.completions.create(messages=messages, stream=stream, **how)
        said = (
            "".join(part.choices[0].delta.content or "" for part in reply)
            if stream
            else reply.choices[0].message.content
        )
        return said == expected

    with ThreadPoolExecutor(clients) as pool:
        assert all(pool.map(asked, expected(finished)))
    served.worker.waiting.maxsize = 4


def test_the_official_client_works_unchanged(served, client, finished):
    assert [model.id for model in client.models.list()] == ["demo-model"]
    _, text, ids, said = expected(finished)[0]
    messages = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    how = {"model": "demo-model", "messages": messages}
    method = {"extra_body": {"prag": {"method": "closed_book"}}}
    reply = client.chat.completions.create(**how, **method, temperature=0, seed=1, user="u")
    assert reply.choices[0].message.content == said and reply.choices[0].finish_reason == "stop"
    assert reply.prag["passages"] == [] and reply.prag["answer"] == said.strip().rstrip(".")
    short = client.chat.completions.create(**how, **method, max_tokens=2)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 2
    assert short.choices[0].message.content and said.startswith(short.choices[0].message.content)
    whole = client.chat.completions.create(**how)  # the server's method, and its search
    assert whole.prag["method"] == "combine" and whole.usage.prompt_tokens > 60
    assert {one["id"] for one in whole.prag["passages"]} == set(ids)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    parts = list(client.chat.completions.create(**how, **options))
    assert parts[0].prag["passages"] == whole.prag["passages"]
    assert parts[-2].prag["answer"] == whole.prag["answer"] and parts[-1].usage == whole.usage
    with pytest.raises(BadRequestError, match="there is no passage 'x'"):
        client.chat.completions.create(**how, stream=True, extra_body={"prag": {"passages": ["x"]}})


def test_a_completion_continues_the_prompt_as_it_is(served, client, finished):
    encoder, tokenizer = served.session.encoder, served.session.experiment.tokenizer
    for method, asked, ids, said in expected(finished):
        if method in ("closed_book", "prag"):
            prompt = encoder.question(asked, [])
            prag = {"prag": {"method": method, "passages": ids}}
            for form in (prompt, tokenizer.decode(prompt)):
                how = {"model": "demo-model", "prompt": form, "extra_body": prag}
                assert client.completions.create(**how).choices[0].text == said
            parts = client.completions.create(**how, stream=True)
            assert "".join(part.choices[0].text for part in parts) == said


def test_what_a_passage_is_and_whether_it_has_an_adapter_is_said(served, finished):
    asked = "What sport was Gigov Teglimine fond of?"
    _, reply, _ = send(served.port, question(asked, method="prag", topk=20))
    passages = reply["prag"]["passages"]
    known = served.session.by_id
    assert len(passages) == 20
    assert [one["adapter"] for one in passages] == [one["id"] in known for one in passages]
    assert {one["adapter"] for one in passages} == {True, False}
    scores = [one["score"] for one in passages]
    assert scores == sorted(scores, reverse=True)
    own = next(one for one in passages if one["adapter"])
    status, learnt, _ = send(served.port, None, f"/v1/passages?id={own['id']}")
    assert status == 200 and learnt["text"] == own["text"] and len(learnt["qa"]) == 3
    left = [one["id"] for one in passages if not one["adapter"]]
    _, none, _ = send(served.port, question(asked, method="prag", passages=left[:2]))
    _, closed, _ = send(served.port, question(asked, method="closed_book"))
    assert none["choices"][0]["message"] == closed["choices"][0]["message"]


ONE = {"role": "user", "content": "Who?"}
BAD = {
    "": ("not valid JSON", 400),
    "{": ("not valid JSON", 400),
    "[" * 9000: ("not valid JSON", 400),
    "9" * 5000: ("not valid JSON", 400),
    '{"prag": {}, "prag": {}}': ("twice", 400),
    '{"messages": [{"role": "user", "content": "\\ud800"}]}': ("not valid JSON", 400),
    "[]": ("must be a JSON object", 400),
    "null": ("must be a JSON object", 400),
    "{}": ("messages must be", 400),
}
WRONG = [
    ({"messages": "Who?"}, "messages must be"),
    ({"messages": []}, "messages must be"),
    ({"messages": [ONE, ONE]}, "messages must be"),
    ({"messages": [{"role": "system", "content": "x"}]}, "messages must be"),
    ({"messages": [{"role": "user"}]}, "content must be text"),
    ({"messages": [{"role": "user", "content": 7}]}, "content must be text"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content must be text"),
    ({"messages": [{"role": "user", "content": " \n"}]}, "question is empty"),
    ({"messages": [{"role": "user", "content": "x " * 4000}]}, "does not fit"),
    ({"temperature": 0.7}, "temperature can only be 0"),
    ({"temperature": False}, "temperature can only be 0"),
    ({"n": 2}, "n can only be 1"),
    ({"stop": ["."]}, "field 'stop' is not supported"),
    ({"tools": []}, "field 'tools' is not supported"),
    ({"stream": "yes"}, "stream must be true or false"),
    ({"stream_options": {"x": 1}}, "stream_options must be"),
    ({"max_tokens": 13}, "max_tokens must be a number from 1 to 12"),
    ({"max_tokens": 0}, "max_tokens must be"),
    ({"max_completion_tokens": "9"}, "max_tokens must be"),
    ({"prag": []}, "prag must be an object"),
    ({"prag": {"scales": 1}}, "prag must be an object with only"),
    ({"prag": {"method": "rag"}}, "prag.method must be closed_book or"),
    ({"prag": {"method": ["prag"]}}, "prag.method must be"),
    ({"prag": {"topk": 21}}, "prag.topk must be"),
    ({"prag": {"topk": True}}, "prag.topk must be"),
    ({"prag": {"merge": "mean"}}, "prag.merge must be sum or"),
    ({"prag": {"merge": "base_once"}}, "needs --init_adapter"),
    ({"prag": {"merge": "sum", "method": "icl"}}, "icl merges no adapters"),
    ({"prag": {"scale": 0}}, "prag.scale must be"),
    ({"prag": {"scale": 10**400}}, "prag.scale must be"),
    ({"prag": {"passages": "1"}}, "prag.passages must be"),
    ({"prag": {"passages": [1]}}, "prag.passages must be"),
    ({"prag": {"passages": ["../../etc/passwd"]}}, "there is no passage"),
    ({"prag": {"passages": ["0"] * 21}}, "prag.passages must be"),
]
PROMPTS = [
    ({}, "prompt must be"),
    ({"prompt": ["a", "b"]}, "prompt must be"),
    ({"prompt": [1, -1]}, "token id of the prompt"),
    ({"prompt": [1, 10**9]}, "token id of the prompt"),
    ({"prompt": [5] * 1013}, "the prompt has 1013 tokens"),
    ({"prompt": "x", "prag": {"method": "icl"}}, "sent as it is"),
    ({"prompt": "x", "echo": True}, "echo can only be False"),
]


def test_a_bad_request_gets_one_sentence_and_the_server_lives(served):
    """More than fifty, and then a good one."""
    sent = [("/v1/chat/completions", text.encode(), *told) for text, told in BAD.items()]
    sent += [("/v1/chat/completions", {"messages": [ONE], **b}, words, 400) for b, words in WRONG]
    sent += [("/v1/completions", body, words, 400) for body, words in PROMPTS]
    sent += [
        ("/v1/chat/completions", b"x" * (1 << 18) + b"x", "more than 262144 bytes", 400),
        ("/v1/chat/completions", b"\xff", "not UTF-8", 400),
        ("/v1/chat/completions", {"messages": [ONE], "model": "gpt"}, "no model 'gpt'", 404),
        ("/v1/embeddings", {}, "Not Found", 404),
        ("/v1/passages?id=../../x", None, "no passage", 404),
        ("/v1/chat/completions", None, "Method Not Allowed", 405),
    ]
    assert len(sent) > 50
    for path, body, words, status in sent:
        got, reply, _ = send(served.port, body, path)
        message = reply["error"]["message"]
        assert (got, words in message) == (status, True), (body, got, message)
        assert "\n" not in message and len(message) < 400 and "Traceback" not in message
    status, reply, _ = send(served.port, question("Who?"), Content_Type="text/plain")
    assert status == 400 and "application/json" in reply["error"]["message"]
    assert send(served.port, question("Who?", method="icl"))[0] == 200


@pytest.mark.parametrize("headers, key, status", [
    ({"host": "localhost:8000"}, None, 200), ({"host": "[::1]:8000"}, None, 200),
    ({"host": "evil.example"}, None, 403), ({}, None, 403), ({"host": "[x"}, None, 400),
    ({"host": "localhost:8000", "origin": "http://localhost:8000"}, None, 200),
    ({"host": "localhost:8000", "origin": "http://evil.example"}, None, 403),
    ({"host": "localhost:8000", "origin": "null"}, None, 403),
    ({"host": "name.example"}, "secret", 401),
    ({"host": "name.example", "authorization": "Bearer secre"}, "secret", 401),
    ({"host": "name.example", "authorization": "Bearer secret"}, "secret", 200),
])  # fmt: skip
def test_only_who_may_ask_is_let_in(headers, key, status):
    async def answer(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    sent = []

    async def keep(message):
        sent.append(message)

    given = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "path": "/v1/models", "headers": given, "method": "GET"}
    asyncio.run(Guard(answer, key, "127.0.0.1")(scope, None, keep))
    assert sent[0]["status"] == status


def test_too_many_that_wait_are_sent_away(served, monkeypatch):
    hold, prepare = threading.Event(), served.session.prepare

    def held(requests):
        assert hold.wait(60)
        return prepare(requests)

    monkeypatch.setattr(served.session, "prepare", held)
    waiting = served.worker.waiting
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(send, served.port, question("Who?"))
        while not served.worker.running:
            time.sleep(0.01)
        others = [pool.submit(send, served.port, question("Who?")) for _ in range(4)]
        while waiting.qsize() < 4:
            time.sleep(0.01)
        status, reply, headers = send(served.port, question("Who?"))
        assert status == 429 and headers["retry-after"] == "1"
        assert "ask again" in reply["error"]["message"]
        assert send(served.port, None, "/health")[1] == {"status": "ok", "running": 1, "waiting": 4}
        hold.set()
        assert {one.result()[0] for one in (first, *others)} == {200}


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_row(served, monkeypatch, stream):
    """The model waits until the client has left: the row then ends at its next token."""
    inside, left, taken = threading.Event(), threading.Event(), queue.Queue()
    answer = served.session.answer

    def held(rows):
        inside.set()
        assert left.wait(60)
        deadline = time.monotonic() + 60
        while not rows[0].request.gone and time.monotonic() < deadline:
            time.sleep(0.01)
        answers = answer(rows)
        taken.put((rows, answers))
        return answers

    monkeypatch.setattr(served.session, "answer", held)
    body = json.dumps({**question("Who?"), "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
        )
        client.sendall(f"{head}\r\nContent-Type: application/json\r\n\r\n".encode() + body)
        assert inside.wait(60)
        if stream:
            assert b"200 OK" in client.recv(99)
    left.set()
    rows, answers = taken.get(timeout=60)
    assert rows[0].request.gone and answers[0].text == "" and answers[0].tokens == 1
    monkeypatch.undo()
    assert send(served.port, question("Who?"))[0] == 200


def test_a_row_that_ends_early_leaves_the_others_as_they_are(served, finished):
    own, (_, asked, _, said) = served.session, expected(finished)[0]
    recipe = replace(own.recipe, inference_method="closed_book")
    seen: list[str] = []
    gone, short, whole = (Request(asked, recipe, 3) for _ in range(3))
    short.recipe = replace(recipe, max_new_tokens=3)
    whole.tell, gone.tell = seen.append, lambda text: setattr(gone, "gone", True)
    answers = own.answer(own.prepare([gone, short, whole]))
    assert [one.tokens for one in answers[:2]] == [3, 3] and answers[1].finish_reason == "length"
    assert answers[2].text == said and len(seen) > 2
    assert all(said.startswith(text) for text in seen) and seen == sorted(seen, key=len)


def test_a_failure_ends_its_batch_and_not_the_server(served, monkeypatch, capfd):
    def fail(rows):
        raise RuntimeError("of a secret place")

    monkeypatch.setattr(served.session, "answer", fail)
    status, reply, _ = send(served.port, question("Who?"))
    assert status == 500 and "secret" not in json.dumps(reply)
    assert "of a secret place" in capfd.readouterr().err
    monkeypatch.undo()
    weights = next(iter(served.session.by_text.values())).folder / "adapter_model.safetensors"
    name, data = next(iter(served.session.by_id)), weights.read_bytes()
    weights.rename(weights.with_suffix(".away"))
    try:
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        bad, good = (question("Who?", method="prag", passages=some) for some in ([name], []))
        status, reply, _ = send(served.port, bad)
        assert status == 500 and "its hash differs" in reply["error"]["message"]
        assert send(served.port, good)[0] == 200
    finally:
        weights.with_suffix(".away").rename(weights)
    assert send(served.port, bad)[0] == 200
    status, reply, _ = send(served.port, question("Who?", method="prag", scale=1000))
    assert status in (200, 400)


def test_numbers_that_are_not_finite_are_an_error_of_their_row_alone(served, monkeypatch):
    merge = served.session.merger.merge

    def huge(passages, recipe):
        factor = float("nan") if recipe.merge_scale == 7 else 1
        return {name: (A, factor * B) for name, (A, B) in merge(passages, recipe).items()}

    monkeypatch.setattr(served.session.merger, "merge", huge)
    own = served.session
    names = list(own.by_id)[:1]
    recipes = [replace(own.recipe, inference_method="prag", merge_scale=s) for s in (7, 1)]
    rows = own.prepare([Request("Who?", recipe, 3, names) for recipe in recipes])
    bad, good = own.answer(rows)
    assert "not finite" in str(bad.bad) and good.bad is None


def test_the_server_finishes_what_runs_and_ends(finished, monkeypatch, capsys):
    """SIGTERM comes while a request is in the model; its answer is complete."""
    use_root(finished, monkeypatch)
    inside, told, answer = threading.Event(), queue.Queue(), Session.answer

    def slow(own, rows):
        inside.set()
        time.sleep(0.5)
        return answer(own, rows)

    monkeypatch.setattr(Session, "answer", slow)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def client():
        for _ in range(600):
            try:
                assert send(port, None, "/health")[0] == 200
                break
            except OSError:
                time.sleep(0.1)
        threading.Thread(target=lambda: told.put(send(port, question("Who?")))).start()
        assert inside.wait(60)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, running._interrupt)
    threading.Thread(target=client).start()
    try:
        run(serve, *FLAGS, "--port", str(port))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told.get(timeout=60)[0] == 200
    out = capsys.readouterr().out
    assert f"demo-model with 12 encoded passages at http://127.0.0.1:{port}/" in out
    assert out.endswith("what ran has been answered; ended\n")


def test_what_cannot_be_served_is_refused_before_the_model(copy, monkeypatch):
    monkeypatch.setattr("utils.models.AutoModelForCausalLM", None)  # no model is loaded
    monkeypatch.delenv(serve.KEY, raising=False)
    start = (run, serve, *FLAGS, "--port", "0")
    refused("0.0.0.0 can be reached from other machines; set the variable PRAG_API_KEY", *start,
        "--host", "0.0.0.0")  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused("cannot be listened on .*; give others", run, serve, *FLAGS, "--port", port)
    refused("--host no.such.name .* cannot be listened on|no.such.name can be", *start, "--host",
        "no.such.name")  # fmt: skip
    refused("leaves no room for a prompt", *start, "--max_new_tokens", "1024")
    refused("no index", *start, "--index_name", "other")
    with edited(copy / "data_aug/demo/dev.json") as records:
        records[0]["augment"][0]["id"] = records[1]["augment"][0]["id"]
    refused("means two passages of demo", *start)
    (copy / ADAPTERS / "data_1/passage_0/adapter_model.safetensors").unlink()
    refused("there is no adapter in .*data_1/passage_0; run first: python src/encode.py", *start)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    refused("needs the package uvicorn; run: pip install -r requirements-serve.txt", *start)


def test_ask_shows_what_each_method_says_and_what_each_adapter_changes(
    copy, finished, monkeypatch, capsys
):
    answers = expected(finished)
    _, asked, _, _ = answers[0]
    said = {method: text.strip() for method, question, _, text in answers if question == asked}
    run(ask, asked, *FLAGS, "--show_adapters", "--methods", ",".join(METHODS))
    out = capsys.readouterr().out.splitlines()
    for method, text in said.items():
        assert any(line.startswith(method) and line.split(None, 1)[1] in text for line in out)
    assert sum("prag without the adapter of" in line for line in out) == 3
    assert out[0].startswith("1. ") and out[-1].endswith(" s")
    lines = f"{asked}\n\n{'x ' * 4000}\nWhat sport was Gigov Teglimine fond of?\n"
    monkeypatch.setattr("sys.stdin", StringIO(lines))
    run(ask, *FLAGS, "--json", "--methods", "prag,closed_book", "--topk", "1")
    first, long, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["answers"]["closed_book"]["text"].strip() == said["closed_book"]
    assert len(first["passages"]) == len(last["passages"]) == 1
    assert "does not fit" in long["error"] and last["seconds"] > 0
    refused("the question is empty", run, ask, " ", *FLAGS)
    shutil.rmtree(copy / "offline")
    run(ask, asked, *FLAGS, "--methods", "icl")  # needs no adapters
    assert said["icl"].rstrip(".") in capsys.readouterr().out
    refused("there is no adapter", run, ask, asked, *FLAGS)
