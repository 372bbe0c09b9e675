r"""Ask a question, or one after the other: the passages found, and what each method says.

    python src/ask.py "Where was Reidris Vavefen born?" --model_name data/demo/demo-model \
        --prompts demo --dataset demo --learning_rate 4e-3 --max_new_tokens 12 --index_name demo \
        --show_adapters

Without a question it reads them from standard input, one a line (Ctrl-D ends). The flags of
`encode.py` find the adapters, those of all data types of the data set; a passage without one is
marked.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from utils.arguments import new_parser
from utils.recipe import AT_ONCE, IN_PARAMETERS, Recipe, add_flags, parse_recipe
from utils.running import InputError, one_line, run_stage
from utils.serving.requests import Request, add_session_flags

if TYPE_CHECKING:
    from utils.session import Session

PROMPT = "question> "


def methods(text: str) -> list[str]:
    """`--methods`, for argparse."""
    chosen = list(dict.fromkeys(text.split(",")))
    if unknown := [name for name in chosen if name not in AT_ONCE]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(AT_ONCE)}")
    return chosen


def parse_arguments(arguments: list[str] | None = None) -> tuple[argparse.Namespace, Recipe]:
    """The command line."""
    parser = new_parser(__doc__)
    parser.add_argument("question", nargs="?", help="the question (not set: read from stdin)")
    groups = ("model", "data", "adapter", "answer", "merging")
    add_flags(parser, *groups, inference_method=None)
    add_session_flags(parser)
    add = parser.add_argument_group("asking").add_argument
    ways = f"ways to answer, of {', '.join(AT_ONCE)}"
    add("--methods", type=methods, default="closed_book,icl,prag,combine", help=ways)
    change = "answer again without each passage's adapter, and show what that changes"
    add("--show_adapters", action="store_true", help=change)
    add("--json", action="store_true", help="one JSON object for each question")
    return parse_recipe(parser, arguments)


def main() -> None:
    """Check, load, answer question after question."""
    options, recipe = parse_arguments()
    # torch takes seconds to import: not before the flags are known to be good
    from utils.processes import refuse_launcher
    from utils.session import Session

    refuse_launcher("ask.py")
    adapters = options.show_adapters or not set(IN_PARAMETERS).isdisjoint(options.methods)
    held = options.adapter_memory << 20
    session = Session(recipe, options, adapters, held)
    if session.several:
        words = f"{session.several} passages have more than one adapter: the first is used"
        print(words, file=sys.stderr)
    session.load()
    for question in [options.question] if options.question is not None else lines():
        try:
            reply = ask(session, question, options)
        except InputError as error:
            if options.question is not None:
                raise
            reply = {"question": question, "error": str(error)}
        print(json.dumps(reply, ensure_ascii=False) if options.json else shown(reply), flush=True)


def lines() -> Iterator[str]:
    """The questions on standard input; a person is asked for each."""
    while True:
        if sys.stdin.isatty():
            print(PROMPT, end="", file=sys.stderr, flush=True)
        if not (line := sys.stdin.readline()):
            return
        if line.strip():
            yield line.strip()


def ask(session: "Session", question: str, options: argparse.Namespace) -> dict:
    """The passages and the answers to `question`, and the seconds of all together. Raises
    `InputError` if it cannot be answered."""
    began = time.perf_counter()

    def answers(of: dict[str, tuple[str, list[str] | None]]) -> dict[str, dict]:
        """By name what a method says with these passages (None: those that are found)."""
        asked = []
        for method, passages in of.values():
            recipe = replace(session.recipe, inference_method=method)
            asked.append(Request(question, recipe, options.topk, passages))
        return dict(zip(of, session.ask(asked), strict=True))

    said = answers({method: (method, None) for method in options.methods})
    found = [one.pop("passages") for one in said.values()]
    reply = {"question": question, "passages": max(found, key=len), "answers": said}
    if options.show_adapters:
        reply["adapters"] = left_out(answers)
    return {**reply, "seconds": round(time.perf_counter() - began, 3)}


def left_out(answers: Callable[[dict], dict[str, dict]]) -> dict:
    """What `prag` says with all adapters, and without each passage's, by the passage's id."""
    whole = answers({"prag": ("prag", None)})["prag"]
    ids = [one["id"] for one in whole["passages"] if one["adapter"]]
    rest = {name: ("prag", [other for other in ids if other != name]) for name in ids}
    without = {name: one["answer"] for name, one in answers(rest).items()}
    return {"all": whole["answer"], "without": without}


def shown(reply: dict) -> str:
    """`reply` as a person reads it."""
    if "error" in reply:
        return f"error: {one_line(reply['error'])}"
    rows = []
    if not reply["passages"] and reply["answers"].keys() != {"closed_book"}:
        rows.append("no passage was found")
    for number, passage in enumerate(reply["passages"], 1):
        score = "" if passage["score"] is None else f"  {passage['score']:.2f}"
        without = "" if passage["adapter"] else "  (no adapter)"
        rows.append(f"{number}. {passage['title']} [{passage['id']}]{score}{without}")
        rows.append(f"   {passage['text']}")
    width = max(map(len, reply["answers"]))
    for name, one in reply["answers"].items():
        cut = "  (passages shortened)" if one["shortened"] else ""
        rows.append(f"{name:<{width}}  {one['answer']}{cut}")
    if adapters := reply.get("adapters"):
        for number, passage in enumerate(reply["passages"], 1):
            said = adapters["without"].get(passage["id"])
            if said is not None:
                same = "the same" if said == adapters["all"] else f"{said} (was {adapters['all']})"
                rows.append(f"prag without the adapter of {number}: {same}")
    return "\n".join([*map(one_line, rows), f"{reply['seconds']:.2f} s"])


if __name__ == "__main__":
    run_stage(main)
