"""Connections of a server: those on which no request comes are given up, and too many are refused.

The library that reads HTTP bounds only the time between two requests, not that of their heads.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

SPARE = 64
"""Connections beyond the most that are still told why they are refused; further ones are closed."""


class Connection(H11Protocol):
    """A connection whose client has so many seconds to send the head of each request.

    Args:
      stall: these seconds, also for taking the rest of a response.
      most: connections that are served at once.
    """

    def __init__(self, *arguments: Any, stall: float, most: int, **named: Any):
        super().__init__(*arguments, **named)
        self._stall, self._most = stall, most
        self._timer: asyncio.TimerHandle | None = None
        self._unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        """A client has come."""
        super().connection_made(transport)
        if len(self.connections) > self._most + SPARE:
            transport.abort()
        else:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._stop_waiting()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Reads what has come; with the head of a request the application's own bounds hold."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and not self.cycle.response_complete:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """A response is handed over to the system; the next head may come, which may be there."""
        if not self.transport.is_closing():
            self._wait_for_head()
        super().on_response_complete()

    def _wait_for_head(self) -> None:
        self._stop_waiting()
        self._unsent = self.transport.get_write_buffer_size()
        self._timer = self.loop.call_later(self._stall, self._give_up)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        """Closes the connection, unless its client is still taking the last response."""
        if 0 < self.transport.get_write_buffer_size() < self._unsent:
            self._wait_for_head()
        else:
            self.transport.abort()
