"""Estimates for people: a table of floors and expected times, and what follows for serving."""

import itertools
from collections.abc import Callable, Iterable, Sequence

from profiles.chips.chip import Chip
from profiles.expected import balance, economics
from profiles.expected.estimate import Estimate, Estimator
from profiles.floor.delta_counts import states_in_words
from profiles.floor.deployment import Model
from profiles.floor.sized_models import SizedModel
from profiles.report.numbers import exact, ms, number, several
from profiles.report.partitioning import cache_words
from profiles.report.record import Record
from profiles.report.table import Table, wrap
from profiles.report.titles import distinct, field_text, subject, text_of

FASTER = 2.5  # times: what providers sell as a fast mode
HEAD = (
    *("weights ms", "KV ms", "compute ms", "links ms"),
    *("floor ms", "bound by", "expected ms", "tokens/s/chip", "USD/Mtok", "GB per chip"),
)
_VARYING = (
    "topology", "mesh", "layout", "attention", "expert_parallel", "dtype", "arithmetic",
    "weight_dtype", "kv_dtype",
)  # fmt: skip
"""Fields that a column shows where they differ."""
EXPERTS = {
    "coverage": "those that evenly spread tokens choose",
    "least": "those of one token",
    "all": "all",
}


def title(
    points: Sequence[Record], estimators: Sequence[Estimator], price: Callable[[Chip], str]
) -> str:
    """What was estimated, at which peaks, and with which calibration and price of each chip."""
    chips = dict.fromkeys(estimator.deployment.slice.chip.name for estimator in estimators)
    caches = dict.fromkeys(filter(None, map(cache_words, points)))
    lines = [
        ", ".join(
            [subject(points), *(f"mesh {each}" for each in distinct(points, "mesh")), *caches]
        )
    ]
    if experts := points[0].experts:
        lines.append(f"experts that a step reads: {EXPERTS[experts]} ({experts})")
    deployments = (estimator.deployment for estimator in estimators)
    states = (states_in_words(each.model, each.dtypes) for each in deployments)
    lines += dict.fromkeys(itertools.chain.from_iterable(states))
    for name in chips:
        of_chip = [e for e in estimators if e.deployment.slice.chip.name == name]
        one, kinds = of_chip[0], dict.fromkeys(each.deployment.arithmetic for each in of_chip)
        chip = one.chip
        rates = [f"{number(chip.peak(kind) / 1e12)} TFLOP/s of {kind}" for kind in kinds]
        calibration = one.deployment.calibration
        lines.append(
            f"{name}: floor at {number(chip.bandwidth / 1e9)} GB/s and "
            f"{' or '.join(rates)} per chip, {chip.source}; "
            f"expected by calibration {calibration.describe(name)}"
        )
        lines.append(f"{name}: costs of expected times: {price(chip)}")
    return "\n".join(map(wrap, lines))


def table(points: Sequence[Record]) -> str:
    """A row for each record; terms are the floor's."""
    varied = varying(points)
    per_prompt = any(point.tokens_per_sequence > 1 for point in points)
    keys = ("cached", "tokens", "batch") if per_prompt else ("context", "batch")
    rows = [(*(text_of(point, name) for name in varied), *_cells(point)) for point in points]
    return Table((*varied, *keys, *HEAD), rows).terminal()


def varying(points: Sequence[Record]) -> list[str]:
    """Fields that a table needs a column for."""
    return [name for name in _VARYING if len({str(getattr(p, name)) for p in points}) > 1]


def terms(point: Record) -> list[str]:
    """Cells of the floor's terms, the floor, and what bounds it."""
    found, names = point.floor_terms_s, ("weights", "kv_cache", "compute", "communication")
    return [*(ms(found.get(name, 0.0)) for name in names), ms(point.floor_s), point.bound]


def resident(point: Record) -> float:
    """Bytes that a chip holds."""
    held = "weights_resident", "kv_resident", "activations"
    return sum(point.bytes_per_chip[name] for name in held)


def _cells(point: Record) -> list[str]:
    tokens, cost = point.tokens_per_sequence, point.usd_per_million_tokens
    return [
        f"{point.context:,}",
        *([f"{tokens:,}"] if tokens > 1 else []),
        f"{point.batch:,}",
        *terms(point),
        ms(point.expected_s),
        number(point.tokens_per_s_per_chip),
        number(cost) if cost is not None else "",
        number(resident(point) / 1e9) + " (!)" * (not point.fits),
    ]


def chunk_notes(model: Model, contexts: Iterable[int]) -> list[str]:
    """Where a step's token begins a chunk of attention, what other steps read that this does not.

    Args:
      model: the model.
      contexts: tokens before those of the steps that are estimated.
    """
    if isinstance(model, SizedModel) or not model.chunked:
        return []
    chunks = [chunk for chunk in map(model.window, range(model.layers)) if chunk]
    return [
        wrap(
            f"-  at {context:,} tokens a chunk begins, so that {len(chunks)} of {model.layers} "
            f"layers read nothing that is cached; over all steps it is {chunk // 2:,} tokens on "
            "average"
        )
        for chunk in sorted(set(chunks))
        for context in dict.fromkeys(contexts)
        if context and context % chunk == 0
    ]


