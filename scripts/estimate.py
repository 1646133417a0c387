"""The floor and the expected time of a step, for any model on any slice; needs no devices.

Floors are lower bounds at the highest published figures of a chip: reading weights and KV cache,
arithmetic, or links, whichever takes longest. Expected times have the same terms at achieved rates,
and a fixed time for each collective and layer. Unless they are given, --layout, --attention and
--mesh are those expected to be fastest over all batches and contexts together.

--phase=serving is of a service in steady state: prompts of --prompt_length tokens join, answers of
--generated_tokens leave, and --concurrency of them are in flight, or as many as fit. Each step
gives every sequence in flight a token. The floor reads the weights once a step, and caches as full
as they are on average. Expected times have two forms: chunks of prompts ride along beside steps, or
prompts run alone between them.

More that follows from a decode step, printed below the table: --economics has batches, contexts,
traffic, prices and a mixture's experts over racks; --drafted, the batches at which speculation
pays; --held_s, what a cache costs in each memory; --served_tokens_per_s, the training that costs as
much as serving; --stages, a pipeline over slices.

Examples:
  python scripts/estimate.py --model=llama3-70b --topology=v5e:4x4 --weight_dtype=int8 --batch=1,32
  python scripts/estimate.py --model=llama3-8b --topology=h100:1,h200:1,b200:1 --context=4096
  python scripts/estimate.py --model=llama3-70b --topology=v5p:2x2x2 --phase=prefill --context=4096
  python scripts/estimate.py --model=llama3.1-70b --topology=h100:4,h200:2 --weight_dtype=fp8 \\
      --dtype=fp8 --phase=serving --concurrency=64,max --prompt_length=2048 --generated_tokens=512
  python scripts/estimate.py --model=deepseek-v3-even --topology=gb200:72 --weight_dtype=fp8 \\
      --economics
  python scripts/estimate.py --model=llama3-8b --topology=h100:1 --drafted=3 --acceptance=0.8
  python scripts/estimate.py --model=llama3-70b --topology=v6e:4x4 --layout=weight_stationary_2d \\
      --mesh=4x2x2 --attention=batch --json=-
"""

import datetime
import itertools
import math
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import _array_flags
import _common
import _economics_flags
import _slice_flags
from absl import flags

_TOPOLOGY = flags.DEFINE_list(
    "topology",
    ["v5e:4x4"],
    "Chips and shape of a slice, such as v5p:2x2x4 or h100:8; joined by commas to compare.",
)
_MESH = flags.DEFINE_string("mesh", None, "Sizes of mesh axes x, y and z; by default the best.")
_BATCH = flags.DEFINE_list("batch", ["1", "8", "64"], "Sequences per step.")
_CONTEXT = flags.DEFINE_list(
    "context", ["2048"], "Tokens in each sequence's cache; for prefill, tokens of each prompt."
)
_CACHED = flags.DEFINE_integer(
    "cached", 0, "For prefill: tokens in the cache before the prompt.", 0
)
_PHASE = flags.DEFINE_enum(
    "phase",
    "decode",
    ["decode", "prefill", "serving"],
    "Which passes: decode steps, prompts, or steps of a service that prompts join and answers "
    "leave.",
)
_CONCURRENCY = flags.DEFINE_list(
    "concurrency",
    ["max"],
    "For serving: sequences in flight; max for as many as fit with caches as full as they are on "
    "average.",
)
_PROMPT = flags.DEFINE_list("prompt_length", ["1024"], "For serving: tokens of each prompt.")
_GENERATED = flags.DEFINE_list("generated_tokens", ["1024"], "For serving: tokens of each answer.")
_ECONOMICS = flags.DEFINE_bool(
    "economics",
    False,
    "Also report critical batch, balanced context, batching gain, schedules, prices of speed and "
    "of prompts, and pipelines.",
)
_array_flags.define_step_flags()
_array_flags.leave_open()

if __name__ == "__main__":
    for name in _common.OF_SHAPES:
        flags.declare_key_flag(name)
    for module in (_array_flags, _economics_flags, _slice_flags):
        flags.adopt_module_key_flags(module)

