"""Sweeps that are killed while they run and started again: no finished row is lost or repeated."""

import json
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from profiles.measured.resume import FAILED, MIN_ROUNDS
from tests.scripts.profile_cases import write_calibration
from tests.scripts.running import SCRIPTS, each_started, ends

SWEEP = [
    *("--model=tiny", "--random_weights", "--seconds=0", "--context=16", "--output_dir=out"),
    *("--devices=1,2", "--batch=1,1000000000", "--calibration=slow.json"),
]
ROWS = 4  # those of the largest batch do not fit
POLL_S = 0.005


def samples_of(path: Path) -> dict[tuple, tuple[str, list[str]]]:
    """By mesh and batch of each row in a document: its status, and its samples as they stand."""
    if not path.exists():
        return {}
    document = json.loads(path.read_text(), parse_float=str)  # whole at every moment
    return {
        (point["devices"], point["batch"]): (
            point["status"],
            point.get("step_s", {}).get("samples", []),
        )
        for point in document["points"]
    }


def finished(path: Path) -> dict[tuple, tuple[str, list[str]]]:
    rows = samples_of(path).items()
    return {row: f for row, f in rows if f[0] in FAILED or len(f[1]) >= MIN_ROUNDS}


def kill_after(process, path: Path, rounds: int, more_s: float) -> None:
    """Kills a sweep a little after so many rounds of its own are on disk, if it still runs."""
    seen, written = 0, path.stat().st_mtime_ns if path.exists() else None
    until = time.monotonic() + 120
    while seen < rounds and process.poll() is None and time.monotonic() < until:
        time.sleep(POLL_S)
        now = path.stat().st_mtime_ns if path.exists() else None
        seen, written = seen + (now != written), now
    time.sleep(more_s)
    process.send_signal(signal.SIGKILL)
    process.wait()


def check_killed_and_finished(folder: Path, moments: list[tuple[int, float]]) -> None:
    """Kills a sweep at each of these moments, and checks what it keeps; then lets it finish."""
    path = folder / "out" / "profile.json"
    write_calibration(folder / "slow.json", "cpu")
    command = [sys.executable, str(SCRIPTS / "profile_decode.py"), *SWEEP]
    before: dict = {}
    for rounds, more_s in moments:
        with each_started([command], folder, {}) as (process,):
            kill_after(process, path, rounds, more_s)
        kept = finished(path)
        assert {row: kept.get(row) for row in before} == before
        before = kept
    with each_started([command], folder, {}) as processes:
        (ended,) = ends(processes)
    assert ended.code == 0, ended.stderr
    if before:
        assert f"{len(before)} of {ROWS} rows are kept from " in ended.stderr
    last = finished(path)
    assert {row: last[row] for row in before} == before
    assert len(last) == ROWS
    assert json.loads(path.read_text())["complete"] is True
    assert (folder / "out" / "step_time.png").exists()


@pytest.mark.slow
def test_a_sweep_killed_at_ten_random_moments_loses_and_repeats_no_finished_row(tmp_path):
    draw = random.Random(10)
    moments = [(draw.randint(0, MIN_ROUNDS), draw.random() * 0.5) for _ in range(10)]
    check_killed_and_finished(tmp_path, moments)
