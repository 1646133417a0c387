"""What a plan chooses among: slices and types, on each all layouts and meshes, and all batches.

A `Cell` is one slice and one set of types. What does not depend on the slice is counted here, once
for all slices.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from model.dtypes import BFLOAT16 as PLAIN
from model.dtypes import Dtypes
from profiles.chips.calibration import Calibration
from profiles.chips.chip import Price
from profiles.chips.slices import Slice
from profiles.floor.deployment import Model
from profiles.floor.passes import BatchLine, PromptLine
from profiles.floor.serving import Service, mean_contexts
from profiles.floor.sized_models import SizedModel
from profiles.plan.cells import Cell
from profiles.plan.row_communication import RowCommunication, RowTimes
from profiles.plan.rows import Rows
from profiles.plan.sized_rows import SizedRows
from sharding.layout import Layout


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
      stages: numbers of stages that layers may be divided over, each on one of as many slices.
      hop_s: seconds that a hop between stages takes at least; None for the calibration's time of a
        collective between slices.
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
    stages: tuple[int, ...] = (1,)
    hop_s: float | None = None

    @functools.cached_property
    def cells(self) -> list[Cell]:
        """A cell for each slice and each set of types; several slices may be stages, too."""
        return [
            Cell(self, dataclasses.replace(slice, count=slice.count // stages), price, dtypes,
                 stages)
            for slice, price in self.slices
            for stages in self._stages(slice)
            for dtypes in self.dtype_sets
        ]  # fmt: skip

    @functools.cached_property
    def alone(self) -> frozenset[tuple[Slice, Price]]:
        """Slices that are compared without stages, each with its price."""
        return frozenset((cell.slice, cell.price) for cell in self.cells if cell.stages == 1)

    def _stages(self, slice: Slice) -> list[int]:
        """Numbers of stages on a slice, or on several of a shape.

        Layouts over several slices are left out where one slice has as many chips: all links of it
        are faster than the network.
        """
        found = [1] * (1 in self.stages and (slice.count == 1 or self._largest(slice)))
        network, layers = slice.chip.network, self.model.layers
        if slice.count > 1 and slice.count in self.stages and network and slice.count <= layers:
            found.append(slice.count)
        return found

    def _largest(self, joined: Slice) -> bool:
        return not any(
            slice.chip.name == joined.chip.name and slice.chips == joined.chips
            for slice, _ in self.slices
            if slice.count == 1
        )

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
        return self._rows_of(dtypes if grouped else PLAIN, self._counts)

    @functools.cached_property
    def _counts(self) -> frozenset[int]:
        return frozenset(cell.slice.devices for cell in self.cells)

    def communication(self, cell: Cell, tokens: int) -> RowTimes:
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
