"""Plan a deployment with no chips at hand: which slice, layout, batch and types, at what cost.

Compares slices of up to 64 chips of every kind with a listed price, all layouts and meshes, weights
and caches in bfloat16 and int8, and batches (powers of two, one and a half times those, and the
largest that fits). Slices may also be stages of a pipeline, up to eight of them, each with a part
of the layers, where the rate of the network between slices is known. If one slice of a pipeline is
compared alone, too, then of the pipeline only batches are looked at that this slice does not hold:
others are faster there and no dearer.

Prints the Pareto front of expected step time and expected cost; the cheapest plan that meets the
targets, with its floor and expected terms; and why similar plans lost.

Floor: the least a step can take, at the chip's published peaks; of a pipeline it has hops only if
--hop_ms is given. Expected: at the rates and fixed times of a calibration, which the output names.
Both are of a decode step with --context cached tokens per sequence; or with --prompt_length and
--generated_tokens of a step of a service in steady state, which chunks of the prompts that join
ride along with: what they cost is a part of the price of a generated token (estimate.py
--phase=serving). Nothing here is measured.

Examples:
  python scripts/plan.py --model=llama3.1-70b --context=8192 --max_step_ms=20
  python scripts/plan.py --model=mixtral-8x7b --prompt_length=4000 --generated_tokens=500 \\
      --max_step_ms=15 --max_first_token_ms=500 --budget_per_hour=60
  python scripts/plan.py --model=deepseek-v3-even --chip=v5p,h200 --weight_dtype=int8 --max_chips=64
  python scripts/plan.py --model=llama3-8b --topology=v5e:2x2,v5e:2x4 --price_per_chip_hour=0.9
  python scripts/plan.py --model=deepseek-v3-even --topology=gb200:72,gb200:72*2 \\
      --weight_dtype=fp8 --price_per_chip_hour=2.2 --hop_ms=2.5
"""

import datetime
import functools
import gc
import math
import sys

import _array_flags
import _common
import _slice_flags
from absl import flags

_MOST = 64  # chips of the largest slice to consider, unless a flag asks for more
STAGES = 1, 2, 4, 8
_CONTEXT = flags.DEFINE_integer(
    "context",
    None,
    "Tokens in each sequence's cache; by default 2048, or with --generated_tokens all from the "
    "prompt's to the whole answer's.",
    1,
)
_PROMPT = flags.DEFINE_integer("prompt_length", None, "Tokens of a prompt.", 2)
_GENERATED = flags.DEFINE_integer(
    "generated_tokens",
    None,
    "Tokens of an answer; the cache has room for it and the prompt, and steps have prompts beside "
    "them, one for each answer.",
    1,
)
_STEP = flags.DEFINE_float(
    "max_step_ms", None, "Expected time from a token to the next, at most: a step's."
)
_FIRST = flags.DEFINE_float(
    "max_first_token_ms",
    None,
    "Expected time of one prompt's prefill, at most; of --prompt_length or --context tokens.",
)
_BUDGET = flags.DEFINE_float("budget_per_hour", None, "USD per hour of all chips, at most.")
_CHIPS = flags.DEFINE_integer(
    "max_chips",
    None,
    f"Most chips, of a pipeline those of all its stages; by default {_MOST} of slices that no "
    "--topology names.",
    1,
)
_CHIP = flags.DEFINE_list(
    "chip", None, "Short names of the chips to compare; by default all with a listed price."
)
_TOPOLOGY = flags.DEFINE_list(
    "topology",
    None,
    "Slices to compare, such as v5e:4x4,h100:8; v5e:4x4*2 is two of them and the network between.",
)
_STAGES = flags.DEFINE_list(
    "stages",
    list(map(str, STAGES)),
    "Numbers of slices that layers may be divided over, as stages of a pipeline; 1 is none.",
)
_HOP_MS = flags.DEFINE_float(
    "hop_ms",
    None,
    "Milliseconds that a hop between stages takes at least, which floors have, too; by default "
    "expected times have what the calibration has for a collective between slices.",
)
_KV_DTYPE = flags.DEFINE_list(
    "kv_dtype", ["bfloat16", "int8"], "Dtypes of the KV cache to compare."
)
_array_flags.leave_open()

if __name__ == "__main__":
    for name in _common.OF_SHAPES:
        flags.declare_key_flag(name)
    for module in (_array_flags, _slice_flags):
        flags.adopt_module_key_flags(module)

