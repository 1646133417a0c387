"""A server elsewhere, as its clients see it: one that this test plants."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from profiles.serving.arrivals import Asked, Load, closed
from profiles.serving.elsewhere import KNOWN, Server, answer
from sharding.error_types import FloorlineError, UsageError


class Planted(BaseHTTPRequestHandler):
    """Streams as many tokens as are asked for, or does what `mode` says.

    Requests are answered so many together as `meeting` has parties. One leaves the count of those
    inside before its answer is sent: what its client sends next cannot be counted beside it.
    """

    mode, asked, inside, most = "", [], 0, 0
    lock, meeting = threading.Lock(), threading.Barrier(1)

    def do_GET(self):
        self._send(200, json.dumps({"data": [{"id": "planted"}]}).encode())

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = type(self)
        with self.lock:
            kind.asked.append(asked | {"key": self.headers.get("Authorization")})
            kind.inside += 1
            kind.most = max(kind.most, kind.inside)
        self.meeting.wait(timeout=120)
        time.sleep(0.02)  # a request too many would arrive now, and be counted
        with self.lock:
            kind.inside -= 1
        if self.mode == "refuse":
            self._send(429, b'{"error": {"message": "too many\\nwaiting"}}')
        else:
            self._stream(asked["max_tokens"] - (self.mode == "stops"))

    def _stream(self, count: int) -> None:
        events = [{"choices": [{"text": "a", "finish_reason": None}]} for _ in range(count - 1)]
        if self.mode == "together":  # two tokens in one event, whose text is complete then
            events = events[1:]
        events.append({"choices": [{"text": "a", "finish_reason": None}]})
        events.append({"choices": [{"text": "", "finish_reason": "length"}]})
        events.append({"choices": [], "usage": {"completion_tokens": count}})
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        if self.mode == "breaks":
            lines = [lines[0], "data: {broken\n\n"]
        self._send(200, "".join([*lines, "data: [DONE]\n\n"]).encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def planted(how: str = "", together: int = 1):
    meeting = threading.Barrier(together)
    handler = type("Handler", (Planted,), {"mode": how, "asked": [], "meeting": meeting})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        server.server_close()


def test_a_closed_loop_has_so_many_requests_in_flight_and_counts_their_tokens():
    with planted(together=2) as (url, handler):
        server = Server(url + "/v1", api_key="secret")
        traffic = answer(server, closed([Asked(5, 3)] * 6, 2))
    assert handler.most == 2 and len(handler.asked) == 6
    assert [each.tokens for each in traffic.timelines] == [3] * 6
    assert all(each.arrived < each.first <= each.last for each in traffic.timelines)
    first = handler.asked[0]
    assert first["model"] == "planted" and first["key"] == "Bearer secret"
    assert first["stream"] and first["ignore_eos"] and first["stream_options"]["include_usage"]
    assert len(first["prompt"]) == 5 and all(KNOWN[0] <= n < KNOWN[1] for n in first["prompt"])


def test_requests_are_sent_when_they_arrive():
    load = Load("trace", [Asked(2, 2, 0.0), Asked(2, 2, 0.3)])
    with planted() as (url, _):
        traffic = answer(Server(url), load)
    assert [each.arrived for each in traffic.timelines] == [0.0, 0.3]
    assert traffic.timelines[1].first > 0.3 and traffic.wall_s > 0.3


def test_tokens_that_come_together_are_counted_by_what_the_server_says():
    with planted("together") as (url, _):
        traffic = answer(Server(url), closed([Asked(2, 4)], 1))
    assert traffic.tokens == 4


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("refuse", "status 429 .*too many"),
        ("stops", "tokens from .* is 3, not 4; its answers must heed ignore_eos"),
        ("breaks", "is broken off"),
    ],
)
def test_a_server_that_fails_ends_the_measurement_in_one_line(mode, said):
    with planted(mode) as (url, _), pytest.raises(FloorlineError, match=said) as failure:
        answer(Server(url), closed([Asked(2, 4)] * 3, 2))
    assert "\n" not in str(failure.value)


def test_after_a_failure_nothing_that_is_to_come_is_waited_for():
    begun = time.monotonic()
    load = Load("trace", [Asked(2, 4, 300.0), Asked(2, 4, 0.0)])
    with planted("refuse") as (url, handler), pytest.raises(FloorlineError, match="status 429"):
        answer(Server(url), load)
    assert time.monotonic() - begun < 300 and len(handler.asked) == 1


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://here", "http://", "http://a:99999"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(UsageError, match="url is"):
        Server(url)


def test_a_server_that_is_not_there_is_told_with_a_remedy():
    with planted() as (url, _):
        pass
    with pytest.raises(FloorlineError, match=r"not answering .*ConnectionRefused.*start it"):
        Server(url)
