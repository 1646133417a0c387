"""The time a step is expected to take, and the time of its collectives.

An expected time has the floor's terms at achieved rates, and a fixed time for each collective, hop,
layer and sequence. Reading memory and arithmetic overlap, unless the software's kernels take turns
at them (`Calibration.adds`). While links are busy, one of two rules says what goes on: nothing, or,
where the software fetches what comes next meanwhile (`Calibration.hidden`), reading memory. Loops
written by hand (``--collectives=overlapped``) hide their bytes behind products, not their starts.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

from model.config import ModelConfig
from model.dtypes import Dtypes
from profiles.chips.calibration import Calibration
from profiles.chips.chip import Chip
from profiles.chips.slices import Slice
from profiles.expected.links import MeshEmbedding, embeddings, floor_bounds, mesh_items
from profiles.floor.collective import Collective
from profiles.floor.communication import expected_collectives
from profiles.floor.passes import Counts
from sharding.placement import Placement

TYPICAL = 64  # sequences: what an embedding of a mesh is chosen for


@dataclasses.dataclass(frozen=True)
class Expected:
    """An expected time in seconds, by term, at achieved rates.

    Attributes:
      memory: reading and writing it; what is gathered is written and read once more.
      compute: arithmetic.
      communication: collectives that products do not hide.
      overlapped: collectives that they do.
      overhead: fixed times of the layers, of the sequences and of the step.
      hidden: communication runs while the memory is read.
      adds: memory and arithmetic take turns.
      hops: from stage to stage of a pipeline, which nothing of the same batch runs beside.
    """

    memory: float
    compute: float
    communication: float
    overlapped: float
    overhead: float
    hidden: bool
    adds: bool = False
    hops: float = 0.0

    @property
    def seconds(self) -> float:
        """The time itself."""
        compute = max(self.compute, self.overlapped)
        beside, after = compute, self.communication
        if self.hidden:
            beside, after = compute + self.communication, 0.0
        busy = self.memory + beside if self.adds else max(self.memory, beside)
        return busy + after + self.overhead + self.hops

    def terms(self) -> dict[str, float]:
        """Terms by name, those that are not zero."""
        names = "memory", "compute", "communication", "overlapped", "overhead", "hops"
        return {name: getattr(self, name) for name in names if getattr(self, name)}


class CommunicationTime(NamedTuple):
    """Time of the collectives of a pass, in seconds.

    Attributes:
      floor: their floor: peak rates, and perfect overlap among them.
      latency: expected time of their fixed parts and hops.
      transfer: time of their bytes at recommended rates.
      overlapped: the part of `transfer` that loops written by hand hide behind products.
    """

    floor: float
    latency: float
    transfer: float
    overlapped: float


def expect(
    traffic: Counts,
    communication: CommunicationTime,
    chip: Chip,
    flops: float,
    layers: int,
    calibration: Calibration,
    hops: float = 0.0,
) -> Expected:
    """The expected time of a step.

    Args:
      traffic: its work per device.
      communication: time of its collectives.
      chip: the chip at its recommended figures.
      flops: recommended FLOP/s of a chip, in the arithmetic of the step.
      layers: number of layers of the model.
      calibration: what is achieved.
      hops: seconds from stage to stage of a pipeline.
    """
    parts = chip.devices_per_chip
    moved = traffic.memory + 2 * traffic.weights_gathered
    return Expected(
        memory=moved / (chip.bandwidth / parts * calibration.memory),
        compute=calibration.compute_s(
            traffic.flops, traffic.attention, traffic.rows, flops / parts, traffic.expert_flops
        ),
        communication=communication.latency
        + (communication.transfer - communication.overlapped) / calibration.link,
        overlapped=communication.overlapped / calibration.link,
        overhead=calibration.step_s
        + layers * calibration.layer_s
        + traffic.sequences * calibration.sequence_s,
        hidden=calibration.hidden,
        adds=calibration.adds,
        hops=hops,
    )


NO_COMMUNICATION = CommunicationTime(0.0, 0.0, 0.0, 0.0)


class CollectiveLists:
    """Collectives of passes in one layout, listed once for many batches and slices.

    Payloads are of weights or proportional to the batch, so one list of collectives tells of all.
    Loops may halve what they pass or not, so of those two are listed: where they differ in more
    than payloads, each batch gets a list of its own.

    Args:
      config: the model.
      placement: the layout on a mesh.
      dtypes: how its numbers are stored.
    """

    def __init__(self, config: ModelConfig, placement: Placement, dtypes: Dtypes):
        self.config, self.placement, self.dtypes = config, placement, dtypes
        self.line = functools.cache(self._find_line)

    def collectives(self, batch: int, tokens: int, continues: bool = False) -> list[Collective]:
        """Those of a pass over a batch that the layout divides."""
        placement = self.placement if tokens == 1 else self.placement.prefill
        passed = {"batch": batch, "tokens": tokens, "continues": continues}
        return expected_collectives(self.config, placement, self.dtypes, **passed)

    def _find_line(self, tokens: int, continues: bool = False) -> "CollectiveLine | None":
        """What every batch sends and what each sequence adds; None if that is not linear."""
        one = self.placement.multiple("B")
        first = self.collectives(one, tokens, continues)
        if self.placement.layout.collectives != "overlapped":
            paid = [each.payload_bytes for each in first]
            steady = [size * each.of_weights for size, each in zip(paid, first, strict=True)]
            growing = [(size - kept) / one for size, kept in zip(paid, steady, strict=True)]
            return CollectiveLine(first, steady, growing)
        second = self.collectives(2 * one, tokens, continues)
        if len(first) != len(second) or not all(map(_alike, first, second)):
            return None
        paid = [
            (each.payload_bytes, two.payload_bytes) for each, two in zip(first, second, strict=True)
        ]
        slopes = [(two - one_) / one for one_, two in paid]
        steady = [one_ - slope * one for (one_, _), slope in zip(paid, slopes, strict=True)]
        return CollectiveLine(first, steady, slopes)


class CollectiveLine(NamedTuple):
    """Collectives, and the bytes of their payloads that every batch and each sequence have."""

    listed: list[Collective]
    steady: list[float]
    growing: list[float]

    @property
    def typical(self) -> list[float]:
        """Payloads of the batch that an embedding is chosen for."""
        return [
            each.payload_bytes + slope * TYPICAL
            for each, slope in zip(self.listed, self.growing, strict=True)
        ]


class LinkTimes:
    """Times of listed collectives on the links of one slice.

    Args:
      listed: collectives of a model in a layout.
      slice: the slice.
      calibration: gives the fixed time of a collective.

    Raises:
      LayoutError: mesh and slice do not have as many devices.
    """

    def __init__(self, listed: CollectiveLists, slice: Slice, calibration: Calibration):
        self.listed, self.placement, self.calibration = listed, listed.placement, calibration
        mesh = mesh_items(self.placement.mesh)
        self._floor = embeddings(slice, mesh, for_floor=True)
        recommended = dataclasses.replace(slice, chip=slice.chip.recommended)
        self._expected = embeddings(recommended, mesh, for_floor=False)
        self.expected_line = functools.cache(self._find_expected_line)
        self._bounds_lines = functools.cache(self._find_bounds_lines)

    def communication(
        self, batch: int, tokens: int = 1, continues: bool = False
    ) -> CommunicationTime:
        """Time of a pass's collectives; a batch that the layout does not divide is padded.

        Args:
          batch: number of sequences.
          tokens: new tokens of each sequence; 1 in a decode step.
          continues: whether prompts have tokens in the cache already.
        """
        expected = self.expected(batch, tokens, continues)
        return expected._replace(floor=self._find_floor(self._padded(batch), tokens, continues))

    def expected(self, batch: int, tokens: int = 1, continues: bool = False) -> CommunicationTime:
        """The same without the floor, which takes as long to find as all the rest; it is 0."""
        batch = self._padded(batch)
        line = self.expected_line(tokens, continues)
        if line is None:
            each = self.listed.collectives(batch, tokens, continues)
            paid = [one.payload_bytes for one in each]
            return self._sum(each, paid, self._best_embedding(each, paid))
        fixed, growing = line
        return CommunicationTime(
            floor=0.0,
            latency=fixed.latency,
            transfer=fixed.transfer + batch * growing.transfer,
            overlapped=fixed.overlapped + batch * growing.overlapped,
        )

    def beside(self, batch: int, prompts: float, tokens: int) -> CommunicationTime:
        """Time of the collectives of a decode step that prompts' chunks ride along with.

        Each collective carries both, so what does not depend on their numbers is paid once.

        Args:
          batch: sequences that the step advances.
          prompts: prompts that join in a step, on average.
          tokens: tokens of each prompt.
        """
        expected = self.expected_beside(batch, prompts, tokens)
        batch = self._padded(batch)
        return expected._replace(floor=self._find_floor_beside(batch, prompts, tokens))

    def expected_beside(self, batch: int, prompts: float, tokens: int) -> CommunicationTime:
        """The same without the floor; it is 0."""
        batch = self._padded(batch)
        (fixed, growing), (started, joining) = self._split(1), self._split(tokens)
        transfer, overlapped = (
            max(getattr(fixed, part), getattr(started, part))
            + batch * getattr(growing, part)
            + prompts * getattr(joining, part)
            for part in ("transfer", "overlapped")
        )
        return CommunicationTime(0.0, max(fixed.latency, started.latency), transfer, overlapped)

    def _split(self, tokens: int) -> tuple[CommunicationTime, CommunicationTime]:
        """`expected_line`, or where times are not linear that through the two smallest batches."""
        if line := self.expected_line(tokens):
            return line
        one = self.placement.multiple("B")
        first, second = (self.expected(count * one, tokens) for count in (1, 2))
        growing = [(more - few) / one for few, more in zip(first, second, strict=True)]
        fixed = [few - one * each for few, each in zip(first, growing, strict=True)]
        return CommunicationTime(*fixed), CommunicationTime(*growing)

    def _find_floor_beside(self, batch: int, prompts: float, tokens: int) -> float:
        """The floor in the best of all embeddings; of prompts only what grows with their number."""
        if self.placement.devices == 1:
            return 0.0
        steps, joining = self._bounds_lines(1, False), self._bounds_lines(tokens, False)
        if steps is None or joining is None:
            one = self.placement.multiple("B")
            first, second = (self._find_floor(n * one, tokens, False) for n in (1, 2))
            alone = self._find_floor(batch, 1, False)
            return max(alone, prompts * (second - first) / one)
        return min(
            max(
                fixed.get(key, 0.0) + batch * growing.get(key, 0.0) + prompts * each.get(key, 0.0)
                for key in {**fixed, **growing, **each, None: 0.0}
            )
            for (fixed, growing), (_, each) in zip(steps, joining, strict=True)
        )

    def _padded(self, batch: int) -> int:
        step = self.placement.multiple("B")
        return -(-batch // step) * step

    def _find_floor(self, batch: int, tokens: int, continues: bool) -> float:
        """The floor in the best of all embeddings of the mesh in the slice for this very pass."""
        if self.placement.devices == 1:
            return 0.0
        lines = self._bounds_lines(tokens, continues)
        if lines is None:
            listed = self.listed.collectives(batch, tokens, continues)
            bounds = (floor_bounds(listed, embedding).values() for embedding in self._floor)
        else:
            bounds = (
                [fixed.get(key, 0.0) + batch * each for key, each in growing.items()]
                + list(fixed.values())
                for fixed, growing in lines
            )
        return min(max(each, default=0.0) for each in bounds)

    def _find_expected_line(
        self, tokens: int, continues: bool = False
    ) -> tuple[CommunicationTime, CommunicationTime] | None:
        """Times of every batch, and what each sequence adds; None if they are not linear."""
        if self.placement.devices == 1:
            return NO_COMMUNICATION, NO_COMMUNICATION
        line = self.listed.line(tokens, continues)
        if line is None:
            return None
        embedding = self._best_embedding(line.listed, line.typical)
        return tuple(
            self._sum(line.listed, paid, embedding) for paid in (line.steady, line.growing)
        )

    def _find_bounds_lines(self, tokens: int, continues: bool) -> list[tuple[dict, dict]] | None:
        """Bounds likewise, in each embedding of the mesh."""
        line = self.listed.line(tokens, continues)
        if line is None:
            return None
        fixed, growing = (
            [_paying(each, size) for each, size in zip(line.listed, paid, strict=True) if size]
            for paid in (line.steady, line.growing)
        )
        return [
            (floor_bounds(fixed, embedding), floor_bounds(growing, embedding))
            for embedding in self._floor
        ]

    def _best_embedding(self, listed: Sequence[Collective], paid: Sequence[float]) -> MeshEmbedding:
        """The embedding in which collectives with these payloads are expected to be fastest."""
        if len(self._expected) == 1:
            return self._expected[0]

        def seconds(embedding: MeshEmbedding) -> float:
            sums = self._sum(listed, paid, embedding)
            return sums.latency + sums.transfer / self.calibration.link

        return min(self._expected, key=seconds)

    def _sum(
        self, listed: Sequence[Collective], paid: Sequence[float], embedding: MeshEmbedding
    ) -> CommunicationTime:
        """Times of collectives with these payloads in one embedding."""
        latency = transfer = overlapped = 0.0
        for each, payload in zip(listed, paid, strict=True):
            start, per_byte = embedding.expected_cost(each.kind, each.axes, self.calibration)
            latency += each.count * start
            seconds = each.count * per_byte * payload
            transfer += seconds
            overlapped += seconds if each.kind == "permute" else 0.0
        return CommunicationTime(0.0, latency, transfer, overlapped)


def _alike(one: Collective, other: Collective) -> bool:
    """Whether they differ in payload at most."""
    mine, others = ((c.kind, c.axes, c.count, c.where) for c in (one, other))
    return mine == others


def _paying(collective: Collective, payload: float) -> Collective:
    """The collective with another payload; of a line, a fraction of a byte is one."""
    return dataclasses.replace(collective, payload_bytes=payload)
