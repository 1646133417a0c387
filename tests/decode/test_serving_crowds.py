"""Crowds, garbage and clients that are killed leave no row taken and no token changed."""

import asyncio
import json
import random
import resource
import socket
import struct
import time

import pytest

from tests import serving
from tests.serving import batcher_of, running

pytestmark = pytest.mark.serve
ROWS = 8
ASKED = {"prompt": [1, 2, 3], "max_tokens": 8, "seed": 1, "return_token_ids": True}


@pytest.fixture(scope="module")
def server(tiny_engine):
    engine = tiny_engine()
    batcher = batcher_of(engine, ROWS, 128, None)
    with running(batcher, serving.served(), rows=ROWS, most_waiting=1024, stall=60) as server:
        yield server


@pytest.fixture(autouse=True)
def as_before(server):
    """What is asked before and after is the same, and in the end nothing runs."""
    before = server.post("completions", **ASKED).json["choices"]
    begun = time.perf_counter()
    yield
    print(f"\n{time.perf_counter() - begun:.1f} s; {memory()} MB at most so far")
    server.until(lambda: server.service._open == 0, 60)
    server.until(lambda: server.metric("floorline_requests_running") == 0, 60)
    assert server.metric("floorline_requests_waiting") == 0
    assert server.post("completions", **ASKED).json["choices"] == before
    assert server.ask("GET", "/health").status == 200


def memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def framed(body: bytes) -> bytes:
    head = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def garbage(chance: random.Random) -> bytes:
    """A request that is wrong in some way, or perhaps only strange."""
    fields = {**ASKED, "max_tokens": 1}
    name = chance.choice([*fields, "temperature", "stop", "n", "top_p", "stream", "x", "logprobs"])
    values = [-1, 1e400, 10**30, "a", [], {}, [[]], None, True, 0.5, "\ud800", "x" * 5000, [1.5]]
    fields[name] = chance.choice(values)
    body = bytearray(json.dumps(fields).encode())
    match chance.randrange(5):
        case 0:
            body[chance.randrange(len(body))] = chance.randrange(256)
        case 1:
            body = body[: chance.randrange(len(body))]
        case 2:
            return chance.randbytes(chance.randrange(1, 200)) + b"\r\n\r\n"
        case 3:
            body = bytearray(chance.randbytes(chance.randrange(100)))
    return framed(bytes(body))


async def status_of(reader: asyncio.StreamReader) -> int:
    """The status of a response, which is read to its end; 0 where the connection is closed."""
    line = await reader.readline()
    if not line:
        return 0
    length, chunked = 0, False
    while (header := await reader.readline()) not in (b"\r\n", b""):
        name, _, value = header.lower().partition(b":")
        length = int(value) if name == b"content-length" else length
        chunked |= name == b"transfer-encoding"
    if chunked:
        await reader.readuntil(b"0\r\n\r\n")
    await reader.readexactly(length)
    return int(line.split()[1])


def test_ten_thousand_requests_of_garbage_are_refused(server):
    found: dict[int, int] = {}

    async def one(number: int) -> None:
        chance = random.Random(number)
        for _ in range(625):
            reader, writer = await asyncio.open_connection(*server.address)
            writer.write(garbage(chance))
            try:
                status = await asyncio.wait_for(status_of(reader), 60)
            except ConnectionError:
                status = 0
            found[status] = found.get(status, 0) + 1
            writer.close()

    async def all_of_them() -> None:
        await asyncio.gather(*map(one, range(16)))

    asyncio.run(all_of_them())
    print(found)
    assert sum(found.values()) == 10_000
    assert set(found) <= {0, 200, 400} and found[400] > 7000 and found.get(0, 0) < 100


def test_a_thousand_connections_at_once_are_all_answered(server):
    async def one(number: int) -> int:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(framed(json.dumps({**ASKED, "prompt": [number % 200, 5]}).encode()))
        status = await status_of(reader)
        writer.close()
        return status

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*map(one, range(1000)))

    assert asyncio.run(all_of_them()) == [200] * 1000


def test_clients_that_are_killed_at_any_time_leave_nothing(server):
    """No row taken, no request open and the same tokens: `as_before` asserts it."""
    chance = random.Random(2)
    for number in range(200):
        asked = {"prompt": [number, 1], "max_tokens": 120, "stream": number % 2 == 0}
        with socket.create_connection(server.address) as connection:
            text = framed(json.dumps(asked).encode())
            connection.sendall(text[: chance.choice([len(text), len(text), len(text) - 5])])
            time.sleep(chance.random() * 0.02)
            if chance.random() < 0.5:  # closes without a farewell, as a machine that fails
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def test_readers_that_take_nothing_do_not_hold_up_others(server):
    slow = []
    for number in range(200):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(server.address)
        asked = {"prompt": [number, 1], "max_tokens": 120, "stream": True, "logprobs": 3}
        connection.sendall(framed(json.dumps(asked).encode()))
        slow.append(connection)
    before = time.perf_counter()
    assert server.post("completions", **ASKED).status == 200
    print(f"\nanswered in {time.perf_counter() - before:.2f} s behind 200 that take nothing")
    for connection in slow:
        connection.close()
