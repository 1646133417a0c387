"""The application: paths, who may use them, bodies read within bounds, and errors as answers."""

import asyncio
import contextlib
import hmac
import time
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from decode.serving.asked import Asked, Served, read_chat, read_completion, unknown_model
from decode.serving.errors import ApiError
from decode.serving.fields import read_json
from decode.serving.replies import Reply, error_response, json_response
from decode.serving.service import Service

_LONG = 1 << 16
"""Bytes of a body from which on only one at a time is understood, and shorter ones beside it."""
_STALLS = 10
"""A body may take so many times the seconds that nothing of it may come for."""
_PATHS = "/v1/completions, /v1/chat/completions, /v1/models, /health or /metrics"
METRICS = "text/plain; version=0.0.4; charset=utf-8"


def make_app(
    service: Service,
    *,
    key: str | None,
    most_bytes: int,
    stall: float,
    say: Callable[[str], None] | None = None,
) -> Starlette:
    """The application of a service.

    Args:
      service: answers requests.
      key: what clients must send as their bearer token; None lets everybody in.
      most_bytes: bytes of a body, at most.
      stall: seconds that a client may send or take nothing for; a body may take ten times that.
      say: told a line of each request; None for silence.
    """
    return Starlette(
        routes=Paths(service, most_bytes, stall).routes,
        middleware=[Middleware(Guard, service=service, key=key, say=say)],
        exception_handlers={ApiError: _refused, HTTPException: _no_such_path},
    )


class Paths:
    """What each path answers.

    Args:
      service: see `make_app`, as what follows.
      most_bytes: of a body.
      stall: seconds.
    """

    def __init__(self, service: Service, most_bytes: int, stall: float):
        self._service, self._most_bytes, self._stall = service, most_bytes, stall
        self._long_ones = asyncio.Semaphore(1)  # short ones need not wait for a free thread

    @property
    def routes(self) -> list[Route]:
        """The paths."""
        return [
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
        ]

    async def completions(self, request: Request) -> Reply:
        """Answers to prompts."""
        return await self._reply(request, read_completion)

    async def chat(self, request: Request) -> Reply:
        """The next message."""
        return await self._reply(request, read_chat)

    async def models(self, request: Request) -> Response:
        """The one model, as a list."""
        return json_response({"object": "list", "data": [_model(self._service.served)]})

    async def model(self, request: Request) -> Response:
        """The model of a name.

        Raises:
          ApiError: it is not served.
        """
        name, served = request.path_params["name"], self._service.served
        if name != served.name:
            raise unknown_model(name, served)
        return json_response(_model(served))

    async def health(self, request: Request) -> Response:
        """Whether anything can be answered.

        Raises:
          ApiError: nothing can.
        """
        self._service.check_alive()
        return json_response({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """Counts and times."""
        return PlainTextResponse(self._service.metrics.text(), media_type=METRICS)

    async def _reply(
        self, request: Request, reader: Callable[[dict[str, Any], Served], Asked]
    ) -> Reply:
        """What answers a request whose body is understood."""
        arrived, service = time.perf_counter(), self._service
        service.begin()
        try:
            body = await _body(request, self._most_bytes, self._stall)
            # Templates and tokenizers take their time, and others' answers go on meanwhile.
            async with self._long_ones if len(body) > _LONG else contextlib.nullcontext():
                asked = await asyncio.to_thread(lambda: reader(read_json(body), service.served))
        finally:
            service.end()
        return Reply(service, asked, arrived, self._stall)


class Guard:
    """Lets in who has the key, and makes an answer of every exception.

    Args:
      app: the rest of the application.
      service: counts responses.
      key: see `make_app`, as `say`.
    """

    def __init__(
        self, app: ASGIApp, service: Service, key: str | None, say: Callable[[str], None] | None
    ):
        self._app, self._service, self._key, self._say = app, service, key, say

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        begun, status = time.perf_counter(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._service.metrics.response(status)
            await send(message)

        try:
            self._let_in(scope)
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            pass
        except ApiError as error:
            await error_response(error)(scope, receive, watched)
        except Exception as error:
            self._tell(f"{type(error).__name__}: {' '.join(str(error).split()):.200}")
            if status:  # too late for an answer: the connection is closed
                raise
            failed = ApiError(f"server is failing ({type(error).__name__}); see it", status=500)
            await error_response(failed)(scope, receive, watched)
        finally:
            seconds = time.perf_counter() - begun
            path = scope["path"].encode("unicode_escape").decode()[:80]
            self._tell(f"{scope['method']} {path} {status or 'gone'} {seconds:.3f} s")

    def _let_in(self, scope: Scope) -> None:
        if scope["path"] == "/health":
            return
        self._service.check_connections()
        if self._key is None:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._key.encode()):
            raise ApiError(
                "api key is missing or another; send the header Authorization: Bearer KEY",
                code="invalid_api_key",
                status=401,
            )

    def _tell(self, line: str) -> None:
        if self._say:
            self._say(line)


async def _refused(request: Request, error: ApiError) -> Response:
    return error_response(error)


async def _no_such_path(request: Request, error: HTTPException) -> Response:
    path, method = request.url.path, request.method
    allowed = (error.headers or {}).get("Allow", "another method")
    remedy = f"use {_PATHS}" if error.status_code == 404 else f"use {allowed}"
    told = ApiError(f"path is {path!r:.80} by {method}; {remedy}", status=error.status_code)
    return json_response(told.body, error.status_code, dict(error.headers or {}))


def _model(served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "floorline",
        "max_model_len": served.context,
    }


async def _body(request: Request, most: int, stall: float) -> bytes:
    """A body of JSON, read within bounds.

    Only that type is read: a page in a browser may send others to any address unasked.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            f"content-type is {kind!r:.60}; send application/json", status=415, param=None
        )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise _too_large(int(declared), most)
    size, parts, stream = 0, [], aiter(request.stream())
    begun = time.perf_counter()
    try:
        async with asyncio.timeout(_STALLS * stall):
            while True:
                async with asyncio.timeout(stall):
                    part = await anext(stream, None)
                if part is None:
                    return b"".join(parts)
                parts.append(part)
                if (size := size + len(part)) > most:
                    raise _too_large(size, most)
    except TimeoutError:
        seconds = time.perf_counter() - begun
        raise ApiError(
            f"body is not complete after {seconds:.1f} s; send it at once", status=408, closes=True
        ) from None


def _too_large(size: int, most: int) -> ApiError:
    return ApiError(f"body is {size} bytes or more; send at most {most}", status=413)
