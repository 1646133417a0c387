"""A forward pass on chips that need not be there: its floor, its expected time, and their terms.

An `Estimator` stands for a model in one layout on one slice. It counts what does not change once,
and then answers for any batch and context in microseconds. `profiles.expected.record` makes of an
answer the record that programs read.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

from profiles.chips.chip import Peaks
from profiles.expected.links import check_size
from profiles.expected.sized_links import SizedLinks
from profiles.expected.time import Expected, LinkCosts, Listed, Sent, expect
from profiles.floor.bound import Floor, floor
from profiles.floor.deployment import Deployment
from profiles.floor.passes import Counts, Pass
from profiles.floor.sized_models import EVENLY
from profiles.report.partitioning import partitioning
from profiles.report.record import Record

NOTHING_SENT = Sent(0.0, 0.0, 0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What one forward pass of a deployment is estimated to take.

    Attributes:
      deployment: the model on its slice.
      pass_: the pass.
      counts: its work per device.
      floor: its lower bound, by term.
      expected: its expected time, by term.
      fits: whether weights, cache and activations fit in the memory of a chip.
    """

    deployment: Deployment
    pass_: Pass
    counts: Counts
    floor: Floor
    expected: Expected
    fits: bool

    @property
    def resident(self) -> float:
        """Bytes per chip of weights, cache and activations."""
        return self.counts.held * self.deployment.slice.chip.devices_per_chip

    def cost(self, seconds: float) -> float | None:
        """USD per million tokens at so many seconds per pass; None without a price."""
        return self.deployment.usd_per_million_tokens(self.pass_, seconds)


class Estimator:
    """Estimates passes of one deployment.

    Args:
      deployment: the model in a layout on a slice.

    Raises:
      LayoutError: the layout does not go with the model and the mesh, or the mesh with the slice.
      UsageError: the chip has no figure for the arithmetic.
    """

    def __init__(self, deployment: Deployment):
        self.deployment = deployment
        slice, dtypes = deployment.slice, deployment.dtypes
        self.chip, self.usual = slice.chip, slice.chip.expected
        parts = self.chip.devices_per_chip
        self.peaks = Peaks(
            bandwidth=self.chip.bandwidth / parts,
            flops=self.chip.peak(dtypes.arithmetic) / parts,
            source="published",
            on_chip=self.chip.on_chip / parts,
            capacity=self.usual.capacity / parts,
            devices_per_chip=parts,
        )
        self._flops = self.usual.peak(dtypes.arithmetic)
        if deployment.layout:
            check_size(slice, deployment.mesh)
        self.placement, self.counter = deployment.placement, deployment.counter
        self._links = _links(deployment)
        self.sent = functools.cache(self._links.sent)

    def estimate(self, pass_: Pass) -> Estimate:
        """Floor and expected time of a pass; a batch that the layout does not divide is padded."""
        padded = self.deployment.padded(pass_)
        return self._estimate(pass_, self.sent(padded.batch, pass_.tokens))

    def decode(self, batch: int, context: int, slots: int | None = None) -> Estimate:
        """A decode step: the same as `estimate` of its pass."""
        return self.estimate(Pass(batch, context, slots=slots))

    def prefill(self, batch: int, tokens: int, cached: int = 0) -> Estimate:
        """A pass over prompts of at least 2 tokens: the same as `estimate` of its pass."""
        return self.estimate(Pass(batch, cached, tokens))

    def quick(self, pass_: Pass, links: bool = False) -> Estimate:
        """An estimate whose floor leaves collectives out, which take longest to find.

        Args:
          pass_: the pass.
          links: whether collectives take time in the expected time.
        """
        padded = self.deployment.padded(pass_)
        sent = self._links.usual(padded.batch, pass_.tokens) if links else NOTHING_SENT
        return self._estimate(pass_, sent)

    def padded(self, batch: int) -> int:
        """The batch that a step really has."""
        return self.deployment.padded(Pass(batch, 0)).batch

    def _estimate(self, pass_: Pass, sent: Sent) -> Estimate:
        deployment = self.deployment
        counts, layers = deployment.count(pass_), deployment.model.layers
        return Estimate(
            deployment,
            pass_,
            counts,
            floor=floor(counts, self.peaks, sent.least),
            expected=expect(counts, sent, self.usual, self._flops, layers, deployment.calibration),
            fits=counts.held <= self.peaks.capacity,
        )

    def describe(self, prompts: bool = False) -> Record:
        """The part of a record that is the same for every decode step, or every pass of prompts."""
        deployment, slice = self.deployment, self.deployment.slice
        divided = Record(layout=EVENLY)
        if self.placement:
            divided = partitioning(deployment.model, self.placement, prompts)
        return Record(
            model=deployment.model.name,
            parameters=self.counter.parameters,
            device_kind=slice.chip.device_kinds[0],
            topology=str(slice),
            chips=slice.chips,
            devices=slice.devices,
            **divided.to_json(),
            **deployment.dtypes.names(),
            experts=deployment.experts if deployment.model.experts else None,
        )


def _links(deployment: Deployment) -> LinkCosts | SizedLinks:
    """The times of a deployment's collectives."""
    model, dtypes, slice = deployment.model, deployment.dtypes, deployment.slice
    if deployment.placement is None:
        return SizedLinks(model, dtypes, slice, deployment.calibration)
    return LinkCosts(Listed(model, deployment.placement, dtypes), slice, deployment.calibration)


def best(estimators: Iterable[Estimator], passes: Sequence[Pass]) -> Estimator:
    """The first of `ranked`; arguments are the same."""
    return ranked(estimators, passes)[0]


def ranked(
    estimators: Iterable[Estimator], passes: Sequence[Pass], count: int = 1
) -> list[Estimator]:
    """The estimators whose passes are expected to be fastest, those whose passes fit before others.

    Listing an estimator's collectives is most of the work. So estimators are looked at in the order
    of their times without collectives, and the rest is left out once even those are longer than as
    many complete ones.

    Args:
      estimators: to choose among, at least one.
      passes: whose expected times are added up.
      count: how many are wanted; of equal ones the first are taken.
    """

    def rank(estimator: Estimator, links: bool) -> tuple[int, float]:
        found = [estimator.quick(pass_, links) for pass_ in passes]
        return sum(not each.fits for each in found), sum(each.expected.seconds for each in found)

    found = list(estimators)
    bounds = [rank(one, links=False) for one in found]
    ranks: list[tuple[tuple[int, float], int]] = []
    for place in sorted(range(len(found)), key=bounds.__getitem__):
        if len(ranks) == count and bounds[place] > ranks[-1][0]:
            break
        ranks = sorted([*ranks, (rank(found[place], links=True), place)])[:count]
    return [found[place] for _, place in ranks]
