"""Tokens and their shares reach the chips of their experts as they are, and answers come back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.dispatch import ExpertAxes, bring_back, by_destination, send
from sharding.mesh import make_mesh, parse_mesh

N, D, E = 16, 6, 16


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("spread", "batch"),
    [("zyx", "x"), ("zyx", "xy"), ("zyx", "xzy"), ("xzy", "xy"), ("yz", "xy"), ("zy", "x")],
)
def test_each_chip_gets_all_tokens_and_their_shares_of_its_experts_bit_for_bit(
    spread, batch, dtype
):
    axes = axes_of(spread, batch)
    random = np.random.default_rng(0)
    x = np.asarray(jnp.asarray(random.normal(size=(N, D)), dtype))
    share = random.integers(1, 2**22, (N, E)).astype(np.float32)
    share.view(np.uint32)[::3] = 0x4A007FA4  # whose lower half is a signalling NaN as bfloat16
    weight = random.integers(1, 9, E).astype(np.float32)

    def local(x, share, weight):
        tokens, shares = send(x, by_destination(share, axes), axes.exchanged)
        assert tokens.dtype == dtype and shares.shape == (len(tokens), len(weight))
        answers = tokens.astype(jnp.float32) * (shares @ weight)[:, None]
        answers = bring_back(answers, axes.exchanged, jnp.float32)
        return jax.lax.psum(answers, axes.replicated) if axes.replicated else answers

    with jax.set_mesh(make_mesh(parse_mesh("2x2x2"))):
        specs = jax.P(tuple(batch), None), jax.P(tuple(batch), None), jax.P(tuple(spread))
        arrays = (
            jax.reshard(jnp.asarray(a), spec)
            for a, spec in zip((x, share, weight), specs, strict=True)
        )
        out = jax.jit(jax.shard_map(local, out_specs=specs[0], check_vma=False))(*arrays)
    expected = x.astype(np.float64) * (share.astype(np.float64) @ weight)[:, None]
    np.testing.assert_allclose(np.asarray(out), expected, rtol=2e-6)


def axes_of(spread, batch):
    return ExpertAxes(
        exchanged=tuple(axis for axis in spread if axis in batch),
        replicated=tuple(axis for axis in spread if axis not in batch),
        spread=tuple(spread),
        inputs=(),
        hidden=(),
        batch=tuple(batch),
    )
