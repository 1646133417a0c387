"""Kernels of GPUs that none has run: what they give on this device, against the plain form there.

Shapes are those of a model's step. The plain form is in float32, in full; an error is the largest
difference, of the largest number that should be there. A kernel rounds to bfloat16 a few times,
which is 2**-9 each; one that is wrong errs by about 1.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from model.attention_gpu_step import CacheArrays, attend_step
from model.config import ModelConfig
from model.norm_gpu import add_and_norm
from sharding.float4 import EXPONENTS, GROUP
from sharding.grouped_gpu import kernel_for, multiply_packed
from sharding.grouped_stack_gpu import fits, multiply_sorted
from sharding.quantization import QUANTIZATIONS, QuantizedArray, round_rows
from sharding.stored_types import KERNEL_TYPES

LIMIT = 2**-6
"""Errors above it are none of rounding: a cache in int8 may differ by one of 127 at a tie."""
_STACK = 8  # experts
_MOST_ATTENDED = 64  # sequences whose scores are held in full


class Check(NamedTuple):
    """What came of one kernel at one shape.

    Attributes:
      kernel: its name in `sharding.stored_types.GPU_KERNELS`.
      case: what it was given, in words.
      error: of the largest number of the plain form; infinite if there is none that is finite.
    """

    kernel: str
    case: str
    error: float

    @property
    def right(self) -> bool:
        """Whether the error is one of rounding."""
        return self.error <= LIMIT


def kernel_checks(
    config: ModelConfig, batches: Sequence[int], context: int, interpret: bool
) -> Iterator[Check]:
    """Runs each kernel where a step of the model would, one after another.

    Args:
      config: the model.
      batches: sequences of a step.
      context: slots of the cache of attention.
      interpret: run the kernels' own arithmetic, as on a CPU, which has no other.
    """
    for batch in batches:
        if batch > _MOST_ATTENDED:
            continue
        for storage in ("bfloat16", "int8", "fp8"):
            error = _attention_error(config, batch, context, storage, interpret)
            yield Check("attention_step", f"batch {batch}, cache in {storage}", error)
    yield Check("norm", f"one token of {config.sizes['D']}", _norm_error(config, interpret))
    for name in KERNEL_TYPES:
        weight = _matrix(name, config)
        rows, inputs = weight.shape
        groups = weight.scales.shape[-1]
        for tokens in batches:
            if kernel_for(1, 1, rows, inputs, groups, tokens):
                error = _product_error(weight, tokens, interpret)
                yield Check(name, f"{rows} x {inputs}, {tokens} tokens", error)
    rows, inputs = (config.sizes[letter] for letter in "FD")
    for tokens in batches if fits(inputs) else ():
        error = _stack_error(rows, inputs, tokens, interpret)
        yield Check("mxfp4", f"{_STACK} x {rows} x {inputs}, {tokens} rows", error)


def _error(found: jax.Array, wanted: jax.Array) -> float:
    found, wanted = (each.astype(jnp.float32) for each in (found, wanted))
    error = float(jnp.max(jnp.abs(found - wanted)) / jnp.max(jnp.abs(wanted)))
    return error if np.isfinite(error) else float("inf")


def _normal(seed: int, *shape: int, dtype: jnp.dtype = jnp.bfloat16) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def _matrix(name: str, config: ModelConfig) -> QuantizedArray:
    """An MLP's matrix of random integers and numbers beside them, [F, D]."""
    kind, (rows, inputs) = QUANTIZATIONS[name], (config.sizes[letter] for letter in "FD")
    keys = [jax.random.key(n) for n in range(3)]
    low = 0 if kind.offset else -int(kind.largest)
    values = jax.random.randint(keys[0], (rows, inputs), low, int(kind.largest) + 1, jnp.int32)
    group = kind.group_of(inputs)
    of_groups = rows, inputs // group if group else 1
    scales = jax.random.uniform(keys[1], of_groups, minval=0.5)
    offsets = None
    if kind.offset:
        offsets = -scales * jax.random.uniform(keys[2], of_groups, minval=6, maxval=9)
    return QuantizedArray(values.astype(kind.dtype), scales, offsets, group)


def _product_error(weight: QuantizedArray, tokens: int, interpret: bool) -> float:
    x = _normal(3, tokens, weight.shape[1])

    @jax.jit
    def plain(weight: QuantizedArray, x: jax.Array) -> jax.Array:
        group = weight.shape[1] // weight.scales.shape[-1]
        dense = weight.values.astype(jnp.float32) * jnp.repeat(weight.scales, group, axis=1)
        if weight.offsets is not None:
            dense += jnp.repeat(weight.offsets, group, axis=1)
        return jnp.einsum("mk,nk->mn", x.astype(jnp.float32), dense, precision="highest")

    one = jax.tree.map(lambda leaf: leaf[None, None], weight)
    parts = one.values, one.scales, one.offsets, x[:, None]
    found = multiply_packed(*parts, dtype=jnp.bfloat16, interpret=interpret)
    return _error(found[:, 0], plain(weight, x))


