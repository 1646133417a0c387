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
prompt, its chunks added up, beside the floor of all its tokens as one pass. --phase=decode,prefill
measures both, with a table and pictures for each.

--layout, --dtype and --weight_dtype take lists here: all combinations are measured and compared in
one report. Where there are several meshes, --layout=auto picks for the largest.

Writes profile.json, profile.csv, step_time.png, cost.png and TensorBoard events to --output_dir,
then prints. The first two are complete after every round of samples; the row of a step that fails
says why. A run that was interrupted or killed goes on with the same command: it takes over the rows
that were finished, and measures the others. A finished run is one whose files are all there: it is
measured anew, and what it wrote stays until new samples are there. A folder with a run of another
model, of other versions or of other devices is left as it is.
Of many processes, process 0 writes, and samples and traces are its own.

Examples:
  python scripts/profile_decode.py
  python scripts/profile_decode.py --devices=1,2 --batch=1,8 --context=128,1024 --trace
  python scripts/profile_decode.py --phase=prefill --prompt_length=512,2048 --devices=1
  python scripts/profile_decode.py --phase=decode,prefill --batch=1,8 --prompt_length=512
  python scripts/profile_decode.py --batch=8 --context=128 --slots=4096
  python scripts/profile_decode.py --mesh=2x1x2 --layout=weight_stationary_1d,weight_stationary_2d
  python scripts/profile_decode.py --model=llama3-8b --random_weights --batch=1,8,64 --context=2048
  python scripts/profile_decode.py --calibration=out/microbenchmark/calibration.json
