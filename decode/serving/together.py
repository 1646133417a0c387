"""A batcher in each of several processes: process 0 decides, and all others do as it does.

What a batcher does follows from its requests and cancellations, from the steps that these come
between, and from nothing else. So process 0 tells the others before each of its steps what has come
since the one before. Clients, limits and clocks are its own affair. With it goes a number of all
that it has run and found until then, so that a process that has come to differ ends before it waits
for programs that the others have not launched.
"""

from typing import Any

from decode.batching.batcher import Batcher
from decode.batching.events import Event, Finished, Ticket
from decode.batching.request import Request
from decode.batching.stats import StepStats
from sharding import processes
from sharding.broadcast import Broadcast
from sharding.error_types import FloorlineError


class LeadingBatcher:
    """Process 0's batcher, whose steps run in all processes; with `Batcher`'s interface.

    Where there is one process alone it is that batcher and nothing more.

    Args:
      batcher: warmed up; nothing else may use it from now on.
    """

    def __init__(self, batcher: Batcher):
        self._batcher, self._broadcast = batcher, Broadcast()
        self._orders: list[dict[str, Any] | int] = []  # requests, and numbers of cancelled tickets

    def submit(self, request: Request) -> Ticket:
        """As `Batcher.submit`; a request that is refused is not told to the others."""
        ticket = self._batcher.submit(request)
        self._orders.append(_written(ticket.request))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """As `Batcher.cancel`."""
        self._batcher.cancel(ticket)
        self._orders.append(ticket.number)

    def step(self) -> list[Event]:
        """As `Batcher.step`, in all processes.

        Raises:
          FloorlineError: one of the others is gone.
        """
        self._broadcast.send([self._orders, _state(self._batcher)])
        self._orders = []
        return self._batcher.step()

    def end(self) -> None:
        """Ends `follow` in the others; no step follows."""
        self._broadcast.send(None)

    @property
    def stats(self) -> StepStats:
        """As `Batcher.stats`."""
        return self._batcher.stats

    @property
    def idle(self) -> bool:
        """As `Batcher.idle`."""
        return self._batcher.idle

    @property
    def running(self) -> int:
        """As `Batcher.running`."""
        return self._batcher.running

    @property
    def waiting(self) -> int:
        """As `Batcher.waiting`."""
        return self._batcher.waiting


def follow(batcher: Batcher) -> None:
    """Does what process 0's `LeadingBatcher` does, until that ends; for every other process.

    Args:
      batcher: made and warmed up as process 0's.

    Raises:
      FloorlineError: process 0 is gone, or the batchers have come to differ.
    """
    broadcast, tickets = Broadcast(), {}
    while (message := broadcast.receive()) is not None:
        orders, expected = message
        for order in orders:
            if isinstance(order, int):
                if order in tickets:
                    batcher.cancel(tickets[order])
            else:
                ticket = batcher.submit(_read(order))
                tickets[ticket.number] = ticket
        _check(_state(batcher), expected)
        for event in batcher.step():
            if isinstance(event, Finished):
                del tickets[event.ticket.number]


def _state(batcher: Batcher) -> list[int]:
    return [batcher.running, batcher.waiting, batcher.decided]


def _check(found: list[int], expected: list[int]) -> None:
    """Refuses to go on where this process would wait for programs that others do not launch."""
    if found == expected:
        return
    differs = "what ran before or came of it is another here than"
    if found[:2] != expected[:2]:
        differs = "number of requests that run or wait is {} and {} here, and {} and {}".format(
            *found[:2], *expected[:2]
        )
    raise FloorlineError(
        f"{differs} in process 0 of {processes.count()}; give every host the same flags, the same "
        "files of the model and the same versions of all packages"
    )


def _written(request: Request) -> dict[str, Any]:
    """A request as JSON can hold it."""
    return vars(request) | {"stop_ids": sorted(request.stop_ids)}


def _read(fields: dict[str, Any]) -> Request:
    stops = {"stop_ids": frozenset(fields["stop_ids"]), "stop": tuple(fields["stop"])}
    return Request(**fields | stops)
