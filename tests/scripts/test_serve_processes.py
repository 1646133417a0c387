"""The server in two processes on this machine: process 0 answers, and both end together."""

import json
import re
import signal
import socket
import time

import pytest

from decode.generate import Request, generate
from decode.load import find_source
from decode.sampling import Sampler
from model.dtypes import FLOAT32
from sharding.catalog import LAYOUTS
from sharding.mesh import parse_mesh
from tests.scripts.running import ends, started
from tests.scripts.test_many_processes import PATIENT, SLACK, TINY
from tests.scripts.test_serve import metrics, post

pytestmark = pytest.mark.slow
SERVED = [*TINY, "--devices=2", "--batch=2", "--context=400", "--token_budget=16"]
SERVED += ["--port=0", "--seed=3"]
PROMPTS = [[1, 2, 3], [9, 8, 7, 6, 5]]
DRAWN = {"temperature": 1.5, "seed": 3, "max_tokens": 6}


def address_of(process) -> str:
    """Where a server is, when it is ready."""
    for line in iter(process.stderr.readline, ""):
        if found := re.match(r"http://(.+)/v1 serves", line):
            return found[1]
    raise AssertionError(ends([process]))


def go_away(address: str, **fields) -> None:
    """Asks for a completion, and leaves when its first token is there."""
    host, port = address.split(":")
    body = json.dumps(fields).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port)), timeout=300) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")


def until(true) -> None:
    end = time.monotonic() + 300
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def alone(prompts, temperature: float, count: int) -> list[list[int]]:
    """Tokens of one process with one device, without drafts."""
    source = find_source("tiny", random_weights=True)
    engine = source.engine(LAYOUTS["weight_stationary_1d"], parse_mesh("1x1x1"), FLOAT32, 3)
    asked = Request(prompts=prompts, max_new_tokens=count, sampler=Sampler(temperature), seed=3)
    *_, completions = generate(engine, asked)
    return [completion.tokens for completion in completions]


def test_two_processes_give_the_tokens_of_one_whoever_goes_away_and_end_when_told_to(tmp_path):
    tokens = alone(PROMPTS, 1.5, 6)
    asked = {"prompt": PROMPTS, "return_token_ids": True, **DRAWN}
    with started("serve.py", *SERVED, folder=tmp_path, ids=range(2), count=2) as these:
        address = address_of(these[0])

        def answers() -> list[list[int]]:
            return [choice["token_ids"] for choice in post(address, **asked)[1]["choices"]]

        assert answers() == tokens
        cancelled = b'answers_total{reason="cancelled"} 1'
        for _ in range(20):  # on a busy machine the answer may be complete when it is noticed
            go_away(address, prompt=[1], max_tokens=390, stream=True)
            until(lambda: b"requests_running 0" in metrics(address))
            if cancelled in metrics(address):
                break
        assert cancelled in metrics(address)
        assert answers() == tokens
        for process in these:
            process.send_signal(signal.SIGTERM)
        found = ends(these)
    assert [(ended.code, ended.stdout, ended.stderr) for ended in found] == [(0, "", "")] * 2


def test_two_processes_that_verify_drafts_give_the_tokens_of_one_without_them(tmp_path):
    served = [*TINY, "--devices=2", "--batch=1", "--context=64", "--token_budget=16", "--port=0"]
    served += ["--seed=3", "--draft=ngram", "--draft_tokens=3"]
    prompts = [[5, 6, 7, 8] * 3, [9, 8, 7]]
    tokens = alone(prompts, 0.0, 30)
    asked = {"prompt": prompts, "return_token_ids": True, "temperature": 0, "max_tokens": 30}
    with started("serve.py", *served, folder=tmp_path, ids=range(2), count=2) as these:
        address = address_of(these[0])
        choices = post(address, **asked)[1]["choices"]
        assert [choice["token_ids"] for choice in choices] == tokens
        told = dict(line.rsplit(" ", 1) for line in metrics(address).decode().splitlines())
        drafted, accepted = (
            int(told[f"floorline_{name}_tokens_total"]) for name in ("drafted", "accepted")
        )
        assert 0 < accepted <= drafted
        these[0].send_signal(signal.SIGTERM)
        found = ends(these)
    assert [(ended.code, ended.stdout, ended.stderr) for ended in found] == [(0, "", "")] * 2


def test_when_the_first_dies_the_other_ends_though_it_sleeps(tmp_path):
    patient = [*SERVED, f"--peer_timeout={PATIENT}"]
    with started("serve.py", *patient, folder=tmp_path, ids=range(2), count=2) as these:
        address_of(these[0])
        these[0].kill()
        (ended,) = ends(these[1:], timeout=PATIENT + SLACK)
    assert ended.code == 1
    assert ended.error.startswith("process 0 of 2 is gone, so process 1 of 2 ends; ")
