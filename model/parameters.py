"""The arrays that a model declares: random, from a checkpoint or abstract, each on its devices.

`model.declarations` says what there must be; a layout's placement says how each is divided.
"""

import collections
import functools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from model.declarations import Initializer, Matrix, Path, declarations, matrices
from sharding.error_types import FloorlineError
from sharding.huge_pages import Convert, convert, convert_to_stay
from sharding.placement import Placement
from sharding.quantization import QuantizedArray, Weight, quantize, spec_of, stored_bytes

Parameters = dict[str | int, Any]
"""Nested plain dict of arrays, as `nnx.to_pure_dict` gives it: the form every jitted step takes."""


class Readable(Protocol):
    """A NumPy array, or anything that can be indexed like one."""

    shape: tuple[int, ...]

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray: ...


def shardings(
    model: nnx.Module, placement: Placement, mesh: jax.sharding.Mesh
) -> dict[Path, jax.NamedSharding]:
    """How this layout divides each parameter."""
    return {
        path: jax.NamedSharding(mesh, placement.weights(param.axes))
        for path, param in declarations(model).items()
    }


def abstract(model: nnx.Module, placement: Placement, mesh: jax.sharding.Mesh) -> Parameters:
    """Shapes, dtypes and shardings of all parameters: enough to compile a step, and no memory."""
    sharding = shardings(model, placement, mesh)
    return unflatten_dict(
        {
            path: jax.ShapeDtypeStruct(param.shape, param.dtype, sharding=sharding[path])
            for path, param in declarations(model).items()
        }
    )


def initialise(
    model: nnx.Module, placement: Placement, mesh: jax.sharding.Mesh, seed: int
) -> Parameters:
    """Random parameters, each shard made on its own device.

    The values depend on `seed` and the parameter's path alone, not on mesh or layout.
    """
    base, quantized = jax.random.key(seed), matrices(model)
    flat: dict[Path, jax.Array] = {}
    with jax.set_mesh(mesh):
        for path, param in _in_plain_checkpoint(model).items():
            key = jax.random.fold_in(base, zlib.crc32("/".join(map(str, path)).encode()))
            dtype = jnp.float32 if path in quantized else param.dtype
            spec = placement.weights(param.axes)
            array = _random(key, param.init, param.shape, dtype, spec)
            flat |= _in_stored_form(path, array, quantized.get(path))
    return unflatten_dict(flat)


def _in_plain_checkpoint(model: nnx.Module) -> dict[Path, "nnx.Param | Matrix"]:
    """What a checkpoint in plain arrays has: every parameter, each matrix in few bits as one."""
    quantized = matrices(model)
    plain = {p: param for p, param in declarations(model).items() if p[:-1] not in quantized}
    return plain | quantized


def _in_stored_form(path: Path, array: Weight, matrix: Matrix | None) -> dict[Path, jax.Array]:
    """The parameters that an array is kept as; one in few bits already stays as it is.

    Raises:
      FloorlineError: it is to be kept in few bits, and has values that are not finite.
    """
    if matrix is None:
        return {path: array}
    quantized, finite = array, True
    if isinstance(array, jax.Array):
        quantized, finite = _quantize(array, matrix.outputs, matrix.dtypes.quantization)
    if not finite:
        raise FloorlineError(
            f"parameter {'.'.join(map(str, path))} is not finite everywhere, which "
            f"{matrix.dtypes.quantization.name} has no code for; mend the checkpoint, or leave out "
            "--weight_dtype"
        )
    parts = {"values": quantized.values, "scales": quantized.scales, "offsets": quantized.offsets}
    return {(*path, name): part for name, part in parts.items() if part is not None}


def convert_parameters(
    model: nnx.Module, parameters: Parameters, mesh: jax.sharding.Mesh
) -> Parameters:
    """Brings plain parameters to the form that `model` declares, one after the other.

    The plain matrices are given up as it goes, so that few are held twice.

    Raises:
      FloorlineError: values that are not finite.
    """
    flat, quantized, plain = flatten_dict(parameters), matrices(model), declarations(model)
    parameters.clear()
    stored: dict[Path, jax.Array] = {}
    with jax.set_mesh(mesh):
        for path in list(flat):
            array = flat.pop(path)
            if path not in quantized:
                array = array.astype(plain[path].dtype)
            stored |= _in_stored_form(path, array, quantized.get(path))
    return unflatten_dict(stored)


_quantize = jax.jit(quantize, static_argnums=(1, 2))


