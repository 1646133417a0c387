"""Engines in turns on this machine's cores, by scripts/compare_engines.py; `-m speed -n 0`."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from profiles.peers.engine_process import EngineProcess
from profiles.peers.messages import Job, Work

ROOT = Path(__file__).parents[2]
PEERS = {"transformers": "transformers", "llama.cpp-quantized": "xllamacpp"}

pytestmark = pytest.mark.speed


@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs extra `compare`")
def test_no_peer_with_the_same_weights_has_faster_steps(tmp_path):
    command = [sys.executable, str(ROOT / "scripts/compare_engines.py"), "--chat", "--rounds=5",
               "--prompt=Why is the sky blue?", f"--output_dir={tmp_path}"]  # fmt: skip
    subprocess.run(command, check=True, timeout=900)
    document = json.loads((tmp_path / "engines.json").read_text())
    plain = {row["name"]: row for row in document["engines"] if row.get("dtype") == "float32"}
    for ratio in document["ratios"]:
        if ratio["name"] in plain:
            assert plain[ratio["name"]]["same_text"], plain[ratio["name"]]
            assert ratio["step"] >= 1, ratio


@pytest.mark.parametrize("engine", ["floorline", *PEERS])
def test_an_engine_that_waits_leaves_the_cores_to_others(engine, smollm2, tmp_path):
    if not importlib.util.find_spec(PEERS.get(engine, "jax")):
        pytest.skip("needs extra `compare`")
    job = Job(engine, str(smollm2.file.path), "gguf", "float32", threads=2, scratch=str(tmp_path))
    with EngineProcess(job) as process:
        process.round(Work([[1, 2, 3, 4]], 8))
        time.sleep(0.1)
        before = processor_s(process._process.pid)
        time.sleep(2)
        assert processor_s(process._process.pid) - before <= 0.02


def processor_s(process: int) -> float:
    """Seconds of processors that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
