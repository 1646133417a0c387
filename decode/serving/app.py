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

from decode.serving.asked import Asked, Served, read_chat, read_completion
from decode.serving.errors import ApiError
from decode.serving.fields import read_json
from decode.serving.replies import Reply, error_response, json_response
from decode.serving.service import Service

_LONG = 1 << 16
"""Bytes of a body from which on only one at a time is understood, and shorter ones beside it."""
_STALLS = 10
"""A body may take so many times the seconds that nothing of it may come for."""
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

    long_ones = asyncio.Semaphore(1)  # short ones need not wait for all threads to be free again

    async def read(request: Request, reader: Callable[[dict[str, Any], Served], Asked]) -> Asked:
        service.begin()
        try:
            body = await _body(request, most_bytes, stall)
            # Templates and tokenizers take their time, and others' answers go on meanwhile.
            async with long_ones if len(body) > _LONG else contextlib.nullcontext():
                return await asyncio.to_thread(lambda: reader(read_json(body), service.served))
        finally:
            service.end()

    async def completions(request: Request) -> Reply:
        arrived = time.perf_counter()
        return Reply(service, await read(request, read_completion), arrived, stall)

    async def chat(request: Request) -> Reply:
        arrived = time.perf_counter()
        return Reply(service, await read(request, read_chat), arrived, stall)

    async def models(request: Request) -> Response:
        return json_response({"object": "list", "data": [_model(service.served)]})

    async def model(request: Request) -> Response:
        if request.path_params["name"] != service.served.name:
            raise ApiError(
                f"model is {request.path_params['name']!r:.60}, which is not served; "
                f"use {service.served.name!r}",
                param="model",
                code="model_not_found",
                status=404,
            )
        return json_response(_model(service.served))

    async def health(request: Request) -> Response:
        if service.failure:
            service.check()
        return json_response({"status": "ok"})

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(service.metrics.text(), media_type=METRICS)

    return Starlette(
        routes=[
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/health", health),
            Route("/metrics", metrics),
        ],
        middleware=[Middleware(Guard, service=service, key=key, say=say)],
        exception_handlers={ApiError: _refused, HTTPException: _no_such_path},
    )


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
    remedy = "see /v1/models" if error.status_code == 404 else "use another method"
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
