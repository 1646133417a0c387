"""Grouped-query attention over a KV cache (Ainslie et al. 2023).

G query heads share each of K KV heads: G = 1 is multi-head attention, K = 1 multi-query.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from model.cache import QuantizedKV, Stored, positions_in, slots_of, write
from model.config import ModelConfig
from model.declarations import declare, declare_matrix
from model.dtypes import Dtypes
from model.linear import project
from model.norm import Norm
from model.rotary import Rotation, rotate
from sharding.collectives import reshard, split_softmax
from sharding.placement import Placement

LayerCache = tuple[Stored, Stored]
"""One layer's keys and values, each [B, K, S, h]."""


class Attention(nnx.Module):
    """Projections to queries, keys and values, attention, and the projection back.

    A key and its value are one array, read in one stream. Mesh axes that do not divide K divide G
    or the head size of the weights, and the few activations between are gathered: no weight is
    copied because heads do not divide.
    """

    def __init__(self, config: ModelConfig, dtypes: Dtypes, window: int | None = None):
        matrix = functools.partial(declare_matrix, config, dtypes)
        self.query = matrix("KGh", "D")
        self.key_value = matrix("KCh", "D")
        self.output = matrix("D", "KGh")
        if config.attention_bias:
            zeros = jax.nn.initializers.zeros
            self.query_bias = declare(config, "KGh", dtypes.plain, zeros)
            self.key_value_bias = declare(config, "KCh", dtypes.plain, zeros)
        if config.query_key_norm:
            self.query_norm, self.key_norm = (Norm(config, "n") for _ in range(2))
        self.config, self.dtypes, self.window = config, dtypes, window

    def __call__(
        self,
        x: jax.Array,
        cache: LayerCache,
        positions: jax.Array,
        angles: Rotation,
        placement: Placement,
    ) -> tuple[jax.Array, LayerCache, jax.Array]:
        """Writes the new tokens' keys and values, then attends to each token and those before it.

        One token per sequence attends to the cache; several are prompts from their beginning and
        attend to each other.

        Args:
          x: [B, T, D], normed, divided in any way.
          cache: this layer's keys and values.
          positions: [B, T] int32, each token's position in its sequence; whole on every device.
          angles: rotary angles of those positions, divided as attention is.
          placement: shardings.

        Returns:
          [B, T, R], the updated cache, and x as the projections gathered it, for an MLP that reads
          the same.
        """
        q, new, x = self._project(x, angles, placement)  # q: [B, T, K, G, h]
        prompts = q.shape[1] > 1
        cache = self._write(cache, new, positions, prompts, placement)
        positions = reshard(positions, placement.attention("BT"))
        if prompts:
            # A prompt's tokens attend to each other: S is T.
            attended = tuple(jnp.swapaxes(part, 1, 2) for part in new)
            attended_positions = positions
        else:
            attended = cache
            attended_positions = positions_in(cache[0].shape[2], positions, self.window is not None)
        visible = self._visible(positions[:, :, None], attended_positions[:, None])  # [B, T, S]
        c = self.config
        scale = c.attention_scale or c.head_size**-0.5
        overlapped = placement.layout.collectives == "overlapped"
        # [B, T, K, G, h]
        mixed = attend(q, *attended, visible, scale, c.attention_softcap, overlapped)
        with jax.named_scope("attention_output"):
            mixed = reshard(mixed, placement.activations("BTKGh"))
            (y,), _ = project(mixed, [self.output], placement)  # [B, T, R]
            return y, cache, x

    def _write(
        self,
        cache: LayerCache,
        new: LayerCache,
        positions: jax.Array,
        prompts: bool,
        placement: Placement,
    ) -> LayerCache:
        """The cache with new keys and values, each [B, T, K, h], at their tokens' slots."""
        slots = slots_of(positions, cache[0].shape[2], self.window is not None)
        slots = reshard(slots, placement.cache("BT"))
        stored = (reshard(part, placement.cache("BTK_")) for part in new)
        return tuple(
            write(old, part, slots, placement, self.dtypes, prompts)
            for old, part in zip(cache, stored, strict=True)
        )

    def _visible(self, query_position: jax.Array, key_position: jax.Array) -> jax.Array:
        """Whether a token at `query_position` sees one at `key_position`."""
        if self.window is None:
            return key_position <= query_position
        return (
            (key_position <= query_position)
            & (key_position > query_position - self.window)
            & (key_position >= 0)
        )

    def _project(
        self, x: jax.Array, angles: Rotation, placement: Placement
    ) -> tuple[jax.Array, LayerCache, jax.Array]:
        """x: [B, T, D] -> q: [B, T, K, G, h]; keys and values, each [B, T, K, h]; x gathered."""
        c = self.config
        with jax.named_scope("query_key_value"):
            # q: [B, T, K, G, h], kv: [B, T, K, 2, h]
            (q, kv), x = project(x, [self.query, self.key_value], placement)
            if c.attention_bias:
                act = placement.activations
                query_bias = reshard(self.query_bias[...], act("KGh"))
                q = q + query_bias.astype(q.dtype)
                key_value_bias = reshard(self.key_value_bias[...], act("KCh"))
                kv = kv + key_value_bias.astype(q.dtype)
            q = reshard(q, placement.attention("BTKG_"))
            kv = reshard(kv, placement.attention("BTKC_"))
            keys, values = kv[:, :, :, :1], kv[:, :, :, 1]  # [B, T, K, 1, h], [B, T, K, h]
            if c.query_key_norm:
                q, keys = self.query_norm(q), self.key_norm(keys)
            return rotate(q, angles), (rotate(keys, angles)[:, :, :, 0], values), x


