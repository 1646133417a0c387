"""Choosing a layout by predicted time, and a mesh: what ``--layout=auto`` and ``--devices`` do.

The rule is that of every expected time (`profiles.expected.time`), for JAX's devices. Good for
ranking layouts of one model; on a CPU and on unknown chips, at assumed rates. Where layouts are
named, the mesh is the one whose floor is least.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from model.config import ModelConfig
from model.dtypes import Dtypes
from model.layout_check import settle
from profiles.chips.here import Here, here
from profiles.expected.candidates import AUTO, Wish, meshes, not_refused
from profiles.expected.estimate import Estimate, Estimator, Setting, ranked
from profiles.report.numbers import milliseconds, ms, number
from profiles.report.titles import field_text
from sharding import processes
from sharding.devices import default_platform, devices
from sharding.error_types import LayoutError
from sharding.layout import Layout
from sharding.mesh import MeshShape, request_cpu_devices
from sharding.placement import Placement

EQUAL = 1e-9
"""Floors that differ by a smaller part are equal."""
Report = Callable[[str], None]


class Way(NamedTuple):
    """A layout on a mesh."""

    layout: Layout
    mesh: MeshShape


@dataclasses.dataclass(frozen=True)
class Work:
    """What a layout and a mesh are chosen for.

    Attributes:
      config: the model.
      dtypes: how its numbers are stored.
      batches: sequences per step.
      contexts: tokens in the cache.
    """

    config: ModelConfig
    dtypes: Dtypes
    batches: Sequence[int]
    contexts: Sequence[int]

    @property
    def steps(self) -> list[tuple[int, int]]:
        """Batch and context of every decode step."""
        return list(itertools.product(self.batches, self.contexts))

    @property
    def prompts(self) -> list[tuple[int, int]]:
        """Of every pass over prompts, which are as long as the longest context."""
        return [(batch, max([*self.contexts, 2])) for batch in self.batches]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A way's predicted seconds, summed over the work's batches and contexts.

    Attributes:
      name: of what was looked at.
      way: that it is part of.
      passes: that were predicted.
    """

    name: str
    way: Way
    passes: Sequence[Estimate]

    @property
    def seconds(self) -> float:
        """Of all passes."""
        return sum(each.expected.seconds for each in self.passes)

    @property
    def fits(self) -> bool:
        """Whether weights and cache fit in the chip in all of them."""
        return all(each.fits for each in self.passes)

    def __str__(self) -> str:
        terms = [each.expected for each in self.passes]
        sums = (
            ("memory", sum(each.memory for each in terms)),
            ("compute", sum(each.compute for each in terms)),
            ("links", sum(each.communication + each.overlapped for each in terms)),
        )
        shown = ", ".join(f"{name} {_time(seconds)}" for name, seconds in sums)
        too_large = "" if self.fits else "; does not fit"
        return f"{self.name}: {_time(self.seconds)} ({shown}{too_large})"


def place(
    wishes: Sequence[Wish],
    config: ModelConfig,
    counts: Sequence[Sequence[MeshShape]],
    work: Callable[[], Work],
    report: Report,
    whole_batches: Sequence[int] = (),
) -> tuple[list[Layout], list[MeshShape]]:
    """A layout for each wish, and one mesh of each number of devices, on which all layouts go.

    What wishes leave open is chosen on the largest number of devices.

    Args:
      wishes: layouts by names.
      config: the model.
      counts: the meshes that may be, of each number of devices.
      work: gives what to choose for, and may start JAX: asked only where the model and the meshes
        admit a choice.
      report: told what was picked and why.
      whole_batches: that must not need padding, if a mesh does without.

    Raises:
      LayoutError: a layout goes with none of the meshes of some number.
    """
    largest = max(counts, key=lambda shapes: math.prod(shapes[0].values()))
    offered = [admitted(config, wish.steps(config), largest) for wish in wishes]
    layouts = []
    for wish, ways in zip(wishes, offered, strict=True):
        layout, mesh = ways[0]
        if wish.open:
            layout, mesh = _pick(wish, _unpadded(config, ways, whole_batches), work, report)
        layouts.append(layout)
        if wish.open and len(wishes) == 1:
            counts = [[mesh] if shapes is largest else shapes for shapes in counts]
    together = [_together(config, layouts, shapes, whole_batches) for shapes in counts]
    shapes = [least_floor(layouts, each, work, report) for each in together]
    largest = max(shapes, key=lambda mesh: math.prod(mesh.values()))
    return [
        _pick_prompts(wish, layout, largest, work, report) if wish.prefill == AUTO else layout
        for wish, layout in zip(wishes, layouts, strict=True)
    ], shapes


