"""Which tokens may be drawn: filters that find the least score they keep without sorting.

A filter keeps what scores at least as much as a threshold. Whether a threshold is low enough takes
one masked sum over the vocabulary, and the highest such float32 is found bit by bit, so a filter
reads its scores as often as a number has bits, whatever the size of the vocabulary, and the score
that it finds is exact; what is below the least normal float32 may count as zero.

Each value is one number for all sequences or an array [B] with one for each.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

BITS = 32
_MINUS_INFINITY = np.uint32(0x7F800001)
"""How far the bits of minus infinity lie below those of zero, in the order of floats."""
_INFINITY = np.uint32(0xFF000001)  # as a number of steps from minus infinity


def keep_top_k(scores: jax.Array, k: int | jax.Array) -> jax.Array:
    """Keeps the `k` highest scores, and any equal to the lowest of them.

    Args:
      scores: [B, V], float32.
      k: one at least; more than V keeps all.

    Returns:
      [B, V], what is not kept at minus infinity.
    """
    k = jnp.minimum(column(k), scores.shape[-1])
    enough = lambda least: jnp.sum(scores >= least, axis=-1, keepdims=True) >= k  # noqa: E731
    return _drop(scores, scores < _highest(enough, scores.shape[0]))


def keep_top_p(scores: jax.Array, p: float | jax.Array) -> jax.Array:
    """Keeps the fewest most likely tokens whose probabilities sum to at least `p`, and any equals.

    Sums are in float32: where the probability of what is dropped comes within about 1e-6 of
    1 - p, rounding decides whether one token more is kept. Nucleus sampling, Holtzman et al. 2019.

    Args:
      scores: [B, V], float32.
      p: above 0 and at most 1.

    Returns:
      [B, V], what is not kept at minus infinity.
    """
    highest = jnp.max(scores, axis=-1, keepdims=True)
    masses = jnp.exp(scores - highest)
    spare = (1 - column(p)) * jnp.sum(masses, axis=-1, keepdims=True)

    def enough(least: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(scores < least, masses, 0), axis=-1, keepdims=True) <= spare

    least = jnp.minimum(_highest(enough, scores.shape[0]), highest)  # the likeliest always stays
    return _drop(scores, scores < least)


def keep_min_p(scores: jax.Array, p: float | jax.Array) -> jax.Array:
    """Keeps tokens at least `p` times as likely as the most likely one.

    Args:
      scores: [B, V], float32.
      p: from 0 to 1.

    Returns:
      [B, V], what is not kept at minus infinity.
    """
    likelihood = jax.nn.softmax(scores, axis=-1)
    return _drop(scores, likelihood < column(p) * jnp.max(likelihood, axis=-1, keepdims=True))


def column(value: float | jax.Array) -> jax.Array:
    """A number as it is; [B] numbers as [B, 1], to go with scores [B, V]."""
    value = jnp.asarray(value)
    return value[:, None] if value.ndim else value


def _highest(holds: Callable[[jax.Array], jax.Array], rows: int) -> jax.Array:
    """The highest float32 of each row for which a condition holds, [B, 1].

    Args:
      holds: from numbers [B, 1] to [B, 1] bool; true of minus infinity, and of every number below
        one of which it is true.
      rows: B.
    """

    def next_bit(number: jax.Array, steps: jax.Array) -> jax.Array:
        further = steps | (jnp.uint32(1 << (BITS - 1)) >> number.astype(jnp.uint32))
        further = jnp.minimum(further, _INFINITY)
        return jnp.where(holds(_float(further)), further, steps)

    with jax.named_scope("threshold"):
        return _float(jax.lax.fori_loop(0, BITS, next_bit, jnp.zeros((rows, 1), jnp.uint32)))


def _float(steps: jax.Array) -> jax.Array:
    """The float32 that lies so many steps above minus infinity: uint32 to float32."""
    ordered = jax.lax.bitcast_convert_type(steps - _MINUS_INFINITY, jnp.int32)
    bits = jnp.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _drop(scores: jax.Array, unwanted: jax.Array) -> jax.Array:
    return jnp.where(unwanted, -jnp.inf, scores)
