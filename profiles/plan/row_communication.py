"""Expected times of the collectives of all rows of a plan on a slice, found together.

The same as `profiles.expected.time.LinkTimes` finds for one layout on one mesh, in the same order
of sums, so that a plan compares what estimates say.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from model.config import ModelConfig
from model.dispatch import expert_axes
from model.dtypes import Dtypes
from profiles.chips.calibration import Calibration
from profiles.chips.slices import Slice
from profiles.expected.links import EXPECTED_EMBEDDINGS, MeshEmbedding, axis_extents, dimensions
from profiles.expected.time import CollectiveLine, CollectiveLists, CommunicationTime, LinkTimes
from profiles.floor.collective import KINDS
from profiles.plan.rows import Group, Rows
from sharding.axes import MESH_AXES
from sharding.placement import Placement

_PERMUTE = KINDS.index("permute")
_Meshes = tuple[tuple[tuple[int, ...], ...], np.ndarray]
"""Meshes, each by the sizes of its axes, and the number of each row's among them."""


class Collectives(NamedTuple):
    """Collectives of many rows, those of a row together and in its pass's order.

    Attributes:
      row: number of the row.
      kind: place in `KINDS`.
      axes: mesh axes, a bit for each.
      count: times per pass.
      typical: bytes of a payload that the embedding of a mesh is chosen for.
      steady: bytes of each payload that every batch has.
      growing: bytes that each sequence adds.
    """

    row: np.ndarray
    kind: np.ndarray
    axes: np.ndarray
    count: np.ndarray
    typical: np.ndarray
    steady: np.ndarray
    growing: np.ndarray

    def of(self, rows: range) -> "Collectives":
        """Those of some rows, numbered from the first of them."""
        start, stop = np.searchsorted(self.row, (rows.start, rows.stop))
        found = Collectives(*(field[start:stop] for field in self))
        return found._replace(row=found.row - rows.start)


