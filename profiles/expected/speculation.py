"""The floor of steps that verify several tokens of each sequence, and the batches where they pay.

`profiles.floor.speculation` has the closed form for a dense model. Here work is counted as it is: a
mixture's step of more tokens reads more experts, so that at few sequences it may not pay either.
"""

import dataclasses
import itertools

from profiles.expected.balance import largest_batch
from profiles.expected.estimate import Estimator
from profiles.floor.bound import Floor, floor
from profiles.floor.passes import Pass
from profiles.floor.speculation import tokens_per_step


def verifying_floor(estimator: Estimator, batch: int, context: int, tokens: int) -> Floor:
    """The floor of a decode step of so many tokens per sequence.

    Weights and the cache are read once; a mixture's experts are those that all these tokens choose.
    Each token is written, meets the unembedding, and attends to those before it; a state is written
    once for all of them.

    Args:
      estimator: the model on its slice.
      batch: number of sequences.
      context: tokens in the cache of each of them before the step.
      tokens: new tokens of each.
    """
    deployment = estimator.deployment
    each = [deployment.count(Pass(batch, context + before)) for before in range(tokens)]
    rows = estimator.padded(batch) * tokens
    together = deployment.counter.count(Pass(rows, context), deployment.experts)
    written = deployment.counter.count(deployment.padded(Pass(batch, context, tokens))).kv_written
    counts = dataclasses.replace(
        each[0],
        weights_read=together.weights_read,
        kv_written=written,
        flops=sum(count.flops for count in each),
    )
    return floor(counts, estimator.peaks, estimator.communication(rows, 1, False).floor)


def speedup(
    estimator: Estimator, batch: int, context: int, drafted: int, acceptance: float
) -> float:
    """The floor of a token without drafts over that with them, which take no time themselves."""
    plain = verifying_floor(estimator, batch, context, 1).seconds
    verified = verifying_floor(estimator, batch, context, drafted + 1).seconds
    return plain * tokens_per_step(drafted, acceptance) / verified


def paying_batches(
    estimator: Estimator, context: int, drafted: int, acceptance: float
) -> tuple[int, int | None] | None:
    """The first batch at which speculation makes a token's floor shorter, and the last.

    The last is None where all that fit after the first do. The result is None where none does, of
    powers of two and of the largest batch that fits. Batches are multiples of what the layout
    divides them into.
    """
    one = estimator.padded(1)
    most = max(largest_batch(estimator, context, spare=drafted) // one, 1)

    def pays(count: int) -> bool:
        return speedup(estimator, count * one, context, drafted, acceptance) > 1 + 1e-9  # rounding

    tried = [*itertools.takewhile(lambda n: n < most, (1 << n for n in range(64))), most]
    found = [count for count in tried if pays(count)]
    if not found:
        return None
    first, last = found[0], found[-1]
    if first > 1:
        below = tried[tried.index(first) - 1]
        while first - below > 1:
            middle = (first + below) // 2
            first, below = (middle, below) if pays(middle) else (first, middle)
    if last == most:
        return first * one, None
    above = tried[tried.index(last) + 1]
    while above - last > 1:
        middle = (last + above) // 2
        last, above = (middle, above) if pays(middle) else (last, middle)
    return first * one, last * one
