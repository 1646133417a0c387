"""Which mesh axes a collective spans, from the device groups in its HLO attributes.

A program numbers devices by their position in the mesh, flattened with the last axis fastest; the
devices' own ids play no part. Source of the syntax: XLA's `replica_group.cc`, `mesh_and_axis.cc`.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from profiles.hlo.program import HloError, Instruction, Program

Groups = list[tuple[int, ...]]

_INTEGERS = re.compile(r"\d+")
_EXPLICIT = re.compile(r"replica_groups=(\{(?:\s*\{[\d,\s]*\},?)*\s*\})")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:,\s*device_ids=\((\[[\d,]+\](?:T\([\d,]+\))?|[\d,]*)\))?"
    r"\s*\{([^}]*)\}"
)
_AXIS = re.compile(r"'?([\w.]+)'?(?::\((\d+)\)(\d+))?")


def axes_of(groups: Iterable[Sequence[int]], mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of each group lie, in the mesh's order.

    Args:
      groups: devices, numbered by their position in the flattened mesh; every device in one group.
      mesh_shape: mesh axis -> devices.

    Raises:
      HloError: the groups are not those of any set of mesh axes.
    """
    groups = [tuple(group) for group in groups]
    axes = _spanned(((group[0], other) for group in groups for other in group), mesh_shape)
    sizes = list(mesh_shape.values())
    positions = np.arange(math.prod(sizes)).reshape(sizes)
    inside = [n for n, axis in enumerate(mesh_shape) if axis in axes]
    group_size = math.prod(sizes[n] for n in inside)
    last = range(len(sizes) - len(inside), len(sizes))
    expected = np.moveaxis(positions, inside, list(last)).reshape(-1, group_size)
    if sorted(map(sorted, groups)) != sorted(map(sorted, expected.tolist())):
        shape = " ".join(f"{axis}={size}" for axis, size in mesh_shape.items())
        shown = str(groups if len(groups) < 5 else [*groups[:4], "..."])
        raise HloError(
            f"device groups are {shown}, which follow no axes of mesh {shape}; "
            "use the mesh that the program was compiled for"
        )
    return axes


def axes_of_pairs(
    pairs: Iterable[tuple[int, int]], mesh_shape: Mapping[str, int]
) -> tuple[str, ...]:
    """The mesh axes in which any source differs from its target; none if nothing moves."""
    return _spanned(pairs, mesh_shape)


