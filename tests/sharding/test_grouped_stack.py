"""The TPU kernels for one of a stack of matrices in groups: numbers as a TPU computes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharding.dot import dot_of_one
from sharding.float4 import decode, decode_scales
from sharding.grouped_stack import fits, multiply_few_of_one, multiply_one
from sharding.mesh import make_mesh, parse_mesh
from sharding.quantization import QUANTIZATIONS, QuantizedArray, quantize
from tests.sharding.pretended import like, mesh_of


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


def quantized_stack(name: str, shape: tuple[int, ...]) -> QuantizedArray:
    matrices = np.random.default_rng(0).normal(size=shape).astype(np.float32) + 1
    with jax.set_mesh(make_mesh(parse_mesh("1"))):
        array = jax.device_put(matrices, jax.P(*(None,) * len(shape)))
        outputs = len(shape) - 1
        found, _ = jax.jit(quantize, static_argnums=(1, 2))(array, outputs, QUANTIZATIONS[name])
        return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("fp8_grouped", 256),
        # An offset, and scales of a row that fill registers.
        pytest.param("int4", 4096, marks=pytest.mark.slow),
    ],
)
def test_few_tokens_meet_a_matrix_of_any_groups(name, inputs):
    stack = quantized_stack(name, (3, 2, 128, inputs))
    x = np.random.default_rng(1).integers(-8, 8, (3, inputs)).astype(np.float32)
    arrays = (stack.values, stack.scales, stack.offsets, jnp.asarray(x))
    found = multiply_few_of_one(jnp.int32(2), *arrays, jnp.float32, interpret=True)
    expected = np.einsum("mk,pnk->mpn", x, np.asarray(stack.dense())[2])
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_step_for_tpu_cuts_no_matrix_out_of_its_stack_for_few_tokens():
    stack = quantized_stack("fp8_grouped", (3, 2, 128, 256))

    def lowered(tokens: int) -> str:
        x = jax.ShapeDtypeStruct((tokens, 256), jnp.bfloat16)
        with mesh_of("tpu"):
            step = jax.jit(lambda *given: dot_of_one(*given, jnp.float32))
            traced = step.trace(like(stack), jax.ShapeDtypeStruct((), jnp.int32), x)
            return traced.lower(lowering_platforms=("tpu",)).as_text()

    few, many = lowered(2), lowered(512)
    assert "multiply_few_of_stack" in few and "dynamic_slice" not in few
    assert "multiply_groups_many" in many
