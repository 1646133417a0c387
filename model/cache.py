"""The KV cache: a plain pytree that is passed in, updated in place and passed out.

One declaration: `abstract_cache` states shapes and dtypes, `cache_axes` the letters of each array.
Every jitted step donates its cache, so that the new one takes the old one's memory.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import with_layout_constraint

from model.config import ModelConfig
from model.dtypes import Dtypes
from sharding.placement import Placement
from sharding.quantization import Quantization, round_rows

CACHE_AXES = "BKSh"
"""Letters of keys and values."""
DELTA_AXES = "BNMio", "BrNm"
"""Letters of a delta layer's state: its matrices, and the inputs of its convolution."""
SCALE_AXES = "KBS"
"""Letters of their scales, in the order that attention reads them: with sequences first, XLA:TPU
lays the scales of a chip with one KV head out anew at each step."""
TILE, SCALES = 32, 128
"""Slots of 8-bit numbers, and scales, that a TPU keeps together: in a cache of so many, or a
multiple, each sequence begins anew and no row of scales is filled up; of others XLA:TPU puts the
sequences in between and moves them to read."""
PADDING = 2**30
"""Position of a token that is only there to fill a row: past every slot, seen by none."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedKV:
    """Keys or values of one layer in few bits, with a scale for each token and head.

    Attributes:
      values: [B, K, S, h], in a quantization's dtype.
      scales: [K, B, S], float32.
    """

    values: jax.Array
    scales: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values."""
        return self.values.shape

    def astype(self, dtype: jnp.dtype) -> jax.Array:
        """The values in another type, their scales still to multiply."""
        return self.values.astype(dtype)


Stored = jax.Array | QuantizedKV
"""Keys or values of one layer, [B, K, S, h]."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeltaState:
    """What a gated delta layer keeps of each sequence, however long that is.

    Attributes:
      matrices: [B, N, M, i, o] float32, one for each value head.
      inputs: [B, r, N, m], what the convolution reads of the last tokens, the newest last.
    """

    matrices: jax.Array
    inputs: jax.Array


class KVCache(NamedTuple):
    """Keys and values of the tokens seen so far, and states in place of them.

    Attributes:
      keys: one array per layer, each [B, K, S, h], keys already turned by their position. With
        latent attention, latents and rotary keys, [B, 1, S, l].
      values: the same for values; None in each layer with latent attention.
      states: of each delta layer its state, whose keys and values are None, and None of others;
        empty in a model without such layers.

    Layers that read the keys and values of another have neither.

    A layer with a window keeps a ring of at most that many slots: the token at position p is in
    slot p modulo S. Slots that no token has reached hold anything; attention masks them.
    """

    keys: tuple[Stored | None, ...]
    values: tuple[Stored | None, ...]
    states: tuple[DeltaState | None, ...] = ()

    @classmethod
    def of_layers(cls, layers: "Sequence[LayerCache | DeltaState]") -> "KVCache":
        """A cache of what each layer has."""
        states = tuple(each if isinstance(each, DeltaState) else None for each in layers)
        pairs = [(None, None) if isinstance(each, DeltaState) else each for each in layers]
        keys, values = zip(*pairs, strict=True)
        return cls(keys, values, states if any(states) else ())

    def layer(self, number: int) -> "LayerCache | DeltaState":
        """What a layer has: keys and values, or a state."""
        state = self.states[number] if self.states else None
        return state or (self.keys[number], self.values[number])


LayerCache = tuple[Stored, Stored | None]
"""One layer's keys and values, each [B, K, S, h]."""


