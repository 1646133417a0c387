"""Chooses the layouts, slices and models that the figures of one model on one slice compare."""

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
from profiles.figures import systems
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
    "deepseek-v3-even",
)
"""Dense and sparse models whose critical batches are drawn beside that of the study's model."""
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
MOST_SLICES = 5  # most slices in a figure of cost against latency
POINTS = 80  # points of a curve against batch
MOST_TOKENS = 2**21  # most tokens of all prompts of a prefill


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Options of the figures.

    Attributes:
      deployment: the model on a slice, without a layout.
      names: names of layouts of decode steps; `AUTO` leaves out weight-gathered layouts, which only
        pay in prefills.
      mesh: sizes of the mesh axes on the slice; None for the best.
      batches: batches of records, rising; curves go from the first to the last.
      contexts: numbers of tokens in the cache; figures of one context take the first.
      chips_batch: batch of the steps that are drawn against chips.
      max_chips: chips of the largest slice.
      slices: slices whose costs and latencies are compared; None for slices of the same chip.
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
class ChipScaling:
    """Data of the figure of step time against chips.

    Attributes:
      batch: number of sequences.
      context: tokens in the cache of each sequence.
      curves: the curve of each layout, that of the fastest last.
      ideal: by number of chips, seconds to read the weights if they divided evenly.
      notes: lines that say what is missing in the figure, and why.
    """

    batch: int
    context: int
    curves: list[ChipCurve]
    ideal: dict[int, float]
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class Tradeoffs:
    """Data of the figure of cost against latency.

    Attributes:
      context: tokens in the cache.
      unit: name of the unit of costs.
      slices: latency and cost of each slice.
      front: slice and batch of each point of the Pareto front of expected time and cost.
      floor_front: the same at the floor.
      notes: lines that say what is missing in the figure, and why.
    """

    context: int
    unit: str
    slices: list[Tradeoff]
    front: list[tuple[str, int]]
    floor_front: list[tuple[str, int]]
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class Sparsities:
    """Data of the figure of critical batch against sparsity.

    Attributes:
      dense: critical batch of a dense model by the simple rule.
      arithmetic: FLOPs per byte of the chip.
      models: by name, total over active parameters, and the critical batch.
    """

    dense: float
    arithmetic: float
    models: dict[str, tuple[float, float]]


