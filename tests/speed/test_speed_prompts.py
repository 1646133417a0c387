"""The speed bars of prompts on this machine's cores; `-m speed -n 0`, on quiet ones."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from profiles.measured import peer_transformers

ROOT = Path(__file__).parents[2]
ROUNDS, REPEATS = 3, 3
_PROMPT = f"""
import json, sys, time
sys.path.insert(0, {str(ROOT)!r})
import jax
import numpy as np
from decode.load import find_source
from model.dtypes import FLOAT32
from sharding.catalog import LAYOUTS
from sharding.mesh import parse_mesh

path, length, repeats = sys.argv[1], *map(int, sys.argv[2:])
layout = LAYOUTS["weight_stationary_1d"]
engine = find_source(path).engine(layout, parse_mesh("1"), FLOAT32)
tokens = np.random.default_rng(0).integers(0, engine.config.vocabulary, (1, length), np.int32)
samples = []
for _ in range(repeats + 1):
    cache = jax.block_until_ready(engine.new_cache(1, length))
    start = time.perf_counter()
    jax.block_until_ready(engine.prefill(cache, tokens, np.full(1, length, np.int32)))
    samples.append(time.perf_counter() - start)
print(json.dumps(samples[1:]))  # the first compiles
"""

pytestmark = pytest.mark.speed


def seconds(gguf: Path, length: int) -> float:
    """The median time of one prompt's prefill, in a process of its own."""
    command = [sys.executable, "-c", _PROMPT, str(gguf), str(length), str(REPEATS)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(np.median(json.loads(done.stdout.splitlines()[-1])))


@pytest.mark.parity
@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs extra `parity`")
@pytest.mark.parametrize("length", [512, 2048, 4096])
def test_a_prompt_takes_no_longer_than_in_transformers(smollm2, length):
    ratios = []
    for _ in range(ROUNDS):  # alternating, so that a slow minute falls on both
        own = seconds(smollm2.file.path, length)
        peer = peer_transformers.measure(
            smollm2.file.path, context=length, batch=1, new_tokens=0, repeats=REPEATS
        )
        ratios.append(own / peer["prompt"]["median_s"])
    assert np.median(ratios) <= 1.0, ratios
