"""Servers in this process for tests, and a batcher that only pretends, a token a step."""

import contextlib
import dataclasses
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from decode.batching.batcher import Batcher
from decode.batching.events import Finished, Ticket, Token
from decode.batching.stats import StepStats
from decode.engine import Engine
from decode.serving.app import make_app
from decode.serving.asked import Served
from decode.serving.server import HttpServer, listen
from decode.serving.service import Service
from decode.tokenizer import Tokenizer
from model.catalog import find_model
from model.config import ModelConfig
from sharding.error_types import FloorlineError

TINY = find_model("tiny")


def served(
    config: ModelConfig = TINY, tokenizer: Tokenizer | None = None, context: int = 128
) -> Served:
    """What a server of a model says it serves."""
    return Served(
        name=config.name,
        config=config,
        tokenizer=tokenizer,
        context=context,
        top_logprobs=3,
        answers=8,
        created=1,
    )


class PretendedBatcher:
    """Answers with tokens 1, 2, 3 and on; a prompt that begins with 13 breaks it."""

    def __init__(self, rows: int, step_seconds: float = 0.0):
        self.rows, self.step_seconds = rows, step_seconds
        self.open: list[Ticket] = []
        self.told: dict[Ticket, int] = {}
        self.cancelled: list[Ticket] = []
        self.stats = StepStats(rows)
        self.decided = 0

    def submit(self, request: Any) -> Ticket:
        """Takes every request but those of tokens 7 and 17."""
        if request.prompt[0] == 7:
            raise FloorlineError("prompt is 7; give another")
        if request.prompt[0] == 17:
            raise OverflowError("17")
        ticket = Ticket(len(self.told), request)
        self.open.append(ticket)
        self.told[ticket] = 0
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Ends a request with the next step."""
        if ticket in self.open:
            self.open.remove(ticket)
            self.cancelled.append(ticket)

    def step(self) -> list[Token | Finished]:
        """A token for each of the first rows."""
        time.sleep(self.step_seconds)
        self.decided += 1
        events = [Finished(ticket, "cancelled") for ticket in self.cancelled]
        self.cancelled = []
        running = self.open[: self.rows]
        for ticket in running:
            if ticket.request.prompt[0] == 13:
                raise ValueError("13")
            self.told[ticket] = number = self.told[ticket] + 1
            events.append(Token(ticket, number % TINY.vocabulary, -0.5))
            if number == ticket.request.max_new_tokens:
                self.open.remove(ticket)
                sizes = {"prompt_tokens": len(ticket.request.prompt), "generated_tokens": number}
                events.append(Finished(ticket, "length", **sizes))
        self.stats = StepStats(self.rows, active=len(running), decode_seconds=self.step_seconds)
        return events

    idle = property(lambda self: not (self.open or self.cancelled))
    running = property(lambda self: min(len(self.open), self.rows))
    waiting = property(lambda self: max(len(self.open) - self.rows, 0))


@dataclasses.dataclass(frozen=True)
class Answer:
    """A response: its status, headers and body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, as JSON."""
        return json.loads(self.body)

    @property
    def chunks(self) -> list[Any]:
        """The body's server-sent events."""
        *events, end = self.body.decode().split("\n\n")
        assert end == "" and all(event.startswith("data: ") for event in events)
        return [e if e == "[DONE]" else json.loads(e) for e in (e[6:] for e in events)]


@dataclasses.dataclass(frozen=True)
class Running:
    """A server that runs: its address, and what is behind it."""

    address: tuple[str, int]
    server: HttpServer
    service: Service
    thread: threading.Thread

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection(*self.address, timeout=120)
        with contextlib.closing(connection):
            headers = {"content-type": "application/json"} | headers
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), response.read())

    def post(self, path: str, **fields: Any) -> Answer:
        """A request of JSON to a path below /v1/."""
        return self.ask("POST", f"/v1/{path}", json.dumps(fields).encode())

    def metric(self, name: str) -> float:
        """A number of /metrics."""
        lines = self.ask("GET", "/metrics").body.decode().splitlines()
        return float(next(each for each in lines if each.startswith(f"{name} ")).split()[1])

    def until(self, true: Callable[[], bool], seconds: float = 120) -> None:
        """Waits for something that must become true."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end
            time.sleep(0.01)


@contextlib.contextmanager
def running(
    batcher: Any,
    model: Served | None = None,
    *,
    rows: int = 2,
    most_waiting: int = 6,
    key: str | None = None,
    stall: float = 20.0,
    drain: float = 20.0,
    connections: int = 4096,
) -> Iterator[Running]:
    """A server over a batcher, in threads of this process."""
    listening = listen("127.0.0.1", 0, stall)
    service = Service(batcher, model or served(), rows, most_waiting)
    app = make_app(service, key=key, most_bytes=100_000, stall=stall)
    begun = threading.Event()
    bounds = {"connections": connections, "stall": stall, "drain": drain}
    server = HttpServer(app, service, listening, **bounds, ready=begun.set)
    thread = threading.Thread(target=server.run)
    address = listening.getsockname()[:2]
    thread.start()
    assert begun.wait(120)
    try:
        yield Running(address, server, service, thread)
    finally:
        if thread.is_alive():
            server.end()
            server.end()
        thread.join(120)
        assert not thread.is_alive()


def batcher_of(engine: Engine, rows: int, context: int, tokenizer: Tokenizer | None) -> Batcher:
    """A real batcher with chunks of one size, warmed up."""
    batcher = Batcher(engine, rows, context, 16, tokenizer=tokenizer, top_logprobs=3)
    batcher.warm_up()
    return batcher
