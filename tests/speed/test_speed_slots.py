"""A decode step is as long as what its cache holds, whatever room there is."""

import time

import jax
import numpy as np
import pytest

from decode.sampling import GREEDY

CONTEXT, STEPS = 128, 40


@pytest.mark.speed
def test_slots_that_hold_nothing_take_no_time(smollm2_engine):
    """4,096 slots against 192, eight sequences, steps by turns in one process."""
    engine = smollm2_engine("1x1x1")
    lengths = np.full(8, CONTEXT, np.int32)
    states = {slots: (engine.new_cache(8, slots), engine.start(lengths)) for slots in (192, 4096)}
    seconds = {slots: [] for slots in states}
    for _ in range(STEPS):
        for slots, (cache, carry) in states.items():
            start = time.perf_counter()
            *state, _ = jax.block_until_ready(engine.advance(cache, carry, GREEDY))
            seconds[slots].append(time.perf_counter() - start)
            states[slots] = state
    few, many = (np.median(seconds[slots][5:]) for slots in (192, 4096))
    print(f"192 slots: {few * 1e3:.1f} ms; 4,096: {many * 1e3:.1f} ms; ratio {many / few:.3f}")
    assert many <= 1.10 * few
