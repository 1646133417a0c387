"""Random requests, a batching engine that answers them, and what each gets alone."""

import dataclasses
import functools

import numpy as np

from decode.batching.batcher import Batcher, Finished, Request, Ticket, Token
from decode.engine import Engine
from decode.generate import Request as Alone
from decode.generate import generate
from model.dtypes import FLOAT32
from sharding.catalog import LAYOUTS
from tests.engines import config_of, random_engine

CONTEXT, LAYERS = 64, 2
SAMPLERS = (
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 20},
    {"temperature": 1.5, "top_p": 0.9, "min_p": 0.01},
)


@dataclasses.dataclass
class Answered:
    """All events of one request."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    text: str = ""
    end: Finished | None = None


class Service:
    """A batching engine, and what it has told of each request."""

    def __init__(self, batcher: Batcher):
        self.batcher = batcher
        self.answers: dict[Ticket, Answered] = {}

    def submit(self, request: Request) -> Ticket:
        ticket = self.batcher.submit(request)
        self.answers[ticket] = Answered()
        return ticket

    def step(self) -> None:
        for event in self.batcher.step():
            answer = self.answers[event.ticket]
            assert answer.end is None, "an event follows the last one"
            answer.text += event.text
            if isinstance(event, Token):
                answer.tokens.append(event.token)
                answer.logprobs.append(event.logprob)
            else:
                answer.end = event

    def finish(self) -> dict[Ticket, Answered]:
        while not self.batcher.idle:
            self.step()
        return self.answers


def random_request(draw: np.random.Generator, beginnings: list[list[int]] = [[]]) -> Request:  # noqa: B006
    """A request of any length, sampler and stop; it may begin as others do."""
    beginning = beginnings[draw.integers(len(beginnings))]
    own = draw.integers(0, 256, int(draw.integers(1, CONTEXT - 20 - len(beginning)))).tolist()
    return Request(
        prompt=[*beginning, *own],
        max_new_tokens=int(draw.integers(1, 20)),
        seed=int(draw.integers(5)),
        stop_ids=frozenset(draw.integers(0, 256, 8).tolist()) if draw.integers(2) else frozenset(),
        **SAMPLERS[draw.integers(len(SAMPLERS))],
    )


def alone(engine: Engine, request: Request) -> tuple[list[int], str]:
    """Tokens of a request that runs alone, and why they end."""
    (*_, (completion,)) = generate(
        engine,
        Alone(
            prompts=[request.prompt],
            max_new_tokens=request.max_new_tokens,
            sampler=request.sampler,
            seed=request.seed,
            stop_ids=request.stop_ids,
        ),
    )
    return completion.tokens, completion.finish_reason


@functools.cache
def one_device(family: str) -> Engine:
    """An engine of `LAYERS` layers; in the first, keys and values do not depend on the tokens
    before, so that another row's would not be seen there."""
    config = config_of(family, layers=LAYERS)
    return random_engine(config, LAYOUTS["weight_stationary_1d"], "1", FLOAT32)


@functools.cache
def alone_on_one_device(family: str, request: Request) -> tuple[list[int], str]:
    return alone(one_device(family), request)


def check(family: str, answers: dict[Ticket, Answered]) -> None:
    """Each answer has the tokens that the request gets alone, or their first ones if cancelled."""
    for ticket, answer in answers.items():
        tokens, reason = alone_on_one_device(family, ticket.request)
        if answer.end.reason == "cancelled":
            assert answer.tokens == tokens[: len(answer.tokens)], ticket
        else:
            assert (answer.tokens, answer.end.reason) == (tokens, reason), ticket
        assert answer.end.generated_tokens == len(answer.tokens)


def run_traffic(service: Service, requests: int, seed: int) -> None:
    """Requests come at random, one in ten is cancelled at some time; all are answered."""
    draw = np.random.default_rng(seed)
    beginnings = [[], draw.integers(0, 256, 20).tolist(), draw.integers(0, 256, 33).tolist()]
    tickets = []
    while len(tickets) < requests:
        for _ in range(draw.poisson(0.7)):
            tickets.append(service.submit(random_request(draw, beginnings)))
        if tickets and not draw.integers(14):
            service.batcher.cancel(tickets[draw.integers(len(tickets))])
        service.step()
    service.finish()
