"""Compile a step with XLA for TPUs, v4 to TPU7x, or GPUs, A100 to GB200, with none at hand.

Compiles the complete step that the engine runs, and reports whether it fits, whether the cache is
updated in place, which collectives run and what they overlap with, and which weights or caches are
copied, with the cost of each; of GPUs also which kernels a step launches, and what they read. Also
reports the step's floor and its expected time. Unless they are given, --mesh, --layout and
--attention are those expected to be fastest. Nothing is measured, and no weights are created.

Needs libtpu: pip install -e '.[tpu-compile]', or for GPUs XLA's plugin, without CUDA: pip install
-e '.[gpu-compile]'. 80 layers take a minute or two on two cores.

Examples:
  python scripts/compile_step.py --model=llama3-8b --topology=v5e:2x4 --batch=8
  python scripts/compile_step.py --model=llama3.1-70b --topology=v5e:4x4 --batch=32 \\
      --context=8192 --weight_dtype=int8 --kv_dtype=int8 --collectives=overlapped
  python scripts/compile_step.py --model=llama3-8b --topology=v5p:2x2x1 --phase=prefill --batch=1
  python scripts/compile_step.py --model=llama3-8b --topology=v5e:2x4 --phase=prefill --batch=1 \\
      --context=32768 --max_context=32768
  python scripts/compile_step.py --model=mixtral-8x7b --topology=tpu7x:2x2x1 --json=- \\
      --save_hlo=step.txt
  python scripts/compile_step.py --model=llama3-8b --topology=h200:1 --batch=64 --weight_dtype=int8
  python scripts/compile_step.py --model=llama3-70b --topology=b200:8 --batch=64
"""

import datetime
import sys

import _array_flags
import _common
import _slice_flags
import _step_flags
from absl import flags

_SAVE_HLO = flags.DEFINE(_common.PATH, "save_hlo", None, "Write the compiled program's text here.")
_WEIGHT_LAYOUT = _array_flags.define_weight_layout(
    "auto compiles a second time, with weights' memory layout chosen by the compiler, and reports "
    "what changes. On devices, generate.py and profile_decode.py store weights so with this flag."
)
flags.set_default(_step_flags.TOPOLOGY, "v5e:2x4")

if __name__ == "__main__":
    for name in _common.OF_SHAPES:
        flags.declare_key_flag(name)
    for module in (_array_flags, _slice_flags, _step_flags):
        flags.adopt_module_key_flags(module)

with _common.importing(__name__):
    import _slices
    import _steps

    from profiles.compiled import text as compiled_text
    from profiles.compiled.compiled_pass import (
        CompiledPass,
        compile_pass,
        estimate_as_run,
        program_of,
    )
    from profiles.compiled.compiler import compile_step
    from profiles.compiled.inspection import PassProgram
    from profiles.compiled.step import CompiledStep, read
    from profiles.compiled.toolchains import check_compiler, libraries_of, toolchain_of
    from profiles.expected.estimate import Estimator
    from profiles.floor.arrays import placed_arrays
    from profiles.floor.block_counts import block_counts
    from profiles.report.document import document, versions
    from profiles.report.files import check_file, write_atomically, write_json
    from profiles.report.numbers import several
    from profiles.report.record import Record
    from profiles.report.table import wrap
    from sharding.error_types import FloorlineError


def main() -> None:
    """Chooses a layout, compiles in a child process, and prints the report."""
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    _common.check_json()
    if _SAVE_HLO.value:
        check_file(_SAVE_HLO.value, "--save_hlo")
    chunk = _steps.chunk()
    toolchain_of(_slices.slice(_step_flags.TOPOLOGY.value))  # refuses what has no compiler
    pass_ = _steps.pass_(model := _steps.model(), chunk)
    estimator = _steps.estimator(model, pass_)
    step, program = estimate_as_run(estimator, pass_), program_of(estimator, pass_)
    slice = estimator.deployment.slice
    title = compiled_text.title(program, slice)
    _common.show(f"{title}\n{compiled_text.times(estimator, step)}\n")
    if step.fits:
        check_compiler(slice)
        _common.say(f"compiling {several(program.config.layers, 'layer')} for {slice}")
    compiled_pass = compile_pass(estimator, pass_)
    more = _report(compiled_pass) if compiled_pass.compiled else {}
    if _common.JSON.value:
        write_json(_common.JSON.value, _document(estimator, compiled_pass.record, more, started))
    record = compiled_pass.record
    if record.status == "does_not_fit":
        _common.show(wrap(f"does not fit: {record.message}"))
    elif record.status != "ok":
        raise FloorlineError(f"compiled step is {record.status}; {record.message}")


