"""Estimates of a forward pass, on chips that need not be at hand: floor, expected time, and terms.

An `Estimator` is made for a model in one layout on one slice. It counts once what is the same for
all passes, and then estimates any batch and context in microseconds. An estimate is converted to a
record by `profiles.expected.estimate_record`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

from profiles.chips.chip import Peaks
from profiles.expected.links import check_size
from profiles.expected.sized_links import SizedLinks
from profiles.expected.time import (
    NO_COMMUNICATION,
    CollectiveLists,
    CommunicationTime,
    Expected,
    LinkTimes,
    expect,
)
from profiles.floor.bound import Floor, floor
from profiles.floor.deployment import Deployment
from profiles.floor.passes import Counts, Pass
from profiles.floor.pipelines import with_hops
from profiles.floor.sized_models import EVENLY
from profiles.report.partitioning import partitioning
from profiles.report.record import Pipeline, Record

Rank = Callable[["Estimator", bool], tuple[int, float]]
"""Of an estimator, with collectives or without: what does not fit, and seconds."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimated time and memory of one forward pass of a deployment.

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
      LayoutError: the layout cannot divide the model over the mesh, or the slice has another size.
      UsageError: the chip has no known rate for the dtype of arithmetic.
    """

    def __init__(self, deployment: Deployment):
        self.deployment = deployment
        slice = deployment.slice
        self.chip, self.recommended_chip = slice.chip, slice.chip.recommended
        parts, arithmetic = self.chip.devices_per_chip, deployment.arithmetic
        self.peaks = Peaks(
            bandwidth=self.chip.bandwidth / parts,
            flops=self.chip.peak(arithmetic) / parts,
            source="published",
            on_chip=self.chip.on_chip / parts,
            capacity=self.recommended_chip.capacity / parts,
            devices_per_chip=parts,
        )
        self._flops = self.recommended_chip.peak(arithmetic)
        if deployment.layout:
            check_size(slice, deployment.mesh)
        self.placement, self.counter = deployment.placement, deployment.counter
        self.links = _links(deployment)
        self.communication = functools.cache(self.links.communication)

    def estimate(self, pass_: Pass) -> Estimate:
        """Floor and expected time of a pass; a batch that the layout does not divide is padded."""
        padded = self.deployment.padded(pass_)
        passed = padded.batch, pass_.tokens, pass_.continues
        return self._estimate(pass_, self.communication(*passed))

    def decode(self, batch: int, context: int, slots: int | None = None) -> Estimate:
        """The estimate of a decode step."""
        return self.estimate(Pass(batch, context, slots=slots))

    def prefill(self, batch: int, tokens: int, cached: int = 0) -> Estimate:
        """The estimate of a prefill of at least 2 tokens."""
        return self.estimate(Pass(batch, cached, tokens))

    def quick(self, pass_: Pass, links: bool = False) -> Estimate:
        """An estimate whose floor leaves out collectives, which take longest to compute.

        Args:
          pass_: the pass.
          links: whether the expected time includes collectives.
        """
        padded = self.deployment.padded(pass_)
        communication = (
            self.links.expected(padded.batch, pass_.tokens, pass_.continues)
            if links
            else NO_COMMUNICATION
        )
        return self._estimate(pass_, communication)

    def padded(self, batch: int) -> int:
        """The batch of a step after padding."""
        return self.deployment.padded(Pass(batch, 0)).batch

    def _estimate(self, pass_: Pass, communication: CommunicationTime) -> Estimate:
        counts, rows = self.deployment.count(pass_), self.padded(pass_.batch) * pass_.tokens
        return Estimate(
            self.deployment,
            pass_,
            counts,
            floor=self.bound(counts, communication, rows),
            expected=self.expect(counts, communication, rows),
            fits=bool(counts.held <= self.peaks.capacity),
        )

    def bound(self, counts: Counts, communication: CommunicationTime, rows: float) -> Floor:
        """The floor of this work per device, of a pipeline as `Deployment.in_stages` has it."""
        return self.deployment.in_stages(floor(counts, self.peaks, communication.floor), rows)

    def expect(
        self, counts: Counts, communication: CommunicationTime, rows: float = 0.0
    ) -> Expected:
        """The expected time of this work per device, with these collectives.

        Args:
          counts: the work.
          communication: time of the collectives.
          rows: tokens of the pass, which stages of a pipeline send on.
        """
        return expect(
            counts,
            communication,
            self.recommended_chip,
            self._flops,
            self.deployment.model.layers,
            self.deployment.calibration,
            self.hops_s(rows),
        )

    def hops_s(self, rows: float) -> float:
        """Expected seconds that a token takes between the stages of a pipeline; 0 without.

        Each hop has its latency and its bytes, and each stage starts a program of its own.

        Args:
          rows: tokens of the pass.
        """
        deployment, calibration = self.deployment, self.deployment.calibration
        if deployment.stages == 1:
            return 0.0
        sent = deployment.sent_s(rows, self.recommended_chip.network * calibration.link)
        return with_hops(sent, deployment.stages, deployment.expected_hop_s) + self.starts_s

    @property
    def starts_s(self) -> float:
        """Expected seconds of starting programs on the stages after the first."""
        return (self.deployment.stages - 1) * self.deployment.calibration.step_s

    def describe(self, prompts: bool = False) -> Record:
        """The fields of a record that all decode steps share, or all prefills."""
        deployment, slice = self.deployment, self.deployment.slice
        plain = deployment.arithmetic == deployment.dtypes.dtype.name
        divided = Record(layout=EVENLY)
        if self.placement:
            divided = partitioning(deployment.model, self.placement, prompts)
        return Record(
            model=deployment.model.name,
            parameters=self.counter.parameters,
            device_kind=slice.chip.device_kinds[0],
            topology=str(deployment.whole),
            chips=deployment.whole.chips,
            devices=deployment.whole.devices,
            **divided.to_json(),
            **deployment.dtypes.names(),
            arithmetic=None if plain else deployment.arithmetic,
            experts=deployment.experts if deployment.model.experts else None,
            pipeline=_pipeline(deployment),
        )


def _pipeline(deployment: Deployment) -> Pipeline | None:
    """What a record says of a pipeline; None where there is none."""
    if deployment.stages == 1:
        return None
    found = Pipeline(stages=deployment.stages, hop_s=deployment.expected_hop_s)
    if (ratio := deployment.inside_over_between) is not None:
        found["inside_over_between"] = ratio
    return found


def _links(deployment: Deployment) -> LinkTimes | SizedLinks:
    """The times of a deployment's collectives."""
    model, dtypes, slice = deployment.model, deployment.dtypes, deployment.slice
    if deployment.placement is None:
        return SizedLinks(model, dtypes, slice, deployment.calibration)
    return LinkTimes(
        CollectiveLists(model, deployment.placement, dtypes), slice, deployment.calibration
    )


