"""`python -m tests.quirk_table` writes the table of `tests.quirks` to a page."""

import functools
import json
import tempfile
from pathlib import Path

import numpy as np

from model.config import ModelConfig
from model.config_checks import ConfigError
from model.weights import WeightsError
from model.weights.huggingface_config import read_config
from profiles.report.pages import Part
from tests.family_cases import FOLDER
from tests.quirk_references import PATH, PROMPT
from tests.quirks import QUIRKS, Quirk, planted

PART = Part("model/weights/README.md", "quirks", "tests.quirk_table")


@functools.cache
def answers() -> dict[str, np.ndarray]:
    """Logits [V] of transformers by the rows' keys, without those that it refuses."""
    with np.load(PATH) as stored:
        return dict(stored)


@functools.cache
def without(case: str) -> np.ndarray:
    """Logits [V] that transformers gives where nothing is planted."""
    return np.load(FOLDER / case / "reference.npz")[f"logits_{PROMPT}"][-1]


def of_transformers(quirk: Quirk) -> str:
    """What transformers makes of it, in the words of `Quirk.expected`."""
    found, plain = answers().get(quirk.key), without(quirk.case)
    if found is None:
        return "refused"
    near = np.abs(found - plain).max() <= 1e-4 * np.abs(plain).max()
    return "as without" if near else "its own"


def read(quirk: Quirk) -> ModelConfig:
    """The configuration that is read here.

    Raises:
      WeightsError, ConfigError: it is refused.
    """
    with tempfile.TemporaryDirectory() as folder:
        values = json.loads((FOLDER / quirk.case / "config.json").read_text())
        file = Path(folder, quirk.case, "config.json")
        file.parent.mkdir()
        file.write_text(json.dumps(planted(values, quirk)))
        return read_config(file.parent)[0]


def here(quirk: Quirk) -> tuple[str, str]:
    """What is made of it here, in the words of `Quirk.expected`, and the message of a refusal."""
    try:
        config = read(quirk)
    except (WeightsError, ConfigError) as error:
        return "refused", str(error)
    plain, _ = read_config(FOLDER / quirk.case)
    return "as without" if config == plain else "its own", ""


def table() -> str:
    """The rows in Markdown."""
    lines = ["| a folder of | where `config.json` has | transformers | here |", "|---|---|---|---|"]
    for quirk in QUIRKS:
        row = [quirk.case, quirk.says, of_transformers(quirk), here(quirk)[0]]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PART.write(table())
