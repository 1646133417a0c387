"""Grouped-query attention over a KV cache (Ainslie et al. 2023).

G query heads share each of K KV heads: G = 1 is multi-head attention, K = 1 multi-query.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from model.cache import PADDING, LayerCache, store
from model.cache_write import NewTokens, write
from model.config import ModelConfig
from model.declarations import declare, declare_matrix, normal
from model.dtypes import Dtypes
from model.filled_attention import Softmax, attend, attend_step
from model.linear import project
from model.norm import Norm, unit_rms
from model.query_growth import grown
from model.rotary import Rotation, rotate
from model.softmax_parts import Softmaxed, Spans, join, join_sink
from sharding.collectives import reshard
from sharding.placement import Placement, entry, entry_axes
from sharding.platform_workarounds import by_platform


class Lent(NamedTuple):
    """What layers without keys and values of their own read of another layer's.

    Attributes:
      cache: holds what is before the new tokens of a prompt, or the new one of a step, too.
      new: keys and values of a prompt's new tokens, each [B, T, K, h].
    """

    cache: LayerCache
    new: LayerCache


class Lending(NamedTuple):
    """The updated cache of a layer, and what others read of it."""

    cache: LayerCache
    lent: Lent


class Attention(nnx.Module):
    """Projections to queries, keys and values, attention, and the projection back.

    A key and its value are one array, read in one stream. Mesh axes that do not divide K divide G
    or the head size of the weights, and the few activations between are gathered: no weight is
    copied because heads do not divide. Where keys are also values there are keys alone.
    """

    def __init__(self, config: ModelConfig, dtypes: Dtypes, layer: int):
        matrix = functools.partial(declare_matrix, config, dtypes)
        named = functools.partial(config.letters, layer)
        self.config, self.dtypes, self.window = config.at(layer), dtypes, config.window(layer)
        self.lends, own = config.lends(layer), not config.borrows(layer)
        self.query = matrix(named("KGh"), "D")
        self.output = matrix("D", named("KGh"))
        both = named("Kh" if self.config.keys_are_values else "KCh")
        if own:
            self.key_value = matrix(both, "D")
        if config.output_gate:
            self.gate = matrix(named("KGh"), "D")
        if config.attention_bias:
            zeros = jax.nn.initializers.zeros
            self.query_bias = declare(config, named("KGh"), dtypes.plain, zeros)
            if own:
                self.key_value_bias = declare(config, both, dtypes.plain, zeros)
        if config.output_bias:
            self.output_bias = declare(config, "R", dtypes.plain, jax.nn.initializers.zeros)
        if config.attention_sinks:
            self.sinks = declare(config, "kg", dtypes.plain, normal(1.0))
        if config.query_key_norm:
            each = ("kgn", "kn") if config.norm_over_heads else (named("n"),) * 2
            self.query_norm = Norm(config, each[0])
            if own:
                self.key_norm = Norm(config, each[1])

    def __call__(
        self,
        x: jax.Array,
        cache: LayerCache,
        positions: jax.Array,
        angles: Rotation | None,
        placement: Placement,
        continues: bool = False,
    ) -> tuple[jax.Array, LayerCache | Lending, jax.Array]:
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
          [B, T, R], the updated cache, with what other layers read if any do, and x as the
          projections gathered it, for an MLP that reads the same.
        """
        given = cache
        q, new, x = self._project(x, positions, angles, placement)  # q: [B, T, K, G, h]
        gate, x = self._project_gate(x, placement)
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
        y = self._project_back(mixed, gate, placement)
        if not self.lends:
            return y, cache, x
        # New tokens write over what the first of them see of a ring: others read that as it was.
        as_it_was = q.shape[1] > 1 and self.window is not None
        return y, Lending(cache, Lent(given if as_it_was else cache, new)), x

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

    def _project_gate(
        self, x: jax.Array, placement: Placement
    ) -> tuple[jax.Array | None, jax.Array]:
        """x: [B, T, D] -> gates of what attention makes, [B, T, K, G, h], if any; x gathered."""
        if not self.config.output_gate:
            return None, x
        with jax.named_scope("query_key_value"):
            (gate,), x = project(x, [self.gate], placement)
            return gate, x

    def _project_back(
        self, mixed: jax.Array, gate: jax.Array | None, placement: Placement
    ) -> jax.Array:
        """mixed: [B, T, K, G, h], what attention makes, and its gate -> [B, T, R]."""
        with jax.named_scope("attention_output"):
            mixed = reshard(mixed, placement.activations("BTKGh"))
            if gate is not None:
                mixed = (mixed * jax.nn.sigmoid(gate.astype(jnp.float32))).astype(mixed.dtype)
            (y,), _ = project(mixed, [self.output], placement)
            return y + self.output_bias[...].astype(y.dtype) if self.config.output_bias else y

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
        chunk, ring, softmax = self._chunk(tokens, cache, 1)
        if softmax.chunked:
            return self._step(placement, q, new, cache, tokens)
        positions = jnp.where(tokens.count > 0, tokens.first - chunk, PADDING)
        positions = reshard(positions, placement.cache("B"))
        how = {"ring": ring, "storage": self.dtypes.cache}
        return attend_step(q, new, cache, positions, softmax, **how)

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
        chunk, ring, softmax = self._chunk(tokens, cache, q.shape[1])
        spans = Spans(tokens.first - chunk, jnp.zeros_like(filled), filled - chunk)
        part = attend(reshard(q, spec), cache, spans, softmax, ring=ring)
        return reshard_part(part, jax.typeof(q).sharding.spec)

    def _chunk(
        self, tokens: NewTokens, cache: LayerCache, count: int
    ) -> tuple[jax.Array | int, bool, Softmax]:
        """How new tokens meet slots that a window's tokens take.

        Where these are one chunk's, a token is in the slot of its place within its chunk: they are
        read from the first up to the last that is filled, as if the chunk were the sequence.

        Args:
          tokens: where they stand.
          cache: this layer's keys and values.
          count: T.

        Returns:
          Tokens before the chunk of the first, [B] int32 or 0; whether slots are a ring; and which
          scores count: of a token alone, all of its chunk.
        """
        softmax, ring = self._softmax, self.window is not None
        if not softmax.chunked or cache[0].shape[2] > self.window:
            return 0, ring, softmax
        if count == 1:
            softmax = softmax._replace(window=None, chunked=False)
        return tokens.first - tokens.first % self.window, False, softmax

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
        scale, chunked = c.attention_scale or c.head_size**-0.5, c.chunked and bool(self.window)
        return Softmax(self.window, scale, c.attention_softcap, chunked)

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
        self,
        x: jax.Array,
        positions: jax.Array,
        angles: Rotation | None,
        placement: Placement,
    ) -> tuple[jax.Array, LayerCache, jax.Array]:
        """x: [B, T, D] -> q: [B, T, K, G, h]; keys and values, each [B, T, K, h]; x gathered."""
        with jax.named_scope("query_key_value"):
            # q: [B, T, K, G, h], kv: [B, T, K, 2, h], or [B, T, K, h] where keys are also values
            (q, kv), x = project(x, [self.query, self.key_value], placement)
            if self.config.attention_bias:
                both = placement.activations("Kh" if self.config.keys_are_values else "KCh")
                key_value_bias = reshard(self.key_value_bias[...], both)
                kv = kv + key_value_bias.astype(q.dtype)
            q = self._finish_queries(q, positions, angles, placement)
            return q, self._keys_values(kv, angles, placement), x

    def _finish_queries(
        self, q: jax.Array, positions: jax.Array, angles: Rotation | None, placement: Placement
    ) -> jax.Array:
        """q: [B, T, K, G, h] as projected -> the same, divided as attention is, normed, rotated."""
        c = self.config
        if c.attention_bias:
            bias = reshard(self.query_bias[...], placement.activations("KGh"))
            q = q + bias.astype(q.dtype)
        q = reshard(q, placement.attention("BTKG_"))
        q = rotate(self.query_norm(q) if c.query_key_norm else q, angles)
        if c.unit_queries_keys and angles is not None:
            q = unit_rms(q, c.norm_epsilon).astype(q.dtype)
        if c.query_growth and angles is None:
            q = grown(q, reshard(positions, placement.attention("BT")), c.query_growth)
        return q

    def _keys_values(
        self, kv: jax.Array, angles: Rotation | None, placement: Placement
    ) -> LayerCache:
        """Keys and values, each [B, T, K, h], of what was projected."""
        c = self.config
        kv = reshard(kv, placement.attention("BTK_" if c.keys_are_values else "BTKC_"))
        keys, values = (kv, kv) if c.keys_are_values else (kv[:, :, :, 0], kv[:, :, :, 1])
        if c.query_key_norm:
            keys = self.key_norm(keys)
        if c.value_norm:
            values = unit_rms(values, c.norm_epsilon).astype(values.dtype)
        keys = rotate(keys[:, :, :, None], angles)[:, :, :, 0]
        if c.unit_queries_keys and angles is not None:
            keys = unit_rms(keys, c.norm_epsilon).astype(keys.dtype)
        return keys, values


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
