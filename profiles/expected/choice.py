"""Chooses a layout by predicted time, and a mesh: what ``--layout=auto`` and ``--devices`` do.

Predictions are expected times (`profiles.expected.time`) on JAX's devices; on a CPU and on unknown
chips they use assumed rates, which is good enough to rank layouts of one model. If the layouts are
named, the mesh with the lowest floor is chosen.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence

from model.config import ModelConfig
from model.dtypes import Dtypes
from profiles.chips.local_devices import LocalDevices, local_devices
from profiles.expected.candidates import AUTO, LayoutNames, meshes, not_refused
from profiles.expected.estimate import Estimate, Estimator, ranked
from profiles.floor.deployment import Deployment
from profiles.floor.passes import Pass
from profiles.report.numbers import milliseconds, ms, number
from profiles.report.titles import field_text
from sharding import processes
from sharding.devices import default_platform, devices
from sharding.error_types import LayoutError
from sharding.layout import Layout
from sharding.mesh import MeshShape, request_cpu_devices
from sharding.placement import Placement

EQUAL = 1e-9
"""Floors whose relative difference is smaller count as equal."""
Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Purpose:
    """The model and the steps for which a layout and a mesh are chosen.

    Attributes:
      config: the model.
      dtypes: returns how its numbers are stored. It may start JAX, so it is only called where there
        is a choice to make.
      steps: decode steps, whose expected times are added up.
      whole_batches: whether to prefer meshes on which no batch needs padding.
    """

    config: ModelConfig
    dtypes: Callable[[], Dtypes]
    steps: Sequence[Pass]
    whole_batches: bool = False

    @property
    def prompts(self) -> list[Pass]:
        """A prefill for each batch, of prompts as long as the longest context."""
        longest = max([*(step.context for step in self.steps), 2])
        return [Pass(batch, 0, longest) for batch in dict.fromkeys(s.batch for s in self.steps)]

    def on(self, devices: LocalDevices, placement: Placement) -> Deployment:
        """The model in a layout on some devices."""
        return Deployment(
            model=self.config,
            slice=devices.slice,
            dtypes=self.dtypes(),
            calibration=devices.calibration,
            layout=placement.layout,
            mesh=dict(placement.mesh),
        )


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Predicted seconds in one layout on one mesh, summed over passes.

    Attributes:
      name: name of the candidate in reports.
      placement: the layout on its mesh.
      passes: the estimate of each pass.
    """

    name: str
    placement: Placement
    passes: Sequence[Estimate]

    @property
    def seconds(self) -> float:
        """Predicted seconds of all passes together."""
        return sum(each.expected.seconds for each in self.passes)

    @property
    def fits(self) -> bool:
        """Whether weights and cache fit in memory in every pass."""
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


def choose_layouts(
    names: Sequence[LayoutNames],
    counts: Sequence[Sequence[MeshShape]],
    purpose: Purpose,
    report: Report,
) -> tuple[list[Layout], list[MeshShape]]:
    """A layout for each of the names, and for each number of devices one mesh for all layouts.

    `AUTO` is decided on the largest number of devices.

    Args:
      names: names of the layouts.
      counts: for each number of devices, the meshes to choose from.
      purpose: the model and the steps to choose for.
      report: called with a line that says what was picked and why.

    Raises:
      LayoutError: a layout cannot divide the model over any mesh of some number of devices.
    """
    config = purpose.config
    largest = max(counts, key=lambda shapes: math.prod(shapes[0].values()))
    offered = [admitted(config, each.steps(config), largest) for each in names]
    layouts = []
    for each, placements in zip(names, offered, strict=True):
        picked = placements[0]
        if each.open:
            picked = _pick(each, _unpadded(purpose, placements), purpose, report)
        layouts.append(picked.layout)
        if each.open and len(names) == 1:
            counts = [[picked.mesh] if shapes is largest else shapes for shapes in counts]
    together = [_together(purpose, layouts, shapes) for shapes in counts]
    shapes = [lowest_floor_mesh(layouts, each, purpose, report) for each in together]
    largest = max(shapes, key=lambda mesh: math.prod(mesh.values()))
    return [
        _pick_prompts(each, layout, largest, purpose, report) if each.prefill == AUTO else layout
        for each, layout in zip(names, layouts, strict=True)
    ], shapes


