"""A service's floor and expected time: steps that advance answers, and prompts that join.

Two forms of the expected time are told apart, and engines are somewhere between them. *Beside*: the
chunks of prompts ride along with decode steps, which read the weights once for both and pay their
fixed times once. *Between*: decode steps wait while prompts run alone, and a prefill pays for its
own read of the weights and its own fixed times. Prompts that join between two steps run in one
pass: as many as join on average, ``C / G`` to the nearest and at least one, or as many more as a
layout that divides batches needs to have no empty part.
"""

import dataclasses
from collections.abc import Iterable, Sequence

from profiles.chips.slices import Slice
from profiles.expected.candidates import smallest_holding
from profiles.expected.estimate import Estimate, Estimator, lowest
from profiles.expected.time import NO_COMMUNICATION, Expected
from profiles.floor.bound import Floor
from profiles.floor.deployment import Deployment
from profiles.floor.passes import Counts, Pass
from profiles.floor.serving import (
    Service,
    ServingWork,
    mean_steps,
    most_sequences,
    reserved,
    serving_work,
)
from sharding.layout import Layout


@dataclasses.dataclass(frozen=True)
class ServiceEstimate:
    """The estimated time and memory of a service's mean step, in steady state.

    Such a step advances `concurrency` tokens and ``concurrency / generated_tokens`` prompts.

    Attributes:
      deployment: the model on its slice.
      service: what is asked of it.
      concurrency: sequences in flight: those asked for, or as many as fit if their caches take what
        they fill on average; one padded batch where none fit.
      work: what each device has to do.
      floor: the lower bound of a step, by term.
      beside: the expected time of a step that chunks of prompts ride along with, by term.
      steps: the expected time of a step without prompts.
      prompts: the estimate of a prefill between steps.
      prefills: such prefills for each step, on average.
      reserved_cache: bytes per chip of caches that have room for the longest prompt and answer.
      most: sequences that fit with what their caches fill on average.
      most_reserved: sequences that fit if each cache has room for the longest.
    """

    deployment: Deployment
    service: Service
    concurrency: int
    work: ServingWork
    floor: Floor
    beside: Expected
    steps: Expected
    prompts: Estimate
    prefills: float
    reserved_cache: float
    most: int
    most_reserved: int

    @property
    def counts(self) -> Counts:
        """The work of a step that chunks of prompts ride along with, for each device."""
        return self.work.beside

    @property
    def expected(self) -> Expected:
        """The expected time of a step, chunks of prompts beside it: `beside`."""
        return self.beside

    @property
    def resident(self) -> float:
        """Bytes per chip of weights, activations and what caches fill on average."""
        return self.counts.held * self.deployment.slice.chip.devices_per_chip

    @property
    def reserved(self) -> float:
        """The same if each cache has room for the longest prompt and answer."""
        parts = self.deployment.slice.chip.devices_per_chip
        return self.resident - self.counts.kv_resident * parts + self.reserved_cache

    @property
    def fits(self) -> bool:
        """Whether so many sequences fit, with what their caches fill on average."""
        return self.concurrency <= self.most

    @property
    def expected_beside_s(self) -> float:
        """Expected seconds of a step, chunks of prompts beside it."""
        return self.beside.seconds

    @property
    def expected_between_s(self) -> float:
        """Expected seconds of a step and of the prompts that run alone before the next."""
        return self.steps.seconds + self.prefills * self.prompts.expected.seconds

    @property
    def floor_s_per_token(self) -> float:
        """Floor of the service in seconds per generated token."""
        return self.floor.seconds / self.concurrency

    @property
    def beside_s_per_token(self) -> float:
        """Expected seconds per generated token, chunks of prompts beside steps."""
        return self.expected_beside_s / self.concurrency

    @property
    def between_s_per_token(self) -> float:
        """Expected seconds per generated token, prompts between steps."""
        return self.expected_between_s / self.concurrency

    def cost(self, seconds: float) -> float | None:
        """USD per million generated tokens at so many seconds per step; None without a price."""
        return self.deployment.usd_per_million_tokens(Pass(self.concurrency, 0), seconds)


