"""Sweeps that are killed while they run and started again: no finished row is lost or repeated.

Each is held before it writes results until the test lets it. So what is on disk when it is killed
is known, however fast the machine is, and no sweep ends before its kill.
"""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from profiles.measured.resume import FAILED, MIN_ROUNDS
from tests.scripts.profile_cases import write_calibration
from tests.scripts.running import NO_CACHE, QUICK, SCRIPTS, each_started, ends, environment

SWEEP = [
    *("--model=tiny", "--random_weights", "--seconds=0", "--context=16", "--output_dir=out"),
    *("--devices=1,2", "--batch=1,1000000000", "--calibration=slow.json", "--json=copy.json"),
]
COMMAND = [str(SCRIPTS / "profile_decode.py"), *SWEEP]
ROWS = 4  # those of the largest batch do not fit
ALL = 99  # more writes than a sweep makes: one for each round, and two at its end
HELD = """
import os, runpy, sys
replace = os.replace

def held(source, target, **more):
    results = os.path.basename(target) == "profile.json"
    if results:
        sys.stdin.readline()
    replace(source, target, **more)
    if results:
        print("written", flush=True)
        sys.stdin.readline()

os.replace, sys.argv = held, sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script that waits for a line before it writes its results, and for another one then."""


def rows_of(path: Path) -> dict[tuple, tuple[str, list[str]]]:
    """By mesh and batch of each finished row: its status, and its samples as they stand."""
    if not path.exists():
        return {}
    document = json.loads(path.read_text(), parse_float=str)  # whole at every moment
    found = {
        (point["devices"], point["batch"]): (
            point["status"],
            point.get("step_s", {}).get("samples", []),
        )
        for point in document["points"]
    }
    return {row: f for row, f in found.items() if f[0] in FAILED or len(f[1]) >= MIN_ROUNDS}


def is_complete(path: Path) -> bool:
    return path.exists() and json.loads(path.read_text())["complete"]


def kill_after(folder: Path, path: Path, writes: int, more_s: float | None) -> None:
    """Starts the sweep, and kills it a little after it has written its results so often.

    It is killed before it goes on where `more_s` is None, or where they say that it is complete.
    """
    with subprocess.Popen(
        [sys.executable, "-c", HELD, *COMMAND],
        cwd=folder,
        env=environment(**QUICK | NO_CACHE),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    ) as process:
        try:
            for number in range(writes):
                process.stdin.write(b"\n")
                assert process.stdout.readline() == b"written\n"
                if is_complete(path) or (more_s is None and number + 1 == writes):
                    return
                process.stdin.write(b"\n")
            time.sleep(more_s)
        finally:
            process.kill()


def check_killed_and_finished(folder: Path, moments: list[tuple[int, float | None]]) -> list[int]:
    """Kills a sweep at each of these moments, and checks what it keeps; then lets it finish.

    A sweep that was complete at its kill is measured anew by the next: nothing of it is kept.

    Returns:
      Of each kill, how many rows had been measured, or -1 where the sweep was complete.
    """
    path, traces = folder / "out" / "profile.json", folder / "out" / "trace"
    write_calibration(folder / "slow.json", "cpu")
    kept, measured, old_traces = {}, [], False
    for writes, more_s in moments:
        kill_after(folder, path, writes, more_s)
        found, complete = rows_of(path), is_complete(path)
        assert {row: found.get(row) for row in kept} == kept
        old_traces &= complete or more_s is None  # else a sweep has gone on from its first results
        assert traces.exists() == old_traces
        if complete:  # then so is all else
            assert (folder / "copy.json").read_bytes() == path.read_bytes()
            assert (folder / "out" / "step_time.png").exists()
            traces.mkdir(exist_ok=True)  # as if there were some
            old_traces = True
        measured.append(-1 if complete else sum(f[0] not in FAILED for f in found.values()))
        kept = {} if complete else found
    with each_started([[sys.executable, *COMMAND]], folder, {}) as processes:
        (ended,) = ends(processes)
    assert ended.code == 0, ended.stderr
    assert (f"{len(kept)} of {ROWS} rows are kept from " in ended.stderr) == bool(kept)
    last = rows_of(path)
    assert {row: last[row] for row in kept} == kept
    assert len(last) == ROWS and is_complete(path)
    assert (folder / "out" / "step_time.png").exists()
    return measured


@pytest.mark.slow
def test_a_sweep_killed_at_random_moments_loses_and_repeats_no_finished_row(tmp_path):
    """The first kills meet a complete sweep, which a later one measures anew.

    That one is killed once between its first results and all else that it does with them.
    """
    draw = random.Random(58)
    writes = [ALL, 0, *(draw.randint(0, MIN_ROUNDS) for _ in range(8))]
    moments = [(each, draw.random() * 0.5) for each in writes]
    measured = check_killed_and_finished(tmp_path, [*moments[:2], (1, None), *moments[2:]])
    assert measured[:4] == [-1, -1, 0, 0]
    assert sum(rows > 0 for rows in measured) >= 5  # else nothing could have been lost
