"""All ways to put a model on a slice: meshes, layouts and attention, those that the sizes admit."""

import dataclasses
from collections.abc import Callable, Sequence

from model.config import ModelConfig
from profiles.estimate import Estimator, Setting
from sharding.errors import LayoutError
from sharding.layout import ATTENTION, LAYOUTS, attend_by, find_layout
from sharding.mesh import MeshShape
from sharding.placement import Layout

AUTO = "auto"


def meshes(devices: int) -> list[MeshShape]:
    """All sizes of x, y and z of so many devices."""
    return [
        {"x": x, "y": y, "z": devices // x // y}
        for x in _divisors(devices)
        for y in _divisors(devices // x)
    ]


def layouts(
    name: str, attention: str, finish: Callable[[Layout], Layout] = lambda layout: layout
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
    found, refusals = [], []
    for layout in wanted:
        for mesh in shapes or meshes(setting.where.devices):
            try:
                found.append(Estimator(dataclasses.replace(setting, layout=layout, mesh=mesh)))
            except LayoutError as error:
                refusals.append(error)
    if not found:
        raise refusals[0]
    return found


def _divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]