"""

import dataclasses
import datetime
import functools
import shutil
import sys
from pathlib import Path

import _array_flags
import _common
import _peak_flags
from absl import flags

_DEVICES = flags.DEFINE_list(
    "devices",
    None,
    "Numbers of devices, a list, each with the mesh of the lowest floor. Default: 1 and 2 on a "
    "CPU, elsewhere all that the layouts can divide.",
)
_MESH = flags.DEFINE_string("mesh", None, "Sizes of mesh axes x, y and z, such as 2x2x2.")
_PHASE = flags.DEFINE_list(
    "phase", ["decode"], "Which passes, a list: decode steps, prefill for prompts by chunks."
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
    "or the prompt, and up to 32 more. Steps take the time of what is filled.",
    1,
)
_TOKENS_PER_DISPATCH = _array_flags.define_tokens_per_dispatch(
    "Decode steps that one program runs. Times stay those of a step; programs of several are not "
    "checked."
)
_SECONDS = flags.DEFINE_float("seconds", 20, "Time for samples; at least five rounds.", 0)
_CALIBRATION = flags.DEFINE(
    _common.PATH,
    "calibration",
    None,
    "File with the achieved rates and fixed times of expected times, as microbenchmark.py writes "
    "it. Default: the chip's own; on a CPU it is measured in the run.",
)
_PRICE = flags.DEFINE_float("price_per_chip_hour", None, "USD; the plot of cost is then in USD.")
_OUTPUT_DIR = flags.DEFINE(_common.PATH, "output_dir", "out/profile", "Folder for results.")
_TRACE = flags.DEFINE_bool(
    "trace", False, "Also write a profiler trace of each row, for TensorBoard."
)
_WEIGHT_LAYOUT = _array_flags.define_weight_layout(
    "auto lets the compiler choose the memory layout of weights, for the longest context and the "
    "largest batch."
)
_array_flags.define_step_flags()
_array_flags.define_gpu_kernels()

if __name__ == "__main__":
    for module in (_common, _array_flags, _peak_flags):
        flags.adopt_module_key_flags(module)

with _common.importing(__name__):
    import _calibrations
    import _dtypes
    import _layouts
    import jax

    from decode.chunks import check_chunk
    from model.dtypes import Dtypes
    from profiles.chips.calibration import read_calibration
    from profiles.chips.chip import DEAREST
    from profiles.compiled.running import inspect_pass
    from profiles.figures.steps import cost, step_time
    from profiles.floor.passes import Pass
    from profiles.measured.resume import Earlier, earlier_run
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

_TRACES = "trace"  # folder of traces below the results
_FIGURES = {"step_time.png": step_time, "cost.png": cost}
_PROMPT_FIGURES = {"prompt_time.png": step_time, "prompt_cost.png": cost}  # beside those of steps


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
    device_kind = jax.devices()[0].device_kind
    settings = sweep.settings()
    earlier = earlier_run(output, settings, device_kind)
    calibrations = _calibrations.calibrations(sweep, shared)
    inspect = functools.partial(inspect_row, inspect_pass)
    sweep = dataclasses.replace(sweep, expect=calibrations.expect, inspect=inspect)
    head = {
        "device_kind": device_kind,
        "started": earlier.started if earlier else started,
        "settings": settings,
        **calibrations.as_fields(),
    }
    outcome = _measure(sweep, output, head, earlier)
    if not processes.is_first():
        return
    results = _document(outcome, head, complete=True)
    drawn = _draw(output, results)
    _write(output, results)
    _common.say(f"wrote {', '.join(str(path) for path in (output / 'profile.json', *drawn))}")
    if _common.JSON.value == "-":
        write_json("-", results)
    else:
        for number, part in enumerate(_by_phase(results)):
            if number:
                _common.show("")
            _common.show(step_table(part["points"], outcome.bandwidth, head.get("calibration")))
            sums = fit_lines(part["fits"]) if "fits" in part else prompt_lines(outcome.prompts)
            _common.show("\n".join(sums))
    _refuse_unmeasured(outcome)
    _refuse_impossible(outcome)


def _measure(sweep: Sweep, output: Path, head: dict, earlier: Earlier | None) -> SweepResult:
    """Runs the sweep, and writes all results so far to the files after every round."""
    traced = earlier is not None and earlier.traced  # else traces are those of a run before

    def keep(outcome: SweepResult) -> None:
        nonlocal traced
        if not processes.is_first():
            return
        _write(output, _document(outcome, head, complete=False))
        _remove_pictures(output)
        if not traced:
            shutil.rmtree(output / _TRACES, ignore_errors=True)
            traced = True

    try:
        outcome = run(sweep, _common.say, keep, earlier)
    except Interrupted as interrupt:
        where = f"{output / 'profile.json'} keeps {interrupt}"
        raise Interrupted(f"{where}; the same command goes on") from None
    keep(outcome)
    return outcome


def _phases() -> list[str]:
    """What to measure, with no flag of what is not measured."""
    phases = list(dict.fromkeys(_PHASE.value))
    if not phases or not {*phases} <= {"decode", "prefill"}:
        given = ",".join(phases)
        raise UsageError(f"--phase is {given!r}; use decode, prefill or decode,prefill")
    for phase, others in (
        ("decode", ["context", "tokens_per_dispatch"]),
        ("prefill", ["prompt_length", "chunk"]),
    ):
        if phase not in phases:
            _common.refuse(others, f"--phase is {','.join(phases)}")
    return phases


def _sweep(output: Path) -> Sweep:
    phases = _phases()
    if _CHUNK.value is not None:
        check_chunk(_CHUNK.value)
    meshes = _layouts.meshes(_DEVICES.value, _MESH.value)
    given = _BATCH.value
    batches, prompt_batches = (
        _common.integers("batch", default if given is None else given)
        for default in (["1", "4", "16", "64"], ["1"])
    )
    lengths = {
        phase: _common.integers(flag.name, flag.value)
        for phase, flag in (("decode", _CONTEXT), ("prefill", _PROMPT_LENGTH))
        if phase in phases
    }
    _peak_flags.check(_SECONDS, (_PRICE, (1e-6, DEAREST)))
    _layouts.check_layouts()
    _dtypes.check()
    source = _common.source()
    several = _TOKENS_PER_DISPATCH.value
    if several < 1:
        raise UsageError(f"--tokens_per_dispatch is {several}; use a positive integer")
    for phase, flag, new in (("decode", _CONTEXT, several), ("prefill", _PROMPT_LENGTH, 0)):
        if phase in phases:
            lengths[phase] = _common.within(source.config, flag, lengths[phase], new)
            check_slots(_SLOTS.value, flag.name, max(lengths[phase]), new)
    contexts, prompts = (lengths.get(phase, ()) for phase in ("decode", "prefill"))

    def dtype_sets() -> list[Dtypes]:
        return _dtypes.dtype_sets(source.stored_quantization())

    steps = [Pass(batch, length) for batch in batches for length in contexts]
    steps += [Pass(batch, length) for batch in prompt_batches for length in prompts]
    layouts, shapes = _layouts.layouts(source.config, meshes, lambda: dtype_sets()[0], steps)
    return Sweep(
        source=source,
        layouts=layouts,
        shapes=shapes,
        batches=batches,
        contexts=contexts,
        prompt_lengths=prompts,
        prompt_batches=prompt_batches,
        chunk=_CHUNK.value,
        slots=_SLOTS.value,
        tokens_per_dispatch=several,
        dtype_sets=dtype_sets(),
        auto_weight_layout=_WEIGHT_LAYOUT.value == "auto",
        seconds=_SECONDS.value,
        bandwidth=_peak_flags.BANDWIDTH.value,
        peak_flops=_peak_flags.FLOPS.value,
        price=_PRICE.value,
        trace=output / _TRACES if _TRACE.value else None,
    )


def _document(outcome: SweepResult, head: dict, complete: bool) -> dict:
    steps = [point for point in outcome.points if point.phase == "decode"]
    return document(
        sys.argv,
        outcome.points,
        **head,
        bandwidth=outcome.bandwidth,
        complete=complete,
        **({"fits": fits(steps)} if "decode" in _PHASE.value else {}),
        **({"prompts": outcome.prompts} if "prefill" in _PHASE.value else {}),
    )


def _by_phase(results: dict) -> list[dict]:
    """The document's steps and its prompts, each as a document of its own."""
    parts = []
    for phase, foreign in (("decode", "prompts"), ("prefill", "fits")):
        points = [point for point in results["points"] if point.phase == phase]
        if points:
            part = {name: value for name, value in results.items() if name != foreign}
            parts.append(part | {"points": points})
    return parts


