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
from model.form import Form
from profiles.calibration import Calibration
from profiles.collective import Collective
from profiles.communication import expected_collectives
from profiles.hardware import Chip
from profiles.links import Wires, layings, least_bounds, mesh_items
from profiles.slices import Slice
from profiles.traffic import Traffic
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
    traffic: Traffic, sent: Sent, chip: Chip, flops: float, layers: int, rates: Calibration
) -> Expected:
    """The expected time of a step.

    Args:
      traffic: its work per device.
      sent: its collectives.
      chip: by its recommended figures.
      flops: recommended FLOP/s of a chip, in the arithmetic of the step.
      layers: of the model.
      rates: what is achieved.
    """
    parts = chip.devices_per_chip
    moved = traffic.memory + 2 * traffic.weights_gathered
    return Expected(
        memory=moved / (chip.bandwidth / parts * rates.memory),
        compute=traffic.flops / (flops / parts * rates.compute),
        communication=sent.starts + (sent.sending - sent.looped) / rates.link,
        overlapped=sent.looped / rates.link,
        overhead=rates.step_s + layers * rates.layer_s,
        hidden=rates.hidden,
    )


class Listed:
    """Collectives of passes in one layout, listed once for many batches and slices.

    Payloads are linear in the batch, so two lists of collectives tell of all: where they differ in
    more than payloads, each batch gets a list of its own.

    Args:
      config: the model.
      placement: the layout on a mesh.
      form: how its numbers are stored.
    """

    def __init__(self, config: ModelConfig, placement: Placement, form: Form):
        self.config, self.placement, self.form = config, placement, form
        self.line = functools.cache(self._find_line)

    def at(self, batch: int, tokens: int) -> list[Collective]:
        """Those of a pass over a batch that the layout divides."""
        placement = self.placement if tokens == 1 else self.placement.prefill
        return expected_collectives(self.config, placement, self.form, batch=batch, tokens=tokens)

    def _find_line(self, tokens: int) -> "_Line | None":
        """What every batch sends and what each sequence adds; None if that is not linear."""
        one = self.placement.multiple("B")
        first, second = self.at(one, tokens), self.at(2 * one, tokens)
        if len(first) != len(second) or not all(map(_alike, first, second)):
            return None
        slopes = [
            (two.payload_bytes - each.payload_bytes) / one
            for each, two in zip(first, second, strict=True)
        ]
        pairs = list(zip(first, slopes, strict=True))
        return _Line(
            steady=[_paying(a, a.payload_bytes - slope * one) for a, slope in pairs],
            growing=[_paying(a, slope) for a, slope in pairs],
            typical=[_paying(a, a.payload_bytes + slope * TYPICAL) for a, slope in pairs],
        )


class _Line(NamedTuple):
    """Collectives of every batch, of each sequence on top, and of a batch to lay a mesh for."""

    steady: list[Collective]
    growing: list[Collective]
    typical: list[Collective]


class LinkCosts:
    """What listed collectives cost on one slice.

    Args:
      listed: of a model in a layout.
      where: the slice.
      rates: for the starts of collectives.

    Raises:
      LayoutError: mesh and slice do not have as many devices.
    """

    def __init__(self, listed: Listed, where: Slice, rates: Calibration):
        self.listed, self.placement, self.rates = listed, listed.placement, rates
        mesh = mesh_items(self.placement.mesh)
        self._least = layings(where, mesh, least=True)
        self._usual = layings(dataclasses.replace(where, chip=where.chip.expected), mesh, False)
        self._usual_line = functools.cache(self._find_usual_line)
        self._bounds_line = functools.cache(self._find_bounds_line)

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
        if self.placement.devices == 1:
            return Sent(0.0, 0.0, 0.0, 0.0)
        batch = self._padded(batch)
        line = self._usual_line(tokens)
        if line is None:
            each = self.listed.at(batch, tokens)
            return self._sum(each, self._lay(each))
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
        if self.placement.devices == 1:
            return 0.0
        line = self._bounds_line(tokens)
        if line is None:
            each = self.listed.at(batch, tokens)
            return max(self._find_bounds(each, each).values(), default=0.0)
        fixed, growing = line
        bounds = (
            fixed.get(key, 0.0) + batch * growing.get(key, 0.0)
            for key in fixed.keys() | growing.keys()
        )
        return max(bounds, default=0.0)

    def _find_usual_line(self, tokens: int) -> tuple[Sent, Sent] | None:
        """Costs of every batch, and what each sequence adds; None if they are not linear."""
        line = self.listed.line(tokens)
        if line is None:
            return None
        wires = self._lay(line.typical)
        return self._sum(line.steady, wires), self._sum(line.growing, wires)

    def _find_bounds_line(self, tokens: int) -> tuple[dict, dict] | None:
        """Bounds likewise."""
        line = self.listed.line(tokens)
        if line is None:
            return None
        return tuple(self._find_bounds(part, line.typical) for part in (line.steady, line.growing))

    def _find_bounds(
        self, listed: Sequence[Collective], typical: Sequence[Collective]
    ) -> dict[object, float]:
        """Bounds of these collectives, with the mesh laid as suits typical ones best."""
        laid = min(self._least, key=lambda w: max(least_bounds(typical, w).values(), default=0.0))
        return least_bounds(listed, laid)

    def _lay(self, typical: Sequence[Collective]) -> Wires:
        """The mesh laid on the slice as suits these collectives best."""
        if len(self._usual) == 1:
            return self._usual[0]
        return min(self._usual, key=lambda wires: self._seconds(typical, wires))

    def _sum(self, listed: Sequence[Collective], wires: Wires) -> Sent:
        sending = [(each.kind, each.count * wires.sending(each)) for each in listed]
        return Sent(
            least=0.0,
            starts=sum(each.count * wires.start(each, self.rates) for each in listed),
            sending=sum(seconds for _, seconds in sending),
            looped=sum(seconds for kind, seconds in sending if kind == "permute"),
        )

    def _seconds(self, listed: Sequence[Collective], wires: Wires) -> float:
        return sum(
            each.count * (wires.start(each, self.rates) + wires.sending(each) / self.rates.link)
            for each in listed
        )


def _alike(one: Collective, other: Collective) -> bool:
    """Whether they differ in payload at most."""
    return dataclasses.replace(other, payload_bytes=one.payload_bytes) == one


def _paying(collective: Collective, payload: float) -> Collective:
    """The collective with another payload; of a line, a fraction of a byte is one."""
    return dataclasses.replace(collective, payload_bytes=payload)
