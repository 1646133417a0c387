"""What XLA's TPU compiler makes of a step, for any slice from v4 to TPU7x, with no TPU at hand.

Compiles the step that the engine runs, whole, and says: does it fit, is the cache updated in place,
which collectives run and beside what, and which weights or caches are copied, with what each costs.
Beside it stand the step's floor and its expected time. --mesh, --layout and --attention are the
expected best unless they are given. Nothing is measured, and no weight is made.

Needs libtpu: pip install -e '.[tpu-compile]'. 80 layers take two or three minutes on two cores.

Examples:
  python scripts/compile_step.py --model=llama3-8b --topology=v5e:2x4 --batch=8
  python scripts/compile_step.py --model=llama3.1-70b --topology=v5e:4x4 --batch=32 \\
      --context=8192 --weight_dtype=int8 --kv_dtype=int8 --collectives=overlapped
  python scripts/compile_step.py --model=llama3-8b --topology=v5p:2x2x1 --phase=prefill --batch=1
  python scripts/compile_step.py --model=mixtral-8x7b --topology=tpu7x:2x2x1 --json=- \\
      --save_hlo=step.txt
"""

import dataclasses
import datetime
import sys

import _array_flags
import _common
import _slice_flags
from absl import flags

_TOPOLOGY = flags.DEFINE_string(
    "topology", "v5e:2x4", "Chip and shape of the slice, such as v5p:2x2x4."
)
_MESH = flags.DEFINE_string("mesh", None, "Sizes of mesh axes x, y and z; the best if not given.")
_BATCH = flags.DEFINE_integer("batch", 8, "Sequences; padded to what the layout divides.", 1)
_CONTEXT = flags.DEFINE_integer(
    "context", 2048, "Tokens in the cache of each; of prefill, tokens of a prompt.", 1
)
_PHASE = flags.DEFINE_enum("phase", "decode", ["decode", "prefill"], "Which pass.")
_SAVE_HLO = flags.DEFINE(_common.PATH, "save_hlo", None, "Write the compiled program's text here.")
_WEIGHT_LAYOUT = _array_flags.define_weight_layout(
    "auto compiles a second time, with weights in memory as the compiler would have them, and says "
    "what changes. On devices, generate.py and profile_decode.py store them so with this flag."
)
_LAYERS = flags.DEFINE_integer(
    "layers", None, "For work on the code: so many layers in place of the model's own.", 1
)
_array_flags.define_step_flags()
_array_flags.leave_open()
flags.set_default(_common.MODEL, "llama3-8b")

if __name__ == "__main__":
    for module in (_common, _array_flags, _slice_flags):
        flags.adopt_module_key_flags(module)

with _common.importing(__name__):
    import _dtypes
    import _layouts
    import _slices

    from model.config import ModelConfig
    from profiles.compiled import text as compiled_text
    from profiles.compiled.compiler import check_compiler, check_target, compile_step
    from profiles.compiled.examined import Examined, estimate_on_tpu, examine, subject_of
    from profiles.compiled.inspection import Subject
    from profiles.compiled.step import CompiledStep, read
    from profiles.expected.candidates import candidates
    from profiles.expected.estimate import Estimator, best
    from profiles.floor.arrays import placed_arrays
    from profiles.floor.passes import Pass
    from profiles.report.document import document, versions
    from profiles.report.files import check_file, write_atomically, write_json
    from profiles.report.numbers import several
    from profiles.report.record import Record
    from profiles.report.table import wrap
    from sharding.error_types import FloorlineError, UsageError
    from sharding.mesh import parse_mesh


