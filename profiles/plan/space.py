"""What a plan chooses among: slices and forms, on each all layouts and meshes, and all batches.

A `Cell` is one slice and one form. What its steps take without collectives is a lower bound that
one product of small arrays gives for all layouts, meshes and batches at once; what they take with
collectives is found a layout at a time, only where the bound leaves hope. What does not depend on
the slice is counted once for all slices of as many devices.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from model.dispatch import expert_axes
from model.dtypes import BFLOAT16 as PLAIN
from model.dtypes import Dtypes
from model.layout_check import settle
from profiles.chips.calibration import Calibration
from profiles.chips.chip import Price
from profiles.chips.slices import Slice
from profiles.expected.candidates import meshes
from profiles.expected.estimate import Estimate, Estimator
from profiles.expected.sized_links import SizedLinks
from profiles.expected.time import LinkCosts, Listed
from profiles.floor.counts import PassCounter
from profiles.floor.deployment import Deployment, Model
from profiles.floor.experts import expected_experts
from profiles.floor.passes import BatchLine, Pass
from profiles.floor.sized_models import SizedModel, SizedPassCounter
from sharding.error_types import LayoutError
from sharding.layout import Layout
from sharding.mesh import MeshShape
from sharding.placement import Placement, entry_axes

LARGEST = 1 << 14
"""Sequences: no batch above is looked at but the largest that fits."""
BATCHES = np.array(
    sorted({1 << power for power in range(15)} | {3 << power for power in range(13)})
)
"""Powers of two, and one and a half times those."""

_SPECS = (
    ("weights", "VD KGhD KhD FD KGh Kh eD EFD"),
    ("use", "VD KGhD KhD FD KGh Kh eD EFD"),
    ("activations", "BR BF BKGh BKh V"),
    ("attention", "BKG BK"),
    ("cache", "BKS"),
    ("beside_stored", "BD"),
)
"""Arrays whose shardings are all that a pass asks a placement for, whatever their order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Offer:
    """What there is to choose from.

    Attributes:
      model: by its arrays, or by its sizes.
      slices: with what a chip-hour of each costs.
      dtype_sets: how numbers may be stored.
      layouts: wanted ones; of no meaning for a model by its sizes.
      calibration: what is achieved, by the name of a chip.
      context: tokens in the cache of each sequence.
      slots: tokens that it has room for.
      experts: which a step is taken to read.
      prompt: tokens of a prompt that is let in beside a full batch, whose activations must fit
        too; None for none.
    """

    model: Model
    slices: tuple[tuple[Slice, Price], ...]
    dtype_sets: tuple[Dtypes, ...]
    layouts: tuple[Layout, ...]
    calibration: Callable[[str], Calibration]
    context: int
    slots: int
    experts: str = "coverage"
    prompt: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """A layout on a mesh; without both, a model by its sizes on so many devices."""

    devices: int
    placement: Placement | None = None
    _listed: dict[Dtypes, Listed] = dataclasses.field(default_factory=dict)
    _links: dict[tuple[Dtypes, Slice], LinkCosts] = dataclasses.field(default_factory=dict)

    @property
    def layout(self) -> Layout | None:
        """None for a model by its sizes."""
        return self.placement and self.placement.layout

    @property
    def mesh(self) -> MeshShape | None:
        """None likewise."""
        return self.placement and self.placement.mesh

    @functools.cached_property
    def multiple(self) -> int:
        """What batches are padded to."""
        return self.placement.multiple("B") if self.placement else 1

    def line(self, offer: Offer, dtypes: Dtypes) -> BatchLine:
        """Its decode steps, beside which a prompt finds room."""
        line = self.costs(offer.model, dtypes).line(offer.context, offer.slots)
        if offer.prompt is None or self.placement is None:
            return line
        prompts = PassCounter(offer.model, self.placement.prefill, dtypes)
        one = prompts.count(Pass(self.multiple, 0, offer.prompt))
        return line._replace(resident=line.resident + one.activations)

    def costs(self, model: Model, dtypes: Dtypes) -> PassCounter | SizedPassCounter:
        """Its passes."""
        if self.placement:
            return PassCounter(model, self.placement, dtypes)
        return SizedPassCounter(model, dtypes, self.devices)

    def links(
        self, model: Model, dtypes: Dtypes, slice: Slice, calibration: Calibration
    ) -> LinkCosts:
        """Its collectives on a slice; listed once for all slices."""
        if not self.placement:
            return SizedLinks(model, dtypes, slice, calibration)
        dtypes = dataclasses.replace(dtypes, cache=None)  # which no collective moves
        if dtypes.quantization and not self._depends_on_weights(model):
            dtypes = dataclasses.replace(
                dtypes, weights=None
            )  # few bits move what plain weights do
        if dtypes not in self._listed:
            self._listed[dtypes] = Listed(model, self.placement, dtypes)
        if (dtypes, slice) not in self._links:
            self._links[dtypes, slice] = LinkCosts(self._listed[dtypes], slice, calibration)
        return self._links[dtypes, slice]

    def _depends_on_weights(self, model: Model) -> bool:
        """Whether what moves depends on how weights are stored.

        It does where they move themselves, in loops, which cut no group of a few bits, and where
        experts sum over chips: plain ones in one collective, others in many.
        """
        summed = bool(model.experts) and bool(expert_axes(self.placement).inputs)
        return self.layout.use is not None or self.layout.collectives == "overlapped" or summed


