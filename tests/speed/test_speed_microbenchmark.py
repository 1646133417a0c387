"""The microbenchmark against an independent stream, and its time; `-m speed`, on quiet cores."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from profiles.measured.bandwidth import READ_BYTES, READS, read_operands, seconds_of
from sharding.mesh import make_mesh, parse_mesh
from tests.scripts.running import SCRIPTS, environment

ROUNDS = 15
LONGEST_S = 60

pytestmark = pytest.mark.speed


def test_memory_is_read_as_fast_as_by_numpy_on_as_many_threads():
    """The best kernel of each side, in turns in one process."""
    mesh = make_mesh(parse_mesh("2"))
    operands = read_operands(mesh, READ_BYTES)
    halves = np.array_split(np.full(READ_BYTES // 4, 0.5, np.float32).reshape(-1, 4096), 2)
    streams = {"numpy max": np.max, "numpy sum": np.sum}
    seconds: dict[str, list[float]] = {name: [] for name in (*READS, *streams)}
    with ThreadPoolExecutor(2) as pool:
        for _ in range(ROUNDS):
            for name, kernel in READS.items():
                seconds[name].append(seconds_of(lambda run=kernel: run(*operands), 1))
            for name, stream in streams.items():
                start = time.perf_counter()
                list(pool.map(stream, halves))
                seconds[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(times[1:])) for name, times in seconds.items()}
    ours = min(medians[name] for name in READS)
    theirs = min(medians[name] for name in streams)
    rates = {name: f"{READ_BYTES / time / 1e9:.1f} GB/s" for name, time in medians.items()}
    print(rates)
    assert 0.9 < theirs / ours < 1.1, rates


def test_the_default_command_takes_less_than_a_minute(tmp_path: Path):
    start = time.perf_counter()
    command = [sys.executable, str(SCRIPTS / "microbenchmark.py")]
    subprocess.run(command, cwd=tmp_path, env=environment(), check=True)
    assert time.perf_counter() - start < LONGEST_S
    found = json.loads((tmp_path / "out/microbenchmark/microbenchmark.json").read_text())
    assert found["collectives"]["fits"]
