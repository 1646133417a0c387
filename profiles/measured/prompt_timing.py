"""Times the chunks of prompts, each at its own place in them, and keeps every sample.

A round runs a prompt's chunks one after the other in one cache, so that each finds the tokens that
those before it wrote. A chunk is run in a burst where it is short beside a launch: every run writes
the same tokens to the same slots.
"""

import dataclasses
import math
import time

import jax
import numpy as np
from jax.profiler import StepTraceAnnotation

from decode.chunks import Chunk
from decode.engine import Engine
from model.cache_write import NewTokens
from profiles.measured.timing import LONG_S, STEP, slots_for
from profiles.report.record import Record
from sharding import processes


@dataclasses.dataclass
class RepeatedChunk:
    """A chunk of prompts, ready to run again and again.

    Attributes:
      chunk: where it is in its prompts, and the tokens that it has room for.
      tokens: those of each prompt that it has.
      burst: number of runs of each sample.
      samples: seconds per run of each burst so far.
      calls: seconds until the call of each burst's first run returned.
      compiled: what its compiled program is like, for its record.
    """

    chunk: Chunk
    tokens: int
    burst: int = 1
    samples: list[float] = dataclasses.field(default_factory=list)
    calls: list[float] = dataclasses.field(default_factory=list)
    compiled: Record = dataclasses.field(default_factory=Record)


@dataclasses.dataclass
class RepeatedPrompt:
    """Prompts of one length that run chunk by chunk, ready to run again and again.

    Attributes:
      engine: the model on its mesh.
      batch: sequences.
      length: tokens of each prompt.
      slots: tokens of each sequence that the cache has room for.
      samples: seconds of all chunks together in each round so far.
      chunks: the prompts' chunks in their order, each with samples of its own.
    """

    engine: Engine
    batch: int
    length: int
    slots: int = 0
    samples: list[float] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.slots = self.slots or slots_for(self.length)
        self.chunks = [
            RepeatedChunk(chunk, min(chunk.size, self.length - chunk.start))
            for chunk in self.engine.chunks(self.length)
        ]

    def __str__(self) -> str:
        return f"batch {self.batch}, prompt {self.length}"

    def lower(self) -> list[jax.stages.Lowered]:
        """The programs of the chunks, ready to compile, which `compile` then finds compiled."""
        kinds = dict.fromkeys((each.chunk.size, each.chunk.continues) for each in self.chunks)
        return [
            self.engine.lower_prefill(self.batch, self.slots, size, continues=continues)
            for size, continues in kinds
        ]

    def compile(self) -> None:
        """Allocates a cache, compiles the programs of the chunks if need be and runs each once."""
        random, vocabulary = np.random.default_rng(0), self.engine.config.vocabulary
        self._cache = self.engine.new_cache(self.batch, self.slots)
        self._inputs = []
        for start, size, _ in (each.chunk for each in self.chunks):
            tokens = random.integers(vocabulary, size=(self.batch, size), dtype=np.int32)
            first = np.full(self.batch, start, np.int32)
            count = np.full(self.batch, min(size, self.length - start), np.int32)
            new = NewTokens(self.engine.put(first), self.engine.put(count))
            self._inputs.append((self.engine.put(tokens), new))
        self.rehearse()

    def lengthen(self, seconds: float) -> None:
        """Sets the runs of each burst, in all processes, so that a round lasts about `seconds`."""
        seconds = min(seconds / len(self.chunks), LONG_S)
        for number, each in enumerate(self.chunks):
            runs = math.ceil(seconds / self._run(number, 1)[0])
            each.burst = processes.from_first_process(lambda runs=runs: max(runs, 1))

    def sample(self) -> None:
        """Times a burst of every chunk."""
        for number, each in enumerate(self.chunks):
            seconds, call = self._run(number, each.burst)
            each.samples.append(seconds / each.burst)
            each.calls.append(call)
        self.samples.append(sum(each.samples[-1] for each in self.chunks))

    def rehearse(self) -> None:
        """Runs every chunk without taking a sample."""
        for number in range(len(self.chunks)):
            with StepTraceAnnotation(STEP, step_num=number):
                self._run(number, 1)

    def release(self) -> None:
        """Frees the cache."""
        self._cache = self._inputs = None

    def _run(self, number: int, times: int) -> tuple[float, float]:
        """Seconds of so many runs of a chunk, and until the call of the first returned.

        Each is given the cache of the one before it.
        """
        tokens, new = self._inputs[number]
        continues, returned = self.chunks[number].chunk.continues, None
        start = time.perf_counter()
        for _ in range(times):
            logits, self._cache = self.engine.run_chunk(
                self._cache, tokens, new, continues=continues
            )
            returned = returned or time.perf_counter()
        jax.block_until_ready(logits)
        return time.perf_counter() - start, returned - start
