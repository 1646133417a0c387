"""Plans over all chips take seconds; `-m speed -n 0`, on quiet cores."""

import subprocess
import sys
import time

import pytest

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
