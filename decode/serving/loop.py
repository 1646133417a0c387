"""The thread that owns a batcher: what is asked goes in, what happens comes out, step by step."""

import dataclasses
import queue
import threading
from collections.abc import Callable

from decode.batching.events import Event, Finished, Ticket
from decode.batching.stats import StepStats
from decode.serving.call import Call
from decode.serving.errors import ApiError
from decode.serving.together import LeadingBatcher
from sharding.error_types import FloorlineError


@dataclasses.dataclass
class News:
    """What the thread tells after each step.

    Attributes:
      events: each with the call that it is of and the answer's number in it.
      refused: calls of which the batcher takes none, each with what its client is told.
      stats: of a step whose tokens have been delivered, if one has.
      running: requests that have a row.
      waiting: requests that wait for one.
      failure: what has ended the thread, if it has failed; nothing follows.
    """

    events: list[tuple[Call, int, Event]] = dataclasses.field(default_factory=list)
    refused: list[tuple[Call, ApiError]] = dataclasses.field(default_factory=list)
    stats: StepStats | None = None
    running: int = 0
    waiting: int = 0
    failure: BaseException | None = None


class Loop(threading.Thread):
    """Runs a batcher while there is anything to do, and sleeps otherwise.

    Args:
      batcher: warmed up; no other thread may touch it from now on.
      tell: takes the news; called in this thread.
    """

    def __init__(self, batcher: LeadingBatcher, tell: Callable[[News], None]):
        super().__init__(name="batcher", daemon=True)
        self._batcher, self._tell = batcher, tell
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._tickets: dict[Call, list[Ticket]] = {}
        self._calls: dict[Ticket, tuple[Call, int]] = {}
        self._news = News()

    def submit(self, call: Call) -> None:
        """Hands a call's requests over, from any thread."""
        self._inbox.put(lambda: self._submit(call))

    def cancel(self, call: Call) -> None:
        """Ends what a call has asked for before the next step, from any thread."""
        self._inbox.put(lambda: self._cancel(call))

    def stop(self) -> None:
        """Ends the thread after the step that runs, from any thread."""
        self._inbox.put(None)

    @property
    def left(self) -> str:
        """How many requests there are in the batcher, in words, from any thread."""
        running, waiting = self._batcher.running, self._batcher.waiting
        return f"requests that run: {running}, and that wait: {waiting}"

    def run(self) -> None:
        """Steps, until `stop` or a failure."""
        batcher = self._batcher
        try:
            while self._take_orders():
                before = batcher.stats
                self._news.events = [self._addressed(event) for event in batcher.step()]
                self._news.stats = batcher.stats if batcher.stats is not before else None
                self._send()
        except BaseException as error:  # of any kind: those who wait must hear of it
            self._news.failure = error
            self._send()

    def _take_orders(self) -> bool:
        """Does what has been handed over, waiting for it while there is nothing else to do."""
        while self._batcher.idle or not self._inbox.empty():
            order = self._inbox.get()
            if order is None:
                return False
            order()
            if self._news.refused:
                self._send()
        return True

    def _send(self) -> None:
        news, self._news = self._news, News()
        news.running, news.waiting = self._batcher.running, self._batcher.waiting
        self._tell(news)

    def _submit(self, call: Call) -> None:
        tickets = self._tickets[call] = []
        for number, request in enumerate(call.requests):
            try:
                ticket = self._batcher.submit(request)
            except Exception as error:  # of one call, which is no reason to end all others
                self._news.refused.append((call, _told(error)))
                return self._cancel(call)
            tickets.append(ticket)
            self._calls[ticket] = call, number

    def _cancel(self, call: Call) -> None:
        for ticket in self._tickets.pop(call, ()):
            self._batcher.cancel(ticket)

    def _addressed(self, event: Event) -> tuple[Call, int, Event]:
        """An event with whose it is; with the last of a call, the call is forgotten."""
        call, number = self._calls[event.ticket]
        if isinstance(event, Finished):
            del self._calls[event.ticket]
            if call in self._tickets:
                self._tickets[call].remove(event.ticket)
                if not self._tickets[call]:
                    del self._tickets[call]
        return call, number, event


def _told(error: Exception) -> ApiError:
    """What a client is told of whose request the batcher does not take."""
    if isinstance(error, FloorlineError):
        return ApiError(str(error))
    said = " ".join(str(error).split())
    return ApiError(f"request is failing ({type(error).__name__}: {said:.200})", status=500)
