"""What is wrong with a compiled step, in words, each with what it costs: costliest first.

Costs are seconds per step that the floor does not have: bytes of main memory at the floor's own
bandwidth, and collectives at their expected times. They are estimates; only a measurement adds up.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

from profiles.compiled.inspection import PassProgram, expected, surpluses
from profiles.compiled.step import CACHE, CompiledStep
from profiles.compiled.substitutes import TPU_SUBSTITUTES, settle
from profiles.compiled.toolchains import toolchain_of
from profiles.expected.estimate import Estimator
from profiles.expected.links import MeshEmbedding, embeddings, mesh_items
from profiles.floor.arrays import PlacedArray, placed_arrays
from profiles.floor.collective import ALONE, Collective, merge, without_places
from profiles.floor.element_types import bits
from profiles.floor.experts import expected_experts
from profiles.hlo.moves import Move, grouped
from profiles.report.numbers import byte_size, several
from sharding.quantization import Quantization

PADDED = 0.005  # part of all arguments from which padding by tiles is a finding
LEAST = 1e-3  # part of a floor: moves that cost less are listed, but no findings
LARGE = 0.01  # part of all arguments and of a floor from which temporaries are a finding


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that costs time or memory and need not.

    Attributes:
      kind: ``cache_not_aliased``, ``copy``, ``dequantized``, ``weight_gather``, ``collective``,
        ``not_overlapped``, ``temporary``, ``replicated`` or ``padding``; of GPUs also those of
        `profiles.compiled.gpu_findings`.
      message: what it is, in words.
      cost_s: seconds per step.
    """

    kind: str
    message: str
    cost_s: float

    def as_record(self) -> dict:
        """The form that programs read."""
        return dataclasses.asdict(self)


def findings(
    step: CompiledStep, program: PassProgram, estimator: Estimator, floor_s: float
) -> list[Finding]:
    """Everything that is found, the costliest first.

    Args:
      step: the compiled step.
      program: the pass that was compiled.
      estimator: the estimator of the same model, layout and slice.
      floor_s: seconds of the pass's floor.
    """
    bandwidth, times = estimator.peaks.bandwidth, CollectiveTimes(estimator, step.collectives)
    platform = toolchain_of(estimator.deployment.slice).platform
    found = [
        *_not_aliased(step, bandwidth),
        *_moved(step, bandwidth, floor_s, _groups_hint(program, platform)),
        *_collectives(step, program, times, platform),
        *_alone(step, times),
        *_temporary(step, bandwidth, floor_s, estimator.chip.on_chip if platform == "gpu" else 0),
        *_replicated(step, program, bandwidth),
        *_padding(step, program, bandwidth),
    ]
    return sorted(found, key=lambda each: -each.cost_s)


class CollectiveTimes:
    """Expected times of collectives on a slice, in the fastest embedding of its mesh.

    Args:
      estimator: the estimator of the layout on its slice.
      listed: all collectives of a step.
    """

    def __init__(self, estimator: Estimator, listed: Sequence[Collective]):
        slice, self.calibration = estimator.deployment.slice, estimator.deployment.calibration
        slice = dataclasses.replace(slice, chip=slice.chip.recommended)
        mesh = mesh_items(estimator.deployment.mesh)
        self._embedding = min(
            embeddings(slice, mesh, False),
            key=lambda embedding: sum(
                each.count * self._seconds(each, embedding) for each in listed
            ),
        )

    def seconds(self, each: Collective) -> float:
        """Seconds of one collective with nothing else on the links."""
        return self._seconds(each, self._embedding)

    def _seconds(self, each: Collective, embedding: MeshEmbedding) -> float:
        start, per_byte = embedding.expected_cost(each.kind, each.axes, self.calibration)
        return start + each.payload_bytes * per_byte / self.calibration.link


def _not_aliased(step: CompiledStep, bandwidth: float) -> Iterator[Finding]:
    names = step.not_aliased
    if not names:
        return
    size = sum(step.arguments[name].padded for name in names)
    copied = sum(move.total_bytes for move in step.moves if move.origin in names)
    total = sum(name.startswith(CACHE) for name in step.arguments)
    yield Finding(
        "cache_not_aliased",
        f"{len(names)} of the cache's {total} arrays are not updated in place: each step writes "
        f"{byte_size(size)} of cache to other memory, which it needs besides; donate the cache",
        max(copied, size) / bandwidth,
    )


