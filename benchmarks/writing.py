r"""Stage 1's speed: tokens a second of rewrites and question lists, here and at a server.

    python benchmarks/writing.py --model_name data/demo/demo-model --prompts demo \
        --corpus data/demo/corpus.tsv

    python benchmarks/writing.py --model_name models/SmolLM2-135M-Instruct.Q4_1.gguf \
        --prompts small --corpus index/hotpotqa.tsv --api_base http://localhost:8000/v1

At each of `--widths`, as many texts are written side by side, or requested at the same time, all
by the same requests and seeds as `augment.py` sends. The ways take turns, round after round, each
round and width about other passages (a server may remember some), after a short one that is not
counted. Tokens are those that were written, by the same tokenizer. The limit is that of `speed.py`:
2 operations per parameter and token that the model is given; what a server gives to its own, nobody
says. On a machine that does other work, too, `--cpu_of` counts CPU seconds, of this process and of
a server's; then there is no limit, which is measured by the clock.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from math import prod
from multiprocessing.pool import ThreadPool
from os import getpid
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from psutil import Process

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
from utils.arguments import new_parser, positive_integer
from utils.augmentation.sampling import Sampling, add_sampling_flags
from utils.augmentation.server import Server, add_server_flags
from utils.files import write_json
from utils.recipe import Recipe, add_flags, parse_recipe
from utils.running import InputError, run_stage

if TYPE_CHECKING:
    from utils.augmentation.writing import LocalModel

LEAST_TEXTS = 4  # of a round, however few side by side


def parse_arguments(arguments: list[str] | None = None) -> tuple[argparse.Namespace, Recipe]:
    """The command line."""
    parser = new_parser(__doc__)
    add_flags(parser, "model")
    parser.add_argument("--corpus", type=Path, required=True, help="passages to write about, TSV")
    parser.add_argument(
        "--widths", type=positive_integer, nargs="+", default=[1, 8, 64], help="texts side by side"
    )
    parser.add_argument("--repetitions", type=positive_integer, default=5, help="counted rounds")
    ways = "those to measure, such as rewrites or lists, constrained (not set: all)"
    parser.add_argument("--ways", nargs="+", metavar="WAY", help=ways)
    of = "count CPU seconds: this process's and these ones' (not set: the clock's)"
    parser.add_argument("--cpu_of", type=int, nargs="*", metavar="PID", help=of)
    parser.add_argument("--json", type=Path, help="file for the raw result (not set: none)")
    add_sampling_flags(parser)
    add_server_flags(parser)
    return parse_recipe(parser, arguments)


def main() -> None:
    """Load, write in turn, show, save."""
    options, recipe = parse_arguments()
    from limit import matmul_rate
    from machine import machine

    from utils.augmentation.writing import LocalModel
    from utils.models import pick_device
    from utils.prompting import load_prompts
    from utils.provenance import provenance
    from utils.retrieval.corpus import read_corpus

    counts = [max(width, LEAST_TEXTS) for width in options.widths]
    needed = sum(counts) * (options.repetitions + 1)
    passages = [text for _, text, _ in islice(read_corpus(options.corpus, "reading"), needed)]
    if len(passages) < needed:
        raise InputError(f"{options.corpus} has {len(passages)} passages, fewer than {needed}")
    prompts = load_prompts(recipe.prompts, "", with_cot=False)
    sampling = Sampling.of(options, prompts)
    here = LocalModel(recipe, prompts, replace(sampling, constrained=True), max(counts), print)
    there = Server(options, prompts, sampling, print) if options.api_base else None
    limit = matmul_rate(here.model, pick_device())
    parameters = sum(p.numel() for p in here.model.parameters())
    clock = partial(cpu_seconds, options.cpu_of) if options.cpu_of is not None else perf_counter
    rows, form, unused = [], here.form, iter(passages)
    for width, count in zip(options.widths, counts, strict=True):
        here.form = form
        ways = ways_of(here, there, width)
        ways = {name: ways[name] for name in options.ways or ways if name in ways}
        rounds = [[*islice(unused, count)] for _ in range(options.repetitions + 1)]
        rounds[0] = rounds[0][:LEAST_TEXTS]
        for name, round_values in in_turn(ways, rounds, here, clock).items():
            row = {"width": width, "way": name, "rounds": round_values}
            speeds = [one["tokens"] / one["seconds"] for one in round_values]
            row["tokens_per_second"] = statistics.median(speeds)
            shown = f"{row['tokens_per_second']:8.1f} tokens/s"
            if options.cpu_of is None and not name.endswith("server"):
                given = statistics.median(one["given"] / one["seconds"] for one in round_values)
                row["utilisation"] = 2 * parameters * given / limit
                shown += f", {row['utilisation']:.1%} of the limit"
            rows.append(row)
            print(f"{width:3} side by side, {name:22} {shown}", flush=True)
    if options.json:
        about = {
            "arguments": vars(options) | {"json": None, "corpus": str(options.corpus)},
            "matmul_rate": limit,
        }
        about |= {"machine": machine(), "provenance": provenance(), "parameters": parameters}
        write_json(options.json, about | {"rows": rows})


Way = Callable[[list[str]], list[str]]


def ways_of(here: "LocalModel", there: Server | None, width: int) -> dict[str, Way]:
    """What writes a text about each passage, by name."""
    from utils.augmentation.writing import LIST, Request

    here.batch_size, form = width, here.form

    def local(kind: str, constrained: bool) -> Way:
        def write(passages: list[str]) -> list[str]:
            here.form, texts = (form if constrained else None), {}
            asked = [Request(kind, passage, n, str(n)) for n, passage in enumerate(passages)]
            here.write(asked, lambda request, text: texts.update({request.seed: text}))
            return [texts[n] for n in range(len(passages))]

        return write

    def remote(kind: str) -> Way:
        def write(passages: list[str]) -> list[str]:
            with ThreadPool(width) as pool:
                asked = [(kind, passage, n) for n, passage in enumerate(passages)]
                return pool.starmap(there.answer, asked, chunksize=1)

        return write

    ways = {"rewrites": local("rewrite", False), "lists": local(LIST, False)}
    if form:
        ways["lists, constrained"] = local(LIST, True)
    if there:
        ways |= {"rewrites, server": remote("rewrite"), "lists, server": remote(LIST)}
    return ways


def cpu_seconds(others: list[int]) -> float:
    """What this process and those with the ids `others` have used so far."""
    return sum(sum(Process(pid).cpu_times()[:2]) for pid in [getpid(), *others])


def in_turn(
    ways: dict[str, Way], rounds: list[list[str]], here: "LocalModel", clock: Callable[[], float]
) -> dict[str, list[dict]]:
    """Seconds, tokens written and tokens that the model here was given (padding, too) of each way
    and round, of which the first does not count."""
    from clock import given_to

    found: dict[str, list[dict]] = {name: [] for name in ways}
    for number, passages in enumerate(rounds):
        for name, write in ways.items():
            began = clock()
            with given_to(here.model) as given:
                texts = write(passages)
            seconds = clock() - began
            tokens = sum(len(ids) + 1 for ids in here.tokenizer(texts)["input_ids"])
            if number:
                read = sum(map(prod, given))
                found[name].append({"seconds": seconds, "tokens": tokens, "given": read})
    return found


if __name__ == "__main__":
    run_stage(main)
