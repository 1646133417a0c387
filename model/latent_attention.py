"""Latent attention: a cache of one latent and one rotary key per token (DeepSeek-AI 2024).

DeepSeek-V2, section 2.1. All heads' keys and values are linear in a latent of r_kv numbers, so the
latent is cached in their stead. A decode step takes each query to the latent's space, attends to
latents as one KV head that all queries share, and takes the mean latent to values: the weights
between are absorbed. A prompt expands latents to keys and values, which is less arithmetic for many
queries (`model.latent_expanded`).
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention import beside_cache, reshard_part
from model.cache import Stored, store
from model.cache_write import NewTokens, write
from model.config import ModelConfig
from model.declarations import declare, declare_matrix, normal
from model.dtypes import Dtypes
from model.filled_attention import Softmax, attend
from model.latent_expanded import Expansion, attend_expanded
from model.linear import project
from model.norm import Norm
from model.rotary import Rotation, rotate
from model.softmax_parts import Softmaxed, Spans, join
from sharding.collectives import reshard
from sharding.placement import Placement

EPSILON = 1e-6
"""Of the norms of latents, whatever the other norms have, as in the released code."""
LatentCache = tuple[Stored, None]
"""One layer's latents with their rotary keys, [B, 1, S, l]: there are no values beside them."""


