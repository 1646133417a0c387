"""What a plan chooses among: slices and types, on each all layouts and meshes, and all batches.

A `Cell` is one slice and one set of types. It finds what steps take in all layouts, on all meshes
and for all batches at once; what does not depend on the slice is counted once for all slices.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from model.dtypes import BFLOAT16 as PLAIN
from model.dtypes import Dtypes
from profiles.chips.calibration import Calibration
from profiles.chips.chip import Price
from profiles.chips.slices import Slice
from profiles.expected.estimate import Estimate, Estimator
from profiles.expected.serving import ServiceEstimate, estimate_service
from profiles.floor.deployment import Deployment, Model
from profiles.floor.experts import expected_experts
from profiles.floor.passes import BatchLine, PromptLine
from profiles.floor.serving import Service, mean_contexts
from profiles.floor.sized_models import SizedModel
from profiles.plan.row_communication import RowCommunication, RowTimes
from profiles.plan.rows import Row, Rows
from profiles.plan.sized_rows import SizedRows
from sharding.layout import Layout

LARGEST = 1 << 14
"""Sequences: no batch above is looked at but the largest that fits."""
BATCHES = np.array(
    sorted({1 << power for power in range(15)} | {3 << power for power in range(13)})
)
"""Powers of two, and one and a half times those."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Space:
    """All that a plan chooses among.

    Attributes:
      model: a model by its arrays, or by its sizes.
      slices: the slices, each with the price of a chip-hour.
      dtype_sets: how numbers may be stored.
      layouts: the layouts to try; only None for a model by its sizes.
      calibration: gives what software achieves on a chip, by the chip's name.
      context: tokens in the cache of each sequence.
      slots: tokens that the cache of each sequence has room for.
      experts: which experts a step is taken to read.
      prompt: tokens of a prompt whose activations must fit beside a full batch; None for none.
      service: lengths of prompts and answers, if steps are those of a service in steady state that
        chunks of prompts ride along with; None for decode steps at `context`.
    """

    model: Model
    slices: tuple[tuple[Slice, Price], ...]
    dtype_sets: tuple[Dtypes, ...]
    layouts: tuple[Layout | None, ...]
    calibration: Callable[[str], Calibration]
    context: int
    slots: int
    experts: str = "coverage"
    prompt: int | None = None
    service: Service | None = None

    @functools.cached_property
    def cells(self) -> list["Cell"]:
        """A cell for each slice and each set of types."""
        return [
            Cell(self, slice, price, dtypes)
            for slice, price in self.slices
            for dtypes in self.dtype_sets
        ]

    @functools.cache  # noqa: B019
    def lines(self, dtypes: Dtypes) -> BatchLine:
        """Decode steps of all rows, each field an array."""
        return self._mean_lines(self.rows(dtypes), dtypes)

    @functools.cache  # noqa: B019
    def one_device(self, dtypes: Dtypes) -> BatchLine:
        """Decode steps on one device."""
        lines = self._mean_lines(self._one_device_rows, dtypes)
        return BatchLine(*(field[0] for field in lines))

    @functools.cache  # noqa: B019
    def prompt_lines(self, dtypes: Dtypes) -> PromptLine:
        """What each prompt of a service adds to steps, each field an array by layout."""
        return self.rows(dtypes).prompt_lines(dtypes, self.service.prompt_length)

    @functools.cache  # noqa: B019
    def prompt_on_one_device(self, dtypes: Dtypes) -> PromptLine:
        """The same on one device."""
        lines = self._one_device_rows.prompt_lines(dtypes, self.service.prompt_length)
        return PromptLine(*(field[0] for field in lines))

    @functools.cache  # noqa: B019
    def prompts(self, dtypes: Dtypes, tokens: int) -> np.ndarray:
        """Bytes that one prompt's pass moves on each device, FLOPs, rows, experts' FLOPs."""
        return self.rows(dtypes).prompts(dtypes, tokens, self.experts)

    def rows(self, dtypes: Dtypes) -> Rows | SizedRows:
        """All layouts on all meshes of every number of devices, or what stands for them."""
        grouped = dtypes.quantization and dtypes.quantization.group  # which not all layouts divide
        counts = frozenset(slice.devices for slice, _ in self.slices)
        return self._rows_of(dtypes if grouped else PLAIN, counts)

    def communication(self, cell: "Cell", tokens: int) -> RowTimes:
        """Times of the collectives of a cell's rows, in passes of so many tokens a sequence."""
        rows = self.rows(cell.dtypes)
        if isinstance(rows, SizedRows):
            return rows.communication(cell.slice, cell.dtypes, cell.calibration, tokens)
        return self._row_communication(rows, tokens).on(cell.slice, cell.dtypes, cell.calibration)

    @functools.cache  # noqa: B019
    def _rows_of(self, dtypes: Dtypes, counts: frozenset[int]) -> Rows | SizedRows:
        if isinstance(self.model, SizedModel):
            return SizedRows(self.model, counts)
        return Rows(self.model, dtypes, self.layouts, counts)

    @functools.cache  # noqa: B019
    def _row_communication(self, rows: Rows, tokens: int) -> RowCommunication:
        return RowCommunication(rows, tokens)

    @property
    def _one_device_rows(self) -> Rows | SizedRows:
        return self._rows_of(PLAIN, frozenset({1}))

    def _mean_lines(self, rows: Rows | SizedRows, dtypes: Dtypes) -> BatchLine:
        """Decode steps of rows, of a service over the lives of its answers."""
        contexts = [(1.0, self.context)]
        if self.service:
            contexts = mean_contexts(self.model, self.service)
        lines = [rows.lines(dtypes, each, self.slots, self.prompt) for _, each in contexts]
        weights = [weight for weight, _ in contexts]
        return BatchLine(*(np.tensordot(weights, field, 1) for field in zip(*lines, strict=True)))


