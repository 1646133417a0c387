"""A step explained: what each block took, beside the least that it could have taken.

The floor of a step lets everything overlap; blocks run one after the other. So the way from floor
to measured has a first part, the blocks' own floors one after another, and then what each block
takes over its own.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from profiles.chips.chip import Peaks
from profiles.explained.attribution import Attribution
from profiles.explained.blocks import HOST, LAUNCHES, block_of_scope, collective_kind
from profiles.explained.operations import Operations
from profiles.floor.block_counts import BlockCounts
from profiles.report.record import Record

SHOWN = 5  # operations of a block that are listed in its record


class Share(NamedTuple):
    """An operation of a block: its name, what it does, and its seconds of a step."""

    name: str
    opcode: str
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """A block of a step.

    Attributes:
      name: one of `block_counts.BLOCKS` or of `blocks`, or the scope of an operation beside them.
      measured_s: seconds of the step.
      floor_s: the least that its own bytes and FLOPs take; 0 for what a step need not do.
      bytes: that each device must read or write for it.
      flops: that each device must compute for it.
      operations: what ran, the longest first.
    """

    name: str
    measured_s: float
    floor_s: float = 0.0
    bytes: float = 0.0
    flops: float = 0.0
    operations: tuple[Share, ...] = ()

    @property
    def over_floor_s(self) -> float:
        """What it takes over its own floor; below zero if caches or other blocks did its work."""
        return self.measured_s - self.floor_s

    def to_json(self) -> dict:
        """The fields that programs read; sizes are per device."""
        work = {"bytes_per_device": self.bytes, "flops_per_device": self.flops}
        return {
            "name": self.name,
            "measured_s": self.measured_s,
            "floor_s": self.floor_s,
            **{name: value for name, value in work.items() if value},
            "operations": [one._asdict() for one in self.operations[:SHOWN]],
        }


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A measured step as the sum of its blocks.

    Attributes:
      record: the step.
      blocks: those that took longest over their own floors first; they and what is unattributed
        add up to the measured step.
      unattributed_s: seconds of operations of which nothing tells the block.
      traced_s: the step's wall time in the trace, which is longer than that of a timed step.
      steps: steps in the trace.
      platform: cpu, gpu or tpu.
    """

    record: Record
    blocks: Sequence[Block]
    unattributed_s: float
    traced_s: float
    steps: int
    platform: str

    @property
    def measured_s(self) -> float:
        """The step's time."""
        return self.record.step_s["median"]

    @property
    def named(self) -> float:
        """The part of the step that blocks have."""
        return 1 - self.unattributed_s / self.measured_s

    def waterfall(self) -> list[dict]:
        """From floor to measured: names and seconds, which add up; parts over floors in order."""
        floors = sum(block.floor_s for block in self.blocks)
        return [
            {"name": "floor", "seconds": self.record.floor_s},
            {"name": "blocks in turn", "seconds": floors - self.record.floor_s},
            *({"name": each.name, "seconds": each.over_floor_s} for each in self.blocks),
            {"name": "unattributed", "seconds": self.unattributed_s},
        ]

    def to_json(self) -> dict:
        """The fields of a document."""
        return {
            "blocks": [block.to_json() for block in self.blocks],
            "unattributed_s": self.unattributed_s,
            "named": self.named,
            "waterfall": self.waterfall(),
            "trace": {"steps": self.steps, "step_s": self.traced_s},
        }


def explain(
    record: Record,
    found: Attribution,
    known: Operations,
    counts: Mapping[str, BlockCounts],
    peaks: Peaks,
) -> Explanation:
    """Puts a step's blocks together.

    Args:
      record: the measured step.
      found: the seconds of its operations in a trace.
      known: the operations of its program.
      counts: the work of each block.
      peaks: peak rates of each device.

    """
    scale, launches = _timed(found, record.step_s["median"])
    shares: dict[str | None, list[Share]] = collections.defaultdict(list)
    for name, seconds in found.operations.items():
        block = known.blocks.get(name) or _told_by_trace(name, found.scopes.get(name, ""))
        shares[block].append(Share(name, known.opcodes.get(name, ""), seconds * scale))
    unattributed = sum(one.seconds for one in shares.pop(None, ()))
    blocks = [
        _block(name, shares.get(name, ()), counts.get(name, BlockCounts(0.0, 0.0)), peaks)
        for name in dict.fromkeys([*counts, *shares])
    ]
    for name, seconds in ((LAUNCHES, launches), (HOST, found.host * scale)):
        blocks.append(Block(name=name, measured_s=seconds))
    blocks.sort(key=lambda block: -block.over_floor_s)
    return Explanation(record, blocks, unattributed, found.step_s, found.steps, found.platform)


def _timed(found: Attribution, step_s: float) -> tuple[float, float]:
    """What operations' times in a trace are multiplied by, and the time between operations.

    A profiler works between operations, and without CUDA graphs kernels wait there for their
    launches; so what the trace added to a step is taken from that time first, and from all only
    beyond it.

    Args:
      found: the times in the trace.
      step_s: the time of a step without it.
    """
    added = found.step_s - step_s
    if added <= 0:
        return step_s / found.step_s, found.launches * step_s / found.step_s
    launches = max(found.launches - added, 0.0)
    return (step_s - launches) / (found.step_s - found.launches), launches


def _told_by_trace(name: str, scope: str) -> str | None:
    return collective_kind(name) or (block_of_scope(scope) if scope else None)


def _block(name: str, shares: Sequence[Share], work: BlockCounts, peaks: Peaks) -> Block:
    return Block(
        name=name,
        measured_s=sum(one.seconds for one in shares),
        floor_s=work.floor_s(peaks),
        bytes=work.bytes,
        flops=work.flops,
        operations=tuple(sorted(shares, key=lambda one: -one.seconds)),
    )
