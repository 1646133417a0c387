"""The TPU kernel for matrices in groups: its numbers as a TPU computes them, and where it runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharding.grouped import multiply_groups, tile_of
from sharding.mesh import make_mesh
from sharding.scaled import SCHEMES, Scaled, dot, quantize

GROUPED = [name for name, scheme in SCHEMES.items() if scheme.group]


def operands(scheme: str, rows: int, inputs: int, tokens: int) -> tuple[Scaled, np.ndarray]:
    """A random matrix in a scheme, and tokens that bfloat16 holds exactly."""
    random = np.random.default_rng(0)
    matrix = random.normal(size=(rows, inputs)).astype(np.float32) + 1
    with jax.set_mesh(make_mesh({"x": 1, "y": 1, "z": 1})):
        scaled, _ = jax.jit(quantize, static_argnums=(1, 2))(
            jax.device_put(matrix, jax.P(None, None)), 1, SCHEMES[scheme]
        )
    x = random.integers(-8, 8, (tokens, inputs)).astype(np.float32)
    return jax.tree.map(np.asarray, scaled), x


@pytest.mark.parametrize(
    ("scheme", "dtype", "tokens", "inputs"),
    [
        *((scheme, jnp.float32, 3, 384) for scheme in GROUPED),
        ("int4", jnp.bfloat16, 1, 4096),  # scales of a row fill registers
    ],
)
def test_the_kernel_gives_the_product_of_the_dense_matrix(scheme, dtype, tokens, inputs):
    scaled, x = operands(scheme, 128, inputs, tokens)
    found = multiply_groups(
        *map(jnp.asarray, (scaled.values, scaled.scales)),
        None if scaled.offsets is None else jnp.asarray(scaled.offsets),
        jnp.asarray(x, dtype),
        jnp.float32,
        interpret=True,
    )
    expected = np.asarray(scaled.dense()) @ x.T
    assert found.shape == (128, tokens)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("scheme", GROUPED)
def test_a_step_for_tpu_widens_no_matrix_of_groups(scheme):
    scaled, _ = operands(scheme, 512, 256, 2)

    def lowered(tokens: int) -> str:
        shaped = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), scaled)
        x = jax.ShapeDtypeStruct((tokens, 1, 256), jnp.bfloat16)
        with jax.set_mesh(make_mesh({"x": 1, "y": 1, "z": 1})):
            step = jax.jit(lambda weight, x: dot(weight, x, jnp.float32))
            return step.trace(shaped, x).lower(lowering_platforms=("tpu",)).as_text()

    few, many = lowered(2), lowered(2048)
    assert "multiply_groups" in few and "tensor<512x256xf32>" not in few
    assert "multiply_groups" not in many and "tensor<512x256xf32>" in many


@pytest.mark.parametrize(
    ("rows", "inputs", "groups", "tokens", "tile"),
    [
        (1792, 8192, 256, 32, 256),
        (8192, 1792, 56, 1, 512),
        (1024, 14336, 448, 8, 128),
        (1000, 1024, 32, 1, None),  # rows that no tile divides
        (1024, 192, 6, 1, None),  # part of a register's lanes
        (1024, 1024, 1, 1, None),  # a scale for each row: XLA's own product does
        (1024, 8192, 256, 512, None),  # a prompt
    ],
)
def test_a_tile_divides_the_rows_and_fits_or_there_is_none(rows, inputs, groups, tokens, tile):
    assert tile_of(rows, inputs, groups, tokens) == tile
