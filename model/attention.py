"""Grouped-query attention over a KV cache (Ainslie et al. 2023).

G query heads share each of K KV heads: G = 1 is multi-head attention, K = 1 multi-query.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from model.cache import positions_in, slots_of, write
from model.config import ModelConfig
from model.linear import linear
from model.norm import Norm
from model.parameters import declare, normal
from model.rotary import Rotation, rotate
from sharding.layout import Placement

LayerCache = tuple[jax.Array, jax.Array]
"""One layer's keys and values, each [B, K, S, h]."""


class Attention(nnx.Module):
    """Projections to queries, keys and values, attention, and the projection back.

    The G queries, the key and the value of a KV head are one array, read in one stream. Mesh axes
    that do not divide K divide the head size in both projections, and the few activations between
    are gathered: no weight is copied because heads do not divide.
    """

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, window: int | None = None):
        D, K, G, h = config.d_model, config.kv_heads, config.group, config.head_size
        into = normal(D**-0.5)
        back = normal((K * G * h) ** -0.5)
        self.query_key_value = declare((K, G + 2, h, D), ("K", "C", "h", "D"), dtype, into)
        self.output = declare((D, K, G, h), ("D", "K", "G", "h"), dtype, back)
        if config.attention_bias:
            zeros = jax.nn.initializers.zeros
            self.bias = declare((K, G + 2, h), ("K", "C", "h"), dtype, zeros)
        if config.query_key_norm:
            self.query_norm, self.key_norm = (Norm(config, "n") for _ in range(2))
        self.config = config
        self.window = window

    def __call__(
        self,
        x: jax.Array,
        cache: LayerCache,
        positions: jax.Array,
        turn: Rotation,
        placement: Placement,
    ) -> tuple[jax.Array, LayerCache]:
        """Writes the new tokens' keys and values, then attends to each token and those before it.

        One token per sequence attends to the cache; several are prompts from their beginning and
        attend to each other.

        Args:
          x: [B, T, D], normed.
          cache: this layer's keys and values.
          positions: [B, T] int32, each token's place in its sequence.
          turn: rotary angles of those positions.
          placement: shardings.

        Returns:
          [B, T, D] and the updated cache.
        """
        new, q = self._project(x, turn, placement)
        size, ring = cache[0].shape[2], self.window is not None
        slots = slots_of(positions, size, ring)
        cache = tuple(
            write(old, tokens, slots, placement) for old, tokens in zip(cache, new, strict=True)
        )
        if x.shape[1] == 1:
            seen, where = cache, positions_in(size, positions, ring)
        else:
            seen, where = tuple(jnp.swapaxes(tokens, 1, 2) for tokens in new), positions
        visible = self._visible(positions[:, :, None], where[:, None])  # [B, T, S]
        c = self.config
        scale = c.attention_scale or c.head_size**-0.5
        mixed = attend(q, *seen, visible, scale, c.attention_softcap)  # [B, T, K, G, h]
        with jax.named_scope("attention_output"):
            # Where mesh axes divide the weight's head size, each device takes its slice.
            mixed = jax.reshard(mixed, placement.weights("B", "T", "K", "G", "h"))
            return linear(self.output[...], mixed, placement.activations("B", "T", "D")), cache

    def _visible(self, position: jax.Array, other: jax.Array) -> jax.Array:
        """Whether a token at `position` sees one at `other`."""
        if self.window is None:
            return other <= position
        return (other <= position) & (other > position - self.window) & (other >= 0)

    def _project(
        self, x: jax.Array, turn: Rotation, placement: Placement
    ) -> tuple[LayerCache, jax.Array]:
        """x: [B, T, D] -> new keys and values, each [B, T, K, h], and queries [B, T, K, G, h]."""
        act = placement.activations
        with jax.named_scope("query_key_value"):
            rows = placement.weights("B", "T", "K", "C", "h")
            both = linear(self.query_key_value[...], x, rows)  # [B, T, K, G + 2, h]
            if self.config.attention_bias:
                both = both + self.bias[...]
            both = jax.reshard(both, act("B", "T", "K", "C", None))  # head size whole again
            turning = both[:, :, :, :-1]
            if self.config.query_key_norm:
                parts = (
                    self.query_norm(turning[:, :, :, :-1]),
                    self.key_norm(turning[:, :, :, -1:]),
                )
                turning = jnp.concatenate(parts, axis=3)
            turned = rotate(turning, turn)
            q = jax.reshard(turned[:, :, :, :-1], act("B", "T", "K", "G", None))
            keys, values = turned[:, :, :, -1], both[:, :, :, -1]
            spec = placement.cache("B", "T", "K", None)
            return (jax.reshard(keys, spec), jax.reshard(values, spec)), q


def attend(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    visible: jax.Array,
    scale: float,
    softcap: float | None = None,
) -> jax.Array:
    """Softmax attention of each token to the slots it sees.

    Args:
      q: [B, T, K, G, h].
      keys: [B, K, S, h].
      values: [B, K, S, h].
      visible: [B, T, S], at least one slot for each token.
      scale: multiplies the scores.
      softcap: c of ``c * tanh(score / c)``, if any (Gemma Team 2024, section 2).

    Returns:
      [B, T, K, G, h].
    """
    with jax.named_scope("attention"):
        # Keys first: with queries first XLA:CPU copies the keys into another order at each step.
        scores = jax.lax.dot_general(  # [B, K, S, T, G]
            keys, q, (((3,), (4,)), ((0, 1), (0, 2))), preferred_element_type=jnp.float32
        )
        scores = jnp.moveaxis(scores, 2, -1) * scale  # [B, K, T, G, S]
        if softcap:
            scores = softcap * jnp.tanh(scores / softcap)
        scores = jnp.where(visible[:, None, :, None, :], scores, -jnp.inf)
        # Dividing after the sum over slots leaves two reductions where the slots are sharded.
        weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
        total = jnp.sum(weights, axis=-1, keepdims=True)
        mixed = jax.lax.dot_general(  # [B, K, T, G, h]
            weights.astype(values.dtype),
            values,
            (((4,), (2,)), ((0, 1), (0, 1))),
            preferred_element_type=jnp.float32,
        )
        return jnp.moveaxis(mixed / total, 1, 2).astype(q.dtype)