class Cell:
    """A slice and a set of types, on which all layouts and batches are compared.

    Args:
      space: the space that it is a part of.
      slice: the slice.
      price: what a chip-hour costs.
      dtypes: how numbers are stored.
    """

    def __init__(self, space: Space, slice: Slice, price: Price, dtypes: Dtypes):
        self.space, self.slice, self.price, self.dtypes = space, slice, price, dtypes
        self.usd_per_hour = price.usd * slice.chips
        self.calibration = space.calibration(slice.chip.name)
        parts, recommended = slice.chip.devices_per_chip, slice.chip.recommended
        self.capacity = recommended.capacity / parts
        self._bandwidth = recommended.bandwidth / parts * self.calibration.memory
        self._flops = recommended.peak(dtypes.arithmetic_on(recommended.flops)) / parts
        self._overhead = self.calibration.step_s + space.model.layers * self.calibration.layer_s
        self.estimator = functools.cache(self._find_estimator)

    @functools.cached_property
    def _numbers(self) -> slice:
        """Numbers of its rows among all."""
        found = self.space.rows(self.dtypes).of(self.slice.devices)
        return slice(found.start, found.stop)

    @functools.cached_property
    def rows(self) -> list[Row]:
        """Layouts on meshes."""
        return self.space.rows(self.dtypes).rows[self._numbers]

    @functools.cached_property
    def multiples(self) -> np.ndarray:
        """What batches of each row are padded to."""
        return self.space.rows(self.dtypes).multiples[self._numbers]

    @property
    def _lines(self) -> BatchLine:
        """Decode steps of each row."""
        return BatchLine(*(field[self._numbers] for field in self.space.lines(self.dtypes)))

    @functools.cached_property
    def batches(self) -> np.ndarray:
        """For each row `BATCHES` and the largest batch that fits; 0 where one does not."""
        lines, multiples = self._lines, self.multiples
        most = (self.capacity - lines.resident) / lines.memory_per_sequence
        largest = np.maximum(np.floor(most / multiples).astype(int) * multiples, 0)
        fitting = _padded(BATCHES, multiples[:, None]) <= largest[:, None]
        return np.column_stack([np.where(fitting, BATCHES, 0), largest])

    @functools.cached_property
    def even_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Batches, and lower bounds in seconds of their steps in any layout.

        If everything were divided evenly, and collectives took no time. Infinite where even then
        they would not fit.
        """
        devices, one_device = self.slice.devices, self.space.one_device(self.dtypes)
        largest = max(
            math.floor(
                (self.capacity * devices - one_device.resident) / one_device.memory_per_sequence
            ),
            0,
        )
        batches = np.sort(np.append(BATCHES, largest))
        prompt = self.space.service and self.space.prompt_on_one_device(self.dtypes)
        memory, compute = self._work(one_device, prompt, batches, batches, 1)
        steps = self.calibration.together(memory / devices, compute / devices) + self._overhead
        return batches, np.where((batches > 0) & (batches <= largest), steps, math.inf)

    @property
    def may_fit(self) -> bool:
        """Whether a sequence would fit if everything were divided evenly."""
        return bool(np.isfinite(self.even_bounds[1]).any())

    @functools.cached_property
    def _parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Expected seconds of memory and of arithmetic, [rows, batches]."""
        lines = BatchLine(*(field[:, None] for field in self._lines))
        prompt = None
        if self.space.service:
            every = self.space.prompt_lines(self.dtypes)
            prompt = PromptLine(*(field[self._numbers, None] for field in every))
        return self._work(lines, prompt, self._padded_batches, self.batches, lines.replicas)

    @functools.cached_property
    def bounds(self) -> np.ndarray:
        """Seconds of decode steps if collectives took no time; infinite where they do not fit."""
        memory, compute = self._parts
        seconds = self.calibration.together(memory, compute) + self._overhead
        return np.where(self.batches > 0, seconds, math.inf)

    @functools.cached_property
    def steps(self) -> np.ndarray:
        """Expected seconds of decode steps, [rows, batches]; infinite where they do not fit."""
        service, sent = self.space.service, self.space.communication(self, 1)
        if service:
            prompts = self.space.communication(self, service.prompt_length)
            links = sent.beside(prompts, self._padded_batches, service.prompts(self.batches))
        else:
            links = sent.at(self._padded_batches)
        return np.where(
            self.batches > 0, self._seconds(*self._parts, self._padded_batches, links), math.inf
        )

    @property
    def _padded_batches(self) -> np.ndarray:
        return _padded(self.batches, self.multiples[:, None])

    def _work(
        self,
        lines: BatchLine,
        prompt: PromptLine | None,
        padded: np.ndarray,
        batches: np.ndarray,
        replicas: np.ndarray | int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Seconds of memory and of arithmetic of decode steps, of a service with its prompts.

        Args:
          lines: decode steps.
          prompt: what each prompt adds, if they are those of a service.
          padded: padded batches.
          batches: the same as they are asked for.
          replicas: number of parts of a batch that choose experts apart from each other.
        """
        model, service, tokens = self.space.model, self.space.service, padded
        gathered, moved = lines.gathered, padded * lines.bytes_per_sequence
        flops, rows = padded * lines.flops, padded / lines.parts
        expert_flops = padded * lines.expert_flops
        if service:
            joining = service.prompts(batches)
            tokens = padded + joining * service.prompt_length
            gathered = np.maximum(gathered, prompt.gathered)
            looked_up = np.minimum(tokens * prompt.looked_up, prompt.table)
            moved = moved + joining * prompt.written + looked_up - padded * prompt.looked_up
            flops, rows = flops + joining * prompt.flops, rows + joining * prompt.rows
            expert_flops = expert_flops + joining * prompt.expert_flops
        moved = moved + lines.dense_weights + 2 * gathered
        if model.experts:
            touched = _touched(model, tokens, replicas, self.space.experts)
            moved = moved + lines.experts * touched / model.experts
        work = flops, padded * lines.attention, rows
        compute = self.calibration.compute_s(*work, self._flops, expert_flops)
        return moved / self._bandwidth, compute

    @functools.cache  # noqa: B019
    def first_tokens(self, prompt: int) -> np.ndarray:
        """Expected seconds of the prefill of one prompt of so many tokens, by row."""
        work = self.space.prompts(self.dtypes, prompt)[:, self._numbers, None]
        moved, flops, rows, experts = work
        compute = self.calibration.compute_s(flops, 0.0, rows, self._flops, experts)
        batches = self.multiples[:, None]
        links = self.space.communication(self, prompt).at(batches)
        return self._seconds(moved / self._bandwidth, compute, batches, links)[:, 0]

    def _seconds(
        self,
        memory: np.ndarray,
        compute: np.ndarray,
        sequences: np.ndarray,
        links: tuple[np.ndarray, ...],
    ) -> np.ndarray:
        """Expected seconds of passes, as `profiles.expected.time.Expected` has them.

        Args:
          memory: seconds of reading and writing it, [rows, batches].
          compute: seconds of arithmetic, likewise.
          sequences: sequences that all devices together advance.
          links: seconds of collectives: latency, transfer and what of it is overlapped.
        """
        latency, transfer, overlapped = links
        compute = np.maximum(compute, overlapped / self.calibration.link)
        waits = latency + (transfer - overlapped) / self.calibration.link
        overhead = self._overhead + sequences * self.calibration.sequence_s
        if self.calibration.hidden:
            return self.calibration.together(memory, compute + waits) + overhead
        return self.calibration.together(memory, compute) + waits + overhead

    def cost(self, seconds: np.ndarray, batches: np.ndarray) -> np.ndarray:
        """USD per million tokens; infinite where steps never end."""
        ends = np.isfinite(seconds)
        costs = self.usd_per_hour * np.where(ends, seconds, 1.0) / 3600
        return np.where(ends, costs / np.maximum(batches, 1) * 1e6, math.inf)

    def _find_estimator(self, number: int) -> Estimator:
        row, space = self.rows[number], self.space
        return Estimator(
            Deployment(
                model=space.model,
                slice=self.slice,
                dtypes=self.dtypes,
                calibration=self.calibration,
                layout=row.layout,
                mesh=row.mesh,
                experts=space.experts,
                price=self.price,
            )
        )

    def estimate(self, number: int, batch: int) -> Estimate | ServiceEstimate:
        """A row's step, with its floor."""
        space = self.space
        if space.service:
            service = dataclasses.replace(space.service, concurrency=batch)
            return estimate_service(self.estimator(number), service)
        return self.estimator(number).decode(batch, space.context, space.slots)

    def missing_bytes(self, keep: Sequence[int], batch: int = 1) -> float:
        """Bytes per chip by which a batch fits in none of these rows; negative if it does."""
        lines = self._lines
        held = lines.resident + _padded(batch, self.multiples) * lines.memory_per_sequence
        smallest = held[np.array(keep, int)].min(initial=math.inf)
        return float(smallest - self.capacity) * self.slice.chip.devices_per_chip


def _padded(batches: np.ndarray | int, multiple: np.ndarray | int) -> np.ndarray:
    return -(-np.asarray(batches) // multiple) * multiple


def _touched(
    model: Model, tokens: np.ndarray, replicas: np.ndarray, experts: str
) -> np.ndarray | int:
    """Experts that steps read, as `PassCounter` counts them."""
    if experts != "coverage":
        return {"all": model.experts, "least": model.experts_per_token}[experts]
    return expected_experts(model, np.maximum(tokens / replicas, 1))
