"""An explained step of SmolLM2-135M here: `-m speed`, on quiet cores."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts.running import SCRIPTS, environment

NAMED = 0.9

pytestmark = pytest.mark.speed


@pytest.mark.parametrize("flags", [["--batch=1"], ["--batch=16"], ["--batch=4", "--devices=2"]])
def test_blocks_of_a_real_step_add_up_to_it_and_nearly_all_of_it_is_named(flags, tmp_path: Path):
    command = [sys.executable, str(SCRIPTS / "explain_step.py"), *flags]
    subprocess.run(command, cwd=tmp_path, env=environment(), check=True)
    found = json.loads((tmp_path / "out/explain/explain.json").read_text())
    (record,) = found["points"]
    step_s, blocks = record["step_s"]["median"], found["blocks"]
    total = sum(block["measured_s"] for block in blocks) + found["unattributed_s"]
    assert total == pytest.approx(step_s, rel=1e-9)
    idle = {"between operations", "host"}
    named = sum(block["measured_s"] for block in blocks if block["name"] not in idle)
    waits = sum(block["measured_s"] for block in blocks if block["name"] in idle)
    print(
        f"{step_s * 1e3:.1f} ms: {named / step_s:.1%} in operations, {waits / step_s:.1%} in none"
    )
    assert found["named"] >= NAMED
    floors = {block["name"]: block["floor_s"] for block in blocks}
    assert sum(floors.values()) >= record["floor_s"] * (1 - 1e-9)
    if record["devices"] == 1:  # fake devices wait for each other as long as others use the cores
        assert max(blocks, key=lambda block: block["measured_s"])["name"] == "MLP"
