"""Parts of a softmax that join: a score that has no value counts in the total alone."""

import jax.numpy as jnp
import numpy as np
import pytest

from model.softmax_parts import LOWEST, Softmaxed, join, join_sink

K, G, H, KEYS = 2, 3, 4, 7


def part_of(scores: np.ndarray, values: np.ndarray) -> Softmaxed:
    """Scores [K, G, n] over values [n, h], as one part of shape [1, 1, K, G]."""
    highest = scores.max(axis=-1, initial=LOWEST)
    shares = np.exp(scores - highest[..., None])
    parts = shares @ values, highest, shares.sum(axis=-1)
    return Softmaxed(*(jnp.asarray(each, jnp.float32)[None, None] for each in parts))


@pytest.mark.parametrize("sink", [-200.0, -1.0, 3.0, 200.0])
def test_a_sink_takes_its_share_and_gives_nothing(sink):
    random = np.random.default_rng(0)
    scores, values = random.normal(size=(K, G, KEYS)) * 4, random.normal(size=(KEYS, H))
    sinks = np.full((K, G), sink) + random.normal(size=(K, G))
    both = np.concatenate([scores, sinks[..., None]], axis=-1)
    shares = np.exp(both - both.max(axis=-1, keepdims=True))
    expected = shares[..., :-1] @ values / shares.sum(axis=-1, keepdims=True)
    joined = join(part_of(scores[..., :3], values[:3]), part_of(scores[..., 3:], values[3:]))
    found = join_sink(joined, jnp.asarray(sinks, jnp.float32))
    np.testing.assert_allclose(found.mean()[0, 0], expected, rtol=1e-5, atol=1e-6)


def test_where_no_key_is_seen_a_sink_leaves_zeros():
    nothing = part_of(np.empty((K, G, 0)), np.empty((0, H)))
    assert not np.asarray(join_sink(nothing, jnp.zeros((K, G))).mean()).any()
