"""The TPU kernel for matrices in groups: its numbers as a TPU computes them, and where it runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharding.dot import dot
from sharding.grouped import dense_tile_of, multiply_few, multiply_many, tile_of
from sharding.mesh import make_mesh
from sharding.quantization import QUANTIZATIONS, QuantizedArray, quantize
from tests.sharding.pretended import like, mesh_of

GROUPED = [name for name, quantization in QUANTIZATIONS.items() if quantization.group]
DEFAULT = "mxfp4"  # without offsets, its codes floats; int4, with offsets, has cases of its own


def each(*sizes: object) -> list:
    """A case for each quantization in groups; the slow set has most."""
    slow = pytest.mark.slow
    return [pytest.param(n, *sizes, marks=() if n == DEFAULT else slow) for n in GROUPED]


def operands(
    quantization: str, rows: int, inputs: int, tokens: int
) -> tuple[QuantizedArray, np.ndarray]:
    """A random matrix in a quantization, and tokens that bfloat16 holds exactly."""
    random = np.random.default_rng(0)
    matrix = random.normal(size=(rows, inputs)).astype(np.float32) + 1
    with jax.set_mesh(make_mesh({"x": 1, "y": 1, "z": 1})):
        scaled, _ = jax.jit(quantize, static_argnums=(1, 2))(
            jax.device_put(matrix, jax.P(None, None)), 1, QUANTIZATIONS[quantization]
        )
    x = random.integers(-8, 8, (tokens, inputs)).astype(np.float32)
    return jax.tree.map(np.asarray, scaled), x


@pytest.mark.parametrize(
    ("quantization", "dtype", "tokens", "inputs"),
    [
        *each(jnp.float32, 3, 384),
        ("int4", jnp.bfloat16, 1, 4096),  # scales of a row fill registers
    ],
)
def test_the_kernel_for_few_tokens_gives_the_product_of_the_dense_matrix(
    quantization, dtype, tokens, inputs
):
    scaled, x = operands(quantization, 128, inputs, tokens)
    one = jax.tree.map(lambda array: jnp.asarray(array)[None, None], scaled)
    arrays = (one.values, one.scales, one.offsets, jnp.asarray(x, dtype)[:, None])
    found = multiply_few(*arrays, jnp.float32, interpret=True)
    expected = x @ np.asarray(scaled.dense()).T
    assert found.shape == (tokens, 1, 128)
    assert np.abs(found[:, 0] - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("quantization", "outer", "inner", "rows", "inputs", "tokens"),
    [
        *each(1, 1, 128, 512, 40),
        ("int4", 2, 3, 128, 512, 600),  # tokens that fill no second tile; tiles of inputs
        pytest.param("int4_symmetric", 1, 2, 256, 768, 130, marks=pytest.mark.slow),
        # Twelve groups, which fill no whole registers.
        pytest.param("fp8_grouped", 1, 1, 128, 1536, 40, marks=pytest.mark.slow),
    ],
)
def test_the_kernel_for_many_tokens_gives_the_product_of_shards(
    quantization, outer, inner, rows, inputs, tokens
):
    scaled, x = operands(quantization, outer * rows, inner * inputs, tokens)

    def shards(array):  # -> [outer, inner, rows, inputs or groups]
        return jnp.asarray(array).reshape(outer, rows, inner, -1).swapaxes(1, 2)

    arrays = jax.tree.map(shards, scaled)
    x_parts = jnp.asarray(x).reshape(tokens, inner, inputs)
    found = multiply_many(
        arrays.values, arrays.scales, arrays.offsets, x_parts, jnp.float32, interpret=True
    )
    expected = x @ np.asarray(scaled.dense()).T
    found = np.asarray(found).reshape(tokens, outer * rows)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("quantization", GROUPED)
def test_a_step_for_tpu_widens_no_matrix_of_groups(quantization):
    scaled, _ = operands(quantization, 512, 256, 2)

    def lowered(tokens: int) -> str:
        x = jax.ShapeDtypeStruct((tokens, 1, 256), jnp.bfloat16)
        with mesh_of("tpu"):
            step = jax.jit(lambda weight, x: dot(weight, x, jnp.float32))
            return step.trace(like(scaled), x).lower(lowering_platforms=("tpu",)).as_text()

    few, many = lowered(2), lowered(2048)
    assert "multiply_groups_few" in few and "multiply_groups_many" in many
    assert "tensor<512x256xf32>" not in few + many


@pytest.mark.parametrize(
    ("rows", "inputs", "groups", "tokens", "tile"),
    [
        (1792, 8192, 256, 32, 256),
        (8192, 1792, 56, 1, 512),
        (1024, 14336, 448, 8, 128),
        (576, 7168, 56, 8, 128),  # rows that no tile divides: the last one has some
        (100, 1024, 32, 1, None),  # rows of no tile
        (1024, 192, 6, 1, None),  # part of a register's lanes
        (1024, 1024, 1, 1, None),  # a scale for each row: XLA's own product does
        (1024, 8192, 256, 512, None),  # a prompt
    ],
)
def test_a_tile_fits_or_there_is_none(rows, inputs, groups, tokens, tile):
    assert tile_of(rows, inputs, groups, tokens) == tile


@pytest.mark.parametrize(
    ("rows", "inputs", "groups", "tile"),
    [
        (1024, 14336, 448, (1024, 512)),
        (1024, 1792, 56, (256, 1792)),  # seven times 256
        (1024, 11008, 86, (1024, 256)),  # groups of 128, two at a time
        (1000, 1024, 32, None),  # rows that no tile divides
        (1024, 192, 6, None),  # part of a register's lanes
        (1024, 1024, 1, None),  # a scale for each row
    ],
)
def test_a_dense_tile_divides_both_dimensions_or_there_is_none(rows, inputs, groups, tile):
    assert dense_tile_of(rows, inputs, groups) == tile
