"""The TPU kernel for one of a stack of matrices in MXFP4: its numbers, as a TPU computes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharding.dot import dot_of_one
from sharding.float4 import decode, decode_scales
from sharding.grouped_stack import fits, multiply_one
from sharding.quantization import QuantizedArray


def stack_of(experts: int, rows: int, inputs: int) -> tuple[jax.Array, jax.Array]:
    random = np.random.default_rng(0)
    values = random.integers(0, 16, (experts, rows, inputs))
    scales = random.integers(120, 131, (experts, rows, inputs // 32))
    return jnp.asarray(values).astype(jnp.uint4), jnp.asarray(scales, jnp.uint8)


def test_it_multiplies_by_the_matrix_that_is_named():
    # Rows that fill no second tile, tokens likewise, and inputs that fill no registers.
    values, scales = stack_of(2, 640, 96)
    x = np.random.default_rng(1).integers(-8, 8, (260, 96)).astype(np.float32)
    dense = decode(values[1]) * jnp.repeat(decode_scales(scales[1]), 32, axis=-1)
    number = jnp.int32(1)
    found = multiply_one(number, values, scales, jnp.asarray(x), jnp.float32, interpret=True)
    np.testing.assert_allclose(found, x @ np.asarray(dense).T, rtol=1e-6, atol=1e-4)
    weight = QuantizedArray(*(a.reshape(2, 4, 160, -1) for a in (values, scales)), group=32)
    plain = dot_of_one(weight, number, jnp.asarray(x[:3]), jnp.float32)
    np.testing.assert_allclose(plain.reshape(3, -1), found[:3], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "inputs", "taken"),
    [(5760, 2880, True), (2880, 2880, True), (64, 2880, False), (256, 48, False), (256, 32, False)],
)
def test_matrices_of_whole_groups_are_taken(rows, inputs, taken):
    assert fits(rows, inputs) is taken