class Space:
    """All cells of an offer, and what they share.

    Args:
      offer: what there is to choose from.
    """

    def __init__(self, offer: Offer):
        self.offer = offer
        self._rows = functools.cache(self._find_rows)
        self.lines = functools.cache(self._find_lines)
        self.whole = functools.cache(self._find_whole)
        self.prompt_flops = functools.cache(self._find_prompt_flops)
        self.cells = [
            Cell(self, slice, price, dtypes)
            for slice, price in offer.slices
            for dtypes in offer.dtype_sets
        ]

    def rows(self, devices: int, dtypes: Dtypes) -> tuple[Row, ...]:
        """Layouts on meshes of so many devices, those that divide all arrays alike once.

        Of those the first layout on the mesh with the fewest axes.
        """
        grouped = dtypes.quantization and dtypes.quantization.group  # which not all layouts divide
        return self._rows(devices, dtypes if grouped else PLAIN)

    def _find_whole(self, dtypes: Dtypes) -> BatchLine:
        """Decode steps on one device."""
        return self._rows(1, PLAIN)[0].line(self.offer, dtypes)

    def _find_prompt_flops(self, dtypes: Dtypes, tokens: int) -> float:
        """Of one prompt on one device."""
        (alone, *_) = self._rows(1, PLAIN)
        return alone.costs(self.offer.model, dtypes).count(Pass(1, 0, tokens)).flops

    def _find_rows(self, devices: int, dtypes: Dtypes) -> tuple[Row, ...]:
        model = self.offer.model
        if isinstance(model, SizedModel):
            return (Row(devices),)
        shapes = sorted(meshes(devices), key=lambda mesh: sum(s > 1 for s in mesh.values()))
        rows: dict[object, Row] = {}
        for layout in self.offer.layouts:
            for mesh in shapes:
                try:
                    placement = settle(model, dtypes, layout, mesh)
                except LayoutError:
                    continue
                key = layout.collectives, _pattern(placement)
                if placement.prefill is not placement:
                    key += (_pattern(placement.prefill),)
                rows.setdefault(key, Row(devices, placement))
        return tuple(rows.values())

    def _find_lines(self, devices: int, dtypes: Dtypes) -> BatchLine:
        """Lines of all rows, each field an array."""
        lines = [row.line(self.offer, dtypes) for row in self.rows(devices, dtypes)]
        return BatchLine(*np.array(lines).reshape(-1, len(BatchLine._fields)).T)


