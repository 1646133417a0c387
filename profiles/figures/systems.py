"""Data of figures of whole systems: pipelines, racks, training beside serving, MFU and context."""

import dataclasses

import numpy as np

from profiles.expected.balance import balanced_context, slopes
from profiles.expected.economics import pipeline
from profiles.expected.estimate import Estimator
from profiles.floor.expert_layer import Domains
from profiles.floor.training import balanced_tokens, past_optimal

HOP_S = 2.5e-3  # of a few milliseconds that a hop between racks takes, with which 20 ms become 30
THIRD = 1 / 3  # of training's MFU, at which a token served costs as much as one trained on


@dataclasses.dataclass(frozen=True)
class Stages:
    """Pipelines of rising numbers of stages, at one batch in flight: seconds, and bytes per chip.

    Attributes:
      batch: sequences of each batch in flight.
      stages: numbers of stages.
      step: floor of a token, of hops without latency.
      hops: the same with `HOP_S` for each hop.
      weights: bytes of weights.
      kv_cache: bytes of cache.
      hidden: time inside a stage over that of its hop; None for a dense model.
    """

    batch: int
    stages: np.ndarray
    step: np.ndarray
    hops: np.ndarray
    weights: np.ndarray
    kv_cache: np.ndarray
    hidden: list[float] | None


def stages(estimator: Estimator, batch: int, context: int) -> Stages | None:
    """Pipelines of up to 16 stages; None where the rate of the network is not known."""
    if not estimator.chip.network:
        return None
    counts = [n for n in (1, 2, 4, 8, 16) if n <= estimator.deployment.model.layers]
    plain = [pipeline(estimator, n, batch, context) for n in counts]
    late = [pipeline(estimator, n, batch, context, HOP_S) for n in counts]
    hidden = [each.inside_over_between for each in plain]
    columns = ([each.step_s for each in plain], [each.step_s for each in late])
    columns += ([each.weights for each in plain], [each.kv_cache for each in plain])
    known = hidden if hidden[0] is not None else None
    return Stages(batch, np.array(counts), *map(np.array, columns), known)


@dataclasses.dataclass(frozen=True)
class Racks:
    """A layer of experts over rising numbers of racks, as many sequences on each chip.

    Attributes:
      per_chip: sequences of each chip.
      size: chips of a rack, or of another domain of a fabric.
      racks: numbers of racks.
      fabric: seconds that bytes within racks take, to experts and back.
      network: seconds that those between racks take.
    """

    per_chip: float
    size: int
    racks: np.ndarray
    fabric: np.ndarray
    network: np.ndarray


def racks(estimator: Estimator, per_chip: float) -> Racks | None:
    """Up to 16 racks; None for a dense model, and where rates or racks are not known."""
    chip, model = estimator.chip, estimator.deployment.model
    size = chip.wiring.domain
    if not (model.experts and chip.fabric and chip.network and size and size > 1):
        return None
    row = model.experts_per_token * model.d_model * estimator.deployment.dtypes.dtype.itemsize
    payload, counts = 2 * per_chip * row, np.array([1, 2, 4, 8, 16])
    endless = float("inf")
    inside = [Domains(n * size, size, chip.fabric, endless).exchange_s(payload) for n in counts]
    between = [Domains(n * size, size, endless, chip.network).exchange_s(payload) for n in counts]
    return Racks(per_chip, size, counts, np.array(inside), np.array(between))


@dataclasses.dataclass(frozen=True)
class Training:
    """Training that costs as much as serving, over compute-optimal training.

    Attributes:
      active: active parameters.
      served: tokens served over a life.
      alike: times past the optimum, if serving and training have the same MFU.
      third: the same where serving has a third of training's.
    """

    active: int
    served: np.ndarray
    alike: np.ndarray
    third: np.ndarray


def training(estimator: Estimator) -> Training:
    """From 10^12 to 10^16 tokens served."""
    active, served = estimator.describe().parameters["active"], np.geomspace(1e12, 1e16, 41)
    alike = np.array([past_optimal(balanced_tokens(each), active) for each in served])
    return Training(active, served, alike, alike / THIRD)


@dataclasses.dataclass(frozen=True)
class Utilization:
    """The most that MFU can be at large batches, against context.

    Attributes:
      contexts: tokens in the cache.
      whole: MFU where attention reads all of them.
      root: the same where it reads the square root of as many.
      balanced: context from which MFU falls; None if there is none.
      halved: context at which it is a half; None if there is none.
    """

    contexts: np.ndarray
    whole: np.ndarray
    root: np.ndarray
    balanced: float | None
    halved: float | None


def utilization(estimator: Estimator) -> Utilization:
    """From 2^7 tokens to 2^34, beyond where reading a square root halves it too."""
    contexts = np.geomspace(2**7, 2**34, 109)

    def mfu(context: float) -> float:
        lines = slopes(estimator, round(context))
        return min(lines.compute / lines.kv_cache, 1.0)

    whole, root = ([mfu(of) for of in read] for read in (contexts, np.sqrt(contexts)))
    bounds = (balanced_context(estimator, times) for times in (1.0, 2.0))
    return Utilization(contexts, np.array(whole), np.array(root), *bounds)
