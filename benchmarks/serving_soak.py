"""Is every answer of a server that of inference.py, and does its memory stay flat?

    python benchmarks/serving_soak.py --questions 100 --minutes 10     # after: make demo

Starts serve.py on the demo. First each question is asked with every method that inference.py has
answered, one client at a time and 16 at once, and compared with predict.json. Then --clients ask at
random for --minutes: some leave before their answer, and whole processes of clients are killed.
Every answer that arrives is compared; the server's memory (resident) is read every few seconds.
"""

import http.client
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
from utils.arguments import new_parser, positive_integer, positive_number
from utils.running import InputError, run_stage

REPOSITORY = Path(__file__).parents[1]
ROOT = Path(os.environ.get("PRAG_ROOT", REPOSITORY))
EXPERIMENT = "demo-model/rank=2_alpha=32/demo/lr=0.004_epoch=1/aug_model=demo-model"
FLAGS = "--model_name data/demo/demo-model --prompts demo --dataset demo --data_type test "
FLAGS += "--learning_rate 4e-3 --max_new_tokens 12 --index_name demo"
METHODS = ("closed_book", "icl", "prag", "combine")
PER_PROCESS = 8  # clients
COUNTED = ("answers", "wrong", "left", "sent away", "failed")

Expected = tuple[dict, str]  # a request's body and the text that inference.py has written


def expected(questions: int) -> list[Expected]:
    """The requests for the first `questions`, each with every method."""
    records = json.loads((ROOT / "data_aug/demo/test.json").read_text())[:questions]
    found = []
    for method in METHODS:
        path = ROOT / "output" / EXPERIMENT / method / "test/predict.json"
        rows = json.loads(path.read_text())[: len(records)]
        for record, row in zip(records, rows, strict=True):
            prag = {"method": method, "passages": [one["id"] for one in record["augment"]]}
            message = {"role": "user", "content": record["question"]}
            found.append(({"messages": [message], "prag": prag}, row["text"]))
    random.Random(0).shuffle(found)  # methods mixed
    return found


def ask(port: int, body: dict, leave: float | None = None) -> str | None:
    """The text of the answer; None if the client leaves after `leave` seconds, or is sent away."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    headers = {"Content-Type": "application/json"}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        if leave is not None:
            time.sleep(leave)
            return None
        reply = connection.getresponse()
        if reply.status == 429:
            return None
        value = json.loads(reply.read())
        return value["choices"][0]["message"]["content"]
    finally:
        connection.close()


def compare(port: int, cases: list[Expected], clients: int) -> int:
    """How many of the answers differ, with so many clients at once."""
    with ThreadPoolExecutor(clients) as pool:
        began = time.perf_counter()
        texts = list(pool.map(lambda case: ask(port, case[0]), cases))
    wrong = sum(text != right for text, (_, right) in zip(texts, cases, strict=True))
    seconds = time.perf_counter() - began
    print(f"{clients} clients: {len(cases)} answers, {wrong} differ, {seconds:.1f} s", flush=True)
    return wrong


def client(port: int, cases: list[Expected], counts, first: int, seed: int) -> None:
    """Ask at random for ever; `counts[first:]` are this client's own."""
    chance = random.Random(seed)
    while True:
        body, right = chance.choice(cases)
        leave = chance.uniform(0, 0.5) if chance.random() < 0.3 else None
        try:
            text = ask(port, body, leave)
        except (OSError, http.client.HTTPException, KeyError, ValueError):
            counts[first + 4] += 1
            continue
        if leave is not None:
            counts[first + 2] += 1
        elif text is None:
            counts[first + 3] += 1
            time.sleep(1)
        else:
            counts[first] += 1
            counts[first + 1] += text != right


def clients(port: int, cases: list[Expected], counts, number: int, seed: int) -> None:
    """A process of clients."""
    with ThreadPoolExecutor(PER_PROCESS) as pool:
        for own in range(number, number + PER_PROCESS):
            pool.submit(client, port, cases, counts, own * len(COUNTED), seed + own)


@contextmanager
def started(flags: list[str]) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address and the process of a serve.py with these flags, on a free port."""
    command = [sys.executable, "src/serve.py", *flags, "--port", "0"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stdout.readline, "")  # the address is in the last before it serves
            address = next((one.split()[-1] for one in lines if "http://" in one), None)
            if not address:
                raise InputError("serve.py has not started; correct what it says above")
            yield address, process
        finally:
            process.terminate()
            process.wait()  # before its output is closed: it says goodbye


def resident(pid: int) -> float:
    """The memory of a process in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def soak(port: int, pid: int, cases: list[Expected], many: int, minutes: float) -> dict[str, int]:
    """Let clients ask, leave and be killed; prints the server's memory."""
    counts = multiprocessing.Array("L", many * len(COUNTED), lock=False)
    chance, running = random.Random(1), {}
    began = time.monotonic()
    shown = began
    kills = 0

    def start(number: int) -> None:
        how = (port, cases, counts, number, kills * 1000)
        running[number] = multiprocessing.Process(target=clients, args=how, daemon=True)
        running[number].start()

    for number in range(0, many, PER_PROCESS):
        start(number)
    while time.monotonic() < began + 60 * minutes:
        time.sleep(3)
        number = chance.choice([*running])
        os.kill(running[number].pid, signal.SIGKILL)
        running[number].join()
        kills += 1
        start(number)
        if time.monotonic() > shown:
            shown += 15
            print(f"{time.monotonic() - began:4.0f} s: {resident(pid):.0f} MB", flush=True)
    for process in running.values():
        process.kill()
        process.join()
    totals = {name: sum(counts[n :: len(COUNTED)]) for n, name in enumerate(COUNTED)}
    return totals | {"processes killed": kills}


def main() -> None:
    """Start the server, compare, soak, stop the server."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--questions", type=positive_integer, default=100, help="the first N of the demo")
    add("--minutes", type=positive_number, default=10.0, help="of asking at random")
    add("--clients", type=positive_integer, default=32, help=f"a multiple of {PER_PROCESS}")
    options = parser.parse_args()
    cases = expected(options.questions)
    with started(FLAGS.split()) as (address, server):
        print(address)
        port = urlsplit(address).port
        wrong = sum(compare(port, cases, clients) for clients in (1, 16))
        print(f"{resident(server.pid):.0f} MB before")
        totals = soak(port, server.pid, cases, options.clients, options.minutes)
        time.sleep(5)  # what the last clients asked
        print(f"{resident(server.pid):.0f} MB after; {totals}")
        wrong += totals["wrong"] + compare(port, cases[:50], 16)
    print(f"the server ended with {server.returncode}; {wrong} wrong answers")
    sys.exit(wrong > 0 or totals["failed"] > 0)


if __name__ == "__main__":
    run_stage(main)
