"""Measures peak rates of a mesh, in the same run as the steps that are compared with them.

Where there is no published peak (a CPU mesh, whose devices share one memory), the floor divides by
the best rate that any of several kernels reached at any time in the run.
"""

import dataclasses
import functools
import math
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sharding.axes import MESH_AXES
from sharding.huge_pages import Convert, convert, convert_to_stay

READ_BYTES = 1 << 28  # 256 MiB over a CPU mesh: more than most last-level caches
READ_BYTES_PER_CHIP = 1 << 30  # on each device of other meshes
LAUNCHES = 16  # reads per sample there: launching and awaiting one can take as long as the read
MATMUL_SIZE = 1024
CPU_CACHES = Path("/sys/devices/system/cpu")
CPU_NAMES = Path("/proc/cpuinfo")
WIDTH = 4096  # numbers of a row of the array that is read
ALL_AXES = tuple(MESH_AXES)

READS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "sum": jax.jit(lambda big, _: jnp.sum(big, axis=1)),
    "max": jax.jit(lambda big, _: jnp.max(big, axis=1)),
    "matrix_vector": jax.jit(lambda big, vector: big @ vector),
}
"""Kernels that read an array [rows.xyz, width], given a vector [width] beside it."""


@jax.jit
def _matmul(left: jax.Array, right: jax.Array) -> jax.Array:
    return left @ right


@dataclasses.dataclass
class PeakMeter:
    """Measures the rates of several kernels repeatedly, and keeps every sample.

    Attributes:
      mesh: the devices, which are measured together.
      dtype: dtype of the matrix multiplication.
      read_rates: by kernel, bytes per second of all devices together, a sample per run.
      flop_rates: FLOP/s of all devices together, a sample per run.
    """

    mesh: jax.sharding.Mesh
    dtype: jnp.dtype = jnp.float32
    read_rates: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    flop_rates: list[float] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        size = READ_BYTES if on_cpu else READ_BYTES_PER_CHIP * self.mesh.size
        self._launches = 1 if on_cpu else LAUNCHES
        self._big, self._vector = read_operands(self.mesh, size)
        square = (MATMUL_SIZE * self.mesh.size, MATMUL_SIZE)
        self._left = filled(self.mesh, square, jax.P(ALL_AXES, None), self.dtype)
        right = (MATMUL_SIZE, MATMUL_SIZE)
        self._right = filled(self.mesh, right, jax.P(None, None), self.dtype)

    def sample(self, repeats: int = 3) -> None:
        """Runs every kernel `repeats` times more."""
        flops = 2 * math.prod(self._left.shape) * MATMUL_SIZE
        with jax.set_mesh(self.mesh):
            for name, kernel in READS.items():
                rates = self.read_rates.setdefault(name, [])
                read = functools.partial(kernel, self._big, self._vector)
                rates += self._rates(read, self._big.nbytes, repeats)
            matmul = functools.partial(_matmul, self._left, self._right)
            self.flop_rates += self._rates(matmul, flops, repeats)

    def rates(self) -> dict[str, list[float]]:
        """All samples so far, by kernel: bytes per second, and FLOP/s for ``matmul``."""
        return {**self.read_rates, "matmul": self.flop_rates}

    def _rates(self, run: Callable[[], jax.Array], amount: float, repeats: int) -> list[float]:
        """Bytes or FLOPs per second of each repeat, if a run has `amount` of them."""
        run().block_until_ready()  # compiles the first time, warms up otherwise
        return [amount / seconds_of(run, self._launches) for _ in range(repeats)]


def seconds_of(run: Callable[[], jax.Array], launches: int) -> float:
    """Seconds of each of so many launches, the last of which is awaited."""
    start = time.perf_counter()
    for _ in range(launches):
        last = run()
    last.block_until_ready()
    return (time.perf_counter() - start) / launches


def read_operands(mesh: jax.sharding.Mesh, size: int) -> tuple[jax.Array, jax.Array]:
    """What `READS` take: an array of about `size` bytes over all devices, and a vector.

    On a CPU the array is in huge pages, as weights are: small ones are read a fifth slower.
    """
    rows = max(size // 4 // WIDTH // mesh.size, 1) * mesh.size
    big = filled(mesh, (rows, WIDTH), jax.P(ALL_AXES, None), stay=convert_to_stay(mesh))
    return big, filled(mesh, (WIDTH,), jax.P(None))


def filled(
    mesh: jax.sharding.Mesh,
    shape: tuple[int, ...],
    spec: jax.P,
    dtype: jnp.dtype = jnp.float32,
    stay: Convert = convert,
) -> jax.Array:
    """An array of numbers near a half, none of them zero.

    The system can map all untouched pages of zeros to one page of memory.

    Args:
      mesh: the devices.
      shape: sizes of the dimensions.
      spec: how the mesh divides them.
      dtype: type of the numbers.
      stay: what `convert_to_stay` gives, for the memory that weights have.
    """
    dtype = jnp.dtype(dtype)
    if stay is convert:
        with jax.set_mesh(mesh):
            return _ramp(shape, spec, dtype)
    values = np.broadcast_to(np.arange(shape[-1], dtype=np.float32) * 1e-6 + 0.5, shape)
    sharding = jax.NamedSharding(mesh, spec)
    return jax.make_array_from_callback(shape, sharding, lambda index: stay(values[index], dtype))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _ramp(shape: tuple[int, ...], spec: jax.P, dtype: jnp.dtype) -> jax.Array:
    index = jax.lax.broadcasted_iota(jnp.float32, shape, len(shape) - 1, out_sharding=spec)
    return (index * 1e-6 + 0.5).astype(dtype)


def cpu_cache() -> float:
    """Bytes of all last-level caches of the CPU; 32 MiB where the system does not tell."""
    return _cache_bytes(3) or 32 << 20


def cache_beside_rates() -> float:
    """Bytes of the largest caches of the CPU that are faster than the measured rate of its memory.

    Last-level caches that hold the arrays that are read have their own rate measured in place of
    the memory's. Nothing is read faster but from the level before them.
    """
    last = cpu_cache()
    return (_cache_bytes(2) or last) if last >= READ_BYTES else last


def _cache_bytes(level: int) -> float:
    """Bytes of all caches of a level; 0 where the system does not tell."""
    domains = {}
    try:
        for cache in CPU_CACHES.glob(f"cpu[0-9]*/cache/index{level}"):
            cores = (cache / "shared_cpu_list").read_text()
            domains[cores] = int((cache / "size").read_text().strip().removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 0
    return sum(domains.values())


def processor() -> str:
    """The kind of this machine's processor, as far as the system tells, and its cores."""
    try:
        names = re.findall(r"^model name\s*: (.+)$", CPU_NAMES.read_text(), re.MULTILINE)
    except OSError:
        names = []
    return f"{next(iter(names), platform.machine())}, {os.cpu_count()} cores"


def device_name(kind: str) -> str:
    """JAX's name of a kind of device; of CPUs, which it calls all alike, with the processor's."""
    return f"{kind}, {processor()}" if kind == "cpu" else kind
