"""The layouts and meshes that the flags ask for."""

import itertools
import math
from collections.abc import Callable, Sequence

import _common
from _array_flags import ATTENTION_BY, COLLECTIVES_BY, EXPERT_PARALLEL, LAYOUT, PREFILL_LAYOUT
from absl import flags

from model.config import ModelConfig
from model.dtypes import Dtypes
from profiles.expected.candidates import AUTO, LayoutNames
from profiles.expected.candidates import meshes as meshes_of
from profiles.expected.choice import Purpose, check_names, choose_layouts, every_device
from profiles.floor.delta_counts import states_in_words
from profiles.floor.deployment import Model
from profiles.floor.passes import Pass
from profiles.floor.replication import experts_per_device, replication_cost
from profiles.report.titles import field_text
from sharding.catalog import find_layout
from sharding.devices import default_platform
from sharding.devices import devices as jax_devices
from sharding.error_types import UsageError
from sharding.layout import Layout
from sharding.mesh import MeshShape, parse_mesh, request_cpu_devices
from sharding.placement import Placement

_MOST = 1_000_000  # largest number of devices, more than any system has
_OF_ARRAYS = "layout", "prefill_layout", "attention", "collectives", "expert_parallel"


MeshChoices = list[list[MeshShape]]
"""For each number of devices, the meshes to choose from."""


def check(config: ModelConfig, choices: MeshChoices | None) -> None:
    """Refuses layouts that cannot divide the model over the meshes, before JAX starts.

    Args:
      config: the model.
      choices: the result of `meshes`.

    Raises:
      UsageError: there is no layout of a name, or the model has no experts to divide.
      LayoutError: a layout cannot divide the model over any mesh of some number of devices.
    """
    _check_experts(config)
    check_names(names(), config, choices or [])


def layout(
    config: ModelConfig,
    choices: MeshChoices | None,
    dtypes: Callable[[], Dtypes],
    steps: Sequence[Pass],
) -> tuple[Layout, MeshShape]:
    """The one layout that the flags name, or that ``auto`` picks for these steps, and a mesh.

    Args:
      config: the model.
      choices: the result of `meshes` for one number of devices; None for as many of JAX's devices
        as the layout can divide (on a CPU: one).
      dtypes: returns how the model's numbers are stored; it may start JAX.
      steps: decode steps; the longest context is taken as the length of prompts.

    Raises:
      LayoutError: no layout can divide the model over the mesh.
    """
    only_names()
    (chosen,), (shape,) = _placed(Purpose(config, dtypes, steps), choices, on_cpu=(1,))
    if choices is None and default_platform() != "cpu":
        used, there = math.prod(shape.values()), len(jax_devices())
        why = f": layout {chosen.name} divides {config.name} over no more"
        _common.say(f"devices: {used} of the {there} that are here{why * (used < there)}")
    return chosen, shape


def layouts(
    config: ModelConfig,
    choices: MeshChoices | None,
    dtypes: Callable[[], Dtypes],
    steps: Sequence[Pass],
) -> tuple[list[Layout], list[MeshShape]]:
    """The layouts that the flags name, and for each number of devices one mesh for all of them.

    The arguments are those of `layout`. By default, a CPU is used as one device and as two.
    """
    purpose = Purpose(config, dtypes, steps, whole_batches=True)
    return _placed(purpose, choices, on_cpu=(1, 2))


def _placed(
    purpose: Purpose, choices: MeshChoices | None, on_cpu: Sequence[int]
) -> tuple[list[Layout], list[MeshShape]]:
    check(purpose.config, choices)
    choices = choices or every_device(purpose.config, names(), on_cpu)
    return choose_layouts(names(), choices, purpose, _common.say)


def wanted(model: Model) -> list[Layout | None]:
    """All layouts that the flags allow, each with every kind of attention that they allow.

    ``--layout=auto`` includes layouts of mixtures with and without expert parallelism, unless
    ``--expert_parallel`` is given. Only None for a model known by its sizes, which divides evenly.

    Raises:
      UsageError: there is no layout of a name, or none that stores weights as ``--prefill_layout``
        does; also see `check_divides`.
    """
    check_divides(model)
    allowed = [layout for each in names() for layout in each.layouts(model)]
    return allowed if allowed[0] else [None]


