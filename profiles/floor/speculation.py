"""Speculative decoding: the floor of a step, its tokens, and the batch beyond which it costs time.

A step verifies T = `drafted` + 1 tokens of each sequence in one pass: it reads weights and cache
once, and multiplies T times as much. Source: Leviathan et al. 2023 (arXiv 2211.17192), equation 1.
"""

import dataclasses
import math

from profiles.chips.chip import Peaks
from profiles.floor.bound import floor
from profiles.floor.bytes_and_flops import PassCounter
from profiles.floor.passes import Counts, Pass


def tokens_per_step(drafted: int, acceptance: float) -> float:
    """Expected tokens that a step adds to a sequence: (1 - a ** (d + 1)) / (1 - a).

    The first drafted token that is rejected ends what is accepted, and the step gives one token of
    its own after it.

    Args:
      drafted: tokens drafted for each sequence and step.
      acceptance: probability that a drafted token is accepted if all before it are.
    """
    return math.fsum(acceptance**count for count in range(drafted + 1))


def largest_paying_batch(
    weights: float, kv_cache: float, compute: float, drafted: int, acceptance: float
) -> float:
    """The batch beyond which speculation makes a token's floor longer; infinite if none does.

    A step's floor is max(w + B k, T B c) for T tokens per sequence, of which E are kept. At the
    batch sought, T tokens are bound by compute and one is bound by memory:
    T B c / E = w + B k, so B = w / (T c / E - k). Without a context that is the critical batch
    w / c times E / T. Drafts themselves take no time here.

    Args:
      weights: w, seconds that the read of all weights takes.
      kv_cache: k, seconds that each sequence adds to the read of caches.
      compute: c, seconds that each token adds to arithmetic.
      drafted: tokens drafted for each sequence and step.
      acceptance: probability that a drafted token is accepted if all before it are.
    """
    spent = (drafted + 1) * compute / tokens_per_step(drafted, acceptance)
    return weights / (spent - kv_cache) if spent > kv_cache else math.inf


def verification(counter: PassCounter, step: Pass) -> Counts:
    """The work of one step of the model, `step.tokens` of each sequence at once.

    Other than of a prompt, there are logits after each of them.
    """
    counts = counter.count(step)
    scored = counter.weight_flops(step.tokens, step.tokens) - counter.weight_flops(step.tokens)
    return dataclasses.replace(counts, flops=counts.flops + step.batch * scored)


def verification_floor(counter: PassCounter, peaks: Peaks, step: Pass) -> float:
    """Least seconds of one step of the model, `step.tokens` of each sequence at once."""
    return floor(verification(counter, step), peaks).seconds


def draft_step(counter: PassCounter, step: Pass) -> Counts:
    """The work of one of the draft's steps before it."""
    return counter.count(dataclasses.replace(step, tokens=1))


def draft_floor(counter: PassCounter, peaks: Peaks, step: Pass) -> float:
    """Least seconds of the draft's steps before it, one for each of `step.tokens`."""
    return step.tokens * floor(draft_step(counter, step), peaks).seconds
