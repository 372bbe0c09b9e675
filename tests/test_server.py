"""Stage 1 by a server, over real HTTP: the local path's records, and every fault it may have."""

import json
import os
import signal
import threading

import openai
import pytest
from augment_runs import PAIRS, records_at
from fake_openai import NAME, FakeOpenAI, bundled, error
from stage_runs import AUGMENT, MODEL, refused, run, tree, watched

import augment
from utils.answering import prediction_of
from utils.augmentation import server, writing
from utils.augmentation.sampling import Sampling
from utils.prompting import load_prompts
from utils.running import InputError
from utils.thoughts import without_thoughts

pytest_plugins = ["augment_runs"]
KEY = "sk-very+secret"
PAIRS_REQUEST = "question_answer_pairs"
TEMPLATE = {"date_string": "26 Jul 2024", "enable_thinking": False, "thinking": False}


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("OPENAI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(server, "MAX_RETRIES", 2)
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.001)


def by(fake: FakeOpenAI, *more: str) -> list[str]:
    return [*AUGMENT, "--api_base", fake.url, *more]


def open_server(*flags: str, say=print) -> server.Server:
    """The server that `augment.py` opens with these flags."""
    options, _ = augment.parse_arguments([*AUGMENT, *flags])
    prompts = load_prompts("demo", "", False)
    return server.Server(options, prompts, Sampling.of(options, prompts), say)


def test_the_server_gives_the_records_of_the_local_path(indexed, monkeypatch, capsys):
    """Its thoughts are left out; the bar moves with every text, also of one batch."""
    flags = ("--sample", "1", "--batch_size", "3")
    told = watched(monkeypatch, writing.Progress, "__call__")
    run(augment, *AUGMENT, *flags)
    local = records_at(indexed)
    moves = [texts for _, texts, *_ in told if texts]
    assert sum(moves) == 6 and len(moves) > 2  # of two batches
    assert sum(tokens for _, _, tokens, _ in told) > 300 and " tok/s" in capsys.readouterr().err
    monkeypatch.setattr(writing, "load_model", None)
    text = bundled()
    with FakeOpenAI(lambda body: "<think>[{</think>" + text(body)) as fake:
        run(augment, *by(fake, *flags, "--overwrite"))
    assert records_at(indexed) == local
    (prompt,) = fake.requests[0]["messages"]
    assert prompt["role"] == "user" and "<|" not in prompt["content"]
    sampling = {"max_tokens": 160, "temperature": 0.7, "top_p": 1, "top_k": 50}
    sampling |= {"repetition_penalty": 1.0, "model": NAME, "chat_template_kwargs": TEMPLATE}
    assert sampling.items() <= fake.requests[0].items()
    assert len({r["seed"] for r in fake.requests}) == len(fake.requests)
    settings = json.loads((indexed / "data_aug/demo/.dev.demo-model.settings").read_text())
    assert settings["api_model"] == NAME and settings["batch_size"] is None


@pytest.mark.parametrize("text, left", {
    " Orr [thinking]. ": "Orr [thinking].", "analysis of Orr": "analysis of Orr",
    "<think>\n\n</think>\n\nOrr": "Orr", "I think so.</think>Orr": "Orr",
    "<think>a <think>b</think> c</think> Orr": "Orr", "[THINK]a[/THINK]Orr": "Orr",
    "It is <Thinking>a</thinking>Orr": "It is Orr", "Orr <seed:think>so</seed:think><think>a": "",
    "<|channel|>analysis<|message|>a<|end|><|channel|>final<|message|>Orr": "Orr",
    "analysisWe need it.assistantfinalOrr": "Orr",
}.items())  # fmt: skip
def test_what_is_left_without_thoughts_is_what_counts(text, left):
    assert without_thoughts(text) == left
    recipe = augment.parse_arguments([*AUGMENT])[1]
    row = prediction_of({"test_id": 0, "question": "Who?", "answer": "Orr"}, text, recipe)
    assert row["text"] == text and row["answer_presence"] == ("Orr" in left)
    assert row["eval_predict"] == left.split(".")[0]


def test_the_work_is_the_model_s_wherever_it_is_served(indexed):
    with FakeOpenAI() as fake:
        run(augment, *by(fake, "--temperature", "0"))
        assert {(r["temperature"], r.get("top_k")) for r in fake.requests} == {(0, None)}
    with FakeOpenAI() as fake:  # at another address
        run(augment, *by(fake, "--temperature", "0"))
        assert fake.requests == []
        fake.models = ("other",)
        refused(f'api_model = "{NAME}", but this run has .*"other"', run, augment, *by(fake))


def test_which_model_is_asked_and_that_any_completion_counts():
    hidden = ["--api_model", "hidden"]  # some list other names than they take
    for models, flags, used in [((NAME,), [], NAME), (("a",), hidden, "hidden"), (None, [], MODEL)]:
        with FakeOpenAI(models=models) as fake:
            assert open_server("--api_base", fake.url, *flags).model == used
            assert fake.requests == []
    for content, text in [(None, ""), (" half a character: \ud83d.", "half a character: .")]:
        with FakeOpenAI(lambda body, content=content: content) as fake:
            assert open_server("--api_base", fake.url).answer("rewrite", "one", 1) == text


