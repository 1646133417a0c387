"""Flags of scripts that put a model on a mesh, and what they ask for."""

from collections.abc import Callable, Sequence

import _common
from absl import flags

from model.config import ModelConfig
from model.form import Form
from profiles.candidates import layouts as named_layouts
from profiles.choice import AUTO, Wish, Work, pick
from profiles.estimate import Model
from profiles.replication import experts_per_device, replication_cost
from sharding import processes
from sharding.errors import UsageError
from sharding.layout import (
    ATTENTION,
    COLLECTIVES,
    LAYOUTS,
    divide_experts,
    find_layout,
    prefill_by,
    schedule_by,
)
from sharding.mesh import MeshShape, parse_mesh, request_cpu_devices, whole_mesh
from sharding.placement import Layout, Placement

LAYOUT = flags.DEFINE_string(
    "layout",
    "weight_stationary_1d",
    "Partitioning; auto picks by predicted time and says why. "
    + "; ".join(f"{name}: {LAYOUTS[name].summary}" for name in LAYOUTS),
)
PREFILL_LAYOUT = flags.DEFINE_string(
    "prefill_layout",
    None,
    "Partitioning of prompts, over the same stored weights; auto picks. As --layout.",
)
ATTENTION_BY = flags.DEFINE_enum(
    "attention", "heads", [*ATTENTION, AUTO], "What divides attention and the KV cache."
)
COLLECTIVES_BY = flags.DEFINE_enum(
    "collectives",
    "compiler",
    list(COLLECTIVES),
    "Who schedules those beside matmuls: the compiler, or loops that overlap them with products.",
)
EXPERT_PARALLEL = flags.DEFINE_bool(
    "expert_parallel", False, "Divide experts over the chips instead of each expert's d_ff."
)
_OF_ARRAYS = "layout", "prefill_layout", "attention", "collectives", "expert_parallel"


def layout(
    config: ModelConfig,
    mesh: MeshShape,
    form: Callable[[], Form],
    batches: Sequence[int],
    contexts: Sequence[int],
) -> Layout:
    """The layout that the flags name, or that ``auto`` picks for this work, saying why.

    Args:
      config: the model.
      mesh: sizes of the mesh axes.
      form: says how its numbers are stored; it may start JAX.
      batches: sequences per step.
      contexts: tokens in the cache; the longest is taken as the length of prompts.

    Raises:
      LayoutError: none goes with the model and the mesh.
    """
    return _layout(LAYOUT.value, config, mesh, form, batches, contexts)


def layouts(
    config: ModelConfig,
    mesh: MeshShape,
    form: Callable[[], Form],
    batches: Sequence[int],
    contexts: Sequence[int],
) -> list[Layout]:
    """The layouts that the flags name, of a script that compares several; else as `layout`."""
    names = dict.fromkeys(LAYOUT.value.split(","))
    return [_layout(name, config, mesh, form, batches, contexts) for name in names]


def leave_open() -> None:
    """Makes ``auto`` the default of ``--layout`` and ``--attention``, in scripts that compare."""
    for flag in (LAYOUT, ATTENTION_BY):
        flags.set_default(flag, AUTO)


def wanted(config: Model) -> list[Layout]:
    """All layouts that the flags admit, each in all attention that they admit.

    With ``--layout=auto`` a mixture's experts are divided in both ways, with ``--expert_parallel``
    in one. None of a model that is known by its sizes, which divides evenly.

    Raises:
      UsageError: there is none of a name, or none that stores weights as ``--prefill_layout`` does;
        or as of `check_divides`.
    """
    check_divides(config)
    if not isinstance(config, ModelConfig):
        return []
    found = [
        each
        for name in dict.fromkeys(LAYOUT.value.split(","))
        for each in named_layouts(name, ATTENTION_BY.value)
    ]
    if prompts := PREFILL_LAYOUT.value:
        others = LAYOUTS.values() if prompts == AUTO else [find_layout(prompts)]
        found = [prefill_by(e, other) for e in found for other in others
                 if e.weights == other.weights]  # fmt: skip
    if not found:
        raise UsageError(
            f"--prefill_layout is {prompts}, which stores weights otherwise than all of "
            f"--layout={LAYOUT.value}; name another"
        )
    both = config.experts and LAYOUT.value == AUTO and not EXPERT_PARALLEL.value
    return list(map(finish, found)) + [finish(divide_experts(each)) for each in found if both]


def check_divides(model: Model) -> None:
    """Refuses flags that say how to divide what a model has not got.

    Raises:
      UsageError: it is known by its sizes alone, or has no experts.
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
    """Refuses layouts that there are none of, before JAX starts.

    Raises:
      UsageError: an unknown name.
    """
    for name in (*LAYOUT.value.split(","), PREFILL_LAYOUT.value):
        if name not in (AUTO, None):
            find_layout(name)


def _layout(
    name: str, config: ModelConfig, mesh: MeshShape, form: Callable[[], Form], *sizes: Sequence[int]
) -> Layout:
    _check_experts(config)
    wish = Wish(name, ATTENTION_BY.value, PREFILL_LAYOUT.value, finish)
    return pick(wish, config, mesh, lambda: Work(config, mesh, form(), *sizes), _common.say)


def finish(layout: Layout) -> Layout:
    """The layout with everything else that the flags say of it."""
    if EXPERT_PARALLEL.value:
        layout = divide_experts(layout)
    return schedule_by(layout, COLLECTIVES_BY.value)


def _check_experts(config: ModelConfig) -> None:
    """Refuses to divide experts of a model that has none.

    Raises:
      UsageError: it has none.
    """
    if EXPERT_PARALLEL.value and not config.experts:
        raise UsageError(
            f"--expert_parallel is true, but {config.name} has no experts; leave it out"
        )


def meshes(devices: Sequence[str] | None, mesh: str | None) -> list[dict[str, int]] | None:
    """The meshes of ``--devices`` or ``--mesh``, None if neither is given.

    Asks for as many fake CPU devices as the largest needs; call it before JAX starts.

    Raises:
      UsageError: both are given, or a size is not positive.
    """
    if devices and mesh:
        raise UsageError(f"--mesh is {mesh}, beside --devices; give one of them")
    shapes = None
    if mesh:
        shapes = [parse_mesh(mesh)]
    elif devices:
        shapes = [{"x": 1, "y": 1, "z": count} for count in _common.integers("devices", devices)]
    for shape in shapes or ():
        request_cpu_devices(shape["x"] * shape["y"] * shape["z"])
    return shapes


def mesh(devices: int | None, mesh: str | None) -> dict[str, int]:
    """The one mesh of ``--devices`` or ``--mesh``; by default one device, of many processes all.

    Raises:
      UsageError: both are given, or a size is not positive.
    """
    shapes = meshes([str(devices)] if devices else None, mesh)
    if shapes:
        return shapes[0]
    if processes.count() == 1:
        return {"x": 1, "y": 1, "z": 1}
    request_cpu_devices(processes.count())
    return whole_mesh()


def state_choices(
    config: ModelConfig, placement: Placement, form: Form, batch: int | None = None
) -> None:
    """Says how this layout divides experts, what it copies and what that costs, what it pads."""
    sizes = "x".join(str(size) for size in placement.mesh.values())
    for line in (
        *experts_per_device(config, placement),
        *replication_cost(config, placement, form),
    ):
        _common.say(f"layout {placement.layout.name} on {sizes}: {line}")
    parts = placement.multiple("B")
    if batch is not None and batch % parts:
        padded = -(-batch // parts) * parts
        _common.say(
            f"layout {placement.layout.name} on {sizes}: batch {batch} is padded to {padded}"
        )
