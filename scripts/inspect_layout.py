"""Show how a layout partitions a model: each chip's arrays, and every collective.

Prints how each array is divided, its bytes per chip and its number of copies; then the collectives
of one forward pass, per layer and per step: those that the layout is expected to need, and those
in the program that XLA compiles for JAX's devices. Draws layout.png: the mesh, and the shards of
each chip. Needs no weights, and for the tables no devices.

XLA:CPU replaces some collectives that TPUs have (profiles/compiled/substitutes.py lists them, with
their substitutes); otherwise, compiled and expected collectives must agree.

Examples:
  python scripts/inspect_layout.py --model=llama3-70b --mesh=4x4x4 --layout=weight_stationary_2d
  python scripts/inspect_layout.py --model=llama3-8b --mesh=2x2x2 --attention=batch --batch=64
  python scripts/inspect_layout.py --model=tiny --phase=prefill --collectives=overlapped
  python scripts/inspect_layout.py --model=llama3-8b --mesh=8 --layout=auto --json=-
"""

import datetime
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import _array_flags
import _common
from absl import flags

_MESH = flags.DEFINE_string("mesh", None, "Sizes of mesh axes x, y and z, such as 4x4x4.")
_DEVICES = flags.DEFINE_integer(
    "devices", None, "Number of devices, 8 by default, with the mesh of the lowest floor.", 1
)
_BATCH = flags.DEFINE_integer("batch", 8, "Sequences; padded if the layout divides batches.", 1)
_CONTEXT = flags.DEFINE_integer("context", 128, "Tokens that the KV cache has room for.", 2)
_PHASE = flags.DEFINE_enum(
    "phase",
    "decode",
    ["decode", "prefill"],
    "One token per sequence, or prompts of --context. auto picks --layout for decode steps, and "
    "--prefill_layout for prompts.",
)
_COMPILE = flags.DEFINE_bool(
    "compile",
    None,
    "Compile and count. By default if layers times devices are at most 256: under a minute.",
)
_OUTPUT_DIR = flags.DEFINE(_common.PATH, "output_dir", "out/layout", "Folder for layout.png.")
_array_flags.define_step_flags()
_QUICK = 256  # layers times devices
_SHOWN = (*_common.OF_SHAPES, *_common.OF_PROCESSES)

if __name__ == "__main__":
    for name in _SHOWN:
        flags.declare_key_flag(name)
    flags.adopt_module_key_flags(_array_flags)

with _common.importing(__name__):
    import _dtypes
    import _layouts

    from model.catalog import CATALOG, find_model
    from model.config import ModelConfig
    from model.dtypes import Dtypes
    from model.layout_check import settle
    from profiles.compiled.inspection import (
        PassProgram,
        array_table,
        collective_table,
        compiled,
        differences,
        expected,
        stands_in,
        totals,
    )
    from profiles.figures.layout import layout_figure
    from profiles.floor.arrays import PlacedArray, placed_arrays
    from profiles.floor.collective import Collective
    from profiles.floor.passes import Pass
    from profiles.report.document import document
    from profiles.report.files import check_writable, write_json
    from profiles.report.numbers import several
    from profiles.report.titles import field_text
    from sharding import processes
    from sharding.devices import default_platform, devices
    from sharding.error_types import FloorlineError, LayoutError
    from sharding.mesh import request_cpu_devices


