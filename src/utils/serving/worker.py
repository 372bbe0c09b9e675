"""The thread that owns the model: what waits is answered in one batch."""

import asyncio
import queue
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import Any

from utils.running import InputError
from utils.serving.requests import Request
from utils.session import Row, Session

GATHERED = 0.005  # seconds that a first request waits for others, as a page asks four ways at once
MOST = 32  # requests that are taken at a time, unless --batch_size says it


class Busy(Exception):
    """As many requests wait as may wait."""


class Job:
    """A request on its way, and what is told about it: an event is a kind and its value.

    "begun": the row; "text": the text so far; "done": the answer; "failed": an exception.
    """

    def __init__(self, request: Request, stream: bool):
        self.request, self.events = request, asyncio.Queue()
        self.loop, self.asked = asyncio.get_running_loop(), time.perf_counter()
        if stream:
            request.tell = lambda text: self.put("text", text)

    def put(self, kind: str, value: Any) -> None:
        """Tell what happens, from the worker's thread."""
        with suppress(RuntimeError):  # the loop has been closed: nobody listens any more
            self.loop.call_soon_threadsafe(self.events.put_nowait, (kind, value))

    async def next(self) -> tuple[str, Any]:
        """The next event; raises what failed."""
        kind, value = await self.events.get()
        if kind == "failed":
            raise value
        return kind, value

    def leave(self) -> None:
        """Nobody waits for it any more."""
        self.request.gone = True


class Worker(threading.Thread):
    """Answers jobs batch by batch with `session`; at most `most` wait."""

    def __init__(self, session: Session, most: int):
        super().__init__(name="model")
        self.session, self.waiting, self.running = session, queue.Queue(most), 0
        self.size = session.recipe.batch_size or MOST

    def submit(self, job: Job) -> None:
        """Let `job` wait for the model; raises `Busy`. Those that nobody waits for make room."""
        if self.waiting.full():
            jobs: list[Job | None] = []
            with suppress(queue.Empty):
                while True:
                    jobs.append(self.waiting.get_nowait())
            for one in jobs:
                if one is None or not one.request.gone:
                    self.waiting.put_nowait(one)
        try:
            self.waiting.put_nowait(job)
        except queue.Full:
            raise Busy from None

    def run(self) -> None:
        """Answer until `stop`."""
        while (first := self.waiting.get()) is not None:
            jobs, self.running = [first], 1
            time.sleep(GATHERED)
            with suppress(queue.Empty):
                while len(jobs) < self.size:
                    jobs.append(self.waiting.get_nowait())
            if stopped := None in jobs:
                jobs.remove(None)
            self.running = len(jobs)
            self._answer([job for job in jobs if not job.request.gone])
            self.running = 0
            if stopped:
                return

    def stop(self) -> None:
        """Answer what waits, then end."""
        self.waiting.put(None)
        self.join()

    def _answer(self, jobs: list[Job]) -> None:
        """Tell each job its answer, or why it has none; nothing may end the thread."""
        try:
            rows = self.session.prepare([job.request for job in jobs])
            ready: list[tuple[Job, Row]] = []
            for job, row in zip(jobs, rows, strict=True):
                if isinstance(row, InputError):
                    job.put("failed", row)
                else:
                    job.put("begun", row)
                    ready.append((job, row))
            answers = self.session.answer([row for _, row in ready])
            for (job, _), answer in zip(ready, answers, strict=True):
                job.put(*(("failed", answer.bad) if answer.bad else ("done", answer)))
        except Exception as error:
            if not isinstance(error, InputError):
                traceback.print_exc(file=sys.stderr)
            for job in jobs:
                job.put("failed", error)
