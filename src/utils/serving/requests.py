"""What is asked: the flags and the JSON bodies, checked; nothing heavy is imported."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from utils.arguments import positive_integer
from utils.recipe import AT_ONCE, IN_CONTEXT, IN_PARAMETERS, Recipe, names_in
from utils.retrieval import add_index_flags
from utils.running import InputError

MOST_PASSAGES = 20  # of a request: the rank of a merged adapter, for which memory is needed, grows
MOST_SCALE = 1000
MERGES = names_in("lora/merges.py", "MERGES")
# what OpenAI's interface has and greedy answers leave no choice for: field -> its only value
FIXED = {"temperature": 0, "top_p": 1, "n": 1, "best_of": 1, "echo": False, "logprobs": False}
FIXED |= {"presence_penalty": 0, "frequency_penalty": 0, "store": False}
MEANINGLESS = {"user", "seed", "metadata", "safety_identifier", "service_tier"}
SHARED = {"model", "stream", "stream_options", "max_tokens", "prag", *FIXED, *MEANINGLESS}


class Refused(InputError):
    """A request that cannot be answered as it is; others can. `status` is HTTP's."""

    status = 400


class NotFound(Refused):
    """A request that names something that is not there."""

    status = 404


@dataclass
class Request:
    """A question, or with `raw` a prompt as it is: its text or its token ids.

    The `topk` best passages are searched, unless `passages` names them by their ids. `gone` may be
    set at any time: then its text ends. `tell` is given the text so far, token by token.
    """

    question: str
    recipe: Recipe
    topk: int
    passages: list[str] | None = None
    raw: str | list[int] | None = None
    tell: Callable[[str], None] | None = None
    gone: bool = False

    @property
    def method(self) -> str:
        """Where its passages go."""
        return self.recipe.inference_method

    @property
    def reads(self) -> bool:
        """Whether its method uses passages."""
        return self.method in {*IN_CONTEXT, *IN_PARAMETERS}


@dataclass
class Call:
    """A request over HTTP, and how its answer is sent."""

    request: Request
    stream: bool
    with_usage: bool  # a last chunk of the stream with the numbers of tokens


def few_passages(text: str) -> int:
    """A number of passages, for argparse."""
    if (number := positive_integer(text)) > MOST_PASSAGES:
        raise argparse.ArgumentTypeError(f"{text} is more than {MOST_PASSAGES}")
    return number