def _spanned(pairs: Iterable[tuple[int, int]], mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    sizes = tuple(mesh_shape.values())
    try:
        positions = np.array(list(pairs), dtype=int).reshape(-1, 2)
        differ = np.not_equal(*(np.array(np.unravel_index(side, sizes)) for side in positions.T))
    except ValueError as error:
        devices = math.prod(sizes)
        raise HloError(
            f"device {positions.max()} is in a program for a mesh of {devices}; "
            "use the mesh that the program was compiled for"
        ) from error
    return tuple(axis for axis, moved in zip(mesh_shape, differ.any(axis=1), strict=True) if moved)


def groups_of(one: Instruction, kind: str, program: Program) -> Groups:
    """The groups of a collective as positions in the flattened mesh.

    Which ids the text holds depends on the kind, the channel and ``use_global_device_ids``; see
    https://openxla.org/xla/operation_semantics#allreduce.

    Raises:
      HloError: a form of groups that is not understood.
    """
    replicas, partitions = range(program.replicas), range(program.partitions)
    between_replicas = kind in ("all-gather", "all-reduce", "reduce-scatter")
    global_ids = "use_global_device_ids=true" in one.attributes

    def position(replica: int, partition: int) -> int:
        return replica * program.partitions + partition

    if between_replicas and global_ids:
        return parse_groups(one.attributes, len(replicas) * len(partitions))
    if one.channel is None:
        found = parse_groups(one.attributes, len(replicas))
        return [tuple(position(r, p) for r in group) for group in found for p in partitions]
    if between_replicas:
        found = parse_groups(one.attributes, len(replicas))
        return [tuple(position(*pair) for pair in itertools.product(g, partitions)) for g in found]
    found = parse_groups(one.attributes, len(partitions))
    return [tuple(position(r, p) for p in group) for group in found for r in replicas]


def pairs_of(one: Instruction, program: Program) -> list[tuple[int, int]]:
    """Sources and targets of a permute as positions in the flattened mesh.

    Raises:
      HloError: there are none.
    """
    found = re.search(r"source_target_pairs=\{((?:\{\d+,\s*\d+\},?\s*)*)\}", one.attributes)
    if not found:
        raise HloError(f"{one.name} is a permute without source_target_pairs; pass the text whole")
    ids = [tuple(map(int, _INTEGERS.findall(p))) for p in re.findall(r"\{[^}]*\}", found[1])]
    if one.channel is None:
        step = program.partitions
        return [(s * step + p, t * step + p) for s, t in ids for p in range(step)]
    starts = range(0, program.replicas * program.partitions, program.partitions)
    return [(first + source, first + target) for source, target in ids for first in starts]


def parse_groups(attributes: str, ids: int) -> Groups:
    """The ids in ``replica_groups``, in any of its forms.

    ``{{0,1},{2,3}}``; ``{}`` for all in one group; ``[2,4]<=[8]``, rows of an iota of that shape;
    ``[4,2]<=[2,2,2]T(2,1,0)``, of one transposed; ``mesh['a'=2,'b'=4] {'a'}``, along axes of a
    mesh of the compiler's own, its ids an iota unless ``device_ids`` says otherwise.

    Args:
      attributes: the instruction's attributes.
      ids: how many there are, for ``{}`` and for no attribute at all.

    Raises:
      HloError: another form.
    """
    if "replica_groups=" not in attributes:
        return [tuple(range(ids))]
    if found := _EXPLICIT.search(attributes):
        rows = re.findall(r"\{([\d,\s]*)\}", found[1][1:-1])
        return [tuple(map(int, _INTEGERS.findall(row))) for row in rows] or [tuple(range(ids))]
    if found := _IOTA.search(attributes):
        return _rows(_iota(found[2]).reshape(_integers(found[1])))
    if found := _MESH.search(attributes):
        return _along(*found.groups())
    form = attributes.split("replica_groups=")[1][:60]
    raise HloError(f"replica_groups is {form!r}; its form must be added to profiles.hlo.groups")


def _along(axes: str, ids: str | None, grouped: str) -> Groups:
    sizes = {name: int(size) for name, size in re.findall(r"'?([\w.]+)'?=(\d+)", axes)}
    if ids is None or "[" in ids:
        flat = _iota(ids or f"[{math.prod(sizes.values())}]").ravel()
    else:
        flat = np.array(_integers(ids))
    dims, inside = [], []
    grouped_axes = _AXIS.findall(grouped)
    for name, size in sizes.items():
        # A part of an axis, 'a':(p)s, is the middle of p * s * rest.
        parts = sorted((int(p or 1), int(s or size)) for axis, p, s in grouped_axes if axis == name)
        before = 1
        for outer, part in parts:
            dims += [outer // before, part]
            inside.append(len(dims) - 1)
            before = outer * part
        dims.append(size // before)
    outside = [n for n in range(len(dims)) if n not in inside]
    table = flat.reshape(dims).transpose(*outside, *inside)
    return _rows(table.reshape(-1, math.prod(dims[n] for n in inside)))


def _iota(text: str) -> np.ndarray:
    """``[4,2]T(1,0)``: 0, 1, 2 ... in that shape, then transposed."""
    dims, _, order = text.partition("T")
    array = np.arange(math.prod(_integers(dims))).reshape(_integers(dims))
    return array.transpose(_integers(order)) if order else array


def _integers(text: str) -> list[int]:
    return [int(number) for number in _INTEGERS.findall(text)]


def _rows(array: np.ndarray) -> Groups:
    return [tuple(row) for row in array.tolist()]
