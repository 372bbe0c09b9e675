"""The paths of the HTTP interface: OpenAI's, the passages, the page."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from utils.recipe import AT_ONCE
from utils.running import InputError
from utils.serving.guard import Guard, body_of, content_policy, failure_of
from utils.serving.replies import CHAT, COMPLETION, Form, Reply
from utils.serving.requests import MERGES, NotFound, chat_call, completion_call
from utils.serving.worker import Busy, Job, Worker

PAGE = Path(__file__).with_name("page.html")


def new_app(worker: Worker, model: str, topk: int, key: str | None, host: str) -> Starlette:
    """The application that answers with `worker`, whose model is called `model`."""
    service = Service(worker, model, topk)

    @asynccontextmanager
    async def running(app: Starlette) -> AsyncIterator[None]:
        worker.start()
        yield
        await asyncio.to_thread(worker.stop)

    async def failed(request: HTTPRequest, error: Exception) -> Response:
        return failure_of(error)

    routes = [
        Route("/", service.page),
        Route("/health", service.health),
        Route("/v1/models", service.models),
        Route("/v1/models/{name:path}", service.one_model),
        Route("/v1/passages", service.passage),
        Route("/v1/chat/completions", service.chat, methods=["POST"]),
        Route("/v1/completions", service.completions, methods=["POST"]),
    ]
    guard = Middleware(Guard, key=key, host=host)
    kinds = (HTTPException, InputError, Busy, ClientDisconnect, Exception)
    handlers = dict.fromkeys(kinds, failed)
    return Starlette(
        routes=routes, middleware=[guard], exception_handlers=handlers, lifespan=running
    )


class Service:
    """The answer to each path."""

    def __init__(self, worker: Worker, model: str, topk: int):
        self.worker, self.model, self.topk = worker, model, topk
        self.session, self.started = worker.session, int(time.time())
        html = PAGE.read_text(encoding="utf-8")
        self.html, self.policy = html, content_policy(html)

    async def page(self, request: HTTPRequest) -> Response:
        """The page, which may load nothing from elsewhere."""
        safe = {"Content-Security-Policy": self.policy, "X-Content-Type-Options": "nosniff"}
        safe |= {"Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
        return HTMLResponse(self.html, headers=safe)

    async def health(self, request: HTTPRequest) -> Response:
        """Whether questions are answered."""
        alive = self.worker.is_alive()
        state = {"status": "ok" if alive else "stopping", "running": self.worker.running}
        return JSONResponse(state | {"waiting": self.worker.waiting.qsize()}, 200 if alive else 503)

    async def models(self, request: HTTPRequest) -> Response:
        """The list of the only model."""
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def one_model(self, request: HTTPRequest) -> Response:
        """The model, if it has this name."""
        if (name := request.path_params["name"]) != self.model:
            raise NotFound(f"there is no model {name[:80]!r}; this server has {self.model!r}")
        return JSONResponse(self._described())

    def _described(self) -> dict:
        """The model, and what a `prag` object may choose."""
        choices = {"methods": AT_ONCE, "merges": [*MERGES], "topk": self.topk}
        choices |= {"method": self.session.recipe.inference_method}
        choices |= {"passages": len(self.session.by_text)}
        own = {"id": self.model, "object": "model", "created": self.started, "owned_by": "prag"}
        return {**own, "prag": choices}

    async def passage(self, request: HTTPRequest) -> Response:
        """What the adapter of an encoded passage was trained on."""
        name = request.query_params.get("id", "")
        if (passage := self.session.by_id.get(name)) is None:
            raise NotFound(f"no passage {name[:80]!r} was encoded; name an id of a reply")
        return JSONResponse(passage.learnt)

    async def chat(self, request: HTTPRequest) -> Response:
        """The answer to a question."""
        return await self._answer(request, chat_call, CHAT)

    async def completions(self, request: HTTPRequest) -> Response:
        """What follows a prompt."""
        return await self._answer(request, completion_call, COMPLETION)

    async def _answer(self, http: HTTPRequest, read: Callable, form: Form) -> Response:
        call = read(await body_of(http), self.session.recipe, self.topk, self.model)
        job = Job(call.request, call.stream)
        self.worker.submit(job)
        watching = asyncio.create_task(_leave_with(http, job))
        try:
            _, row = await job.next()
            reply = Reply(form, self.model, job, row)
            if not call.stream:
                _, answer = await job.next()
                return JSONResponse(reply.whole(answer))
        except Gone:
            return Response(status_code=499)  # nobody reads it
        finally:
            watching.cancel()
        return StreamingResponse(reply.stream(call.with_usage), media_type="text/event-stream")


class Gone(Exception):
    """The client has left."""


async def _leave_with(http: HTTPRequest, job: Job) -> None:
    """Let `job` go when its client leaves."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
    job.leave()
    job.events.put_nowait(("failed", Gone()))
