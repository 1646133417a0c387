"""The speed bars of a decode step on this machine's cores; `-m speed`, on quiet ones."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from profiles.measured import peer_llama_cpp, peer_transformers

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
        peer = peer_transformers.measure(
            smollm2.file.path, context=128, batch=batch, new_tokens=16, repeats=3
        )
        fastest = min(peer[way]["median_s"] for way in ("generate", "manual_loop"))
        ratios.append(fastest / own)
    assert np.median(ratios) >= bar, ratios


@pytest.mark.skipif(not importlib.util.find_spec("xllamacpp"), reason="needs extra `peers`")
def test_a_step_is_no_slower_than_llama_cpp(tmp_path, smollm2):
    gguf, ratios = tmp_path / "float32.gguf", []
    peer_llama_cpp.write_float32(smollm2.file.path, gguf)
    for _ in range(RUNS):
        own = best_row(tmp_path)["step_s"]["median"]
        peer = peer_llama_cpp.measure(gguf, context=128, batch=1, new_tokens=16, repeats=7)
        ratios.append(peer["median_s"] / own)
    assert np.median(ratios) >= 1, ratios
