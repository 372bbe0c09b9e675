"""serve.py: the answers of inference.py, whoever asks beside whom; what waits, leaves and fails."""

import json
import os
import queue
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from conftest import use_root
from openai import BadRequestError, OpenAI
from serve_runs import FLAGS, expected, question, send
from stage_runs import run

import serve
from utils import running
from utils.recipe import Recipe
from utils.serving.worker import Busy, Worker
from utils.session import Session


@pytest.fixture
def client(served):
    return OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("clients", [1, 16])
def test_many_clients_get_what_inference_says(served, client, finished, clients):
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


def test_the_official_client_works_unchanged(served, client, finished):
    assert list(client.models.list()) == [client.models.retrieve("demo-model")]
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


def test_too_many_that_wait_are_sent_away(served, monkeypatch):
    inside, hold, prepare = threading.Event(), threading.Event(), served.session.prepare

    def held(requests):
        inside.set()
        assert hold.wait(60)
        return prepare(requests)

    monkeypatch.setattr(served.session, "prepare", held)
    waiting = served.worker.waiting
    monkeypatch.setattr(waiting, "maxsize", 4)
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(send, served.port, question("Who?"))
        assert inside.wait(60)  # what comes now waits
        others = [pool.submit(send, served.port, question("Who?")) for _ in range(4)]
        deadline = time.monotonic() + 30
        while waiting.qsize() < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        status, reply, headers = send(served.port, question("Who?"))
        assert status == 429 and headers["retry-after"] == "1"
        assert "ask again" in reply["error"]["message"]
        assert send(served.port, None, "/health")[1] == {"status": "ok", "running": 1, "waiting": 4}
        hold.set()
        assert {one.result()[0] for one in (first, *others)} == {200}


def test_who_has_left_makes_room_for_others():
    worker = Worker(SimpleNamespace(recipe=Recipe()), 2)
    first, second, third = (SimpleNamespace(request=SimpleNamespace(gone=False)) for _ in range(3))
    worker.submit(first)
    worker.submit(second)
    with pytest.raises(Busy):
        worker.submit(third)
    first.request.gone = True
    worker.submit(third)
    assert list(worker.waiting.queue) == [second, third]


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
