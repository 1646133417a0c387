"""Device meshes with axes x, y and z.

`jax.make_mesh` gives *explicit* axes: the sharding of every array is part of its type, and a
collective happens only where the code changes a sharding.
"""

import collections
import itertools
import math
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from sharding import processes
from sharding.axes import MESH_AXES
from sharding.devices import devices
from sharding.error_types import LayoutError, UsageError

MAX_CPU_DEVICES = 512
"""Fake ones of a process: each takes threads, and with some thousands JAX ends in native code."""

MeshShape = Mapping[str, int]


def parse_mesh(text: str) -> dict[str, int]:
    """Reads ``"2x2x2"`` as sizes of x, y, z; ``"8"`` and ``"2x4"`` leave the first axes at 1.

    Raises:
      UsageError: `text` is not one to three positive integers joined by ``x``.
    """
    if not re.fullmatch(r"[1-9]\d{0,8}(x[1-9]\d{0,8}){0,2}", text):
        raise UsageError(f"mesh is {text!r}; write sizes of x, y and z such as 2x2x2, 2x4 or 8")
    sizes = [int(part) for part in text.split("x")]
    sizes = [1] * (len(MESH_AXES) - len(sizes)) + sizes
    return dict(zip(MESH_AXES, sizes, strict=True))


def request_cpu_devices(count: int) -> None:
    """Asks JAX for `count` fake CPU devices; without effect on other platforms.

    Must run before JAX starts its backends. The fake devices share the machine's cores and its
    one memory. Of many processes each makes its share. More than `MAX_CPU_DEVICES` are not asked
    for, so that `make_mesh` refuses the mesh.

    Raises:
      LayoutError: the processes do not divide them.
    """
    count = _share(count)
    # 0.10 to 0.12 refuse the setting beside XLA_FLAGS' older one only where they disagree.
    if jax.config.jax_num_cpu_devices < count <= MAX_CPU_DEVICES:
        jax.config.update("jax_num_cpu_devices", count)


def make_mesh(shape: MeshShape) -> jax.sharding.Mesh:
    """A mesh over the first devices that JAX has, as many of each process.

    Args:
      shape: sizes of x, y and z.

    Raises:
      LayoutError: the mesh needs more devices than there are, or not as many of each process.
    """
    needed, available = math.prod(shape.values()), devices()
    share, counters = _share(needed), collections.defaultdict(itertools.count)
    if needed > len(available):
        sizes = "x".join(str(shape[axis]) for axis in MESH_AXES)
        fake = available[0].platform == "cpu" and share > MAX_CPU_DEVICES
        largest = MAX_CPU_DEVICES * processes.count() if fake else len(available)
        raise LayoutError(
            f"mesh is {sizes}, which needs {needed} devices, but JAX has {len(available)} "
            f"({available[0].device_kind}); use a mesh of at most {largest}"
        )
    return mesh_over(
        shape, [device for device in available if next(counters[device.process_index]) < share]
    )


def mesh_over(shape: MeshShape, devices: Sequence[jax.Device]) -> jax.sharding.Mesh:
    """A mesh over these devices, which need not be there, in the order that suits their wiring.

    Args:
      shape: sizes of x, y and z.
      devices: as many as the mesh has.
    """
    sizes = tuple(shape[axis] for axis in MESH_AXES)
    explicit = (jax.sharding.AxisType.Explicit,) * len(MESH_AXES)
    try:
        return jax.make_mesh(sizes, tuple(MESH_AXES), axis_types=explicit, devices=devices)
    except (NotImplementedError, AssertionError):  # a shape that the chips' wiring does not have
        array = np.array(devices).reshape(sizes)
        return jax.sharding.Mesh(array, tuple(MESH_AXES), axis_types=explicit)


def _share(devices: int) -> int:
    """How many of these devices each process has; one without any would have no part in a step."""
    share, remainder = divmod(devices, processes.count())
    if remainder:
        raise LayoutError(
            f"number of devices is {devices}, which {processes.count()} processes do not divide; "
            f"use a multiple of {processes.count()}"
        )
    return share
