"""Batchers of two processes do the same: process 0 decides, and the other is told."""

import queue
import random
import threading

import pytest

from decode.batching.request import Request
from decode.serving import together
from decode.serving.together import LeadingBatcher, follow
from sharding.error_types import FloorlineError
from tests.serving import PretendedBatcher

ROWS = 2


@pytest.fixture
def messages(monkeypatch):
    """What has been sent between the batchers and not yet received."""
    line = queue.SimpleQueue()

    class Line:
        send, receive = staticmethod(line.put), staticmethod(line.get)

    monkeypatch.setattr(together, "Broadcast", Line)
    return line


def ask(first: int, new: int = 4) -> Request:
    return Request(prompt=(first, 2), max_new_tokens=new)


def following(batcher) -> tuple[threading.Thread, list[Exception]]:
    """A batcher that follows in a thread, and what it fails with."""
    failures: list[Exception] = []

    def run() -> None:
        try:
            follow(batcher)
        except FloorlineError as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, failures


class Recording(PretendedBatcher):
    """A pretended batcher that keeps what its steps have told, by the tickets' numbers."""

    def __init__(self):
        super().__init__(ROWS)
        self.steps = []

    def step(self):
        events = super().step()
        self.steps.append([(type(each), each.ticket.number) for each in events])
        return events


def test_both_take_the_same_requests_and_cancellations_between_the_same_steps(messages):
    first, second, chance = Recording(), Recording(), random.Random(1)
    thread, failures = following(second)
    leading, tickets = LeadingBatcher(first), []
    for _ in range(100):
        for _ in range(chance.choice([0, 0, 1, 3])):
            try:
                tickets.append(leading.submit(ask(chance.choice([1, 3, 7, 17]))))
            except (FloorlineError, OverflowError):
                continue  # of prompts that begin with 7 or 17, and of no interest to the others
        if tickets and chance.random() < 0.2:
            leading.cancel(chance.choice(tickets))  # which may have ended
        leading.step()
    leading.end()
    thread.join(120)
    assert not failures and len(first.steps) == 100
    assert second.steps == first.steps
    assert [ticket.request for ticket in second.told] == [ticket.request for ticket in first.told]


def test_a_request_arrives_as_it_was_sent(messages):
    asked = Request(
        prompt=[3, 1], max_new_tokens=2, temperature=0.1 + 0.2, top_k=5, top_p=1 / 3, seed=-(2**40),
        sequence=3, stop_ids=frozenset({9, 4}), stop=("\ud800", "a"), top_logprobs=2,
    )  # fmt: skip
    batcher = PretendedBatcher(1)
    thread, _ = following(batcher)
    leading = LeadingBatcher(PretendedBatcher(1))
    leading.submit(asked)
    leading.step()
    leading.end()
    thread.join(120)
    ((ticket, _),) = batcher.told.items()
    assert ticket.request == asked


def test_a_batcher_that_comes_to_differ_says_so_and_ends(messages):
    class Stops(PretendedBatcher):
        """Finds an answer's end where the other does not, as another tokenizer would."""

        def step(self):
            events = super().step()
            self.open.clear()
            return events

    thread, failures = following(Stops(ROWS))
    leading = LeadingBatcher(PretendedBatcher(ROWS))
    leading.submit(ask(1))
    leading.step()
    leading.step()
    thread.join(120)
    assert "run or wait is 0 and 0 here, and 1 and 0 in process 0" in str(failures[0])


def test_a_batcher_that_has_run_another_step_says_so_though_as_many_requests_run(messages):
    class Decides(PretendedBatcher):
        """Plans other chunks than the other, as it does with another budget."""

        def step(self):
            events = super().step()
            self.decided += 1
            return events

    thread, failures = following(Decides(ROWS))
    leading = LeadingBatcher(PretendedBatcher(ROWS))
    leading.submit(ask(1))
    leading.step()
    leading.step()
    thread.join(30)
    assert "what ran before or came of it is another here than in process 0" in str(failures[0])