def check_names(
    names: Sequence[LayoutNames], config: ModelConfig, counts: Sequence[Sequence[MeshShape]]
) -> None:
    """Refuses, before JAX starts, names that `choose_layouts` would refuse.

    Raises:
      UsageError: there is no layout of a name.
      LayoutError: a layout cannot divide the model over any mesh of some number of devices.
    """
    for each in names:
        layouts = each.steps(config)
        for shapes in counts:
            admitted(config, layouts, shapes)


def every_device(
    config: ModelConfig, names: Sequence[LayoutNames], on_cpu: Sequence[int] = (1,)
) -> list[list[MeshShape]]:
    """The meshes of as many of JAX's devices as all these layouts can divide; starts JAX.

    Args:
      config: the model.
      names: names of the layouts.
      on_cpu: the numbers of fake devices to use on a CPU, if there is one process.

    Returns:
      Lists of meshes, one for each number of devices.

    Raises:
      UsageError: there is no layout of a name, found before JAX starts.
      LayoutError: the layouts cannot divide the number of devices of several processes.
    """
    offered = [each.steps(config) for each in names]
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


def _pick(
    names: LayoutNames, placements: Sequence[Placement], purpose: Purpose, report: Report
) -> Placement:
    """The layout and mesh whose decode steps are predicted to be fastest."""
    devices = local_devices(placements[0].devices)
    ranking = choose(purpose, placements, devices)
    report(explain(ranking, "layout" if names.layout == AUTO else "attention", devices))
    return ranking[0].placement


def _pick_prompts(
    names: LayoutNames, steps: Layout, mesh: MeshShape, purpose: Purpose, report: Report
) -> Layout:
    """The layout of decode steps with the layout of prefills that is predicted to be fastest."""
    named = dataclasses.replace(
        names, layout=steps.name, attention=steps.attends, expert_parallel=steps.expert_parallel
    )
    devices = local_devices(math.prod(mesh.values()))
    placements = admitted(purpose.config, named.layouts(purpose.config), [mesh])
    ranking = choose_prefill(purpose, placements, devices)
    report(explain(ranking, "prefill_layout", devices))
    return ranking[0].placement.layout


def admitted(
    config: ModelConfig, layouts: Iterable[Layout], shapes: Sequence[MeshShape]
) -> list[Placement]:
    """The layouts on all meshes over which they can divide the model, the simplest meshes first.

    Raises:
      LayoutError: there is none; the message is that of the first.
    """
    pairs = itertools.product(layouts, sorted(shapes, key=_axes))
    return not_refused(lambda pair: Placement.of(pair[0], config.sizes, pair[1]), pairs)


def lowest_floor_mesh(
    layouts: Sequence[Layout], shapes: Sequence[MeshShape], purpose: Purpose, report: Report
) -> MeshShape:
    """The mesh with the lowest sum of floors of these layouts' decode steps.

    A mesh on which more steps fit comes first. Of equal meshes the one with the fewest axes is
    chosen, z before y before x.

    Args:
      layouts: the layouts that will run on the mesh.
      shapes: meshes that all layouts can divide the model over, the simplest first.
      purpose: the model and the steps to choose for.
      report: called with a line that says what was picked and why, if not the simplest mesh.
    """
    if len(shapes) == 1:
        return shapes[0]
    devices = local_devices(math.prod(shapes[0].values()))
    # Refuses meshes that divide the sizes, but not the groups of weights that share a scale.
    choices = not_refused(lambda mesh: (mesh, _estimators(purpose, layouts, mesh, devices)), shapes)
    floors = []
    for _, estimators in choices:
        passes = [one.estimate(step) for one in estimators for step in purpose.steps]
        unfit = sum(not each.fits for each in passes)
        floors.append((unfit, sum(each.floor.seconds for each in passes)))
    fewest, lowest = min(floors)
    position = next(i for i, (unfit, s) in enumerate(floors)
                    if unfit == fewest and s <= lowest * (1 + EQUAL))  # fmt: skip
    if position:
        names = ", ".join(layout.name for layout in layouts)
        (simplest, _), (mesh, _) = choices[0], choices[position]
        report(
            f"mesh {field_text(mesh)}: the least floor of {names}, {ms(floors[position][1])} "
            f"ms; on {field_text(simplest)} {ms(floors[0][1])} ms"
            + " and does not fit"
            * (floors[0][0] > fewest)
        )
    return choices[position][0]


