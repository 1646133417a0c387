"""Speculation in a run of generate.py: its draft, and what it gained beside the least of a step."""

import _common
import _draft_flags
import _engines
import numpy as np
from _generation import Run

from decode.drafts import Draft, ModelDraft, NgramDraft, check_takes_back, check_vocabulary
from decode.engine import Engine
from decode.generate import Request, cache_sizes
from decode.load import ModelSource, find_source
from decode.speculation import Tally
from profiles.chips.chip import Peaks
from profiles.compiled.inspection import PassProgram
from profiles.explained.rates import rates_of
from profiles.floor.bytes_and_flops import PassCounter
from profiles.floor.passes import Pass
from profiles.floor.speculation import (
    draft_floor,
    draft_step,
    verification,
    verification_floor,
)
from profiles.measured.step_record import cache_resident
from profiles.report.numbers import ms, number
from sharding import processes
from sharding.error_types import UsageError


def draft_source(name: str, target: ModelSource, request: Request) -> ModelSource | None:
    """The smaller model that ``--draft`` names, not loaded; None for n-grams.

    Raises:
      UsageError: there is no such model, or it cannot draft for the target or take the request.
    """
    check_takes_back(target.config)
    if name == _draft_flags.NGRAM:
        return None
    source = find_source(
        name,
        random_weights=_common.RANDOM_WEIGHTS.value,
        report=_common.say,
        accept_terms=_common.ACCEPT_TERMS.value,
    )
    check_vocabulary(source.config, target.config)
    check_takes_back(source.config)
    request.check(source.config)
    return source


def make_draft(
    source: ModelSource | None,
    count: int,
    engine: Engine,
    request: Request,
    seed: int,
) -> Draft:
    """The draft for an engine, on the same devices; a smaller model in a layout of its own.

    Raises:
      FloorlineError: the smaller model does not fit beside the model and its cache.
    """
    if source is None:
        return NgramDraft(engine, count)
    longest = max(map(len, request.prompts))
    step = Pass(len(request.prompts), context=longest)
    placed = _engines.place(source, [[dict(engine.mesh.shape)]], [step])
    sizes = cache_sizes(engine.config, engine.placement, request)
    whole = engine.cache_bytes(*sizes, spare=count) / processes.count()  # is not there yet
    more = {"spare": count, "beside": whole / sizes[0]}
    return ModelDraft(placed.load(*sizes, longest, engine.chunk, seed, **more), engine, count)


def gain(run: Run, tally: Tally, draft: Draft, engine: Engine) -> str:
    """What drafts came to, and the floor of a step beside its measured median."""
    if not tally.steps:
        return "draft: one token is chosen from the prompt alone; there was nothing to propose"
    tokens, accepted = tally.tokens_per_step, tally.acceptance
    text = f"draft: {number(100 * accepted)}% of {tally.drafted} tokens accepted"
    text += f", {number(tokens)} tokens a step"
    median = float(np.median(run.step_seconds))
    measured = f"; measured {ms(median)} ms a step, {ms(median / tokens)} ms per token"
    rows, multiple = len(run.request.prompts), engine.placement.multiple("B")
    rows = -(-rows // multiple) * multiple
    step = Pass(rows, run.cached() // rows, draft.count + 1)
    program = PassProgram(
        config=engine.config, placement=engine.placement, dtypes=engine.dtypes, pass_=step
    )
    try:
        peaks, rates = rates_of(program, None, None, None)
    except UsageError:  # a chip whose rates are not known has no floor
        return text + measured
    if resident := _cache_resident(draft, engine, peaks, step):
        return f"{text}; {resident}{measured}"
    least = verification_floor(_counter(engine), peaks, step)
    if isinstance(draft, ModelDraft):
        least += draft_floor(_counter(draft.engine), peaks, step)
    text += f"; floor of such a step {ms(least)} ms, so {ms(least / tokens)} ms per token"
    return f"{text} ({rates['source']} rates){measured}"


def _cache_resident(draft: Draft, engine: Engine, peaks: Peaks, step: Pass) -> str:
    """Why such a step has no floor, where what it or the draft reads may stay in the cache."""
    whose = {"such a step": verification(_counter(engine), step)}
    if isinstance(draft, ModelDraft):
        whose["the draft's steps"] = draft_step(_counter(draft.engine), step)
    for words, counts in whose.items():
        if message := cache_resident(counts, peaks):
            return f"no floor of {words} (cache_resident: {message})"
    return ""


def _counter(engine: Engine) -> PassCounter:
    return PassCounter(engine.config, engine.placement, engine.dtypes)
