"""A measured row as records: a decode step's, or those of a prompt's chunks and of their sum."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from decode.engine import Engine
from profiles.chips.chip import Peaks
from profiles.floor.passes import Pass
from profiles.measured.prompt_timing import RepeatedPrompt
from profiles.measured.rows import SweepRow
from profiles.measured.step_record import step_record
from profiles.report.numbers import ms
from profiles.report.record import BytesPerChip, Record

Expect = Callable[[Engine, Pass, Peaks], Record]
"""Of a pass of a model on its mesh, at peak rates of each device: fields of its record."""


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


def _of_step(row: SweepRow, peaks: Peaks, basis: Basis) -> Record:
    step = row.step
    sizes = Pass(step.batch, step.context, slots=step.slots)
    expected = basis.expect(row.engine, sizes, peaks)
    if row.failure:
        return step_record(row.engine, peaks, sizes) | expected | _failed(row)
    record = step_record(
        row.engine,
        peaks,
        sizes,
        samples=step.samples,
        steps_per_sample=step.burst,
        experts_touched=step.experts_touched,
        price_per_chip_hour=basis.price,
    )
    if row.engine.dtypes.quantization:
        counted = BytesPerChip(**record.bytes_per_chip, weights_unpacked=row.dequantized_bytes)
        record |= Record(bytes_per_chip=counted)
    return _remarked(record | expected | row.compiled, step.samples, basis)


def _of_prompts(row: SweepRow, peaks: Peaks, basis: Basis) -> RowRecords:
    prompts = row.step

    def record(context: int, tokens: int, samples: Sequence[float], burst: int | None) -> Record:
        pass_ = Pass(prompts.batch, context, tokens, prompts.slots)
        found = step_record(
            row.engine,
            peaks,
            pass_,
            phase="prefill",
            samples=samples,
            steps_per_sample=burst,
            price_per_chip_hour=basis.price,
        )
        expected = basis.expect(row.engine, pass_, peaks)
        return found | expected | Record(prompt_length=prompts.length)

    if row.failure:
        return RowRecords([record(0, prompts.length, (), None) | _failed(row)], [])
    passes = []
    for each in prompts.chunks:
        one = record(each.chunk.start, each.tokens, each.samples, each.burst)
        if each.chunk.size > each.tokens:
            one |= Record(padded_tokens=each.chunk.size)
        passes.append(_remarked(one, each.samples, basis))
    whole = record(0, prompts.length, prompts.samples, None) | Record(chunks=len(passes))
    return RowRecords(passes, [_remarked(whole, prompts.samples, basis)])


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
