"""The answers to one HTTP request on their way from the batching engine to the client."""

import asyncio
import collections
import time
from collections.abc import AsyncIterator, Sequence

from decode.batching.events import Event, Finished
from decode.batching.request import Request
from decode.serving.errors import ApiError


class Call:
    """Takes events of its requests, and gives them to whoever writes the answer.

    Events that are not read yet wait here. There are never more than tokens that the requests may
    have, so a reader that is slow holds no more memory than that, and holds up nobody.

    Args:
      requests: what is asked for.

    Attributes:
      arrived: when the client asked, by `time.perf_counter`.
      newest: for each request, when its newest token came; None before the first.
      left: requests that have not ended.
    """

    def __init__(self, requests: Sequence[Request], arrived: float | None = None):
        self.requests = tuple(requests)
        self.arrived = time.perf_counter() if arrived is None else arrived
        self.newest: list[float | None] = [None] * len(self.requests)
        self.left = len(self.requests)
        self._events: collections.deque[tuple[int, Event]] = collections.deque()
        self._some = asyncio.Event()
        self._failure: ApiError | None = None

    def put(self, number: int, event: Event) -> None:
        """An event of one of the requests."""
        self.left -= isinstance(event, Finished)
        self._events.append((number, event))
        self._some.set()

    def fail(self, error: ApiError) -> None:
        """No event follows; who waits gets this error."""
        self._failure = self._failure or error
        self._some.set()

    async def events(self) -> AsyncIterator[list[tuple[int, Event]]]:
        """All events that have come since the last look, until every request has ended.

        Raises:
          ApiError: the requests have failed.
        """
        ended = 0
        while ended < len(self.requests):
            await self._some.wait()
            self._some.clear()
            if self._failure:
                raise self._failure
            events = list(self._events)
            self._events.clear()
            ended += sum(isinstance(event, Finished) for _, event in events)
            yield events
