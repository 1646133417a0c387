"""The kernels of a microbenchmark: reads, collectives and calls, each with its amount.

Each is one compiled program on all devices of a mesh, ready to be timed again and again. Amounts
are counted from shapes: bytes that all devices read together, and the payload of a collective per
device, as `profiles.floor.collective` counts it.
"""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from profiles.measured.bandwidth import ALL_AXES, READS, filled, read_operands, seconds_of
from profiles.report.document import summarise
from sharding import processes

SAMPLE_S = 0.01  # at least so long is a sample, by more launches of a short kernel
MOST_LAUNCHES = 64
REPEATED_BYTES, FEWEST, MOST = 1 << 22, 4, 64  # see `repeats_of`
CALLS = 20  # calls of which a sample of dispatch is the median


@dataclasses.dataclass
class Kernel:
    """One kernel at one size.

    Attributes:
      mesh: the devices, which all take part.
      fields: what it is, as the document has it.
      program: the jitted function.
      operands: its arguments.
      amount: bytes of one run.
      repeats: runs in one launch of the program.
      awaited: each launch is awaited before the next. XLA:CPU stops for want of threads where many
        launches of collectives wait in a queue.
      launches: launches of a sample.
      samples: seconds of a run each.
    """

    mesh: jax.sharding.Mesh
    fields: dict[str, object]
    program: Callable[..., jax.Array]
    operands: tuple[Any, ...]
    amount: float
    repeats: int = 1
    awaited: bool = False
    launches: int = 1
    samples: list[float] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        return " ".join(str(value) for value in self.fields.values())

    @property
    def seconds(self) -> float:
        """The median of all samples."""
        return float(np.median(self.samples))

    def prepare(self) -> None:
        """Compiles and warms up, and sets the launches of a sample, alike in all processes."""
        self._seconds()
        self._seconds()
        wanted = math.ceil(SAMPLE_S / self._seconds())
        self.launches = processes.from_first_process(lambda: min(wanted, MOST_LAUNCHES))

    def sample(self) -> None:
        """Times the kernel once more."""
        self.samples.append(self._seconds() / self.repeats)

    def as_record(self, rate: str) -> dict[str, object]:
        """Its fields, its rate under this name, and its seconds with the samples."""
        times = summarise(self.samples)
        return {**self.fields, rate: self.amount / times["median"], "seconds": times}

    def _seconds(self) -> float:
        run = functools.partial(self.program, *self.operands)
        with jax.set_mesh(self.mesh):
            if self.awaited:
                return sum(seconds_of(run, 1) for _ in range(self.launches)) / self.launches
            return seconds_of(run, self.launches)


def read_kernels(mesh: jax.sharding.Mesh, sizes: Sequence[int]) -> Iterator[Kernel]:
    """Reads of arrays of about so many bytes over all devices, by every kernel of `READS`."""
    for size in sizes:
        operands = read_operands(mesh, size)  # [rows.xyz, width] and [width]
        for name, program in READS.items():
            fields = {"kernel": name, "bytes": operands[0].nbytes}
            yield Kernel(mesh, fields, program, operands, operands[0].nbytes)


