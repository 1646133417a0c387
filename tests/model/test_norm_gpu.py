"""The kernel of one token's residual sum and norm, interpreted, against XLA's."""

import jax.numpy as jnp
import numpy as np
import pytest

from model.norm_gpu import add_and_norm


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(
    ("size", "dtype", "tolerance"), [(64, "float32", 1e-6), (100, "float32", 1e-6),
                                     (2560, "bfloat16", 1e-2)],
)  # fmt: skip
def test_the_sum_is_exact_and_its_norm_near(size, dtype, tolerance, centred):
    random = np.random.default_rng(0)
    x, more = (jnp.asarray(random.normal(3, 2, (1, 1, size)), dtype) for _ in range(2))
    scale = random.normal(size=size).astype(np.float32)
    total, normed = add_and_norm(
        x, more, jnp.asarray(scale), epsilon=1e-5, centred=centred, interpret=True
    )
    assert (total == x + more).all() and normed.dtype == x.dtype
    y = np.asarray(x + more, np.float64)
    y -= y.mean() if centred else 0
    y = y / np.sqrt((y * y).mean() + 1e-5) * scale
    np.testing.assert_allclose(np.asarray(normed, np.float64), y, rtol=tolerance, atol=tolerance)
