"""Arguments of `profile_decode.py` that its tests share, and a calibration that is made up."""

import json
from pathlib import Path

HELD = ["--context=16", "--seconds=0"]
TINY = ["--model=tiny", "--random_weights", *HELD]
QUICK_RATES = {
    "profiles.measured.bandwidth.READ_BYTES": 1 << 22,
    "profiles.measured.bandwidth.MATMUL_SIZE": 256,
    "profiles.measured.calibration_here.WEIGHTS": 1,
    "profiles.measured.calibration_here.READ_BYTES": 1 << 18,
    "profiles.measured.microbenchmark.MIN_ROUNDS": 1,
    "profiles.measured.model_kernels.BURST_S": 0,
}
"""Patches for rates too good and a rough calibration, of little time, where they do."""
PROMPTS = ["--random_weights", "--phase=prefill", "--seconds=0", "--devices=1"]


def write_calibration(path: Path, chip: str) -> None:
    """Writes a calibration that was measured on a chip, made up and slow."""
    fractions = {"memory": 0.5, "compute": 0.25, "link": 1}
    fixed = {"collective_s": 0, "network_s": 0, "layer_s": 0.25, "step_s": 0.5, "hidden": False}
    words = {"name": "slow", "source": "made up", "chips": [chip], "measured_on": chip}
    path.write_text(json.dumps(words | fractions | fixed))
