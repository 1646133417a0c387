"""What else a floor says of systems and money, as numbers whose names have their units.

`profiles.expected.economics_text` puts them in words, and the field `economics` of a record has
them under the same names.
"""

import dataclasses
from collections.abc import Sequence

from model.dtypes import Dtypes
from profiles.chips.slices import Slice
from profiles.expected import economics
from profiles.expected.balance import (
    balanced_context,
    critical_batch,
    drain_s,
    largest_batch,
    least_mfu,
)
from profiles.expected.estimate import Estimate, Estimator
from profiles.expected.speculation import paying_batches, speedup, verifying_floor
from profiles.floor.deployment import Model
from profiles.floor.expert_layer import Domains, placed
from profiles.floor.passes import Pass
from profiles.floor.pipelines import least_layers
from profiles.floor.speculation import tokens_per_step
from profiles.floor.tiers import LIFE_S, Tier, implied, tiers
from profiles.floor.traffic import filling, services
from profiles.floor.training import OPTIMAL, SERVED, TRAINING_MFU, balanced_tokens, past_optimal


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The traffic that fills a slice; `slices_filled` by published traffic, by whose it is."""

    critical_batch_sequences: float
    steps_per_s: float
    tokens_per_s: float
    slices_filled: dict[str, float]


def traffic(estimator: Estimator) -> Traffic:
    """Critical batch x steps per second, each of a drain time."""
    batch, step = critical_batch(estimator), drain_s(estimator)
    tokens = filling(batch, step)
    return Traffic(
        batch, 1 / step, tokens, {each.name: each.tokens_per_s / tokens for each in services()}
    )


@dataclasses.dataclass(frozen=True)
class Utilization:
    """Where MFU at large batches is half of what it is without a cache.

    Attributes:
      halves_at_context_tokens: the context; None if it never is.
      halves_at_context_tokens_of_root: the same if attention read the square root of the context.
      least_mfu_over_most: what is left of MFU at endless contexts, where it never halves.
    """

    halves_at_context_tokens: float | None = None
    halves_at_context_tokens_of_root: float | None = None
    least_mfu_over_most: float | None = None


def utilization(estimator: Estimator) -> Utilization:
    """Where reading a sequence's cache takes twice as long as its arithmetic."""
    twice = balanced_context(estimator, 2.0)
    if twice is None:
        return Utilization(least_mfu_over_most=least_mfu(estimator))
    return Utilization(twice, twice**2)


@dataclasses.dataclass(frozen=True)
class ExpertLayer:
    """Where a mixture's experts lie, and how long its tokens travel.

    Attributes:
      experts_per_chip: of the fullest chip.
      chips_with_experts: fewest chips that hold all if none has more.
      domains: domains of a fast fabric, such as racks, that the slice is.
      chips_per_domain: chips of each.
      exchange_s: seconds to the experts of a layer and back.
      two_domains_over_one: time of as many bytes a chip over two domains, over that in one; None
        where the network's rate is not known.
      fabric_over_network: the ratio of their rates.
    """

    experts_per_chip: int
    chips_with_experts: int
    domains: int
    chips_per_domain: int
    exchange_s: float
    two_domains_over_one: float | None = None
    fabric_over_network: float | None = None