with _common.importing(__name__):
    import _dtypes
    import _layouts
    import _slices

    from model.lengths import check_length, check_lengths
    from profiles.chips.chip import Chip, Price, chips, find_chip
    from profiles.chips.slices import MOST_SLICES, Slice, joined_slices_of, slices_of
    from profiles.expected.estimate_record import basis
    from profiles.expected.text import EXPERTS, chunk_notes
    from profiles.floor.deployment import Model
    from profiles.floor.serving import Service
    from profiles.plan.search import Search, Targets
    from profiles.plan.space import Space
    from profiles.plan.text import choice_words, front_table, plan, record
    from profiles.report.document import document
    from profiles.report.files import write_json
    from profiles.report.numbers import several
    from sharding.error_types import UsageError


def main() -> None:
    """Prints the front, the choice and the plans that lost."""
    gc.disable()  # a plan makes many small objects, few of them in cycles
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    _common.check_json()
    model = _slices.model()
    context, slots = _sizes(model)
    targets = _targets(context)
    space = _space(model, context, slots, targets.prompt)
    _check_stages(space)
    found = plan(space, targets)
    # What the table does not show is found for programs alone.
    records = [record(point, bool(_common.JSON.value)) for point in found.front]
    if _common.JSON.value:
        results = document(
            sys.argv,
            records,
            started=started,
            **basis(found.choice.estimate().deployment),
            choice=record(found.choice),
            pareto=records,
            rejected=[lost._asdict() for lost in found.rejected],
        )
        write_json(_common.JSON.value, results)
    _common.show(_title(space))
    _common.show("\n" + front_table(records, found.front.index(found.choice)))
    _common.show("\n" + choice_words(found.choice, targets, Search(space, targets)))
    _common.show("\n" + "\n".join(f"  {lost.what}: {lost.why}" for lost in found.rejected))
    _common.show("\n" + _sources(found.choice.cell.slice.chip, bool(space.model.experts)))
    for note in [] if space.service else chunk_notes(space.model, [space.context]):
        _common.show(note)
    if space.service:
        _common.show(
            f"batches fit with caches that have room for {space.slots:,} tokens from the "
            "beginning; estimate.py --phase=serving counts what they fill on average, and fits more"
        )
    if engine := _slices.engine_note(found.choice.estimate().deployment):
        _common.show(engine)


def _space(model: Model, context: int, slots: int, prompt: int | None) -> Space:
    """The space that the flags leave to choose from, with room for a prompt of `prompt` tokens."""
    wanted = _layouts.wanted(model)
    return Space(
        model=model,
        slices=_priced(),
        dtype_sets=tuple(_dtypes.combined(_KV_DTYPE.value)),
        layouts=tuple(wanted),
        calibration=functools.cache(lambda name: _slices.calibration(find_chip(name))),
        context=context,
        slots=slots,
        experts=_slice_flags.EXPERTS.value,
        prompt=prompt,
        service=_GENERATED.value and Service(None, _PROMPT.value, _GENERATED.value),
        stages=_stages(),
        hop_s=None if _HOP_MS.value is None else _HOP_MS.value / 1e3,
    )


def _stages() -> tuple[int, ...]:
    """Numbers of stages to compare.

    Raises:
      UsageError: they are no numbers of stages, or a hop takes no time.
    """
    counts = tuple(sorted({*_common.integers("stages", _STAGES.value)}))
    if max(counts) > MOST_SLICES:
        raise UsageError(f"--stages is {max(counts)}; use {MOST_SLICES} at most")
    hop = _HOP_MS.value
    if counts == (1,):
        _common.refuse(["hop_ms"], "nothing is a pipeline with --stages=1")
    if hop is not None and not 0 <= hop < math.inf:
        raise UsageError(f"--hop_ms is {hop:g}; use a number, 0 or more")
    return counts


def _sizes(model: Model) -> tuple[int, int]:
    """Tokens in the cache, and tokens that it has room for."""
    prompt, generated, context = _PROMPT.value, _GENERATED.value, _CONTEXT.value
    if generated is not None and prompt is None:
        raise UsageError(f"--generated_tokens is {generated}, of no prompt; give --prompt_length")
    if context is not None and generated is not None:
        raise UsageError(f"--context is {context}, beside --generated_tokens; give one of them")
    if prompt is not None:
        check_lengths(model, prompt, generated or 1)
        if context is None:
            return prompt + (generated or 1) // 2, prompt + (generated or 1)
    if context is None:
        context = min(2048, getattr(model, "max_context", math.inf) - 1)
    check_length(model, "--context", context, 1)
    return context, max(context, prompt or 0) + 1


def _targets(context: int) -> Targets:
    """The targets of the flags; a prompt is as long as the context if its length is not given.

    Raises:
      UsageError: a target is not a positive number.
    """
    for flag in (_STEP, _FIRST, _BUDGET):
        if flag.value is not None and not 0 < flag.value < float("inf"):
            raise UsageError(f"--{flag.name} is {flag.value}; use a positive number")
    prompt = _PROMPT.value
    if _FIRST.value is not None and prompt is None:
        prompt = context
    return Targets(
        step_s=_STEP.value and _STEP.value / 1e3,
        prompt=prompt,
        first_token_s=_FIRST.value and _FIRST.value / 1e3,
        chips=_CHIPS.value,
        usd_per_hour=_BUDGET.value,
    )


