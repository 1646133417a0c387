"""The GPU kernel for weights in few bits, interpreted: its product, and which programs have it.

Interpreted, numbers are made of values without the kernel's PTX. In float32 it differs from the
dense product by sums; in bfloat16 by the rounding of weights, scales and offsets, 2**-9 each.
"""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharding.dot import dot, dot_of_one, dot_of_shards
from sharding.grouped_gpu import (
    MOST_OF_OUTPUTS,
    MOST_TOKENS,
    choose_tiles,
    kernel_for,
    multiply_packed,
)
from sharding.mesh import make_mesh, parse_mesh
from sharding.products import ProductSpecs, multiply, transfers
from sharding.quantization import QUANTIZATIONS, QuantizedArray
from sharding.stored_types import KERNEL_TYPES
from tests.sharding.pretended import like, mesh_of

LIMITS = {"float32": 1e-6, "bfloat16": 3 * 2**-9}


def matrix(name: str, shape: tuple[int, ...], group: int | None = None) -> QuantizedArray:
    """Random integers and numbers beside them, [P, Q, N, K]; such as `quantize` makes them."""
    random, kind = np.random.default_rng(0), QUANTIZATIONS[name]
    group = group or kind.group
    low = 0 if kind.offset else -kind.largest
    values = random.integers(int(low), int(kind.largest), shape, endpoint=True)
    of_groups = (*shape[:-1], shape[-1] // group if group else 1)
    scales = random.uniform(0.5, 1, of_groups).astype(np.float32)
    offsets = -scales * random.uniform(6, 9, of_groups).astype(np.float32) if kind.offset else None
    values = jnp.asarray(values, jnp.int32).astype(kind.dtype)
    return QuantizedArray(values, scales, offsets, group, gpu_kernel=True)


def tokens_of(count: int, *shape: int, dtype: str = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(count, *shape)), dtype)


def error(found: jax.Array, weight: QuantizedArray, x: jax.Array) -> float:
    """The largest, of the root of the mean square of what should be there."""
    dense = np.asarray(weight.dense(), np.float64)
    wanted = np.einsum("mqk,pqnk->mpn", np.asarray(x, np.float64), dense)
    assert found.shape == wanted.shape
    return np.linalg.norm(np.asarray(found, np.float64) - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "group", "tokens"),
    [
        ("int4", "bfloat16", (1, 1, 40, 256), None, 1),
        ("int4_symmetric", "float32", (2, 3, 40, 288), None, 20),  # shards; parts of tiles
        ("int8_grouped", "bfloat16", (1, 2, 33, 96), None, 3),
        ("int8", "float32", (2, 2, 48, 80), None, 9),
        pytest.param("fp8_grouped", "bfloat16", (1, 2, 33, 384), None, 3, marks=pytest.mark.slow),
        pytest.param("fp8_grouped", "float32", (2, 1, 40, 192), 64, 20, marks=pytest.mark.slow),
        pytest.param("int4", "float32", (1, 1, 64, 1024), None, 70, marks=pytest.mark.slow),
        pytest.param("int4", "bfloat16", (1, 1, 64, 512), 128, 8, marks=pytest.mark.slow),
        pytest.param("int8_grouped", "float32", (1, 1, 40, 256), 128, 8, marks=pytest.mark.slow),
        pytest.param("int8", "bfloat16", (1, 1, 48, 512), None, 64, marks=pytest.mark.slow),
    ],
)
def test_the_kernel_gives_the_product_of_the_dense_matrix(name, dtype, shape, group, tokens):
    weight, x = matrix(name, shape, group), tokens_of(tokens, *shape[1::2], dtype=dtype)
    arrays = (weight.values, weight.scales, weight.offsets, x)
    found = jax.jit(functools.partial(multiply_packed, dtype=jnp.float32, interpret=True))(*arrays)
    if weight.group is None:  # `dense` has scales of groups
        weight = QuantizedArray(*arrays[:3], shape[-1])
    assert error(found, weight, x) < LIMITS[dtype]


def test_one_matrix_of_a_stack_is_multiplied_alone():
    weight, x = matrix("fp8_grouped", (3, 1, 40, 256)), tokens_of(5, 1, 256)
    arrays = (weight.values, weight.scales, None, x, jnp.float32)
    found = multiply_packed(*arrays, interpret=True, number=jnp.int32(2))
    assert error(found, jax.tree.map(lambda leaf: leaf[2:], weight), x) < LIMITS["float32"]


def test_a_gpus_program_has_the_kernel_for_one_of_a_stack_and_cuts_nothing_out():
    stack = jax.tree.map(lambda leaf: leaf[:, 0], matrix("fp8_grouped", (3, 1, 40, 256)))
    x = tokens_of(5, 256, dtype="bfloat16")
    text = lowered(lambda *given: dot_of_one(*given, jnp.float32), stack, jnp.int32(1), x)
    assert text.count("xla.gpu.triton") == 1
    assert "dynamic_slice" not in text and "stablehlo.dot_general" not in text