def expert_layer(model: Model, slice: Slice, dtypes: Dtypes, batch: int) -> ExpertLayer | None:
    """A layer of experts on a slice, at the chips' highest rates.

    None for a dense model, and where no fabric, or no network that is needed, has a known rate.
    """
    chip, size = slice.chip, slice.domain
    between = slice.chips > size
    if not model.experts or not chip.fabric or size == 1 or (between and not chip.network):
        return None
    sent = batch * model.experts_per_token * model.d_model * dtypes.dtype.itemsize
    payload = 2 * sent / slice.chips  # there and back

    def seconds(chips: int) -> float:
        return Domains(chips, size, chip.fabric, chip.network or chip.fabric).exchange_s(payload)

    known = {}
    if chip.network:
        known["two_domains_over_one"] = seconds(2 * size) / seconds(size)
        known["fabric_over_network"] = chip.fabric / chip.network
    each, holding = placed(model.experts, slice.chips)
    return ExpertLayer(each, holding, slice.chips // size, size, seconds(slice.chips), **known)


@dataclasses.dataclass(frozen=True)
class Speculation:
    """Floors of steps that verify drafts, drafts themselves at no cost.

    Attributes:
      speedup: tokens per second over those without drafts.
      first_paying_batch: sequences from which drafts pay; None if they never do.
      last_paying_batch: the last of them; None where all that fit after the first do.
    """

    drafted_tokens: int
    acceptance: float
    kept_tokens_per_step: float
    step_floor_s: float
    token_floor_s: float
    speedup: float
    first_paying_batch: int | None
    last_paying_batch: int | None


def speculation(estimator: Estimator, step: Pass, drafted: int, acceptance: float) -> Speculation:
    """Of a decode step, and of the batches at its context."""
    kept, sizes = tokens_per_step(drafted, acceptance), (step.batch, step.context)
    seconds = verifying_floor(estimator, *sizes, drafted + 1).seconds
    gain = speedup(estimator, *sizes, drafted, acceptance)
    paying = paying_batches(estimator, step.context, drafted, acceptance) or (None, None)
    return Speculation(drafted, acceptance, kept, seconds, seconds / kept, gain, *paying)


@dataclasses.dataclass(frozen=True)
class HeldTier:
    """What a cache costs in one memory; tuples have an entry for each time that it is held.

    Attributes:
      read_s: seconds to read the whole device once.
      round_read_s: the least and the most of them in round figures.
      fetches: how many fetches cost as much as holding.
      usd_per_million_tokens: what holding a million tokens costs; None without a price.
    """

    tier: str
    device: str
    capacity_bytes: float
    bandwidth_bytes_per_s: float
    read_s: float
    round_read_s: tuple[float, float]
    fetches: tuple[float, ...]
    usd_per_million_tokens: tuple[float, ...] | None


@dataclasses.dataclass(frozen=True)
class Held:
    """What a cache costs in each memory; tuples have an entry for each of `held_s`.

    Attributes:
      held_s: how long it is held before it is fetched.
      bytes_per_token: of its tokens, copies included.
      implied_tiers: where holding costs most nearly what one fetch does, by devices.
      implied_tiers_by_round_figures: the same by round figures.
      prompt_tokens: tokens of a prompt that may be computed again.
      held_over_computed_again: cost of holding in HBM over that of its prefill.
    """

    held_s: tuple[float, ...]
    bytes_per_token: float
    tiers: tuple[HeldTier, ...]
    implied_tiers: tuple[str, ...]
    implied_tiers_by_round_figures: tuple[str, ...]
    prompt_tokens: int
    held_over_computed_again: tuple[float, ...]


def held(estimator: Estimator, context: int, seconds: Sequence[float]) -> Held:
    """A cache that is held for so long, in each tier."""
    chip, price = estimator.chip, estimator.deployment.price
    capacity = estimator.recommended_chip.capacity
    offered = tiers(chip.name, capacity, chip.bandwidth)
    size = economics.token_bytes(estimator)

    def found(tier: Tier) -> HeldTier:
        if tier.usd_per_byte is not None:
            rate = tier.usd_per_byte / LIFE_S
        else:  # the chip's own
            rate = price and price.usd / 3600 / capacity
        usd = rate is not None and tuple(1e6 * size * rate * each for each in seconds)
        return HeldTier(
            tier.name,
            tier.device,
            tier.capacity,
            tier.bandwidth,
            tier.drain_s,
            tuple(tier.round_s),
            tuple(map(tier.fetches, seconds)),
            usd or None,
        )

    prompt = max(context, 2)
    after = economics.recomputed_after_s(estimator, prompt)
    return Held(
        tuple(seconds),
        size,
        tuple(map(found, offered)),
        tuple(implied(offered, each).name for each in seconds),
        tuple(implied(offered, each, rounded=True).name for each in seconds),
        prompt,
        tuple(each / after for each in seconds),
    )


@dataclasses.dataclass(frozen=True)
class Training:
    """Training that costs as much as a life of serving.

    Attributes:
      served_tokens: tokens served.
      optimal_tokens: those of compute-optimal training.
      balanced_tokens: those that cost as much as serving does at the same MFU.
      past_optimal: over compute-optimal ones.
      serving_mfu: expected MFU of the step that serves.
      training_mfu: taken for training beside it.
      balanced_tokens_by_mfu: tokens that cost as much at these two.
      past_optimal_by_mfu: over compute-optimal ones.
    """

    served_tokens: float
    optimal_tokens: float
    balanced_tokens: float
    past_optimal: float
    serving_mfu: float
    training_mfu: float
    balanced_tokens_by_mfu: float
    past_optimal_by_mfu: float


def training(step: Estimate, active: float, tokens_per_s: float, days: float) -> Training:
    """How many tokens cost as much to train on as serving does.

    Args:
      step: the decode step that serving takes.
      active: the model's active parameters.
      tokens_per_s: traffic of the model, on all slices that it takes.
      days: how long it is served.
    """
    deployment, served = step.deployment, tokens_per_s * days * 86_400
    peak = deployment.slice.chips * deployment.slice.chip.recommended.peak(deployment.arithmetic)
    mfu = SERVED * active * step.pass_.batch / step.expected.seconds / peak
    alike, by_mfu = balanced_tokens(served), balanced_tokens(served, mfu, TRAINING_MFU)
    return Training(
        served,
        OPTIMAL * active,
        alike,
        past_optimal(alike, active),
        mfu,
        TRAINING_MFU,
        by_mfu,
        past_optimal(by_mfu, active),
    )


@dataclasses.dataclass(frozen=True)
class Pipelined:
    """A pipeline over slices like one, beside that one alone.

    Attributes:
      stages: slices that layers are divided over, and batches in flight.
      layers_per_stage: layers of each.
      expert_layers_per_stage: layers of experts among them, on average; None for a dense model.
      hop_s: latency of one hop.
      hops_s: latency of all hops of a token.
      sent_s: time of the bytes of all hops of a token.
      weights_bytes_per_chip, weights_bytes_per_chip_alone: with stages, and on one slice alone.
      kv_bytes_per_chip: with or without stages.
      token_floor_s, token_floor_s_alone: from a token to the next.
      fitting_sequences, fitting_sequences_alone: largest batch that fits, of each in flight.
      inside_over_between: time inside a stage over that of its hop, which is hidden from 1 on; None
        for a dense model, and where the rate of no fabric is known.
      least_layers: fewest layers of experts in a stage that hide its hop; likewise.
    """

    stages: int
    layers_per_stage: float
    expert_layers_per_stage: float | None
    hop_s: float
    hops_s: float
    sent_s: float
    weights_bytes_per_chip: float
    weights_bytes_per_chip_alone: float
    kv_bytes_per_chip: float
    token_floor_s: float
    token_floor_s_alone: float
    fitting_sequences: int
    fitting_sequences_alone: int
    inside_over_between: float | None
    least_layers: int | None


def pipelined(estimator: Estimator, step: Pass, stages: int, hop_s: float) -> Pipelined:
    """What stages on slices of their own do to memory and latency, and whether they hide hops.

    Args:
      estimator: the model on one slice.
      step: a decode step of a batch in flight.
      stages: number of slices.
      hop_s: latency of a hop, in seconds.
    """
    chip, model = estimator.chip, estimator.deployment.model
    sizes = step.batch, step.context
    one, many = (economics.pipeline(estimator, n, *sizes, hop_s) for n in (1, stages))
    room, more = (largest_batch(estimator, step.context, n) for n in (1, stages))
    ratio, least = many.inside_over_between, None
    if ratio is not None:
        least = least_layers(chip.network / chip.fabric, model.experts_per_token)
    return Pipelined(
        stages=stages,
        layers_per_stage=model.layers / stages,
        expert_layers_per_stage=many.expert_layers if model.experts else None,
        hop_s=hop_s,
        hops_s=stages * hop_s,
        sent_s=many.sent_s,
        weights_bytes_per_chip=many.weights,
        weights_bytes_per_chip_alone=one.weights,
        kv_bytes_per_chip=one.kv_cache,
        token_floor_s=many.step_s,
        token_floor_s_alone=one.step_s,
        fitting_sequences=more,
        fitting_sequences_alone=room,
        inside_over_between=ratio,
        least_layers=least,
    )
