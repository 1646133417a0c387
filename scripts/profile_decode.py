"""Measure decode steps or prompts over devices, batches and lengths, each beside its floor.

The table shows floor, expected and measured time, and below it what the timed program itself was
compiled to.

The floor is the least time that a step can take: reading this model's weights and KV cache at the
memory's peak rate, or computing at the peak FLOP rate, whichever is longer. On a GPU or TPU the
peaks are the published ones of the chip. On a CPU the devices share one memory, whose rate is
measured in the same run, before, between and after the steps, like that of its arithmetic.
Elsewhere a column more has the floor at the rate that read kernels reached in the same run.

The expected time is at rates that devices achieve, with fixed times: those of --calibration, of the
chip's own calibration, or on a CPU of one that is measured in the run. The lines on compiled
programs tell the bytes that they hold against those that the floor counts, the cache updated in
place or not, whole arrays that are copied, weights held in more bits, collectives as the layout
asks or how they differ, and temporaries. The host's column is the time until a step's call returns.

--phase=prefill measures prompts of --prompt_length chunk by chunk: each chunk is a row, run again
and again behind the tokens that are in the cache before it. Below the table stands each whole
prompt, its chunks added up, beside the floor of all its tokens as one pass.

--layout takes a list here: the layouts are measured in turns and compared in one report. Where
there are several meshes, auto picks for the largest.

Writes profile.json, profile.csv, step_time.png, cost.png and TensorBoard events to --output_dir,
then prints. The first two are complete after every round of samples, so that an interrupted run
keeps what it measured; the row of a step that fails says why.
Of many processes, process 0 writes, and samples and trace are its own.

Examples:
  python scripts/profile_decode.py
  python scripts/profile_decode.py --devices=1,2 --batch=1,8 --context=128,1024 --trace
  python scripts/profile_decode.py --phase=prefill --prompt_length=512,2048 --devices=1
  python scripts/profile_decode.py --batch=8 --context=128 --slots=4096
  python scripts/profile_decode.py --mesh=2x1x2 --layout=weight_stationary_1d,weight_stationary_2d
  python scripts/profile_decode.py --model=llama3-8b --random_weights --batch=1,8,64 --context=2048
  python scripts/profile_decode.py --calibration=out/microbenchmark/calibration.json
"""

import dataclasses
import datetime
import functools
import sys
from pathlib import Path

import _array_flags
import _common
from absl import flags

_DEVICES = flags.DEFINE_list(
    "devices",
    None,
    "Numbers of devices, a list, each with the mesh of the lowest floor. Default: 1 and 2 on a "
    "CPU, elsewhere all that the layouts can divide.",
)
_MESH = flags.DEFINE_string("mesh", None, "Sizes of mesh axes x, y and z, such as 2x2x2.")
_PHASE = flags.DEFINE_enum(
    "phase", "decode", ["decode", "prefill"], "Which passes: decode steps, or prompts by chunks."
)
_BATCH = flags.DEFINE_list(
    "batch", None, "Sequences per step, a list. Default: 1,4,16,64; of prompts 1."
)
_CONTEXT = flags.DEFINE_list("context", ["128"], "Tokens in each sequence's cache, a list.")
_PROMPT_LENGTH = flags.DEFINE_list(
    "prompt_length", ["512", "2048"], "With --phase=prefill: tokens of each prompt, a list."
)
_CHUNK = flags.DEFINE_integer(
    "chunk",
    None,
    "With --phase=prefill: tokens of a prompt that run at once, a multiple of 16. Default: 512 on "
    "a CPU, else 2048.",
)
_SLOTS = flags.DEFINE_integer(
    "slots",
    None,
    "Room in the cache for so many tokens of each sequence. Default: the context and a new token, "
    "or the prompt, and up to 64 more. Steps take the time of what is filled.",
    1,
)
_SECONDS = flags.DEFINE_float("seconds", 20, "Time for samples; at least five rounds.", 0)
_BANDWIDTH = flags.DEFINE_float("hbm_bandwidth", None, "Peak bytes/s of a chip, for the floor.")
_FLOPS = flags.DEFINE_float("peak_flops", None, "Peak FLOP/s of a chip, for the floor.")
_CALIBRATION = flags.DEFINE(
    _common.PATH,
    "calibration",
    None,
    "File with the achieved rates and fixed times of expected times, as microbenchmark.py writes "
    "it. Default: the chip's own; on a CPU it is measured in the run.",
)
_PRICE = flags.DEFINE_float("price_per_chip_hour", None, "USD; the plot of cost is then in USD.")
_OUTPUT_DIR = flags.DEFINE(_common.PATH, "output_dir", "out/profile", "Folder for results.")
_TRACE = flags.DEFINE_bool("trace", False, "Also write a profiler trace, for TensorBoard.")
_WEIGHT_LAYOUT = _array_flags.define_weight_layout(
    "auto lets the compiler choose the memory layout of weights, for the longest context and the "
    "largest batch."
)
_array_flags.define_step_flags()

