"""The side of a server that clients' connections see: who may ask now, and what comes back."""

import asyncio
import time
from collections.abc import Callable, Sequence

from decode.batching.events import Token
from decode.batching.request import Request
from decode.serving.asked import Served
from decode.serving.call import Call
from decode.serving.errors import ApiError
from decode.serving.loop import Loop, News
from decode.serving.metrics import Metrics
from decode.serving.together import LeadingBatcher
from sharding import processes
from sharding.error_types import FloorlineError

PATIENCE = 10.0
"""Seconds to wait for the batcher's thread to end where one process runs its steps."""
TIMEOUTS_TOGETHER = 2
"""How many times ``--peer_timeout`` to wait beside that where others run them too. One that is gone
is told of after one time and up to ten seconds more, and says more than a step that does not end.
"""


class Service:
    """Hands requests to a batcher's thread and events back; lives in the thread of one event loop.

    Args:
      batcher: warmed up.
      served: its model, and what a request may ask of it.
      rows: requests that run at once.
      most_waiting: requests that may wait beside those.

    Attributes:
      metrics: what has been counted and timed.
      failure: what has ended the batcher's thread; None while all is well.
    """

    def __init__(self, batcher: LeadingBatcher, served: Served, rows: int, most_waiting: int):
        self.served, self.metrics = served, Metrics(rows)
        self.failure: BaseException | None = None
        self._ended = ""  # why nothing is answered any more
        self._most = rows + most_waiting
        self._calls: set[Call] = set()
        self._in_hand = 0  # bodies that are being read
        self._open = 0  # requests whose answers are not all with their clients
        self._loop = Loop(batcher, self._tell)
        self._events: asyncio.AbstractEventLoop | None = None
        self._connections: Callable[[], int] = lambda: 0
        self._most_connections = 1
        self._failed: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Begins to answer; called in the event loop."""
        self._events = asyncio.get_running_loop()
        self._loop.start()

    def attach(self, connections: Callable[[], int], most: int, failed: Callable[[], None]) -> None:
        """Takes what belongs to the server around it.

        Args:
          connections: tells how many there are.
          most: how many there may be.
          failed: called when nothing can be answered any more.
        """
        self._connections, self._most_connections, self._failed = connections, most, failed

    def check_connections(self) -> None:
        """Refuses a request on one connection too many, which is to be closed then.

        Raises:
          ApiError: status 503.
        """
        if (number := self._connections()) > self._most_connections:
            raise ApiError(
                f"number of connections is {number}, but {self._most_connections} are the most; "
                "ask again later",
                code="too_many_connections",
                status=503,
                retry_after=1,
                closes=True,
            )

    def check_alive(self) -> None:
        """Refuses everything where nothing is answered any more.

        Raises:
          ApiError: status 503.
        """
        if self._ended:
            raise self._end_told()

    def check(self, more: int = 1) -> None:
        """Refuses further requests where too many are open, or nothing is answered any more.

        Raises:
          ApiError: status 429 or 503.
        """
        self.check_alive()
        if max(self._open, self._in_hand) + more > self._most:
            raise ApiError(
                f"number of requests that run or wait is {max(self._open, self._in_hand)} of "
                f"{self._most}, and {more} more came; ask again later",
                code="too_many_requests",
                status=429,
                retry_after=1,
            )

    def begin(self) -> None:
        """A body is going to be read; `end` follows. Raises as `check` does."""
        self.check()
        self._in_hand += 1

    def end(self) -> None:
        """A body has been read."""
        self._in_hand -= 1

    def open(self, requests: Sequence[Request], arrived: float) -> Call:
        """Asks the batcher; `close` must follow, whatever happens.

        Raises:
          ApiError: status 429 or 503, as `check` says.
        """
        self.check(len(requests))
        call = Call(requests, arrived)
        self._open += len(call.requests)
        self._calls.add(call)
        self._loop.submit(call)
        return call

    def close(self, call: Call) -> None:
        """Nobody waits for a call any more; what still runs of it is cancelled."""
        self._calls.remove(call)
        self._open -= len(call.requests)
        if call.left:
            self._loop.cancel(call)

    def abort(self, why: str) -> None:
        """Ends all that is open with an error, and takes nothing more."""
        self._ended = self._ended or why
        for call in self._calls:
            call.fail(self._end_told())

    def stop(self) -> None:
        """Ends the batcher's thread, with all that runs.

        Raises:
          FloorlineError: the step that runs does not end.
        """
        self._loop.stop()
        patience = PATIENCE
        if processes.count() > 1:
            patience += TIMEOUTS_TOGETHER * processes.peer_timeout()
        if self._loop.is_alive():
            self._loop.join(patience)
        if self._loop.is_alive():
            raise FloorlineError(
                f"step is not done {patience:g} s after the server's end ({self._loop.left}); see "
                "what devices or other processes wait for"
            )

    def _end_told(self) -> ApiError:
        return ApiError(f"server is ending ({self._ended}); ask again later", status=503)

    def _tell(self, news: News) -> None:
        """Called in the batcher's thread; the event loop may have ended."""
        try:
            self._events.call_soon_threadsafe(self._take, news)
        except RuntimeError:
            self._loop.stop()

    def _take(self, news: News) -> None:
        now = time.perf_counter()
        for call, number, event in news.events:
            if isinstance(event, Token):
                self.metrics.token(now, call, number)
            else:
                self.metrics.finished(event)
            call.put(number, event)
        for call, error in news.refused:
            call.fail(error)
        self.metrics.step(news.stats, news.running, news.waiting)
        if news.failure:
            self.failure, said = news.failure, " ".join(str(news.failure).split())
            self.abort(f"{type(news.failure).__name__}: {said:.200}")
            self._failed()