def _groups_hint(program: PassProgram, platform: str) -> str:
    """What helps where a compiler writes out matrices whose scales are of groups."""
    weights = program.dtypes.weights
    if platform != "gpu" or not isinstance(weights, Quantization) or not weights.group:
        return ""
    return "; XLA:GPU's matmul takes no scales of groups, and of int8 it writes no matrix"


def _moved(step: CompiledStep, bandwidth: float, floor_s: float, hint: str) -> Iterator[Finding]:
    """Copies, conversions and changes of layout of whole arrays; widened ones give a hint once."""
    elsewhere = set(step.not_aliased)
    for move in grouped(move for move in step.moves if move.origin not in elsewhere):
        cost = move.beside_floor * move.count / bandwidth
        if cost >= LEAST * floor_s:
            wider = move.widened and not move.origin.startswith(CACHE)
            words, hint = _move_words(move) + hint * wider, "" if wider else hint
            yield Finding("dequantized" if wider else "copy", words, cost)


def _move_words(move: Move) -> str:
    what = "held whole in more bits: " if move.widened else ""
    scope = f", in {move.scope}" if move.scope else ""
    memory = "" if "written back" in move.how else " in main memory"
    again = " to write and to read again" if move.widened else ""
    return (
        f"{move.origin} is {what}{move.how}{memory}, {_times(move.count)} a step, "
        f"{byte_size(move.written if move.widened else move.bytes)} each{again}{scope}"
    )


def _collectives(
    step: CompiledStep, program: PassProgram, times: CollectiveTimes, platform: str
) -> Iterator[Finding]:
    """Those that the layout does not explain, and those that cost more than what it asked for."""
    expected_collectives, found = expected(program, platform), step.collectives
    surplus = surpluses(expected_collectives, found, program.dtypes.dtype, platform)
    for (kind, axes, payload), count in sorted(surplus.items()):
        one = Collective(kind, axes, payload)
        words = f"{kind} over {''.join(axes)} of {byte_size(payload)}"
        weight = step.gathered.get(payload) if kind == "all-gather" else None
        if count < 0:
            message = f"{words} is in the layout {_times(-count)} more than in the program"
            yield Finding("collective", message, 0.0)
        elif weight:
            message = f"{weight} is gathered whole, {_times(count)} a step: {words}, which no "
            message += "part of the layout asks for"
            yield Finding("weight_gather", message, count * times.seconds(one))
        else:
            message = f"{words} is in the program {_times(count)} more than in the layout"
            yield Finding("collective", message, count * times.seconds(one))
    if platform == "tpu":
        yield from _replaced(expected_collectives, found, times)


def _replaced(
    expected_collectives: Sequence[Collective], found: Sequence[Collective], times: CollectiveTimes
) -> Iterator[Finding]:
    """What the compiler makes of collectives that its own do not do."""
    left = collections.Counter(
        {_key(one): one.count for one in settle(expected_collectives, found)}
    )
    for one in without_places(expected_collectives):
        entry = TPU_SUBSTITUTES.get(one.kind)
        count = one.count - left[_key(one)] if entry else 0
        if count > 0:
            made = dataclasses.replace(one, kind=entry.made)
            yield Finding(
                "collective",
                f"{one.kind} over {''.join(one.axes)} of {byte_size(one.payload_bytes)} is made as "
                f"{entry.made} and slice, {_times(count)} a step: XLA's own takes some sizes and "
                "groups alone, see profiles/compiled/substitutes.py; another mesh may be one of "
                "them, and "
                "--collectives=overlapped sends sums of matmuls round a ring",
                count * max(0.0, times.seconds(made) - times.seconds(one)),
            )


def _key(one: Collective) -> tuple[str, tuple[str, ...], int]:
    return one.kind, one.axes, one.payload_bytes


