"""Texts by a server that speaks OpenAI's chat completions: vLLM, SGLang, `transformers serve`, …

A request is one user message with exactly the text of the prompt set; the chat template is the
server's. The official client tries again what is worth a later try (429, 5xx, a broken connection,
no answer in time), after growing pauses or when the server says.

The key is read from `OPENAI_API_KEY` alone and shown nowhere, nor is a password in the URL.
"""

import argparse
import os
import re
import threading
from collections.abc import Callable, Iterator
from multiprocessing.pool import ThreadPool
from typing import Any

from utils.arguments import positive_integer, positive_number
from utils.augmentation.sampling import Sampling
from utils.prompting import PromptSet
from utils.running import InputError

MAX_RETRIES = 8
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
        help="seconds to wait for an answer before the request is sent again",
    )


class Server:
    """An `Author` whose texts a server writes; `answer` may run in many threads.

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
        self.url = _without_password(url)
        if not re.match(r"https?://([^/]*@)?(\[[^/]+\]|[\w.-]+)(:\d+)?(/|$)", url):
            raise InputError(
                f"--api_base {self.url} is not the address of a server; it must read "
                "http://HOST:PORT/v1 or https://HOST/v1"
            )
        self.key = os.environ.get("OPENAI_API_KEY", "").strip()
        self.prompts, self.sampling, self.say = prompts, sampling, say
        self.threads = options.api_concurrency
        self.client = openai.OpenAI(
            base_url=url,
            api_key=self.key or "none",  # the client wants one, most servers of your own do not
            max_retries=MAX_RETRIES,
            timeout=options.api_timeout,
        )
        # A server applies the model's own generation settings to what a request leaves open.
        self.extras = {"top_k": sampling.top_k_sampling, "repetition_penalty": 1.0}
        if sampling.temperature == 0:
            del self.extras["top_k"]
        self.lock = threading.Lock()
        self.model = options.api_model or self._only_model() or options.model_name

    def _only_model(self) -> str:
        """The name of the only model that the server lists, else ""."""
        import openai

        try:
            listed = self.client.with_options(max_retries=1).models.list().data
            return str(listed[0].id) if len(listed) == 1 else ""
        except (openai.APIConnectionError, openai.AuthenticationError) as error:
            raise self._refusal(error) from None
        except (openai.APIError, ValueError, AttributeError, TypeError):
            return ""  # many servers have no such list

    def cut(self, wave: dict[str, str]) -> list[dict[str, str]]:
        """See `Author`; passage by passage, so that a stop loses only what is on its way."""
        return [{key: passage} for key, passage in wave.items()]

    def each(self, write: Callable[[dict], dict], chunks: list[dict]) -> Iterator[dict]:
        """See `Author`; at most `--api_concurrency` at the same time."""
        # Its threads are daemons: an interruption does not wait for answers on their way.
        with ThreadPool(min(self.threads, len(chunks)) or 1) as pool:
            yield from pool.imap_unordered(write, chunks)

    def answer(self, kind: str, passages: list[str], seeds: list[int]) -> list[str]:
        """See `Author`; one after the other. Raises `InputError` if the server fails."""
        import openai

        try:
            return [
                self._text(self.prompts.request(kind, passage), seed)
                for passage, seed in zip(passages, seeds, strict=True)
            ]
        except openai.APIError as error:
            raise self._refusal(error) from None

    def _text(self, message: str, seed: int) -> str:
        """The text of one answer; settings that the server refuses are left out from then on."""
        import openai

        if self.extras:
            try:
                return self._complete(message, seed, self.extras)
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                pass
        text = self._complete(message, seed, {})  # raises if the extras were not the reason
        with self.lock:
            if self.extras:
                self.say(
                    f"the server at {self.url} takes no {' or '.join(self.extras)}: "
                    "--top_k_sampling has no effect, and the model's own settings may have one"
                )
            self.extras = {}
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
            return text.encode(errors="ignore").decode().strip()
        except (ValueError, AttributeError, IndexError, TypeError):
            raise InputError(
                f"the server at {self.url} answers with something that is not a chat completion; "
                "correct --api_base (it mostly ends in /v1), or see its log"
            ) from None

    def _refusal(self, error: Exception) -> InputError:
        """What the client raised as a sentence, with the server's words but no key or password."""
        status = getattr(error, "status_code", 500)
        words = BUSY if status == 429 or status >= 500 else REFUSALS.get(status, OTHER)
        reason = " ".join(_without_password(str(error)).split())
        reason = reason.replace(self.key, "...") if self.key else reason
        return InputError(f"the server at {self.url} {words.format(reason[:300])}")


def _without_password(text: str) -> str:
    return re.sub("//.*@", "//...@", text)
