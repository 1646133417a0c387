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


class LinkCosts:
    """What collectives of passes in one layout cost on one slice: listed once, for many batches.

    Payloads are linear in the batch, so two lists of collectives tell of all: where they differ in
    more than payloads, each batch gets a list of its own.

    Args:
      config: the model.
      placement: the layout on a mesh.
      form: how its numbers are stored.
      where: the slice.
      rates: for the starts of collectives.

    Raises:
      LayoutError: mesh and slice do not have as many devices.
    """

    def __init__(
        self,
        config: ModelConfig,
        placement: Placement,
        form: Form,
        where: Slice,
        rates: Calibration,
    ):
        self.config, self.placement, self.form, self.rates = config, placement, form, rates
        mesh = mesh_items(placement.mesh)
        self._least = layings(where, mesh, least=True)
        self._usual = layings(dataclasses.replace(where, chip=where.chip.expected), mesh, False)
        self._lines = functools.cache(self._find_lines)

    def sent(self, batch: int, tokens: int = 1) -> Sent:
        """Costs of a pass; a batch that the layout does not divide is padded.

        Args:
          batch: sequences.
          tokens: of each; 1 in a decode step.
        """
        if self.placement.devices == 1:
            return Sent(0.0, 0.0, 0.0, 0.0)
        step = self.placement.multiple("B")
        batch = -(-batch // step) * step
        fixed, growing = self._lines(tokens, None) or self._lines(tokens, batch)
        bounds = [
            fixed.bounds.get(key, 0.0) + batch * growing.bounds.get(key, 0.0)
            for key in fixed.bounds.keys() | growing.bounds.keys()
        ]
        return Sent(
            least=max(bounds, default=0.0),
            starts=fixed.starts,
            sending=fixed.sending + batch * growing.sending,
            looped=fixed.looped + batch * growing.looped,
        )

    def _find_lines(self, tokens: int, batch: int | None) -> "tuple[_Sums, _Sums] | None":
        """Sums of what every batch sends and of what each sequence adds; None if not linear.

        Args:
          tokens: per sequence.
          batch: whose sums alone are wanted; None for lines.
        """
        if batch:
            each = self._list(batch, tokens)
            return self._sum(each, each), _Sums({}, 0.0, 0.0, 0.0)
        one = self.placement.multiple("B")
        first, second = self._list(one, tokens), self._list(2 * one, tokens)
        if [_but_payload(each) for each in first] != [_but_payload(each) for each in second]:
            return None
        slopes = [
            (two.payload_bytes - a.payload_bytes) / one
            for a, two in zip(first, second, strict=True)
        ]
        growing = [_paying(a, slope) for a, slope in zip(first, slopes, strict=True)]
        steady = [
            _paying(a, a.payload_bytes - slope * one)
            for a, slope in zip(first, slopes, strict=True)
        ]
        typical = [
            _paying(a, a.payload_bytes + slope * TYPICAL)
            for a, slope in zip(first, slopes, strict=True)
        ]
        return self._sum(steady, typical), self._sum(growing, typical)

    def _list(self, batch: int, tokens: int) -> list[Collective]:
        placement = self.placement if tokens == 1 else self.placement.prefill
        return expected_collectives(self.config, placement, self.form, batch=batch, tokens=tokens)

    def _sum(self, listed: Sequence[Collective], typical: Sequence[Collective]) -> "_Sums":
        """Costs of these collectives, with the mesh laid as suits typical ones best."""
        least = min(self._least, key=lambda w: max(least_bounds(typical, w).values(), default=0.0))
        usual = min(self._usual, key=lambda w: self._seconds(typical, w))
        sending = [(each.kind, each.count * usual.sending(each)) for each in listed]
        return _Sums(
            bounds=least_bounds(listed, least),
            starts=sum(each.count * usual.start(each, self.rates) for each in listed),
            sending=sum(seconds for _, seconds in sending),
            looped=sum(seconds for kind, seconds in sending if kind == "permute"),
        )

    def _seconds(self, listed: Sequence[Collective], wires: Wires) -> float:
        return sum(
            each.count * (wires.start(each, self.rates) + wires.sending(each) / self.rates.link)
            for each in listed
        )


class _Sums(NamedTuple):
    """Costs of a list of collectives; as of `Sent`, with all bounds in place of the largest."""

    bounds: dict[object, float]
    starts: float
    sending: float
    looped: float


def _but_payload(collective: Collective) -> Collective:
    return dataclasses.replace(collective, payload_bytes=0)


def _paying(collective: Collective, payload: float) -> Collective:
    """The collective with another payload; of a line, a fraction of a byte is one."""
    return dataclasses.replace(collective, payload_bytes=payload)
