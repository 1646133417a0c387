"""A compiled step for people: beside its floor and expected time, and what was found wrong."""

from collections.abc import Mapping, Sequence

from profiles.chips.slices import Slice
from profiles.compiled.findings import Finding
from profiles.compiled.inspection import PassProgram
from profiles.compiled.step import CompiledStep
from profiles.expected.estimate import Estimate, Estimator
from profiles.floor.arrays import PlacedArray
from profiles.floor.block_counts import BLOCKS, CACHE_WRITE, SAMPLING, SCOPES, BlockCounts
from profiles.floor.collective import OVERLAPS, Collective, without_places
from profiles.hlo.kernels import LIBRARY, SORTS, Kernel
from profiles.hlo.program import Array
from profiles.report.numbers import ms, number
from profiles.report.table import Table, wrap

TEMPORARY = 0.01  # part of arguments from which temporaries are named
OTHERS = "others"  # kernels in no block of the model: residual sums, positions, the next carry


def title(program: PassProgram, slice: Slice) -> str:
    """What is compiled."""
    return wrap(f"{program}, for {slice}")


def times(estimator: Estimator, step: Estimate) -> str:
    """Floor and expected time, with what they are at."""
    chip, slice = estimator.chip, estimator.deployment.slice
    terms = ", ".join(f"{n.replace('_', ' ')} {ms(s)} ms" for n, s in step.floor.terms().items())
    lines = [
        f"floor:     {ms(step.floor.seconds)} ms per step ({terms}), at {chip.name}'s highest "
        f"published figures, {number(chip.bandwidth / 1e9)} GB/s per chip",
        f"expected:  {ms(step.expected.seconds)} ms per step, by calibration "
        f"{estimator.deployment.calibration.describe(slice.chip.name)}",
    ]
    return "\n".join(wrap(line, indent=11) for line in lines)


def memory(compiled: CompiledStep, step: Estimate, arrays: Sequence[PlacedArray]) -> str:
    """Bytes of one device: the floor's beside the compiler's, and what the layout copies."""
    traffic, parts = step.counts, step.deployment.slice.chip.devices_per_chip
    resident = traffic.weights_resident + traffic.kv_resident
    arguments = compiled.argument_bytes
    written = "in place" if not compiled.not_aliased else "NOT in place"
    rows = [
        ("weights and cache", _count(resident), _count(arguments), _more(arguments, resident)),
        (
            "cache, written " + written,
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
    lines = [Table((unit, "floor", "compiled", ""), rows).terminal()]
    if copied > 1e-3 * resident:
        lines.append(f"(of the floor's bytes {_count(copied)} are copies that the layout states)")
    if compiled.temporary_bytes > TEMPORARY * arguments:
        lines += [
            f"(temporaries hold {each.what}: {_count(each.bytes)}, {each.count:,} a step)"
            for each in compiled.temporaries[:3]
        ]
    return "\n".join(lines)


def collectives(asked_for: Sequence[Collective], found: Sequence[Collective]) -> str:
    """Collectives of a step: how many are expected, how many there are, and beside what.

    Args:
      asked_for: those that the layout asks for, as `inspection.as_made` has them.
      found: those of the program.
    """
    asked = {_key(one): one.count for one in without_places(asked_for)}
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
            *(f"{there.get(key, {}).get(how, 0):,}" for how in OVERLAPS),
        )
        for key in sorted(asked.keys() | there.keys())
    ]
    if not rows:
        return "collectives: none, as expected"
    head = "collective", "axes", "bytes", "expected", "compiled"
    return Table((*head, *OVERLAPS), rows).terminal()


def findings(found: Sequence[Finding], floor_s: float) -> str:
    """The findings, costliest first."""
    if not found:
        return "findings: none"
    lines = ["findings, costliest first (estimated, each on its own; % of the floor):"]
    for each in found:
        cost = f"{ms(each.cost_s)} ms ({each.cost_s / floor_s:.0%})"
        text = f"{cost:>16}  {each.kind}: {each.message}"
        lines.append(wrap(text, indent=18))
    return "\n".join(lines)


def weight_layouts(default: CompiledStep, free: CompiledStep, bandwidth: float) -> str:
    """What changes where the compiler may lay weights out as it likes.

    Args:
      default: compiled with weights as they are stored.
      free: the same step with weights as the compiler likes them.
      bandwidth: bytes per second of a device's memory.
    """
    changed = layout_changes(default, free)
    lines = ["", "with --weight_layout=auto, weights as the compiler would have them:"]
    lines += [
        f"  {each['array']} ({each['count']}): {each['default']} -> {each['auto']}"
        for each in changed
    ] or ["  none would lie otherwise"]
    sizes = [f"{_count(one.temporary_bytes)}" for one in (default, free)]
    moved = [sum(move.total_bytes for move in one.moves) / bandwidth for one in (default, free)]
    lines.append(f"  temporaries {sizes[0]} -> {sizes[1]} bytes")
    lines.append(f"  whole arrays moved {ms(moved[0])} -> {ms(moved[1])} ms a step")
    return "\n".join(lines)


