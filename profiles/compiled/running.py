"""What the program that an engine runs was compiled to, as fields of the record of its step.

On any platform: texts of programs for CPUs and GPUs are read as those for TPUs are.
"""

import dataclasses

from decode.engine import Engine
from profiles.compiled.compiler import Compilation, memory_sizes
from profiles.compiled.inspection import PassProgram, any_layer, differences, expected
from profiles.compiled.step import SMALL, CompiledStep, read
from profiles.floor.collective import merge_by_overlap
from profiles.floor.passes import Pass
from profiles.report.record import Record


def inspect_pass(engine: Engine, pass_: Pass) -> Record:
    """`compiled` and `collectives_as_expected` of a pass whose program an engine has compiled.

    Its program is there, so that this compiles nothing. Sizes are per device. A program that
    cannot be read costs no measurement: `compiled` then says why as `unread`.

    Args:
      engine: the model on its mesh.
      pass_: the pass, as it runs: of a chunk of prompts with its padding.
    """
    program = PassProgram(
        config=engine.config, placement=engine.placement, dtypes=engine.dtypes, pass_=pass_
    )
    sizes: dict[str, int] = {}
    try:
        compiled = program.lowered_by(engine).compile()
        sizes = memory_sizes(compiled)
        text = compiled.as_text()
        step = read(Compilation(status="ok", memory=sizes, text=text), program.placement.mesh)
        platform = engine.mesh.devices.flat[0].platform
        asked = expected(program, platform)
        differing = differences(asked, step.collectives, engine.dtypes.dtype, platform)
        fields = _fields(step) | {"differing": differing}
    except Exception as error:  # whatever a new compiler writes, its step can be timed
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        return Record(compiled={**sizes, "unread": why})
    return Record(compiled=fields, collectives_as_expected=not differing)


def _fields(step: CompiledStep) -> dict:
    """The step's record, layers not told apart, with the bytes of weights and cache alone."""
    merged = tuple(merge_by_overlap(any_layer(step.collectives)))
    found = dataclasses.replace(step, collectives=merged).as_record()
    del found["compile_s"]  # it was compiled before
    small = (array for name, array in step.arguments.items() if name.startswith(SMALL))
    missing = sum(step.arguments[name].padded for name in step.not_aliased)
    return found | {
        "resident_bytes": step.argument_bytes - sum(array.padded for array in small),
        "cache_not_aliased_bytes": missing,
    }
