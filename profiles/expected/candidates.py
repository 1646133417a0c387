"""All candidates for a model on a slice: the meshes, layouts and attention that its sizes allow."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from model.config import ModelConfig
from profiles.chips.slices import Slice, slices_of
from profiles.expected.estimate import Estimator
from profiles.floor.deployment import Deployment, Model
from profiles.floor.passes import Pass
from profiles.floor.sized_models import SizedModel
from sharding.catalog import (
    ATTENTION,
    LAYOUTS,
    attend_by,
    divide_experts,
    find_layout,
    prefill_by,
    schedule_by,
)
from sharding.error_types import LayoutError
from sharding.layout import Layout
from sharding.mesh import MeshShape

AUTO = "auto"
ONE_DEVICE: MeshShape = {"x": 1, "y": 1, "z": 1}
Item, Made = TypeVar("Item"), TypeVar("Made")


def meshes(devices: int) -> list[MeshShape]:
    """All meshes of a number of devices, as sizes of x, y and z."""
    return [
        {"x": x, "y": y, "z": devices // x // y}
        for x in _divisors(devices)
        for y in _divisors(devices // x)
    ]


@dataclasses.dataclass(frozen=True)
class LayoutNames:
    """Names of layouts as the flags give them; the first three may be `AUTO`.

    Attributes:
      layout: layout of decode steps. `AUTO` includes layouts of mixtures with and without expert
        parallelism.
      attention: what attention is divided by.
      prefill: layout of prefills, over the same stored weights; None for that of decode steps.
      collectives: what schedules the collectives.
      expert_parallel: whether to divide experts over the devices, and not each expert's d_ff.
    """

    layout: str = AUTO
    attention: str = AUTO
    prefill: str | None = None
    collectives: str = "compiler"
    expert_parallel: bool = False

    def __str__(self) -> str:
        prompts = f", prompts by {self.prefill}" if self.prefill else ""
        experts = ", experts divided" * self.expert_parallel
        return f"{self.layout}, attention by {self.attention}, {self.collectives}{prompts}{experts}"

    @property
    def open(self) -> bool:
        """Whether these names stand for more than one layout of decode steps."""
        return AUTO in (self.layout, self.attention)

    def layouts(self, model: Model) -> list[Layout | None]:
        """All layouts that these names allow; only None for a model known by its sizes alone.

        Raises:
          UsageError: there is no layout of a name, or that of prefills stores weights differently.
        """
        if isinstance(model, SizedModel):
            return [None]
        named = list(LAYOUTS) if self.layout == AUTO else [self.layout]
        kinds = ATTENTION if self.attention == AUTO else [self.attention]
        steps = [attend_by(find_layout(name), kind) for name in named for kind in kinds]
        shared = [
            prefill_by(each, prompts) if prompts else each
            for each in steps
            for prompts in self._prompts(each)
        ]
        divided = []
        if model.experts and (self.expert_parallel or self.layout == AUTO):
            divided = list(map(divide_experts, shared))
        if self.expert_parallel and divided:
            shared = []
        return [schedule_by(each, self.collectives) for each in shared + divided]

    def steps(self, config: ModelConfig) -> list[Layout]:
        """The same layouts, without the choices of `AUTO` for prefills."""
        prefill = None if self.prefill == AUTO else self.prefill
        return dataclasses.replace(self, prefill=prefill).layouts(config)

    def _prompts(self, steps: Layout) -> list[Layout | None]:
        """Layouts of prefills to combine with a layout of decode steps; None for that layout."""
        if not self.prefill:
            return [None]
        named = list(LAYOUTS.values()) if self.prefill == AUTO else [find_layout(self.prefill)]
        if AUTO not in (self.prefill, self.layout):
            return named  # `prefill_by` refuses it if it stores weights differently
        return [each for each in named if each.weights == steps.weights]


def candidates(
    deployment: Deployment,
    layouts: Sequence[Layout | None],
    shapes: Sequence[MeshShape] | None = None,
) -> list[Estimator]:
    """Estimators of a deployment in each of these layouts on each mesh that it divides.

    Args:
      deployment: the deployment, whose layout and mesh are replaced.
      layouts: the layouts; only None for a model known by its sizes, which divides evenly.
      shapes: the meshes; all meshes of the slice if None.

    Raises:
      LayoutError: no layout divides the model on any mesh; the message is that of the first.
    """
    return not_refused(Estimator, _divided(deployment, layouts, shapes))


def _divided(
    deployment: Deployment,
    layouts: Sequence[Layout | None],
    shapes: Sequence[MeshShape] | None = None,
) -> Iterator[Deployment]:
    """The deployment in each of these layouts on each mesh, even if the layout cannot divide it."""
    for layout in layouts:
        for mesh in (shapes or meshes(deployment.slice.devices)) if layout else [None]:
            yield dataclasses.replace(deployment, layout=layout, mesh=mesh)


def not_refused(make: Callable[[Item], Made], items: Iterable[Item]) -> list[Made]:
    """The results of `make` for these items, without those for which it raises a LayoutError.

    Raises:
      LayoutError: `make` fails for all items; the first error is raised.
    """
    results, refusals = [], []
    for item in items:
        try:
            results.append(make(item))
        except LayoutError as error:
            refusals.append(error)
    if refusals and not results:
        raise refusals[0]
    return results


def smallest_slice(
    deployment: Deployment, pass_: Pass, layouts: Sequence[Layout | None]
) -> Slice | None:
    """The smallest slice of a deployment's chip on which a pass fits in some layout.

    Args:
      deployment: gives the model, the chip and the dtypes.
      pass_: the pass.
      layouts: the layouts; only None for a model known by its sizes.

    Returns:
      The slice; None where the pass fits on no slice of the chip.
    """
    return smallest_holding(deployment, lambda one: one.count(pass_).held, layouts)


def smallest_holding(
    deployment: Deployment, held: Callable[[Deployment], float], layouts: Sequence[Layout | None]
) -> Slice | None:
    """The smallest slice of a deployment's chip that holds so much in some layout.

    Args:
      deployment: gives the model, the chip and the dtypes.
      held: bytes that each device holds of a deployment in a layout on a slice.
      layouts: the layouts; only None for a model known by its sizes.

    Returns:
      The slice; None where no slice of the chip holds it.
    """
    chip = deployment.slice.chip
    capacity = chip.recommended.capacity
    first = next(_divided(deployment, layouts, [ONE_DEVICE]))
    unsharded = held(first) * (1 if first.layout else deployment.slice.devices)
    for slice in slices_of(chip):
        if unsharded > slice.chips * capacity:
            continue  # would not fit even if everything divided evenly
        parts = _held(dataclasses.replace(deployment, slice=slice), held, layouts)
        if any(each * chip.devices_per_chip <= capacity for each in parts):
            return slice
    return None


def _held(
    deployment: Deployment, held: Callable[[Deployment], float], layouts: Sequence[Layout | None]
) -> Iterator[float]:
    """Bytes that each device holds, in each layout on each mesh that divides the model."""
    for one in _divided(deployment, layouts):
        try:
            yield held(one)
        except LayoutError:
            continue


def _divisors(number: int) -> list[int]:
    small = [part for part in range(1, math.isqrt(number) + 1) if number % part == 0]
    return small + [number // part for part in reversed(small) if part * part != number]
