"""A server over HTTP: what it answers, whom it lets in, and what is left of those who go."""

import asyncio
import contextlib
import dataclasses
import json
import socket
import threading
import time

import pytest

from decode.batching.request import Request
from decode.serving import app, service
from decode.serving import server as http_server
from decode.serving.asked import read_completion
from decode.serving.service import Service
from sharding.error_types import FloorlineError
from tests import serving
from tests.serving import PretendedBatcher, Running, running


@pytest.fixture(scope="module")
def server():
    with running(PretendedBatcher(2)) as server:
        yield server


@contextlib.contextmanager
def asking(server: Running, **fields) -> socket.socket:
    """A connection on which a completion is asked for, with nothing of the answer read."""
    body = json.dumps({"prompt": [1], **fields}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(server.address)
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        yield connection


def in_thread(work, *arguments, **named):
    """Runs something meanwhile; returns what waits for its result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(work(*arguments, **named)))
    thread.start()
    return lambda: (thread.join(120), results[0])[1]


LONG = serving.served(dataclasses.replace(serving.TINY, max_context=50_000), context=50_000)
"""A model whose answers may be so long that none ends while a test runs."""
ENDLESS = 40_000


def patiently(check) -> None:
    """Holds a bound in seconds; a longer one where a busy machine took too long to come to it."""
    for stall in (0.3, 2.0):
        with contextlib.suppress(AssertionError, OSError):
            return check(stall)
    return check(10.0)


class Held(PretendedBatcher):
    """Runs no step before it may."""

    def __init__(self, rows: int, step_seconds: float = 0.0):
        super().__init__(rows, step_seconds)
        self.may = threading.Event()

    def step(self):
        self.may.wait(60)
        return super().step()


def test_a_completion_has_the_form_of_openais(server):
    begun = int(time.time())
    answer = server.post("completions", model="tiny", prompt=[5, 6], max_tokens=3, logprobs=0)
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    said = answer.json
    (choice,) = said["choices"]
    assert said["object"] == "text_completion" and said["model"] == "tiny"
    assert said["id"].startswith("cmpl-") and begun <= said["created"] <= time.time()
    assert (choice["index"], choice["text"], choice["finish_reason"]) == (0, "1 2 3 ", "length")
    assert choice["logprobs"] == {
        "tokens": ["1 ", "2 ", "3 "],
        "token_logprobs": [-0.5] * 3,
        "top_logprobs": [{}] * 3,
        "text_offset": [0, 2, 4],
    }
    details = {"prompt_tokens_details": {"cached_tokens": 0}}
    total = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    assert said["usage"] == total | details


def test_prompts_and_answers_to_each_are_numbered_in_their_order(server):
    said = server.post("completions", prompt=[[1, 2], [3]], n=2, max_tokens=2).json
    assert [choice["index"] for choice in said["choices"]] == [0, 1, 2, 3]
    assert said["usage"]["prompt_tokens"] == 3 and said["usage"]["completion_tokens"] == 8


def test_a_stream_has_a_chunk_for_each_token_its_end_and_its_usage(server):
    asked = {"prompt": [[1], [2]], "max_tokens": 3, "stream": True, "return_token_ids": True}
    answer = server.post("completions", **asked, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, done = answer.chunks
    assert done == "[DONE]" and usage["choices"] == [] and usage["usage"]["total_tokens"] == 8
    assert all(chunk["usage"] is None for chunk in chunks)
    for number in (0, 1):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == number]
        assert "".join(choice["text"] for choice in own) == "1 2 3 "
        assert [choice["finish_reason"] for choice in own] == [None, None, None, "length"]
        assert [choice["token_ids"] for choice in own] == [[1], [2], [3], []]
    assert "usage" not in server.post("completions", **asked).chunks[0]


@pytest.mark.parametrize(
    "method, path, body, headers, status, words",
    [
        ("POST", "/v1/completions", b"{", {}, 400, "body is no JSON"),
        ("POST", "/v1/chat/completions", b"[]", {}, 400, "body is []"),
        ("POST", "/v1/completions", b'{"prompt": [1], "temperature": NaN}', {}, 400, "NaN"),
        ("POST", "/v1/completions", b'{"prompt": [1], "echo": true}', {}, 400, "echo is true"),
        ("POST", "/v1/completions", b'{"prompt": "\\ud800"}', {}, 400, "no tokenizer"),
        ("POST", "/v1/completions", b'{"\\ud800": 1, "prompt": [1]}', {}, 400, "unknown"),
        ("POST", "/v1/completions", b'{"prompt": [7]}', {}, 400, "prompt is 7"),
        ("POST", "/v1/completions", b'{"prompt": [17]}', {}, 500, "failing (OverflowError: 17)"),
        ("POST", "/v1/completions", b" " * 100_001, {}, 413, "send at most 100000"),
        ("POST", "/v1/completions", b"{}", {"content-type": "text/plain"}, 415, "text/plain"),
        ("POST", "/v1/completions", b'{"model": "x", "prompt": [1]}', {}, 404, 'model is "x"'),
        ("GET", "/v1/models/x", None, {}, 404, 'model is "x"'),
        ("GET", "/v1/completions", None, {}, 405, "by GET; use POST"),
        ("GET", "/nowhere", None, {}, 404, "path is '/nowhere' by GET; use /v1/completions, "),
    ],
)
def test_errors_have_the_form_of_openais(server, method, path, body, headers, status, words):
    answer = server.ask(method, path, body, **headers)
    assert answer.status == status
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert words in answer.json["error"]["message"] and "Traceback" not in str(answer.body)


def test_a_body_of_unknown_length_is_cut_off_too(server):
    with socket.create_connection(server.address) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" + (b"c350\r\n" + b" " * 50_000 + b"\r\n") * 3
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_the_model_is_listed_and_all_is_well(server):
    (listed,) = server.ask("GET", "/v1/models").json["data"]
    assert (listed["id"], listed["object"], listed["max_model_len"]) == ("tiny", "model", 128)
    assert server.ask("GET", "/v1/models/tiny").json == listed
    assert server.ask("GET", "/health").json == {"status": "ok"}


def test_metrics_count_and_time(server):
    before = {
        name: server.metric(f"floorline_{name}")
        for name in ("generated_tokens_total", "first_token_seconds_count")
    }
    server.post("completions", prompt=[1] * 5, max_tokens=4)
    page = server.ask("GET", "/metrics")
    assert page.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    text = page.body.decode()
    more = {name: server.metric(f"floorline_{name}") - was for name, was in before.items()}
    assert more == {"generated_tokens_total": 4, "first_token_seconds_count": 1}
    assert server.metric("floorline_rows") == 2
    assert server.metric("floorline_requests_running") == 0
    assert 'floorline_answers_total{reason="length"}' in text
    assert 'floorline_responses_total{status="200"}' in text
    assert 'floorline_step_seconds_bucket{part="decode",le="+Inf"}' in text
    families = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(families) == len(set(families)) == 15


def test_who_has_no_key_is_not_let_in():
    with running(PretendedBatcher(1), key="secret") as server:
        asked = b'{"prompt": [1]}'
        for header in ({}, {"authorization": "Bearer secre"}, {"authorization": "secret"}):
            answer = server.ask("POST", "/v1/completions", asked, **header)
            assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_api_key")
        assert server.ask("GET", "/metrics").status == 401
        assert server.ask("GET", "/health").status == 200
        header = {"authorization": "bearer secret"}
        assert server.ask("POST", "/v1/completions", asked, **header).status == 200


def test_more_requests_than_may_wait_are_told_to_come_again():
    batcher = Held(1)
    with running(batcher, rows=1, most_waiting=1) as server:
        with asking(server, max_tokens=100), asking(server, max_tokens=100):
            server.until(lambda: server.service._open == 2)
            answer = server.post("completions", prompt=[1])
            batcher.may.set()
            assert (answer.status, answer.headers["retry-after"]) == (429, "1")
            assert "run or wait is 2 of 2" in answer.json["error"]["message"]
        server.until(lambda: server.service._open == 0)
        assert server.post("completions", prompt=[1], max_tokens=1).status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_row_and_its_place(stream):
    batcher, told = PretendedBatcher(1, 0.01), b'answers_total{reason="cancelled"} 2\n'
    with running(batcher, LONG, rows=1) as server:
        with asking(server, max_tokens=ENDLESS, stream=stream), asking(server, max_tokens=ENDLESS):
            server.until(lambda: batcher.waiting == 1)
        server.until(lambda: batcher.idle)
        assert server.service._open == 0
        server.until(lambda: told in server.ask("GET", "/metrics").body)


def test_readers_that_take_nothing_hold_up_nobody_and_are_given_up():
    def check(stall: float) -> None:
        batcher = Held(8, 0.001)
        with running(batcher, LONG, rows=8, most_waiting=0, stall=stall) as server:
            with contextlib.ExitStack() as open_ones:
                open_ones.callback(batcher.may.set)
                for _ in range(7):
                    open_ones.enter_context(asking(server, max_tokens=ENDLESS, stream=True))
                server.until(lambda: server.service._open == 7, 30)
                batcher.may.set()
                assert server.post("completions", prompt=[1], max_tokens=4).status == 200
                server.until(lambda: server.service._open == 0)
            server.until(lambda: batcher.idle)
            server.until(lambda: not server.server._http.server_state.connections)

    patiently(check)


def test_when_the_batchers_thread_dies_all_hear_of_it_and_the_server_ends(monkeypatch):
    monkeypatch.setattr(http_server, "_FAREWELL", 60.0)
    with running(PretendedBatcher(3, 0.1), LONG, rows=3) as server:
        waiting = in_thread(server.post, "completions", prompt=[1], max_tokens=ENDLESS)
        with asking(server, max_tokens=ENDLESS, stream=True) as streaming:
            rest = b""
            while b"data: " not in rest:
                more = streaming.recv(4096)
                assert more, "the answer ended before its first token"
                rest += more
            server.until(lambda: server.service._open == 2)
            assert server.post("completions", prompt=[13]).status == 503
            assert waiting().status == 503
            while more := streaming.recv(65536):
                rest += more
            assert b'{"error": {"message": "server is ending (ValueError: 13)' in rest
        server.thread.join(60)
        assert not server.thread.is_alive() and str(server.service.failure) == "13"


def test_a_server_that_is_told_to_end_answers_what_has_come_first():
    batcher = Held(1)
    with running(batcher, rows=1) as server:
        answers = [in_thread(server.post, "completions", prompt=[1], max_tokens=30) for _ in "12"]
        server.until(lambda: server.service._open == 2)
        server.server.end()
        batcher.may.set()
        assert [answer().status for answer in answers] == [200, 200]
        server.thread.join(60)
        assert not server.thread.is_alive()
        with pytest.raises(ConnectionRefusedError):
            server.ask("GET", "/health")


@pytest.mark.parametrize("ended_by", ["time", "a second word"])
def test_a_server_ends_in_time_whatever_runs(ended_by, monkeypatch):
    monkeypatch.setattr(http_server, "_FAREWELL", 60.0)
    drain = 0.2 if ended_by == "time" else 600
    with running(PretendedBatcher(1, 0.05), LONG, rows=1, drain=drain) as server:
        answer = in_thread(server.post, "completions", prompt=[1], max_tokens=ENDLESS)
        server.until(lambda: server.service._open == 1)
        server.server.end()
        if ended_by != "time":
            server.server.end()
        assert answer().status == 503
        server.thread.join(60)
        assert not server.thread.is_alive()


def test_a_step_that_does_not_end_is_told_of_with_what_it_runs(monkeypatch):
    begun, released = threading.Event(), threading.Event()

    class Stuck(PretendedBatcher):
        def step(self):
            begun.set()
            released.wait(60)
            return super().step()

    async def ask():
        waiting.start()
        asked = Request(prompt=(1,), max_new_tokens=1)
        waiting.open([asked, asked], time.perf_counter())

    waiting = Service(Stuck(1), serving.served(), 1, 1)
    asyncio.run(ask())
    assert begun.wait(30)
    monkeypatch.setattr(service, "PATIENCE", 0.1)
    with pytest.raises(FloorlineError, match="requests that run: 1, and that wait: 1"):
        waiting.stop()
    with monkeypatch.context() as together:
        together.setattr(service.processes, "count", lambda: 2)
        together.setattr(service.processes, "peer_timeout", lambda: 0.1)
        with pytest.raises(FloorlineError, match=r"step is not done 0\.3 s after the server's end"):
            waiting.stop()
    monkeypatch.setattr(service, "PATIENCE", 60)
    released.set()
    waiting.stop()


@pytest.mark.parametrize(
    "sent", [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET /h"]
)
def test_connections_on_which_no_head_comes_are_given_up(sent):
    def check(stall: float) -> None:
        with running(PretendedBatcher(1), stall=stall) as server:
            with socket.create_connection(server.address, timeout=60) as connection:
                connection.sendall(sent)
                said = b""
                with contextlib.suppress(ConnectionResetError):
                    while more := connection.recv(4096):
                        said += more
            assert said.count(b"HTTP/1.1 200") == sent.count(b"\r\n\r\n")

    patiently(check)


def test_a_request_that_takes_its_time_is_not_given_up():
    def check(stall: float) -> None:
        with running(PretendedBatcher(1, stall / 4), stall=stall) as server:
            assert server.post("completions", prompt=[1], max_tokens=8).status == 200

    patiently(check)


def test_one_connection_too_many_is_told_so_but_health_is_answered():
    with running(PretendedBatcher(1), connections=1) as server:
        assert server.post("completions", prompt=[1], max_tokens=1).status == 200
        server.until(lambda: not server.server._http.server_state.connections)
        with socket.create_connection(server.address):
            server.until(lambda: server.server._http.server_state.connections)
            answer = server.ask("GET", "/v1/models")
            assert (answer.status, answer.json["error"]["code"]) == (503, "too_many_connections")
            assert answer.headers["retry-after"] == "1" and answer.headers["connection"] == "close"
            assert server.ask("GET", "/health").status == 200


def test_a_body_may_be_slow_but_not_stall():
    body = json.dumps({"prompt": [1], "max_tokens": 1}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: %d\r\n\r\n" % len(body)

    def check(stall: float) -> None:
        with running(PretendedBatcher(1), stall=stall) as server:
            with socket.create_connection(server.address, timeout=60) as connection:
                connection.sendall(head)
                for start in range(0, len(body), 8):
                    connection.sendall(body[start : start + 8])
                    time.sleep(0.4 * stall)
                assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
            with socket.create_connection(server.address, timeout=60) as connection:
                connection.sendall(head + body[:5])
                assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")

    patiently(check)


def test_short_requests_are_understood_beside_any_number_of_long_ones(monkeypatch):
    done, waited = threading.Event(), []

    def read(body, model):
        if "long" in body:
            waited.append(done.wait(60))
        return read_completion({"prompt": [1], "max_tokens": 1}, model)

    monkeypatch.setattr(app, "read_completion", read)
    with running(PretendedBatcher(2), most_waiting=50) as server:
        long = [in_thread(server.post, "completions", long="a" * 70_000) for _ in range(40)]
        server.until(lambda: server.service._in_hand == 40)
        assert server.post("completions", prompt=[1]).status == 200
        done.set()
        assert [answer().status for answer in long] == [200] * 40
    assert all(waited)
