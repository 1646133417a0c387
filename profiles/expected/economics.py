"""What a step's time means for money: batches, contexts, costs and schedules.

Equations are those of floors, per step and chip: compute is linear in batch, memory a constant (the
weights) plus a part linear in batch (the KV cache), and a step takes the larger. Source: Pope et
al. 2022, section 2; Google's scaling book, "All about transformer inference".
"""

import dataclasses
import math

from profiles.expected.estimate import Estimate, Estimator


@dataclasses.dataclass(frozen=True)
class Slopes:
    """A decode step's floor as three straight lines, in seconds.

    Attributes:
      weights: reading all weights, all experts included: the constant.
      least: reading those that one token meets.
      compute: of one more sequence.
      kv_cache: of one more sequence.
    """

    weights: float
    least: float
    compute: float
    kv_cache: float

    @property
    def limit(self) -> float:
        """Seconds per token that no batch gets below."""
        return max(self.compute, self.kv_cache)


def slopes(estimator: Estimator, context: int) -> Slopes:
    """The floor's lines at a context.

    Between batches of one and two multiples of what the layout divides a batch into; the weights
    that touched experts add are in the constants, not in a slope.
    """
    one = estimator.padded(1)
    sizes = {"context": context}
    peaks = estimator.peaks
    first = estimator.costs.decode(batch=one, experts="all", **sizes)
    second = estimator.costs.decode(batch=2 * one, experts="all", **sizes)
    least = estimator.costs.decode(batch=one, experts="least", **sizes)
    cached = second.kv_read + second.kv_written - first.kv_read - first.kv_written
    rows = (second.weights_read - first.weights_read) / one  # of a looked-up embedding
    return Slopes(
        weights=(first.weights_read - rows * one) / peaks.bandwidth,
        least=(least.weights_read - rows * one) / peaks.bandwidth,
        compute=(second.flops - first.flops) / one / peaks.flops,
        kv_cache=cached / one / peaks.bandwidth,
    )


def critical_batch(estimator: Estimator) -> float:
    """Sequences from which arithmetic takes longer than reading all weights, at no context.

    Peak times bytes per weight over twice the bandwidth for a dense model, and its total over its
    active parameters times that for a mixture.
    """
    lines = slopes(estimator, 0)
    return lines.weights / lines.compute


def balanced_context(estimator: Estimator) -> float | None:
    """Tokens at which one more sequence costs as much memory time as compute time.

    Beyond it no batch makes a step compute-bound. None where the cache never catches up, as with
    windows in all layers.
    """
    low, high = 0, 1
    while _memory_bound(estimator, high) is False:
        low, high = high, 2 * high
        if high > 2**40:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _memory_bound(estimator, middle) else (middle, high)
    return float(high)


def _memory_bound(estimator: Estimator, context: int) -> bool:
    lines = slopes(estimator, context)
    return lines.kv_cache > lines.compute


def batching_gain(estimator: Estimator, context: int, every_expert: bool = False) -> float:
    """Cost per token at batch 1 over the least that any batch comes to, both at the floor.

    Args:
      estimator: the model on its slice.
      context: tokens in the cache.
      every_expert: a step at batch 1 (padded where the layout divides none such) reads all
        experts, as the simplest equation has it; else those that its token chooses.
    """
    lines, padded = slopes(estimator, context), estimator.padded(1)
    weights = lines.weights if every_expert else lines.least
    alone = max(weights + padded * lines.kv_cache, padded * lines.compute)
    return alone / lines.limit


def drain_s(estimator: Estimator) -> float:
    """Seconds to read a chip's memory once: how often batches can depart with all of it used."""
    peaks = estimator.peaks
    return peaks.capacity / peaks.bandwidth


def largest_batch(estimator: Estimator, context: int) -> int:
    """Sequences that fit beside the weights, a multiple of what the layout divides them into."""
    one = estimator.padded(1)
    few, more = (estimator.costs.decode(batch=n * one, context=context).held for n in (1, 2))
    free = estimator.peaks.capacity - (few - (more - few))
    return max(math.floor(free / (more - few)), 0) * one


# Serving -----------------------------------------------------------------------------------------


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
    chips = estimator.setting.where.chips
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
    return faster.expected.seconds / faster.batch / (step.expected.seconds / batch)


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
    step, setting = estimator.decode(batch, context), estimator.setting
    parts = setting.where.chip.devices_per_chip
    network = setting.where.chip.network or math.inf
    row = batch * setting.model.d_model * setting.dtypes.dtype.itemsize
    sent = (stages - 1) * row / (network * setting.where.chips)
    return Pipeline(
        weights=step.traffic.weights_resident * parts / stages,
        kv_cache=step.traffic.kv_resident * parts,
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