if __name__ == "__main__":
    for module in (_common, _array_flags):
        flags.adopt_module_key_flags(module)

with _common.importing(__name__):
    import _calibrations
    import _dtypes
    import _layouts
    import jax

    from decode.chunks import check_chunk
    from model.dtypes import Dtypes
    from profiles.chips.calibration import read_calibration
    from profiles.chips.chip import DEAREST, RANGE
    from profiles.compiled.running import inspect_pass
    from profiles.figures.steps import cost, step_time
    from profiles.floor.passes import Pass
    from profiles.measured.row_records import inspect_row
    from profiles.measured.sweep import Interrupted, Sweep, SweepResult, run
    from profiles.measured.tensorboard import remove_events, write_events
    from profiles.measured.timing import check_slots
    from profiles.report.document import document
    from profiles.report.files import check_writable, remove, write_csv, write_json
    from profiles.report.lines import fit_lines, fits, prompt_lines
    from profiles.report.step_table import step_table
    from sharding import processes
    from sharding.error_types import FloorlineError, UsageError
    from sharding.placement import Placement

_FIGURES = {"step_time.png": step_time, "cost.png": cost}


def main() -> None:
    """Measures, and writes and prints the results."""
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    output = Path(_OUTPUT_DIR.value)
    given = read_calibration(_CALIBRATION.value) if _CALIBRATION.value else None
    sweep = _sweep(output)
    sweep.check()
    shared = _calibrations.given_or_own(given)
    processes.from_first_process(lambda: check_writable(output))
    _common.check_json()
    for layout, shape, dtypes in sweep.placings():
        placement = Placement.of(layout, sweep.source.config.sizes, shape)
        _layouts.state_choices(sweep.source.config, placement, dtypes)
    calibrations = _calibrations.calibrations(sweep, shared)
    inspect = functools.partial(inspect_row, inspect_pass)
    sweep = dataclasses.replace(sweep, expect=calibrations.expect, inspect=inspect)
    head = {"started": started, **calibrations.as_fields()}
    outcome = _measure(sweep, output, head)
    if not processes.is_first():
        return
    results = _document(outcome, head)
    _draw(output, results)
    if _common.JSON.value == "-":
        write_json("-", results)
    else:
        _common.show(step_table(outcome.points, outcome.bandwidth, head["calibration"]))
        sums = fit_lines(results["fits"]) if "fits" in results else prompt_lines(outcome.prompts)
        _common.show("\n".join(sums))
    _refuse_unmeasured(outcome)
    _refuse_impossible(outcome)


def _measure(sweep: Sweep, output: Path, head: dict) -> SweepResult:
    """Runs the sweep, and writes all results so far to the files after every round."""

    def keep(outcome: SweepResult) -> None:
        if processes.is_first():
            _write(output, _document(outcome, head))

    try:
        outcome = run(sweep, _common.say, keep)
    except Interrupted as interrupt:
        raise Interrupted(f"{output / 'profile.json'} keeps {interrupt}") from None
    keep(outcome)
    return outcome


