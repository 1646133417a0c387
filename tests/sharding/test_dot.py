"""What a GPU computes for few tokens, run here: the same product as that of the dense matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharding.dot import _EIGHT, _FEW_OF_GROUPS, _few_on_gpu
from sharding.mesh import make_mesh, parse_mesh
from sharding.scaled import SCHEMES, quantize

CASES = [
    (name, tokens)
    for name, scheme in SCHEMES.items()
    for tokens in range(1, (_FEW_OF_GROUPS if scheme.group else _EIGHT) + 1)
]


@pytest.mark.parametrize(("name", "tokens"), CASES)
def test_few_tokens_on_a_gpu(name, tokens):
    with jax.set_mesh(make_mesh(parse_mesh("1"))):
        matrix = _normal((48, 64), seed=1)
        weight, finite = quantize(matrix, 1, SCHEMES[name])
        x = _normal((tokens, 64), seed=2)
        product = jax.jit(_few_on_gpu, static_argnums=2)(weight, x, jnp.float32)
    assert finite and product.shape == (48, tokens)
    wanted = np.asarray(weight.dense(), np.float64) @ np.asarray(x, np.float64).T
    np.testing.assert_allclose(product, wanted, atol=1e-4)


def _normal(shape: tuple[int, ...], seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, out_sharding=jax.P(None, None))