class LatentAttention(nnx.Module):
    """Projections to queries and latents, attention, and the projection back.

    The letters of its dimensions: c is the latent, l the latent with the rotary key, u the content
    of a query or key, h that with the rotary part, v a value and q the latent of a query.

    Weights that take heads to latents and back stay plain where others are in few bits: a decode
    step sums over what in a prompt are their outputs, which no scale of outputs allows.
    """

    def __init__(self, config: ModelConfig, dtypes: Dtypes):
        matrix, sizes = functools.partial(declare_matrix, config, dtypes), config.latent
        if sizes.query_rank:
            self.query_down = matrix("q", "D")
            self.query_norm = Norm(config, "q", epsilon=EPSILON)
        self.query = matrix("KGh", "q" if sizes.query_rank else "D")
        self.latent = matrix("l", "D")
        self.latent_norm = Norm(config, "c", epsilon=EPSILON)
        init = normal(sizes.rank**-0.5)
        self.key = declare(config, "KGuc", dtypes.plain, init)
        self.value = declare(config, "KGvc", dtypes.plain, init)
        self.output = matrix("D", "KGv")
        self.config, self.sizes, self.dtypes = config, sizes, dtypes

    def __call__(
        self,
        x: jax.Array,
        cache: LatentCache,
        positions: jax.Array,
        angles: Rotation,
        placement: Placement,
        continues: bool = False,
    ) -> tuple[jax.Array, LatentCache, jax.Array]:
        """Writes the new tokens' latents, and attends to what is then filled.

        Arguments and results are those of `model.attention.Attention`.
        """
        q, latents, x = self._project(x, placement)
        latents = reshard(latents, placement.attention("BTK_"))
        latents = self._turn(latents[:, :, :, None], angles)[:, :, :, 0]  # [B, T, 1, l]
        tokens = NewTokens.at(positions)
        if q.shape[1] == 1:
            mixed, stored = self._step(q, latents, cache[0], tokens, angles, placement)
        else:
            q = self._turn(reshard(q, placement.attention("BTKG_")), angles)
            mixed, stored = self._prompt(q, latents, cache[0], tokens, placement, continues)
        with jax.named_scope("attention_output"):
            mixed = reshard(mixed, placement.activations("BTKGv"))
            (y,), _ = project(mixed, [self.output], placement)  # [B, T, R]
            return y, (stored, None), x

    def _project(
        self, x: jax.Array, placement: Placement
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x: [B, T, D] -> q: [B, T, 1, G, h]; latents: [B, T, 1, l], not yet turned; x gathered."""
        with jax.named_scope("query_key_value"):
            first = self.query_down if self.sizes.query_rank else self.query
            (q, latents), x = project(x, [first, self.latent], placement)
            if self.sizes.query_rank:
                (q,), _ = project(self.query_norm(q), [self.query], placement)
            rank = self.sizes.rank
            content = self.latent_norm(latents[..., :rank])
            latents = jnp.concatenate([content, latents[..., rank:]], axis=-1)
            return q, latents[:, :, None], x

    def _turn(self, x: jax.Array, angles: Rotation) -> jax.Array:
        """x: [B, T, 1, n, ...] with its last numbers, the rotary part, turned by their position."""
        still = x.shape[-1] - self.sizes.rotary
        return jnp.concatenate([x[..., :still], rotate(x[..., still:], angles)], axis=-1)

    def _step(
        self,
        q: jax.Array,
        latents: jax.Array,
        cache: Stored,
        tokens: NewTokens,
        angles: Rotation,
        placement: Placement,
    ) -> tuple[jax.Array, Stored]:
        """One token of each sequence: written, then attention of absorbed queries to latents.

        Returns:
          [B, 1, 1, G, v], divided as activations are, and the updated cache.
        """
        heads = placement.activations("BTKG_")
        weight = functools.partial(_of_heads, heads=heads, dtype=q.dtype)
        content = self.sizes.content
        with jax.named_scope("query_key_value"):
            q = reshard(q, heads)
            product = "btkgu,kguc->btkgc"
            taken = jnp.einsum(product, q[..., :content], weight(self.key), out_sharding=heads)
            q = jnp.concatenate([taken, q[..., content:]], axis=-1)  # [B, 1, 1, G, l]
            q = self._turn(reshard(q, placement.attention("BTKG_")), angles)
        cache = self._write(cache, latents, tokens, placement)
        spec = beside_cache(jax.typeof(q).sharding.spec, placement)
        spans = Spans(tokens.first, jnp.zeros_like(tokens.first), tokens.first + 1)
        softmax = Softmax(None, self._scale)
        part = attend(reshard(q, spec), (cache, None), spans, softmax)
        part = part._replace(sums=part.sums[..., : self.sizes.rank])
        part = reshard_part(part, jax.typeof(q).sharding.spec)
        with jax.named_scope("attention_output"):
            mean = reshard(part.mean().astype(q.dtype), heads)  # [B, 1, 1, G, c]
            return (
                jnp.einsum("btkgc,kgvc->btkgv", mean, weight(self.value), out_sharding=heads),
                cache,
            )

    def _prompt(
        self,
        q: jax.Array,
        latents: jax.Array,
        cache: Stored,
        tokens: NewTokens,
        placement: Placement,
        continues: bool,
    ) -> tuple[jax.Array, Stored]:
        """Tokens of prompts to each other and to the cache before them, by expanded latents.

        Returns:
          [B, T, 1, G, v], divided as attention is, and the updated cache.
        """
        heads = jax.typeof(q).sharding.spec
        stored = store(latents, self.dtypes)
        spans = Spans(tokens.first, tokens.first, tokens.first + tokens.count)
        attended = functools.partial(attend_expanded, scale=self._scale)
        mixed = attended(q, stored, self._expansion(heads), spans, together=True)
        before = None
        if continues:
            spec = beside_cache(heads, placement)
            spans = Spans(tokens.first, jnp.zeros_like(tokens.first), tokens.first)
            before = attended(reshard(q, spec), cache, self._expansion(spec), spans)
            before = reshard_part(before, heads)
            mixed = join(mixed, before)
        cache = self._write(cache, latents, tokens, placement, before)
        with jax.named_scope("attention_output"):
            return mixed.mean().astype(q.dtype), cache

    def _expansion(self, heads: jax.P) -> Expansion:
        return Expansion(*(_of_heads(each, heads) for each in (self.key, self.value)))

    @property
    def _scale(self) -> float:
        return self.config.attention_scale or self.config.head_size**-0.5

    def _write(
        self,
        cache: Stored,
        latents: jax.Array,
        tokens: NewTokens,
        placement: Placement,
        before: Softmaxed | None = None,
    ) -> Stored:
        """The cache with new latents, [B, T, 1, l], at their tokens' slots, see `Attention`."""
        tokens = NewTokens(*(reshard(each, placement.cache("B")) for each in tokens))
        brought = reshard(latents, placement.cache("BTK_"))
        how = {"ring": False, "continues": before is not None, "after": before and before.highest}
        return write(cache, brought, tokens, placement, self.dtypes, **how)


def _of_heads(weight: nnx.Param, heads: jax.P, dtype: jnp.dtype | None = None) -> jax.Array:
    """A weight [1, G, ...] divided over G as queries [B, T, 1, G, ...] are."""
    array = reshard(weight[...], jax.P(None, heads[3], None, None))
    return array if dtype is None else array.astype(dtype)
