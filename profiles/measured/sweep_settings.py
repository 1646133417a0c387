"""What a sweep measures, as data: its rows, what it refuses, and what makes two sweeps the same."""

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from decode.chunks import check_chunk
from decode.load import ModelSource
from model.dtypes import Dtypes
from model.layout_check import settle
from model.lengths import check_length
from model.weights.gguf_file import GGUFFile
from profiles.floor.memory_needed import shares_memory
from profiles.measured.bandwidth import processor
from profiles.measured.row_records import Expect
from profiles.measured.rows import Inspect, Placing
from profiles.measured.timing import check_slots, slots_for
from profiles.report.record import Record
from profiles.report.titles import field_text
from sharding.error_types import UsageError
from sharding.layout import Layout
from sharding.mesh import MeshShape
from sharding.stored_types import KERNELS_BY_DEFAULT


class Size(NamedTuple):
    """What a row of a placing runs: decode steps at a context, or prompts of a length."""

    prompts: bool
    batch: int
    length: int
    slots: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """What to measure.

    Attributes:
      source: the model.
      layouts: the layouts to measure.
      shapes: the meshes, each with every layout.
      batches: numbers of sequences per step.
      contexts: numbers of tokens in the cache when a decode step starts; () for no decode steps.
      prompt_lengths: tokens of prompts, which are measured chunk by chunk; () for no prompts.
      prompt_batches: numbers of prompts that run at once; those of `batches` if empty.
      chunk: tokens of a prompt that run at once; the platform's default if None.
      slots: tokens of each sequence that the cache has room for; if None, just enough.
      tokens_per_dispatch: decode steps that one program runs.
      dtype_sets: how numbers are stored.
      auto_weight_layout: whether the compiler chooses weights' memory layout, for the largest step.
      seconds: time to spend on samples; `MIN_ROUNDS` are taken even if they need longer.
      bandwidth: bytes per second of one chip (on a CPU, of its memory), in place of the published
        or measured figure.
      peak_flops: FLOP/s of one chip, in place of the published or measured figure.
      price: USD per chip-hour, for cost.
      trace: folder for a profiler trace of each row; None for no traces.
      expect: the expected time of a pass, as fields of its record.
      inspect: tells what the compiled program of a row is like, as fields of its record.
    """

    source: ModelSource
    layouts: Sequence[Layout]
    shapes: Sequence[MeshShape]
    batches: Sequence[int]
    contexts: Sequence[int]
    dtype_sets: Sequence[Dtypes]
    prompt_lengths: Sequence[int] = ()
    prompt_batches: Sequence[int] = ()
    chunk: int | None = None
    slots: int | None = None
    tokens_per_dispatch: int = 1
    auto_weight_layout: bool = False
    seconds: float = 20.0
    bandwidth: float | None = None
    peak_flops: float | None = None
    price: float | None = None
    trace: Path | None = None
    expect: Expect = lambda engine, pass_, peaks: Record()
    inspect: Inspect = lambda row: Record()

    def check(self) -> None:
        """Refuses a sweep that cannot run, before anything is allocated.

        Raises:
          UsageError: a size is not positive or too large, or a layout cannot divide the model.
          WeightsError: a checkpoint is quantized, and other dtypes are asked for.
        """
        several = self.tokens_per_dispatch
        kinds = ("context", self.contexts, several), ("prompt_length", self.prompt_lengths, 0)
        sizes = (
            ("batch", (*self.batches, *self.prompt_batches)),
            ("tokens_per_dispatch", (several,)),
            *(kind[:2] for kind in kinds),
        )
        for name, values in sizes:
            for value in values:
                if value < 1:
                    raise UsageError(f"{name} is {value}; use positive integers")
        if self.chunk is not None:
            check_chunk(self.chunk)
        for kind, lengths, new in kinds:
            if lengths:
                check_length(self.source.config, kind, max(lengths), new)
                check_slots(self.slots, kind, max(lengths), new)
        for layout, shape, dtypes in self.placings():
            self.source.check_dtypes(dtypes)
            placement = settle(self.source.config, dtypes, layout, shape)
            for size in self.sizes():
                placement.check_batch(size.batch)

    def sizes(self) -> list[Size]:
        """What the rows of each placing run: decode steps, then prompts."""
        kinds = (
            (False, self.contexts, self.batches, self.tokens_per_dispatch),
            (True, self.prompt_lengths, self.prompt_batches or self.batches, 1),
        )
        return [
            Size(prompts, batch, length, self.slots or slots_for(length, new))
            for prompts, lengths, batches, new in kinds
            for length, batch in itertools.product(lengths, batches)
        ]

    def placings(self) -> list[Placing]:
        """Every layout on every mesh with every set of dtypes, without duplicates."""
        distinct: list[Placing] = []
        for placing in itertools.product(self.layouts, self.shapes, self.dtype_sets):
            distinct += [placing] * (placing not in distinct)
        return distinct

    def settings(self) -> dict:
        """All that decides which rows there are and what their samples are of, as JSON has it.

        The time for samples, prices, and the rates that floors divide by are not among them.
        """
        source, several = self.source, self.tokens_per_dispatch
        kernels = self.dtype_sets[0].gpu_kernels
        return {
            "model": source.config.name,
            "weights": _weights_words(source),
            "config": hashlib.sha256(repr(source.config).encode()).hexdigest()[:16],
            "layout": [_layout_words(layout) for layout in self.layouts],
            "mesh": [field_text(shape) for shape in self.shapes],
            "dtype": [
                f"{dtypes}{', rounded activations' * dtypes.round_activations}"
                for dtypes in self.dtype_sets
            ],
            **({} if kernels == KERNELS_BY_DEFAULT else {"gpu_kernels": list(kernels)}),
            "batch": list(self.batches) if self.contexts else [],
            "context": list(self.contexts),
            "prompt_length": list(self.prompt_lengths),
            "prompt_batch": list(self.prompt_batches or self.batches) * bool(self.prompt_lengths),
            "chunk": self.chunk,
            "slots": self.slots,
            **({"tokens_per_dispatch": several} if several > 1 else {}),
            "weight_layout": "auto" if self.auto_weight_layout else "default",
            "trace": self.trace is not None,
            "processor": processor() if shares_memory() else None,
        }


def _weights_words(source: ModelSource) -> str:
    """A model's files by the name of the first, or of their folder, and their size."""
    if source.file is None:
        return "random"
    path = Path(source.file.path)
    if isinstance(source.file, GGUFFile):
        files = source.file.paths
    else:
        files = [each for each in path.rglob("*") if each.is_file()]
    return f"{path.resolve().name}, {sum(each.stat().st_size for each in files)} bytes"


def _layout_words(layout: Layout) -> str:
    words = f"{layout.name}, attention by {layout.attends}, collectives {layout.collectives}"
    words += ", expert-parallel" * layout.expert_parallel
    return words + (f"; prompts {_layout_words(layout.prefill)}" if layout.prefill else "")
