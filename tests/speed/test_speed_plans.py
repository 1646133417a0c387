"""Plans over all chips take seconds; `-m speed -n 0`, on quiet cores."""

import itertools
import subprocess
import sys
import time

import pytest

from profiles.expected.estimate import Estimator
from profiles.expected.estimate_record import Recorder
from tests.profiles.expected.test_estimate import INT8, deployment
from tests.scripts.running import SCRIPTS


@pytest.mark.speed
@pytest.mark.parametrize("model", ["qwen3-235b-a22b", "qwen3-30b-a3b", "mixtral-8x7b"])
def test_all_chips_are_planned_in_seconds(tmp_path, model):
    """The models of the most layouts; start-up included, the best of three."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        given = f"--model={model}", "--context=1000", f"--json={tmp_path}/plan.json"
        subprocess.run(
            [sys.executable, str(SCRIPTS / "plan.py"), *given], check=True, capture_output=True
        )
        seconds.append(time.perf_counter() - start)
    print(f"{model}: {min(seconds):.1f} s")
    assert min(seconds) < 5


@pytest.mark.speed
def test_ten_thousand_points_take_less_than_five_seconds():
    recorder, start = Recorder(Estimator(deployment(dtypes=INT8))), time.perf_counter()
    for batch, context in itertools.product(range(1, 101), range(100, 10_100, 100)):
        recorder.record(recorder.estimator.decode(batch, context))
    assert time.perf_counter() - start < 5