@pytest.mark.parametrize("listed", ["<html>", None, [], {}, {"data": [3]}, {"data": "all"}, 500])
def test_what_is_no_list_of_models_is_one_sentence(listed):
    with FakeOpenAI() as fake, pytest.raises(InputError, match=r"/models .*--api_model|or fails"):
        fake.listing = error(500, "no") if listed == 500 else (200, listed)
        open_server("--api_base", fake.url)


def test_settings_that_a_server_refuses_are_left_out_and_told_of_once():
    said = []
    with FakeOpenAI() as fake:
        opened = open_server("--api_base", fake.url, say=said.append)
        fake.refused = {"top_k"}
        assert [opened.answer(PAIRS_REQUEST, "one", seed) for seed in (1, 2)] == [PAIRS] * 2
    (line,) = said
    assert "takes no top_k: what the model's own settings or chat template say of it has" in line
    fixed = {"top_p": 1, "min_p": 0, "repetition_penalty": 1, "chat_template_kwargs": TEMPLATE}
    assert all(fixed.items() <= request.items() for request in fake.requests)


def test_the_key_is_used_and_never_shown(indexed, monkeypatch, capsys):
    with FakeOpenAI(key=KEY) as fake:
        refused(r"refuses the key .*OPENAI_API_KEY", open_server, "--api_base", fake.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-some-other")
        refused(r"Incorrect key: \.\.\.", open_server, "--api_base", fake.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")
        run(augment, *by(fake))
    for path in (indexed / "data_aug").rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()
    said = capsys.readouterr()
    assert "secret" not in said.out + said.err
    monkeypatch.delenv("OPENAI_API_KEY")
    with FakeOpenAI() as fake:  # so is a password in the address
        opened = open_server("--api_base", fake.url.replace("//", "//me:p%40ss@"))
        assert fake.authorizations[-1] == "Basic bWU6cEBzcw=="  # me:p@ss
        fake.fault = lambda number, body: error(500, "no")
        said = refused(r"http://\.\.\.@127", opened.answer, PAIRS_REQUEST, "one", 1)
    assert "ss@" not in said
    for address in ("localhost:8000", "ftp://me:pass@h/v1"):
        words = r"--api_base .* is not the address .*htt"
        assert "pass" not in refused(words, open_server, "--api_base", address)


@pytest.mark.parametrize("fault", [error(429, "slow down"), "drop"])
def test_a_fault_that_passes_loses_nothing(fault):
    with FakeOpenAI() as fake:
        opened = open_server("--api_base", fake.url)
        fake.fault = lambda number, body: fault if number % 2 else None
        assert [opened.answer(PAIRS_REQUEST, "one", seed) for seed in (1, 2)] == [PAIRS] * 2
        assert len(fake.requests) == 4


@pytest.mark.parametrize(("fault", "message"), [
    (error(429, "quota"), r"too busy or fails \(Error code: 429 - .*quota.*goes on"),
    ("drop", r"cannot be reached, is .* \(Connection error\.\)"),
    ((200, {"choices": 3}), "not a chat completion"),
    (threading.Event(), r"timed out.*raise --api_timeout"),
    ("drip", r"timed out.*raise --api_timeout"),
    (error(401, "expired"), r"refuses the key .*expired"),
    (error(404, "no model"), r"does not find .*no model.*--api_model.*up to /v1"),
    (error(400, "maximum context is 10"), r"maximum context is 10.*--max_new_tokens"),
])  # fmt: skip
def test_a_fault_that_stays_is_one_sentence(fault, message):
    never = isinstance(fault, threading.Event) or fault == "drip"
    with FakeOpenAI() as fake:
        opened = open_server("--api_base", fake.url, "--api_timeout", "0.2" if never else "60")
        fake.fault = lambda number, body: fault
        assert "\n" not in refused(message, opened.answer, PAIRS_REQUEST, "one", 1)
        if isinstance(fault, threading.Event):
            fault.set()
    refused(r"cannot be reached", open_server, "--api_base", fake.url)  # it is closed now


def test_what_is_done_before_a_fault_is_kept(indexed):
    with FakeOpenAI() as fake:
        run(augment, *by(fake))
        whole = tree(indexed / "data_aug")
        fake.requests.clear()
        fake.fault = lambda number, body: error(401, "expired") if number > 8 else None
        flags = by(fake, "--api_concurrency", "2", "--overwrite")
        refused("expired", run, augment, *flags)
        (part,) = (indexed / "data_aug/demo").glob(".*.journal.*")
        lines = map(json.loads, part.read_text().splitlines()[1:])
        done = [passage for line in lines for passage in line["results"]]
        assert len(done) >= 3  # of four passages that were answered, all but one are through
        fake.fault = lambda number, body: None
        fake.requests.clear()
        run(augment, *by(fake))
    asked = " ".join(request["messages"][0]["content"] for request in fake.requests)
    assert not [passage for passage in done if passage in asked]
    assert tree(indexed / "data_aug") == whole


def test_ctrl_c_does_not_wait_for_answers(indexed):
    never, answered = threading.Event(), []

    def interrupt(number, body):
        if number == 1:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return never

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    with FakeOpenAI(lambda body: answered.append(body) or PAIRS) as fake:
        fake.fault = interrupt
        with pytest.raises(KeyboardInterrupt):
            run(augment, *by(fake, "--api_concurrency", "1"))
        assert not answered
        never.set()