def _pass_on(part: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Every device's part to the next one of its group."""
    devices = jax.lax.axis_size(axes)
    return jax.lax.ppermute(part, axes, [(i, (i + 1) % devices) for i in range(devices)])


COLLECTIVES: dict[str, Callable[[jax.Array, tuple[str, ...]], jax.Array]] = {
    "all-gather": lambda part, axes: jax.lax.all_gather(part, axes, tiled=True),
    "reduce-scatter": lambda part, axes: jax.lax.psum_scatter(part, axes, tiled=True),
    "all-reduce": lambda part, axes: jax.lax.psum(part, axes),
    "all-to-all": lambda part, axes: jax.lax.all_to_all(part, axes, 0, 0, tiled=True),
    "permute": _pass_on,
}
"""Of each kind, what a device does with its part [n] and those of its group."""


def groups(mesh: jax.sharding.Mesh) -> list[tuple[str, ...]]:
    """The mesh axes that a collective can span: each alone, and all sets of several."""
    axes = [axis for axis, size in mesh.shape.items() if size > 1]
    sets = (itertools.combinations(axes, count) for count in range(1, len(axes) + 1))
    return list(itertools.chain.from_iterable(sets))


def collective_kernels(
    mesh: jax.sharding.Mesh,
    payloads: Sequence[int],
    spanned: Sequence[tuple[str, ...]] | None = None,
) -> Iterator[Kernel]:
    """Every kind of collective over sets of mesh axes, at about so many bytes per device.

    Args:
      mesh: the devices.
      payloads: bytes.
      spanned: sets of mesh axes; all that there are, if None.
    """
    spanned = groups(mesh) if spanned is None else spanned
    for axes, (kind, collective) in itertools.product(spanned, COLLECTIVES.items()):
        devices = math.prod(mesh.shape[axis] for axis in axes)
        for payload in payloads:
            repeats = repeats_of(payload)
            program = _repeated(functools.partial(collective, axes=axes), repeats)
            share = max(payload // 4 // devices, 1)  # numbers that go to or come from each device
            numbers = share if kind == "all-gather" else share * devices
            parts = filled(mesh, (numbers * mesh.size,), jax.P(ALL_AXES))
            size = 4 * share * devices
            fields = {"kind": kind, "axes": list(axes), "devices": devices, "payload_bytes": size}
            yield Kernel(mesh, fields, program, (parts,), size, repeats, awaited=True)


def repeats_of(payload: int) -> int:
    """Times that one program repeats a collective of so many bytes, beside a single launch."""
    return min(max(REPEATED_BYTES // payload, FEWEST), MOST)


def _repeated(
    collective: Callable[[jax.Array], jax.Array], repeats: int
) -> Callable[[jax.Array], jax.Array]:
    """A program that runs a collective so many times, each after the one before it."""

    def once(_: int, part: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(part, collective(part)[:1], (0,))  # written in place

    def local(part: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, repeats, once, part)

    specs = {"in_specs": jax.P(ALL_AXES), "out_specs": jax.P(ALL_AXES), "check_vma": False}
    return jax.jit(lambda parts: jax.shard_map(local, **specs)(parts))


@dataclasses.dataclass
class Calls:
    """Calls of a program that hardly computes, each of which waits for the one before it.

    Attributes:
      mesh: the devices.
      arguments: arrays that the program is given.
      returned: seconds until the call returned, a median of `CALLS` each.
      awaited: seconds until its result was there, likewise.
    """

    mesh: jax.sharding.Mesh
    arguments: int
    returned: list[float] = dataclasses.field(default_factory=list)
    awaited: list[float] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        array = filled(self.mesh, (self.mesh.size,), jax.P(ALL_AXES))
        self._arrays = [array] * self.arguments
        self._program = jax.jit(lambda arrays: arrays[0] + 1, keep_unused=True)

    def __str__(self) -> str:
        return f"calls of {self.arguments}"

    def prepare(self) -> None:
        """Compiles and warms up."""
        self._times()

    def sample(self) -> None:
        """Times `CALLS` calls more."""
        returned, awaited = np.median(self._times(), axis=0)
        self.returned.append(float(returned))
        self.awaited.append(float(awaited))

    def as_record(self) -> dict[str, object]:
        """Both times with their samples."""
        times = {"returned": summarise(self.returned), "awaited": summarise(self.awaited)}
        return {"devices": self.mesh.size, "arguments": self.arguments, **times}

    def _times(self) -> list[tuple[float, float]]:
        times = []
        with jax.set_mesh(self.mesh):
            for _ in range(CALLS):
                start = time.perf_counter()
                result = self._program(self._arrays)
                returned = time.perf_counter() - start
                result.block_until_ready()
                times.append((returned, time.perf_counter() - start))
        return times
