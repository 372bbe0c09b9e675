"""Texts by a server that speaks OpenAI's chat completions: vLLM, SGLang, `transformers serve`, …

A request is one user message with exactly the text of the prompt set; the chat template is the
server's. The official client tries again what is worth a later try (429, 5xx, a broken connection,
no answer in time), after growing pauses or when the server says.

The key is read from `OPENAI_API_KEY` alone and shown nowhere, nor is a password in the URL.
"""

import argparse
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from multiprocessing.pool import ThreadPool
from typing import TYPE_CHECKING, Any

from utils.arguments import positive_integer, positive_number
from utils.augmentation.records import PAIR_FIELDS, list_schema
from utils.augmentation.sampling import Sampling
from utils.prompting import TEMPLATE_OPTIONS, PromptSet
from utils.running import InputError

if TYPE_CHECKING:
    from utils.augmentation.writing import Next, Request

MAX_RETRIES = 8
ADDRESS = re.compile(r"https?://([^/]*@)?(\[[^/]+\]|[\w.-]+)(:\d+)?(/|$)")
FORM = "response_format"  # of question lists
KEY = "refuses the key ({}); give the right one in the variable OPENAI_API_KEY"
REFUSALS = {  # HTTP status -> what is wrong and what to do; {} are the server's words
    401: KEY,
    403: KEY,
    404: "does not find the model or the address ({}); give the model's name there with "
    "--api_model, and with --api_base the address up to /v1",
}
BUSY = (
    "cannot be reached, is too busy or fails ({}); correct --api_base, see its log, lower "
    "--api_concurrency or raise --api_timeout: the same command goes on"
)
OTHER = (
    "refuses a request ({}); give a smaller --max_new_tokens if prompt and answer are too long for "
    "it, and --api_model if it has another name for the model"
)


def add_server_flags(parser: argparse.ArgumentParser) -> None:
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
        help="seconds to wait for a whole answer before the request is sent again",
    )


