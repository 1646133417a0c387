"""The microbenchmark against an independent stream, and its time; `-m speed`, on quiet cores."""

import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from profiles.measured.bandwidth import READS, read_operands, seconds_of
from profiles.measured.microbenchmark import LARGEST_READ
from sharding.mesh import make_mesh, parse_mesh
from tests.scripts.running import SCRIPTS, environment

ROUNDS = 15
LONGEST_S = 60

pytestmark = pytest.mark.speed


def test_memory_is_read_as_fast_as_by_numpy_on_as_many_threads():
    """The best kernel of each side in each round, in turns in one process."""
    mesh = make_mesh(parse_mesh("2"))
    operands = read_operands(mesh, LARGEST_READ)
    halves = np.array_split(np.full(LARGEST_READ // 4, 0.5, np.float32), 2)
    streams = {"max": np.max, "sum": np.sum, "square": lambda half: half.dot(half)}
    ours, theirs = [], []
    with ThreadPoolExecutor(2) as pool:
        for _ in range(ROUNDS):
            runs = (functools.partial(kernel, *operands) for kernel in READS.values())
            ours.append(min(seconds_of(run, 1) for run in runs))
            theirs.append(min(_seconds(pool, stream, halves) for stream in streams.values()))
    ratio = float(np.median(np.divide(theirs, ours)[1:]))
    rates = [LARGEST_READ / np.median(times) / 1e9 for times in (ours, theirs)]
    print("{:.1f} GB/s, by NumPy {:.1f}; ratio {:.2f}".format(*rates, ratio))
    assert 0.9 < ratio < 1.1


def _seconds(pool: Executor, stream: Callable, parts: list[np.ndarray]) -> float:
    start = time.perf_counter()
    list(pool.map(stream, parts))
    return time.perf_counter() - start


def test_the_default_command_takes_less_than_a_minute(tmp_path: Path):
    start = time.perf_counter()
    command = [sys.executable, str(SCRIPTS / "microbenchmark.py")]
    subprocess.run(command, cwd=tmp_path, env=environment(), check=True)
    assert time.perf_counter() - start < LONGEST_S
    found = json.loads((tmp_path / "out/microbenchmark/microbenchmark.json").read_text())
    assert found["collectives"]["fits"]
