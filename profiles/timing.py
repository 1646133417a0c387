"""Times decode steps: compile first, warm up, hold the context, interleave, keep every sample.

A sample is a burst of consecutive steps, launched as generation launches them (each fed the token
before it, none waited for until the last), over the number of steps.
"""

import dataclasses
import time

import jax
import numpy as np

from decode.engine import Engine
from decode.sampling import GREEDY

BURST = 4
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
      samples: seconds per step of each burst so far.
      experts_touched: distinct experts that a layer read in the newest step, on average over
        layers; None before the first step and for a model without experts.
    """

    engine: Engine
    batch: int
    context: int
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

    def sample(self) -> None:
        """Times one more burst."""
        self.samples.append(self._run(BURST) / BURST)

    def rehearse(self) -> None:
        """Runs a burst that does not count, for a trace."""
        self._run(BURST)

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
