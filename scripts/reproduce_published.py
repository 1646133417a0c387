"""Compare published figures with this project's floors, expected times and counts.

Measured steps and services come first, a line for each, by source: measured, floor, expected, the
error of the expected time, and assumptions. Times of a service are of each generated token. Floors
are lower bounds: if a source leaves something open (context, layout, mesh, parallelism, the type of
the cache or of arithmetic), the floor is the lowest that is consistent with it. Expected times use
the constants of profiles/chips/calibrations.json; rows that these were fitted to and held-out rows
are summarized apart (python -m profiles.published.fitting has more). Then come longest contexts of
KV caches, and theoretical figures of others: by their own equations, which must give the printed
digits, and by this project's counts, with the differences named.

--cases reads measurements of your own, a JSON list of them or {"cases": [...]}:
  {"source": "mine", "locator": "run 1", "model": "llama3-70b", "topology": "h100:8",
   "layout": "weight_stationary_1d", "attention": "heads", "weight_dtype": "bfloat16",
   "phase": "decode", "batch": 8, "context": 1024, "published_s": 0.012}
model, topology, layout and attention have the values of the flags; published_s is the time of a
step, of a prefill, or of a run: a prompt and all generated tokens. prompt_length and
generated_tokens may replace a decode step's context. For a prompt, context is the number of tokens
cached before it. Null stands for a layout that is not stated. attention, kv_dtype, dtype (of
arithmetic), engine, mesh and assumed (a list of texts) may be left out. A case that cannot be used
is listed with the reason. A service, whose prompts and answers join and leave:
  {"source": "mine", "locator": "run 2", "engine": "vLLM", "model": "llama3-70b",
   "topology": "h100:8", "parallelism": "TP8", "weight_dtype": "fp8", "phase": "serving",
   "concurrency": 64, "prompt_length": 1024, "generated_tokens": 1024,
   "published": {"tokens_per_s": 2900, "per_token_s": 0.021, "first_token_s": 0.3}}
parallelism is the source's word: TP8, TP8 EP8, DEP8, or any other, of which the floor is the least
over all layouts (profiles/published/engines.json lists what words stand for, and what each engine
does that a source does not say). A concurrency of null is as many as fit. tokens_per_s is of the
whole service's generated tokens; where only per_token_s is given, times are of one sequence's.
Seconds that are given beside it are held against floors of their own. lengths may be 0.8, if
lengths are drawn evenly from 0.8 of these to these, or "at most", if these are the largest;
requests is how many there were, if fewer than fit. A case that is given twice counts once.

Exit code 1: a measurement beats its floor, no case can be used, a printed digit does not come out,
or a context is more than 1.5% off; 2: --cases cannot be read.

Examples:
  python scripts/reproduce_published.py
  python scripts/reproduce_published.py --cases=mine.json --json=-
  python scripts/reproduce_published.py --calibration=mine.json
"""

import datetime
import sys

import _common
import _slice_flags
from absl import flags

_CASES = flags.DEFINE(
    _common.PATH, "cases", None, "File of measurements to use in place of the shipped ones."
)

if __name__ == "__main__":
    for name in (*_common.OF_RUNS, "calibration"):
        flags.declare_key_flag(name)

with _common.importing(__name__):
    import _slices

    from profiles.chips.calibration import read_calibration
    from profiles.published.cases import cases_of, shipped_cases
    from profiles.published.comparison import (
        check_contexts,
        longest_contexts,
        reproduce_all,
    )
    from profiles.published.printed_figures import check_digits, figures, not_recomputed
    from profiles.published.reproduced import check_floors
    from profiles.published.text import (
        accuracy_text,
        case_records,
        contexts_text,
        figures_text,
        rates_text,
        rows_text,
    )
    from profiles.report.document import document
    from profiles.report.files import write_json
    from sharding import processes
    from sharding.error_types import FloorlineError


def main() -> None:
    """Compares all figures and prints the results."""
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    _common.check_json()
    _slices.refuse_given("chips and experts are those of the cases")
    calibration = (
        read_calibration(_slice_flags.CALIBRATION.value) if _slice_flags.CALIBRATION.value else None
    )
    own = _CASES.value is not None
    cases, unusable = cases_of(_CASES.value) if own else shipped_cases()
    rows, refused = reproduce_all(cases, calibration)
    unusable += refused
    records = case_records(rows, unusable)
    contexts, printed = ([], []) if own else (list(longest_contexts()), figures())
    if not own:
        records["longest_contexts"] = contexts
        records["reproductions"] = [figure.as_record() for figure in printed]
    if _common.JSON.value and processes.is_first():
        names = {"calibration": sorted({row.calibration.name for row in rows})}
        results = document(
            sys.argv, [], device_kind="", started=started, bandwidth=None, **names, **records
        )
        write_json(_common.JSON.value, results)
    parts = rates_text(rows), rows_text(rows, unusable), accuracy_text(rows)
    _common.show("\n\n".join(filter(None, parts)))
    if not own:
        text = contexts_text(contexts) + "\n\n" + figures_text(printed, not_recomputed())
        _common.show("\n" + text)
    if own and not rows:
        raise FloorlineError(
            f"--cases is {_CASES.value!r}, of which no case can be used; put right what is listed"
        )
    check_floors(rows)
    check_contexts(contexts)
    check_digits(printed)


if __name__ == "__main__":
    _common.start(main, _common.OF_RUNS)