def main() -> None:
    """Prints tables and draws the layout; compiles if that is quick or the flags ask for it."""
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    output = Path(_OUTPUT_DIR.value)
    processes.from_first_process(lambda: check_writable(output))
    _common.check_json()
    program, compiling = _program()
    _layouts.state_choices(program.config, program.placement, program.dtypes, _BATCH.value)
    arrays = placed_arrays(
        program.config,
        program.placement,
        program.dtypes,
        program.pass_.batch,
        program.pass_.cache_slots,
    )
    expected_collectives = expected(program)
    layers = program.config.layers
    found, differing = None, []
    if compiling:
        mesh = field_text(program.placement.mesh)
        _common.say(f"compiling {several(layers, 'layer')} for a mesh of {mesh}")
        found = compiled(program)
        differing = differences(expected_collectives, found, program.dtypes.dtype)
    if processes.is_first():
        layout_figure(program.run, str(program), output / "layout.png")
        _common.say(f"wrote {output / 'layout.png'}")
        if _common.JSON.value:
            write_json(
                _common.JSON.value, _document(program, arrays, expected_collectives, found, started)
            )
    _common.show(f"{program}\n\n{array_table(arrays)}\n\n{totals(arrays)}\n")
    _common.show(
        collective_table(expected_collectives, layers, "expected", expected_collectives) + "\n"
    )
    if found is not None:
        _common.show(collective_table(found, layers, "compiled", expected_collectives) + "\n")
    _common.show(_verdict(found, differing, stands_in(expected_collectives, program.dtypes.dtype)))
    if differing:
        raise FloorlineError(
            f"compiled program has {'; '.join(differing)} than the layout explains; "
            "please report the command and the versions of jax and jaxlib"
        )


def _program() -> tuple[PassProgram, bool]:
    """The step to inspect, and whether to compile it."""
    name = _common.MODEL.value
    asked = _DEVICES.value or (None if _MESH.value else 8)
    meshes = _layouts.meshes(asked, _MESH.value, request=False)
    count = math.prod(meshes[0][0].values())
    _dtypes.check(counted=not _COMPILE.value)
    source = None if name in CATALOG else _common.source()
    config = source.config if source else _common.lengthened(find_model(name))

    def dtypes() -> Dtypes:
        return _dtypes.dtypes(source.stored_quantization() if source else None, counted=True)

    compiling = _dtypes.runs() and _compiles(config, count)
    if compiling:
        request_cpu_devices(count)
    (slots,) = _common.lengths(_CONTEXT, config, prefill=True)
    layout, shape = _layouts.layout(config, meshes, dtypes, [Pass(_BATCH.value, slots)])
    placement = settle(config, dtypes(), layout, shape)
    if compiling and count > len(here := devices()):
        if _COMPILE.value:
            raise LayoutError(
                f"mesh is {field_text(shape)}, of {count} devices to compile for, but JAX has "
                f"{len(here)}; leave --compile out, or set JAX_PLATFORMS=cpu"
            )
        compiling = False
    rows = placement.multiple("B")
    program = PassProgram(
        config=config,
        placement=placement,
        dtypes=dtypes(),
        pass_=Pass(
            -(-_BATCH.value // rows) * rows,
            context=0,
            tokens=1 if _PHASE.value == "decode" else slots,
            slots=slots,
        ),
    )
    return program, compiling


def _compiles(config: ModelConfig, devices: int) -> bool:
    if _COMPILE.value is None:
        return config.layers * devices <= _QUICK
    return _COMPILE.value


def _verdict(
    found: Sequence[Collective] | None, differing: Sequence[str], substituted: bool
) -> str:
    if not _dtypes.runs():
        return "compiled: not tried; weights of this type are counted but do not run"
    if found is None:
        return "compiled: not tried; --compile does, on as many JAX devices as the mesh has"
    if differing:
        return "compiled DIFFERS from expected: " + "; ".join(differing)
    beyond = ", beyond what XLA:CPU makes in their place" * substituted
    platform = default_platform()
    return f"compiled for {platform} equals expected in kind, axes, bytes and count{beyond}"


def _document(
    program: PassProgram,
    arrays: Sequence[PlacedArray],
    expected_collectives: Sequence[Collective],
    found: Sequence[Collective] | None,
    started: str,
) -> dict:
    collectives = {"expected": [each.as_record() for each in expected_collectives]}
    if found is not None:
        collectives["compiled"] = [each.as_record() for each in found]
    return document(
        sys.argv,
        [program.as_record()],
        device_kind=devices()[0].device_kind,
        started=started,
        bandwidth=None,
        arrays=[array.as_record() for array in arrays],
        collectives=collectives,
    )


if __name__ == "__main__":
    _common.start(main, _SHOWN)