def abstract_cache(
    config: ModelConfig, batch: int, slots: int, dtypes: Dtypes, multiple: int = 1, spare: int = 0
) -> KVCache:
    """Shapes and dtypes of a cache of `slots` tokens for each of `batch` sequences.

    Where the slots are divided, each layer has as many more as make them a multiple. A window's
    ring has `spare` slots more than its window: so many of the newest tokens may be taken back.
    What a state has taken in cannot be taken back.
    """
    fixed = config.sizes | ({"h": config.latent.cached} if config.latent else {})

    def state() -> DeltaState:
        shapes = (tuple(map((fixed | {"B": batch}).get, axes)) for axes in DELTA_AXES)
        dtypes_of = jnp.float32, dtypes.dtype
        return DeltaState(*map(jax.ShapeDtypeStruct, shapes, dtypes_of))

    def layer_array(layer: int) -> Stored | None:
        if config.borrows(layer):
            return None
        window = config.window(layer)
        layer_slots = min(slots, window + spare) if window else slots
        layer_slots = -(-layer_slots // multiple) * multiple
        sizes = fixed | {"B": batch, "S": layer_slots}
        letters = (config.letters(layer, axes) for axes in (CACHE_AXES, SCALE_AXES))
        shape, scales_shape = (tuple(map(sizes.get, axes)) for axes in letters)
        if isinstance(dtypes.cache, Quantization):
            values = jax.ShapeDtypeStruct(shape, dtypes.cache.dtype)
            return QuantizedKV(values, jax.ShapeDtypeStruct(scales_shape, jnp.float32))
        return jax.ShapeDtypeStruct(shape, dtypes.cache)

    def one_layer(layer: int) -> LayerCache | DeltaState:
        if config.is_delta(layer):
            return state()
        array = layer_array(layer)
        return array, None if config.latent else array

    return KVCache.of_layers([one_layer(layer) for layer in range(config.layers)])


def cache_axes(cache: KVCache, config: ModelConfig) -> KVCache:
    """A tree like the cache of this model, with each array's letters in its stead."""

    def axes_of(
        layer: int, part: Stored | DeltaState | None
    ) -> str | QuantizedKV | DeltaState | None:
        if part is None:
            return None
        if isinstance(part, DeltaState):
            return DeltaState(*DELTA_AXES)
        values, scales = (config.letters(layer, axes) for axes in (CACHE_AXES, SCALE_AXES))
        return QuantizedKV(values, scales) if isinstance(part, QuantizedKV) else values

    return KVCache(*(tuple(itertools.starmap(axes_of, enumerate(parts))) for parts in cache))


def round_up_to_tiles(slots: int, dtypes: Dtypes) -> int:
    """The number of slots rounded up to whole tiles of a TPU, in a cache of these types."""
    tile = SCALES if isinstance(dtypes.cache, Quantization) else TILE
    return -(-slots // tile) * tile


def with_shardings(
    abstract: KVCache, placement: Placement, mesh: jax.sharding.Mesh, config: ModelConfig
) -> KVCache:
    """The same shapes of a model's cache with their shardings."""

    def with_sharding(array: jax.ShapeDtypeStruct, axes: str) -> jax.ShapeDtypeStruct:
        sharding = jax.NamedSharding(mesh, placement.cache(axes))
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    return jax.tree.map(with_sharding, abstract, cache_axes(abstract, config))


def empty_cache(abstract: KVCache, mesh: jax.sharding.Mesh) -> KVCache:
    """A cache of zeros from shapes with shardings, and orders in memory, if any.

    Each shard is made on its own device.
    """
    with jax.set_mesh(mesh):
        return _zeros(abstract)


@functools.partial(jax.jit, static_argnums=0)
def _zeros(abstract: KVCache) -> KVCache:
    def zeros(array: jax.ShapeDtypeStruct) -> jax.Array:
        made = jnp.zeros(array.shape, array.dtype, out_sharding=array.sharding)
        order = array.format.layout
        return made if order is None else with_layout_constraint(made, order)

    return jax.tree.map(zeros, abstract)


def store(new: jax.Array, dtypes: Dtypes) -> Stored:
    """New keys or values in the form of the cache: [B, T, K, h] -> [B, K, T, h]."""
    if not isinstance(dtypes.cache, Quantization):
        return new.astype(dtypes.cache).swapaxes(1, 2)
    values, scales = round_rows(new, dtypes.cache)  # [B, T, K, h] and [B, T, K]
    return QuantizedKV(values.swapaxes(1, 2), jnp.moveaxis(scales, 2, 0))
