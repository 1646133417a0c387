"""For people: what else a floor says of money, by questions that flags of `estimate.py` ask."""

from collections.abc import Sequence

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
from profiles.floor.expert_layer import Domains, placed
from profiles.floor.passes import Pass
from profiles.floor.pipelines import least_layers
from profiles.floor.speculation import tokens_per_step
from profiles.floor.tiers import implied, tiers
from profiles.floor.traffic import filling, services
from profiles.floor.training import (
    OPTIMAL,
    SERVED,
    TRAINED,
    TRAINING_MFU,
    balanced_tokens,
    past_optimal,
)
from profiles.report.numbers import exact, ms, number, several


def filled(estimator: Estimator) -> list[str]:
    """The traffic that fills a slice, and the context at which MFU is half of the best."""
    batch, step = critical_batch(estimator), drain_s(estimator)
    tokens = filling(batch, step)
    slices = [f"{each.name} {number(each.tokens_per_s / tokens)}" for each in services()]
    return [
        _halved(estimator),
        f"traffic that fills it: {number(batch)} sequences (critical batch) x {number(1 / step)} "
        f"steps per second (a drain time each) = {number(tokens)} tokens/s; published traffic "
        f"would fill as many such slices: {', '.join(slices)}",
    ]


def _halved(estimator: Estimator) -> str:
    twice = balanced_context(estimator, 2.0)
    if twice is None:
        left = number(least_mfu(estimator))
        return (
            f"MFU halves at no context: attention's own arithmetic keeps it above {left} of what "
            "it is without a cache"
        )
    return (
        f"MFU halves at a context of {exact(twice)} tokens, where reading a sequence's cache takes "
        "twice as long as its arithmetic; if attention read the square root of the context, at "
        f"the square of that, {number(twice**2)}"
    )


