"""One step as the record that programs read: what it must cost beside what it did cost."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from decode.engine import Engine
from model.declarations import count, count_active
from model.gpu_kernels import kernels_on
from model.transformer import Transformer
from profiles.chips.chip import Peaks
from profiles.floor.bound import Floor, floor
from profiles.floor.bytes_and_flops import PassCounter
from profiles.floor.experts import expected_experts
from profiles.floor.passes import Counts, Pass
from profiles.report.document import summarise
from profiles.report.numbers import byte_size
from profiles.report.partitioning import partitioning
from profiles.report.record import BytesPerChip, Experts, Record

Phase = Literal["decode", "prefill"]
CACHE_MULTIPLE = 4  # below this many times the cache, memory's rate bounds nothing


def step_record(
    engine: Engine,
    peaks: Peaks,
    pass_: Pass,
    *,
    phase: Phase = "decode",
    samples: Sequence[float] = (),
    steps_per_sample: int | None = 1,
    calls: Sequence[float] = (),
    experts_touched: float | None = None,
    price_per_chip_hour: float | None = None,
) -> Record:
    """The record of one decode step, or of a pass over prompts.

    Args:
      engine: the model on its mesh.
      peaks: peak rates of each device.
      pass_: its sizes.
      phase: what it is a part of; a prompt's last chunk can have one token.
      samples: measured seconds per step; none for a floor alone.
      steps_per_sample: number of steps whose mean a sample is; None for a sum of several passes.
      calls: measured seconds until the call of a step returned.
      experts_touched: distinct experts that a layer read, on average over layers; if None, those
        that evenly spread tokens would touch.
      price_per_chip_hour: USD, for the cost per token.
    """
    placement = engine.placement if phase == "decode" else engine.placement.prefill
    counter = PassCounter(engine.config, placement, engine.dtypes)
    traffic = counter.count(pass_, experts_touched)
    bound = floor(traffic, peaks)
    chips = -(-engine.mesh.size // peaks.devices_per_chip)
    unfilled = counter.unfilled(pass_) if phase == "decode" else None
    record = (
        _describe(engine, pass_, phase)
        | _costs(traffic, bound, peaks, engine.mesh.size, unfilled)
        | Record(chips=chips)
    )
    tokens = pass_.batch * pass_.tokens
    if engine.config.experts:
        touched = Experts() if experts_touched is None else Experts(measured=experts_touched)
        touched["expected"] = expected_experts(engine.config, tokens)
        record |= Record(experts_touched=touched)
    if not samples:
        return record
    measured = summarise(samples)
    host = summarise(calls) if calls else None
    fractions = _fractions(traffic, bound, peaks, measured["median"], phase)
    if fractions.ok:
        fractions |= _at_read_rate(traffic, peaks, measured["median"])
    return (
        record
        | Record(step_s=measured, steps_per_sample=steps_per_sample, host_s=host)
        | _throughput(tokens, chips, measured["median"], price_per_chip_hour)
        | fractions
    )


def _throughput(tokens: int, chips: int, seconds: float, price: float | None) -> Record:
    """Tokens per second, and their cost where there is a price."""
    rate = tokens / seconds
    throughput = Record(tokens_per_s=rate, tokens_per_s_per_chip=rate / chips)
    if price is None:
        return throughput
    cost = price * chips / rate / 3600 * 1e6
    return throughput | Record(usd_per_million_tokens=cost, price={"usd_per_chip_hour": price})


def _fractions(traffic: Counts, bound: Floor, peaks: Peaks, seconds: float, phase: Phase) -> Record:
    """Shares of the floor and of the peaks, unless part of the bytes may never leave the chip.

    The floor of prompts that are bound by arithmetic applies wherever their bytes are.
    """
    by_arithmetic = phase == "prefill" and bound.bound == "compute"
    if (message := cache_resident(traffic, peaks)) and not by_arithmetic:
        return Record(status="cache_resident", message=message)
    return Record(
        fraction_of_floor=bound.seconds / seconds,
        fraction_of_weight_floor=bound.weights / seconds,
        mfu=traffic.flops / peaks.flops / seconds,
        mbu=traffic.memory / peaks.bandwidth / seconds,
        status="ok",
    )


def cache_resident(traffic: Counts, peaks: Peaks) -> str:
    """Why no floor of memory applies, where bytes may stay in the cache; empty where it does."""
    if traffic.memory >= CACHE_MULTIPLE * (peaks.on_chip or 0):
        return ""
    return (
        f"its {byte_size(traffic.memory)} per device are less than {CACHE_MULTIPLE} times the "
        f"cache ({byte_size(peaks.on_chip)} per device), so that some may stay there and no floor "
        "applies; measure a larger model, batch or context"
    )


def _at_read_rate(traffic: Counts, peaks: Peaks, seconds: float) -> Record:
    """The floor at the rate that read kernels reached, where the floor itself is at another."""
    if peaks.read_rate is None:
        return Record()
    least = floor(traffic, dataclasses.replace(peaks, bandwidth=peaks.read_rate)).seconds
    return Record(read_floor_s=least, fraction_of_read_floor=least / seconds)


def describe_step(engine: Engine, *, batch: int, context: int, tokens: int = 1) -> Record:
    """The part of a record that says which decode step it is, of so many tokens a sequence."""
    return _describe(engine, Pass(batch, context, tokens), "decode")


def _describe(engine: Engine, pass_: Pass, phase: Phase) -> Record:
    model = Transformer(engine.config, engine.dtypes)
    return Record(
        model=engine.config.name,
        parameters={"total": count(model), "active": count_active(model)},
        phase=phase,
        batch=pass_.batch,
        context=pass_.context,
        tokens_per_sequence=pass_.tokens,
        slots=pass_.slots,
        device_kind=engine.mesh.devices.flat[0].device_kind,
        devices=engine.mesh.size,
        **partitioning(engine.config, engine.placement, phase == "prefill").to_json(),
        **engine.dtypes.names(),
        gpu_kernels=kernels_of(engine),
    )


def kernels_of(engine: Engine) -> str | None:
    """The kernels that an engine's steps on GPUs may have, as records name them."""
    platform = engine.mesh.devices.flat[0].platform
    return kernels_on(platform, engine.config, engine.dtypes, engine.placement)


def _costs(
    traffic: Counts, bound: Floor, peaks: Peaks, devices: int, unfilled: float | None
) -> Record:
    per_chip = min(devices, peaks.devices_per_chip)
    counted = traffic.bytes_of(per_chip)
    if unfilled is not None:
        counted["kv_unfilled"] = unfilled * per_chip
    if peaks.capacity:
        counted["capacity"] = peaks.capacity * per_chip
    return Record(
        bytes_per_chip=BytesPerChip(**counted),
        flops_per_chip=traffic.flops * per_chip,
        flops_per_byte=traffic.flops / traffic.memory,
        floor_s=bound.seconds,
        floor_terms_s=bound.terms(),
        weight_floor_s=bound.weights,
        bound=bound.bound,
    )