def layout_changes(default: CompiledStep, free: CompiledStep) -> list[dict]:
    """Arrays that lie otherwise, those alike in all layers as one."""
    counts: dict[tuple[str, str, str], int] = {}
    for name, array in default.arguments.items():
        other = free.arguments.get(name, array)
        if (array.order, array.tiles) != (other.order, other.tiles):
            starred = "/".join("*" if part.isdigit() else part for part in name.split("/"))
            key = starred, _physical(array), _physical(other)
            counts[key] = counts.get(key, 0) + 1
    return [
        {"array": name, "count": count, "default": before, "auto": after}
        for (name, before, after), count in counts.items()
    ]


def _physical(array: Array) -> str:
    """Dimensions from the outermost in memory to the innermost, and tiles."""
    return f"[{','.join(str(axis) for axis in reversed(array.order))}] {array.tiles}"


def _key(one: Collective) -> tuple[str, tuple[str, ...], int]:
    return one.kind, one.axes, one.payload_bytes


def _count(size: float) -> str:
    return f"{size:,.0f}"


def _more(size: float, than: float) -> str:
    if not than:
        return ""
    return f"{size / than - 1:+.1%}" if abs(size / than - 1) >= 5e-4 else "equal"


def kernels(found: Sequence[Kernel], layers: int, floors: Mapping[str, BlockCounts]) -> str:
    """Kernels of a step for GPUs by block of the model: how many, and what each block reads.

    Args:
      found: all kernels.
      layers: layers of the model.
      floors: the least work of each block.
    """
    sorts = {sort: sum(each.count for each in found if each.sort == sort) for sort in SORTS}
    total = sum(sorts.values())
    named = ", ".join(f"{sort} {count:,}" for sort, count in sorts.items() if count)
    calls = sorts[LIBRARY] or "none"
    blocks: dict[str, list[Kernel]] = {}
    for each in found:
        blocks.setdefault(SCOPES.get(each.place.rpartition("/")[2], OTHERS), []).append(each)
    order = [block for block in (*BLOCKS, SAMPLING, OTHERS) if block in blocks]
    rows = [_block_row(block, blocks[block], layers, floors.get(block)) for block in order]
    read = sum(each.count * (each.weights_read + each.cache_read) for each in found)
    least = sum(floor.bytes for block, floor in floors.items() if block != CACHE_WRITE)
    head = ("kernels of", "a step", "a layer", "bytes read", "weights and cache", "floor's", "")
    return "\n".join(
        (
            wrap(f"kernels: {total:,} a step ({named}), library calls {calls}"),
            Table(head, rows).terminal(),
            f"weights and cache that kernels read: {_count(read)}, the floor's {_count(least)}"
            + (f" ({more})" if (more := _beyond(read, least)) else ""),
            wrap(
                "(bytes are those that a kernel's operands hold: of attention all slots of the "
                "cache, of which its Pallas kernel reads the filled ones, and of experts in groups "
                "all of a stack, of which it reads one, or in MXFP4 those that are chosen; a block "
                "that reads less than the floor's has parts of its weights read in another's "
                "kernels, or divided)"
            ),
            wrap(
                "(no GPU was there to try kernels on: with one, autotuning chooses the blocks of "
                "matmuls, and cuBLAS or cuDNN in place of some of them)"
            ),
        )
    )


def _block_row(
    block: str, found: Sequence[Kernel], layers: int, floor: BlockCounts | None
) -> tuple[str, ...]:
    """A block's kernels, and the bytes that they read beside the floor's."""
    inside = sum(each.count for each in found if each.place.startswith("layer/"))
    read = sum(each.count * each.bytes_read for each in found)
    resident = sum(each.count * (each.weights_read + each.cache_read) for each in found)
    least = floor.bytes if floor and block != CACHE_WRITE else 0
    return (
        block,
        f"{sum(each.count for each in found):,}",
        number(inside / layers) if inside else "",
        _count(read),
        _count(resident),
        _count(least) if least else "",
        _beyond(resident, least),
    )


def _beyond(size: float, least: float) -> str:
    """How much more is read than the least; empty where it is less, as of a part of it."""
    more = _more(size, least)
    return "" if more.startswith("-") else more
