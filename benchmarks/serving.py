r"""How fast questions are answered over HTTP, and from which passage length on `prag` is cheaper.

    python benchmarks/serving.py --model_name data/demo/demo-model --prompts demo --dataset demo \
        --data_type test --learning_rate 4e-3 --max_new_tokens 12 --index_name demo

Beside its own flags it takes those of serve.py, which it starts on a free port, or asks one at
`--url`. With `--vllm` the server at `--url` is a vLLM that has the adapters of `adapters.py export
--all --serve`: it gets token ids, merged adapters by name. At each of `--clients` so many threads
ask at once, each again when it has its answer; the methods take turns, round after round, after
one round that is not counted. The client's own work counts, searching too (not with vLLM).

The crossover needs no HTTP: one question's prompt with three passages of random tokens (`icl`)
beside the prompt alone and three adapters (`prag`), each read from the disk and merged for every
question. All answers have --max_new_tokens tokens. Searching and training do not count; the files
are in the system's cache. Lengths beyond the model's context take as long, but answer nothing.
"""

import argparse
import http.client
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
from serving_soak import METHODS, resident, started

import serve
from utils.arguments import new_parser, positive_integer
from utils.augmentation.records import read_sample
from utils.files import write_json
from utils.prompting import room_for_prompt
from utils.recipe import IN_PARAMETERS, Recipe
from utils.running import InputError, run_stage

if TYPE_CHECKING:
    from utils.session import Session

LEAST = 16  # requests of a round, however few clients
PASSAGES = 3  # of a question, for the crossover
Call = tuple[str, dict]  # the path of a request and its body


def parse_arguments(
    arguments: list[str] | None = None,
) -> tuple[argparse.Namespace, list[str], argparse.Namespace, Recipe]:
    """The own flags, those of serve.py as they were typed, and what they mean."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--clients", type=positive_integer, nargs="*", default=[1, 4, 16, 64], help="at once")
    add("--url", help="a running server (not set: serve.py is started)")
    add("--vllm", action="store_true", help="the one at --url is a vLLM with exported adapters")
    add(
        "--pid", type=positive_integer, help="process at --url whose memory is read (not set: none)"
    )
    lengths = "tokens of a passage, for the crossover; none: it is left out"
    default = [25, 50, 100, 200, 400, 800]
    add("--lengths", type=positive_integer, nargs="*", default=default, help=lengths)
    add("--batches", type=positive_integer, nargs="+", default=[1, 16], help="questions at once")
    add("--repetitions", type=positive_integer, default=3, help="counted rounds")
    add("--json", type=Path, help="file for the raw result (not set: none)")
    own, rest = parser.parse_known_args(arguments)
    if own.vllm and not own.url:
        parser.error("--vllm needs the --url of a running one")
    return own, rest, *serve.parse_arguments(rest)


def main() -> None:
    """Ask with more and more clients, find the crossover, save."""
    own, rest, options, recipe = parse_arguments()
    from machine import machine

    from utils.provenance import provenance
    from utils.session import Session

    result = {"arguments": vars(own) | {"json": None}, "recipe": rest, "load": os.getloadavg()}
    result |= {"machine": machine(), "provenance": provenance()}
    if own.clients:
        queue = ["--queue", str(max(own.clients))]
        running = nullcontext((own.url, own)) if own.url else started([*rest, *queue])
        with running as (address, process):
            calls = (vllm_calls if own.vllm else calls_of)(recipe, address)
            result["clients"] = ask_in_turn(address, process.pid, calls, own)
    if own.lengths:
        session = Session(recipe, options)
        session.load()
        of = own.lengths, own.repetitions
        result["crossover"] = [crossover(session, size, *of) for size in own.batches]
    if own.json:
        write_json(own.json, result)


def calls_of(recipe: Recipe, address: str) -> dict[str, list[Call]]:
    """Each method's requests to serve.py: all questions of the data set, at least one."""
    of = recipe.dataset, recipe.data_type, recipe.writer, recipe.sample
    questions = [one["question"] for rows in read_sample(*of).values() for one in rows]
    asked = [[{"role": "user", "content": text}] for text in questions if text]  # corpora have none
    if not asked:
        raise InputError(f"{recipe.dataset} has no questions; leave --clients empty")
    path = "/v1/chat/completions"
    return {m: [(path, {"messages": q, "prag": {"method": m}}) for q in asked] for m in METHODS}


def vllm_calls(recipe: Recipe, address: str) -> dict[str, list[Call]]:
    """The same to a vLLM, where a question's merged adapter is the model {data_type}_{did}."""
    from utils.answering import prompt_of
    from utils.experiment import Experiment
    from utils.models import context_length

    experiment, most = Experiment(recipe), recipe.max_new_tokens
    experiment.leave_out_corpora()
    encoder = experiment.encoder_for(room_for_prompt(context_length(recipe.model_name), most))
    listed = send(address, ("/v1/models", {}))["data"]
    base = next(one["id"] for one in listed if not one.get("parent"))
    greedy = {"max_tokens": most, "temperature": 0, "top_p": 1, "repetition_penalty": 1.0}
    calls = {method: [] for method in METHODS}
    for data_type, records in experiment.records.items():
        for did, record in enumerate(records):
            for method, own in calls.items():
                model = f"{data_type}_{did}" if method in IN_PARAMETERS else base
                prompt = prompt_of(record, method, encoder)
                own.append(("/v1/completions", {"model": model, "prompt": prompt, **greedy}))
    return calls


