"""Attention of new tokens over the slots that tokens have filled, on every device its own part.

Where mesh axes divide the slots, each device attends to those that it has, and the parts are
joined. A part is found by a kernel on TPUs and NVIDIA GPUs, elsewhere by loops that XLA compiles.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model.block_attention import attend_each_other, attend_part
from model.cache import QuantizedKV, Stored
from model.dtypes import Storage
from model.softmax_parts import Softmaxed, Spans, join_devices
from sharding.layout import Axes
from sharding.placement import entry_axes
from sharding.platform_workarounds import by_platform
from sharding.quantization import Quantization


class Softmax(NamedTuple):
    """How scores are made, and which count.

    Attributes:
      window: how many keys a query sees at most, its own included; None for all before it.
      scale: multiplies the scores.
      softcap: c of ``c * tanh(score / c)``, if any (Gemma Team 2024, section 2).
      chunked: a query sees the keys of its own chunk of `window` tokens, and none before them.
    """

    window: int | None
    scale: float
    softcap: float | None = None
    chunked: bool = False


@functools.partial(jax.jit, static_argnames=("softmax", "ring", "together"))
def attend(
    q: jax.Array,
    stored: tuple[Stored, Stored | None],
    spans: Spans,
    softmax: Softmax,
    *,
    ring: bool = False,
    together: bool = False,
) -> Softmaxed:
    """Softmax attention of queries to the keys that they see.

    It is traced once for all layers that are alike, which halves the time that a step takes to
    trace: there are more operations here than in all of the rest.

    Args:
      q: [B, T, K, G, h], B and K divided as in the keys, T and h whole.
      stored: keys and values, each [B, K, S, h]; elsewhere than on TPUs and GPUs, of more
        sequences too, the first of each device being those of the queries. No values where keys
        are also values.
      spans: positions of queries and keys, divided in any way.
      softmax: scale, cap and window.
      ring: the slots are a ring: the token at position p is in slot p modulo S.
      together: keys are those of the queries' own tokens, in their order; no mesh axes divide them.
    """
    with jax.named_scope("attention"):
        arrays = _arrays(stored)
        keys = arrays[0]
        specs = jax.tree.map(lambda array: jax.typeof(array).sharding.spec, arrays)
        batch, heads, slots, _ = specs[0]
        group = jax.typeof(q).sharding.spec[3]
        query = jax.P(batch, None, heads, group, None)
        by_sequence = Spans(*(jax.P(batch),) * 3)
        spans = Spans(*(jax.reshard(each, jax.P(batch)) for each in spans))
        local = functools.partial(
            _attend_local, softmax, keys.shape[2] if ring else None, together, entry_axes(slots)
        )
        return jax.shard_map(
            local,
            in_specs=(query, specs, by_sequence),
            out_specs=Softmaxed(query, jax.P(*query[:-1]), jax.P(*query[:-1])),
            check_vma=False,
        )(q, arrays, spans)


@functools.partial(jax.jit, static_argnames=("softmax", "ring", "storage"))
def attend_step(
    q: jax.Array,
    new: tuple[jax.Array, jax.Array],
    stored: tuple[Stored, Stored],
    positions: jax.Array,
    softmax: Softmax,
    *,
    ring: bool,
    storage: Storage,
) -> tuple[jax.Array, tuple[Stored, Stored]]:
    """Attention of one new token of each sequence that is not in the cache, and the cache with it.

    One kernel of NVIDIA GPUs does both, where `model.attention.attends_at_once`.

    Args:
      q: [B, 1, K, G, h], B and K divided as in the cache.
      new: keys and values, each [B, 1, K, h], divided likewise.
      stored: keys and values, each [B, K, S, h], S whole on every device.
      positions: [B] int32, of the new tokens, divided likewise.
      softmax: scale, cap and window, which is no chunk.
      ring: the slots are a ring: the token at position p is in slot p modulo S.
      storage: how the cache is stored.

    Returns:
      The mean of the values that each token sees, [B, 1, K, G, h] in the type of q, and the cache.
    """
    from model import attention_gpu_step  # imported where it is traced, as the kernels below

    cache = attention_gpu_step.CacheArrays(*_arrays(stored))
    step = functools.partial(
        attention_gpu_step.attend_step,
        quantization=storage if isinstance(storage, Quantization) else None,
        ring=ring,
        window=softmax.window,
        scale=softmax.scale,
        softcap=softmax.softcap,
    )
    operands = (q, *new, cache, positions)
    specs = jax.tree.map(lambda array: jax.typeof(array).sharding.spec, operands)
    mean, cache = jax.shard_map(
        step, in_specs=specs, out_specs=(specs[0], specs[3]), check_vma=False
    )(*operands)
    if cache.key_scales is None:
        return mean, (cache.keys, cache.values)
    return mean, (
        QuantizedKV(cache.keys, cache.key_scales),
        QuantizedKV(cache.values, cache.value_scales),
    )


def _arrays(stored: tuple[Stored, Stored | None]) -> tuple[jax.Array | None, ...]:
    """Keys, values, and the scales of each if they have any."""
    (keys, key_scales), (values, value_scales) = map(_plain, stored)
    return keys, values, key_scales, value_scales


def _plain(stored: Stored | None) -> tuple[jax.Array | None, jax.Array | None]:
    """Values, and their scales if they have any."""
    return (stored.values, stored.scales) if isinstance(stored, QuantizedKV) else (stored, None)


def _attend_local(
    softmax: Softmax,
    ring: int | None,
    together: bool,
    slot_axes: Axes,
    q: jax.Array,
    arrays: tuple[jax.Array | None, ...],
    spans: Spans,
) -> Softmaxed:
    """One device's part, joined with those of devices that have other slots."""
    slots = arrays[0].shape[2]
    begin = jax.lax.axis_index(slot_axes) * slots if slot_axes else 0
    arrays = q, *arrays
    spans = spans._replace(first_key=spans.first_key + begin)
    one = functools.partial(_part, softmax, ring)
    default = _each_other if together else attend_part
    forms = {"tpu": _on_tpu, "cuda": _on_nvidia, "default": default}
    forms = {platform: functools.partial(one, form) for platform, form in forms.items()}
    part = by_platform(arrays, spans, jnp.asarray(begin, jnp.int32), **forms)
    return join_devices(part, slot_axes) if slot_axes else part


def _part(
    softmax: Softmax,
    ring: int | None,
    form: Callable[..., Softmaxed],
    arrays: tuple[jax.Array | None, ...],
    spans: Spans,
    begin: jax.Array,
) -> Softmaxed:
    """What a form of attention makes of a device's arrays, the first of whose slots is `begin`."""
    return form(*arrays, spans, ring=None if ring is None else (ring, begin), **softmax._asdict())


def _each_other(*operands: Any, ring: None, **options: Any) -> Softmaxed:
    *arrays, spans = operands
    return attend_each_other(*arrays, spans.first_query, **options)


# Kernels are imported where they are traced: it takes a third of a second.


def _on_tpu(*operands: Any, **options: Any) -> Softmaxed:
    from model import attention_tpu

    return attention_tpu.attend_part(*operands, **options)


def _on_nvidia(q: jax.Array, keys: jax.Array, *operands: Any, **options: Any) -> Softmaxed:
    from model import attention_gpu

    by_kernel = operands[0] is not None and attention_gpu.takes(q.shape[-1], keys.dtype)
    form = attention_gpu.attend_part if by_kernel else attend_part
    return form(q, keys, *operands, **options)
