"""One declaration per array: its letters, dtype and initialiser, stated where it is made.

A module calls `declare` in its constructor, so a model is abstract from the start. The shape
follows from the letters and the configuration's sizes. From that one
statement come the array's sharding, its random start and its place in a checkpoint
(`model.parameters`), and the bytes it costs a step (`profiles.floor.bytes_and_flops`).
"""

import functools
import math
from types import EllipsisType

import jax
import jax.numpy as jnp
from flax import nnx

from model.config import ModelConfig
from model.dtypes import Dtypes, check_runs
from sharding.axes import UNDIVIDED
from sharding.quantization import QuantizedArray, stored_bytes

Initializer = jax.nn.initializers.Initializer
Path = tuple[str | int, ...]

_zeros = jax.nn.initializers.zeros
normal = functools.cache(jax.nn.initializers.normal)
"""Initialiser of normal values with this standard deviation; the same one for the same value."""


def declare(config: ModelConfig, axes: str, dtype: jnp.dtype, init: Initializer) -> nnx.Param:
    """A parameter that holds no memory yet.

    Args:
      config: the model, whose sizes give the shape.
      axes: one letter of `sharding.axes.LOGICAL_AXES` per dimension.
      dtype: stored type.
      init: makes random values, as ``init(key, shape, dtype, out_sharding=...)``.
    """
    return _param(shape_of(config, axes), axes, dtype, init)


def declare_matrix(
    config: ModelConfig, dtypes: Dtypes, outputs: str, inputs: str
) -> "nnx.Param | Matrix":
    """A matmul's weight, [outputs..., inputs...], stored as `dtypes` says.

    Random values are normal, their standard deviation one over the square root of the number of
    inputs.

    Args:
      config: the model, whose sizes give the shape.
      dtypes: how its numbers are stored.
      outputs: letters of the dimensions that the product has.
      inputs: letters of those that it sums over.
    """
    init = normal(math.prod(shape_of(config, inputs)) ** -0.5)
    if dtypes.quantization_of(outputs, config.experts) is None:
        return declare(config, outputs + inputs, dtypes.plain, init)
    return Matrix(config, dtypes, outputs, inputs, init)


def shape_of(config: ModelConfig, axes: str) -> tuple[int, ...]:
    """The shape of an array with these letters."""
    return tuple(config.sizes[letter] for letter in axes)


def _param(
    shape: tuple[int, ...], axes: str, dtype: jnp.dtype, init: Initializer, scale: bool = False
) -> nnx.Param:
    """A parameter; `scale` for numbers beside a matrix in few bits, none of the model's own."""
    return nnx.Param(jax.ShapeDtypeStruct(shape, dtype), axes=axes, init=init, scale=scale)


class Matrix(nnx.Module):
    """A matrix in few bits: parameters for its values, scales, offsets and its own scale.

    Attributes:
      axes: letters of its dimensions, outputs first.
      outputs: how many of them are outputs.
    """

    def __init__(
        self, config: ModelConfig, dtypes: Dtypes, outputs: str, inputs: str, init: Initializer
    ):
        quantization, axes = dtypes.quantization, outputs + inputs
        abstract = quantization.abstract(shape_of(config, axes), len(outputs))
        shared = axes if quantization.group else outputs + UNDIVIDED * len(inputs)
        scales = abstract.scales
        self.values = _param(abstract.shape, axes, quantization.dtype, _zeros)
        self.scales = _param(scales.shape, shared, scales.dtype, _zeros, scale=True)
        if quantization.offset:
            self.offsets = _param(scales.shape, shared, scales.dtype, _zeros, scale=True)
        if quantization.whole:  # one for each expert's matrix
            letters = "".join(axis if axis == "E" else UNDIVIDED for axis in axes)
            shape = shape_of(config, axes)
            kept = tuple(n if axis == "E" else 1 for n, axis in zip(shape, axes, strict=True))
            self.whole = _param(kept, letters, jnp.dtype("float32"), _zeros, scale=True)
        self.axes, self.outputs, self.dtypes, self.init = axes, len(outputs), dtypes, init

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix."""
        return self.values.shape

    def __getitem__(self, index: EllipsisType) -> QuantizedArray:
        """The matrix as matmuls take it; `index` is ``...``, the same as for a parameter.

        Raises:
          UsageError: it is in a type that does not run.
        """
        check_runs(self.dtypes)
        parts = [part[...] for part in (self.values, self.scales)]
        quantization = self.dtypes.quantization
        offsets = self.offsets[...] if quantization.offset else None
        by_kernel = quantization.name in self.dtypes.gpu_kernels
        rounded = self.dtypes.round_activations
        group = quantization.group_of(self.shape[-1])
        return QuantizedArray(*parts, offsets, group, rounded, by_kernel)


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