def choose(
    purpose: Purpose, placements: Iterable[Placement], devices: LocalDevices, count: int | None = 3
) -> list[Prediction]:
    """Predicted times of decode steps in each placement, the fastest first.

    Args:
      purpose: the model and the steps.
      placements: the placements from `admitted`.
      devices: the devices that steps run on.
      count: number of predictions to return; all if None.

    Raises:
      LayoutError: none of them divides the groups of weights that share a scale.
    """
    estimators = not_refused(lambda one: Estimator(purpose.on(devices, one)), placements)
    return [
        Prediction(_words(one), one.placement, [one.estimate(step) for step in purpose.steps])
        for one in ranked(estimators, purpose.steps, count=count or len(estimators))
    ]


def choose_prefill(
    purpose: Purpose, placements: Iterable[Placement], devices: LocalDevices
) -> list[Prediction]:
    """Predicted times of prefills in each placement; the arguments are those of `choose`."""
    estimators = not_refused(lambda one: Estimator(purpose.on(devices, one)), placements)
    return [
        Prediction(
            one.placement.prefill.layout.name,
            one.placement,
            [one.estimate(each) for each in purpose.prompts],
        )
        for one in ranked(estimators, purpose.prompts, count=len(estimators))
    ]


def _estimators(
    purpose: Purpose, layouts: Sequence[Layout], mesh: MeshShape, devices: LocalDevices
) -> list[Estimator]:
    """An estimator for each layout on a mesh.

    Raises:
      LayoutError: a layout does not divide the groups of weights that share a scale.
    """
    placements = [Placement.of(layout, purpose.config.sizes, mesh) for layout in layouts]
    return [Estimator(purpose.on(devices, placement)) for placement in placements]


def _words(estimator: Estimator) -> str:
    said = estimator.describe()
    experts = ", experts divided" * bool(said.expert_parallel)
    mesh = field_text(said.mesh)
    return f"{said.layout}, attention by {said.attention}{experts}, on {mesh}"


def _together(
    purpose: Purpose, layouts: Sequence[Layout], shapes: Sequence[MeshShape]
) -> list[MeshShape]:
    """The meshes over which all of these layouts can divide the model, the simplest first.

    Raises:
      LayoutError: there is no such mesh.
    """
    common = sorted(shapes, key=_axes)
    for layout in layouts:
        placements = _unpadded(purpose, admitted(purpose.config, [layout], common))
        common = [placement.mesh for placement in placements]
    return common


def _unpadded(purpose: Purpose, placements: list[Placement]) -> list[Placement]:
    """The placements that pad no batch, if that is preferred; all if every one pads some batch."""
    if not purpose.whole_batches:
        return placements
    batches = {step.batch for step in purpose.steps}
    unpadded = [one for one in placements if not any(b % one.multiple("B") for b in batches)]
    return unpadded or placements


def _axes(mesh: MeshShape) -> tuple[int, int, int]:
    """Sort key of meshes: the fewest axes first, z before y before x."""
    return sum(size > 1 for size in mesh.values()), mesh["x"], mesh["y"]


def explain(ranking: Sequence[Prediction], what: str, devices: LocalDevices) -> str:
    """Names the choice and the next best two, with their predicted times."""
    first, *others = ranking
    rest = "; ".join(map(str, others[:2]))
    beside = f"; next: {rest}" if rest else "; no other can divide this model over this mesh"
    return f"{what} auto: {first}, predicted from {devices.source}{beside}"


def _time(seconds: float) -> str:
    return milliseconds(seconds) if seconds < 1 else f"{number(seconds)} s"
