"""Arrays stored in few bits, beside the scales that give their values back.

Symmetric forms keep ``value * scale``: one scale for each output of a matmul, or one for each group
of inputs. A form with an offset keeps ``value * scale + offset``, which spends no code on a range
that a group does not use. Values stay packed in memory and in a compiled step; a matmul converts
them as it reads them.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp

from sharding.float4 import EXPONENTS, decode_scales, decode_values, encode
from sharding.placement import used_axes
from sharding.stored_types import COUNTED_TYPES, QUANTIZED_TYPES, QuantizedType


@dataclasses.dataclass(frozen=True)
class Quantization:
    """How values are stored.

    Attributes:
      name: what ``--weight_dtype`` calls it.
      dtype: type of the stored values.
      largest: the largest stored value.
      group: inputs that share a scale, along the last dimension, where groups divide it; see
        `group_of`. None for all inputs of an output.
      offset: whether each group has its minimum beside its scale.
      scale: type of the scales, and of the minima.
      whole: whether the matrix has a float32 scale of its own beside those of its groups.
      multiplied: chips' name of the arithmetic that multiplies stored values without conversion,
        where a chip has it; None if a matmul converts them to the type of activations.
      codes: whether values and scales are codes of `sharding.float4` (MXFP4).
      experts_only: whether, in a model that has experts, only their matrices are stored so, as
        the files of such models have it.
    """

    name: str
    dtype: jnp.dtype
    largest: float
    group: int | None = None
    offset: bool = False
    scale: jnp.dtype = jnp.float32
    whole: bool = False
    multiplied: str | None = None
    codes: bool = False
    experts_only: bool = False

    def group_of(self, inputs: int) -> int | None:
        """Inputs that share a scale in a matrix whose last dimension has so many.

        Fewer than `group` where that does not divide them, but never fewer than 32: a head of 64
        inputs has a scale of its own. Scales of longer groups are repeated for those, exactly.
        """
        if self.group is None:
            return None
        common = math.gcd(inputs, self.group)
        return common if common >= _LEAST_GROUP else self.group

    def abstract(self, shape: tuple[int, ...], outputs: int) -> "QuantizedArray":
        """Shapes and dtypes of a matrix in this form, [outputs..., inputs...]."""
        group = self.group_of(shape[-1])
        group_scales = (*shape[:-1], -(-shape[-1] // group)) if group else None
        output_scales = (*shape[:outputs], *(1,) * (len(shape) - outputs))
        numbers = jax.ShapeDtypeStruct(group_scales or output_scales, self.scale)
        values = jax.ShapeDtypeStruct(shape, self.dtype)
        return QuantizedArray(values, numbers, numbers if self.offset else None, group)


_LEAST_GROUP = 32


def _quantizations(kinds: Mapping[str, QuantizedType]) -> Mapping[str, Quantization]:
    made = {}
    for name, kind in kinds.items():
        types = {"dtype": getattr(jnp, kind.dtype), "scale": getattr(jnp, kind.scale)}
        made[name] = Quantization(name, **kind._asdict() | types)
    return MappingProxyType(made)


QUANTIZATIONS = _quantizations(QUANTIZED_TYPES)
COUNTED = _quantizations(COUNTED_TYPES)
"""Forms whose bytes and floors are counted, but which do not run."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedArray:
    """A matrix in few bits; stands where an array does as a matmul's weight.

    Attributes:
      values: [outputs..., inputs...], in a quantization's dtype.
      scales: float32, of the same rank: inputs are 1, or as many as there are groups. Exponents of
        `sharding.float4` where values are its codes.
      offsets: the same shape as scales, where the quantization has them.
      group: inputs that share a scale, along the last dimension; None for all of an output.
      round_activations: multiply 8-bit integers: what it multiplies is rounded to them first, with
        a scale for each token.
      gpu_kernel: few tokens are multiplied on a GPU by the kernel of `sharding.grouped_gpu`.
    """

    values: jax.Array
    scales: jax.Array
    offsets: jax.Array | None = None
    group: int | None = dataclasses.field(default=None, metadata={"static": True})
    round_activations: bool = dataclasses.field(default=False, metadata={"static": True})
    gpu_kernel: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values."""
        return self.values.shape

    @property
    def ndim(self) -> int:
        """Dimensions of the values."""
        return self.values.ndim

    @property
    def codes(self) -> bool:
        """Whether values and scales are codes of `sharding.float4`."""
        return self.scales.dtype == EXPONENTS

    def dense(self) -> jax.Array:
        """The values that are meant, float32."""
        groups = self.scales.shape[-1]
        split = (*self.shape[:-1], groups, self.shape[-1] // groups)
        found = decode_values(self.values, self.scales).reshape(split)
        found = found * decode_scales(self.scales)[..., None]
        if self.offsets is not None:
            found = found + self.offsets[..., None]
        return found.reshape(self.shape)


Weight = jax.Array | QuantizedArray
"""What a matmul takes as its first operand."""


def granule(weight: Weight) -> int:
    """Inputs that share a scale, along the last dimension: it can be cut between these only."""
    return weight.group or 1 if isinstance(weight, QuantizedArray) else 1


def cut(weight: Weight, number: int | jax.Array, parts: int, axis: int) -> Weight:
    """One of so many equal parts of a weight along one dimension, between groups if the last."""
    length = weight.shape[axis]

    def cut_leaf(leaf: jax.Array) -> jax.Array:
        size = leaf.shape[axis] // parts
        if leaf.shape[axis] == 1 < length:  # one scale for all
            return leaf
        if axis == 0 and leaf.ndim == 2 and size % _TILE == 0:
            # XLA:TPU would lay 8-bit rows out anew to cut them where it cannot see whole tiles.
            tiles = leaf.reshape(parts, size, -1)
            return jax.lax.dynamic_index_in_dim(tiles, number, keepdims=False)
        return jax.lax.dynamic_slice_in_dim(leaf, number * size, size, axis=axis)

    return jax.tree.map(cut_leaf, weight)


_TILE = 32  # rows of 8-bit values that a TPU keeps together


def cut_rows(weight: Weight, number: int | jax.Array, parts: int, axis: int) -> list[Weight]:
    """`cut` along outputs: one part, or one of each matrix of a stack.

    XLA:TPU copies rows inside a stack to cut them from all its matrices at once.
    """
    if axis < weight.ndim - 2:
        return [cut(weight, number, parts, axis)]
    count = math.prod(weight.shape[:axis])
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[axis + 1 :]), weight)
    return [cut(flat, i * parts + number, count * parts, 0) for i in range(count)]


def specs_of(weight: Weight) -> Weight:
    """Sharding of each array of it."""
    return jax.tree.map(lambda array: jax.typeof(array).sharding.spec, weight)


def sharding_of(weight: Weight) -> jax.P:
    """How the values are divided."""
    return jax.typeof(weight.values if isinstance(weight, QuantizedArray) else weight).sharding.spec


def divide(weight: Weight, spec: jax.P, reshard: Callable[[jax.Array, jax.P], jax.Array]) -> Weight:
    """The weight divided as `spec` says of its values."""
    return jax.tree.map(lambda leaf: reshard(leaf, spec_of(leaf, weight, spec)), weight)


def spec_of(leaf: jax.Array, weight: Weight, spec: jax.P) -> jax.P:
    """How an array of a weight is divided whose values `spec` divides."""
    shapes = zip(leaf.shape, weight.shape, spec, strict=True)
    return jax.P(*(None if n == 1 < length else by for n, length, by in shapes))


def to_bits(leaf: jax.Array) -> jax.Array:
    """Small floats as integers of the same bits; other arrays as they are.

    XLA:CPU slices and gathers no bfloat16 or float8: it converts the whole array to do so.
    """
    small = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4
    return jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}") if small else leaf


def from_bits(bits: jax.Array, like: jax.Array) -> jax.Array:
    """What `to_bits` was given, or a part of it."""
    return bits if bits.dtype == like.dtype else jax.lax.bitcast_convert_type(bits, like.dtype)


def round_tokens(x: jax.Array, inputs: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """x in 8-bit integers, and the scale of each token: one for all of its inputs on a chip."""
    values, scales = _values_and_scales(
        x.astype(jnp.float32), tuple(inputs), (), QUANTIZATIONS["int8"]
    )
    return values, drop(scales, inputs)


def drop(scales: jax.Array, dims: Sequence[int]) -> jax.Array:
    """Without dimensions along which all are the same."""
    for dim in dims:
        scales = scales if scales.shape[dim] == 1 else jax.lax.slice_in_dim(scales, 0, 1, axis=dim)
    return jax.lax.squeeze(scales, dims)


def round_rows(x: jax.Array, quantization: Quantization) -> tuple[jax.Array, jax.Array]:
    """Activations in few bits, x: [..., h], and a scale for each row: [...], float32."""
    values, scales = _values_and_scales(x.astype(jnp.float32), (-1,), (), quantization)
    return values, scales[..., 0]


def quantize(
    array: jax.Array, outputs: int, quantization: Quantization
) -> tuple[QuantizedArray, jax.Array]:
    """Stores an array in few bits, each device its own part.

    Args:
      array: [outputs..., inputs...] with explicit sharding; groups must not cross devices.
      outputs: how many dimensions are outputs.
      quantization: how.

    Returns:
      The quantized array, divided as `array`, and whether all values were finite.
    """
    spec = jax.typeof(array).sharding.spec
    input_axes, group = used_axes(spec[outputs:]), quantization.group_of(array.shape[-1])
    scale_spec = spec if group else jax.P(*spec[:outputs], *(None,) * (array.ndim - outputs))

    def local(part: jax.Array):
        part = part.astype(jnp.float32)
        finite = jnp.all(jnp.isfinite(part))
        if used_axes(spec):
            finite = jax.lax.pmin(finite.astype(jnp.int32), used_axes(spec)) == 1
        if group:
            blocks = part.reshape(*part.shape[:-1], -1, group)
            over = (-1,)
        else:
            blocks, over = part, tuple(range(outputs, part.ndim))
        axes = () if group else input_axes
        values, *numbers = _values_and_scales(blocks, over, axes, quantization)
        numbers = [number[..., 0] if group else number for number in numbers]
        return (values.reshape(part.shape), *numbers), finite

    count = 3 if quantization.offset else 2
    specs = (spec, scale_spec, scale_spec)[:count]
    parts, finite = jax.shard_map(
        local, in_specs=spec, out_specs=(specs, jax.P()), check_vma=False
    )(array)
    values, scales, offsets = (*parts, None)[:3]
    return QuantizedArray(values, scales, offsets, group), finite


def _values_and_scales(
    blocks: jax.Array, over: tuple[int, ...], axes: tuple[str, ...], quantization: Quantization
):
    """Values, scales and offsets of blocks that share them over some dimensions and mesh axes."""

    def maximum(x: jax.Array) -> jax.Array:
        found = jnp.max(x, axis=over, keepdims=True)
        return jax.lax.pmax(found, axes) if axes else found

    if quantization.codes:
        return encode(blocks, maximum(jnp.abs(blocks)))
    if quantization.offset:
        minimum = -maximum(-blocks)
        scale = (maximum(blocks) - minimum) / quantization.largest
    else:
        minimum, scale = None, maximum(jnp.abs(blocks)) / quantization.largest
    scale = jnp.where(scale > 0, scale, 1.0)  # all values alike: any scale will do
    stored = (blocks if minimum is None else blocks - minimum) / scale
    low = 0 if quantization.offset else -quantization.largest
    if jnp.issubdtype(quantization.dtype, jnp.integer):
        stored = jnp.round(stored)
    values = jnp.clip(stored, low, quantization.largest).astype(quantization.dtype)
    return (values, scale) if minimum is None else (values, scale, minimum)


def bits(array: jax.Array | jax.ShapeDtypeStruct) -> int:
    """Bits of one element as they lie in memory: those of 4-bit types are packed two by two."""
    return bits_of(array.dtype)


def bits_of(dtype: jnp.dtype) -> int:
    """Bits of one element of a type as they lie in memory."""
    dtype = jnp.dtype(dtype)
    return 4 if dtype.name in ("int4", "uint4", "float4_e2m1fn") else 8 * dtype.itemsize


def stored_bytes(array: jax.Array | jax.ShapeDtypeStruct) -> float:
    """Bytes of a whole array as it lies in memory."""
    return math.prod(array.shape) * bits(array) / 8