def expert_layer(estimator: Estimator, batch: int) -> list[str]:
    """Where a mixture's experts lie, and how long its tokens travel in one rack and in two.

    Empty for a dense model, and for chips without a fabric and a network of known rates.
    """
    deployment, chip = estimator.deployment, estimator.chip
    model, slice = deployment.model, deployment.slice
    if not (model.experts and chip.fabric and chip.network and slice.domain > 1):
        return []
    each, holding = placed(model.experts, slice.chips)
    sent = batch * model.experts_per_token * model.d_model * deployment.dtypes.dtype.itemsize
    payload = 2 * sent / slice.chips  # there and back
    rates = chip.fabric, chip.network
    here = Domains(slice.chips, slice.domain, *rates).exchange_s(payload)
    one = Domains(slice.domain, slice.domain, *rates).exchange_s(payload)
    two = Domains(2 * slice.domain, slice.domain, *rates).exchange_s(payload)
    domains = several(slice.chips // slice.domain, "domain")
    return [
        f"expert layer: {exact(model.experts)} experts on {several(slice.chips, 'chip')}: "
        f"{holding} with {each} each hold all, {slice.chips - holding} none (floors divide evenly)",
        f"expert layer, tokens to {several(model.experts_per_token, 'expert')} and back: "
        f"{_us(here)} us over {domains} of {slice.domain} at batch {batch:,}; as many bytes a chip "
        f"take {number(two / one)} times as long over two domains as in one, for half of them go "
        f"through a network {number(chip.fabric / chip.network)} times slower",
    ]


def _us(seconds: float) -> str:
    return number(seconds * 1e6)


def speculation(
    estimator: Estimator, batch: int, context: int, drafted: int, acceptance: float
) -> list[str]:
    """The floor of a step that verifies drafts, and the batches at which it pays."""
    kept = tokens_per_step(drafted, acceptance)
    step = verifying_floor(estimator, batch, context, drafted + 1)
    gain = speedup(estimator, batch, context, drafted, acceptance)
    return [
        f"speculation: a step of {several(drafted + 1, 'token')} per sequence keeps {number(kept)} "
        f"of them if {several(drafted, 'drafted token')} pass{'es' * (drafted == 1)} with "
        f"probability {exact(acceptance)} each; at "
        f"batch {batch:,} its floor is {ms(step.seconds)} ms, so {ms(step.seconds / kept)} ms per "
        f"token, {number(gain)} times as fast as without (drafts themselves at no cost)",
        "speculation pays "
        + _paying(paying_batches(estimator, context, drafted, acceptance))
        + f" at context {context:,}, by floors",
    ]


def held(estimator: Estimator, context: int, seconds: Sequence[float]) -> list[str]:
    """What a cache costs that is held in each tier for so long, and which tier that implies."""
    chip = estimator.chip
    offered = tiers(chip.name, estimator.recommended_chip.capacity, chip.bandwidth)
    times = [f"{exact(each)} s" for each in seconds]
    said = []
    for tier in offered:
        rounded = " to ".join(dict.fromkeys(map(exact, tier.round_s)))
        fetches = [
            f"{number(tier.fetches(each))} fetches if held for {time}"
            for time, each in zip(times, seconds, strict=True)
        ]
        said.append(
            f"{tier.name} ({tier.device}): read once in {number(tier.drain_s)} s (round figure "
            f"{rounded}); a cache in it costs as much as {', '.join(fetches)}"
        )
    for time, each in zip(times, seconds, strict=True):
        said.append(
            f"held for {time}: {implied(offered, each).name} by these devices, "
            f"{implied(offered, each, rounded=True).name} by round figures: there it costs most "
            "nearly what one fetch does"
        )
    prompt = max(context, 2)
    after = economics.recomputed_after_s(estimator, prompt)
    parts = [
        f"{number(each / after)} for {time}" for time, each in zip(times, seconds, strict=True)
    ]
    return [
        *said,
        f"holding over computing again, a token of a prompt of {prompt:,} in HBM: "
        f"{', '.join(parts)} (expected)",
    ]


def trained(step: Estimate, parameters: float, tokens_per_s: float, days: float) -> list[str]:
    """How many tokens cost as much to train on as a life of serving, and how far past the optimum.

    Args:
      step: the decode step that serving takes.
      parameters: the model's active parameters.
      tokens_per_s: traffic of the model, on all slices that it takes.
      days: how long it is served.
    """
    deployment, served = step.deployment, tokens_per_s * days * 86_400
    peak = deployment.slice.chips * deployment.slice.chip.recommended.peak(deployment.arithmetic)
    mfu = SERVED * parameters * step.pass_.batch / step.expected.seconds / peak
    cases = [
        ("at the same MFU", balanced_tokens(served)),
        (
            f"at the expected MFU of a step of {step.pass_.batch:,}, {number(mfu)}, and "
            f"{TRAINING_MFU} in training",
            balanced_tokens(served, mfu, TRAINING_MFU),
        ),
    ]
    said = [
        f"{_trillions(tokens)} {how}, {number(past_optimal(tokens, parameters))} times as many"
        for how, tokens in cases
    ]
    return [
        f"served over {several(days, 'day')} at {exact(tokens_per_s)} tokens/s: "
        f"{_trillions(served)} tokens, {SERVED} FLOPs per active parameter each",
        f"compute-optimal training: {_trillions(OPTIMAL * parameters)} tokens, {OPTIMAL} per "
        f"active parameter; trained tokens that cost as much as those served, {TRAINED} FLOPs per "
        f"active parameter each: {'; '.join(said)}",
    ]


def _trillions(count: float) -> str:
    return f"{number(count / 1e12)} trillion"


def pipelined(estimator: Estimator, step: Pass, stages: int, hop_s: float) -> list[str]:
    """What stages on slices of their own do to memory and latency, and whether they hide hops.

    Args:
      estimator: the model on one slice.
      step: a decode step of a batch in flight.
      stages: number of slices.
      hop_s: latency of a hop, in seconds.
    """
    chip, model, parts = estimator.chip, estimator.deployment.model, (step.batch, step.context)
    one, many = (economics.pipeline(estimator, n, *parts, hop_s) for n in (1, stages))
    hops = f", {ms(stages * hop_s)} of them in {several(stages, 'hop')}" if hop_s else ""
    room, more = (largest_batch(estimator, step.context, n) for n in (1, stages))
    said = (
        f"pipeline of {several(stages, 'such slice')}: weights {number(one.weights / 1e9)} -> "
        f"{number(many.weights / 1e9)} GB per chip, KV cache {number(one.kv_cache / 1e9)} GB "
        f"as before, for {stages} batches are under way; a token's floor {ms(one.step_s)} -> "
        f"{ms(many.step_s)} ms{hops}; sequences that fit in each "
        f"batch {room:,} -> {more:,}"
    )
    ratio = many.inside_over_between
    if ratio is None:
        return [said]
    rates, chosen = chip.network / chip.fabric, model.experts_per_token
    return [
        said,
        f"its hops are {'hidden' if ratio >= 1 else 'not hidden'}: network over fabric, "
        f"{number(rates)}, x {several(chosen, 'expert')} x 2 x {exact(model.layers / stages)} "
        f"layers per stage = {number(ratio)}; from {several(least_layers(rates, chosen), 'layer')} "
        "on it is 1 or more",
    ]


def _paying(batches: tuple[int, int | None] | None) -> str:
    if batches is None:
        return "at no batch"
    first, last = batches
    if last is None:
        return "at every batch that fits" + f", from {first:,}" * (first > 1)
    return f"up to batch {last:,}" if first == 1 else f"from batch {first:,} to {last:,}"