with _common.importing(__name__):
    import _answers
    import _dtypes
    import _layouts
    import _slices

    from model.lengths import check_length, check_lengths
    from profiles.expected import service_text
    from profiles.expected import text as estimate_text
    from profiles.expected.candidates import candidates
    from profiles.expected.estimate import Estimate, Estimator, best
    from profiles.expected.estimate_record import Recorder, basis
    from profiles.expected.remedies import remedy
    from profiles.expected.serving import Served, serve
    from profiles.floor.deployment import Model
    from profiles.floor.passes import Pass
    from profiles.floor.serving import Service
    from profiles.report.document import document
    from profiles.report.files import write_json
    from profiles.report.numbers import number
    from profiles.report.record import Record
    from profiles.report.table import wrap
    from sharding import processes
    from sharding.error_types import UsageError
    from sharding.layout import Layout
    from sharding.mesh import parse_mesh


Chosen = TypeVar("Chosen")
_OF_SERVICES = "concurrency", "prompt_length", "generated_tokens"
_OF_STEPS = _economics_flags.ANSWERED
_OF_PASSES = "batch", "context", "cached", "economics", *_OF_STEPS


def main() -> None:
    """Makes the estimates and prints them."""
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    _common.check_json()
    if _PHASE.value == "serving":
        _common.refuse(_OF_PASSES, "--phase is serving, of --concurrency and two lengths")
        _serving(started)
        return
    _common.refuse(_OF_SERVICES, f"it is of services, and --phase is {_PHASE.value}")
    _passes(started)


def _passes(started: str) -> None:
    """Estimates of decode steps or prompts."""
    batches = _common.integers("batch", _BATCH.value)
    model = _slices.model()
    prefill = _PHASE.value == "prefill"
    if _CACHED.value and not prefill:
        raise UsageError(f"--cached is {_CACHED.value} of no prompt; give --phase=prefill with it")
    if _CACHED.value:
        check_length(model, "--cached", _CACHED.value, more=2)
    contexts = _common.lengths(_CONTEXT, model, prefill, _CACHED.value)
    if prefill and min(contexts) < 2:
        raise UsageError(f"--context is {min(contexts)} with --phase=prefill; use 2 tokens or more")
    if prefill and _ECONOMICS.value:
        raise UsageError("--economics is true, but of decode steps; leave out --phase=prefill")
    if prefill:
        _common.refuse(_OF_STEPS, "it is of decode steps, and --phase is prefill")
    _economics_flags.check()
    if _economics_flags.STAGES.value is None and not _ECONOMICS.value:
        _common.refuse(["hop_ms"], "nothing is a pipeline without --stages")
    wanted = _layouts.wanted(model)
    extremes = itertools.product({min(batches), max(batches)}, {min(contexts), max(contexts)})
    passes = [_pass(*each) for each in extremes]
    estimators = _on_slices(model, wanted, lambda offered: best(offered, passes))
    for one in estimators:
        _answers.stages(one, _ECONOMICS.value)  # mistakes end before anything is printed
    estimated = [
        (one, [one.estimate(_pass(b, c)) for c in contexts for b in batches]) for one in estimators
    ]
    answered = [
        {} if prefill else _answers.asked(one, passes[-1], _ECONOMICS.value)
        for one, passes in estimated
    ]
    points = []
    for (one, passes), found in zip(estimated, answered, strict=True):
        *others, last = _records(one, passes, wanted)
        points += [*others, last | Record(economics=_answers.as_fields(found))]
    notes = estimate_text.notes(points)
    notes += [] if prefill else estimate_text.chunk_notes(model, contexts)
    _show(started, points, estimators, estimate_text.table(points), notes)
    _show_consequences(estimated, answered)


def _show_consequences(
    estimated: list[tuple[Estimator, list[Estimate]]], answered: list[dict[str, Any]]
) -> None:
    """Prints what follows from steps at the last context, as far as flags ask for it."""
    for (one, passes), found in zip(estimated, answered, strict=True):
        context = passes[-1].pass_.context
        steps = [each for each in passes if each.pass_.context == context]
        lines = estimate_text.consequences(one, steps) if _ECONOMICS.value else []
        lines += _answers.in_words(found, steps[-1])
        if lines:
            _common.show(f"{one.deployment.slice}, {one.deployment.dtypes}:")
            _common.show("\n".join(f"-  {line}" for line in lines))


def _serving(started: str) -> None:
    """Estimates of services.

    Raises:
      UsageError: nothing that is asked for fits.
    """
    model = _slices.model()
    services = _services(model)
    wanted = _layouts.wanted(model)
    found = _on_slices(model, wanted, lambda offered: serve(offered, services))
    together = [each for here in found for each in here]
    if not any(each.estimate.fits for each in together):
        raise UsageError(service_text.shortage(together[0], wanted))
    estimators = [here[0].chosen for here in found]
    points = [
        _service_record(recorder, each, wanted)
        for recorder, here in zip(map(Recorder, estimators), found, strict=True)
        for each in here
    ]
    notes = service_text.notes(points, together)
    _show(started, points, estimators, service_text.table(points), notes)