class RowTimes(NamedTuple):
    """Times of the collectives of rows on a slice, in seconds.

    Attributes:
      fixed: times of every batch.
      growing: times that each sequence adds; both have an array entry for each row.
      not_linear: rows whose collectives differ between batches by more than payloads.
      tokens: tokens of each sequence of the pass.
    """

    fixed: CommunicationTime
    growing: CommunicationTime
    not_linear: dict[int, LinkTimes]
    tokens: int

    def at(self, batches: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Latency, transfer and overlapped (see `CommunicationTime`), [rows, batches].

        Args:
          batches: padded batches of each row.
        """
        found = np.array(
            [
                line[0][:, None] + batches * line[1][:, None]
                for line in zip(self.fixed[1:], self.growing[1:], strict=True)
            ]
        )
        for row, links in self.not_linear.items():
            each = [links.expected(int(batch), self.tokens)[1:] for batch in batches[row]]
            found[:, row] = np.array(each).T
        return tuple(found)

    def beside(
        self, prompts: "RowTimes", batches: np.ndarray, joining: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same of decode steps that chunks of prompts ride along with; see `LinkTimes.beside`.

        Args:
          prompts: times of the collectives of their passes.
          batches: padded batches of each row.
          joining: prompts that join in a step, on average, [rows, batches].
        """
        lines = zip(
            self.fixed[1:], prompts.fixed[1:], self.growing[1:], prompts.growing[1:], strict=True
        )
        found = np.array(
            [
                np.maximum(fixed, started)[:, None]
                + batches * growing[:, None]
                + joining * each[:, None]
                for fixed, started, growing, each in lines
            ]
        )
        for row, links in (self.not_linear | prompts.not_linear).items():
            pairs = zip(batches[row].tolist(), joining[row].tolist(), strict=True)
            each = [links.expected_beside(*pair, prompts.tokens)[1:] for pair in pairs]
            found[:, row] = np.array(each).T
        return tuple(found)


class RowCommunication:
    """Collectives of all rows, listed once for every slice.

    Args:
      rows: all of them.
      tokens: tokens of each sequence of a pass: 1 in a decode step.
    """

    def __init__(self, rows: Rows, tokens: int):
        self.rows, self.tokens = rows, tokens
        self._listed = functools.cache(self._list)
        self._on = functools.cache(self._find)
        self._listings: dict[tuple[Group, Dtypes], CollectiveLists] = {}
        self._not_linear: dict[Dtypes, dict[int, CollectiveLists]] = {}

    def on(self, slice: Slice, dtypes: Dtypes, calibration: Calibration) -> RowTimes:
        """Times on one slice of the rows with as many devices."""
        moved = dataclasses.replace(dtypes, cache=None)  # which none moves
        return self._on(slice, moved, calibration)

    def _find(self, slice: Slice, dtypes: Dtypes, calibration: Calibration) -> RowTimes:
        numbers = self.rows.of(slice.devices)
        collectives = self._listed(dtypes).of(numbers)
        fixed, growing = _times(collectives, self._meshes(slice.devices), slice, calibration)
        not_linear = {
            number - numbers.start: LinkTimes(listed, slice, calibration)
            for number, listed in self._not_linear[dtypes].items()
            if number in numbers
        }
        return RowTimes(fixed, growing, not_linear, self.tokens)

    @functools.cache  # noqa: B019
    def _meshes(self, devices: int) -> _Meshes:
        every = [tuple(self.rows.rows[n].mesh.values()) for n in self.rows.of(devices)]
        place = {mesh: number for number, mesh in enumerate(dict.fromkeys(every))}
        return tuple(place), np.array([place[mesh] for mesh in every], int)

    def _list(self, dtypes: Dtypes) -> Collectives:
        not_linear = self._not_linear[dtypes] = {}
        parts = []
        for group in self.rows.collective_groups.values():
            listed = self._listing(group, dtypes)
            if line := listed.line(self.tokens):
                parts.append(_columns(group, line))
            else:
                (number,) = group.numbers.tolist()
                placement = self.rows.placement(number)
                not_linear[number] = CollectiveLists(self.rows.model, placement, listed.dtypes)
        columns = [np.concatenate(arrays) for arrays in zip(_NONE, *parts, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        return Collectives(*(column[order] for column in columns))

    def _listing(self, group: Group, dtypes: Dtypes) -> CollectiveLists:
        """Collectives of a group's passes; few bits mostly move what plain weights do."""
        placement = group.placement if self.tokens == 1 else group.placement.prefill
        if dtypes.quantization and not _depends_on_weights(self.rows.model, placement):
            dtypes = dataclasses.replace(dtypes, weights=None)
        if (group, dtypes) not in self._listings:
            listed = CollectiveLists(self.rows.model, group.placement, dtypes)
            self._listings[group, dtypes] = listed
        return self._listings[group, dtypes]


_NONE = Collectives(*(np.empty(0, int) for _ in range(3)), *(np.empty(0) for _ in range(4)))


def _depends_on_weights(model: ModelConfig, placement: Placement) -> bool:
    """Whether what moves depends on how weights are stored.

    It does where they move themselves, in loops, which cut no group of a few bits, and where
    experts sum over chips: plain ones in one collective, others in many.
    """
    layout = placement.layout
    summed = bool(model.experts) and bool(expert_axes(placement).inputs)
    return layout.use is not None or layout.collectives == "overlapped" or summed


def _columns(group: Group, line: CollectiveLine) -> Collectives:
    """A group's collectives, one after another, each with an entry for each row."""
    rows, found = len(group.numbers), np.empty((4, len(line.listed), len(group.numbers)))
    fields = [one.count for one in line.listed], line.typical, line.steady, line.growing
    for place, numbers in enumerate(fields):
        for entry, each in enumerate(numbers):
            found[place, entry] = each
    axes = [group.own_axes(one.axes) for one in line.listed]
    return Collectives(
        np.tile(group.numbers, len(line.listed)),
        np.repeat(np.array([KINDS.index(one.kind) for one in line.listed], int), rows),
        np.array(axes, int).ravel(),
        *found.reshape(4, -1),
    )


def _times(
    collectives: Collectives, meshes: _Meshes, slice: Slice, calibration: Calibration
) -> tuple[CommunicationTime, CommunicationTime]:
    """Times of every batch and of each sequence, each row in its fastest embedding."""
    shapes, shape = meshes
    embeddings, start, per_byte = _costs(shapes, slice, calibration)
    count = embeddings.count[shape]  # number of embeddings, by row
    first = np.cumsum(count) - count  # index of each row's first among those of all rows
    row, kind, axes, times, typical, *payloads = collectives

    # Every collective in every embedding of its row.
    every = np.repeat(np.arange(row.size), count[row])
    way = np.arange(every.size) - np.repeat(np.cumsum(count[row]) - count[row], count[row])
    into = first[row[every]] + way
    index = kind[every], embeddings.first[shape[row[every]]] + way, axes[every]

    def add(numbers: np.ndarray) -> np.ndarray:
        return np.bincount(into, numbers, minlength=count.sum())

    times_every = times[every]
    latency = add(times_every * start[index])
    seconds = latency + add(times_every * per_byte[index] * typical[every]) / calibration.link
    of_row = np.repeat(np.arange(shape.size), count)
    best = np.lexsort((seconds, of_row))[first]

    into, index = row, (kind, (embeddings.first[shape] + best - first)[row], axes)
    times = times * per_byte[index]
    found = []
    for payload, started in zip(payloads, (latency[best], np.zeros(shape.size)), strict=True):
        transfer = times * payload
        sums = (np.bincount(row, part, minlength=shape.size)
                for part in (transfer, np.where(kind == _PERMUTE, transfer, 0.0)))  # fmt: skip
        found.append(CommunicationTime(0.0, started, *sums))
    return tuple(found)


class _Embeddings(NamedTuple):
    """Embeddings of meshes in the dimensions of a slice, those of a mesh together.

    Attributes:
      count: number of embeddings, by mesh.
      first: number of the first embedding of each mesh.
      extents: all extents of groups that differ, [extents, dimensions].
      place: row of `extents`, by embedding and mesh axes of a group, [embeddings, 8].
    """

    count: np.ndarray
    first: np.ndarray
    extents: np.ndarray
    place: np.ndarray


@functools.lru_cache(maxsize=256)
def _costs(
    shapes: tuple[tuple[int, ...], ...], slice: Slice, calibration: Calibration
) -> tuple[_Embeddings, np.ndarray, np.ndarray]:
    """Embeddings, and seconds to start a collective, and per byte, by kind, embedding and axes."""
    joined = dimensions(dataclasses.replace(slice, chip=slice.chip.recommended), for_floor=False)
    embeddings = _embeddings(shapes, tuple(dimension.size for dimension in joined))
    embedding = MeshEmbedding(joined, {}, slice.chip.hop_latency or 0.0)
    found = np.array(
        [
            embedding.expected_cost_over(kind, tuple(extents), calibration)
            for kind in KINDS
            for extents in embeddings.extents.tolist()
        ]
    ).reshape(len(KINDS), -1, 2)
    return embeddings, found[:, embeddings.place, 0], found[:, embeddings.place, 1]


@functools.lru_cache(maxsize=256)
def _embeddings(shapes: tuple[tuple[int, ...], ...], lengths: tuple[int, ...]) -> _Embeddings:
    """The embeddings of these meshes that an expected time looks at."""
    by_mesh = [axis_extents(shape, lengths)[:EXPECTED_EMBEDDINGS] for shape in shapes]
    count = np.array([len(embeddings) for embeddings in by_mesh], int)
    # [embeddings, axes, dimensions]
    spans = np.array([spans for embeddings in by_mesh for spans in embeddings], int)
    spans = spans.reshape(-1, len(MESH_AXES), len(lengths))
    extents = np.stack(
        [
            np.prod([spans[:, place] for place in range(len(MESH_AXES)) if axes >> place & 1]
                    or [np.ones_like(spans[:, 0])], axis=0)
            for axes in range(1 << len(MESH_AXES))
        ], axis=1,
    )  # fmt: skip
    flat = extents.reshape(-1, len(lengths))
    found, place = np.unique(flat, axis=0, return_inverse=True)
    return _Embeddings(count, np.cumsum(count) - count, found, place.reshape(extents.shape[:2]))