def _pattern(placement: Placement) -> tuple:
    """Of how arrays are divided, all that matters: mesh axes by their sizes and what they divide.

    Axes that always divide the same dimension, one right after the other, are as good as one.
    """
    sizes = placement.sizes
    entries = [
        entry_axes(entry)
        for kind, arrays in _SPECS
        for letters in arrays.split()
        if "E" in sizes or not set(letters) & {"E", "e"}
        for entry in getattr(placement, kind)(letters)
    ]
    pairs: dict[str, set] = {}
    for axes in entries:
        for place, axis in enumerate(axes):
            pairs.setdefault(axis, set()).add(axes[place + 1] if place + 1 < len(axes) else None)
    joined = {
        axis: next(iter(after))
        for axis, after in pairs.items()
        if len(after) == 1
        and None not in after
        and all((axis in axes) == (next(iter(after)) in axes) for axes in entries)
    }
    followers = set(joined.values())
    names: dict[str, int] = {}
    merged, lengths = [], []
    for axes in entries:
        merged.append(tuple(names.setdefault(a, len(names)) for a in axes if a not in followers))
    for axis in names:
        size, here = placement.mesh[axis], axis
        while here in joined:
            here = joined[here]
            size *= placement.mesh[here]
        lengths.append(size)
    idle = math.prod(placement.mesh.values()) // math.prod(lengths)
    return tuple(lengths), idle, tuple(merged)


