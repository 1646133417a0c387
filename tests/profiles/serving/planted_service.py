"""A service that takes the time that a test gives it, on a clock that a test moves."""

import itertools

from decode.batching.events import Finished, Ticket, Token
from decode.batching.stats import StepStats


class SimulatedClock:
    """A clock that moves only when it is told to."""

    def __init__(self):
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def wait_until(self, when: float) -> None:
        self.time = max(self.time, when)


class PlantedService:
    """Answers with a token for each row in a step; prompts run between steps, in the given time.

    Args:
      clock: is moved by each step.
      rows: requests that run at once.
      step_s: seconds of a decode step.
      prompt_s: seconds of a prompt.
    """

    def __init__(self, clock: SimulatedClock, rows: int, step_s: float, prompt_s: float = 0.0):
        self.clock, self.rows, self.step_s, self.prompt_s = clock, rows, step_s, prompt_s
        self.stats, self.queue, self.left = StepStats(rows), [], {}
        self.most, self._numbers = 0, itertools.count()

    def submit(self, request):
        ticket = Ticket(next(self._numbers), request)
        self.queue.append(ticket)
        return ticket

    @property
    def waiting(self) -> int:
        return len(self.queue)

    @property
    def idle(self) -> bool:
        return not (self.queue or self.left)

    def step(self) -> list:
        joining = 0
        while self.queue and len(self.left) < self.rows:
            ticket = self.queue.pop(0)
            self.left[ticket] = ticket.request.max_new_tokens
            joining += 1
        self.most, active = max(self.most, len(self.left)), len(self.left)
        self.clock.time += joining * self.prompt_s + self.step_s
        self.stats = StepStats(
            self.rows,
            active=active,
            prompt_tokens=joining,
            prompt_seconds=joining * self.prompt_s,
            decode_seconds=self.step_s,
        )
        events = []
        for ticket in list(self.left):
            events.append(Token(ticket, 1, -1.0))
            self.left[ticket] -= 1
            if not self.left[ticket]:
                del self.left[ticket]
                events.append(Finished(ticket, "length"))
        return events
