"""The arrays that a model declares: random, from a checkpoint or abstract, each on its devices.

`model.declarations` says what there must be; a layout's placement says how each is divided.
"""

import collections
import functools
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.declarations import Initializer, Matrix, Path, declarations, matrices
from sharding.error_types import FloorlineError
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
    """Where each parameter lives under this layout."""
    return {
        path: jax.NamedSharding(mesh, placement.weights(param.axes))
        for path, param in declarations(model).items()
    }


def abstract(model: nnx.Module, placement: Placement, mesh: jax.sharding.Mesh) -> Parameters:
    """Shapes, dtypes and shardings of all parameters: enough to compile a step, and no memory."""
    where = shardings(model, placement, mesh)
    return nest(
        {
            path: jax.ShapeDtypeStruct(param.shape, param.dtype, sharding=where[path])
            for path, param in declarations(model).items()
        }
    )


def initialise(
    model: nnx.Module, placement: Placement, mesh: jax.sharding.Mesh, seed: int
) -> Parameters:
    """Random parameters, each shard made on its own device.

    The values depend on `seed` and the parameter's path alone, not on mesh or layout.
    """
    base, whole = jax.random.key(seed), matrices(model)
    flat: dict[Path, jax.Array] = {}
    with jax.set_mesh(mesh):
        for path, param in _stated(model).items():
            key = jax.random.fold_in(base, zlib.crc32("/".join(map(str, path)).encode()))
            dtype = jnp.float32 if path in whole else param.dtype
            spec = placement.weights(param.axes)
            array = _random(key, param.init, param.shape, dtype, spec)
            flat |= _stored(path, array, whole.get(path))
    return nest(flat)


def _stated(model: nnx.Module) -> dict[Path, "nnx.Param | Matrix"]:
    """What a checkpoint in plain arrays has: every parameter, matrices in few bits as one."""
    whole = matrices(model)
    plain = {p: param for p, param in declarations(model).items() if p[:-1] not in whole}
    return plain | whole


def _stored(path: Path, array: Weight, matrix: Matrix | None) -> dict[Path, jax.Array]:
    """The parameters that an array is kept as; one in few bits already stays as it is.

    Raises:
      FloorlineError: it is to be kept in few bits, and has values that are not finite.
    """
    if matrix is None:
        return {path: array}
    scaled, finite = array, True
    if isinstance(array, jax.Array):
        scaled, finite = _quantize(array, matrix.outputs, matrix.dtypes.quantization)
    if not finite:
        raise FloorlineError(
            f"parameter {'.'.join(map(str, path))} is not finite everywhere, which "
            f"{matrix.dtypes.quantization.name} has no code for; mend the checkpoint, or leave out "
            "--weight_dtype"
        )
    parts = {"values": scaled.values, "scales": scaled.scales, "offsets": scaled.offsets}
    return {(*path, name): part for name, part in parts.items() if part is not None}


def store(model: nnx.Module, parameters: Parameters, mesh: jax.sharding.Mesh) -> Parameters:
    """Brings plain parameters to the form that `model` declares, one after the other.

    The plain matrices are given up as it goes, so that few are held twice.

    Raises:
      FloorlineError: values that are not finite.
    """
    flat, whole, plain = flatten(parameters), matrices(model), declarations(model)
    parameters.clear()
    stored: dict[Path, jax.Array] = {}
    with jax.set_mesh(mesh):
        for path in list(flat):
            array = flat.pop(path)
            if path not in whole:
                array = array.astype(plain[path].dtype)
            stored |= _stored(path, array, whole.get(path))
    return nest(stored)


_quantize = jax.jit(quantize, static_argnums=(1, 2))


# Compiled once per kind of array, not per layer.
@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _random(key: jax.Array, init: Initializer, shape: tuple, dtype: jnp.dtype, spec: jax.P):
    return init(key, shape, dtype, out_sharding=spec)


def place(
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
      watch: told of every so many bytes that are in their place.

    Raises:
      ValueError: a path or shape that `model` does not declare, or one it declares is absent.
    """
    stated, whole = _stated(model), matrices(model)

    def put(values: Readable, dtype: jnp.dtype, spec: jax.P) -> jax.Array:
        part = functools.partial(_part, values, dtype)
        return jax.make_array_from_callback(values.shape, jax.NamedSharding(mesh, spec), part)

    def read(path: Path, values: Readable | QuantizedArray) -> Weight:
        spec = placement.weights(stated[path].axes)
        if isinstance(values, QuantizedArray):
            return jax.tree.map(lambda p: put(p, p.dtype, spec_of(p, values, spec)), values)
        return put(values, jnp.float32 if path in whole else stated[path].dtype, spec)

    placed: dict[Path, jax.Array] = {}
    seen: set[Path] = set()
    reading: collections.deque[tuple[Path, Future]] = collections.deque()

    def finish() -> None:
        path, future = reading.popleft()
        with jax.set_mesh(mesh):
            parts = _stored(path, future.result(), whole.get(path))
        for name, part in parts.items():
            placed[name] = unshare(part, placement)
            if watch:
                watch(round(stored_bytes(part)))

    with ThreadPoolExecutor(_READERS) as pool:
        for path, values in arrays:
            if path not in stated or stated[path].shape != values.shape:
                raise ValueError(f"parameter {path} of shape {values.shape} is not in the model")
            seen.add(path)
            reading.append((path, pool.submit(read, path, values)))
            if len(reading) == _READERS:
                finish()
        while reading:
            finish()
    if missing := stated.keys() - seen:
        raise ValueError(f"parameters {sorted(map(str, missing))} are not in the checkpoint")
    return nest(placed)


_READERS = 4  # arrays under way at a time; each of them may be in memory twice
_copied = jax.jit(jnp.copy)


def unshare(array: jax.Array, placement: Placement) -> jax.Array:
    """The array with memory of its own for each device's copy.

    Fake CPU devices may share the host's one copy of an array that is whole on each; then a step
    would read less than the floor counts.
    """
    return _copied(array) if placement.copies(array.sharding.spec) > 1 else array


def _part(values: Readable, dtype: jnp.dtype, index: tuple[slice, ...]) -> np.ndarray:
    return np.asarray(values[index]).astype(dtype)


def flatten(parameters: Parameters) -> dict[Path, jax.Array]:
    """Every array by its path; `nest` undoes it."""
    flat: dict[Path, jax.Array] = {}
    for key, value in parameters.items():
        below = flatten(value) if isinstance(value, dict) else {(): value}
        flat |= {(key, *path): array for path, array in below.items()}
    return flat


def nest(flat: Mapping[Path, Any]) -> Parameters:
    """A flat mapping by path as the nested dict that steps take."""
    tree: Parameters = {}
    for path, value in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return tree