def add_session_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of what `ask.py` and `serve.py` keep open, beside those of the recipe."""
    group = parser.add_argument_group("passages")
    add_index_flags(parser, group)
    add = group.add_argument
    add("--topk", type=few_passages, default=3, help="passages of a question")
    memory = "MB of adapters that are kept in memory, those used last"
    add("--adapter_memory", type=positive_integer, default=1024, help=memory)


def chat_call(body: Any, recipe: Recipe, topk: int, model: str) -> Call:
    """What a body of `/v1/chat/completions` asks; `recipe` and `topk` give what it leaves open.
    Raises `Refused` with one sentence."""
    _check_fields(body, SHARED | {"messages", "max_completion_tokens"}, model)
    return _call(body, _content(body.get("messages")), recipe, topk)


def completion_call(body: Any, recipe: Recipe, topk: int, model: str) -> Call:
    """The same for `/v1/completions`, whose prompt goes to the model as it is."""
    _check_fields(body, SHARED | {"prompt"}, model)
    prompt = body.get("prompt")
    is_tokens = isinstance(prompt, list) and all(type(one) is int for one in prompt)
    if not prompt or not (is_tokens or isinstance(prompt, str)):
        raise Refused("prompt must be one text or one list of token ids; send one prompt at a time")
    if recipe.inference_method in IN_CONTEXT:
        method = "prag" if recipe.inference_method in IN_PARAMETERS else "closed_book"
        recipe = replace(recipe, inference_method=method)
    call = _call(body, "", recipe, topk)
    call.request.raw = prompt
    if call.request.method in IN_CONTEXT:
        raise Refused(
            f"prag.method {call.request.method} puts passages into the prompt, but this prompt is "
            "sent as it is; use prag or closed_book, or /v1/chat/completions"
        )
    return call


def _check_fields(body: Any, known: set[str], model: str) -> None:
    """Raise `Refused` for a field that is not known or asks for what is not done."""
    if not isinstance(body, dict):
        raise Refused("the body must be a JSON object; see docs/serving.md")
    for name, value in body.items():
        if value is None:
            continue
        if name not in known:
            raise Refused(f"the field {name[:80]!r} is not supported; leave it out")
        only = FIXED.get(name, value)
        if value != only or isinstance(value, bool) != isinstance(only, bool):
            raise Refused(
                f"{name} can only be {only!r} here, where answers are greedy; leave it out"
            )
    if body.get("model", model) not in (model, None):
        raise NotFound(f"there is no model {str(body['model'])[:80]!r}; this server has {model!r}")


def _content(messages: Any) -> str:
    """The question: the text of the only message."""
    one = messages[0] if isinstance(messages, list) and len(messages) == 1 else None
    if not isinstance(one, dict) or one.get("role") != "user":
        raise Refused(
            "messages must be a list of one message of the role user, as each question is asked "
            "alone; leave out system messages and earlier turns"
        )
    content = one.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    kinds = {part.get("type") for part in parts if isinstance(part, dict)}
    if len(texts) < len(parts) or kinds - {"text"} or not all(isinstance(t, str) for t in texts):
        raise Refused("the message's content must be text; leave out everything else")
    if not "".join(texts).strip():
        raise Refused("the question is empty; write one into the message's content")
    return "".join(texts)


def _call(body: dict, question: str, recipe: Recipe, topk: int) -> Call:
    options = _object(body, "stream_options", {"include_usage", "include_obfuscation"})
    prag = _object(body, "prag", {"method", "topk", "merge", "scale", "passages"})
    stream = _value(body, "stream", False, lambda v: isinstance(v, bool), "true or false")
    with_usage = options.get("include_usage") is True
    limits = [body[k] for k in ("max_tokens", "max_completion_tokens") if body.get(k) is not None]
    for limit in limits:
        if type(limit) is not int or not 0 < limit <= recipe.max_new_tokens:
            raise Refused(
                f"max_tokens must be a number from 1 to {recipe.max_new_tokens}, the server's "
                "--max_new_tokens; leave it out to have as many"
            )
    if limits:
        recipe = replace(recipe, max_new_tokens=min(limits))
    return Call(_request(prag, question, recipe, topk), stream, with_usage)


def _request(prag: dict, question: str, recipe: Recipe, topk: int) -> Request:
    """The request that the `prag` object describes."""

    def value(name: str, default: Any, fits: Callable[[Any], bool], words: str) -> Any:
        return _value(prag, name, default, fits, words, "prag.")

    count = f"a whole number from 1 to {MOST_PASSAGES}"
    ids = f"a list of at most {MOST_PASSAGES} ids of passages, each a text"
    method = value("method", recipe.inference_method, AT_ONCE.__contains__, " or ".join(AT_ONCE))
    merge = value("merge", recipe.merge, MERGES.__contains__, " or ".join(MERGES))
    scale = value("scale", recipe.merge_scale, _is_scale, f"a number above 0, at most {MOST_SCALE}")
    topk = value("topk", topk, lambda v: type(v) is int and 0 < v <= MOST_PASSAGES, count)
    passages = value("passages", None, _are_ids, ids)
    own = [name for name in ("merge", "scale") if prag.get(name) is not None]
    if own and method not in IN_PARAMETERS:
        raise Refused(f"prag.method {method} merges no adapters; leave out prag.{own[0]}")
    recipe = replace(recipe, inference_method=method, merge=merge, merge_scale=scale)
    if method in IN_PARAMETERS and (problem := recipe.problem()):
        raise Refused(problem)
    return Request(question, recipe, topk, passages)


def _object(body: dict, name: str, keys: set[str]) -> dict:
    """The object under `name`, which has no other keys."""
    value = body.get(name)
    value = {} if value is None else value
    if not isinstance(value, dict) or value.keys() - keys:
        raise Refused(f"{name} must be an object with only {', '.join(sorted(keys))}; correct it")
    return value


def _value(
    held: dict, name: str, default: Any, fits: Callable[[Any], bool], words: str, where: str = ""
) -> Any:
    """The value under `name`, which must fit; the default if it is absent or null."""
    value = held.get(name)
    if value is None:
        return default
    if fits(value):
        return value
    raise Refused(f"{where}{name} must be {words}; correct it or leave it out")


def _is_scale(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= MOST_SCALE


def _are_ids(value: Any) -> bool:
    few = isinstance(value, list) and len(value) <= MOST_PASSAGES
    return few and all(isinstance(one, str) for one in value)
