"""One declaration per array: shape, dtype, initialiser and logical axes, stated where it is made.

A module calls `declare` in its constructor, so a model is abstract from the start. From that
one statement come the array's sharding (`shardings`), its random start (`initialise`), its place
in a checkpoint (`place`) and the bytes it costs a step (`profiles.traffic`).
"""

import collections
import functools
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sharding.placement import Placement

Initializer = jax.nn.initializers.Initializer
Path = tuple[str | int, ...]
Parameters = dict[str | int, Any]
"""Nested plain dict of arrays, as `nnx.to_pure_dict` gives it: the form every jitted step takes."""


class Readable(Protocol):
    """A NumPy array, or anything that can be indexed like one."""

    shape: tuple[int, ...]

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray: ...


normal = functools.cache(jax.nn.initializers.normal)
"""Initialiser of normal values with this standard deviation; the same one for the same value."""


def declare(
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    dtype: jnp.dtype,
    init: Initializer,
) -> nnx.Param:
    """A parameter that holds no memory yet.

    Args:
      shape: the whole array's shape.
      axes: one letter of `sharding.axes.LOGICAL_AXES` per dimension.
      dtype: stored type.
      init: makes random values, as ``init(key, shape, dtype, out_sharding=...)``.
    """
    if len(shape) != len(axes):
        raise ValueError(f"shape {shape} and axes {axes} differ in length")
    return nnx.Param(jax.ShapeDtypeStruct(shape, dtype), axes=axes, init=init)


def declarations(model: nnx.Module) -> dict[Path, nnx.Param]:
    """Every parameter of `model` by its path, in the order of the tree."""
    return dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))


def count(model: nnx.Module) -> int:
    """Number of parameters."""
    return sum(math.prod(param.shape) for param in declarations(model).values())


def total_bytes(model: nnx.Module) -> int:
    """Bytes of all parameters, each held once."""
    return sum(
        math.prod(param.shape) * np.dtype(param.dtype).itemsize
        for param in declarations(model).values()
    )


def count_active(model: nnx.Module) -> int:
    """Number of parameters that one token meets: of experts, those it is sent to."""
    config = model.config
    total = 0
    for param in declarations(model).values():
        size = math.prod(param.shape)
        total += size * config.experts_per_token // config.experts if of_experts(param) else size
    return total


def of_experts(param: nnx.Param) -> bool:
    """Whether this is a stack of experts' matrices, of which a token meets some."""
    return "E" in param.axes


def shardings(
    model: nnx.Module, placement: Placement, mesh: jax.sharding.Mesh
) -> dict[Path, jax.NamedSharding]:
    """Where each parameter lives under this layout."""
    return {
        path: jax.NamedSharding(mesh, placement.weights(*param.axes))
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
    base = jax.random.key(seed)
    with jax.set_mesh(mesh):
        return nest(
            {
                path: _random(
                    jax.random.fold_in(base, zlib.crc32("/".join(map(str, path)).encode())),
                    param.init,
                    param.shape,
                    param.dtype,
                    placement.weights(*param.axes),
                )
                for path, param in declarations(model).items()
            }
        )


# Compiled once per kind of array, not per layer.
@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _random(key: jax.Array, init: Initializer, shape: tuple, dtype: jnp.dtype, spec: jax.P):
    return init(key, shape, dtype, out_sharding=spec)


def place(
    model: nnx.Module,
    arrays: Iterable[tuple[Path, Readable]],
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
        part that a slice for each dimension asks for.
      placement: the layout to put them in.
      mesh: the devices.
      watch: told of every so many bytes that are in their place.

    Raises:
      ValueError: a path or shape that `model` does not declare, or one it declares is absent.
    """
    declared, where = declarations(model), shardings(model, placement, mesh)

    def read(path: Path, values: Readable) -> jax.Array:
        part = functools.partial(_part, values, declared[path].dtype)
        return jax.make_array_from_callback(values.shape, where[path], part)

    placed: dict[Path, jax.Array] = {}
    reading: collections.deque[tuple[Path, Future]] = collections.deque()

    def finish() -> None:
        path, future = reading.popleft()
        placed[path] = unshare(future.result(), placement)
        if watch:
            watch(placed[path].nbytes)

    with ThreadPoolExecutor(_READERS) as pool:
        for path, values in arrays:
            if path not in declared or declared[path].shape != values.shape:
                raise ValueError(f"parameter {path} of shape {values.shape} is not in the model")
            reading.append((path, pool.submit(read, path, values)))
            if len(reading) == _READERS:
                finish()
        while reading:
            finish()
    if missing := declared.keys() - placed.keys():
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
