"""Listens, answers until it is told to end, and ends what runs before it does."""

import asyncio
import contextlib
import errno
import functools
import logging
import resource
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.applications import Starlette

from decode.serving.connections import SPARE, Connection
from decode.serving.service import Service
from sharding.error_types import FloorlineError, UsageError

_SPARE_FILES = 128 + SPARE
"""Open files that are kept for other things than connections, and for those that are refused."""
_UNSENT = 1 << 17
"""Bytes that the system keeps for a connection whose client does not take them."""
_FAREWELL = 2.0
"""Seconds for clients to take the last error that they are told."""


def listen(host: str, port: int, stall: float) -> socket.socket:
    """A socket at an address; connections come when the server runs.

    A peer that acknowledges nothing for `stall` seconds loses its connection, where the system can
    do that; what was kept for it is let go then.

    Raises:
      UsageError: no such host, or a port that this user may not have.
      FloorlineError: another program has the port.
    """
    try:
        ((family, kind, protocol, _, address), *_) = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise UsageError(f"host is {host!r}, which is no address ({error}); give another") from None
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNSENT)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = max(int(stall * 1000), 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    try:
        listening.bind(address)
    except OSError as error:
        listening.close()
        kind = FloorlineError if error.errno == errno.EADDRINUSE else UsageError
        raise kind(
            f"address is {host}:{port}, where one cannot listen ({error.strerror}); "
            "give another --port or --host"
        ) from None
    return listening


def url(listening: socket.socket) -> str:
    """Where clients find a socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class HttpServer:
    """An application at a socket.

    Args:
      app: the application.
      service: behind it; it starts and ends with the server.
      listening: from `listen`.
      connections: how many there may be at once; further ones get status 503, but for /health.
      stall: seconds for the head of each request.
      drain: seconds for requests to end, when the server is told to.
      ready: called when clients can come.

    Attributes:
      signal: the signal that has ended it, if one has.
    """

    def __init__(
        self,
        app: Starlette,
        service: Service,
        listening: socket.socket,
        *,
        connections: int,
        stall: float,
        drain: float,
        ready: Callable[[], None] = lambda: None,
    ):
        most = min(connections, _open_files() - _SPARE_FILES)
        config = uvicorn.Config(
            app,
            http=functools.partial(Connection, stall=stall, most=most),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=logging.CRITICAL,
            access_log=False,
            server_header=False,
        )
        self._http, self._service, self._listening = _Uvicorn(config), service, listening
        service.attach(lambda: len(self._http.server_state.connections), most, self.end)
        self._drain, self._ready = drain, ready
        self._ends: asyncio.Queue[int] = asyncio.Queue()
        self._events: asyncio.AbstractEventLoop | None = None
        self.signal: int | None = None

    def run(self) -> None:
        """Answers until `end` is called, SIGTERM or SIGINT comes, or nothing can be answered.

        Requests that have come are answered then, for `drain` seconds at most, or until it is told
        to end once more; those that are left get an error.
        """
        asyncio.run(self._run())
        self._service.stop()

    def end(self, number: int = 0) -> None:
        """Tells the server to end, from any thread."""
        self._events.call_soon_threadsafe(self._ends.put_nowait, number)

    async def _run(self) -> None:
        self._events = asyncio.get_running_loop()
        with contextlib.suppress(ValueError, RuntimeError):  # signals reach the main thread alone
            for each in (signal.SIGTERM, signal.SIGINT):
                self._events.add_signal_handler(each, self.end, each)
        self._service.start()
        serving = asyncio.create_task(self._http.serve([self._listening]))
        while not (self._http.started or serving.done()):
            await asyncio.sleep(0.01)
        self._ready()
        told = asyncio.create_task(self._ends.get())
        await asyncio.wait((serving, told), return_when=asyncio.FIRST_COMPLETED)
        self.signal = told.result() if told.done() else None
        await self._finish(serving)

    async def _finish(self, serving: asyncio.Task) -> None:
        """Takes no more connections, and waits for the requests of those that are there."""
        self._http.should_exit = True
        again = asyncio.create_task(self._ends.get())
        drain, done = self._drain, asyncio.FIRST_COMPLETED
        if self._service.failure:
            drain = _FAREWELL
        await asyncio.wait((serving, again), timeout=drain, return_when=done)
        if not serving.done():
            self._service.abort("it was told to end")
            await asyncio.wait((serving,), timeout=_FAREWELL)
        self._http.force_exit = True
        for connection in list(self._http.server_state.connections):
            connection.transport.abort()
        again.cancel()
        await serving


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to `HttpServer`."""
        yield


def _open_files() -> int:
    """Raises this process's limit of open files to what it may be; returns the new one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return 65536 if soft == resource.RLIM_INFINITY else soft