def _write(output: Path, results: dict) -> None:
    """Writes the files of records.

    profile.json tells a later run whether this one is complete. So it is the first to be written
    while it is not, and the last one then: whenever a run is killed, it says no more than is so.
    """
    files = [
        lambda: write_json(output / "profile.json", results),
        lambda: write_csv(
            output / "profile.csv", [*results["points"], *results.get("prompts", ())]
        ),
    ]
    if _common.JSON.value not in (None, "", "-"):
        files.append(lambda: write_json(_common.JSON.value, results))
    for write in reversed(files) if results["complete"] else files:
        write()


def _remove_pictures(output: Path) -> None:
    """Removes plots of an earlier run, because a folder holds one run."""
    for name in (*_FIGURES, *_PROMPT_FIGURES):
        remove(output / name)
    for events in (output / "events", output / "events" / "prefill"):
        remove_events(events)


def _draw(output: Path, results: dict) -> list[Path]:
    """Draws the pictures of each phase; returns their paths."""
    drawn = []
    for number, part in enumerate(_by_phase(results)):
        figures = _PROMPT_FIGURES if number else _FIGURES
        for name, draw in figures.items():
            draw(part, output / name)
        paths = [output / name for name in figures]
        write_events(output / "events" / ("prefill" if number else ""), part, paths)
        drawn += paths
    return drawn


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