def _report(compiled_pass: CompiledPass) -> dict:
    """Prints the report of a compiled step; returns its fields for the document."""
    step, program, compiled = compiled_pass.step, compiled_pass.program, compiled_pass.compiled
    if _SAVE_HLO.value:
        write_atomically(_SAVE_HLO.value, compiled_pass.compilation.text.encode())
        _common.say(f"wrote {_SAVE_HLO.value}")
    arrays = placed_arrays(
        program.config,
        program.placement,
        program.dtypes,
        program.pass_.batch,
        program.pass_.cache_slots,
    )
    compilation, used = compiled_pass.compilation, versions()
    names = (*libraries_of([compiled_pass.estimator.deployment.slice]), "jax")
    libraries = ", ".join(f"{name} {used[name]}" for name in names if name in used)
    _common.show(
        f"compiled:  by XLA of {libraries}, in {compilation.compile_s:.0f} s after "
        f"{compilation.trace_s:.0f} s of tracing\n\n"
        f"{compiled_text.memory(compiled, step, arrays)}\n\n"
        f"{compiled_text.collectives(compiled_pass.asked_collectives, compiled.collectives)}\n\n"
        f"{_kernels(compiled_pass)}"
        f"{compiled_text.findings(compiled_pass.findings, step.floor.seconds)}"
    )
    fields = {
        "compiled": compiled.as_record(),
        "findings": [each.as_record() for each in compiled_pass.findings],
        "expected_collectives": [each.as_record() for each in compiled_pass.expected_collectives],
    }
    if _WEIGHT_LAYOUT.value == "auto":
        fields["weight_layout"] = _free_weights(compiled, compiled_pass.estimator, program)
    return fields


def _kernels(compiled_pass: CompiledPass) -> str:
    """The part of a report that is of GPUs alone."""
    found, program = compiled_pass.compiled.kernels, compiled_pass.program
    if not found:
        return ""
    floors = block_counts(
        program.config,
        program.run,
        program.dtypes,
        compiled_pass.step.pass_,
        compiled_pass.estimator.deployment.experts,
    )
    return compiled_text.kernels(found, program.config.layers, floors) + "\n\n"


def _free_weights(default: CompiledStep, estimator: Estimator, program: PassProgram) -> dict:
    """Compiles with weights' memory layout chosen by the compiler; prints and returns changes."""
    slice = estimator.deployment.slice
    _common.say(f"compiling again for {slice}, weights laid out by the compiler")
    compilation = compile_step(program, slice, auto_weight_layout=True)
    if compilation.status != "ok":
        raise FloorlineError(f"compiled step is {compilation.status}; {compilation.message}")
    free = read(compilation, program.placement.mesh)
    _common.show(compiled_text.weight_layouts(default, free, estimator.peaks.bandwidth))
    changed = compiled_text.layout_changes(default, free)
    return {"changed": changed, "compiled": free.as_record()}


def _document(estimator: Estimator, record: Record, more: dict, started: str) -> dict:
    chip = estimator.chip
    return document(
        sys.argv,
        [record],
        device_kind=chip.device_kinds[0],
        started=started,
        bandwidth={
            "bytes_per_s": chip.bandwidth,
            "source": "published",
            "peak_flops_per_s": chip.peak(record.dtype),
        },
        calibration=estimator.deployment.calibration.as_record(),
        **more,
    )


if __name__ == "__main__":
    _common.start(main, _common.OF_SHAPES)
