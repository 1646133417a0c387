"""Requests meet a service: what each waits for, on a real clock or on a simulated one.

A service is what `decode.batching.batcher.Batcher` is. Requests join at any step; or they wait for
the next departure of a train, which takes all that have come, as far as there are seats, and runs
whole with prompts and answers before another departs on schedule.
"""

import bisect
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from decode.batching.events import Finished, Token
from decode.batching.stats import StepStats
from profiles.serving.arrivals import Load
from sharding.error_types import FloorlineError


class Service(Protocol):
    """What a load needs of `Batcher`, where each is described."""

    stats: StepStats

    def submit(self, request: Any) -> Any:
        """Accepts a request, and gives what its events are named by."""

    def step(self) -> list:
        """Launches the next step, and tells what the one before has brought."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""

    @property
    def waiting(self) -> int:
        """Requests that wait for a row."""


class Clock:
    """The real time, in seconds."""

    def now(self) -> float:
        """Seconds from any beginning."""
        return time.perf_counter()

    def wait_until(self, when: float) -> None:
        """Returns at that time, or at once if it is past."""
        time.sleep(max(when - self.now(), 0.0))


@dataclasses.dataclass
class Timeline:
    """What became of one request, in seconds from the beginning.

    Attributes:
      arrived: when it came.
      prompt_tokens: tokens of its prompt.
      boarded: when it got a row: the step began in which its prompt did; None where not known.
      first: when its first token was there.
      last: when its last token was there.
      tokens: those of its answer so far.
    """

    arrived: float
    prompt_tokens: int
    boarded: float | None = None
    first: float | None = None
    last: float | None = None
    tokens: int = 0

    def token(self, now: float, count: int = 1) -> None:
        """Its next tokens are there."""
        self.first = now if self.first is None else self.first
        self.last, self.tokens = now, self.tokens + count

    @property
    def waiting_s(self) -> float:
        """Seconds until it got a row."""
        return self.boarded - self.arrived

    @property
    def first_token_s(self) -> float:
        """Seconds to its first token."""
        return self.first - self.arrived

    @property
    def total_s(self) -> float:
        """Seconds to its last token."""
        return self.last - self.arrived

    @property
    def per_token_s(self) -> float | None:
        """Seconds of each token after the first; None for an answer of one."""
        return (self.last - self.first) / (self.tokens - 1) if self.tokens > 1 else None


@dataclasses.dataclass
class Traffic:
    """A load that a service has answered.

    Attributes:
      load: what was asked.
      timelines: of each request, in the order of arrival.
      wall_s: from the beginning to the last token.
      paused_s: of those, the time in which no request was in the service.
      steps: what each step did; empty where it is not known.
      compiled: programs that were compiled meanwhile; None where it is not known.
    """

    load: Load
    timelines: list[Timeline]
    wall_s: float
    paused_s: float = 0.0
    steps: list[StepStats] = dataclasses.field(default_factory=list)
    compiled: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return sum(each.tokens for each in self.timelines)


class Doors:
    """When requests of a load may enter, those first that came first.

    Args:
      load: the requests.
      departure_s: seconds between departures; None where requests join at any step.
      seats: requests that a train takes.
    """

    def __init__(self, load: Load, departure_s: float | None = None, seats: int | None = None):
        self._load, self._departure_s, self._seats = load, departure_s, seats
        self._times = [each.arrival_s for each in load.asked]
        self._entered = 0
        self._departed = 0  # number of the newest departure that is past, or was missed

    @property
    def left(self) -> int:
        """Requests that have not entered."""
        return len(self._times) - self._entered

    def enter(self, now: float, inside: int) -> range:
        """Numbers of the requests that enter now, beside those that are inside."""
        if self._load.concurrency is not None:
            count = min(self._load.concurrency - inside, self.left)
        elif self._departure_s is None:
            count = self._arrived(now)
        else:
            count = self._boarding(now, inside)
        self._entered += count
        return range(self._entered - count, self._entered)

    def missed(self, now: float) -> None:
        """A train has come back: departures until now were without it."""
        if self._departure_s is not None:
            self._departed = math.floor(now / self._departure_s + 1e-9)

    @property
    def next(self) -> float:
        """When the next may enter where none is inside."""
        at = self._times[self._entered]
        if self._departure_s is None:
            return at
        waits_for = math.ceil(at / self._departure_s - 1e-9)
        return max(waits_for, self._departed + 1) * self._departure_s

    def _arrived(self, now: float) -> int:
        return bisect.bisect_right(self._times, now, self._entered) - self._entered

    def _boarding(self, now: float, inside: int) -> int:
        departure = math.floor(now / self._departure_s + 1e-9)
        if inside or departure <= self._departed:
            return 0
        self._departed = departure
        return min(self._arrived(departure * self._departure_s), self._seats or self.left)


def drive(
    service: Service,
    load: Load,
    requests: Sequence[Any],
    *,
    clock: Clock | None = None,
    departure_s: float | None = None,
    seats: int | None = None,
    done: Callable[[int], None] = lambda count: None,
) -> Traffic:
    """Answers a load.

    Args:
      service: answers requests step by step; nothing is in it.
      load: the requests.
      requests: what the service is asked for each.
      clock: the time; None for the real one.
      departure_s: seconds between departures, for a load with arrival times; None to join at any
        step.
      seats: requests that a train takes.
      done: told how many requests have ended.

    Raises:
      FloorlineError: a request failed.
    """
    clock, doors = clock or Clock(), Doors(load, departure_s, seats)
    timelines: list[Timeline] = []
    inside: dict[Any, Timeline] = {}  # by ticket
    steps, seen, admitted, paused = [], service.stats, 0, 0.0
    begun = clock.now()
    while doors.left or inside:
        now = clock.now() - begun
        for number in doors.enter(now, len(inside)):
            asked = load.asked[number]
            at = now if asked.arrival_s is None else asked.arrival_s
            timelines.append(Timeline(at, asked.prompt_length))
            inside[service.submit(requests[number])] = timelines[-1]
        if not inside:
            clock.wait_until(begun + doors.next)
            paused += clock.now() - begun - now
            continue
        stepped = clock.now() - begun
        events = service.step()
        now = clock.now() - begun
        for timeline in timelines[admitted : len(timelines) - service.waiting]:
            timeline.boarded, admitted = stepped, admitted + 1
        if service.stats is not seen:
            seen = service.stats
            steps.append(seen)
        _tell(events, inside, now)
        done(len(timelines) - len(inside))
        if not inside:
            doors.missed(now)
    wall = max(each.last for each in timelines)
    while not service.idle:
        service.step()
    return Traffic(load, timelines, wall, paused, steps)


def _tell(events: Sequence[Token | Finished], inside: dict[Any, Timeline], now: float) -> None:
    """Notes tokens, and takes out the requests that have ended."""
    for event in events:
        if isinstance(event, Token):
            inside[event.ticket].token(now)
            continue
        timeline = inside.pop(event.ticket)
        if event.reason == "error" or not timeline.tokens:
            why = event.message or f"it ended by {event.reason} without a token"
            raise FloorlineError(f"request {event.ticket.number} is failing: {why}")
