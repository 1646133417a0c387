"""The speed bars of prompts on this machine's cores; `-m speed -n 0`, on quiet ones."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from profiles.peers.comparison import measure
from profiles.peers.messages import Job

ROUNDS, REPEATS = 3, 3

pytestmark = pytest.mark.speed


def seconds(engine: str, gguf: Path, vocabulary: int, length: int) -> float:
    """The median time of one prompt to its first token, in a process of its own."""
    job = Job(engine, str(gguf), "gguf", dtype="float32", threads=2)
    row = measure(job, context=length, new_tokens=2, repeats=REPEATS, vocabulary=vocabulary)
    return row["first_token_s"]["median"]


@pytest.mark.parity
@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs extra `parity`")
@pytest.mark.parametrize("length", [512, 2048, 4096])
def test_a_prompt_takes_no_longer_than_in_transformers(smollm2, length):
    known, ratios = (smollm2.file.path, smollm2.config.vocabulary), []
    for _ in range(ROUNDS):  # alternating, so that a slow minute falls on both
        own = seconds("floorline", *known, length)
        ratios.append(own / seconds("transformers", *known, length))
    assert np.median(ratios) <= 1.0, ratios
