"""What a step's time means for money: the price of speed, of prompts, and schedules of batches."""

import dataclasses
import math

from profiles.expected.balance import largest_batch
from profiles.expected.estimate import Estimate, Estimator


def best_batch(estimator: Estimator, context: int, most_s: float) -> Estimate | None:
    """The largest batch whose step is expected within so many seconds, and which fits.

    Cost per token falls with batch as long as a step's time grows more slowly than it, which is
    always so; so this is also the cheapest. None where batch 1 takes longer, or does not fit.
    """

    def within(count: int) -> bool:
        step = estimator.decode(count * one, context)
        return step.fits and step.expected.seconds <= most_s

    one, low = estimator.padded(1), 0
    high = max(largest_batch(estimator, context) // one, 1)
    if within(high):
        return estimator.decode(high * one, context)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if within(middle) else (low, middle)
    return estimator.decode(low * one, context) if low else None


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Batches that depart like trains: full or not, one each period.

    Attributes:
      period_s: seconds between departures: those of one step of the batch.
      longest_wait_s: of a request that has just missed one.
      total_s: of such a request, from its arrival to its last token.
    """

    period_s: float
    longest_wait_s: float
    total_s: float


def schedule(step: Estimate, tokens: int) -> Schedule:
    """The worst that a request meets where a new batch departs with every step.

    Args:
      step: of the batch, at the mean context of its tokens.
      tokens: that the request asks for.
    """
    seconds = step.expected.seconds
    return Schedule(seconds, seconds, seconds * (1 + tokens))


@dataclasses.dataclass(frozen=True)
class PhaseCosts:
    """Chip-seconds per token, expected.

    Attributes:
      prefill: of a prompt's tokens.
      cached_prefill: of all of a prompt's tokens where the first were in a cache already.
      decode: of generated ones.
    """

    prefill: float
    cached_prefill: float
    decode: float


def phase_costs(
    estimator: Estimator, *, prompt: int, cached: int, batch: int, context: int
) -> PhaseCosts:
    """What tokens cost in either phase, and what a cached prefix saves.

    Args:
      estimator: the model on its slice.
      prompt: tokens of a prompt, prefilled alone.
      cached: of those, the first, whose keys and values are kept from another request.
      batch: sequences of decode steps.
      context: of those.
    """
    chips = estimator.deployment.slice.chips
    whole = estimator.prefill(1, prompt).expected.seconds
    rest = estimator.prefill(1, prompt - cached, cached).expected.seconds
    step = estimator.decode(batch, context).expected.seconds
    return PhaseCosts(whole * chips / prompt, rest * chips / prompt, step * chips / batch)


def price_of_speed(estimator: Estimator, context: int, batch: int, speedup: float) -> float | None:
    """How many times dearer a token is if its step is to be so many times faster.

    A faster step is one of fewer users on the same chips. None where no batch is that fast.
    """
    step = estimator.decode(batch, context)
    faster = best_batch(estimator, context, step.expected.seconds / speedup)
    if faster is None:
        return None
    return faster.expected.seconds / faster.pass_.batch / (step.expected.seconds / batch)


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A model whose layers are divided over stages, each a slice of its own.

    Attributes:
      weights: bytes per chip.
      kv_cache: bytes per chip. The same for any number of stages: each has fewer layers of more
        sequences, as many batches as stages being under way at once.
      step_s: floor from a token to the next: all stages, one after another, and what is sent.
      sent_s: of that, sending activations from stage to stage over the network.
    """

    weights: float
    kv_cache: float
    step_s: float
    sent_s: float


def pipeline(estimator: Estimator, stages: int, batch: int, context: int) -> Pipeline:
    """Stages across slices such as the estimator's, all busy.

    Args:
      estimator: of one slice, with the whole model on it.
      stages: how many slices share the layers.
      batch: sequences in each of the batches under way.
      context: tokens in the cache of each.
    """
    step, deployment = estimator.decode(batch, context), estimator.deployment
    parts = deployment.slice.chip.devices_per_chip
    network = deployment.slice.chip.network or math.inf
    row = batch * deployment.model.d_model * deployment.dtypes.dtype.itemsize
    sent = (stages - 1) * row / (network * deployment.slice.chips)
    return Pipeline(
        weights=step.counts.weights_resident * parts / stages,
        kv_cache=step.counts.kv_resident * parts,
        step_s=step.floor.seconds + sent,
        sent_s=sent,
    )


def implied_kv_bytes(active: float, flops_per_byte: float, context: int) -> float:
    """Bytes of KV cache per token, if a price step at a context is where memory overtakes compute.

    Reading `context` tokens takes as long as multiplying one token through the model:
    2 x active / FLOP rate = bytes x context / bandwidth.

    Args:
      active: parameters that a token meets.
      flops_per_byte: FLOP rate over bandwidth.
      context: tokens at which the price steps up.
    """
    return 2 * active / (flops_per_byte * context)
