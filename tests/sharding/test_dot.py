"""Products of weights in few bits: of few tokens on a GPU, of blocks on a CPU, of one group."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharding.dot import (
    _EIGHT,
    _FEW_OF_GROUPS,
    _by_blocks,
    _few_on_gpu,
    contract,
    dot,
    dot_of_one,
    dot_of_shards,
)
from sharding.mesh import make_mesh, parse_mesh
from sharding.platform_workarounds import MANY_TOKENS
from sharding.quantization import QUANTIZATIONS, QuantizedArray, quantize
from tests.sharding.pretended import like, mesh_of

GROUPED = [name for name, quantization in QUANTIZATIONS.items() if quantization.group]
MOST = {name: _FEW_OF_GROUPS if name in GROUPED else _EIGHT for name in QUANTIZATIONS}
CASES = [
    pytest.param(
        name,
        tokens,
        marks=() if tokens in (1, most) and name != "fp8_grouped" else pytest.mark.slow,
    )
    for name, most in MOST.items()
    for tokens in range(1, most + 1)
]


@pytest.fixture(autouse=True)
def one_device():
    with jax.set_mesh(make_mesh(parse_mesh("1"))):
        yield


@pytest.mark.parametrize(("name", "tokens"), CASES)
def test_few_tokens_on_a_gpu(name, tokens):
    weight, x = matrix(name, (48, 64)), normal((tokens, 64), seed=2)
    product = jax.jit(_few_on_gpu, static_argnums=2)(weight, x, jnp.float32)
    assert product.shape == (48, tokens)
    wanted = np.asarray(weight.dense(), np.float64) @ np.asarray(x, np.float64).T
    np.testing.assert_allclose(product, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "tokens", "widened", "products"),
    [("int8", 1, 8, 1), ("int8", 9, 9, 1), ("int4", 1, None, 0), ("int4", 3, 3, 1)],
)
def test_a_gpus_program_has_them_where_tokens_are_few(name, tokens, widened, products):
    given = matrix(name, (48, 64)), normal((tokens, 1, 64), seed=2)
    step = jax.jit(lambda weight, x: dot(weight, x, jnp.float32))
    with mesh_of("gpu", "NVIDIA H200"):
        text = step.trace(*like(given)).lower(lowering_platforms=("cuda",)).as_text()
    made = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(made) == products
    assert all(f"tensor<{widened}x" in line for line in made)


@pytest.mark.parametrize(("tokens", "blocks"), [(MANY_TOKENS - 1, 8), (MANY_TOKENS, 2)])
def test_more_tokens_take_longer_blocks_of_a_weight_on_a_cpu(tokens, blocks):
    weight, x = matrix("int8", (2048, 256)), normal((tokens, 256), seed=2)
    product = jax.jit(_by_blocks, static_argnums=2)
    assert f"{2048 // blocks},256]" in str(product.trace(weight, x, jnp.float32).jaxpr)
    wanted = np.asarray(weight.dense(), np.float64) @ np.asarray(x, np.float64).T
    np.testing.assert_allclose(product(weight, x, jnp.float32), wanted, atol=1e-3)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n == "fp8_grouped" else ()) for n in GROUPED],
)
def test_a_group_to_a_shards_row_is_no_scale_for_the_whole_output(name):
    weight, x = matrix(name, (8, 2, 3, 32)), normal((5, 1, 2, 3, 32), seed=2)
    wanted = np.einsum("dkgh,btkgh->dbt", np.asarray(weight.dense()), np.asarray(x))
    product = contract(weight, x, ((1, 2, 3), (2, 3, 4)), jnp.float32)
    np.testing.assert_allclose(product, wanted, atol=1e-4)
    stacked = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1)[None], matrix(name, (8, 2, 32)))
    x = normal((5, 1, 2, 32), seed=2)  # two chips of inputs, a group on each
    wanted = np.einsum("qdh,btqh->btd", np.asarray(stacked.dense())[0], np.asarray(x))
    product = dot_of_shards(stacked, x, jnp.float32)
    np.testing.assert_allclose(product[:, :, 0], wanted, atol=1e-4)


def test_a_cpu_makes_no_floats_of_a_whole_stack_to_cut_a_matrix_out_of_it():
    def step(stack: QuantizedArray, x: jax.Array, count: jax.Array) -> jax.Array:
        """As a loop over the experts of a mixture."""
        add = lambda n, total: total + dot_of_one(stack, n, x, jnp.float32)  # noqa: E731
        return jax.lax.fori_loop(0, count, add, jnp.zeros((3, 64)))

    stack = QuantizedArray(
        jax.ShapeDtypeStruct((8, 64, 128), jnp.float8_e4m3fn),
        jax.ShapeDtypeStruct((8, 64, 2), jnp.float32),
        group=64,
    )
    x, count = jax.ShapeDtypeStruct((3, 128), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    text = jax.jit(step).lower(stack, x, count).compile().as_text()
    assert "f8e4m3fn[8,64,128]" in text and "u8[1,64,128]" in text
    assert "f16[8,64,128]" not in text and "u8[8,64,128]" not in _outside_fusions(text)


def _outside_fusions(text: str) -> str:
    """A program without the bodies of its fusions, whose values are in no memory."""
    parts = text.split("\n\n")
    return "\n\n".join(part for part in parts if not part.lstrip().startswith("%fused"))


def matrix(name: str, shape: tuple[int, ...]) -> QuantizedArray:
    """Of one output dimension."""
    whole = jax.jit(quantize, static_argnums=(1, 2))  # operation by operation takes far longer
    weight, finite = whole(normal(shape, seed=1), 1, QUANTIZATIONS[name])
    assert finite
    return weight


def normal(shape: tuple[int, ...], seed: int) -> jax.Array:
    spec = jax.P(*(None,) * len(shape))
    return jax.random.normal(jax.random.key(seed), shape, out_sharding=spec)