def main() -> None:
    """Chooses a layout, compiles in a process of its own, prints what came of it."""
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    _common.check_json()
    if _SAVE_HLO.value:
        check_file(_SAVE_HLO.value, "--save_hlo")
    if _PHASE.value == "prefill" and _CONTEXT.value < 2:
        raise UsageError(
            f"--context is {_CONTEXT.value} with --phase=prefill; use 2 tokens or more"
        )
    check_target(_slices.slice(_TOPOLOGY.value))
    model, prefill = _model(), _PHASE.value == "prefill"
    length = _common.lengths(_CONTEXT, model, prefill)[0]
    pass_ = Pass(_BATCH.value, 0, length) if prefill else Pass(_BATCH.value, length)
    estimator = _estimator(model, pass_)
    step, subject = estimate_on_tpu(estimator, pass_), subject_of(estimator, pass_)
    slice = estimator.deployment.slice
    _common.show(f"{compiled_text.title(subject, slice)}\n{compiled_text.times(estimator, step)}\n")
    if step.fits:
        check_compiler()
        _common.say(f"compiling {several(subject.config.layers, 'layer')} for {slice}")
    found = examine(estimator, pass_)
    more = _report(found) if found.compiled else {}
    if _common.JSON.value:
        write_json(_common.JSON.value, _document(estimator, found.record, more, started))
    record = found.record
    if record.status == "does_not_fit":
        _common.show(wrap(f"does not fit: {record.message}"))
    elif record.status != "ok":
        raise FloorlineError(f"compiled step is {record.status}; {record.message}")


def _model() -> ModelConfig:
    """With as many layers as the flags say."""
    model = _slices.model()
    if not isinstance(model, ModelConfig):
        raise UsageError(
            f"model is {model.name}, which is known by its sizes alone; use one that the engine "
            "runs, see --help of generate.py"
        )
    if _LAYERS.value:
        windows = model.windows and model.windows[: _LAYERS.value]
        model = dataclasses.replace(model, layers=_LAYERS.value, windows=windows)
    return model


def _estimator(model: ModelConfig, pass_: Pass) -> Estimator:
    """Of the layout and mesh that the flags name, or of the expected best."""
    slice, dtypes = _slices.slice(_TOPOLOGY.value), _dtypes.dtypes(here=False)
    deployment = _slices.deployment(model, slice, dtypes)
    shapes = [parse_mesh(_MESH.value)] if _MESH.value else None
    found = candidates(deployment, _layouts.wanted(model), shapes)
    return best(found, [pass_])


def _report(found: Examined) -> dict:
    """Prints what was compiled; returns what a document says of it."""
    step, subject, compiled = found.step, found.subject, found.compiled
    if _SAVE_HLO.value:
        write_atomically(_SAVE_HLO.value, found.outcome.text.encode())
        _common.say(f"wrote {_SAVE_HLO.value}")
    arrays = placed_arrays(
        subject.config, subject.placement, subject.dtypes, subject.batch, subject.slots
    )
    libraries, outcome = versions(), found.outcome
    _common.show(
        f"compiled:  by XLA of libtpu {libraries.get('libtpu', '?')}, jax {libraries['jax']}, in "
        f"{outcome.compile_s:.0f} s after {outcome.trace_s:.0f} s of tracing\n\n"
        f"{compiled_text.memory(compiled, step, arrays)}\n\n"
        f"{compiled_text.collectives(found.wanted, compiled.collectives)}\n\n"
        f"{compiled_text.findings(found.findings, step.floor.seconds)}"
    )
    fields = {
        "compiled": compiled.as_record(),
        "findings": [each.as_record() for each in found.findings],
        "expected_collectives": [each.as_record() for each in found.wanted],
    }
    if _WEIGHT_LAYOUT.value == "auto":
        fields["weight_layout"] = _free_weights(compiled, found.estimator, subject)
    return fields


def _free_weights(default: CompiledStep, estimator: Estimator, subject: Subject) -> dict:
    """Compiles with weights laid out as the compiler likes; prints and returns what changes."""
    slice = estimator.deployment.slice
    _common.say(f"compiling again for {slice}, weights laid out by the compiler")
    outcome = compile_step(subject, slice, auto_weight_layout=True)
    if outcome.status != "ok":
        raise FloorlineError(f"compiled step is {outcome.status}; {outcome.message}")
    free = read(outcome, subject.placement.mesh)
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
        calibration=dataclasses.asdict(estimator.deployment.calibration),
        **more,
    )


if __name__ == "__main__":
    _common.start(main)