def _alone(step: CompiledStep, times: CollectiveTimes) -> Iterator[Finding]:
    """Collectives while which a chip does nothing else, by kind and axes."""
    groups: dict[tuple, list[Collective]] = {}
    for one in merge(each for each in step.collectives if each.overlap == ALONE):
        groups.setdefault((one.kind, one.axes), []).append(one)
    for (kind, axes), each in groups.items():
        cost = sum(one.count * times.seconds(one) for one in each)
        scopes = dict.fromkeys(_scopes(one.where) for one in each)
        yield Finding(
            "not_overlapped",
            f"{kind} over {''.join(axes)} runs alone {_times(sum(one.count for one in each))} a "
            f"step, with no work and no fetch of weights or cache beside it (in "
            f"{', '.join(filter(None, scopes)) or 'no named place'})",
            cost,
        )


def _scopes(chain: str) -> str:
    """Scopes with layers not told apart, each once where one operation serves several."""
    named = re.sub(r"\blayer_\d+", "layer", chain)
    return " and ".join(dict.fromkeys(re.split(r"/(?=layer/)", named)))


def _temporary(
    step: CompiledStep, bandwidth: float, floor_s: float, cached: float
) -> Iterator[Finding]:
    """Large arrays that are made in main memory, where they are written and read at least once.

    Those that collectives take or fill are in the times of these. What takes less than half of a
    GPU's `cached` bytes, its last-level cache, is still there when it is read.
    """
    part = step.temporary_bytes / step.argument_bytes
    if part < LARGE:
        return
    for what, size, count, sent in step.temporaries:
        cost = 2 * size * count / bandwidth
        if not sent and cost >= LARGE * floor_s and size > cached / 2:
            yield Finding(
                "temporary",
                f"{what} goes through main memory, {_times(count)} a step, {byte_size(size)} each "
                f"to write and to read (all temporaries take {byte_size(step.temporary_bytes)}, "
                f"{part:.0%} of arguments)",
                cost,
            )


def _replicated(step: CompiledStep, program: PassProgram, bandwidth: float) -> Iterator[Finding]:
    """Arguments of which a device has more than the layout's shard."""
    shards = {array.name: array.bytes_per_chip for array in _arrays(program)}
    groups: dict[str, list[int]] = {}
    for name, array in step.arguments.items():
        size = math.ceil(array.elements * bits(array.element) / 8)
        if size > shards.get(name, size):
            groups.setdefault(_starred(name), []).append(size - shards[name])
    for name, beyond in groups.items():
        yield Finding(
            "replicated",
            f"{name} takes {byte_size(sum(beyond))} more on each device than its shard in the "
            f"layout ({several(len(beyond), 'array')})",
            sum(beyond) / bandwidth,
        )


def _padding(step: CompiledStep, program: PassProgram, bandwidth: float) -> Iterator[Finding]:
    """Bytes that tiles add to arguments; of experts those are read that tokens choose."""
    groups: dict[str, list[int]] = {}
    stacks, touched = _experts(program)
    read = 0.0
    for name, array in step.arguments.items():
        more = array.padded - math.ceil(array.elements * bits(array.element) / 8)
        groups.setdefault(_starred(name), []).append(more)
        read += more * (touched if name in stacks else 1)
    beyond = sum(map(sum, groups.values()))
    if beyond <= PADDED * step.argument_bytes:
        return
    worst = sorted(groups, key=lambda name: -sum(groups[name]))[:3]
    sizes = {name: sum(groups[name]) for name in worst}
    shown = ", ".join(f"{name} {byte_size(held)}" for name, held in sizes.items() if held)
    yield Finding(
        "padding",
        f"arguments take {byte_size(beyond)} more than their numbers: the TPU fills up tiles "
        f"({shown})",
        read / bandwidth,
    )


def _arrays(program: PassProgram) -> list[PlacedArray]:
    """Weights and cache as the layout places them."""
    sizes = program.pass_.batch, program.pass_.cache_slots
    return placed_arrays(program.config, program.placement, program.dtypes, *sizes)


def _experts(program: PassProgram) -> tuple[set[str], float]:
    """Names of arrays that have all experts of a layer, and the part of them that a step reads."""
    if not program.config.experts:
        return set(), 1.0
    tokens = program.pass_.batch * program.pass_.tokens
    touched = expected_experts(program.config, tokens) / program.config.experts
    return {each.name for each in _arrays(program) if "E" in each.axes}, touched


def _starred(name: str) -> str:
    return "/".join("*" if part.isdigit() else part for part in name.split("/"))


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"
