"""The speed bars of a decode step on this machine's cores; `-m speed`, on quiet ones."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from profiles.peers.comparison import measure
from profiles.peers.messages import Job

ROOT = Path(__file__).parents[2]
RUNS = 3

pytestmark = pytest.mark.speed


def best_row(tmp_path: Path, batch: int = 1) -> dict:
    """The faster of one and two devices at context 128, in a process of its own."""
    command = [
        "--devices=1,2",
        "--dtype=float32",
        f"--batch={batch}",
        "--context=128",
        "--seconds=10",
    ]
    script = [sys.executable, str(ROOT / "scripts/profile_decode.py")]
    subprocess.run([*script, *command, f"--output_dir={tmp_path}"], check=True, text=True)
    points = json.loads((tmp_path / "profile.json").read_text())["points"]
    return min(points, key=lambda point: point["step_s"]["median"])


def peer_step(smollm2, engine: str, scratch: Path, batch: int, repeats: int) -> float:
    """The median step of a peer at context 128, in a process of its own."""
    job = Job(engine, str(smollm2.file.path), "gguf", batch=batch, threads=2, scratch=str(scratch))
    vocabulary = smollm2.config.vocabulary
    row = measure(job, context=128, new_tokens=17, repeats=repeats, vocabulary=vocabulary)
    return row["step_s"]["median"]


def test_a_step_reaches_more_than_half_of_its_floor(tmp_path):
    fractions = [best_row(tmp_path)["fraction_of_floor"] for _ in range(RUNS)]
    assert np.median(fractions) >= 0.55, fractions


@pytest.mark.parity
@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs extra `parity`")
@pytest.mark.parametrize(("batch", "bar"), [(1, 2.5), (8, 2.0), (32, 1.5)])
def test_a_step_is_much_faster_than_transformers(tmp_path, smollm2, batch, bar):
    ratios = []
    for _ in range(RUNS):  # alternating, so that a slow minute falls on both
        own = best_row(tmp_path, batch)["step_s"]["median"]
        ways = "transformers", "transformers-generate"
        fastest = min(peer_step(smollm2, way, tmp_path, batch, repeats=3) for way in ways)
        ratios.append(fastest / own)
    assert np.median(ratios) >= bar, ratios


@pytest.mark.skipif(not importlib.util.find_spec("xllamacpp"), reason="needs extra `compare`")
def test_a_step_is_no_slower_than_llama_cpp(tmp_path, smollm2):
    ratios = []
    for _ in range(RUNS):
        own = best_row(tmp_path)["step_s"]["median"]
        ratios.append(peer_step(smollm2, "llama.cpp", tmp_path, batch=1, repeats=7) / own)
    assert np.median(ratios) >= 1, ratios
