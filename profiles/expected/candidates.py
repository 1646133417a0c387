"""All ways to put a model on a slice: meshes, layouts and attention, those that the sizes admit."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from model.config import ModelConfig
from model.layout_check import settle
from profiles.chips.slices import Slice, slices_of
from profiles.expected.estimate import Estimator, Setting
from profiles.expected.sized import SizedCosts
from profiles.floor.counts import StepCosts
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
Item, Made = TypeVar("Item"), TypeVar("Made")


def meshes(devices: int) -> list[MeshShape]:
    """All sizes of x, y and z of so many devices."""
    return [
        {"x": x, "y": y, "z": devices // x // y}
        for x in _divisors(devices)
        for y in _divisors(devices // x)
    ]


def layouts(
    name: str,
    attention: str,
    finish: Callable[[Layout], Layout] = lambda layout: layout,
) -> list[Layout]:
    """Those of these names, either of which may be `AUTO`.

    Args:
      name: of a layout.
      attention: what divides attention.
      finish: makes of a layout one with whatever else is wanted of it.

    Raises:
      UsageError: there is none of a name.
    """
    names = list(LAYOUTS) if name == AUTO else [name]
    kinds = ATTENTION if attention == AUTO else [attention]
    return [finish(attend_by(find_layout(each), kind)) for each in names for kind in kinds]


@dataclasses.dataclass(frozen=True)
class Wish:
    """Layouts by names, of which the first three may be `AUTO`.

    Attributes:
      layout: of decode steps. With `AUTO` a mixture's experts are divided in both ways.
      attention: what divides attention.
      prefill: layout of prompts, over the same stored weights; None for that of decode steps.
      collectives: who schedules them.
      expert_parallel: experts are divided over the devices.
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
        """Whether it stands for more than one layout of decode steps."""
        return AUTO in (self.layout, self.attention)

    def layouts(self, config: ModelConfig) -> list[Layout]:
        """All that it stands for.

        Raises:
          UsageError: there is none of a name, or the one of prompts stores weights otherwise.
        """
        found = [
            prefill_by(each, prompts) if prompts else each
            for each in layouts(self.layout, self.attention)
            for prompts in self._prompts(each)
        ]
        divided = []
        if config.experts and (self.expert_parallel or self.layout == AUTO):
            divided = list(map(divide_experts, found))
        if self.expert_parallel and divided:
            found = []
        return [schedule_by(each, self.collectives) for each in found + divided]

    def steps(self, config: ModelConfig) -> list[Layout]:
        """The same, but for what prompts leave open."""
        prefill = None if self.prefill == AUTO else self.prefill
        return dataclasses.replace(self, prefill=prefill).layouts(config)

    def _prompts(self, steps: Layout) -> list[Layout | None]:
        """Layouts of prompts that go with one of decode steps; None for its own."""
        if not self.prefill:
            return [None]
        named = list(LAYOUTS.values()) if self.prefill == AUTO else [find_layout(self.prefill)]
        if AUTO not in (self.prefill, self.layout):
            return named  # which is refused where weights are stored otherwise
        return [each for each in named if each.weights == steps.weights]


def candidates(
    setting: Setting, wanted: Sequence[Layout], shapes: Sequence[MeshShape] | None = None
) -> list[Estimator]:
    """Estimators of a setting in each of these layouts, on each mesh that goes with it.

    Args:
      setting: all but layout and mesh.
      wanted: layouts.
      shapes: meshes; all of the slice's if None.

    Raises:
      LayoutError: no layout goes with the model on any mesh; the message is the first refusal's.
    """
    if not isinstance(setting.model, ModelConfig):
        return [Estimator(setting)]
    ways = itertools.product(wanted, shapes or meshes(setting.where.devices))
    return not_refused(
        lambda way: Estimator(dataclasses.replace(setting, layout=way[0], mesh=way[1])), ways
    )


def not_refused(make: Callable[[Item], Made], items: Iterable[Item]) -> list[Made]:
    """What is made of these items, those left out that a layout or a mesh does not go with.

    Raises:
      LayoutError: nothing can be made; the message is the first refusal's.
    """
    found, refusals = [], []
    for item in items:
        try:
            found.append(make(item))
        except LayoutError as error:
            refusals.append(error)
    if refusals and not found:
        raise refusals[0]
    return found


def least_slice(
    setting: Setting, batch: int, context: int, wanted: Sequence[Layout], tokens: int = 1
) -> Slice | None:
    """The smallest slice of a setting's chip on which a pass fits in some layout.

    Args:
      setting: its model, chip and form.
      batch: sequences.
      context: tokens in the cache of each before the pass.
      wanted: layouts.
      tokens: new ones of each; 1 of a decode step, more of prompts.

    Returns:
      None where no slice of the chip holds them.
    """
    chip = setting.where.chip
    capacity = chip.expected.capacity
    whole = next(_held(setting, 1, batch, context, wanted, tokens))
    for where in slices_of(chip):
        if whole > where.chips * capacity:
            continue  # not even if everything divided evenly
        parts = _held(setting, where.devices, batch, context, wanted, tokens)
        if any(held * chip.devices_per_chip <= capacity for held in parts):
            return where
    return None


def _held(
    setting: Setting, devices: int, batch: int, context: int, wanted: Sequence[Layout], tokens: int
) -> Iterator[float]:
    """Bytes per device that a pass holds, in each layout on each mesh of so many devices."""
    model, dtypes = setting.model, setting.dtypes

    def held(costs: StepCosts | SizedCosts, sequences: int) -> float:
        if tokens == 1:
            return costs.decode(batch=sequences, context=context).held
        return costs.prefill(batch=sequences, tokens=tokens, cached=context).held

    if not isinstance(model, ModelConfig):
        yield held(SizedCosts(model, dtypes, devices), batch)
        return
    for layout, mesh in itertools.product(wanted, meshes(devices)):
        try:
            placement = settle(model, dtypes, layout, mesh)
        except LayoutError:
            continue
        multiple = placement.multiple("B")
        costs = StepCosts(model, placement if tokens == 1 else placement.prefill, dtypes)
        yield held(costs, -(-batch // multiple) * multiple)


def _divisors(number: int) -> list[int]:
    small = [part for part in range(1, math.isqrt(number) + 1) if number % part == 0]
    return small + [number // part for part in reversed(small) if part * part != number]