def check_wishes(
    wishes: Sequence[Wish], config: ModelConfig, counts: Sequence[Sequence[MeshShape]]
) -> None:
    """Refuses, before JAX starts, what `place` would refuse; raises as it does, too.

    Raises:
      UsageError: there is no layout of a name.
    """
    for wish in wishes:
        layouts = wish.steps(config)
        for shapes in counts:
            admitted(config, layouts, shapes)


def every_device(
    config: ModelConfig, wishes: Sequence[Wish], on_cpu: Sequence[int] = (1,)
) -> list[list[MeshShape]]:
    """The meshes of as many of JAX's devices as these layouts divide; starts JAX.

    Args:
      config: the model.
      wishes: layouts by names.
      on_cpu: how many fake devices a single process makes of a CPU, in turns.

    Raises:
      UsageError: there is no layout of a name, found before JAX starts.
      LayoutError: many processes have a number of devices that the layouts do not divide.
    """
    offered = [wish.steps(config) for wish in wishes]
    alone = processes.count() == 1
    request_cpu_devices(max(on_cpu) if alone else processes.count())
    if alone and default_platform() == "cpu":
        return [meshes(count) for count in on_cpu]
    for count in range(len(devices()), 0, -1):
        try:
            for layouts in offered:
                admitted(config, layouts, meshes(count))
            return [meshes(count)]
        except LayoutError:
            if not alone:
                raise
    return [meshes(1)]


def _pick(wish: Wish, ways: Sequence[Way], work: Callable[[], Work], report: Report) -> Way:
    """The way of decode steps that is predicted to be fastest; arguments as of `place`."""
    asked, devices = work(), here(math.prod(ways[0].mesh.values()))
    found = choose(asked, ways, devices)
    report(explain(found, "layout" if wish.layout == AUTO else "attention", devices))
    return found[0].way


def _pick_prompts(
    wish: Wish, steps: Layout, mesh: MeshShape, work: Callable[[], Work], report: Report
) -> Layout:
    """The layout with the one for prompts that is predicted to be fastest on a mesh."""
    named = dataclasses.replace(
        wish, layout=steps.name, attention=steps.attends, expert_parallel=steps.expert_parallel
    )
    asked, devices = work(), here(math.prod(mesh.values()))
    ways = admitted(asked.config, named.layouts(asked.config), [mesh])
    found = choose_prefill(asked, ways, devices)
    report(explain(found, "prefill_layout", devices))
    return found[0].way.layout


def admitted(
    config: ModelConfig, layouts: Iterable[Layout], shapes: Sequence[MeshShape]
) -> list[Way]:
    """The layouts on the meshes that go with them and the model, on the simplest meshes first.

    Raises:
      LayoutError: there is none; the message is the first refusal's.
    """

    def checked(way: tuple[Layout, MeshShape]) -> Way:
        Placement.of(way[0], config.sizes, way[1])
        return Way(*way)

    return not_refused(checked, itertools.product(layouts, sorted(shapes, key=_axes)))


def least_floor(
    layouts: Sequence[Layout],
    shapes: Sequence[MeshShape],
    work: Callable[[], Work],
    report: Report,
) -> MeshShape:
    """The mesh on which the floors of these layouts' decode steps are least, and all fit if can be.

    Of equal ones that which has fewest axes, z before y before x. Arguments as of `place`.

    Args:
      shapes: on which all layouts go, the simplest first.
    """
    if len(shapes) == 1:
        return shapes[0]
    asked, devices = work(), here(math.prod(shapes[0].values()))
    shapes = _stored_evenly(asked, layouts, shapes)
    floors = []
    for mesh in shapes:
        estimators = [_estimator(asked, Way(layout, mesh), devices) for layout in layouts]
        passes = [one.decode(*each) for one in estimators for each in asked.steps]
        unfit = sum(not each.fits for each in passes)
        floors.append((unfit, sum(each.floor.seconds for each in passes)))
    fewest, least = min(floors)
    place = next(i for i, (unfit, s) in enumerate(floors)
                 if unfit == fewest and s <= least * (1 + EQUAL))  # fmt: skip
    if place:
        names = ", ".join(layout.name for layout in layouts)
        report(
            f"mesh {field_text(shapes[place])}: the least floor of {names}, {ms(floors[place][1])} "
            f"ms; on {field_text(shapes[0])} {ms(floors[0][1])} ms"
            + " and does not fit"
            * (floors[0][0] > fewest)
        )
    return shapes[place]


