"""Costs that follow from a step's time: prices of speed and of prompts, schedules, pipelines."""

import dataclasses
import math

from profiles.expected.balance import largest_batch
from profiles.expected.estimate import Estimate, Estimator


def best_batch(estimator: Estimator, context: int, most_s: float) -> Estimate | None:
    """The largest batch that fits and whose expected step takes at most `most_s` seconds.

    It is also the cheapest per token, because a step's time always grows more slowly than its
    batch. None where batch 1 takes longer, or does not fit.
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
    """A schedule on which a new batch starts at regular times, full or not.

    Attributes:
      period_s: seconds between starts, which are those of one step of the batch.
      longest_wait_s: longest time until a request's batch starts: it has just missed one.
      total_s: seconds from the arrival of that request to its last token.
    """

    period_s: float
    longest_wait_s: float
    total_s: float


def schedule(step: Estimate, tokens: int) -> Schedule:
    """The longest times of a request if a new batch starts with every step.

    Args:
      step: a step of the batch, at the mean context of its tokens.
      tokens: number of tokens that the request asks for.
    """
    seconds = step.expected.seconds
    return Schedule(seconds, seconds, seconds * (1 + tokens))


@dataclasses.dataclass(frozen=True)
class PhaseCosts:
    """Expected chip-seconds per token.

    Attributes:
      prefill: cost of a token of a prompt.
      cached_prefill: the same for a prompt whose first tokens are already cached; the cost of the
        others, divided by the number of all its tokens.
      decode: cost of a generated token.
    """

    prefill: float
    cached_prefill: float
    decode: float


def phase_costs(
    estimator: Estimator, *, prompt: int, cached: int, batch: int, context: int
) -> PhaseCosts:
    """Costs of tokens in prefill and decode, and what a cached prefix saves.

    Args:
      estimator: the model on its slice.
      prompt: tokens of a prompt, prefilled in a batch of one.
      cached: the prompt's first tokens whose keys and values are cached from another request.
      batch: sequences of a decode step.
      context: tokens in the cache of each of them.
    """
    chips = estimator.deployment.slice.chips
    uncached = estimator.prefill(1, prompt).expected.seconds
    rest = estimator.prefill(1, prompt - cached, cached).expected.seconds
    step = estimator.decode(batch, context).expected.seconds
    return PhaseCosts(uncached * chips / prompt, rest * chips / prompt, step * chips / batch)


def recomputed_after_s(estimator: Estimator, prompt: int) -> float:
    """Seconds for which holding a prompt's cache in a chip's memory costs as much as a new prefill.

    Holding takes its share of the memory of chips, a prefill all of them:
    ``t x bytes / capacity = expected seconds of the prefill``, both over all chips. What the
    weights take of the memory is not charged to the cache.

    Args:
      estimator: the model on its slice.
      prompt: tokens of the prompt, prefilled in a batch of one.
    """
    found = estimator.prefill(1, prompt)
    return found.expected.seconds * estimator.peaks.capacity / found.counts.kv_resident


def token_bytes(estimator: Estimator) -> float:
    """Bytes of cache that a token takes on all devices together, copies included.

    States, which are the same for any number of tokens, are none of a token's.
    """
    return estimator.counter.token_bytes * estimator.deployment.slice.devices


def price_of_speed(estimator: Estimator, context: int, batch: int, speedup: float) -> float | None:
    """The factor by which a token's cost rises if its step is to be `speedup` times faster.

    The faster step has a smaller batch on the same chips. None where no batch is that fast.
    """
    step = estimator.decode(batch, context)
    faster = best_batch(estimator, context, step.expected.seconds / speedup)
    if faster is None:
        return None
    return faster.expected.seconds / faster.pass_.batch / (step.expected.seconds / batch)


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Pipeline parallelism: a model whose layers are divided over stages, each on its own slice.

    Each chip has a part of the layers, so of the weights. To keep it busy, as many batches are in
    flight as there are stages, and each has its cache: per chip ``stages x cache / stages``.

    Attributes:
      weights: bytes per chip.
      kv_cache: bytes per chip. They do not depend on the number of stages.
      step_s: floor of the seconds from a token to the next, as `Deployment.in_stages` has it.
      sent_s: seconds to send activations from stage to stage over the network.
      expert_layers: layers of experts in a stage, on average.
      inside_over_between: time that these layers send to experts over that of the stage's hop,
        which is hidden from 1 on; None for a dense model, or where chips have no fabric.
    """

    weights: float
    kv_cache: float
    step_s: float
    sent_s: float
    expert_layers: float
    inside_over_between: float | None


def pipeline(
    estimator: Estimator, stages: int, batch: int, context: int, hop_s: float = 0.0
) -> Pipeline:
    """A pipeline over slices like the estimator's, with all stages busy.

    Args:
      estimator: the entire model on one slice.
      stages: number of slices that the layers are divided over.
      batch: sequences in each batch in flight.
      context: tokens in the cache of each sequence.
      hop_s: seconds that a hop takes whatever it sends.
    """
    step, chip = estimator.decode(batch, context), estimator.chip
    divided = dataclasses.replace(estimator.deployment, stages=stages, hop_s=hop_s)
    rows = estimator.padded(batch)
    return Pipeline(
        weights=step.counts.weights_resident * chip.devices_per_chip / stages,
        kv_cache=step.counts.kv_resident * chip.devices_per_chip,
        step_s=divided.in_stages(step.floor, rows).seconds,
        sent_s=divided.sent_s(rows, chip.network or math.inf),
        expert_layers=divided.expert_layers_per_stage,
        inside_over_between=divided.inside_over_between,
    )


def implied_kv_bytes(active: float, flops_per_byte: float, context: int) -> float:
    """Bytes of KV cache per token, if a price rises at the context where memory overtakes compute.

    Reading `context` tokens takes as long as multiplying one token through the model:
    2 x active / FLOP rate = bytes x context / bandwidth.

    Args:
      active: parameters that a token is multiplied by.
      flops_per_byte: FLOP rate over bandwidth.
      context: number of tokens at which the price rises.
    """
    return 2 * active / (flops_per_byte * context)
