"""A measured row as records: a decode step's, or those of a prompt's chunks and of their sum."""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from decode.engine import Engine
from profiles.chips.chip import Peaks
from profiles.floor.passes import Pass
from profiles.measured.prompt_timing import RepeatedChunk, RepeatedPrompt
from profiles.measured.rows import SweepRow
from profiles.measured.step_record import step_record
from profiles.report.numbers import ms
from profiles.report.record import BytesPerChip, Record

Expect = Callable[[Engine, Pass, Peaks], Record]
"""Of a pass of a model on its mesh, at peak rates of each device: fields of its record."""
InspectPass = Callable[[Engine, Pass], Record]
"""Of a pass that a model runs on its mesh: what its program was compiled to, likewise."""


@dataclasses.dataclass(frozen=True)
class Basis:
    """What the records of rows share.

    Attributes:
      full_samples: samples of a row that did not end early.
      price: USD per chip-hour, for cost.
      auto_weight_layout: whether the compiler chose weights' memory layout.
      expect: the expected time of a pass, as fields of its record.
    """

    full_samples: int
    price: float | None = None
    auto_weight_layout: bool = False
    expect: Expect = lambda engine, pass_, peaks: Record()


class RowRecords(NamedTuple):
    """The records of a row.

    Attributes:
      passes: a decode step, or the chunks of prompts; of a row that failed, what it was to run.
      prompts: of prompts that were measured, all their chunks together.
    """

    passes: list[Record]
    prompts: list[Record]


def row_records(row: SweepRow, peaks: Peaks, basis: Basis) -> RowRecords:
    """A row's records, with a message in each if it has fewer samples than others.

    Args:
      row: measured, or failed.
      peaks: peak rates of each of its devices.
      basis: what all rows share.
    """
    if isinstance(row.step, RepeatedPrompt):
        return _of_prompts(row, peaks, basis)
    return RowRecords([_of_step(row, peaks, basis)], [])


def inspect_row(inspect_pass: InspectPass, row: SweepRow) -> Record:
    """What the programs of a compiled row are like; chunks of prompts keep theirs themselves.

    Nothing is told of a program of several steps, which has the collectives of all of them.

    Args:
      inspect_pass: tells it of one program.
      row: compiled, and not run yet.
    """
    if not isinstance(row.step, RepeatedPrompt):
        if row.step.tokens_per_dispatch > 1:
            return Record()
        return inspect_pass(row.engine, Pass(row.step.batch, row.step.context, 1, row.step.slots))
    found: dict[tuple[int, bool], Record] = {}  # chunks of one size have one program, or two
    for each in row.step.chunks:
        key = each.chunk.size, each.chunk.continues
        if key not in found:
            program = _run_as(row.step, each)
            if each.chunk.continues:  # the program is that of chunks behind others, even the first
                program = dataclasses.replace(program, context=max(program.context, 1))
            found[key] = inspect_pass(row.engine, program)
        each.compiled = found[key]
    return Record()


def _run_as(prompts: RepeatedPrompt, each: RepeatedChunk) -> Pass:
    """The pass that a chunk is, padding and all."""
    return Pass(prompts.batch, each.chunk.start, each.chunk.size, prompts.slots)


def _of_step(row: SweepRow, peaks: Peaks, basis: Basis) -> Record:
    step = row.step
    sizes = Pass(step.batch, step.context, slots=step.slots)
    expected = basis.expect(row.engine, sizes, peaks)
    if step.tokens_per_dispatch > 1:
        expected |= Record(tokens_per_dispatch=step.tokens_per_dispatch)
    if row.failure:
        return step_record(row.engine, peaks, sizes) | expected | _failed(row)
    record = step_record(
        row.engine,
        peaks,
        sizes,
        samples=step.samples,
        steps_per_sample=step.steps_per_sample,
        calls=step.calls,
        experts_touched=step.experts_touched,
        price_per_chip_hour=basis.price,
    )
    if row.engine.dtypes.quantization:
        counted = BytesPerChip(**record.bytes_per_chip, weights_unpacked=row.dequantized_bytes)
        record |= Record(bytes_per_chip=counted)
    return _remarked(record | expected | row.compiled, step.samples, basis)


def _of_prompts(row: SweepRow, peaks: Peaks, basis: Basis) -> RowRecords:
    prompts = row.step

    def record(context: int, tokens: int, **measured: Any) -> Record:
        pass_ = Pass(prompts.batch, context, tokens, prompts.slots)
        price = basis.price
        found = step_record(
            row.engine, peaks, pass_, phase="prefill", price_per_chip_hour=price, **measured
        )
        return found | Record(prompt_length=prompts.length)

    expected = [basis.expect(row.engine, _run_as(prompts, each), peaks) for each in prompts.chunks]
    if row.failure:
        whole = record(0, prompts.length) | _added_up(expected)
        return RowRecords([whole | _failed(row)], [])
    passes = []
    for each, time in zip(prompts.chunks, expected, strict=True):
        one = record(
            each.chunk.start,
            each.tokens,
            samples=each.samples,
            steps_per_sample=each.burst,
            calls=each.calls,
        )
        if each.chunk.size > each.tokens:
            one |= Record(padded_tokens=each.chunk.size)
        passes.append(_remarked(one | time | each.compiled, each.samples, basis))
    whole = record(0, prompts.length, samples=prompts.samples, steps_per_sample=None)
    whole |= _added_up(expected) | Record(chunks=len(passes))
    return RowRecords(passes, [_remarked(whole, prompts.samples, basis)])


def _added_up(expected: Sequence[Record]) -> Record:
    """The expected time of chunks that run one after the other; empty if one has none."""
    if any(each.expected_s is None for each in expected):
        return Record()
    terms = collections.Counter()
    for each in expected:
        terms.update(each.expected_terms_s)
    return Record(
        expected_s=sum(each.expected_s for each in expected), expected_terms_s=dict(terms)
    )


def _failed(row: SweepRow) -> Record:
    return Record(status=row.failure.status, message=row.failure.message)


def _remarked(record: Record, samples: Sequence[float], basis: Basis) -> Record:
    """A measured record with what else must be known of it."""
    if basis.auto_weight_layout:
        record |= Record(weight_layout="auto")
    remarks = [record.message]
    if (record.fraction_of_floor or 0) > 1:
        remarks = [
            f"measured step is {ms(record.step_s['median'])} ms on {record.devices} devices, "
            "below its floor; the rates that the floor was taken at must be wrong"
        ]
    if len(samples) < basis.full_samples:
        few = f"{len(samples)} of {basis.full_samples} samples"
        remarks.append(f"{few}: the run ended early")
    message = "; ".join(filter(None, remarks))
    return record | Record(message=message) if message else record
