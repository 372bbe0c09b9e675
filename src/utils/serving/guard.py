"""Who may ask, what a body may be, and errors as OpenAI's clients read them."""

import asyncio
import base64
import hashlib
import hmac
import re
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response

from utils.files import parse_json
from utils.running import InputError
from utils.serving.requests import Refused
from utils.serving.worker import Busy

MOST_BYTES = 1 << 18  # of a request's body
PATIENCE = 30  # seconds in which a body must have come
OPEN_PATHS = ("/", "/health")  # without a key: they tell nothing
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Guard:
    """Lets in who may ask: with the key or, without one, by the machine's own name alone, so that
    no page from elsewhere can ask through a visitor's browser (DNS rebinding, forged requests)."""

    def __init__(self, app: Callable, key: str | None, host: str):
        self.app, self.key, self.hosts = app, key, {*LOOPBACK, host}

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Answer with an error, or pass the request on."""
        if scope["type"] == "http" and (response := self._refusal(HTTPRequest(scope))):
            return await response(scope, receive, send)
        await self.app(scope, receive, send)

    def _refusal(self, request: HTTPRequest) -> Response | None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        with suppress(ValueError):
            name = urlsplit(f"//{host}").hostname
            if not self.key and name not in self.hosts:
                return failure(403, f"the Host {host[:80]!r} is not this machine's; use localhost")
            if origin and urlsplit(origin).netloc != host:
                return failure(403, f"a page of {origin[:80]!r} may not ask; use the server's")
            return self._wrong_key(request)
        return failure(400, "the Host or Origin header is not an address; correct it")

    def _wrong_key(self, request: HTTPRequest) -> Response | None:
        if not self.key or request.url.path in OPEN_PATHS:
            return None
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if hmac.compare_digest(given.encode(), self.key.encode()):
            return None
        return failure(401, "the API key is missing or wrong; send the server's as a bearer token")


def failure(status: int, message: str, headers: dict | None = None) -> JSONResponse:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": error}, status, headers)


def failure_of(error: Exception) -> JSONResponse:
    """The answer to a request that failed with `error`."""
    if isinstance(error, Busy):
        words = "as many requests wait as may wait; ask again in a moment"
        return failure(429, words, {"Retry-After": "1"})
    if isinstance(error, HTTPException):
        return failure(error.status_code, f"{error.detail}; see docs/serving.md", error.headers)
    if isinstance(error, Refused):
        return failure(error.status, str(error))
    known = isinstance(error, InputError)
    return failure(500, str(error) if known else "the server failed; its log says more")


async def body_of(http: HTTPRequest) -> object:
    """The JSON value of the body; raises `Refused`."""
    if http.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refused("the body must be JSON; send it with Content-Type: application/json")
    body = b""
    try:
        async with asyncio.timeout(PATIENCE):
            async for chunk in http.stream():
                body += chunk
                if len(body) > MOST_BYTES:
                    raise Refused(f"the body has more than {MOST_BYTES} bytes; send less")
        return parse_json(body.decode(), "the request's body")
    except TimeoutError:
        raise Refused(f"the body did not come within {PATIENCE} seconds; send it again") from None
    except UnicodeDecodeError:
        raise Refused("the body is not UTF-8; send it as UTF-8") from None
    except InputError as error:
        raise Refused(str(error)) from None


def content_policy(html: str) -> str:
    """A Content-Security-Policy that allows the page's own script and style, by their hashes, and
    nothing else."""
    rules = ["default-src 'none'", "connect-src 'self'", "img-src data:"]
    for tag in ("script", "style"):
        [text] = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        rules.append(f"{tag}-src 'sha256-{digest}'")
    return "; ".join([*rules, "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"])