class Cell:
    """One slice and one form.

    Args:
      space: that it is of.
      slice: the slice.
      price: what a chip-hour costs.
      dtypes: how numbers are stored.
    """

    def __init__(self, space: Space, slice: Slice, price: Price, dtypes: Dtypes):
        self.space, self.slice, self.price, self.dtypes = space, slice, price, dtypes
        self.usd_per_hour = price.usd * slice.chips
        self.calibration = space.offer.calibration(slice.chip.name)
        parts, usual = slice.chip.devices_per_chip, slice.chip.expected
        self.capacity = usual.capacity / parts
        self._bandwidth = usual.bandwidth / parts * self.calibration.memory
        self._flops = usual.peak(dtypes.arithmetic) / parts * self.calibration.compute
        self._overhead = (
            self.calibration.step_s + space.offer.model.layers * self.calibration.layer_s
        )
        self.estimator = functools.cache(self._find_estimator)

    @property
    def rows(self) -> tuple[Row, ...]:
        """Layouts on meshes."""
        return self.space.rows(self.slice.devices, self.dtypes)

    @functools.cached_property
    def batches(self) -> np.ndarray:
        """Of each row: `BATCHES` and the largest that fits, 0 where they do not."""
        lines, multiple = self.space.lines(self.slice.devices, self.dtypes), self._multiples
        most = (self.capacity - lines.resident) / lines.kept
        largest = np.maximum(np.floor(most / multiple).astype(int) * multiple, 0)
        fitting = _padded(BATCHES, multiple[:, None]) <= largest[:, None]
        return np.column_stack([np.where(fitting, BATCHES, 0), largest])

    @functools.cached_property
    def _multiples(self) -> np.ndarray:
        return np.array([row.multiple for row in self.rows])

    @functools.cached_property
    def least(self) -> tuple[np.ndarray, np.ndarray]:
        """Batches, and seconds that their steps take at least in any layout.

        If everything were divided evenly, and collectives took no time. Infinite where even then
        they would not fit.
        """
        line, model = self.space.whole(self.dtypes), self.space.offer.model
        devices = self.slice.devices
        largest = max(math.floor((self.capacity * devices - line.resident) / line.kept), 0)
        batches = np.append(BATCHES, largest)
        moved = line.plain + batches * line.moved
        if model.experts:
            touched = _touched(model, batches, 1, self.space.offer.experts)
            moved = moved + line.experts * touched / model.experts
        memory = moved / devices / self._bandwidth
        steps = np.maximum(memory, batches * line.flops / devices / self._flops) + self._overhead
        return batches, np.where((batches > 0) & (batches <= largest), steps, math.inf)

    @property
    def could(self) -> bool:
        """Whether a sequence would fit if everything were divided evenly."""
        return bool(np.isfinite(self.least[1]).any())

    @functools.cached_property
    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Expected seconds of memory and of arithmetic, of all rows and batches."""
        lines, model = self.space.lines(self.slice.devices, self.dtypes), self.space.offer.model
        column = BatchLine(*(field[:, None] for field in lines))
        padded = _padded(np.maximum(self.batches, 1), self._multiples[:, None])
        moved = column.plain + 2 * column.gathered + padded * column.moved
        if model.experts:
            touched = _touched(model, padded, column.replicas, self.space.offer.experts)
            moved = moved + column.experts * touched / model.experts
        return moved / self._bandwidth, padded * column.flops / self._flops

    @functools.cached_property
    def bounds(self) -> np.ndarray:
        """Seconds of decode steps if collectives took no time; infinite where they do not fit."""
        memory, compute = self.parts
        return np.where(self.batches > 0, np.maximum(memory, compute) + self._overhead, math.inf)

    def steps(self, number: int) -> np.ndarray:
        """Expected seconds of a row's decode steps, by batch."""
        row, batches = self.rows[number], self.batches[number]
        links = row.links(self.space.offer.model, self.dtypes, self.slice, self.calibration)
        padded = _padded(batches, row.multiple)
        if line := links.usual_line(1):
            (_, starts, sending, looped), (_, _, more, more_looped) = line
            sending, looped = sending + padded * more, looped + padded * more_looped
        else:
            sent = [links.usual(int(batch)) for batch in padded]
            _, starts, sending, looped = np.array(sent).T
        links_s = starts + (sending - looped) / self.calibration.link
        looped = looped / self.calibration.link
        memory, compute = (part[number] for part in self.parts)
        compute = np.maximum(compute, looped)
        if self.calibration.hidden:
            steps = np.maximum(memory, compute + links_s)
        else:
            steps = np.maximum(memory, compute) + links_s
        return np.where(batches > 0, steps + self._overhead, math.inf)

    def cost(self, seconds: np.ndarray, batches: np.ndarray) -> np.ndarray:
        """USD per million tokens; infinite where steps never end."""
        ends = np.isfinite(seconds)
        costs = self.usd_per_hour * np.where(ends, seconds, 1.0) / 3600
        return np.where(ends, costs / np.maximum(batches, 1) * 1e6, math.inf)

    def prompt_bound(self, tokens: int) -> float:
        """Seconds that one prompt takes at least, divided evenly, without collectives."""
        work = self.space.prompt_flops(self.dtypes, tokens) / self.slice.devices
        return work / self._flops + self._overhead

    def _find_estimator(self, number: int) -> Estimator:
        row, offer = self.rows[number], self.space.offer
        return Estimator(
            Deployment(
                model=offer.model,
                slice=self.slice,
                dtypes=self.dtypes,
                calibration=self.calibration,
                layout=row.layout,
                mesh=row.mesh,
                experts=offer.experts,
                price=self.price,
            )
        )

    def estimate(self, number: int, batch: int) -> Estimate:
        """A row's decode step, with its floor."""
        offer = self.space.offer
        return self.estimator(number).decode(batch, offer.context, offer.slots)

    def lacking(self, keep: Sequence[int], batch: int = 1) -> float:
        """Bytes per chip by which a batch fits in none of these rows; negative if it does."""
        lines = self.space.lines(self.slice.devices, self.dtypes)
        held = lines.resident + _padded(batch, self._multiples) * lines.kept
        least = held[np.array(keep, int)].min(initial=math.inf)
        return float(least - self.capacity) * self.slice.chip.devices_per_chip


def _padded(batches: np.ndarray | int, multiple: np.ndarray | int) -> np.ndarray:
    return -(-np.asarray(batches) // multiple) * multiple


def _touched(
    model: Model, padded: np.ndarray, replicas: np.ndarray, experts: str
) -> np.ndarray | int:
    """Experts that steps read, as `PassCounter` counts them."""
    if experts != "coverage":
        return {"all": model.experts, "least": model.experts_per_token}[experts]
    tokens = np.maximum(padded // replicas, 1)
    return expected_experts(model, tokens)