class Study:
    """Chooses layouts and slices once, and gives the data of each figure.

    Args:
      options: options of the figures.

    Raises:
      LayoutError: the layout cannot divide the model over any mesh of the slice, or the given one.
      UsageError: there is no such layout, or the chip has no rate for the dtype of arithmetic.
    """

    def __init__(self, options: StudyOptions):
        self.options = options
        self.context = options.contexts[0]
        shapes = [options.mesh] if options.mesh else None
        offered = candidates(options.deployment, self._layouts(options.names.layout), shapes)
        self.estimator = self._best(offered, options.batches)
        self.unit = Unit(options.deployment.slice.chips, options.deployment.price)
        self._candidates = functools.cache(self._on)

    @property
    def balanced(self) -> float | None:
        """The context beyond which no batch makes a step compute-bound; None if there is none."""
        return balanced_context(self.estimator)

    @functools.cached_property
    def batches(self) -> list[int]:
        """Batches of the curves; above the smallest unpadded batch, only unpadded ones."""
        first, last = self.options.batches[0], self.options.batches[-1]
        one, padded = self.estimator.padded(1), self.estimator.padded
        spread = {each if each < one else padded(each) for each in spaced(first, last, POINTS)}
        return sorted({each for each in spread if each <= last} | {first, last})

    @functools.cached_property
    def steps(self) -> list[StepCurves]:
        """Curves of decode steps at each context, the first option first."""
        return [step_curves(self.estimator, each, self.batches) for each in self.options.contexts]

    def data(self, figure: str) -> object:
        """The data of a figure that is not against batch; None where it has none."""
        batch, one = self.options.chips_batch, self.estimator
        methods = {
            "chips": self.scaling,
            "pareto": self.tradeoffs,
            "sparsity": self.sparsities,
            "communication": self.volumes,
            "pipeline": lambda: systems.stages(one, batch, self.context),
            "racks": lambda: systems.racks(one, batch / one.deployment.slice.chips),
            "training": lambda: systems.training(one),
            "mfu": lambda: systems.utilization(one),
        }
        return methods[figure]()

    def scaling(self) -> ChipScaling:
        """Steps of one batch on slices of the chip, in several layouts."""
        options, step = self.options, Pass(self.options.chips_batch, self.context)
        slices = self._slices()
        names = [ONE_D, TWO_D, BEST] if self._free() else [options.names.layout]
        if self.estimator.deployment.layout is None:
            names = [EVEN]
        curves, notes = [], []
        for name in names:
            estimators, missing = [], []
            for slice in slices:
                offered = self._candidates(slice, name)
                estimators += [best(offered, [step])] if offered else []
                missing += [] if offered else [str(slice)]
            if missing:
                notes.append(f"{name} does not divide the model on {', '.join(missing)}")
            if estimators:
                curves.append(chip_curve(name, estimators, step))
        chips = [slice.chips for slice in slices]
        ideal = ideal_weight_read(self._one_device(options.deployment.model), chips).tolist()
        pairs = dict(zip(chips, ideal, strict=True))
        return ChipScaling(options.chips_batch, self.context, curves, pairs, notes)

    def compared(self) -> list[Estimator]:
        """An estimator for each chip whose slices are compared."""
        slices = {slice.chip.name: slice for slice in self.options.slices or ()}
        offered = [self._candidates(slice, self._compared_by()) for slice in slices.values()]
        return [each[0] for each in offered if each] or [self.estimator]

    def tradeoffs(self) -> Tradeoffs:
        """Cost against latency on several slices, with the fastest layout for each batch.

        Raises:
          UsageError: slices of several chips are compared, and one has no price.
        """
        options, fitting, unfit = self.options, [], []
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
            elif options.slices or len(fitting) < MOST_SLICES:
                chosen = {each: best(offered, [Pass(each, self.context)]) for each in batches}
                fitting.append(tradeoff(chosen, self.context))
        notes = [f"Does not fit on {', '.join(unfit)}"] if unfit else []
        unit = Unit(1, chips[0].deployment.price).name
        points = [(each, i) for each in fitting for i in range(len(each.batches))]

        def pareto_front(kind: str) -> list[tuple[str, int]]:
            times = [getattr(each, kind)[i] for each, i in points]
            costs = [getattr(each, f"{kind}_cost")[i] for each, i in points]
            best_ones = [points[index] for index in front(times, costs)]
            return [(each.topology, int(each.batches[i])) for each, i in best_ones]

        fronts = pareto_front("expected"), pareto_front("floor")
        return Tradeoffs(self.context, unit, fitting, *fronts, notes)

    def sparsities(self) -> Sparsities:
        """Critical batches of models on this chip, from each model's exact sizes."""
        models: dict[str, tuple[float, float]] = {}
        for model in dict.fromkeys((self.options.deployment.model, *map(_find, MODELS))):
            estimator = self._one_device(model)
            models[model.name] = sparsity(estimator), critical_batch(estimator)
        peaks = self.estimator.peaks
        return Sparsities(dense_batch(self.estimator), peaks.flops / peaks.bandwidth, models)

    def volumes(self) -> Volumes | None:
        """Bytes that layouts send in prefills on the slice.

        None for a model known by its sizes, and on a single device.
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
        """The layouts on the mesh that most of them can use, with sides as equal as possible."""
        devices = deployment.slice.devices
        shapes = [self.options.mesh] if self.options.mesh else meshes(devices)
        choices = [_settled(deployment, offered, shape) for shape in shapes]

        def rank(placed: Sequence[Placement]) -> tuple[int, float, int]:
            sizes = list(placed[0].mesh.values()) if placed else [devices]
            return -len(placed), max(sizes) / min(sizes), placed[0].mesh["x"] if placed else 0

        placements = min(choices, key=rank)
        if not placements:  # raises the error that says what does not divide
            settle(deployment.model, deployment.dtypes, offered[0], shapes[0])
        return placements

    def _compared_by(self) -> str:
        return BEST if self._free() else self.options.names.layout

    def _free(self) -> bool:
        return self.options.names.layout == AUTO

    def _layouts(self, name: str) -> list[Layout | None]:
        """The layouts of decode steps that a name stands for."""
        model, any_ = self.options.deployment.model, name in (AUTO, BEST, EVEN)
        names = dataclasses.replace(self.options.names, layout=AUTO if any_ else name)
        layouts = names.layouts(model)
        return [one for one in layouts if one is None or one.use is None] if any_ else layouts

    def _best(self, offered: Sequence[Estimator], batches: Sequence[int]) -> Estimator:
        """The fastest estimator over the batches that fit with any of them."""
        fitting = [each for each in batches if self._fits(offered, each)] or batches[:1]
        return best(offered, [Pass(each, self.context) for each in fitting])

    def _fits(self, offered: Sequence[Estimator], batch: int) -> bool:
        return any(each.quick(Pass(batch, self.context)).fits for each in offered)

    def _on(self, slice: Slice, name: str) -> list[Estimator]:
        """Estimators on a slice in the layouts of a name; empty where none divides the model."""
        options = self.options
        deployment = dataclasses.replace(options.deployment, slice=slice)
        if slice.chip.name != options.deployment.slice.chip.name:
            deployment = options.on_slice(slice)
        if self._free() and name not in (BEST, EVEN):  # this layout is among those of BEST
            offered = self._candidates(slice, BEST)
            offered = [each for each in offered if each.deployment.layout.name == name]
            return [each for each in offered if name != TWO_D or _divides_twice(each)] or offered
        try:
            return candidates(deployment, self._layouts(name))
        except LayoutError:
            return []

    def _slices(self) -> list[Slice]:
        """The most compact slice of each power of two of chips, and of full domains."""
        own = self.options.deployment.slice
        domain = own.chip.wiring.domain if not own.chip.wiring.dimensions else None
        by_chips = {}
        for slice in slices_of(own.chip, self.options.max_chips):
            power = slice.chips & (slice.chips - 1) == 0
            if power or (domain and slice.chips % domain == 0):
                by_chips.setdefault(slice.chips, slice)
        if own.chips <= self.options.max_chips:
            by_chips[own.chips] = own
        return [by_chips[chips] for chips in sorted(by_chips)]

    def _one_device(self, model: Model) -> Estimator:
        """A model on a single chip: one device, or the two devices that are its halves."""
        deployment = self.options.deployment
        chip = deployment.slice.chip
        alone = Slice(chip, (1,) * max(chip.wiring.dimensions, 1))
        (layout,) = LayoutNames(ONE_D, "heads").layouts(model)
        mesh = layout and {"x": 1, "y": 1, "z": alone.devices}
        return Estimator(
            dataclasses.replace(deployment, model=model, slice=alone, layout=layout, mesh=mesh)
        )


def _divides_twice(estimator: Estimator) -> bool:
    """Whether both d_model and d_ff are divided; otherwise a 2D layout is the same as 1D."""
    x, y, z = estimator.deployment.mesh.values()
    return x > 1 and y * z > 1


def _settled(
    deployment: Deployment, offered: Sequence[Layout], shape: MeshShape
) -> list[Placement]:
    placements = []
    for layout in offered:
        try:
            placements.append(settle(deployment.model, deployment.dtypes, layout, shape))
        except LayoutError:
            continue
    return placements


def _find(name: str) -> Model:
    sized = sized_models()
    return sized[name] if name in sized else find_model(name)