def notes(points: Sequence[Record]) -> list[str]:
    """What is padded, and what does not fit, once for each slice and dtype."""
    padded = (
        f"-  batch {point.batch:,} is padded to {point.padded_batch:,} by {point.layout}, "
        f"attention by {point.attention}, on {field_text(point.mesh)}"
        for point in points
        if point.padded_batch
    )
    unfit = (f"(!)  {point.message}" for point in points if point.message)
    return list(map(wrap, dict.fromkeys((*padded, *unfit))))


def consequences(estimator: Estimator, steps: Sequence[Estimate]) -> list[str]:
    """What the floor and the expected times mean for batches, schedules and money.

    Args:
      estimator: the model on its slice.
      steps: decode steps of it, by batch.
    """
    first, last = steps[0], steps[-1]
    batch, context = last.pass_.batch, last.pass_.context
    peaks = estimator.peaks
    return [
        *_batches(estimator, context),
        f"fetches: batch {batch:,} does {number(last.counts.flops / last.counts.memory)} "
        "FLOPs for each byte that it reads, of "
        f"{number(peaks.flops / peaks.bandwidth)} that the chip could",
        *_schedules(estimator, first, last),
        *_prices(estimator, last),
        *_phases(estimator, last),
    ]


def _batches(estimator: Estimator, context: int) -> list[str]:
    lines = balance.slopes(estimator, context)
    parameters = estimator.describe().parameters
    touched = balance.batching_gain(estimator, context)
    every = balance.batching_gain(estimator, context, every_expert=True)
    said = [
        f"floor of a step at context {context:,}: the larger of {ms(lines.weights)} ms + "
        f"{_us(lines.kv_cache)} us x batch (weights, KV cache) and {_us(lines.compute)} us x batch "
        "(compute)",
        f"critical batch: {number(balance.critical_batch(estimator))}, where compute overtakes "
        "the read of all weights, at no context",
        _balanced(balance.balanced_context(estimator)),
        f"batching gain: {number(touched)} times, the floor of a token at batch 1 over the least "
        "of any batch",
    ]
    if (model := estimator.deployment.model).experts:
        sparsity = parameters["total"] / parameters["active"]
        said[-1] += f", with the experts that it touches; {number(every)} if batch 1 read them all"
        said.append(
            f"sparsity: {number(sparsity)}, total over active parameters; experts alone are "
            f"{exact(model.experts / model.experts_per_token)}"
        )
    return said


def _balanced(context: float | None) -> str:
    """Where memory and compute of one more sequence balance, if they do."""
    if context is None:
        return "balanced context: none; the cache never costs as much as compute"
    if context <= 1:
        return "balanced context: none; states cost more than compute, so no batch is compute-bound"
    return f"balanced context: {exact(context)} tokens, beyond which no batch is compute-bound"


def _schedules(estimator: Estimator, first: Estimate, last: Estimate) -> list[str]:
    batch, context = last.pass_.batch, last.pass_.context
    room = balance.largest_batch(estimator, context)
    train = economics.schedule(last, 1)
    said = [
        f"drain time: {ms(balance.drain_s(estimator))} ms to read all of a chip's memory once, "
        f"the step of a chip that is full; {several(room, 'sequence')} of {context + 1:,} "
        f"tokens {'fits' if room == 1 else 'fit'}",
        f"departing trains: with a batch of {batch:,} every {ms(train.period_s)} ms "
        f"(expected), a token that just missed one takes {ms(train.total_s)} ms",
    ]
    if batch > first.pass_.batch:
        speed = last.expected.seconds / first.expected.seconds
        cost = first.expected.seconds / first.pass_.batch / (last.expected.seconds / batch)
        said.append(
            f"latency for money: batch {first.pass_.batch:,} is {number(speed)} times as fast as "
            f"batch {batch:,} and {number(cost)} times as dear per token (expected)"
        )
    return said


def _prices(estimator: Estimator, last: Estimate) -> list[str]:
    """What speed costs, and what a price step at this context would say of a cache."""
    batch, context = last.pass_.batch, last.pass_.context
    times = economics.price_of_speed(estimator, context, batch, FASTER)
    price = f"{number(times)} times as dear per token" if times else "beyond any batch"
    ratio = estimator.peaks.flops / estimator.peaks.bandwidth
    active = estimator.describe().parameters["active"]
    implied = economics.implied_kv_bytes(active, ratio, max(context, 1))
    return [
        f"price of speed: a step {exact(FASTER)} times as fast as batch {batch:,}'s is "
        f"{price} (expected)",
        f"a price step at {several(context, 'token')} would imply {number(implied)} bytes of "
        "cache per token, where compute is overtaken; here they are "
        f"{number(economics.token_bytes(estimator))}, copies included",
    ]


def _phases(estimator: Estimator, last: Estimate) -> list[str]:
    batch, context = last.pass_.batch, last.pass_.context
    prompt = max(context, 2)
    cached = prompt - max(prompt // 10, 2)
    if cached < 1:
        return []
    sizes = {"prompt": prompt, "cached": cached, "batch": batch, "context": context}
    costs = economics.phase_costs(estimator, **sizes)
    return [
        f"prefill: a token of a prompt of {prompt:,} costs "
        f"{number(costs.prefill / costs.decode)} of a decoded one at batch {batch:,} "
        f"(expected); with the first {cached:,} cached, "
        f"{number(costs.cached_prefill / costs.decode)}: "
        f"{number(costs.prefill / costs.cached_prefill)} times less"
    ]


def _us(seconds: float) -> str:
    return number(seconds * 1e6)
