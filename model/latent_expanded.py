"""Latent attention of prompts: keys and values made of latents, a block at a time, then forgotten.

A block of latents is expanded once for all queries of a chunk, so that a query and key cost
2 H (h + v) FLOPs, against 2 H (2 r_kv + r_rope) where queries are taken to latents, as in decode
steps (DeepSeek-AI 2024, DeepSeek-V2, section 2.1.2).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from model.block_attention import attend_each_other, attend_part
from model.cache import QuantizedKV, Stored
from model.softmax_parts import Softmaxed, Spans, join_devices
from sharding.layout import Axes
from sharding.placement import entry_axes


class Expansion(NamedTuple):
    """What makes a head's key content and value of a latent.

    Attributes:
      keys: [1, G, u, c], divided over G as queries are.
      values: [1, G, v, c], likewise.
    """

    keys: jax.Array
    values: jax.Array


@functools.partial(jax.jit, static_argnames=("scale", "together"))
def attend_expanded(
    q: jax.Array,
    latents: Stored,
    expansion: Expansion,
    spans: Spans,
    *,
    scale: float,
    together: bool = False,
) -> Softmaxed:
    """Softmax attention of prompts to the keys and values that latents stand for.

    Args:
      q: [B, T, 1, G, h], content before the rotary part; B divided as in the latents.
      latents: [B, 1, S, l], as the cache holds them; S divided in any way.
      expansion: of the queries' heads.
      spans: positions of queries and latents, divided in any way.
      scale: multiplies the scores.
      together: latents are those of the queries' own tokens, in their order.

    Returns:
      Sums [B, T, 1, G, v], divided as q is.
    """
    with jax.named_scope("attention"):
        parts = latents if isinstance(latents, QuantizedKV) else (latents, None)
        arrays = tuple(jax.tree.leaves(parts)) if parts is latents else (latents,)
        specs = tuple(jax.typeof(array).sharding.spec for array in arrays)
        batch, _, slots, _ = specs[0]
        group = jax.typeof(q).sharding.spec[3]
        query, heads = jax.P(batch, None, None, group, None), jax.P(None, group, None, None)
        by_sequence = Spans(*(jax.P(batch),) * 3)
        spans = Spans(*(jax.reshard(each, jax.P(batch)) for each in spans))
        return jax.shard_map(
            functools.partial(_attend_local, scale, together, entry_axes(slots)),
            in_specs=(query, specs, Expansion(heads, heads), by_sequence),
            out_specs=Softmaxed(query, jax.P(*query[:-1]), jax.P(*query[:-1])),
            check_vma=False,
        )(q, arrays, expansion, spans)


def _attend_local(
    scale: float,
    together: bool,
    slot_axes: Axes,
    q: jax.Array,
    arrays: tuple[jax.Array, ...],
    expansion: Expansion,
    spans: Spans,
) -> Softmaxed:
    """One device's part, joined with those of devices that have other slots."""
    latents, scales = arrays if len(arrays) == 2 else (*arrays, None)
    q = q.swapaxes(2, 3)  # [B, T, G, 1, h]: to each head's own keys
    expand = functools.partial(_expand, expansion, q.dtype)
    if together:
        part = attend_each_other(q, *expand(latents, None, scales, None), scale=scale)
    else:
        slots = latents.shape[2]
        begin = jax.lax.axis_index(slot_axes) * slots if slot_axes else 0
        spans = spans._replace(first_key=spans.first_key + begin)
        part = attend_part(
            q, latents, None, scales, None, spans, scale=scale, expand=expand,
            value_width=expansion.values.shape[2],
        )  # fmt: skip
    part = Softmaxed(*(each.swapaxes(2, 3) for each in part))
    return join_devices(part, slot_axes) if slot_axes else part


def _expand(
    expansion: Expansion,
    dtype: jnp.dtype,
    latents: jax.Array,
    _values: None,
    scales: jax.Array | None,
    _value_scales: None,
) -> tuple[jax.Array, jax.Array, None, None]:
    """Keys [B, G, n, h] and values [B, G, n, v] of latents [B, 1, n, l], scaled: [1, B, n]."""
    latents = latents[:, 0]
    if scales is not None:
        latents = latents.astype(jnp.float32) * scales[0, :, :, None]
    latents = latents.astype(dtype)
    rank = expansion.keys.shape[-1]
    content, rotary = latents[..., :rank], latents[:, None, :, rank:]
    keys, values = (
        jnp.einsum("bnc,goc->bgno", content, weight[0].astype(dtype)) for weight in expansion
    )
    rotary = jnp.broadcast_to(rotary, (*keys.shape[:-1], rotary.shape[-1]))
    return jnp.concatenate([keys, rotary], axis=-1), values, None, None
