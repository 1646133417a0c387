"""Every array of a model on a mesh: how the layout shards it and the bytes that each chip holds."""

import dataclasses
from collections.abc import Iterator

import jax
from flax import nnx

from model.cache import abstract_cache, cache_axes
from model.config import ModelConfig
from model.declarations import declarations
from model.dtypes import Dtypes
from model.transformer import Transformer
from sharding.axes import UNDIVIDED
from sharding.placement import Placement, division
from sharding.quantization import stored_bytes


@dataclasses.dataclass(frozen=True)
class PlacedArray:
    """One array under a layout.

    Attributes:
      name: path of a weight, such as ``layers/0/mlp/down``, or ``cache/keys/0``; for a quantized
        array it ends in ``values``, ``scales`` or ``offsets``.
      shape: shape of the unsharded array.
      axes: a logical axis for each dimension; ``1`` for a dimension along which scales are shared.
      sharding: mesh axes that divide each dimension, major first; empty for an undivided one.
      bytes_per_chip: bytes of each device's shard.
      copies: number of devices that hold each element.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    sharding: tuple[tuple[str, ...], ...]
    bytes_per_chip: int
    copies: int

    def as_record(self) -> dict:
        """The array as a record; ``sharding`` has a list of mesh axes for each dimension."""
        return dataclasses.asdict(self)

    @property
    def notation(self) -> str:
        """Axes and sharding in letters, such as ``[D.x, F.zy]``."""
        pairs = zip(self.axes, map("".join, self.sharding), strict=True)
        return f"[{', '.join(f'{axis}.{by}' if by else axis for axis, by in pairs)}]"


def placed_arrays(
    config: ModelConfig, placement: Placement, dtypes: Dtypes, batch: int, slots: int
) -> list[PlacedArray]:
    """Stored weights, then keys and values, in the order of the model.

    Args:
      config: the model.
      placement: the layout on a mesh.
      dtypes: how the model's numbers are stored.
      batch: sequences in the cache.
      slots: tokens of each sequence that the cache has room for.
    """
    return [
        _placed(*declared, placement)
        for declared in _declared(config, placement, dtypes, batch, slots)
    ]


def group_layers(arrays: list[PlacedArray]) -> list[tuple[PlacedArray, int]]:
    """Merges arrays that differ by layer alone, whose index becomes ``*``, and counts them."""
    groups: dict[PlacedArray, int] = {}
    for array in arrays:
        parts = ("*" if part.isdigit() else part for part in array.name.split("/"))
        merged = dataclasses.replace(array, name="/".join(parts))
        groups[merged] = groups.get(merged, 0) + 1
    return list(groups.items())


def _declared(
    config: ModelConfig, placement: Placement, dtypes: Dtypes, batch: int, slots: int
) -> Iterator[tuple[str, nnx.Param | jax.ShapeDtypeStruct, str, jax.P]]:
    for path, param in declarations(Transformer(config, dtypes)).items():
        name = "/".join(map(str, path))
        yield name, param, param.axes, placement.weights(param.axes)
    cache = abstract_cache(config, batch, slots, dtypes, placement.multiple("S"))
    arrays, letters = jax.tree.leaves_with_path(cache), jax.tree.leaves(cache_axes(cache, config))
    for (path, array), axes in zip(arrays, letters, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        yield f"cache/{name}", array, axes, placement.cache(axes)


def _placed(
    name: str,
    array: nnx.Param | jax.ShapeDtypeStruct,
    axes: str,
    spec: jax.P,
    placement: Placement,
) -> PlacedArray:
    copies = placement.copies(spec)
    size = round(stored_bytes(array) * copies / placement.devices)
    letters = tuple(axes.replace(UNDIVIDED, "1"))
    return PlacedArray(name, tuple(array.shape), letters, division(spec), size, copies)