def check_server_flags(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the program if the address is empty, or missing beside the server's name of a model."""
    if not options.api_base and (options.api_base == "" or options.api_model):
        parser.error("--api_base: give the server's address, such as http://localhost:8000/v1")


class Server:
    """An `Author` whose texts a server writes; `write` may run in many threads.

    `model` is the server's name for the model. `options` are the parsed flags, `say` prints a line.
    Raises `InputError` if the address is not one, or if the server, asked for its models, cannot be
    reached or refuses the key.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        prompts: PromptSet,
        sampling: Sampling,
        say: Callable[[str], None],
    ):
        import openai

        url = options.api_base.strip()
        self.url = without_password(url)
        if not ADDRESS.match(url):
            raise InputError(
                f"--api_base {self.url} is not the address of a server; it must read "
                "http://HOST:PORT/v1 or https://HOST/v1"
            )
        self.key = os.environ.get("OPENAI_API_KEY", "").strip()
        self.prompts, self.sampling, self.say = prompts, sampling, say
        self.progress = lambda texts, tokens: None
        self.threads = options.api_concurrency
        seconds = min(options.api_timeout, 1e6)  # what clocks take
        self.client = openai.OpenAI(
            base_url=url,
            api_key=self.key or "none",  # the client wants one, most servers of your own do not
            max_retries=MAX_RETRIES,
            timeout=seconds,
            http_client=_with_deadline(seconds),
        )
        # A server applies the model's own generation settings to what a request leaves open.
        self.extras = {"top_k": sampling.top_k_sampling, "min_p": 0.0, "repetition_penalty": 1.0}
        if sampling.temperature == 0:
            del self.extras["top_k"]
        self.extras["chat_template_kwargs"] = TEMPLATE_OPTIONS
        if sampling.constrained:
            schema = list_schema(prompts.pair_order or PAIR_FIELDS)
            form = {"name": "question_answer_pairs", "strict": True, "schema": schema}
            self.extras[FORM] = {"type": "json_schema", "json_schema": form}
        self.lock = threading.Lock()
        self.model = options.api_model or self._only_model() or options.model_name

    def _only_model(self) -> str:
        """The name of the only model that the server lists, else ""."""
        import openai

        once = self.client.with_options(max_retries=1).models.with_raw_response
        try:
            listed = once.list().http_response.json()["data"] or []
            names = [str(one["id"] or "") for one in listed]
        except openai.APIStatusError as error:
            if error.status_code in (401, 429) or error.status_code >= 500:
                raise self._refusal(error) from None
            names = []  # many servers have no such list
        except openai.APIError as error:
            raise self._refusal(error) from None
        except (ValueError, TypeError, KeyError, RecursionError):
            raise InputError(
                f"the server at {self.url} answers /models with something that is not a list of "
                "models; correct --api_base (it mostly ends in /v1), or give --api_model"
            ) from None
        return names[0] if len(names) == 1 else ""

    def cut(self, wave: dict[str, str]) -> list[dict[str, str]]:
        """See `Author`; passage by passage, so that a stop loses only what is on its way."""
        return [{key: passage} for key, passage in wave.items()]

    def each(self, write: Callable[[dict], dict], chunks: list[dict]) -> Iterator[dict]:
        """See `Author`; at most `--api_concurrency` at the same time."""
        # Its threads are daemons: an interruption does not wait for answers on their way.
        with ThreadPool(min(self.threads, len(chunks)) or 1) as pool:
            yield from pool.imap_unordered(write, chunks)

    def write(self, requests: list["Request"], then: "Next") -> None:
        """See `Author`; one after the other. Raises `InputError` if the server fails."""
        for request in requests:
            one: Request | None = request
            while one:
                one = then(one, self.answer(one.kind, one.passage, one.seed))

    def answer(self, kind: str, passage: str, seed: int) -> str:
        """The text that the request `kind` gets. Raises `InputError` if the server fails."""
        import openai

        try:
            return self._text(kind, passage, seed)
        except openai.APIError as error:
            raise self._refusal(error) from None

    def _text(self, kind: str, passage: str, seed: int) -> str:
        """The text of one answer; settings that the server refuses are left out from then on."""
        import openai

        message = self.prompts.request(kind, passage)
        sent = dict(self.extras)
        if kind == "rewrite":
            sent.pop(FORM, None)
        taken = dict(sent)
        while True:
            try:
                text = self._complete(message, seed, taken)
                break
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if not taken:  # the extras were not the reason
                    raise
                named = {name for name in taken if name in str(error)}
                # what is wrong with a schema is said in many ways
                named = named or {FORM} & taken.keys() or taken.keys()
                taken = {name: taken[name] for name in taken.keys() - named}
        with self.lock:
            if refused := self.extras.keys() & (sent.keys() - taken.keys()):
                if FORM in refused:
                    self.say(f"the server at {self.url} takes no {FORM}: lists are not constrained")
                if names := " or ".join(sorted(refused - {FORM})):
                    self.say(
                        f"the server at {self.url} takes no {names}: what the model's own settings "
                        "or chat template say of it has an effect"
                    )
                self.extras = {name: self.extras[name] for name in self.extras.keys() - refused}
        return text

    def _complete(self, message: str, seed: int, extras: dict[str, Any]) -> str:
        """The text of a chat completion; "" if it has none, such as after a refusal."""
        try:
            answer = self.client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": message}],
                max_tokens=self.sampling.max_new_tokens,
                temperature=self.sampling.temperature,
                top_p=1,
                seed=seed,
                extra_body=extras,
            )
            text = answer.choices[0].message.content or ""
            # half a surrogate pair ("\ud83d") cannot be written to a file
            text = text.encode(errors="ignore").decode().strip()
            self.progress(1, getattr(answer.usage, "completion_tokens", None) or 0)
            return text
        except (ValueError, AttributeError, IndexError, TypeError):
            raise InputError(
                f"the server at {self.url} answers with something that is not a chat completion; "
                "correct --api_base (it mostly ends in /v1), or see its log"
            ) from None

    def _refusal(self, error: Exception) -> InputError:
        """What the client raised as a sentence, with the server's words but no key or password."""
        status = getattr(error, "status_code", 500)
        words = BUSY if status == 429 or status >= 500 else REFUSALS.get(status, OTHER)
        reason = " ".join(without_password(str(error)).split())
        reason = reason.replace(self.key, "...") if self.key else reason
        return InputError(f"the server at {self.url} {words.format(reason[:300])}")


def _with_deadline(seconds: float) -> Any:
    """The official client's own HTTP client, but an answer that is not whole after `seconds` is a
    timeout: its own counts from each byte to the next, and a server may drip them for ever."""
    import openai

    client = openai.DefaultHttpxClient()
    library = sys.modules[type(client).__base__.__module__]  # httpx, or httpx2 in later versions
    send = client.send

    def send_in_time(request: Any, **how: Any) -> Any:
        whole: Future = Future()

        def work() -> None:
            try:
                whole.set_result(send(request, **how))
            except Exception as error:
                whole.set_exception(error)

        threading.Thread(target=work, daemon=True).start()  # at the end nobody waits for it
        try:
            return whole.result(seconds)
        except TimeoutError:
            raise library.ReadTimeout("no whole answer in time", request=request) from None

    client.send = send_in_time
    return client


def without_password(text: str) -> str:
    """`text` without what is before the @ of a URL."""
    return re.sub("//.*@", "//...@", text)