def estimate_service(estimator: Estimator, service: Service, links: bool = True) -> ServiceEstimate:
    """Floor and expected times of a service on an estimator's deployment.

    Args:
      estimator: the model in a layout on a slice, with a calibration.
      service: concurrency and lengths.
      links: whether to count collectives, which take longest to find.
    """
    deployment, capacity = estimator.deployment, estimator.peaks.capacity
    most = most_sequences(deployment, service, capacity)
    concurrency = service.concurrency or most or estimator.padded(1)
    work = serving_work(deployment, service, concurrency)
    joining = service.prompts(concurrency)
    alone = mixed = NO_COMMUNICATION
    if links:
        alone = estimator.links.expected(concurrency)
        mixed = estimator.links.beside(concurrency, joining, service.prompt_length)
    together = estimator.padded(max(round(joining), 1))
    rows = estimator.padded(concurrency)
    mixed_rows = rows + joining * service.prompt_length
    reserved_cache = reserved(deployment, service, concurrency).kv_resident
    return ServiceEstimate(
        deployment,
        service,
        concurrency,
        work,
        floor=estimator.bound(work.beside, mixed, mixed_rows),
        beside=estimator.expect(work.beside, mixed, mixed_rows),
        steps=estimator.expect(work.steps, alone, rows),
        prompts=estimator.quick(Pass(together, 0, service.prompt_length), links),
        prefills=joining / together,
        reserved_cache=reserved_cache * deployment.slice.chip.devices_per_chip,
        most=most,
        most_reserved=most_sequences(deployment, service, capacity, paged=False),
    )


def best_for(estimators: Iterable[Estimator], services: Sequence[Service]) -> Estimator:
    """The estimator on which services are expected to give tokens fastest, where they fit.

    Args:
      estimators: the estimators to choose from, at least one.
      services: the services, whose expected seconds per token are added up, prompts beside steps.
    """

    def rank(estimator: Estimator, links: bool) -> tuple[int, float]:
        found = [estimate_service(estimator, service, links) for service in services]
        unfit = sum(not each.fits for each in found)
        return unfit, sum(each.beside_s_per_token for each in found)

    return lowest(estimators, rank)[0]


@dataclasses.dataclass(frozen=True)
class Served:
    """A service in the layout that was chosen on a slice, beside the layout that has most room.

    Attributes:
      chosen: the layout that was chosen.
      estimate: the service in it.
      roomiest: the candidate on which most sequences fit; of equal ones the first.
      most: how many fit on it.
    """

    chosen: Estimator
    estimate: ServiceEstimate
    roomiest: Estimator
    most: int


def serve(offered: Sequence[Estimator], services: Sequence[Service]) -> list[Served]:
    """Services on a slice, all of them in the layout of `best_for`.

    Args:
      offered: estimators of the layouts to choose from, at least one.
      services: the services.
    """
    chosen = best_for(offered, services)
    return [
        Served(chosen, estimate_service(chosen, service), *_roomiest(offered, service))
        for service in services
    ]


def _roomiest(offered: Sequence[Estimator], service: Service) -> tuple[Estimator, int]:
    found = [(one, most_sequences(one.deployment, service, one.peaks.capacity)) for one in offered]
    return max(found, key=lambda each: each[1])


def smallest_slice_for(
    deployment: Deployment, service: Service, layouts: Sequence[Layout | None]
) -> Slice | None:
    """The smallest slice of a deployment's chip on which a service fits in some layout.

    Args:
      deployment: gives the model, the chip and the dtypes.
      service: lengths and concurrency; without one, a single sequence.
      layouts: the layouts; only None for a model known by its sizes.

    Returns:
      The slice; None where the service fits on no slice of the chip.
    """
    count = service.concurrency or 1
    return smallest_holding(deployment, lambda one: mean_steps(one, service, count).held, layouts)