def names() -> list[LayoutNames]:
    """Names of layouts in the flags: all combinations of ``--layout`` and ``--attention``."""
    pairs = itertools.product(LAYOUT.value.split(","), ATTENTION_BY.value.split(","))
    more = PREFILL_LAYOUT.value, COLLECTIVES_BY.value, EXPERT_PARALLEL.value
    return [LayoutNames(*each, *more) for each in dict.fromkeys(pairs)]


def only_names() -> LayoutNames:
    """The names of the layout in the flags, for a script that takes only one.

    Raises:
      UsageError: a flag has several values.
    """
    for flag in (LAYOUT, ATTENTION_BY):
        if "," in flag.value:
            raise UsageError(f"--{flag.name} is {flag.value}; give one of them")
    return names()[0]


def check_divides(model: Model) -> None:
    """Refuses flags about the division of arrays or experts that a model does not have.

    Raises:
      UsageError: the model is known by its sizes alone, or has no experts.
    """
    if isinstance(model, ModelConfig):
        _check_experts(model)
        return
    for name in {*_OF_ARRAYS, "mesh"} & {*flags.FLAGS}:
        value = flags.FLAGS[name].value
        if flags.FLAGS[name].present and value not in (AUTO, False):
            raise UsageError(
                f"--{name} is {value}, but {model.name} is known by its sizes alone and taken to "
                "divide evenly; leave it out"
            )


def check_layouts() -> None:
    """Refuses unknown names of layouts, before JAX starts.

    Raises:
      UsageError: a name is unknown.
    """
    for name in (*LAYOUT.value.split(","), PREFILL_LAYOUT.value):
        if name not in (AUTO, None):
            find_layout(name)


def _check_experts(config: ModelConfig) -> None:
    """Refuses ``--expert_parallel`` for a model without experts.

    Raises:
      UsageError: the flag is given, and the model has no experts.
    """
    if EXPERT_PARALLEL.value and not config.experts:
        raise UsageError(
            f"--expert_parallel is true, but {config.name} has no experts; leave it out"
        )


def meshes(
    devices: Sequence[str] | int | None, mesh: str | None, request: bool = True
) -> MeshChoices | None:
    """The meshes of each number in ``--devices``, or the mesh of ``--mesh``.

    Args:
      devices: value of ``--devices``.
      mesh: value of ``--mesh``.
      request: whether to request as many fake CPU devices as the largest mesh needs; JAX must not
        have started then.

    Returns:
      The meshes by number of devices; None if neither flag is given.

    Raises:
      UsageError: both are given and do not agree, or a size is not positive.
    """
    counts = [devices] if isinstance(devices, int) else devices
    counts = _common.integers("devices", list(map(str, counts))) if counts is not None else []
    if max(counts, default=0) > _MOST:
        raise UsageError(f"--devices is {max(counts)}; use at most {_MOST:,}")
    choices = [meshes_of(count) for count in counts]
    if mesh:
        shape = parse_mesh(mesh)
        size = math.prod(shape.values())
        if set(counts) - {size}:
            raise UsageError(
                f"--mesh is {mesh}, of {size} devices, beside --devices of {max(counts)}; "
                "leave one of them out"
            )
        choices = [[shape]]
    for shapes in choices * request:
        request_cpu_devices(math.prod(shapes[0].values()))
    return choices or None


def state_choices(
    config: ModelConfig, placement: Placement, dtypes: Dtypes, batch: int | None = None
) -> None:
    """Tells the user how a layout divides experts, what it replicates and how it pads batches."""
    sizes = field_text(placement.mesh)
    for line in (
        *experts_per_device(config, placement),
        *replication_cost(config, placement, dtypes),
        *states_in_words(config, dtypes),
    ):
        _common.say(f"layout {placement.layout.name} on {sizes}: {line}")
    parts = placement.multiple("B")
    if batch is not None and batch % parts:
        padded = -(-batch // parts) * parts
        _common.say(
            f"layout {placement.layout.name} on {sizes}: batch {batch} is padded to {padded}"
        )