def send(address: str, call: Call) -> dict:
    """The server's answer; raises `InputError` with its words if it refuses."""
    path, body = call
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=600)
    how = ("POST", path, json.dumps(body)) if body else ("GET", path)
    try:
        connection.request(*how, headers={"Content-Type": "application/json"})
        reply = connection.getresponse()
        text = reply.read()
    except (OSError, http.client.HTTPException) as error:
        raise InputError(f"the server at {address} does not answer ({error}); start it") from None
    finally:
        connection.close()
    if reply.status != 200:
        raise InputError(
            f"the server at {address} says {reply.status}: {text[:300]!r}; see its log"
        )
    return json.loads(text)


def ask(address: str, pid: int | None, calls: list[Call], clients: int) -> dict:
    """The seconds of a round and of each request in it, and the server's memory after it."""

    def timed(call: Call) -> float:
        began = time.perf_counter()
        send(address, call)
        return time.perf_counter() - began

    with ThreadPoolExecutor(clients) as pool:
        began = time.perf_counter()
        each = list(pool.map(timed, islice(cycle(calls), max(clients, LEAST))))
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "each": each, "mb": pid and resident(pid)}


def ask_in_turn(address: str, pid: int | None, calls: dict, own: argparse.Namespace) -> list[dict]:
    """Requests a second, seconds of a request and the server's memory, by clients and method."""
    rows = []
    for clients in own.clients:
        ways = {name: partial(ask, address, pid, asked, clients) for name, asked in calls.items()}
        for name, rounds in in_turn(ways, own.repetitions).items():
            each = [seconds for one in rounds for seconds in one["each"]]
            cuts = statistics.quantiles(each, n=20, method="inclusive")
            speed = max(clients, LEAST) / statistics.median(one["seconds"] for one in rounds)
            row = {"clients": clients, "method": name, "requests_per_second": speed}
            row |= {"p50": cuts[9], "p95": cuts[18], "mb": rounds[-1]["mb"], "rounds": rounds}
            memory = f", {row['mb']:.0f} MB" if pid else ""
            took = f"{speed:6.1f} requests/s, p50 {row['p50']:.3f} s, p95 {row['p95']:.3f} s"
            print(f"{clients:3} clients, {name:11} {took}{memory}", flush=True)
            rows.append(row)
    return rows


def in_turn(ways: dict[str, Callable], rounds: int) -> dict[str, list]:
    """What each way gives in each round, the first one left out."""
    found = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            value = way()
            if number:
                found[name].append(value)
    return found


def crossover(session: "Session", size: int, lengths: list[int], repetitions: int) -> dict:
    """Seconds per question, `size` at once, of `prag` and of `icl` by the passages' tokens."""
    from utils.session import Request, Row

    most = session.recipe.max_new_tokens
    session.model.generation_config.min_new_tokens = most  # else an answer of nonsense ends sooner
    chosen = random.Random(0)
    plain = session.encoder.question("Who was the first to see it?", [])
    known = range(len(session.experiment.tokenizer) // 2, len(session.experiment.tokenizer))
    folders = [(one.folder, one.entry) for one in session.by_text.values() if one.folder]
    if len(folders) < PASSAGES:
        raise InputError(f"{len(folders)} passages have adapters; encode {PASSAGES} at least")
    request = Request("", session.recipe, PASSAGES)

    def answer(length: int) -> float:
        began = time.perf_counter()
        rows = []
        session.merger.read.cache_clear()
        for number in range(size):
            first = PASSAGES * number
            own = [folders[(first + k) % len(folders)] for k in range(PASSAGES)]
            merged = None if length else session.merger.merge(own, session.recipe)
            added = chosen.choices(known, k=PASSAGES * length)
            prompt = [*plain[:1], *added, *plain[1:]]
            rows.append(Row(request, [], prompt, merged, False))
        answers = session.answer(rows)
        seconds = (time.perf_counter() - began) / size
        if any(one.tokens < most for one in answers):
            raise InputError("an answer has ended early; use another --max_new_tokens")
        return seconds

    ways = {str(length): partial(answer, length) for length in (0, *lengths)}
    rounds = in_turn(ways, repetitions)
    prag, *icl = (statistics.median(one) for one in rounds.values())
    found = meeting(lengths, icl, prag)
    shown = ", ".join(f"{n}: {s:.4f}" for n, s in zip(lengths, icl, strict=True))
    print(
        f"{size} at once: prag {prag:.4f} s a question, icl {shown}; crossover: {found}", flush=True
    )
    return {"batch": size, "prag": prag, "icl": icl, "crossover": found, "rounds": rounds}


def meeting(lengths: list[int], icl: list[float], prag: float) -> float | str:
    """The length, between two that were measured, from which on `icl` costs more than `prag`."""
    if icl[0] > prag:
        return "below the shortest"
    points = list(zip(lengths, icl, strict=True))
    for (a, before), (b, after) in pairwise(points):
        if before <= prag < after:
            return round(a + (b - a) * (prag - before) / (after - before), 1)
    return "above the longest"


if __name__ == "__main__":
    run_stage(main)
