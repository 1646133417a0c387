"""Times decode steps: compile first, warm up, hold the context, interleave, keep every sample.

A sample is a burst of consecutive steps, launched as generation launches them (each fed the token
before it, none waited for until the last), over the number of steps. On a GPU or TPU the host needs
milliseconds to launch the first, in which the device has nothing to do, and runs ahead after that;
so a burst is long beside a launch where there is time for it.
"""

import dataclasses
import math
import time

import jax
import numpy as np

from decode.engine import Engine
from decode.sampling import GREEDY
from sharding import processes

LEAST_BURST = 4
LONG_S = 0.25
WARM_UP = 2


@dataclasses.dataclass
class HeldStep:
    """One decode step at a fixed batch and context, ready to run again and again.

    Every run writes the same cache slot and attends to the same number of tokens, so that a
    step's time belongs to one context.

    Attributes:
      engine: the model on its mesh.
      batch: sequences.
      context: tokens in the cache when the step starts.
      burst: steps of each sample.
      samples: seconds per step of each burst so far.
      experts_touched: distinct experts that a layer read in the newest step, on average over
        layers; None before the first step and for a model without experts.
    """

    engine: Engine
    batch: int
    context: int
    burst: int = LEAST_BURST
    samples: list[float] = dataclasses.field(default_factory=list)
    experts_touched: float | None = None

    @property
    def slots(self) -> int:
        """Room for the context and the new token, in whole rows of 64."""
        return -(-(self.context + 1) // 64) * 64

    def compile(self) -> None:
        """Allocates the cache, compiles the step and runs it until it is warm."""
        self._cache = self.engine.new_cache(self.batch, self.slots)
        self._carry = self.engine.start(np.full(self.batch, self.context, np.int32))
        self._run(WARM_UP)

    def program(self) -> str:
        """The compiled step, optimized, as text."""
        step = self.engine.lower_advance(self._cache, self._carry, GREEDY)
        return step.compile().as_text()

    def lengthen(self, seconds: float) -> None:
        """Makes bursts last so long, or `LONG_S` if that is less; all processes' the same."""
        few, more = self._run(LEAST_BURST), self._run(3 * LEAST_BURST)
        mean = more / (3 * LEAST_BURST)
        step = max((more - few) / (2 * LEAST_BURST), mean / 4)  # without the launch of the first
        steps = math.ceil(min(seconds, LONG_S) / step)
        self.burst = processes.agree(lambda: max(steps, LEAST_BURST))

    def sample(self) -> None:
        """Times one more burst."""
        self.samples.append(self._run(self.burst) / self.burst)

    def rehearse(self) -> None:
        """Runs a burst that does not count, for a trace."""
        self._run(LEAST_BURST)

    def _run(self, steps: int) -> float:
        held = self._carry
        start = time.perf_counter()
        for _ in range(steps):
            self._cache, after, emitted = self.engine.advance(self._cache, self._carry, GREEDY)
            self._carry = held._replace(tokens=after.tokens)
        jax.block_until_ready(emitted)
        seconds = time.perf_counter() - start
        if emitted.experts_touched is not None:
            self.experts_touched = float(np.asarray(emitted.experts_touched).mean())
        return seconds

    def release(self) -> None:
        """Frees the cache."""
        self._cache = self._carry = None
