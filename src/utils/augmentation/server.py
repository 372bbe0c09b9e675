"""Texts by a server that speaks OpenAI's chat completions: vLLM, SGLang, `transformers serve`, …

A request is one user message with exactly the text of the prompt set; the chat template is the
server's. What is worth a later try (429, 5xx, a broken connection, an answer that is no chat
completion) gets a bounded number of these, after growing pauses or when the server says. A chat
completion counts whatever text is in it, and without a text as an empty one.

The key is read from `OPENAI_API_KEY` alone and shown nowhere, nor is a password in the URL.
"""

import argparse
import os
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from utils.arguments import positive_integer, positive_number
from utils.prompting import PromptSet
from utils.running import InputError

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

Item, Result = TypeVar("Item"), TypeVar("Result")
MAX_RETRIES = 8
LONGEST_WAIT = 8.0  # seconds between tries, where the server names no time
CONNECTING = 10.0  # seconds
CHECKING = 30.0  # seconds for each request before work begins
NO_JSON = (ValueError, RecursionError)  # what the client raises for an answer that cannot be read


def add_server_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """`--api_base`, `--api_model`, `--api_concurrency`, `--api_timeout`."""
    group = parser.add_argument_group("a server instead of a model in this process")
    group.add_argument(
        "--api_base",
        metavar="URL",
        help="OpenAI-compatible server, such as http://localhost:8000/v1; its key, if it wants "
        "one, is read from $OPENAI_API_KEY (not set: the model is loaded here)",
    )
    group.add_argument(
        "--api_model",
        metavar="NAME",
        help="the server's name for the model (not set: the only one that it lists, else "
        "--model_name)",
    )
    group.add_argument(
        "--api_concurrency", type=positive_integer, default=16, help="requests at the same time"
    )
    group.add_argument(
        "--api_timeout",
        type=positive_number,
        default=120.0,
        help="seconds to wait for an answer before the request is sent again",
    )
    return group


class Server:
    """An `Author` whose texts a server writes; `answer` may run in many threads.

    `model` is the server's name for the model. `say` prints a line. Raises `InputError`, before any
    work, where the server cannot be used: unreachable, a wrong key, an unknown model.
    """

    shortened = 0  # a server refuses what is too long for it

    def __init__(self, options: argparse.Namespace, prompts: PromptSet, say: Callable[[str], None]):
        import openai

        self.options, self.prompts, self.say = options, prompts, say
        self.url, self.secrets = _split_url(options.api_base.strip())
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if key and not re.fullmatch(r"[!-~]+", key):
            raise InputError(
                "the variable OPENAI_API_KEY has characters that no key has; correct it, or unset "
                "it for a server that wants none"
            )
        if key:
            self.secrets.append(key)
        self.client = openai.OpenAI(
            base_url=options.api_base.strip(),
            api_key=key or "none",  # the client wants one, most servers of one's own do not
            max_retries=MAX_RETRIES,
            timeout=openai.Timeout(options.api_timeout, connect=CONNECTING),
        )
        self.takes_top_k = True
        self.lock = threading.Lock()
        self.listed: list[str] = []
        self.model = options.api_model or ""
        self.works = False
        with self._failures_named():
            self._choose_model()
        self.works = True

    def _choose_model(self) -> None:
        """Find the model's name, and ask for one token where the server does not list it."""
        import openai

        seconds = min(CHECKING, self.options.api_timeout)
        timeout = openai.Timeout(seconds, connect=min(CONNECTING, seconds))
        quick = self.client.with_options(max_retries=1, timeout=timeout)
        try:
            self.listed = _names(quick.models.list())
        except openai.APIStatusError as error:
            # many servers have no such list, and some keys may not read it
            if error.status_code in (401, 429) or error.status_code >= 500:
                raise
        except NO_JSON:
            pass
        if not self.model:
            only = self.listed[0] if len(self.listed) == 1 else None
            self.model = only or self.options.model_name
        if self.model not in self.listed:
            message = [{"role": "user", "content": "Hello"}]
            try:
                completion = quick.chat.completions.create(
                    model=self.model, messages=message, max_tokens=1, temperature=0
                )
            except NO_JSON:
                completion = None
            if not _is_completion(completion):
                raise self._no_completion()

    def cut(self, wave: dict[str, str]) -> list[dict[str, str]]:
        """See `Author`; passage by passage, so that a stop loses only what is on its way."""
        return [{key: passage} for key, passage in wave.items()]

    def each(self, write: Callable[[dict], dict], chunks: list[dict]) -> Iterator[dict]:
        """See `Author`; at most `--api_concurrency` at the same time."""
        return in_threads(write, chunks, self.options.api_concurrency)

    def answer(self, kind: str, passages: list[str], seeds: list[int]) -> list[str]:
        """See `Author`; one after the other. Raises `InputError` where the server fails."""
        request = {"pairs": self.prompts.pairs_request, "rewrite": self.prompts.rewrite_request}
        with self._failures_named():
            return [
                self._text(request[kind](passage), seed)
                for passage, seed in zip(passages, seeds, strict=True)
            ]

    def _text(self, message: str, seed: int) -> str:
        for attempt in range(MAX_RETRIES + 1):
            if attempt:
                pause = min(0.5 * 2 ** (attempt - 1), LONGEST_WAIT)
                time.sleep(pause * random.uniform(0.75, 1))
            try:
                completion = self._complete(message, seed)
            except NO_JSON:
                continue
            if _is_completion(completion):
                return _content(completion)
        raise self._no_completion()

    def _complete(self, message: str, seed: int) -> "ChatCompletion":
        """One answer; the client itself tries again after 429, 5xx and failures of the network."""
        import openai

        request: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": message}],
            "max_tokens": self.options.max_new_tokens,
            "temperature": self.options.temperature,
            "seed": seed,
        }
        create = self.client.chat.completions.create
        if not self.takes_top_k or self.options.temperature == 0:
            return create(**request)
        try:
            return create(**request, extra_body={"top_k": self.options.top_k_sampling})
        except (openai.BadRequestError, openai.UnprocessableEntityError):
            completion = create(**request)  # raises where top_k was not the reason
            with self.lock:
                if self.takes_top_k:
                    self.takes_top_k = False
                    self.say(
                        f"the server at {self.url} takes no top_k: --top_k_sampling has no effect"
                    )
            return completion

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        """What the client raises in the block becomes an `InputError` with the remedy."""
        import openai

        where = f"the server at {self.url}"
        try:
            yield
        except openai.APITimeoutError:
            raise InputError(
                f"{where} gave no answer within {self.options.api_timeout:g} s, again and again; "
                "see its log, lower --api_concurrency or raise --api_timeout, then start the same "
                "command again"
            ) from None
        except openai.APIConnectionError as error:
            raise InputError(
                f"{where} cannot be reached or breaks off ({self._shown(error.__cause__)}); start "
                "it or correct --api_base, then start the same command again"
            ) from None
        except openai.APIStatusError as error:
            raise InputError(self._refusal(where, error)) from None
        except openai.OpenAIError as error:
            raise InputError(
                f"{where} cannot be used ({self._shown(error)}); see its log, then start the same "
                "command again"
            ) from None

    def _refusal(self, where: str, error: Any) -> str:
        """The sentence for an answer with the HTTP status of an error."""
        status, reason = error.status_code, self._shown(_message(error.body))
        if status in (401, 403):
            return (
                f"{where} refuses the key ({reason}); give the right one in the variable "
                "OPENAI_API_KEY"
            )
        if status == 404:
            listed = f"it lists {', '.join(self.listed[:10])}" if self.listed else "it lists none"
            return (
                f"{where} does not find the model {self.model!r} ({reason}; {listed}); give its "
                "name there with --api_model, and with --api_base the address up to /v1"
            )
        if status == 429 or status >= 500:
            cause = "is too busy" if status == 429 else f"fails with status {status}"
            return (
                f"{where} {cause} ({reason}); see its log, lower --api_concurrency or try later: "
                "the same command goes on"
            )
        remedy = (
            "if the prompt and --max_new_tokens are too long for it, give a smaller "
            "--max_new_tokens or serve the model with a longer context"
            if self.works
            else f"if it has no model {self.model!r}, give its name there with --api_model"
        )
        return f"{where} refuses a request with status {status} ({reason}); {remedy}"

    def _no_completion(self) -> InputError:
        return InputError(
            f"the server at {self.url} answers with something that is no chat completion; correct "
            "--api_base (it mostly ends in /v1), or see its log, or that of a proxy before it"
        )

    def _shown(self, reason: object) -> str:
        """`reason` short, on one line, without key and password."""
        text = " ".join(str(reason or "no reason given").split())
        for secret in self.secrets:
            text = text.replace(secret, "...")
        return text if len(text) <= 300 else text[:300] + "..."


