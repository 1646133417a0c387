"""A compiled step for people: beside its floor and expected time, and what was found wrong."""

import textwrap
from collections.abc import Sequence

from profiles.arrays import PlacedArray
from profiles.collective import ALONE, ASYNCHRONOUS, BESIDE, Collective
from profiles.compiled import CompiledStep
from profiles.estimate import Estimate, Estimator
from profiles.findings import Finding
from profiles.inspection import Subject, aligned
from profiles.report import WIDTH, ms
from profiles.slices import Slice
from profiles.substitutes import settle


def title(subject: Subject, where: Slice) -> str:
    """What is compiled."""
    return "\n".join(textwrap.wrap(f"{subject}, for {where}", WIDTH))


def times(estimator: Estimator, step: Estimate) -> str:
    """Floor and expected time, with what they are at."""
    chip, where = estimator.chip, estimator.setting.where
    terms = ", ".join(f"{n.replace('_', ' ')} {ms(s)} ms" for n, s in step.floor.terms().items())
    lines = [
        f"floor:     {ms(step.floor.seconds)} ms per step ({terms}), at {chip.name}'s highest "
        f"published figures, {chip.bandwidth / 1e9:,.0f} GB/s per chip",
        f"expected:  {ms(step.expected.seconds)} ms per step, by calibration "
        f"{estimator.setting.rates.said_of(where.chip.name)}",
    ]
    return _wrapped(lines)


def memory(compiled: CompiledStep, step: Estimate, arrays: Sequence[PlacedArray]) -> str:
    """Bytes of one device: the floor's beside the compiler's, and what the layout copies."""
    traffic, parts = step.traffic, step.setting.where.chip.devices_per_chip
    resident = traffic.weights_resident + traffic.kv_resident
    arguments = compiled.argument_bytes
    where = "in place" if not compiled.not_aliased else "NOT in place"
    rows = [
        ("weights and cache", _count(resident), _count(arguments), _more(arguments, resident)),
        (
            "cache, written " + where,
            _count(traffic.kv_resident),
            _count(compiled.aliased_bytes),
            _more(compiled.aliased_bytes, traffic.kv_resident),
        ),
        (
            "temporaries",
            "0",
            _count(compiled.temporary_bytes),
            f"{compiled.temporary_bytes / arguments:.1%} of arguments",
        ),
    ]
    unit = "bytes per device" + (f", {parts} to a chip" if parts > 1 else "")
    copied = sum(each.bytes_per_chip * (1 - 1 / each.copies) for each in arrays)
    note = f"(of the floor's bytes {_count(copied)} are copies that the layout states)"
    table = aligned((unit, "floor", "compiled", ""), rows)
    return table + (f"\n{note}" if copied > 1e-3 * resident else "")


def collectives(wanted: Sequence[Collective], found: Sequence[Collective]) -> str:
    """Collectives of a step: how many the layout expects, how many there are, and beside what."""
    asked = {_key(one): one.count for one in settle(wanted, found)}
    there: dict[tuple, dict[str, int]] = {}
    for one in found:
        counts = there.setdefault(_key(one), {})
        counts[one.overlap] = counts.get(one.overlap, 0) + one.count
    rows = [
        (
            key[0],
            "".join(key[1]),
            f"{key[2]:,}",
            f"{asked.get(key, 0):,}",
            f"{sum(there.get(key, {}).values()):,}",
            *(f"{there.get(key, {}).get(how, 0):,}" for how in (ASYNCHRONOUS, BESIDE, ALONE)),
        )
        for key in sorted(asked.keys() | there.keys())
    ]
    head = "collective", "axes", "bytes", "expected", "compiled"
    return aligned((*head, "asynchronous", "beside a prefetch", "alone"), rows)


def findings(found: Sequence[Finding], floor_s: float) -> str:
    """The findings, costliest first."""
    if not found:
        return "findings: none"
    lines = ["findings, costliest first (estimated, each on its own; % of the floor):"]
    for each in found:
        cost = f"{ms(each.cost_s)} ms ({each.cost_s / floor_s:.0%})"
        text = f"{cost:>16}  {each.kind}: {each.message}"
        lines.append("\n".join(textwrap.wrap(text, WIDTH, subsequent_indent=" " * 18)))
    return "\n".join(lines)


def _key(one: Collective) -> tuple[str, tuple[str, ...], int]:
    return one.kind, one.axes, one.payload_bytes


def _count(size: float) -> str:
    return f"{size:,.0f}"


def _more(size: float, than: float) -> str:
    if not than:
        return ""
    return f"{size / than - 1:+.1%}" if abs(size / than - 1) >= 5e-4 else "equal"


def _wrapped(lines: Sequence[str]) -> str:
    return "\n".join(
        part for line in lines for part in textwrap.wrap(line, WIDTH, subsequent_indent=" " * 11)
    )