def _priced() -> tuple[tuple[Slice, Price], ...]:
    """The slices to compare, each with the price of a chip-hour."""
    named = [_slices.slice(text) for text in _TOPOLOGY.value or ()]
    largest = max(_MOST, _CHIPS.value or 0)
    asked = [find_chip(name) for name in _CHIP.value or ()]
    every = asked
    if not asked and not named:
        every, unpriced, unable = _default_chips()
        _slices.check_given((Slice(chip, (1,)) for chip in every), "--chip")
        _common.say(f"left out, because no on-demand price{_slices.whose()} is listed: {unpriced}")
        if unable:
            _common.say(f"left out, because they do not multiply in {_multiplied()}: {unable}")
    offered = []
    for chip in map(_slices.overridden, every):
        offered += slices_of(chip, largest) + joined_slices_of(chip, _stages(), largest)
    together = list(dict.fromkeys(named + offered))
    _slices.check_given(together, "--chip")
    return tuple((slice, _price(slice.chip)) for slice in together)


def _check_stages(space: Space) -> None:
    """Refuses numbers of stages that no slice, or no layers, can be divided over.

    Raises:
      UsageError: there is nothing to compare for one of them.
    """
    if not _STAGES.present:
        return
    model, possible = space.model, {cell.stages for cell in space.cells}
    for stages in space.stages:
        if stages > model.layers:
            raise UsageError(
                f"--stages is {stages}, but {model.name} has {several(model.layers, 'layer')}; "
                "use one stage a layer at most"
            )
        if stages not in possible:
            raise UsageError(
                f"--stages is {stages}, which no slices to compare are stages of: "
                f"{_joined(space, stages)}"
            )


def _joined(space: Space, stages: int) -> str:
    """How slices of the chips that are compared may be so many stages."""
    compared = list(dict.fromkeys(slice.chip for slice, _ in space.slices))
    for chip in compared:
        if found := joined_slices_of(chip, (stages,), stages * max(chip.wiring.domain or 0, _MOST)):
            return f"name so many with --topology, such as {found[0]}"
    names = " or ".join(chip.name for chip in compared)
    return f"the network's rate between slices of {names} is not known; give --network_bandwidth"


def _default_chips() -> tuple[list[Chip], str, str]:
    """Chips to compare if none is named; names of those without a price, and without arithmetic."""
    multiplied = _multiplied()
    priced = [chip for chip in chips() if _slices.listed_price(chip)]
    able = [chip for chip in priced if multiplied in ("", *chip.flops)]
    unpriced = ", ".join(chip.name for chip in chips() if chip not in priced)
    return able, unpriced, ", ".join(chip.name for chip in priced if chip not in able)


def _multiplied() -> str:
    """The type of few bits that ``--dtype`` asks to multiply in, or ""."""
    return _dtypes.combined(_KV_DTYPE.value)[0].multiplied


def _price(chip: Chip) -> Price:
    price = _slices.price(chip)
    if price is None:
        raise UsageError(
            f"price of {chip.name} is not listed on demand{_slices.whose()}; give "
            "--price_per_chip_hour, and --chip or --topology of it alone"
        )
    return price


def _title(space: Space) -> str:
    counts = [slice.count for slice in dict.fromkeys(slice for slice, _ in space.slices)]
    joined = sum(count > 1 for count in counts)
    slices = several(len(counts) - joined, "slice")
    if joined:
        slices += f" and {joined} of several that the network joins"
    steps = f"decode at {space.context:,} cached tokens"
    if service := space.service:
        steps = (
            f"steps of a service with prompts of {service.prompt_length:,} and answers of "
            f"{service.generated_tokens:,} tokens beside each other"
        )
    multiplied = _multiplied()
    arithmetic = f", arithmetic in {multiplied}" if multiplied else ""
    return (
        f"{space.model.name}, {steps} (room for {space.slots:,}), on {slices}{arithmetic}. Ways "
        "that no other betters in both expected step and cost; * is chosen:"
    )


def _sources(chip: Chip, mixture: bool) -> str:
    read = _slice_flags.EXPERTS.value
    experts = f"; experts that a step reads: {EXPERTS[read]} ({read})" if mixture else ""
    return (
        f"floor: peaks of {chip.name}, {chip.source}; expected: calibration "
        f"{_slices.calibration(chip).describe(chip.name)}; cost: {_slices.price_words(chip)}"
        + experts
    )


if __name__ == "__main__":
    _common.start(main, _common.OF_SHAPES)
