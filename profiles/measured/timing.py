"""Times decode steps at a fixed batch and context, in bursts, and keeps every sample.

A sample is the time of a burst of consecutive steps over their number. Steps are launched as in
generation: each gets the cache of the one before it, and only the last is waited for. On a GPU or
TPU the host needs milliseconds to launch the first step, while the device is idle, and then runs
ahead; so a burst is made much longer than a launch where there is time for it. How long the call of
that first step takes to return is kept beside each sample.

Where a dispatch is of several steps, a burst is of dispatches, the tokens of a step are fed to the
next within each, and both times are given per step: per token of a sequence.

Each sequence has tokens of its own, new ones at each step, which are on the devices before the
clock starts. With tokens fed back from step to step, all sequences would soon be the same, because
they differ by their token alone, and would all choose the same experts of a mixture.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.profiler import StepTraceAnnotation

from decode.engine import Engine
from decode.sampling import GREEDY
from model.cache import TILE
from sharding import processes
from sharding.error_types import UsageError

DRAWS = 16  # number of random batches of tokens, which steps use in turn
MIN_BURST = 4
LONG_S = 0.25
WARM_UP = 2  # steps of a first cache; a later one finds the program warm, and needs one
STEP = "step"  # what a trace calls the launch of one, for TensorBoard to group operations by


class _Burst(NamedTuple):
    """Dispatches that ran one after the other.

    Attributes:
      seconds: of all of them.
      call: seconds until the call of the first returned.
      touched: the experts that each layer read, of each dispatch.
    """

    seconds: float
    call: float
    touched: list[jax.Array | None]


@dataclasses.dataclass
class RepeatedStep:
    """One decode step at a fixed batch and context, ready to run again and again.

    Every run writes the same cache slot and attends to the same number of tokens, so that a
    step's time belongs to one context.

    Attributes:
      engine: the model on its mesh.
      batch: sequences.
      context: tokens in the cache when the step starts.
      slots: tokens of each sequence that the cache has room for.
      tokens_per_dispatch: steps that one program runs, from the context on.
      burst: number of dispatches of each sample.
      samples: seconds per step of each burst so far.
      calls: seconds until the call of each burst's first dispatch returned, per step.
      touched: for each sample, the mean number of distinct experts that a layer read, over layers
        and steps; empty for a model without experts.
    """

    engine: Engine
    batch: int
    context: int
    slots: int = 0
    tokens_per_dispatch: int = 1
    burst: int = MIN_BURST
    samples: list[float] = dataclasses.field(default_factory=list)
    calls: list[float] = dataclasses.field(default_factory=list)
    touched: list[float] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.slots = self.slots or slots_for(self.context, self.tokens_per_dispatch)
        self._tokens: Iterator[jax.Array] | None = None

    def __str__(self) -> str:
        text = f"batch {self.batch}, context {self.context}"
        several = self.tokens_per_dispatch
        return f"{text}, {several} tokens per dispatch" if several > 1 else text

    @property
    def steps_per_sample(self) -> int:
        """Steps whose mean a sample is."""
        return self.burst * self.tokens_per_dispatch

    @property
    def experts_touched(self) -> float | None:
        """The mean over all samples; None before the first and for a model without experts."""
        return float(np.mean(self.touched)) if self.touched else None

    def compile(self) -> None:
        """Allocates a cache, compiles the step if need be and runs it several times to warm up."""
        self._cache = self.engine.new_cache(self.batch, self.slots)
        self._carry = self.engine.start(np.full(self.batch, self.context, np.int32))
        if self._tokens is not None:  # a later cache gets the tokens that are next in turn
            self._run(1)
            return
        drawn = draw_tokens(self.engine.config.vocabulary, self.batch)
        self._tokens = itertools.cycle([self.engine.put(tokens) for tokens in drawn])
        self._run(WARM_UP)

    def lower(self) -> list[jax.stages.Lowered]:
        """The program of the step, ready to compile, which `compile` then finds compiled."""
        steps = self.tokens_per_dispatch
        return [self.engine.lower_decode(self.batch, self.slots, steps=steps)]

    def program(self) -> str:
        """The text of the compiled, optimized program of the step."""
        return self.lower()[0].compile().as_text()

    def lengthen(self, seconds: float) -> None:
        """Sets the dispatches of a burst, in all processes, to last `seconds` but `LONG_S` at most.

        There are `MIN_BURST` at least, or as many as last `LONG_S`.
        """
        few = self._run(1).seconds
        # Where a step is long, its launch hardly counts, and no longer burst need be timed.
        if processes.from_first_process(lambda: few > LONG_S / MIN_BURST):
            self.burst = processes.from_first_process(lambda: math.ceil(LONG_S / few))
            return
        few, more = self._run(MIN_BURST).seconds, self._run(3 * MIN_BURST).seconds
        mean = more / (3 * MIN_BURST)
        step = max((more - few) / (2 * MIN_BURST), mean / 4)  # without the first launch
        steps = math.ceil(min(seconds, LONG_S) / step)
        self.burst = processes.from_first_process(lambda: max(steps, MIN_BURST))

    def sample(self) -> None:
        """Times one more burst."""
        burst = self._run(self.burst)
        if burst.touched[0] is not None:
            self.touched.append(float(np.mean(jax.device_get(burst.touched))))
        self.samples.append(burst.seconds / self.steps_per_sample)
        self.calls.append(burst.call / self.tokens_per_dispatch)

    def rehearse(self, steps: int = MIN_BURST) -> None:
        """Runs a burst without taking a sample, for a trace."""
        self._run(steps)

    def _run(self, dispatches: int) -> "_Burst":
        touched, returned, facts = [], None, self._facts
        start = time.perf_counter()
        for number, tokens in enumerate(itertools.islice(self._tokens, dispatches)):
            carry = self._carry._replace(tokens=tokens)
            with StepTraceAnnotation(STEP, step_num=number, **facts):
                self._cache, _, emitted = self.engine.advance(
                    self._cache, carry, GREEDY, self.tokens_per_dispatch
                )
            returned = returned or time.perf_counter()
            touched.append(emitted.experts_touched)
        jax.block_until_ready(emitted)
        return _Burst(time.perf_counter() - start, returned - start, touched)

    @property
    def _facts(self) -> dict[str, str | int]:
        """What a trace says of each of its steps."""
        sizes = {"batch": self.batch, "context": self.context, "slots": self.slots}
        if self.tokens_per_dispatch > 1:
            sizes["tokens_per_dispatch"] = self.tokens_per_dispatch
        return {"model": self.engine.config.name, "devices": self.engine.mesh.size, **sizes}

    def release(self) -> None:
        """Frees the cache."""
        self._cache = self._carry = None


def slots_for(context: int, new: int = 1) -> int:
    """Slots for the context and new tokens, rounded up to a whole tile of the cache."""
    return -(-(context + new) // TILE) * TILE


def check_slots(slots: int | None, kind: str, longest: int, new: int) -> None:
    """Refuses a cache that has too little room for the longest rows of a sweep.

    Args:
      slots: tokens of each sequence that it has room for; None for just enough.
      kind: what their length is: ``context`` or ``prompt_length``.
      longest: that length.
      new: tokens that come to it.

    Raises:
      UsageError: it has less room than they take.
    """
    needed = longest + new
    beside = " and the new one" if new == 1 else f" and {new} new ones" * bool(new)
    if slots is not None and slots < needed:
        raise UsageError(
            f"slots is {slots:,}, fewer than the {needed:,} tokens of {kind} {longest:,}"
            f"{beside}; use {needed} or more"
        )


def draw_tokens(vocabulary: int, batch: int) -> list[np.ndarray]:
    """A batch's tokens for each of `DRAWS` steps, [B] int32, the same in every process.

    They are drawn uniformly, and all different if the vocabulary is large enough.
    """
    random, different = np.random.default_rng(0), min(batch, vocabulary)
    drawn = (random.choice(vocabulary, different, replace=False) for _ in range(DRAWS))
    return [np.resize(tokens, batch).astype(np.int32) for tokens in drawn]
