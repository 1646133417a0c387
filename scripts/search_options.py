"""Search compiler options for a step by what the compiled program shows, with no chip at hand.

Compiles a step as compile_step.py does, first with the engine's own options, then with each set of
--options or --candidates beside these. Sets whose score is lower by at least 0.1% of the floor are
then joined, the best first, and each is kept if the score falls by as much again. The score is the
estimated cost of all findings, each on its own, and of transfers that take longer than the work
beside which they run. Nothing is timed: a lower score is a reason to measure. An option that the
compiler does not know, or one it dies of, is a line of the table, and the search goes on; a search
that was stopped continues where it stopped. Writes options.json. The engine's choices are in
decode/compiler_options.py.

Examples:
  python scripts/search_options.py --model=llama3-8b --layers=2 --topology=v5e:2x4 --batch=256
  python scripts/search_options.py --topology=v6e:2x2 --phase=prefill --batch=1 --layers=1
  python scripts/search_options.py --model=llama3-8b --topology=h100:8 --batch=8 --layers=2 \\
      --options='xla_gpu_enable_triton_gemm=false;xla_gpu_enable_latency_hiding_scheduler=true'
"""

import datetime
import sys
from collections.abc import Callable
from pathlib import Path

import _array_flags
import _common
import _slice_flags
import _step_flags
from absl import flags

_OPTIONS = flags.DEFINE_string(
    "options", None, "Sets to try, NAME=VALUE,NAME=VALUE;NAME=VALUE, in place of --candidates."
)
_CANDIDATES = flags.DEFINE(
    _common.PATH,
    "candidates",
    None,
    "File of sets to try, in the form of the default, profiles/compiled/option_candidates.json.",
)
_OUTPUT_DIR = flags.DEFINE(_common.PATH, "output_dir", "out/options", "Folder for results.")

if __name__ == "__main__":
    for name in _common.OF_SHAPES:
        flags.declare_key_flag(name)
    for module in (_array_flags, _slice_flags, _step_flags):
        flags.adopt_module_key_flags(module)

with _common.importing(__name__):
    import _slices
    import _steps

    from profiles.compiled import text as compiled_text
    from profiles.compiled.compiled_pass import compile_pass, estimate_as_run, program_of
    from profiles.compiled.option_search import OUTCOMES, Outcome, case_of, kept_outcomes, search
    from profiles.compiled.option_sets import CANDIDATES, OptionSet, parse_sets, read_sets
    from profiles.compiled.options_table import search_document, table
    from profiles.compiled.toolchains import check_compiler, libraries_of, toolchain_of
    from profiles.expected.estimate_record import Recorder
    from profiles.report.document import document, versions
    from profiles.report.files import check_writable, write_json
    from profiles.report.numbers import ms
    from profiles.report.table import wrap
    from sharding.error_types import UsageError


def main() -> None:
    """Compiles the step with each set, prints the table and writes the document."""
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    output = Path(_OUTPUT_DIR.value)
    _common.check_json()
    if _step_flags.TOPOLOGY.value is None:
        raise UsageError(
            "--topology is not given, and options are those of a chip's compiler; give a slice, "
            "such as v5e:2x4 or h100:8"
        )
    slice = _slices.slice(_step_flags.TOPOLOGY.value)
    platform = toolchain_of(slice).platform
    sets = _sets(platform)
    pass_ = _steps.pass_(model := _steps.model(), _steps.chunk())
    check_compiler(slice)
    estimator = _steps.estimator(model, pass_)
    step, program = estimate_as_run(estimator, pass_), program_of(estimator, pass_)
    record = Recorder(estimator).record(step)
    check_writable(output)
    title = compiled_text.title(program, slice)
    _common.show(f"{title}\n{compiled_text.times(estimator, step)}\n")
    libraries = ("floorline", "jax", *libraries_of([slice]))
    used = {name: versions()[name] for name in libraries if name in versions()}
    case = case_of(title, record, program.config.layers)
    outcome_of = kept_outcomes(
        output / OUTCOMES, case, used, lambda one: compile_pass(estimator, pass_, one.as_dict())
    )
    found = search(sets, _shown(outcome_of, len(sets) + 1))
    results = document(
        sys.argv,
        [record],
        device_kind=estimator.chip.device_kinds[0],
        started=started,
        bandwidth=None,
        **search_document(found),
    )
    write_json(output / "options.json", results)
    if _common.JSON.value:
        write_json(_common.JSON.value, results)
    _common.show(table(found))
    _common.say(f"wrote options.json to {output}")


def _sets(platform: str) -> list[OptionSet]:
    """The sets to try on a platform.

    Raises:
      UsageError: a set is malformed, or there are none.
    """
    if _OPTIONS.value is None:
        return read_sets(Path(_CANDIDATES.value or CANDIDATES), platform)
    if _CANDIDATES.value is not None:
        raise UsageError("--options is given beside --candidates; give one of them")
    return parse_sets(_OPTIONS.value)


def _shown(
    outcome_of: Callable[[OptionSet], Outcome], alone: int
) -> Callable[[OptionSet], Outcome]:
    """The same, with a line for each outcome as it comes."""
    done: list[Outcome] = []

    def shown(options: OptionSet) -> Outcome:
        done.append(outcome := outcome_of(options))
        place = f"{len(done)} of {alone}" if len(done) <= alone else "joined"
        says = f"{ms(outcome.cost_s)} ms" if outcome.ok else f"{outcome.status}; {outcome.message}"
        _common.say(wrap(f"{place}: {options}: {says}"))
        return outcome

    return shown


if __name__ == "__main__":
    _common.start(main, _common.OF_SHAPES)