def _service_record(recorder: Recorder, served: Served, wanted: list[Layout | None]) -> Record:
    record = recorder.record_service(served.estimate)
    if served.estimate.fits:
        return record
    return record | Record(message=service_text.shortage(served, wanted))


def _services(model: Model) -> list[Service]:
    """The services that the flags ask for; lengths by default are reduced to fit the model."""
    given = [text.strip() for text in _CONCURRENCY.value]
    if not given or not all(re.fullmatch("max|0*[1-9][0-9]{0,17}", text) for text in given):
        raise UsageError(
            f"--concurrency is {','.join(given)!r}; use positive integers or max, joined by commas"
        )
    counts = [None if text == "max" else int(text) for text in given]
    half = getattr(model, "max_context", math.inf) // 2
    prompts, answers = (
        [
            count if flag.present else min(count, half)
            for count in _common.integers(name, flag.value)
        ]
        for name, flag in zip(_OF_SERVICES[1:], (_PROMPT, _GENERATED), strict=True)
    )
    for prompt in prompts:
        check_lengths(model, prompt, max(answers))
    lengths = itertools.product(prompts, answers, dict.fromkeys(counts))
    return [Service(count, prompt, answer) for prompt, answer, count in lengths]


def _show(
    started: str,
    points: list[Record],
    estimators: list[Estimator],
    table: str,
    notes: list[str],
) -> None:
    """Writes the document if one is wanted, then prints title, table and notes."""
    if _common.JSON.value and processes.is_first():
        # With several chips, fields that the document has once are those of the first.
        results = document(sys.argv, points, started=started, **basis(estimators[0].deployment))
        write_json(_common.JSON.value, results)
    title = estimate_text.title(points, estimators, _slices.price_words)
    _common.show(title + "\n\n" + table)
    engines = filter(None, (_slices.engine_note(each.deployment) for each in estimators))
    if notes := [*notes, *(wrap(f"-  {each}") for each in dict.fromkeys(engines))]:
        _common.show("\n".join(notes))


def _on_slices(
    model: Model,
    wanted: list[Layout | None],
    choose: Callable[[list[Estimator]], Chosen],
) -> list[Chosen]:
    """What is chosen of the candidates for each slice and set of dtypes."""
    dtype_sets = _dtypes.dtype_sets(here=False, counted=True, estimated=True)
    slices = list(dict.fromkeys(map(_slices.slice, _TOPOLOGY.value or [""])))
    _slices.check_given(slices, "--topology")
    shapes = [parse_mesh(_MESH.value)] if _MESH.value else None
    return [
        choose(candidates(_slices.deployment(model, slice, dtypes), wanted, shapes))
        for slice in slices
        for dtypes in dtype_sets
    ]


def _pass(batch: int, context: int) -> Pass:
    """A decode step at this context, or a prefill of prompts of this length."""
    if _PHASE.value == "decode":
        return Pass(batch, context)
    return Pass(batch, _CACHED.value, context)


def _records(
    estimator: Estimator, passes: list[Estimate], wanted: list[Layout | None]
) -> list[Record]:
    recorder, remedies = Recorder(estimator), {}
    records = []
    for each in passes:
        record = recorder.record(each)
        if not each.fits:
            record |= Record(message=_message(each, wanted, remedies))
        records.append(record)
    return records


def _message(step: Estimate, wanted: list[Layout | None], remedies: dict) -> str:
    """A message that says how much memory is missing, and what to do about it."""
    deployment, pass_ = step.deployment, step.pass_
    if pass_ not in remedies:
        remedies[pass_] = remedy(step, wanted)
    beyond = step.resident - deployment.slice.chip.recommended.capacity
    length = f"context {pass_.context:,}"
    if pass_.over_prompts:
        length = f"{pass_.context:,} cached tokens and {pass_.tokens:,} of a prompt"
    return (
        f"batch {pass_.batch:,} at {length} is {number(beyond / 1e9)} GB per chip more than "
        f"{deployment.slice} has with weights in {deployment.dtypes.weights.name}; "
        f"{remedies[pass_]}"
    )


if __name__ == "__main__":
    _common.start(main, _common.OF_SHAPES)