def lowered(step, *arguments) -> str:
    with mesh_of("gpu", "NVIDIA H200"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of JAX's Triton kernels as a whole
        traced = jax.jit(step).trace(*like(arguments))
        return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("name", KERNEL_TYPES)
def test_a_gpus_program_has_the_kernel_where_tokens_are_few(name):
    weight = jax.tree.map(lambda leaf: leaf[0, 0], matrix(name, (1, 1, 64, 256)))
    most = MOST_TOKENS if weight.group else MOST_OF_OUTPUTS

    def text(tokens: int, kernel: bool = True) -> str:
        given = dataclasses.replace(weight, gpu_kernel=kernel)
        x = tokens_of(tokens, 1, 256, dtype="bfloat16")
        return lowered(lambda weight, x: dot(weight, x, jnp.bfloat16), given, x)

    for tokens, kernel in ((16, True), (most, True), (most + 1, True), (16, False)):
        made = text(tokens, kernel)
        wanted = kernel and tokens <= most
        assert made.count("xla.gpu.triton") == wanted
        assert made.count("stablehlo.dot_general") == (not wanted)
        if wanted:
            assert "tensor<64x256xbf16>" not in made and "tensor<64x256xf32>" not in made


def test_shards_of_a_gathered_matrix_go_to_the_kernel_too():
    weight = matrix("int4", (2, 2, 64, 256))
    text = lowered(
        lambda weight, x: dot_of_shards(weight, x, jnp.bfloat16),
        weight,
        tokens_of(4, 1, 2, 256, dtype="bfloat16"),
    )
    assert text.count("xla.gpu.triton") == 1 and "stablehlo.dot_general" not in text


@pytest.mark.parametrize(("name", "kernels"), [("int4", 0), ("int4_symmetric", 1)])
def test_rows_of_one_group_go_to_the_kernel_where_they_have_no_offset(name, kernels):
    """It takes one group for all of an output, of which there are no offsets."""
    weight, x = matrix(name, (1, 2, 64, 32)), tokens_of(16, 1, 2, 32, dtype="bfloat16")
    text = lowered(lambda weight, x: dot_of_shards(weight, x, jnp.bfloat16), weight, x)
    assert text.count("xla.gpu.triton") == kernels
    stack, x = jax.tree.map(lambda leaf: leaf[0], weight), tokens_of(16, 32, dtype="bfloat16")
    text = lowered(lambda *given: dot_of_one(*given, jnp.bfloat16), stack, jnp.int32(1), x)
    assert text.count("xla.gpu.triton") == kernels


@pytest.mark.parametrize(
    ("inputs", "groups", "tokens", "fits"),
    [
        (4096, 128, 1, True),
        (4096, 32, 64, True),  # groups of 128
        (1792, 56, 256, True),
        (4096, 16, 8, False),  # longer than a tile
        (4096, 128, 257, False),
        (4096, 1, 8, False),  # a scale for each output: as fast as it is read
        (4096, 1, 64, True),
        (4096, 1, 65, False),
        (96, 4, 8, False),  # groups of 24
    ],
)
def test_the_kernel_takes_whole_groups_and_few_tokens(inputs, groups, tokens, fits):
    assert (kernel_for(1, 1, 64, inputs, groups, tokens) is not None) == fits


@pytest.mark.parametrize("tokens", [1, 16, 64, 256])
@pytest.mark.parametrize("rows", [768, 4096, 28672])
def test_programs_keep_a_gpu_busy_and_each_has_inputs(rows, tokens):
    tiles = choose_tiles(1, rows, 4096, tokens, per_word=4)
    programs = -(-rows // tiles.rows) * -(-tokens // tiles.tokens) * tiles.splits
    steps = 4096 // 4 // tiles.words
    assert programs >= 132 and tiles.splits <= steps // 2


SPECS = {  # stored, use, x given, contracted and result, of [R, F] and [B, T, F]
    "gathered and scattered": ((("z", "y"), "x"),) * 2
    + ((("x", "z", "y"),), ("x",), (("z", "y", "x"),)),
    "fetched": ((("z", "y"), "x"), (("z",), None), (None,), (None,), ("z",)),
}


@pytest.mark.parametrize(
    ("name", "case"),
    [("int4", "gathered and scattered"), ("int8", "fetched"),
     pytest.param("int8", "gathered and scattered", marks=pytest.mark.slow),
     pytest.param("int4", "fetched", marks=pytest.mark.slow)],
)  # fmt: skip
def test_products_of_eight_devices_are_the_same_by_the_kernel(monkeypatch, name, case):
    stored, use, *of_tokens = (jax.P(*spec) for spec in SPECS[case])
    specs = ProductSpecs(stored, use, *(jax.P(None, None, *spec) for spec in of_tokens))
    flat = jax.tree.map(lambda leaf: leaf[0, 0], matrix(name, (1, 1, 64, 512)))
    x = tokens_of(10, 1, 512)
    devices, launched = make_mesh(parse_mesh("2x2x2")), []
    monkeypatch.setattr(
        "sharding.dot.by_platform",
        lambda *operands, cuda, **_: launched.append(1) or cuda(*operands),
    )
    interpreted = functools.partial(multiply_packed, interpret=True)
    monkeypatch.setattr("sharding.grouped_gpu.multiply_packed", interpreted)
    of_numbers = stored if flat.group else jax.P(stored[0], None)
    with jax.set_mesh(devices):
        put = [
            None if leaf is None else jax.device_put(jnp.asarray(leaf), spec)
            for leaf, spec in (
                (flat.values, stored),
                (flat.scales, of_numbers),
                (flat.offsets, of_numbers),
            )
        ]
        weight = QuantizedArray(*put, flat.group, gpu_kernel=True)
        plan = transfers(flat.shape, specs, dict(devices.shape))
        step = jax.jit(lambda *put: multiply(*put, plan, specs.contracted, looped=False))
        found, _ = step(weight, jax.device_put(x, specs.incoming))
    flat = flat if flat.group else dataclasses.replace(flat, group=512)
    assert launched
    assert error(found, jax.tree.map(lambda leaf: leaf[None, None], flat), x) < LIMITS["float32"]
