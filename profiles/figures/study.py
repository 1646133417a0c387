"""What the curves are of: layouts, slices and models chosen for one model on one slice."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

from model.catalog import find_model
from model.config import ModelConfig
from model.layout_check import settle
from profiles.chips.slices import Slice, slices_of
from profiles.expected.candidates import AUTO, candidates, layouts, meshes
from profiles.expected.economics import balanced_context, critical_batch
from profiles.expected.estimate import Estimator, Model, Setting, best
from profiles.expected.sized import sized_models
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
from sharding.catalog import LAYOUTS, divide_experts, find_layout
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
class Wanted:
    """What curves are wanted of.

    Attributes:
      setting: model, slice, form, rates, experts and price; no layout.
      layout: of decode steps, by name; ``auto`` for the one that is expected to be fastest of those
        whose weights stay where they are, for gathering them pays in prompts alone.
      attention: what divides attention; ``auto`` likewise.
      mesh: of the slice; None for the best.
      finish: what else a layout is to have.
      batches: of records, rising; curves go from the first to the last.
      contexts: tokens in the cache; figures of one context take the first.
      chips_batch: sequences of the steps that are drawn against chips.
      max_chips: of the largest slice.
      slices: whose costs and latencies are compared; None for those of the slice's chip.
      settings_of: makes of a slice of another chip its setting.
    """

    setting: Setting
    layout: str = AUTO
    attention: str = AUTO
    mesh: MeshShape | None = None
    finish: Callable[[Layout], Layout] = lambda layout: layout
    batches: tuple[int, ...] = (1, 4096)
    contexts: tuple[int, ...] = (1024,)
    chips_batch: int = 64
    max_chips: int = 256
    slices: tuple[Slice, ...] | None = None
    settings_of: Callable[[Slice], Setting] | None = None


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
      wanted: of what.

    Raises:
      LayoutError: the layout goes with no mesh of the slice, or not with the one that is given.
      UsageError: no such layout, or the chip has no figure for the arithmetic.
    """

    def __init__(self, wanted: Wanted):
        self.wanted = wanted
        self.context = wanted.contexts[0]
        shapes = [wanted.mesh] if wanted.mesh else None
        found = candidates(wanted.setting, self._layouts(wanted.layout), shapes)
        self.estimator = self._best(found, wanted.batches)
        self.unit = Unit(wanted.setting.where.chips, wanted.setting.price)
        self._candidates = functools.cache(self._on)

    @property
    def balanced(self) -> float | None:
        """The context beyond which no batch makes a step compute-bound; None if there is none."""
        return balanced_context(self.estimator)

    @functools.cached_property
    def batches(self) -> list[int]:
        """Those of smooth curves: above the first that needs no padding, only such."""
        first, last = self.wanted.batches[0], self.wanted.batches[-1]
        one, padded = self.estimator.padded(1), self.estimator.padded
        found = {each if each < one else padded(each) for each in spaced(first, last, POINTS)}
        return sorted({each for each in found if each <= last} | {first, last})

    @functools.cached_property
    def steps(self) -> list[StepCurves]:
        """Steps at each context, the main one's first."""
        return [step_curves(self.estimator, each, self.batches) for each in self.wanted.contexts]

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
        wanted, work = self.wanted, [(self.wanted.chips_batch, self.context)]
        slices = self._slices()
        names = [ONE_D, TWO_D, BEST] if self._free() else [wanted.layout]
        if not isinstance(wanted.setting.model, ModelConfig):
            names = [EVEN]
        curves, notes = [], []
        for name in names:
            found, missing = [], []
            for where in slices:
                offered = self._candidates(where, name)
                found += [best(offered, work)] if offered else []
                missing += [] if offered else [str(where)]
            if missing:
                notes.append(f"{name} does not divide the model on {', '.join(missing)}")
            if found:
                curves.append(chip_curve(name, found, *work[0]))
        chips = [where.chips for where in slices]
        ideal = ideal_weight_read(self._one_device(wanted.setting.model), chips).tolist()
        pairs = dict(zip(chips, ideal, strict=True))
        return Scaling(wanted.chips_batch, self.context, curves, pairs, notes)

    def compared(self) -> list[Estimator]:
        """An estimator of each chip whose slices are compared."""
        slices = {where.chip.name: where for where in self.wanted.slices or ()}
        found = [self._candidates(where, self._compared_by()) for where in slices.values()]
        return [each[0] for each in found if each] or [self.estimator]

    def tradeoffs(self) -> Tradeoffs:
        """Cost against latency, on several slices with the layout that suits each batch.

        Raises:
          UsageError: slices of several chips are asked for, and one has no price.
        """
        wanted, found, unfit = self.wanted, [], []
        chips = self.compared()
        for each in chips if len(chips) > 1 else ():
            if each.setting.price is None:
                raise UsageError(
                    f"price of {each.chip.name} is not known; give --price_per_chip_hour, or leave "
                    "its slices out of --slices"
                )
        for where in wanted.slices or self._slices():
            offered = self._candidates(where, self._compared_by())
            batches = [each for each in wanted.batches if self._fits(offered, each)]
            if not batches:
                unfit.append(str(where))
            elif wanted.slices or len(found) < MOST_SLICES:
                chosen = {each: best(offered, [(each, self.context)]) for each in batches}
                found.append(tradeoff(chosen, self.context))
        notes = [f"Does not fit on {', '.join(unfit)}"] if unfit else []
        unit = Unit(1, chips[0].setting.price).name
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
        for model in dict.fromkeys((self.wanted.setting.model, *map(_find, MODELS))):
            estimator = self._one_device(model)
            models[model.name] = sparsity(estimator), critical_batch(estimator)
        peaks = self.estimator.peaks
        return Sparsities(dense_batch(self.estimator), peaks.flops / peaks.bandwidth, models)

    def volumes(self) -> Volumes | None:
        """Bytes that layouts send in prefills on the slice.

        None for a model by its sizes, and where there is but one device.
        """
        setting = self.wanted.setting
        if not isinstance(setting.model, ModelConfig) or setting.where.devices == 1:
            return None
        kind = "heads" if self.wanted.attention == AUTO else self.wanted.attention
        offered = [layouts(name, kind, self.wanted.finish)[0] for name in PAPER]
        placements = self._cubic(setting, offered)
        prompts = math.lcm(*(placement.multiple("B") for placement in placements))
        lengths = spaced(2, max(MOST_TOKENS // prompts, 4), 50)
        return volumes(setting.model, placements, setting.dtypes, lengths)

    def _cubic(self, setting: Setting, offered: Sequence[Layout]) -> list[Placement]:
        """The layouts on the mesh that all of them, or most, go with: sides as alike as can be."""
        devices = setting.where.devices
        shapes = [self.wanted.mesh] if self.wanted.mesh else meshes(devices)
        ways = [_those_that_go(setting, offered, shape) for shape in shapes]

        def rank(way: Sequence[Placement]) -> tuple[int, float, int]:
            sizes = list(way[0].mesh.values()) if way else [devices]
            return -len(way), max(sizes) / min(sizes), way[0].mesh["x"] if way else 0

        found = min(ways, key=rank)
        if not found:
            settle(
                setting.model, setting.dtypes, offered[0], shapes[0]
            )  # says what does not divide
        return found

    def _compared_by(self) -> str:
        return BEST if self._free() else self.wanted.layout

    def _free(self) -> bool:
        return self.wanted.layout == AUTO

    def _layouts(self, name: str) -> list[Layout]:
        """Those of decode steps that a name stands for."""
        names = [each for each in LAYOUTS if LAYOUTS[each].use is None]
        if name not in (AUTO, BEST):
            names = [find_layout(name).name]
        kind, finish = self.wanted.attention, self.wanted.finish
        found = [layout for each in names for layout in layouts(each, kind, finish)]
        if name in (AUTO, BEST) and self.wanted.setting.model.experts:  # divided in both ways
            found += [divide_experts(each) for each in found if not each.expert_parallel]
        return found

    def _best(self, found: Sequence[Estimator], batches: Sequence[int]) -> Estimator:
        """The fastest over the batches that fit somewhere."""
        fitting = [each for each in batches if self._fits(found, each)] or batches[:1]
        return best(found, [(each, self.context) for each in fitting])

    def _fits(self, found: Sequence[Estimator], batch: int) -> bool:
        return any(each.quick(batch, self.context).fits for each in found)

    def _on(self, where: Slice, name: str) -> list[Estimator]:
        """Estimators on another slice, none where the layout divides nothing."""
        wanted = self.wanted
        setting = dataclasses.replace(wanted.setting, where=where)
        if where.chip.name != wanted.setting.where.chip.name:
            setting = wanted.settings_of(where)
        sized = not isinstance(setting.model, ModelConfig)
        if self._free() and name not in (BEST, EVEN):  # one of those that best is found among
            found = self._candidates(where, BEST)
            found = [each for each in found if each.setting.layout.name == name]
            return [each for each in found if name != TWO_D or _divides_twice(each)] or found
        try:
            return candidates(setting, self._layouts(AUTO if sized else name))
        except LayoutError:
            return []

    def _slices(self) -> list[Slice]:
        """The most compact slice of each number of chips, in powers of two or whole domains."""
        own = self.wanted.setting.where
        domain = own.chip.wiring.domain if not own.chip.wiring.dimensions else None
        found = {}
        for where in slices_of(own.chip, self.wanted.max_chips):
            power = where.chips & (where.chips - 1) == 0
            if power or (domain and where.chips % domain == 0):
                found.setdefault(where.chips, where)
        if own.chips <= self.wanted.max_chips:
            found[own.chips] = own
        return [found[chips] for chips in sorted(found)]

    def _one_device(self, model: Model) -> Estimator:
        """A model on the least of the chip: one device, or the halves of one chip."""
        setting = self.wanted.setting
        chip = setting.where.chip
        alone = Slice(chip, (1,) * max(chip.wiring.dimensions, 1))
        mesh = {"x": 1, "y": 1, "z": alone.devices}
        layout = find_layout(ONE_D)
        if not isinstance(model, ModelConfig):
            layout = mesh = None
        sizes = {"model": model, "where": alone, "layout": layout, "mesh": mesh}
        return Estimator(dataclasses.replace(setting, **sizes))


def _divides_twice(estimator: Estimator) -> bool:
    """Whether d_model and d_ff both are divided, without which 2D is 1D by another name."""
    x, y, z = estimator.setting.mesh.values()
    return x > 1 and y * z > 1


def _those_that_go(
    setting: Setting, offered: Sequence[Layout], shape: MeshShape
) -> list[Placement]:
    found = []
    for layout in offered:
        try:
            found.append(settle(setting.model, setting.dtypes, layout, shape))
        except LayoutError:
            continue
    return found


def _find(name: str) -> Model:
    sized = sized_models()
    return sized[name] if name in sized else find_model(name)
