"""Balance points: the batches and contexts at which two terms of a step's floor are equal.

The equations are those of floors, per step and chip: compute is linear in batch, memory is a
constant (the weights) plus a part linear in batch (the KV cache), and a step takes the larger.
Source: Pope et al. 2022, section 2; Google's scaling book, "All about transformer inference".
"""

import dataclasses
import math
from collections.abc import Callable

from profiles.expected.estimate import Estimator
from profiles.floor.deployment import Model
from profiles.floor.passes import Pass
from profiles.floor.sized_models import SizedModel


@dataclasses.dataclass(frozen=True)
class Slopes:
    """A decode step's floor as three straight lines, in seconds.

    Attributes:
      weights: time to read all weights, all experts included; does not depend on batch.
      active_weights: time to read the weights that one token is multiplied by.
      compute: time that one more sequence adds to arithmetic.
      kv_cache: time that one more sequence adds to reading and writing the cache.
    """

    weights: float
    active_weights: float
    compute: float
    kv_cache: float

    @property
    def floor_per_token(self) -> float:
        """Seconds per token that no batch gets below."""
        return max(self.compute, self.kv_cache)


def slopes(estimator: Estimator, context: int) -> Slopes:
    """The straight lines of the floor at a context.

    The slopes are those between the smallest unpadded batch and twice that. All experts are in the
    constant `weights`, so more touched experts add to no slope.
    """
    one = estimator.padded(1)
    peaks = estimator.peaks
    first = estimator.counter.count(Pass(one, context), "all")
    second = estimator.counter.count(Pass(2 * one, context), "all")
    one_token = estimator.counter.count(Pass(one, context), "least")
    cached = second.kv_read + second.kv_written - first.kv_read - first.kv_written
    rows = (second.weights_read - first.weights_read) / one  # an embedding's, one per sequence
    return Slopes(
        weights=(first.weights_read - rows * one) / peaks.bandwidth,
        active_weights=(one_token.weights_read - rows * one) / peaks.bandwidth,
        compute=(second.flops - first.flops) / one / peaks.flops,
        kv_cache=cached / one / peaks.bandwidth,
    )


def critical_batch(estimator: Estimator) -> float:
    """The batch beyond which arithmetic takes longer than reading all weights, without a context.

    For a dense model: peak FLOP/s times bytes per weight over twice the bandwidth. For a mixture,
    that times total over active parameters.
    """
    lines = slopes(estimator, 0)
    return lines.weights / lines.compute


def balanced_context(estimator: Estimator, times: float = 1.0) -> float | None:
    """The context at which one more sequence adds `times` as much time to memory as to compute.

    With a longer one than that of ``times=1`` no batch makes a step compute-bound; MFU at large
    batches is at most ``1 / times`` there. None if the cache always takes less time, as with
    windows in all layers, or if attention's own arithmetic is so much for each byte of the cache.

    Where windows are chunks, a step reads less as one begins: from this context on the cache takes
    as long at the beginnings of chunks, too.
    """
    chunk = _chunk(estimator.deployment.model)
    chunks = _least(lambda count: _memory_bound(estimator, count * chunk, times))
    if chunks is None or chunk == 1:
        return chunks and float(chunks)
    before = (chunks - 1) * chunk  # the beginning of the last chunk that begins otherwise
    return float(before + _least(lambda count: _memory_bound(estimator, before + count, times)))


def _least(holds: Callable[[int], bool]) -> int | None:
    """The least count from 1 on of which something holds, and of all above; None for no count."""
    low, high = 0, 1
    while not holds(high):
        low, high = high, 2 * high
        if high > 2**40:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _chunk(model: Model) -> int:
    """Tokens of a model's chunks of attention; 1 for a model without any."""
    if isinstance(model, SizedModel) or not model.chunked:
        return 1
    return max(filter(None, map(model.window, range(model.layers))), default=1)


def _memory_bound(estimator: Estimator, context: int, times: float) -> bool:
    lines = slopes(estimator, context)
    return lines.kv_cache > times * lines.compute


def least_mfu(estimator: Estimator) -> float:
    """The most that MFU can be at large batches as contexts grow without end.

    Each cached token adds to the read of the cache, and to the arithmetic of attention: their
    ratio, in seconds, is what is left.
    """
    near, far = slopes(estimator, 2**30), slopes(estimator, 2**31)
    read = far.kv_cache - near.kv_cache
    return min((far.compute - near.compute) / read, 1.0) if read else 1.0


def batching_gain(estimator: Estimator, context: int, every_expert: bool = False) -> float:
    """Cost per token at batch 1 over the lowest of any batch, both at the floor.

    Args:
      estimator: the model on its slice.
      context: tokens in the cache.
      every_expert: whether a step at batch 1 (padded if the layout divides batches) reads all
        experts, as in the simplest equation, or only those that its token chooses.
    """
    lines, padded = slopes(estimator, context), estimator.padded(1)
    weights = lines.weights if every_expert else lines.active_weights
    alone = max(weights + padded * lines.kv_cache, padded * lines.compute)
    return alone / lines.floor_per_token


def drain_s(estimator: Estimator) -> float:
    """Seconds to read a chip's memory once, which is the time of a step that uses all of it."""
    peaks = estimator.peaks
    return peaks.capacity / peaks.bandwidth


def largest_batch(estimator: Estimator, context: int, stages: int = 1, spare: int = 0) -> int:
    """Sequences that fit beside the weights, a multiple of what the layout divides them into.

    In a pipeline they are those of each batch in flight: a chip has a stage's part of the weights
    and, with as many batches in flight as stages, as much cache as without.

    Args:
      estimator: the model on a slice.
      context: tokens in the cache of each sequence before a step.
      stages: slices that the layers are divided over.
      spare: slots that a window's ring has more than its window.
    """
    one = estimator.padded(1)
    steps = (Pass(n * one, context, spare=spare) for n in (1, 2))
    few, more = map(estimator.counter.count, steps)
    each = more.held - few.held
    elsewhere = few.weights_resident * (1 - 1 / stages)
    free = estimator.peaks.capacity - (few.held - each) + elsewhere
    return max(math.floor(free / each), 0) * one