# Compiled once per kind of array, not per layer.
@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _random(key: jax.Array, init: Initializer, shape: tuple, dtype: jnp.dtype, spec: jax.P):
    return init(key, shape, dtype, out_sharding=spec)


def place_parameters(
    model: nnx.Module,
    arrays: Iterable[tuple[Path, Readable | QuantizedArray]],
    placement: Placement,
    mesh: jax.sharding.Mesh,
    watch: Callable[[int], None] | None = None,
) -> Parameters:
    """Puts arrays on the mesh, a few at a time, in their declared dtype.

    Each device's shard is read on its own, so an array that reads its file where it is indexed is
    never whole in memory.

    Args:
      model: declares what there must be.
      arrays: (path, values) of every parameter, in any order; values have a shape and give the
        part that a slice for each dimension asks for. Or they are in few bits, in the form that
        `model` declares.
      placement: the layout to put them in.
      mesh: the devices.
      watch: called with the number of bytes of each array that is in its place.

    Raises:
      ValueError: a path or shape that `model` does not declare, or one it declares is absent.
    """
    declared, quantized = _in_plain_checkpoint(model), matrices(model)
    stay = convert_to_stay(mesh)
    placed: dict[Path, jax.Array] = {}

    def read(path: Path, values: Readable | QuantizedArray) -> Weight:
        spec = placement.weights(declared[path].axes)
        if isinstance(values, QuantizedArray):
            return jax.tree.map(
                lambda part: _put(part, part.dtype, mesh, spec_of(part, values, spec), stay), values
            )
        if path in quantized:
            return _put(values, jnp.float32, mesh, spec, convert)
        to_stay = stay if placement.copies(spec) == 1 else convert
        return _put(values, declared[path].dtype, mesh, spec, to_stay)

    def put_on_devices(path: Path, array: Weight) -> None:
        with jax.set_mesh(mesh):
            parts = _in_stored_form(path, array, quantized.get(path))
        for name, part in parts.items():
            placed[name] = copy_per_device(part, placement)
            if watch:
                watch(round(stored_bytes(part)))

    _read_ahead(_checked(arrays, declared), read, put_on_devices)
    return unflatten_dict(placed)


def _checked(
    arrays: Iterable[tuple[Path, Readable | QuantizedArray]],
    declared: Mapping[Path, "nnx.Param | Matrix"],
) -> Iterator[tuple[Path, Readable | QuantizedArray]]:
    """The same arrays, each known to be declared.

    Raises:
      ValueError: a path or shape that is not declared, or at the end one that is and was not there.
    """
    missing = set(declared)
    for path, values in arrays:
        if path not in declared or declared[path].shape != values.shape:
            raise ValueError(f"parameter {path} of shape {values.shape} is not in the model")
        missing.discard(path)
        yield path, values
    if missing:
        raise ValueError(f"parameters {sorted(map(str, missing))} are not in the checkpoint")


def _read_ahead(
    arrays: Iterable[tuple[Path, Readable | QuantizedArray]],
    read: Callable[[Path, Readable | QuantizedArray], Weight],
    consume: Callable[[Path, Weight], None],
) -> None:
    """Reads arrays in threads, a few at a time, and hands them on one by one in their order."""
    pending: collections.deque[tuple[Path, Future]] = collections.deque()

    def consume_oldest() -> None:
        path, future = pending.popleft()
        consume(path, future.result())

    with ThreadPoolExecutor(_READERS) as pool:
        for path, values in arrays:
            pending.append((path, pool.submit(read, path, values)))
            if len(pending) == _READERS:
                consume_oldest()
        while pending:
            consume_oldest()


_READERS = 4  # arrays under way at a time; each of them may be in memory twice
_copied = jax.jit(jnp.copy)


def copy_per_device(array: jax.Array, placement: Placement) -> jax.Array:
    """The array with memory of its own for each device's copy.

    Fake CPU devices may share the host's one copy of an array that is whole on each; then a step
    would read less than the floor counts.
    """
    return _copied(array) if placement.copies(array.sharding.spec) > 1 else array


def _put(
    values: Readable,
    dtype: jnp.dtype,
    mesh: jax.sharding.Mesh,
    spec: jax.P,
    convert: Convert,
) -> jax.Array:
    """An array on the mesh, each device's shard read on its own."""

    def shard(index: tuple[slice, ...]) -> np.ndarray:
        return convert(values[index], dtype)

    return jax.make_array_from_callback(values.shape, jax.NamedSharding(mesh, spec), shard)
