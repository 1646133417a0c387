"""One declaration per array: shape, dtype, initialiser and logical axes, stated where it is made.

A module calls `declare` in its constructor, so a model is abstract from the start. From that one
statement come the array's sharding, its random start and its place in a checkpoint
(`model.parameters`), and the bytes it costs a step (`profiles.floor.counts`).
"""

import functools
import math
from types import EllipsisType

import jax
import jax.numpy as jnp
from flax import nnx

from model.dtypes import Dtypes
from sharding.quantization import QuantizedArray, stored_bytes

Initializer = jax.nn.initializers.Initializer
Path = tuple[str | int, ...]

_zeros = jax.nn.initializers.zeros
normal = functools.cache(jax.nn.initializers.normal)
"""Initialiser of normal values with this standard deviation; the same one for the same value."""


def declare(
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    dtype: jnp.dtype,
    init: Initializer,
    scale: bool = False,
) -> nnx.Param:
    """A parameter that holds no memory yet.

    Args:
      shape: the whole array's shape.
      axes: one letter of `sharding.axes.LOGICAL_AXES` per dimension.
      dtype: stored type.
      init: makes random values, as ``init(key, shape, dtype, out_sharding=...)``.
      scale: these are numbers beside a matrix in few bits, not parameters of the model.
    """
    if len(shape) != len(axes):
        raise ValueError(f"shape {shape} and axes {axes} differ in length")
    return nnx.Param(jax.ShapeDtypeStruct(shape, dtype), axes=axes, init=init, scale=scale)


class Matrix(nnx.Module):
    """A matrix in few bits: parameters for its values, scales and offsets."""

    def __init__(
        self,
        shape: tuple[int, ...],
        axes: tuple[str, ...],
        outputs: int,
        dtypes: Dtypes,
        init: Initializer,
    ):
        quantization = dtypes.quantization
        scales = quantization.abstract(shape, outputs).scales
        names = axes if quantization.group else (*axes[:outputs], *(None,) * (len(shape) - outputs))
        numbers = functools.partial(declare, scales.shape, names, scales.dtype, _zeros, scale=True)
        self.values = declare(shape, axes, quantization.dtype, _zeros)
        self.scales = numbers()
        if quantization.offset:
            self.offsets = numbers()
        self.axes, self.outputs, self.dtypes, self.init = axes, outputs, dtypes, init

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix."""
        return self.values.shape

    def __getitem__(self, index: EllipsisType) -> QuantizedArray:
        """The matrix as matmuls take it; `index` is ``...``, as of a parameter."""
        parts = [part[...] for part in (self.values, self.scales)]
        quantization = self.dtypes.quantization
        offsets = self.offsets[...] if quantization.offset else None
        return QuantizedArray(*parts, offsets, quantization.group, self.dtypes.round_activations)


def declare_matrix(
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    outputs: int,
    dtypes: Dtypes,
    init: Initializer,
) -> "nnx.Param | Matrix":
    """A matmul's weight, [outputs..., inputs...], stored as `dtypes` says; else as `declare`."""
    if dtypes.quantization is None:
        return declare(shape, axes, dtypes.plain, init)
    return Matrix(shape, axes, outputs, dtypes, init)


def matrices(model: nnx.Module) -> dict[Path, Matrix]:
    """Every matrix in few bits by its path."""
    found = nnx.iter_modules(model)
    return {path: module for path, module in found if isinstance(module, Matrix)}


def declarations(model: nnx.Module) -> dict[Path, nnx.Param]:
    """Every parameter of `model` by its path, in the order of the tree."""
    return dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))


def count(model: nnx.Module) -> int:
    """Number of parameters."""
    declared = declarations(model).values()
    return sum(math.prod(param.shape) for param in declared if not param.scale)


def total_bytes(model: nnx.Module) -> int:
    """Bytes of all parameters, each held once."""
    return round(sum(map(stored_bytes, declarations(model).values())))


def count_active(model: nnx.Module) -> int:
    """Number of parameters that one token meets: of experts, those it is sent to."""
    config = model.config
    total = 0
    for param in declarations(model).values():
        size = 0 if param.scale else math.prod(param.shape)
        total += size * config.experts_per_token // config.experts if of_experts(param) else size
    return total


def of_experts(param: nnx.Param) -> bool:
    """Whether this is a stack of experts' matrices, of which a token meets some."""
    return "E" in param.axes
