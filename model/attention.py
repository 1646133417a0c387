"""Grouped-query attention over a KV cache (Ainslie et al. 2023).

G query heads share each of K KV heads: G = 1 is multi-head attention, K = 1 multi-query.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from model.cache import PADDING, Stored, store
from model.cache_write import NewTokens, write
from model.config import ModelConfig
from model.declarations import declare, declare_matrix, normal
from model.dtypes import Dtypes
from model.filled_attention import Softmax, attend, attend_step
from model.linear import project
from model.norm import Norm
from model.rotary import Rotation, rotate
from model.softmax_parts import Softmaxed, Spans, join, join_sink
from sharding.collectives import reshard
from sharding.placement import Placement, entry, entry_axes
from sharding.platform_workarounds import by_platform

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
        if config.output_bias:
            self.output_bias = declare(config, "R", dtypes.plain, jax.nn.initializers.zeros)
        if config.attention_sinks:
            self.sinks = declare(config, "kg", dtypes.plain, normal(1.0))
        if config.query_key_norm:
            each = ("kgn", "kn") if config.norm_over_heads else ("n", "n")
            self.query_norm, self.key_norm = (Norm(config, axes) for axes in each)
        self.config, self.dtypes, self.window = config, dtypes, window

    def __call__(
        self,
        x: jax.Array,
        cache: LayerCache,
        positions: jax.Array,
        angles: Rotation | None,
        placement: Placement,
        continues: bool = False,
    ) -> tuple[jax.Array, LayerCache, jax.Array]:
        """Writes the new tokens' keys and values, and attends to what is then filled.

        Args:
          x: [B, T, D], normed, divided in any way.
          cache: this layer's keys and values.
          positions: [B, T] int32, each token's position in its sequence; whole on every device.
          angles: rotary angles of those positions, divided as attention is; None in a layer that
            knows no positions.
          placement: shardings.
          continues: of prompts, whether the cache holds tokens before them.

        Returns:
          [B, T, R], the updated cache, and x as the projections gathered it, for an MLP that reads
          the same.
        """
        q, new, x = self._project(x, angles, placement)  # q: [B, T, K, G, h]
        tokens = NewTokens.at(positions)
        if q.shape[1] == 1:
            forms = {"default": self._step, "cuda": self._step_at_once}
            forms = {name: functools.partial(form, placement) for name, form in forms.items()}
            mixed, cache = by_platform(q, new, cache, tokens, **forms)
        else:
            mixed, before = self._over_each_other(q, new, tokens), None
            if continues:
                before = self._over_cache(q, cache, tokens, tokens.first, placement)
                mixed = join(mixed, before)
            cache = self._write(cache, new, tokens, placement, before)
            mixed = self._mean(mixed, q.dtype)
        with jax.named_scope("attention_output"):
            mixed = reshard(mixed, placement.activations("BTKGh"))  # [B, T, K, G, h]
            (y,), _ = project(mixed, [self.output], placement)  # [B, T, R]
            if self.config.output_bias:
                y = y + self.output_bias[...].astype(y.dtype)
            return y, cache, x

    def _step(
        self,
        placement: Placement,
        q: jax.Array,
        new: LayerCache,
        cache: LayerCache,
        tokens: NewTokens,
    ) -> tuple[jax.Array, LayerCache]:
        """One token of each sequence: its key and value written, then attention to what is there.

        Args:
          placement: shardings.
          q: [B, 1, K, G, h].
          new: keys and values, each [B, 1, K, h].
          cache: this layer's keys and values.
          tokens: where the tokens belong.

        Returns:
          [B, 1, K, G, h], divided as q is, and the updated cache.
        """
        cache = self._write(cache, new, tokens, placement)
        mixed = self._over_cache(q, cache, tokens, tokens.first + 1, placement)
        return self._mean(mixed, q.dtype), cache

    def _step_at_once(
        self,
        placement: Placement,
        q: jax.Array,
        new: LayerCache,
        cache: LayerCache,
        tokens: NewTokens,
    ) -> tuple[jax.Array, LayerCache]:
        """The same as `_step`, by a kernel that does both where it can."""
        if not attends_at_once(self.config, self.dtypes, placement):
            return self._step(placement, q, new, cache, tokens)
        new = tuple(reshard(part, placement.cache("BTK_")) for part in new)
        positions = jnp.where(tokens.count > 0, tokens.first, PADDING)
        positions = reshard(positions, placement.cache("B"))
        how = {"ring": self.window is not None, "storage": self.dtypes.cache}
        return attend_step(q, new, cache, positions, self._softmax, **how)

    def _over_cache(
        self,
        q: jax.Array,
        cache: LayerCache,
        tokens: NewTokens,
        filled: jax.Array,
        placement: Placement,
    ) -> Softmaxed:
        """Attention to what the cache holds, divided as that is; the answer is divided as q is.

        Args:
          q: [B, T, K, G, h].
          cache: this layer's keys and values.
          tokens: where the queries stand.
          filled: tokens of each sequence in the cache, [B] int32.
          placement: shardings.
        """
        spec = beside_cache(jax.typeof(q).sharding.spec, placement)
        ring = self.window is not None
        part = attend(
            reshard(q, spec),
            cache,
            Spans(tokens.first, jnp.zeros_like(filled), filled),
            self._softmax,
            ring=ring,
        )
        return reshard_part(part, jax.typeof(q).sharding.spec)

    def _over_each_other(self, q: jax.Array, new: LayerCache, tokens: NewTokens) -> Softmaxed:
        """Attention of new tokens to each other, as they will be read from the cache.

        Args:
          q: [B, T, K, G, h].
          new: keys and values, each [B, T, K, h].
          tokens: where they stand.
        """
        stored = tuple(store(part, self.dtypes) for part in new)
        spans = Spans(tokens.first, tokens.first, tokens.first + tokens.count)
        return attend(q, stored, spans, self._softmax, together=True)

    def _mean(self, part: Softmaxed, dtype: jnp.dtype) -> jax.Array:
        """The weighted mean of the values, part being over all keys, as the projection reads it."""
        with jax.named_scope("attention_output"):
            if self.config.attention_sinks:
                heads = jax.P(*jax.typeof(part.total).sharding.spec[2:])
                part = join_sink(part, reshard(self.sinks[...], heads).astype(jnp.float32))
            return part.mean().astype(dtype)

    @property
    def _softmax(self) -> Softmax:
        c = self.config
        return Softmax(self.window, c.attention_scale or c.head_size**-0.5, c.attention_softcap)

    def _write(
        self,
        cache: LayerCache,
        new: LayerCache,
        tokens: NewTokens,
        placement: Placement,
        before: Softmaxed | None = None,
    ) -> LayerCache:
        """The cache with new keys and values, each [B, T, K, h], at their tokens' slots.

        Of prompts that go on, `before` is what was read of the cache.
        """
        tokens = NewTokens(*(reshard(each, placement.cache("B")) for each in tokens))
        ring = self.window is not None
        brought = (reshard(part, placement.cache("BTK_")) for part in new)
        how = {"ring": ring, "continues": before is not None, "after": before and before.highest}
        return tuple(
            write(old, part, tokens, placement, self.dtypes, **how)
            for old, part in zip(cache, brought, strict=True)
        )

    def _project(
        self, x: jax.Array, angles: Rotation | None, placement: Placement
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
            keys, values = kv[:, :, :, 0], kv[:, :, :, 1]  # [B, T, K, h]
            if c.query_key_norm:
                q, keys = self.query_norm(q), self.key_norm(keys)
            keys = rotate(keys[:, :, :, None], angles)[:, :, :, 0]
            return rotate(q, angles), (keys, values), x


def attends_at_once(config: ModelConfig, dtypes: Dtypes, placement: Placement) -> bool:
    """Whether decode steps on NVIDIA GPUs attend and write their cache by one kernel.

    It has no sinks and knows no latents, and each device must have all slots of its heads.
    """
    from model import attention_gpu  # imported where it is asked for, as it takes its time

    asked = "attention_step" in dtypes.gpu_kernels
    if not asked or config.latent or config.attention_sinks:
        return False
    spec, slots = placement.attention("BTKG_"), placement.cache("BKS")[2]
    stored = getattr(dtypes.cache, "dtype", dtypes.cache)
    alone = beside_cache(spec, placement) == spec and not entry_axes(slots)
    return alone and attention_gpu.takes(config.head_size, stored)


def beside_cache(spec: jax.P, placement: Placement) -> jax.P:
    """Sharding of queries [B, T, K, G, h] that meet a cache, from what attention gives them."""
    batch, heads, slots = placement.cache("BKS")
    taken = {axis for part in (batch, heads, slots) for axis in entry_axes(part)}
    group = tuple(axis for axis in entry_axes(spec[3]) if axis not in taken)
    return jax.P(batch, None, heads, entry(group), None)


def reshard_part(part: Softmaxed, spec: jax.P) -> Softmaxed:
    """A part divided as `spec` says of its sums, moved as one array."""
    if jax.typeof(part.sums).sharding.spec == spec:
        return part
    numbers = [part.highest[..., None], part.total[..., None]]
    moved = reshard(jnp.concatenate([part.sums, *numbers], axis=-1), spec)
    return Softmaxed(moved[..., :-2], moved[..., -2], moved[..., -1])
