"""What is asked over HTTP and by whom: what is refused, in one sentence."""

import asyncio
import socket
import sys

import pytest
from conftest import edited
from serve_runs import FLAGS, question, send
from stage_runs import ADAPTERS, refused, run

import serve
from utils.serving.guard import Guard

ONE = {"role": "user", "content": "Who?"}
BAD = {
    "": ("not valid JSON", 400),
    "{": ("not valid JSON", 400),
    "[" * 9000: ("not valid JSON", 400),
    "9" * 5000: ("not valid JSON", 400),
    '{"prag": {}, "prag": {}}': ("twice", 400),
    f'{{"{"x" * 999}": 1, "{"x" * 999}": 2}}': ("not valid JSON", 400),
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
    ({"prag": {"merge": "median"}}, "prag.merge must be sum or"),
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
        ("/v1/models/../x", None, "no model '../x'", 404),
        ("/v1/passages?id=../../x", None, "no passage", 404),
        ("/v1/chat/completions", None, "Method Not Allowed", 405),
    ]
    assert len(sent) > 50
    for path, body, words, status in sent:
        got, reply, _ = send(served.port, body, path)
        message = reply["error"]["message"]
        assert (got, words in message) == (status, True), (body, got, message)
        assert "\n" not in message and len(message) <= 400 and "Traceback" not in message
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