def attend(
    q: jax.Array,
    keys: Stored,
    values: Stored,
    visible: jax.Array,
    scale: float,
    softcap: float | None = None,
    overlapped: bool = False,
) -> jax.Array:
    """Softmax attention of each token to the slots it sees.

    Args:
      q: [B, T, K, G, h].
      keys: [B, K, S, h].
      values: [B, K, S, h].
      visible: [B, T, S], at least one slot for each token.
      scale: multiplies the scores.
      softcap: c of ``c * tanh(score / c)``, if any (Gemma Team 2024, section 2).
      overlapped: where mesh axes divide the slots, combine their parts by `split_softmax`.

    Returns:
      [B, T, K, G, h].
    """
    with jax.named_scope("attention"):
        key_scales, value_scales = (  # [K, B, S]
            part.scales if isinstance(part, QuantizedKV) else None for part in (keys, values)
        )
        keys, values = keys.astype(q.dtype), values.astype(q.dtype)
        scores = _scores(q, keys, key_scales) * scale
        if value_scales is not None:  # [K, B, S] -> [B, K, 1, 1, S]
            value_scales = jnp.swapaxes(value_scales, 0, 1)[:, :, None, None]
        if softcap:
            scores = softcap * jnp.tanh(scores / softcap)
        scores = jnp.where(visible[:, None, :, None, :], scores, -jnp.inf)
        slots_divided = bool(jax.typeof(keys).sharding.spec[2])
        weigh = split_softmax if overlapped and slots_divided else _softmax
        return jnp.moveaxis(weigh(scores, values, value_scales), 1, 2).astype(q.dtype)


def _scores(q: jax.Array, keys: jax.Array, key_scales: jax.Array | None) -> jax.Array:
    """Products of queries and keys.

    Args:
      q: [B, T, K, G, h].
      keys: [B, K, S, h].
      key_scales: [K, B, S], if any.

    Returns:
      [B, K, T, G, S] float32.
    """
    # Keys first: with queries first XLA:CPU copies the keys into another order at each step.
    batch, heads, slots, _ = jax.typeof(keys).sharding.spec
    group = jax.typeof(q).sharding.spec[3]
    scores = jax.lax.dot_general(  # [B, K, S, T, G]
        keys,
        q,
        (((3,), (4,)), ((0, 1), (0, 2))),
        preferred_element_type=jnp.float32,
        out_sharding=jax.P(batch, heads, slots, None, group),
    )
    if key_scales is not None:
        scores = scores * jnp.swapaxes(key_scales, 0, 1)[..., None, None]
    return jnp.moveaxis(scores, 2, -1)


def _softmax(scores: jax.Array, values: jax.Array, scales: jax.Array | None) -> jax.Array:
    """The sum of values weighted by a softmax of scores; arguments are those of `split_softmax`."""
    batch, heads, _, group, _ = jax.typeof(scores).sharding.spec
    # Dividing after the sum over slots leaves it one reduction where the slots are sharded.
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    sums = jax.lax.dot_general(  # [B, K, T, G, h]
        (weights if scales is None else weights * scales).astype(values.dtype),
        values,
        (((4,), (2,)), ((0, 1), (0, 1))),
        preferred_element_type=jnp.float32,
        out_sharding=jax.P(batch, heads, None, group, None),
    )
    return sums / total
