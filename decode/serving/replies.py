"""Writes answers to connections, whole or as a stream, as fast as each client reads its own."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from decode.serving.asked import Asked
from decode.serving.call import Call
from decode.serving.errors import ApiError
from decode.serving.forms import Form, encoded
from decode.serving.service import Service


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A body of JSON."""
    return Response(encoded(body), status, headers, media_type="application/json")


def error_response(error: ApiError) -> Response:
    """What a client is told of an error."""
    return json_response(error.body, error.status, error.headers)


class Reply:
    """The response to one request that is understood; an application of ASGI.

    Args:
      service: answers it.
      asked: the request.
      arrived: when it came, by `time.perf_counter`.
      stall: seconds that a client may take nothing for, before it is given up.
    """

    def __init__(self, service: Service, asked: Asked, arrived: float, stall: float):
        self._service, self._asked, self._arrived = service, asked, arrived
        self._stall = stall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Asks and answers; a client that goes away, or takes nothing, frees what runs for it.

        Raises:
          ApiError: before the response has begun.
          TimeoutError: the client takes nothing.
        """
        call = self._service.open(self._asked.requests, self._arrived)
        try:
            if self._asked.stream:
                work = self._stream(call, send)
            else:
                work = self._whole(call, scope, receive, send)
            await _unless_gone(receive, work)
        finally:
            self._service.close(call)

    async def _whole(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        form = Form(self._asked, self._service.served)
        async for events in call.events():
            for number, event in events:
                form.add(number, event)
        response = json_response(form.whole())
        async with asyncio.timeout(self._stall):
            await response(scope, receive, send)

    async def _stream(self, call: Call, send: Send) -> None:
        """Server-sent events, which begin with the first token; an error is the last of them."""
        form, begun = Form(self._asked, self._service.served), False
        try:
            async for events in call.events():
                chunks = []
                for number, event in events:
                    form.add(number, event)
                    chunks += form.chunks(number)
                if not begun:
                    await send(_START)
                    begun = True
                await self._write(send, map(encoded, chunks))
            last = map(encoded, form.last())
            await self._write(send, [*last, b"[DONE]"])
        except ApiError as error:
            if not begun:
                raise
            await self._write(send, [encoded(error.body)])
        await send({"type": "http.response.body", "body": b""})

    async def _write(self, send: Send, chunks: Iterable[bytes]) -> None:
        """Sends chunks in one piece; waits while the client has much that it has not taken."""
        body = b"".join(b"data: %b\n\n" % chunk for chunk in chunks)
        async with asyncio.timeout(self._stall):
            await send({"type": "http.response.body", "body": body, "more_body": True})


_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
    ],
}


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Does work that is given up when the client goes away."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    """Waits until the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass
