"""Stage 1 by a server, over real HTTP: the same records as locally, and every fault it may have."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import openai
import pytest
from conftest import REPOSITORY
from fake_openai import NAME, FakeOpenAI, completion
from stage_runs import AUGMENT, MODEL, run, tree

import augment
from utils import server
from utils.journal import Journal
from utils.running import InputError

KEY = "sk-very+secret"
PAIRS = json.dumps([{"question": "Q?", "answer": "A", "full_answer": "A."}] * 3)
TEXTS = "demo-model_qa", "demo-model_rewrite"


def instant(body: dict) -> str:
    """What a perfect model says at once."""
    message = body["messages"][0]["content"]
    return PAIRS if "JSON list" in message else "rewritten " + message[-60:]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("OPENAI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(server, "LONGEST_WAIT", 0.2)
    monkeypatch.setattr(server, "MAX_RETRIES", 3)
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.1)


@pytest.fixture
def empty(copy):
    """A root with the index alone."""
    (copy / "data_aug/demo/dev.json").rename(copy / "local.json")
    (copy / "data_aug/demo/.dev.demo-model.settings").unlink()
    return copy


def by(fake: FakeOpenAI, *more: str) -> list[str]:
    return [*AUGMENT, "--api_base", fake.url, "--api_timeout", "5", *more]


def texts(path) -> list:
    entries = [entry for record in json.loads(path.read_text()) for entry in record["augment"]]
    return [{key: entry.get(key) for key in ("passage", *TEXTS)} for entry in entries]


@pytest.mark.parametrize("temperature", ["0", "0.7"])
def test_the_server_gives_the_records_of_the_local_path(empty, monkeypatch, temperature):
    """The same prompts, seeds, checks and records; nothing of a model is loaded here."""
    path = empty / "data_aug/demo/dev.json"
    if temperature == "0":
        run(augment, *AUGMENT, "--temperature", "0", monkeypatch=monkeypatch)
        path.rename(empty / "local.json")
    monkeypatch.setattr(augment, "load_author", None)
    with FakeOpenAI() as fake:
        flags = by(fake, "--temperature", temperature, "--api_timeout", "120", "--overwrite")
        run(augment, *flags, monkeypatch=monkeypatch)
    assert texts(path) == texts(empty / "local.json")
    prompt = fake.requests[0]["messages"]
    assert len(prompt) == 1 and prompt[0]["role"] == "user" and "<|" not in prompt[0]["content"]
    sampling = {"max_tokens": 160, "temperature": float(temperature), "model": NAME}
    assert sampling.items() <= fake.requests[0].items()
    assert {r.get("top_k") for r in fake.requests} == {None if temperature == "0" else 50}
    assert len({r["seed"] for r in fake.requests}) == len(fake.requests)
    assert fake.most_running <= 16
    settings = json.loads((empty / "data_aug/demo/.dev.demo-model.settings").read_text())
    assert settings["api_model"] == NAME and settings["batch_size"] is None
    assert not {"api_base", "api_concurrency"} & settings.keys()


def test_the_work_is_the_model_s_wherever_it_is_served(empty, monkeypatch):
    with FakeOpenAI(instant) as fake:
        run(augment, *by(fake), monkeypatch=monkeypatch)
    before = tree(empty)
    with FakeOpenAI(instant) as fake:
        run(augment, *by(fake, "--api_concurrency", "2"), monkeypatch=monkeypatch)
        assert fake.requests == [] and tree(empty) == before
        fake.models = fake.known = ("other",)
        with pytest.raises(InputError, match=f'api_model = "{NAME}", but this run has .*"other"'):
            run(augment, *by(fake), monkeypatch=monkeypatch)
        with pytest.raises(InputError, match=f'api_model = "{NAME}", but this run has .*null'):
            run(augment, *AUGMENT, monkeypatch=monkeypatch)


@pytest.mark.parametrize(
    ("models", "flags", "used"),
    [
        ((NAME,), [], NAME),
        (None, ["--api_model", NAME], NAME),
        ((), ["--api_model", NAME], NAME),
        (("a", "b"), ["--api_model", "hidden"], "hidden"),  # some list other names than they take
        (("a", MODEL), [], MODEL),
        (None, [], MODEL),
    ],
)
def test_which_model_is_asked(empty, monkeypatch, models, flags, used):
    with FakeOpenAI(instant, models=models) as fake:
        fake.known = (NAME, MODEL, "hidden", "a")
        run(augment, *by(fake, *flags, "--sample", "1"), monkeypatch=monkeypatch)
        assert {request["model"] for request in fake.requests} == {used}
        probes = [request for request in fake.requests if request["max_tokens"] == 1]
        assert len(probes) == (used not in (models or ()))


def test_a_server_that_takes_no_top_k_is_told_of_once(empty, monkeypatch, capsys):
    with FakeOpenAI(instant) as fake:
        fake.refused = {"top_k"}
        run(augment, *by(fake), monkeypatch=monkeypatch)
    assert capsys.readouterr().out.count("takes no top_k") == 1
    assert len(texts(empty / "data_aug/demo/dev.json")) == 12


# ------------------------------------------------------------------------------------------------
# Refused in one sentence


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def test_an_unreachable_server_a_wrong_key_and_an_unknown_model_are_one_sentence(
    empty, monkeypatch, capsys
):
    with pytest.raises(InputError, match=r"cannot be reached .*--api_base"):
        run(augment, *AUGMENT, "--api_base", closed_port(), monkeypatch=monkeypatch)
    with FakeOpenAI(instant, key=KEY) as fake:
        with pytest.raises(InputError, match=r"refuses the key .*OPENAI_API_KEY"):
            run(augment, *by(fake), monkeypatch=monkeypatch)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-some-other")
        with pytest.raises(InputError, match=r"Incorrect key: \.\.\.\)") as caught:
            run(augment, *by(fake), monkeypatch=monkeypatch)
        assert "sk-some" not in str(caught.value)
        monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")
        with pytest.raises(InputError, match=r"'no'.*lists served-model\); .*--api_model"):
            run(augment, *by(fake, "--api_model", "no"), monkeypatch=monkeypatch)
        with pytest.raises(InputError, match=r"does not find.*--api_base the address up to /v1"):
            run(augment, *by(fake), "--api_base", fake.url + "/x", monkeypatch=monkeypatch)
        assert fake.requests == []
        fake.refused = {"model"}  # so do some servers that hold one model
        with pytest.raises(
            InputError, match=r"status 400 .*'no', give its name there with --api_mo"
        ):
            run(augment, *by(fake, "--api_model", "no"), monkeypatch=monkeypatch)
        fake.refused = set()
        run(augment, *by(fake), monkeypatch=monkeypatch)
    for path in (empty / "data_aug").rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()
    said = capsys.readouterr()
    assert "secret" not in said.out + said.err


def test_a_password_in_the_address_is_used_and_shown_nowhere(empty, monkeypatch, capsys):
    with FakeOpenAI(instant) as fake:
        address = fake.url.replace("//", "//me:p%40ss@")
        fake.fault = lambda number, body: (500, {}, b'{"error": {"message": "p@ss p%40ss"}}')
        flags = [*by(fake), "--api_base", address, "--api_model", NAME]
        with pytest.raises(InputError, match=r"fails with status 500 \(\.\.\. \.\.\.\)") as caught:
            run(augment, *flags, monkeypatch=monkeypatch)
        fake.fault = lambda number, body: None
        run(augment, *flags, monkeypatch=monkeypatch)
    assert fake.authorizations[-1] == "Basic bWU6cEBzcw=="  # me:p@ss
    held = [p.read_text() for p in (empty / "data_aug").rglob("*") if p.is_file()]
    said = capsys.readouterr()
    assert "ss@" not in str(caught.value) + said.out + said.err + "".join(held)


@pytest.mark.parametrize(
    "address",
    ["localhost:8000", "ftp://h/v1", "http://", "http://h:x/v1", "http://h/v1?a=1", "http://a b/",
     "http://me:pw@ss/word@h/v1", "http://[::1/v1"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(empty, monkeypatch, address):
    with pytest.raises(InputError, match=r"--api_base .* is no address .*http://HOST") as caught:
        run(augment, *AUGMENT, "--api_base", address, monkeypatch=monkeypatch)
    assert "pw" not in str(caught.value)


def test_a_key_that_cannot_be_sent_is_refused_unseen(empty, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-é secret")
    with pytest.raises(InputError, match="OPENAI_API_KEY has characters") as caught:
        run(augment, *AUGMENT, "--api_base", "http://h/v1", monkeypatch=monkeypatch)
    assert "secret" not in str(caught.value)


def test_flags_that_do_not_go_together(empty, monkeypatch, capsys):
    for flags in (["--api_model", "x"], ["--shard", "0/2", "--overwrite"]):
        with pytest.raises(SystemExit):
            run(augment, *AUGMENT, *flags, monkeypatch=monkeypatch)
        assert "error: --" in capsys.readouterr().err


def test_a_prompt_that_is_too_long_for_the_server_is_named(empty, monkeypatch):
    with FakeOpenAI(instant) as fake:
        fake.context = 10
        with pytest.raises(InputError, match=r"status 400 \(maximum context.*--max_new_tokens"):
            run(augment, *by(fake), monkeypatch=monkeypatch)


# ------------------------------------------------------------------------------------------------
# Faults in the middle of the work

MENDED = {  # a fault of some requests -> nothing is lost
    "429 with Retry-After": (429, {"Retry-After": "0.3"}, b"{}"),
    "429 without": (429, {}, b'{"error": "slow down"}'),
    "500": (500, {}, b"oops"),
    "503": (503, {}, b'{"detail": "starting"}'),
    "half a body": "half a body",
    "a closed connection": "drop",
    "no JSON": (200, {}, b"{half"),
    "a page of a proxy": (200, {"Content-Type": "text/html"}, b"<html>Bad gateway</html>"),
    "not UTF-8": (200, {}, b"\xff\xfe\xfa"),
    "an error with status 200": (200, {}, b'{"error": {"message": "upstream"}}'),
    "JSON that is no object": (200, {}, b"[1, 2]"),
    "null": (200, {}, b"null"),
    "thousands of nested lists": (200, {}, b"[" * 100_000),
    "bytes that are no gzip": (200, {"Content-Encoding": "gzip"}, b"{}"),
    "a redirection to itself": (307, {"Location": "/v1/chat/completions"}, b""),
    "slow": 1.5,
}


@pytest.mark.parametrize("fault", MENDED.values(), ids=MENDED)
def test_a_fault_that_passes_loses_nothing(empty, monkeypatch, capfd, fault):
    with FakeOpenAI(instant) as fake:
        run(augment, *by(fake), monkeypatch=monkeypatch)
        whole = tree(empty / "data_aug")
        met = set()

        def sometimes(number, body):  # at the first try of a third of the requests
            first = body["seed"] not in met
            met.add(body["seed"])
            return fault if first and body["seed"] % 3 == 0 else None

        fake.fault = sometimes
        fake.requests.clear()
        begin = time.monotonic()
        flags = by(fake, "--api_timeout", "1", "--overwrite")
        run(augment, *flags, monkeypatch=monkeypatch)
        assert len(fake.requests) > 24
    assert tree(empty / "data_aug") == whole
    assert time.monotonic() - begin < 20
    shown = capfd.readouterr()
    assert "Traceback" not in shown.out + shown.err


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ((429, {}, b'{"error": {"message": "quota"}}'), r"is too busy \(quota\).*goes on"),
        ((429, {"Retry-After": "900"}, b"{}"), "is too busy"),
        ((500, {}, b"oops"), r"fails with status 500 \(oops\)"),
        ((500, {}, b" <html>no</html>"), r"fails with status 500 \(a web page in place of"),
        ("drop", "cannot be reached or breaks off .*same command again"),
        ("half a body", "cannot be reached or breaks off"),
        ((200, {}, b"{half"), "no chat completion"),
        ((200, {}, b'{"choices": 3}'), "no chat completion"),
        ((401, {}, b"{}"), "refuses the key"),
        ((418, {}, b"{}"), "status 418"),
        (1.5, r"no answer within 0\.3 s, again and again.*--api_timeout"),
    ],
)
def test_a_fault_that_stays_is_one_sentence_and_what_is_done_is_kept(
    empty, monkeypatch, capfd, fault, message
):
    with FakeOpenAI(instant) as fake:
        run(augment, *by(fake), monkeypatch=monkeypatch)
        whole = tree(empty / "data_aug")
        fake.fault = lambda number, body: fault if number > 8 else None
        fake.requests.clear()
        begin = time.monotonic()
        flags = by(fake, "--api_concurrency", "2", "--api_timeout", "0.3")
        with pytest.raises(InputError, match=message) as caught:
            run(augment, *flags, "--overwrite", monkeypatch=monkeypatch)
        assert time.monotonic() - begin < 20 and "\n" not in str(caught.value)
        parts = list((empty / "data_aug/demo").glob(".*.journal.0"))
        done = sum(part.read_bytes().count(b"\n") for part in parts) - 1
        assert done >= 3  # of four passages that were answered, all but one are through
        fake.fault = lambda number, body: None
        fake.requests.clear()
        run(augment, *by(fake), monkeypatch=monkeypatch)
        distinct = len({entry["passage"] for entry in texts(empty / "data_aug/demo/dev.json")})
        assert len(fake.requests) == 2 * (distinct - done)
    assert tree(empty / "data_aug") == whole
    shown = capfd.readouterr()
    assert "Traceback" not in shown.out + shown.err


def sent(content: object) -> bytes:
    return json.dumps(completion(content)).encode()


GARBAGE = {
    "noise": sent("]]]}{ \ud83d \x00" * 50),
    "another language": sent("Ça ne va pas. 日本語"),
    "null": sent(None),
    "a number": sent(7),
    "a list of parts": sent([{"type": "text", "text": PAIRS}]),
    "an empty text": sent(" "),
    "no choices": b'{"choices": []}',
    "a choice without message": b'{"choices": [{}]}',
    "choices that are none": b'{"choices": [1, null]}',
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_a_failed_attempt(empty, monkeypatch, capfd, garbage):
    """About one passage: it is dropped after --max_attempts and the next one takes its place."""
    passage = texts(empty / "local.json")[1]["passage"]
    with FakeOpenAI(instant) as fake:
        fake.fault = lambda number, body: (
            (200, {}, garbage) if passage in body["messages"][0]["content"] else None
        )
        run(augment, *by(fake, "--max_attempts", "3"), monkeypatch=monkeypatch)
        tries = [r for r in fake.requests if passage in r["messages"][0]["content"]]
    assert len(tries) == 3 and len({r["seed"] for r in tries}) == 3
    found = texts(empty / "data_aug/demo/dev.json")
    assert len(found) == 12 and passage not in [entry["passage"] for entry in found]
    shown = capfd.readouterr()
    assert "1 dropped" in shown.out and "3 of them invalid" in shown.out
    assert "Traceback" not in shown.out + shown.err


def test_half_a_character_in_a_rewrite_can_be_written(empty, monkeypatch):
    with FakeOpenAI(lambda body: instant(body) + " \ud83d") as fake:
        run(augment, *by(fake, "--sample", "1"), monkeypatch=monkeypatch)
    assert len(texts(empty / "data_aug/demo/dev.json")) == 3


# ------------------------------------------------------------------------------------------------
# Stopped


def command(root, *flags: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "src/augment.py"), *flags],
        env=os.environ | {"PRAG_ROOT": str(root), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_run_goes_on(empty, monkeypatch, number):
    """With requests on their way, and a server that would keep them for a minute."""
    with FakeOpenAI(instant) as fake:
        run(augment, *by(fake), monkeypatch=monkeypatch)
        whole = tree(empty / "data_aug")
        (empty / "data_aug/demo/dev.json").unlink()
        fake.requests.clear()
        slow = threading.Event()
        fake.fault = lambda number, body: 60.0 if number > 10 and slow.set() is None else None
        flags = by(fake, "--api_concurrency", "3", "--api_timeout", "100")
        process = command(empty, *flags)
        assert slow.wait(60)
        time.sleep(0.3)
        process.send_signal(number)
        begin = time.monotonic()
        _, said = process.communicate(timeout=10)
        assert time.monotonic() - begin < 5
        assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
        assert "Traceback" not in said and "Exception" not in said
        assert number == signal.SIGKILL or re.search("interrupted: .*same command again", said)
        with Journal(empty / "data_aug/demo/.demo-model.journal", settings_of(whole)) as journal:
            done = len(journal.items)
        assert done > 0
        fake.fault = lambda number, body: None
        fake.requests.clear()
        run(augment, *by(fake), monkeypatch=monkeypatch)
        distinct = len({entry["passage"] for entry in texts(empty / "data_aug/demo/dev.json")})
        assert len(fake.requests) == 2 * (distinct - done)
    assert tree(empty / "data_aug") == whole


def settings_of(files: dict[str, bytes]) -> dict:
    settings = json.loads(files["demo/.dev.demo-model.settings"])
    return {key: value for key, value in settings.items() if key != "questions"}


def test_an_error_stops_the_threads_and_keeps_what_is_finished():
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 1:
            raise InputError("no")
        time.sleep(0.1)
        return item

    finished = []
    with pytest.raises(InputError, match="no"):
        for item in server.in_threads(work, range(50), 3):
            finished.append(item)
    assert 0 in finished and len(begun) < 50 and len(finished) == len(begun) - 1
    assert list(server.in_threads(lambda x: x, [], 3)) == []
    results = server.in_threads(lambda x: 2 * x, range(20), 4)
    assert sorted(results) == list(range(0, 40, 2))
