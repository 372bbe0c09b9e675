"""Answers as OpenAI's interface has them, whole or as they are written."""

import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from utils.serving.guard import failure_of
from utils.serving.worker import Job
from utils.session import Answer, Row

HELD_BACK = 5  # characters of a growing text that the next token may change


@dataclass(frozen=True)
class Form:
    """How OpenAI's interface writes an answer down: the names of the whole, of a part of it and of
    its id, and `choice(text, reason, part, first)`, which makes the only choice."""

    whole_name: str
    part_name: str
    prefix: str
    choice: Callable[[str, str | None, bool, bool], dict]


def _message(text: str, reason: str | None, part: bool, first: bool) -> dict:
    message = {"role": "assistant"} if first or not part else {}
    message |= {"content": text} if text or first or not part else {}
    named = {"delta" if part else "message": message}
    return {"index": 0, **named, "finish_reason": reason, "logprobs": None}


def _text(text: str, reason: str | None, part: bool, first: bool) -> dict:
    return {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}


CHAT = Form("chat.completion", "chat.completion.chunk", "chatcmpl", _message)
COMPLETION = Form("text_completion", "text_completion", "cmpl", _text)


class Reply:
    """The answer to `job`, whose `row` is in the model, in its `form`."""

    def __init__(self, form: Form, model: str, job: Job, row: Row):
        self.form, self.job, self.row, self.sent = form, job, row, ""
        self.named = {"id": f"{form.prefix}-{uuid4().hex}", "created": int(time.time())}
        self.named["model"] = model

    def whole(self, answer: Answer) -> dict:
        """The answer as one object."""
        choice = self.form.choice(answer.text, answer.finish_reason, False, False)
        told = {"usage": self._usage(answer), "prag": self._prag(answer)}
        return {**self.named, "object": self.form.whole_name, "choices": [choice], **told}

    async def stream(self, with_usage: bool) -> AsyncIterator[str]:
        """The answer as it is written, as text/event-stream; the first and the last part also say
        what it is made of."""
        try:
            yield self._event(first=True, prag=self._prag())
            kind, value = await self.job.next()
            while kind == "text":
                if new := self._rest(value[:-HELD_BACK]):
                    yield self._event(new)
                kind, value = await self.job.next()
            if new := self._rest(value.text):
                yield self._event(new)
            yield self._event(reason=value.finish_reason, prag=self._prag(value))
            if with_usage:
                yield self._event(choices=[], usage=self._usage(value))
            yield "data: [DONE]\n\n"
        except Exception as error:
            yield f"data: {failure_of(error).body.decode()}\n\n"
        finally:
            self.job.leave()

    def _rest(self, text: str) -> str:
        """What of `text` has not been sent."""
        new = text[len(self.sent) :] if text.startswith(self.sent) else ""
        self.sent += new
        return new

    def _event(
        self, text: str = "", reason: str | None = None, first: bool = False, **more: Any
    ) -> str:
        choices = [self.form.choice(text, reason, True, first)]
        part = {**self.named, "object": self.form.part_name, "choices": choices, **more}
        return f"data: {json.dumps(part, ensure_ascii=False)}\n\n"

    def _usage(self, answer: Answer) -> dict:
        counts = {"prompt_tokens": len(self.row.prompt), "completion_tokens": answer.tokens}
        return {**counts, "total_tokens": sum(counts.values())}

    def _prag(self, answer: Answer | None = None) -> dict:
        """What the answer is made of; at its end also the short answer and the seconds it took."""
        recipe, passages = self.row.request.recipe, [one.shown for one in self.row.passages]
        told = {"method": self.row.request.method, "merge": recipe.merge}
        told |= {"scale": recipe.merge_scale, "passages": passages}
        told |= {"shortened": self.row.shortened}
        if answer:
            seconds = round(time.perf_counter() - self.job.asked, 3)
            told |= {"answer": answer.answer, "seconds": seconds}
        return told
