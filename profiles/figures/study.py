"""What the curves are of: layouts, slices and models chosen for one model on one slice."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

from model.catalog import find_model
from model.layout_check import settle
from profiles.chips.slices import Slice, slices_of
from profiles.expected.balance import balanced_context, critical_batch
from profiles.expected.candidates import AUTO, LayoutNames, candidates, meshes
from profiles.expected.estimate import Estimator, best
from profiles.figures.curves import (
    ChipCurve,
    StepCurves,
    Tradeoff,
    Unit,
    Volumes,
    chip_curve,
    dense_batch,
    front,
    ideal_weight_read,
    spaced,
    sparsity,
    step_curves,
    tradeoff,
    volumes,
)
from profiles.floor.deployment import Deployment, Model
from profiles.floor.passes import Pass
from profiles.floor.sized_models import sized_models
from sharding.error_types import LayoutError, UsageError
from sharding.layout import Layout
from sharding.mesh import MeshShape
from sharding.placement import Placement

MODELS = (
    "llama3-70b",
    "mixtral-8x7b",
    "qwen3-30b-a3b",
    "qwen3-235b-a22b",
    "gpt-oss-120b",
    "deepseek-v3",
)
"""Dense and sparse ones, whose critical batches stand beside the model's."""
PAPER = (
    "weight_stationary_1d",
    "weight_stationary_2d",
    "weight_gathered_x",
    "weight_gathered_xy",
    "weight_gathered_xyz",
)
"""Layouts of Pope et al. 2022, figure 3."""
ONE_D, TWO_D = PAPER[:2]
BEST, EVEN = "fastest layout of all", "divided evenly"
MOST_SLICES = 5  # that one figure of cost against latency holds
POINTS = 80  # of a curve against batch
MOST_TOKENS = 2**21  # of prompts together


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """What curves shall show.

    Attributes:
      deployment: the model on a slice; its layout is to be chosen.
      names: layouts of decode steps; an open one stands for those whose weights stay where they
        are, for gathering them pays in prompts alone.
      mesh: sizes of the mesh axes on the slice; None for the best.
      batches: batches of records, rising; curves go from the first to the last.
      contexts: tokens in the cache; figures of one context take the first.
      chips_batch: sequences of the steps that are drawn against chips.
      max_chips: size of the largest slice.
      slices: slices whose costs and latencies are compared; None for those of the slice's chip.
      on_slice: makes the deployment on a slice of another chip.
    """

    deployment: Deployment
    names: LayoutNames = dataclasses.field(default_factory=LayoutNames)
    mesh: MeshShape | None = None
    batches: tuple[int, ...] = (1, 4096)
    contexts: tuple[int, ...] = (1024,)
    chips_batch: int = 64
    max_chips: int = 256
    slices: tuple[Slice, ...] | None = None
    on_slice: Callable[[Slice], Deployment] | None = None


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Steps against chips.

    Attributes:
      batch: sequences.
      context: tokens in the cache of each.
      curves: of each layout, the best last.
      ideal: seconds of weight read by number of chips, as if divided evenly.
      notes: what is not there, and why.
    """

    batch: int
    context: int
    curves: list[ChipCurve]
    ideal: dict[int, float]
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class Tradeoffs:
    """Cost against latency.

    Attributes:
      context: tokens in the cache.
      unit: name of the cost's unit.
      slices: each with its batches.
      front: slice and batch of each point that none beats in expected time and cost.
      floor_front: the same at the floor.
      notes: what is not there, and why.
    """

    context: int
    unit: str
    slices: list[Tradeoff]
    front: list[tuple[str, int]]
    floor_front: list[tuple[str, int]]
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class Sparsities:
    """Critical batches.

    Attributes:
      dense: the rule's of a dense model.
      arithmetic: FLOPs a byte of the chip.
      models: by name, total over active parameters, and the critical batch.
    """

    dense: float
    arithmetic: float
    models: dict[str, tuple[float, float]]


class Study:
    """Chooses layouts and slices once, and gives the data of each figure.

    Args:
      options: what they shall show.

    Raises:
      LayoutError: the layout goes with no mesh of the slice, or not with the one that is given.
      UsageError: no such layout, or the chip has no figure for the arithmetic.
    """

    def __init__(self, options: StudyOptions):
        self.options = options
        self.context = options.contexts[0]
        shapes = [options.mesh] if options.mesh else None
        found = candidates(options.deployment, self._layouts(options.names.layout), shapes)
        self.estimator = self._best(found, options.batches)
        self.unit = Unit(options.deployment.slice.chips, options.deployment.price)
        self._candidates = functools.cache(self._on)

    @property
    def balanced(self) -> float | None:
        """The context beyond which no batch makes a step compute-bound; None if there is none."""
        return balanced_context(self.estimator)

    @functools.cached_property
    def batches(self) -> list[int]:
        """Those of smooth curves: above the first that needs no padding, only such."""
        first, last = self.options.batches[0], self.options.batches[-1]
        one, padded = self.estimator.padded(1), self.estimator.padded
        found = {each if each < one else padded(each) for each in spaced(first, last, POINTS)}
        return sorted({each for each in found if each <= last} | {first, last})

    @functools.cached_property
    def steps(self) -> list[StepCurves]:
        """Steps at each context, the main one's first."""
        return [step_curves(self.estimator, each, self.batches) for each in self.options.contexts]

    def data(self, figure: str) -> "Scaling | Tradeoffs | Sparsities | Volumes | None":
        """What ``chips``, ``pareto``, ``sparsity`` or ``communication`` draws."""
        methods = {
            "chips": self.scaling,
            "pareto": self.tradeoffs,
            "sparsity": self.sparsities,
            "communication": self.volumes,
        }
        return methods[figure]()

    def scaling(self) -> Scaling:
        """Steps of one batch on slices of the chip, in a few layouts."""
        options, step = self.options, Pass(self.options.chips_batch, self.context)
        slices = self._slices()
        names = [ONE_D, TWO_D, BEST] if self._free() else [options.names.layout]
        if self.estimator.deployment.layout is None:
            names = [EVEN]
        curves, notes = [], []
        for name in names:
            found, missing = [], []
            for slice in slices:
                offered = self._candidates(slice, name)
                found += [best(offered, [step])] if offered else []
                missing += [] if offered else [str(slice)]
            if missing:
                notes.append(f"{name} does not divide the model on {', '.join(missing)}")
            if found:
                curves.append(chip_curve(name, found, step))
        chips = [slice.chips for slice in slices]
        ideal = ideal_weight_read(self._one_device(options.deployment.model), chips).tolist()
        pairs = dict(zip(chips, ideal, strict=True))
        return Scaling(options.chips_batch, self.context, curves, pairs, notes)

    def compared(self) -> list[Estimator]:
        """An estimator of each chip whose slices are compared."""
        slices = {slice.chip.name: slice for slice in self.options.slices or ()}
        found = [self._candidates(slice, self._compared_by()) for slice in slices.values()]
        return [each[0] for each in found if each] or [self.estimator]

    def tradeoffs(self) -> Tradeoffs:
        """Cost against latency, on several slices with the layout that suits each batch.

        Raises:
          UsageError: slices of several chips are asked for, and one has no price.
        """
        options, found, unfit = self.options, [], []
        chips = self.compared()
        for each in chips if len(chips) > 1 else ():
            if each.deployment.price is None:
                raise UsageError(
                    f"price of {each.chip.name} is not known; give --price_per_chip_hour, or leave "
                    "its slices out of --slices"
                )
        for slice in options.slices or self._slices():
            offered = self._candidates(slice, self._compared_by())
            batches = [each for each in options.batches if self._fits(offered, each)]
            if not batches:
                unfit.append(str(slice))
            elif options.slices or len(found) < MOST_SLICES:
                chosen = {each: best(offered, [Pass(each, self.context)]) for each in batches}
                found.append(tradeoff(chosen, self.context))
        notes = [f"Does not fit on {', '.join(unfit)}"] if unfit else []
        unit = Unit(1, chips[0].deployment.price).name
        points = [(each, i) for each in found for i in range(len(each.batches))]

        def beaten_by_none(kind: str) -> list[tuple[str, int]]:
            times = [getattr(each, kind)[i] for each, i in points]
            costs = [getattr(each, f"{kind}_cost")[i] for each, i in points]
            best_ones = [points[place] for place in front(times, costs)]
            return [(each.topology, int(each.batches[i])) for each, i in best_ones]

        fronts = beaten_by_none("expected"), beaten_by_none("floor")
        return Tradeoffs(self.context, unit, found, *fronts, notes)

    def sparsities(self) -> Sparsities:
        """Critical batches of models on this chip, each at its exact sizes."""
        models: dict[str, tuple[float, float]] = {}
        for model in dict.fromkeys((self.options.deployment.model, *map(_find, MODELS))):
            estimator = self._one_device(model)
            models[model.name] = sparsity(estimator), critical_batch(estimator)
        peaks = self.estimator.peaks
        return Sparsities(dense_batch(self.estimator), peaks.flops / peaks.bandwidth, models)

    def volumes(self) -> Volumes | None:
        """Bytes that layouts send in prefills on the slice.

        None for a model by its sizes, and where there is but one device.
        """
        deployment = self.options.deployment
        if self.estimator.deployment.layout is None or deployment.slice.devices == 1:
            return None
        names = self.options.names
        kind = "heads" if names.attention == AUTO else names.attention
        named = (dataclasses.replace(names, layout=name, attention=kind) for name in PAPER)
        offered = [each.layouts(deployment.model)[0] for each in named]
        placements = self._cubic(deployment, offered)
        prompts = math.lcm(*(placement.multiple("B") for placement in placements))
        lengths = spaced(2, max(MOST_TOKENS // prompts, 4), 50)
        return volumes(deployment.model, placements, deployment.dtypes, lengths)

    def _cubic(self, deployment: Deployment, offered: Sequence[Layout]) -> list[Placement]:
        """The layouts on the mesh that all of them, or most, go with: sides as alike as can be."""
        devices = deployment.slice.devices
        shapes = [self.options.mesh] if self.options.mesh else meshes(devices)
        ways = [_those_that_go(deployment, offered, shape) for shape in shapes]

        def rank(way: Sequence[Placement]) -> tuple[int, float, int]:
            sizes = list(way[0].mesh.values()) if way else [devices]
            return -len(way), max(sizes) / min(sizes), way[0].mesh["x"] if way else 0

        found = min(ways, key=rank)
        if not found:
            settle(
                deployment.model, deployment.dtypes, offered[0], shapes[0]
            )  # says what does not divide
        return found

    def _compared_by(self) -> str:
        return BEST if self._free() else self.options.names.layout

    def _free(self) -> bool:
        return self.options.names.layout == AUTO

    def _layouts(self, name: str) -> list[Layout | None]:
        """Those of decode steps that a name stands for."""
        model, any_ = self.options.deployment.model, name in (AUTO, BEST, EVEN)
        names = dataclasses.replace(self.options.names, layout=AUTO if any_ else name)
        found = names.layouts(model)
        return [one for one in found if one is None or one.use is None] if any_ else found

    def _best(self, found: Sequence[Estimator], batches: Sequence[int]) -> Estimator:
        """The fastest over the batches that fit somewhere."""
        fitting = [each for each in batches if self._fits(found, each)] or batches[:1]
        return best(found, [Pass(each, self.context) for each in fitting])

    def _fits(self, found: Sequence[Estimator], batch: int) -> bool:
        return any(each.quick(Pass(batch, self.context)).fits for each in found)

    def _on(self, slice: Slice, name: str) -> list[Estimator]:
        """Estimators on another slice, none where the layout divides nothing."""
        options = self.options
        deployment = dataclasses.replace(options.deployment, slice=slice)
        if slice.chip.name != options.deployment.slice.chip.name:
            deployment = options.on_slice(slice)
        if self._free() and name not in (BEST, EVEN):  # one of those that best is found among
            found = self._candidates(slice, BEST)
            found = [each for each in found if each.deployment.layout.name == name]
            return [each for each in found if name != TWO_D or _divides_twice(each)] or found
        try:
            return candidates(deployment, self._layouts(name))
        except LayoutError:
            return []

    def _slices(self) -> list[Slice]:
        """The most compact slice of each number of chips, in powers of two or whole domains."""
        own = self.options.deployment.slice
        domain = own.chip.wiring.domain if not own.chip.wiring.dimensions else None
        found = {}
        for slice in slices_of(own.chip, self.options.max_chips):
            power = slice.chips & (slice.chips - 1) == 0
            if power or (domain and slice.chips % domain == 0):
                found.setdefault(slice.chips, slice)
        if own.chips <= self.options.max_chips:
            found[own.chips] = own
        return [found[chips] for chips in sorted(found)]

    def _one_device(self, model: Model) -> Estimator:
        """A model on the least of the chip: one device, or the halves of one chip."""
        deployment = self.options.deployment
        chip = deployment.slice.chip
        alone = Slice(chip, (1,) * max(chip.wiring.dimensions, 1))
        (layout,) = LayoutNames(ONE_D, "heads").layouts(model)
        mesh = layout and {"x": 1, "y": 1, "z": alone.devices}
        return Estimator(
            dataclasses.replace(deployment, model=model, slice=alone, layout=layout, mesh=mesh)
        )


def _divides_twice(estimator: Estimator) -> bool:
    """Whether d_model and d_ff both are divided, without which 2D is 1D by another name."""
    x, y, z = estimator.deployment.mesh.values()
    return x > 1 and y * z > 1


def _those_that_go(
    deployment: Deployment, offered: Sequence[Layout], shape: MeshShape
) -> list[Placement]:
    found = []
    for layout in offered:
        try:
            found.append(settle(deployment.model, deployment.dtypes, layout, shape))
        except LayoutError:
            continue
    return found


def _find(name: str) -> Model:
    sized = sized_models()
    return sized[name] if name in sized else find_model(name)