def _sweep(output: Path) -> Sweep:
    prefill = _PHASE.value == "prefill"
    others = ["context"] if prefill else ["prompt_length", "chunk"]
    _common.refuse(others, f"--phase is {_PHASE.value}")
    if _CHUNK.value is not None:
        check_chunk(_CHUNK.value)
    meshes = _layouts.meshes(_DEVICES.value, _MESH.value)
    batches = ["1"] if prefill else ["1", "4", "16", "64"]
    batches = _common.integers("batch", batches if _BATCH.value is None else _BATCH.value)
    length_flag = _PROMPT_LENGTH if prefill else _CONTEXT
    lengths = _common.integers(length_flag.name, length_flag.value)
    for flag, (low, high) in ((_BANDWIDTH, RANGE), (_FLOPS, RANGE), (_PRICE, (1e-6, DEAREST))):
        if flag.value is not None and not low <= flag.value <= high:
            remedy = f"use a positive number, {low:g} to {high:g}"
            raise UsageError(f"--{flag.name} is {flag.value}; {remedy}")
    if not _SECONDS.value >= 0:  # false for NaN
        raise UsageError("--seconds is nan; use a number of seconds, 0 or more")
    _layouts.check_layouts()
    _dtypes.check()
    source = _common.source()
    new = int(not prefill)
    lengths = _common.within(source.config, length_flag, lengths, new)
    check_slots(_SLOTS.value, length_flag.name, max(lengths), new)

    def dtype_sets() -> list[Dtypes]:
        return _dtypes.dtype_sets(source.stored_quantization())

    steps = [Pass(batch, length) for batch in batches for length in lengths]
    layouts, shapes = _layouts.layouts(source.config, meshes, lambda: dtype_sets()[0], steps)
    return Sweep(
        source=source,
        layouts=layouts,
        shapes=shapes,
        batches=batches,
        contexts=() if prefill else lengths,
        prompt_lengths=lengths if prefill else (),
        chunk=_CHUNK.value,
        slots=_SLOTS.value,
        dtype_sets=dtype_sets(),
        auto_weight_layout=_WEIGHT_LAYOUT.value == "auto",
        seconds=_SECONDS.value,
        bandwidth=_BANDWIDTH.value,
        peak_flops=_FLOPS.value,
        price=_PRICE.value,
        trace=output / "trace" if _TRACE.value else None,
    )


def _document(outcome: SweepResult, head: dict) -> dict:
    prefill = _PHASE.value == "prefill"
    return document(
        sys.argv,
        outcome.points,
        device_kind=jax.devices()[0].device_kind,
        bandwidth=outcome.bandwidth,
        **head,
        **({"prompts": outcome.prompts} if prefill else {"fits": fits(outcome.points)}),
    )


def _write(output: Path, results: dict) -> None:
    """Writes the data, and removes plots of an earlier run, because a folder holds one run."""
    write_json(output / "profile.json", results)
    write_csv(output / "profile.csv", [*results["points"], *results.get("prompts", ())])
    if _common.JSON.value not in (None, "", "-"):
        write_json(_common.JSON.value, results)
    for name in _FIGURES:
        remove(output / name)
    remove_events(output / "events")


def _draw(output: Path, results: dict) -> None:
    for name, draw in _FIGURES.items():
        draw(results, output / name)
    figures = [output / name for name in _FIGURES]
    write_events(output / "events", results, figures)
    _common.say(f"wrote {', '.join(str(path) for path in (output / 'profile.json', *figures))}")


def _refuse_unmeasured(outcome: SweepResult) -> None:
    """Fails a run without any measured row, with the reasons."""
    if not any(point.ran for point in outcome.points):
        first, count = outcome.points[0], len(outcome.points)
        why = f"{first.status}: {first.message}"
        raise FloorlineError(f"number of rows measured is 0 of {count} ({why})") from outcome.error


def _refuse_impossible(outcome: SweepResult) -> None:
    for point in (*outcome.points, *outcome.prompts):
        if (point.fraction_of_floor or 0) > 1:
            raise FloorlineError(point.message)


if __name__ == "__main__":
    _common.start(main)