def choose(
    work: Work, ways: Iterable[Way], devices: Here, count: int | None = 3
) -> list[Prediction]:
    """What decode steps are predicted to take each way, the best first.

    Args:
      work: what to choose for.
      ways: from `admitted`.
      devices: that steps run on.
      count: how many to tell; all if None.
    """
    estimators = _estimators(work, ways, devices)
    return [
        Prediction(_steps_words(one), _way(one), [one.decode(*each) for each in work.steps])
        for one in ranked(estimators, work.steps, count=count or len(estimators))
    ]


def choose_prefill(work: Work, ways: Iterable[Way], devices: Here) -> list[Prediction]:
    """What prompts are predicted to take in each `prefill`; arguments as of `choose`."""
    estimators = _estimators(work, ways, devices)
    found = ranked(estimators, work.prompts, prefill=True, count=len(estimators))
    return [
        Prediction(
            one.placement.prefill.layout.name,
            _way(one),
            [one.prefill(*each) for each in work.prompts],
        )
        for one in found
    ]


def _stored_evenly(
    work: Work, layouts: Sequence[Layout], shapes: Sequence[MeshShape]
) -> list[MeshShape]:
    """The meshes that divide the work's form of weights too, in every layout.

    Raises:
      LayoutError: there is none.
    """

    def settled(mesh: MeshShape) -> MeshShape:
        for layout in layouts:
            settle(work.config, work.dtypes, layout, mesh)
        return mesh

    return not_refused(settled, shapes)


def _estimators(work: Work, ways: Iterable[Way], devices: Here) -> list[Estimator]:
    """Of all ways that divide the work's form of weights too; raises as `_stored_evenly`."""
    return not_refused(lambda way: _estimator(work, way, devices), ways)


def _estimator(work: Work, way: Way, devices: Here) -> Estimator:
    return Estimator(
        Setting(
            model=work.config,
            where=devices.where,
            dtypes=work.dtypes,
            rates=devices.rates,
            layout=way.layout,
            mesh=way.mesh,
        )
    )


def _way(estimator: Estimator) -> Way:
    return Way(estimator.setting.layout, estimator.setting.mesh)


def _steps_words(estimator: Estimator) -> str:
    said = estimator.describe()
    experts = ", experts divided" * ("expert_parallel" in said)
    mesh = field_text(said["mesh"])
    return f"{said['layout']}, attention by {said['attention']}{experts}, on {mesh}"


def _together(
    config: ModelConfig,
    layouts: Sequence[Layout],
    shapes: Sequence[MeshShape],
    whole_batches: Sequence[int],
) -> list[MeshShape]:
    """The meshes on which all of these layouts go, the simplest first; raises as `admitted`."""
    found = sorted(shapes, key=_axes)
    for layout in layouts:
        ways = _unpadded(config, admitted(config, [layout], found), whole_batches)
        found = [mesh for _, mesh in ways]
    return found


def _unpadded(config: ModelConfig, ways: list[Way], batches: Sequence[int]) -> list[Way]:
    """Those that need pad none of the batches; all if each does, and one may then say so."""

    def whole(way: Way) -> bool:
        multiple = Placement.of(way.layout, config.sizes, way.mesh).multiple("B")
        return not any(batch % multiple for batch in batches)

    return (list(filter(whole, ways)) or ways) if batches else ways


def _axes(mesh: MeshShape) -> tuple[int, int, int]:
    """Sorts meshes: the fewest axes first, z before y before x."""
    return sum(size > 1 for size in mesh.values()), mesh["x"], mesh["y"]


def explain(found: Sequence[Prediction], what: str, devices: Here) -> str:
    """Which was picked, and why not the next ones."""
    first, *others = found
    rest = "; ".join(map(str, others[:2]))
    beside = f"; next: {rest}" if rest else "; no other goes with this model and mesh"
    return f"{what} auto: {first}, predicted from {devices.words}{beside}"


def _time(seconds: float) -> str:
    return milliseconds(seconds) if seconds < 1 else f"{number(seconds)} s"
