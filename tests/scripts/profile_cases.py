"""Arguments of `profile_decode.py` that its tests share, and a calibration that is made up."""

import json
from pathlib import Path

HELD = ["--context=16", "--seconds=0"]
TINY = ["--model=tiny", "--random_weights", *HELD]
PROMPTS = ["--random_weights", "--phase=prefill", "--seconds=0", "--devices=1"]


def write_calibration(path: Path, chip: str) -> None:
    """Writes a calibration that was measured on a chip, made up and slow."""
    fractions = {"memory": 0.5, "compute": 0.25, "link": 1}
    fixed = {"collective_s": 0, "network_s": 0, "layer_s": 0.25, "step_s": 0.5, "hidden": False}
    words = {"name": "slow", "source": "made up", "chips": [chip], "measured_on": chip}
    path.write_text(json.dumps(words | fractions | fixed))