def _split_url(url: str) -> tuple[str, list[str]]:
    """`url` without user and password, and the forms of the password, which nothing may show."""
    shown = re.sub(r"//.*@", "//...@", url)
    problem = InputError(
        f"--api_base {shown} is no address of a server; it must read http://HOST:PORT/v1 or "
        "https://HOST/v1, special characters of a password as %XX"
    )
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        usable = usable and parts.port != 0 and "@" not in parts.path
    except ValueError:
        usable = False
    if not usable or re.search(r"\s", url) or parts.query or parts.fragment:
        raise problem
    secrets = [parts.password, unquote(parts.password)] if parts.password else []
    place = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{place}{parts.path.rstrip('/')}", secrets


def _names(page: object) -> list[str]:
    """The names in an answer to GET /models; none where it is something else."""
    models = getattr(page, "data", None)
    names = [getattr(model, "id", None) for model in models] if isinstance(models, list) else []
    return [name for name in names if isinstance(name, str)]


def _is_completion(answer: object) -> bool:
    return isinstance(getattr(answer, "choices", None), list)


def _content(completion: Any) -> str:
    """The text of a completion; "" where there is none, such as after a refusal."""
    try:
        content = completion.choices[0].message.content
    except (AttributeError, IndexError):
        return ""
    # half a surrogate pair ("\ud83d") cannot be written to a file
    return content.encode(errors="ignore").decode().strip() if isinstance(content, str) else ""


def _message(body: object) -> object:
    """The words in the body of an error."""
    if isinstance(body, dict):
        return body.get("message") or body.get("detail") or body.get("error") or body
    if isinstance(body, str) and body.lstrip().startswith("<"):  # by a proxy, mostly
        return "a web page in place of a reason"
    return body


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """`function(item)` of each item as it is finished, at most `threads` at the same time.

    An error stops the work and is raised when what runs beside it is finished. The threads are
    daemons: an interruption does not wait for them.
    """
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    finished: queue.SimpleQueue = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    stopped = threading.Event()

    def work() -> None:
        while not stopped.is_set():
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                break
            try:
                finished.put((function(item), None))
            except Exception as error:
                stopped.set()
                finished.put((None, error))
        finished.put(None)

    count = min(threads, waiting.qsize())
    for _ in range(count):
        threading.Thread(target=work, daemon=True).start()
    failure = None
    try:
        while count:
            entry = finished.get()
            if entry is None:
                count -= 1
            elif entry[1] is not None:
                failure = failure or entry[1]
            else:
                yield entry[0]
        if failure is not None:
            raise failure
    finally:
        stopped.set()