def best(estimators: Iterable[Estimator], passes: Sequence[Pass]) -> Estimator:
    """The first of `ranked`; the arguments are the same."""
    return ranked(estimators, passes)[0]


def ranked(
    estimators: Iterable[Estimator], passes: Sequence[Pass], count: int = 1
) -> list[Estimator]:
    """The estimators whose passes are expected to be fastest, those whose passes fit before others.

    Args:
      estimators: the estimators to choose from, at least one.
      passes: the passes whose expected times are added up.
      count: how many to return; of equal ones the first.
    """

    def rank(estimator: Estimator, links: bool) -> tuple[int, float]:
        estimates = [estimator.quick(pass_, links) for pass_ in passes]
        unfit = sum(not each.fits for each in estimates)
        return unfit, sum(each.expected.seconds for each in estimates)

    return lowest(estimators, rank, count)


def lowest(estimators: Iterable[Estimator], rank: Rank, count: int = 1) -> list[Estimator]:
    """The estimators of the lowest ranks; of equal ones the first.

    Listing an estimator's collectives is most of the work. So estimators are tried in the order of
    their ranks without collectives, until that rank alone is beyond the complete ranks of `count`
    others.

    Args:
      estimators: the estimators to choose from, at least one.
      rank: how many passes of an estimator do not fit, and seconds; of two calls for an estimator
        the one without collectives gives no more than the other.
      count: how many to return.
    """
    options = list(estimators)
    bounds = [rank(one, False) for one in options]
    ranks: list[tuple[tuple[int, float], int]] = []
    for index in sorted(range(len(options)), key=bounds.__getitem__):
        if len(ranks) == count and bounds[index] > ranks[-1][0]:
            break
        ranks = sorted([*ranks, (rank(options[index], True), index)])[:count]
    return [options[index] for _, index in ranks]
