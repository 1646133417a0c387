"""Explain one decode step: where its time goes, block by block, each beside its own floor.

A profiler trace of eight steps says how long each operation ran, and the compiled program to which
block of the model it belongs: norms, queries, keys and values, writing the cache, attention, the
output projection, the MLP or the experts, the unembedding, sampling, and collectives by kind. Time
in which no operation runs is a block too, within steps and between them. A block's floor is its own
bytes and FLOPs at peak rates; all blocks' add up to those of the step. The step is timed without
the trace, and blocks have their shares of that time, so that they add up to the measured step.

--trace_dir explains a trace that was taken before, by this script or by profile_decode.py --trace,
given the model and the flags that it was taken with: these are not in it. Its own time is then the
step's. On a CPU the peak rates are measured now, unless they are given. A trace of a GPU or TPU can
be read anywhere, given the peak rates of its chip.

What cannot be told: on a CPU how many threads worked at an operation, and with several fake devices
whose operation had the cores. Wall time is divided evenly between what ran at the same time.

Writes explain.json, waterfall.png and the trace to --output_dir, then prints. Of many processes,
process 0 writes, and the trace is its own.

Examples:
  python scripts/explain_step.py
  python scripts/explain_step.py --batch=16 --context=1024 --devices=2
  python scripts/explain_step.py --model=llama3-8b --random_weights --batch=64 --context=2048
  python scripts/explain_step.py --batch=16 --trace_dir=out/explain/trace
"""

import datetime
import sys
from pathlib import Path

import _array_flags
import _common
import _here_flags
import _peak_flags
from absl import flags

_BATCH = flags.DEFINE_integer("batch", 1, "Sequences.", 1)
_CONTEXT = flags.DEFINE_integer("context", 128, "Tokens in each sequence's cache.", 1)
_SLOTS = flags.DEFINE_integer(
    "slots",
    None,
    "Room in the cache for so many tokens of each sequence. Default: the context and a new token, "
    "and up to 31 more.",
    1,
)
_SECONDS = flags.DEFINE_float("seconds", 5, "Time for samples; at least five rounds.", 0)
_TRACE_DIR = flags.DEFINE(
    _common.PATH, "trace_dir", None, "A trace to explain, in place of one taken now."
)
_OUTPUT_DIR = flags.DEFINE(_common.PATH, "output_dir", "out/explain", "Folder for results.")

if __name__ == "__main__":
    for module in (_common, _array_flags, _here_flags, _peak_flags):
        flags.adopt_module_key_flags(module)

with _common.importing(__name__):
    import _dtypes
    import _engines
    import _layouts

    from model.layout_check import settle
    from profiles.compiled.inspection import PassProgram
    from profiles.explained.explained_table import fields, text
    from profiles.explained.explanation import Explanation
    from profiles.explained.live import explain_live, explain_trace
    from profiles.figures.waterfall import waterfall
    from profiles.floor.passes import Pass
    from profiles.measured.sweep import Sweep
    from profiles.measured.timing import slots_for
    from profiles.measured.trace import newest
    from profiles.report.document import document
    from profiles.report.files import check_writable, write_json
    from profiles.report.numbers import milliseconds
    from sharding import processes
    from sharding.error_types import FloorlineError


def main() -> None:
    """Explains the step, and writes and prints the results."""
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    output = Path(_OUTPUT_DIR.value)
    if _TRACE_DIR.value:
        _common.refuse(["seconds"], "--trace_dir has a trace that was taken before")
        newest(_TRACE_DIR.value)  # refuses a folder without a trace before the long work
    sweep = _sweep()
    sweep.check()
    processes.from_first_process(lambda: check_writable(output))
    _common.check_json()
    (layout, shape, dtypes), *_ = sweep.placings()
    placement = settle(sweep.source.config, dtypes, layout, shape)
    _layouts.state_choices(sweep.source.config, placement, dtypes)
    if _TRACE_DIR.value:
        found = _of_trace(sweep)
    else:
        found = explain_live(sweep, output / "trace", _common.say)
    if found and processes.is_first():
        _write(output, *found, started)
        _refuse_impossible(found[0])


def _of_trace(sweep: Sweep) -> tuple[Explanation, dict]:
    """The explanation of the trace that the flags name."""
    (layout, shape, dtypes), *_ = sweep.placings()
    config, (context,), (batch,) = sweep.source.config, sweep.contexts, sweep.batches
    program = PassProgram(
        config=config,
        placement=settle(config, dtypes, layout, shape),
        dtypes=dtypes,
        pass_=Pass(batch, context, slots=sweep.slots or slots_for(context)),
    )
    _common.say(f"reading {newest(_TRACE_DIR.value)}")
    peaks = _peak_flags.BANDWIDTH.value, _peak_flags.FLOPS.value
    return explain_trace(program, Path(_TRACE_DIR.value), *peaks)


def _sweep() -> Sweep:
    """The one row that the flags ask for."""
    meshes = _engines.meshes()
    _peak_flags.check(_SECONDS)
    _layouts.check_layouts()
    _dtypes.check()
    source = _common.source()
    (context,) = _common.lengths(_CONTEXT, source.config)
    placed = _engines.place(source, meshes, [Pass(_BATCH.value, context)])
    return Sweep(
        source=source,
        layouts=[placed.layout],
        shapes=[placed.shape],
        batches=[_BATCH.value],
        contexts=[context],
        slots=_SLOTS.value,
        dtype_sets=[placed.dtypes],
        seconds=_SECONDS.value,
        bandwidth=_peak_flags.BANDWIDTH.value,
        peak_flops=_peak_flags.FLOPS.value,
    )


def _write(output: Path, explanation: Explanation, bandwidth: dict, started: str) -> None:
    whole = document(
        sys.argv,
        [explanation.record],
        device_kind=explanation.record.device_kind,
        started=started,
        bandwidth=bandwidth,
        **fields(explanation),
    )
    write_json(output / "explain.json", whole)
    if _common.JSON.value:
        write_json(_common.JSON.value, whole)
    waterfall(whole, output / "waterfall.png")
    _common.say(f"wrote {output / 'explain.json'}, {output / 'waterfall.png'}")
    _common.show(text(whole))


def _refuse_impossible(explanation: Explanation) -> None:
    record = explanation.record
    if (record.fraction_of_floor or 0) > 1:
        raise FloorlineError(
            f"measured step is {milliseconds(explanation.measured_s)}, below its floor of "
            f"{milliseconds(record.floor_s)}; the rates that the floor was taken at must be wrong"
        )


if __name__ == "__main__":
    _common.start(main)
