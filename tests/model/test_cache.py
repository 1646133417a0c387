"""Cache writes: each token to its slot, in place, dropped past the end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.cache import write
from model.catalog import find_model
from sharding.layout import LAYOUTS
from sharding.mesh import make_mesh, parse_mesh

K, S, h = 2, 8, 4


@pytest.fixture(params=["1x1x1", "1x1x2"])
def setting(request):
    shape = parse_mesh(request.param)
    return LAYOUTS["weight_stationary_1d"].check(find_model("tiny").sizes, shape), make_mesh(shape)


def run(setting, positions):
    """A cache of -1s with tokens 1, 2, ... written at `positions`; and its compiled write."""
    placement, mesh = setting
    B, T = positions.shape
    new = np.arange(1, B * T + 1, dtype=np.float32).reshape(B, T, 1, 1) * np.ones((1, 1, K, h))
    with jax.set_mesh(mesh):
        full = jnp.full((B, K, S, h), -1.0, out_sharding=placement.cache("B", "K", "S", "h"))
        new = jax.device_put(np.float32(new), placement.cache("B", "T", "K", "h"))
        where = jax.device_put(positions, jax.P(None, None))
        step = jax.jit(lambda c, n, w: write(c, n, w, placement), donate_argnums=0)
        compiled = step.lower(full, new, where).compile()
        return np.asarray(step(full, new, where)), compiled


@pytest.mark.parametrize(
    "positions", [[[5]], [[0], [7], [3]], [[1, 2, 3], [4, 5, 6]], [[6, 7, 8, 9]]]
)
def test_tokens_land_in_their_slots_and_nowhere_else(setting, positions):
    positions = np.array(positions, np.int32)
    expected = np.full((len(positions), K, S, h), -1.0)
    for b, row in enumerate(positions):
        for t, slot in enumerate(row):
            if slot < S:  # past the last slot: dropped
                expected[b, :, slot] = b * len(row) + t + 1
    np.testing.assert_array_equal(run(setting, positions)[0], expected)


@pytest.mark.parametrize("positions", [[[5]], [[0], [7]]])
def test_a_write_moves_no_whole_cache(setting, positions):
    _, compiled = run(setting, np.array(positions, np.int32))
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == memory.output_size_in_bytes > 0
    shape = f"f32[{len(positions)},{K // setting[1].size},{S},{h}]"
    copies = [line for line in compiled.as_text().splitlines() if f"{shape}{{" in line]
    assert not [line for line in copies if " copy(" in line or " select(" in line]
