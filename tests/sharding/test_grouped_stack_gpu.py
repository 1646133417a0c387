"""The GPU kernel for stacks in MXFP4, interpreted, its PTX, and which programs have it."""

import functools
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from model.mixture import Experts, grouped, touched_only
from sharding.dot import dot_of_groups, has_groups
from sharding.float4 import NUMBERS, decode_scales
from sharding.grouped_stack_gpu import multiply_sorted, ptx_of, values_of
from sharding.quantization import QuantizedArray
from tests.sharding.pretended import like, mesh_of
from tests.sharding.ptx_evaluator import evaluate, halves

WORDS = np.arange(2**16, dtype=np.uint32)
EXPONENTS = np.arange(100, 150)  # of scales


def stack_of(experts: int, *sizes: int, kernel: bool = True) -> QuantizedArray:
    random = np.random.default_rng(0)
    values = random.integers(0, 16, (experts, *sizes))
    scales = random.integers(120, 131, (*values.shape[:-1], sizes[-1] // 32))
    arrays = jnp.asarray(values).astype(jnp.uint4), jnp.asarray(scales, jnp.uint8)
    return QuantizedArray(*arrays, group=32, gpu_kernel=kernel)


def tokens_of(count: int, inputs: int, dtype: str) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(count, inputs)), dtype)


@pytest.mark.parametrize(
    ("dtype", "rows", "inputs", "sizes"),
    [
        ("bfloat16", 40, 288, [3, 0, 18]),  # parts of tiles; a matrix of no rows, one of two blocks
        pytest.param("float32", 70, 544, [0, 40, 70], marks=pytest.mark.slow),
    ],
)
def test_rows_are_multiplied_by_the_matrix_that_they_are_sorted_by(dtype, rows, inputs, sizes):
    stack, left_over = stack_of(len(sizes), rows, inputs), 2
    x = tokens_of(sum(sizes) + left_over, inputs, dtype)
    step = functools.partial(multiply_sorted, dtype=jnp.float32, interpret=True)
    found = step(stack.values, stack.scales, x, jnp.asarray(sizes, jnp.int32))
    dense = np.repeat(np.asarray(stack.dense(), np.float64), sizes, axis=0)
    wanted = np.einsum("mk,mnk->mn", np.asarray(x, np.float64)[:-left_over], dense)
    assert found.shape == (len(x), rows)
    np.testing.assert_allclose(found[:-left_over], wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("place", range(4))
def test_the_ptx_makes_the_numbers_that_codes_stand_for_without_rounding(place):
    scales = np.resize(2.0 ** (EXPONENTS - 127.0), 2**16).astype(ml_dtypes.bfloat16)
    low, high = (each.view(np.uint16).astype(np.uint32) for each in (scales, scales[::-1]))
    operands = {"$1": WORDS | WORDS[::-1] << np.uint32(16), "$2": low | high << np.uint32(16)}
    wanted = NUMBERS[WORDS >> 4 * place & 15] * scales.astype(np.float64)
    for half, numbers in zip(
        halves(evaluate(ptx_of(place), operands)), (wanted, wanted[::-1]), strict=True
    ):
        np.testing.assert_array_equal(half, numbers)
        np.testing.assert_array_equal(np.signbit(half), np.signbit(numbers))


def test_what_is_interpreted_makes_the_same_numbers():
    packed = jnp.asarray(WORDS.astype(np.uint16).view(np.int16)).reshape(2**4, 2**12)
    scales = jnp.asarray(np.resize(EXPONENTS, (2**4, 2**9)), jnp.uint8)
    wanted = np.repeat(np.asarray(decode_scales(scales), np.float64), 8, axis=1).ravel()
    for place, numbers in enumerate(values_of(jnp.bfloat16, True, packed, scales)):
        expected = NUMBERS[WORDS >> 4 * place & 15] * wanted
        np.testing.assert_array_equal(np.asarray(numbers, np.float64).ravel(), expected)


def test_experts_in_groups_answer_as_one_by_one(monkeypatch):
    """Biases, tokens whose experts are on other chips, and experts of no token, included."""
    experts, width, d_model, chosen = 4, 32, 64, 2
    random = np.random.default_rng(2)
    share = random.uniform(0.1, 1, (5, experts)).astype(np.float32)
    share *= [[1, 0, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]
    given = Experts(
        stack_of(experts, 2, width, d_model),
        stack_of(experts, d_model, width),
        *(
            jnp.asarray(random.normal(size=(experts, *n)), jnp.float32)
            for n in ((2, width), (d_model,))
        ),
    )
    x = tokens_of(5, d_model, "float32") / 64
    interpreted = functools.partial(multiply_sorted, interpret=True)
    monkeypatch.setattr("sharding.grouped_stack_gpu.multiply_sorted", interpreted)
    found = grouped(x, share, given, chosen, "silu")
    wanted = touched_only(x, share, given, "silu")
    assert not np.asarray(wanted[2]).any() and not np.asarray(found[2]).any()
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_a_gpus_program_has_the_kernel_and_no_matrix_in_more_bits():
    given = stack, *_ = (
        stack_of(4, 64, 256),
        tokens_of(16, 256, "bfloat16"),
        jnp.zeros(4, jnp.int32),
    )
    assert has_groups(stack)
    assert not has_groups(stack_of(4, 64, 256, kernel=False))
    with mesh_of("gpu", "NVIDIA H100"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of JAX's Triton kernels as a whole
        step = jax.jit(lambda *given: dot_of_groups(*given, jnp.bfloat16))
        traced = step.trace(*like(given))
        made = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert made.count("xla.gpu.triton") == 1 and "stablehlo.dot_general" not in made
    assert "64x256xbf16" not in made and "64x256xf32" not in made