def _stack_error(rows: int, inputs: int, tokens: int, interpret: bool) -> float:
    """Of rows of tokens that half of a stack's matrices have, each another number of them."""
    keys = [jax.random.key(n) for n in range(2)]
    shape = _STACK, rows, inputs
    values = jax.random.randint(keys[0], shape, 0, 16, jnp.int32).astype(jnp.uint4)
    scales = jax.random.randint(keys[1], (*shape[:-1], inputs // GROUP), 120, 131, jnp.int32)
    stack = QuantizedArray(values, scales.astype(EXPONENTS), group=GROUP)
    x = _normal(3, tokens, inputs)
    matrix = jnp.arange(tokens) ** 2 * _STACK // tokens**2 // 2 * 2
    sizes = jnp.bincount(matrix, length=_STACK).astype(jnp.int32)

    @jax.jit
    def plain(stack: QuantizedArray, x: jax.Array) -> jax.Array:
        product = functools.partial(jnp.einsum, "mk,nk->mn", precision="highest")
        every = jax.lax.map(lambda one: product(x.astype(jnp.float32), one.dense()), stack)
        return every[matrix, jnp.arange(tokens)]

    found = multiply_sorted(stack.values, stack.scales, x, sizes, jnp.bfloat16, interpret)
    return _error(found, plain(stack, x))


def _norm_error(config: ModelConfig, interpret: bool) -> float:
    x, more = (_normal(n, 1, 1, config.sizes["D"]) for n in range(2))
    scale = _normal(2, config.sizes["D"], dtype=jnp.float32)
    how = {"epsilon": config.norm_epsilon, "centred": config.norm == "layer"}
    total, normed = jax.jit(functools.partial(add_and_norm, **how, interpret=interpret))(
        x, more, scale
    )
    wanted = (x + more).astype(jnp.float32)
    if how["centred"]:
        wanted -= jnp.mean(wanted)
    wanted *= scale * jax.lax.rsqrt(jnp.mean(wanted**2) + how["epsilon"])
    return max(_error(total, x + more), _error(normed, wanted))


def _attention_error(
    config: ModelConfig, batch: int, slots: int, storage: str, interpret: bool
) -> float:
    """The larger of the errors of means and of the cache, as numbers."""
    heads, group, size = (config.sizes[letter] for letter in "KGh")
    quantization = QUANTIZATIONS.get(storage)
    q = _normal(0, batch, 1, heads, group, size)
    new = [_normal(n, batch, 1, heads, size) for n in (1, 2)]
    rows = [_normal(n, batch, heads, slots, size) for n in (3, 4)]
    cache = CacheArrays(*rows)
    if quantization:
        (keys, values), scales = zip(
            *(round_rows(each, quantization) for each in rows), strict=True
        )
        cache = CacheArrays(keys, values, *(each.swapaxes(0, 1) for each in scales))
    # Some sequences are short, and one is full.
    positions = jnp.linspace(slots - 1, slots // 3, batch).astype(jnp.int32)
    step = functools.partial(
        attend_step, quantization=quantization, ring=False, window=None, scale=size**-0.5,
        softcap=None, interpret=interpret,
    )  # fmt: skip
    mean, after = jax.jit(step)(q, *new, cache, positions)
    expected, written = jax.jit(functools.partial(_attend_plainly, quantization))(
        q, new, cache, positions
    )
    errors = [_error(mean[:, 0], expected)]
    errors += map(_error, _numbers(after), written)
    return max(errors)


def _numbers(cache: CacheArrays) -> list[jax.Array]:
    """Keys and values in float32, [B, K, S, h]."""
    pairs = (cache.keys, cache.key_scales), (cache.values, cache.value_scales)
    return [
        stored.astype(jnp.float32) * (1 if scales is None else scales.swapaxes(0, 1)[..., None])
        for stored, scales in pairs
    ]


def _attend_plainly(
    quantization, q: jax.Array, new: list[jax.Array], cache: CacheArrays, positions: jax.Array
) -> tuple[jax.Array, list[jax.Array]]:
    """Means [B, K, G, h], and `_numbers` of the cache with the new tokens; all in float32."""
    written, sequence = _numbers(cache), jnp.arange(len(positions))
    for n, row in enumerate(new):
        row = row[:, 0]  # [B, K, h]
        if quantization:
            values, scales = round_rows(row, quantization)
            row = values.astype(jnp.float32) * scales[..., None]
        written[n] = written[n].at[sequence, :, positions].set(row.astype(jnp.float32))
    keys, values = written
    product = functools.partial(jnp.einsum, precision="highest")
    scores = product("bkgh,bksh->bkgs", q[:, 0].astype(jnp.float32), keys) * q.shape[-1] ** -0.5
    seen = jnp.arange(keys.shape[2]) <= positions[:, None]  # [B, S]
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -jnp.inf))
    return product("bkgs,bksh->bkgh", weights, values), written
