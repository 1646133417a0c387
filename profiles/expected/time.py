"""The time a step is expected to take, and what its collectives cost at least.

An expected time has the floor's terms at achieved rates, and a fixed time for each collective, hop
and layer. While links are busy, one of two rules says what goes on: nothing, or, where the software
fetches what comes next meanwhile (`Calibration.hidden`), reading memory. Loops written by hand
(``--collectives=overlapped``) hide their bytes behind products, not their starts.
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
from profiles.expected.links import Wires, layings, least_bounds, mesh_items
from profiles.floor.collective import Collective
from profiles.floor.communication import expected_collectives
from profiles.floor.passes import Counts
from sharding.placement import Placement

TYPICAL = 64  # sequences: what a mesh is laid on a slice for


@dataclasses.dataclass(frozen=True)
class Expected:
    """An expected time in seconds, by term, at achieved rates.

    Attributes:
      memory: reading and writing it; what is gathered is written and read once more.
      compute: arithmetic.
      communication: collectives that products do not hide.
      overlapped: collectives that they do.
      overhead: of layers and of the step.
      hidden: communication runs while the memory is read.
    """

    memory: float
    compute: float
    communication: float
    overlapped: float
    overhead: float
    hidden: bool

    @property
    def seconds(self) -> float:
        """The time itself."""
        compute = max(self.compute, self.overlapped)
        if self.hidden:
            return max(self.memory, compute + self.communication) + self.overhead
        return max(self.memory, compute) + self.communication + self.overhead


class Sent(NamedTuple):
    """What the collectives of a step cost, in seconds.

    Attributes:
      least: at the highest rates, with perfect overlap among them.
      starts: fixed parts and hops, as expected.
      sending: bytes at recommended rates.
      looped: of those, the bytes that loops written by hand hide behind products.
    """

    least: float
    starts: float
    sending: float
    looped: float


def expect(
    traffic: Counts, sent: Sent, chip: Chip, flops: float, layers: int, calibration: Calibration
) -> Expected:
    """The expected time of a step.

    Args:
      traffic: its work per device.
      sent: its collectives.
      chip: by its recommended figures.
      flops: recommended FLOP/s of a chip, in the arithmetic of the step.
      layers: of the model.
      calibration: what is achieved.
    """
    parts = chip.devices_per_chip
    moved = traffic.memory + 2 * traffic.weights_gathered
    return Expected(
        memory=moved / (chip.bandwidth / parts * calibration.memory),
        compute=traffic.flops / (flops / parts * calibration.compute),
        communication=sent.starts + (sent.sending - sent.looped) / calibration.link,
        overlapped=sent.looped / calibration.link,
        overhead=calibration.step_s + layers * calibration.layer_s,
        hidden=calibration.hidden,
    )


_NOTHING = Sent(0.0, 0.0, 0.0, 0.0)


class Listed:
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

    def at(self, batch: int, tokens: int) -> list[Collective]:
        """Those of a pass over a batch that the layout divides."""
        placement = self.placement if tokens == 1 else self.placement.prefill
        return expected_collectives(self.config, placement, self.dtypes, batch=batch, tokens=tokens)

    def _find_line(self, tokens: int) -> "CollectiveLine | None":
        """What every batch sends and what each sequence adds; None if that is not linear."""
        one = self.placement.multiple("B")
        first = self.at(one, tokens)
        if self.placement.layout.collectives != "overlapped":
            paid = [each.payload_bytes for each in first]
            steady = [size * each.of_weights for size, each in zip(paid, first, strict=True)]
            growing = [(size - kept) / one for size, kept in zip(paid, steady, strict=True)]
            return CollectiveLine(first, steady, growing)
        second = self.at(2 * one, tokens)
        if len(first) != len(second) or not all(map(_alike, first, second)):
            return None
        paid = [
            (each.payload_bytes, two.payload_bytes) for each, two in zip(first, second, strict=True)
        ]
        slopes = [(two - one_) / one for one_, two in paid]
        starts = [one_ - slope * one for (one_, _), slope in zip(paid, slopes, strict=True)]
        return CollectiveLine(first, starts, slopes)


class CollectiveLine(NamedTuple):
    """Collectives, and the bytes of their payloads that every batch and each sequence have."""

    listed: list[Collective]
    steady: list[float]
    growing: list[float]

    @property
    def typical(self) -> list[float]:
        """Payloads of a batch to lay a mesh for."""
        return [
            each.payload_bytes + slope * TYPICAL
            for each, slope in zip(self.listed, self.growing, strict=True)
        ]


class LinkCosts:
    """What listed collectives cost on one slice.

    Args:
      listed: of a model in a layout.
      slice: the slice.
      calibration: for the starts of collectives.

    Raises:
      LayoutError: mesh and slice do not have as many devices.
    """

    def __init__(self, listed: Listed, slice: Slice, calibration: Calibration):
        self.listed, self.placement, self.calibration = listed, listed.placement, calibration
        mesh = mesh_items(self.placement.mesh)
        self._least = layings(slice, mesh, least=True)
        self._usual = layings(dataclasses.replace(slice, chip=slice.chip.expected), mesh, False)
        self.usual_line = functools.cache(self._find_usual_line)
        self._bounds_lines = functools.cache(self._find_bounds_lines)

    def sent(self, batch: int, tokens: int = 1) -> Sent:
        """Costs of a pass; a batch that the layout does not divide is padded.

        Args:
          batch: sequences.
          tokens: of each; 1 in a decode step.
        """
        usual = self.usual(batch, tokens)
        return usual._replace(least=self._find_least(self._padded(batch), tokens))

    def usual(self, batch: int, tokens: int = 1) -> Sent:
        """The same but for `Sent.least`, which takes as long to find as all the rest; it is 0."""
        batch = self._padded(batch)
        line = self.usual_line(tokens)
        if line is None:
            each = self.listed.at(batch, tokens)
            paid = [one.payload_bytes for one in each]
            return self._sum(each, paid, self._lay(each, paid))
        fixed, growing = line
        return Sent(
            least=0.0,
            starts=fixed.starts,
            sending=fixed.sending + batch * growing.sending,
            looped=fixed.looped + batch * growing.looped,
        )

    def _padded(self, batch: int) -> int:
        step = self.placement.multiple("B")
        return -(-batch // step) * step

    def _find_least(self, batch: int, tokens: int) -> float:
        """The least of all ways to lay the mesh on the slice: one may, for this very pass."""
        if self.placement.devices == 1:
            return 0.0
        lines = self._bounds_lines(tokens)
        if lines is None:
            listed = self.listed.at(batch, tokens)
            ways = (least_bounds(listed, wires).values() for wires in self._least)
        else:
            ways = (
                [fixed.get(key, 0.0) + batch * each for key, each in growing.items()]
                + list(fixed.values())
                for fixed, growing in lines
            )
        return min(max(bounds, default=0.0) for bounds in ways)

    def _find_usual_line(self, tokens: int) -> tuple[Sent, Sent] | None:
        """Costs of every batch, and what each sequence adds; None if they are not linear."""
        if self.placement.devices == 1:
            return _NOTHING, _NOTHING
        line = self.listed.line(tokens)
        if line is None:
            return None
        wires = self._lay(line.listed, line.typical)
        return tuple(self._sum(line.listed, paid, wires) for paid in (line.steady, line.growing))

    def _find_bounds_lines(self, tokens: int) -> list[tuple[dict, dict]] | None:
        """Bounds likewise, in each way to lay the mesh."""
        line = self.listed.line(tokens)
        if line is None:
            return None
        fixed, growing = (
            [_paying(each, size) for each, size in zip(line.listed, paid, strict=True) if size]
            for paid in (line.steady, line.growing)
        )
        return [(least_bounds(fixed, wires), least_bounds(growing, wires)) for wires in self._least]

    def _lay(self, listed: Sequence[Collective], paid: Sequence[float]) -> Wires:
        """The mesh laid on the slice as suits these collectives with these payloads best."""
        if len(self._usual) == 1:
            return self._usual[0]

        def seconds(wires: Wires) -> float:
            sums = self._sum(listed, paid, wires)
            return sums.starts + sums.sending / self.calibration.link

        return min(self._usual, key=seconds)

    def _sum(self, listed: Sequence[Collective], paid: Sequence[float], wires: Wires) -> Sent:
        """Costs of collectives with these payloads."""
        starts = sending = looped = 0.0
        for each, payload in zip(listed, paid, strict=True):
            start, per_byte = wires.usual(each.kind, each.axes, self.calibration)
            starts += each.count * start
            seconds = each.count * per_byte * payload
            sending += seconds
            looped += seconds if each.kind == "permute" else 0.0
        return Sent(0.0, starts, sending, looped)


def _alike(one: Collective, other: Collective) -> bool:
    """Whether they differ in payload at most."""
    mine, others = ((c.kind, c.axes, c.count, c.where) for c in (one, other))
    return mine == others


def _paying(collective: Collective, payload: float) -> Collective:
    """The collective with another payload; of a line, a fraction of a byte is one."""
    return dataclasses.replace(collective, payload_bytes=payload)
