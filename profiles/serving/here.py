"""Loads answered by a batching engine here, beside fixed batches of the same model.

Of many processes, the first drives the service and keeps the time; all run its steps.

The ideal is measured here too: steps of `Engine.advance` at a fixed batch, each as long as the
service's sequences are on average, half of its samples before the loads and half after them.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from decode.batching.batcher import Batcher
from decode.batching.request import Request
from decode.batching.shape import shape_of
from decode.engine import Engine
from decode.serving.together import LeadingBatcher, follow
from profiles.chips.chip import Peaks
from profiles.chips.local_devices import local_devices
from profiles.expected.here import slice_here
from profiles.floor.bound import floor
from profiles.floor.bytes_and_flops import PassCounter
from profiles.floor.deployment import Deployment
from profiles.floor.passes import Pass
from profiles.floor.serving import Service, serving_work
from profiles.floor.speculation import verification_floor
from profiles.measured.bandwidth import PeakMeter
from profiles.measured.peak_rates import Rates, bandwidth_of, peaks_of, sample_rates
from profiles.measured.rows import give_back
from profiles.measured.step_record import step_record
from profiles.measured.sweep_settings import Sweep
from profiles.measured.timing import RepeatedStep
from profiles.report.record import Record
from profiles.serving.arrivals import Asked, Load
from profiles.serving.compilations import counting
from profiles.serving.load_rows import departures_row, load_row
from profiles.serving.traffic import Traffic, drive
from sharding import processes

ROUNDS = 2  # of the fixed batches: before the loads and after them
BURSTS = 3  # samples of each in a round
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Asking:
    """What is to be measured.

    Attributes:
      loads: one after another.
      rows: requests that run at once, at most.
      context: tokens that each row has room for.
      token_budget: tokens of prompts between two decode steps, at most.
      departure_s: seconds between trains that are compared with joining at any step; None for none.
      seed: of the prompts.
      draft_tokens: tokens of drafts that a step verifies in each row; 0 without drafts.
    """

    loads: Sequence[Load]
    rows: int
    context: int
    token_budget: int
    departure_s: float | None = None
    seed: int = 0
    draft_tokens: int = 0


class Measured:
    """What has been measured so far.

    Args:
      sweep: the model with its layout, mesh and dtypes, peak rates and price that are given.
      engine: the model on its mesh.
      asking: the work.

    Attributes:
      traffic: loads that were answered.
      trains: those of them that a train has answered too, with its answers.
    """

    def __init__(self, sweep: Sweep, engine: Engine, asking: Asking):
        self.sweep, self.engine, self.asking = sweep, engine, asking
        self.traffic: list[Traffic] = []
        self.trains: list[tuple[Traffic, Traffic]] = []
        self._rates: Rates = {}
        some = shape_of(engine, self.rows, asking.context, asking.token_budget).steps[:1]
        keys = [(n, load.mean_context) for n in (*some, self.rows) for load in asking.loads]
        keys += [self.full(load) for load in asking.loads]
        self._fixed = {
            key: RepeatedStep(engine, *key, asking.context) for key in dict.fromkeys(sorted(keys))
        }

    @property
    def rows(self) -> int:
        """Rows of the service."""
        return self.asking.rows

    def full(self, load: Load) -> tuple[int, int]:
        """Batch and context of the full steps of a load."""
        batch = min(load.concurrency or self.rows, self.rows)
        multiple = self.engine.placement.multiple("B")
        return -(-batch // multiple) * multiple, load.mean_context

    def sample(self, say: Say) -> None:
        """Times all fixed batches once more, and the peak rates."""
        meter = PeakMeter(self.engine.mesh, self.engine.dtypes.dtype)
        sample_rates(self._rates, meter, 1, jnp.dtype(self.engine.dtypes.dtype).name)
        del meter
        for step in self._fixed.values():
            say(f"timing a fixed batch: {step}")
            step.compile()
            if not step.samples:
                step.lengthen(self.sweep.seconds / (ROUNDS * BURSTS * len(self._fixed)))
            for _ in range(BURSTS):
                step.sample()
            step.release()
            give_back()

    @property
    def bandwidth(self) -> dict:
        """The peak rates of floors, as a document has them."""
        return bandwidth_of(self.sweep, self._rates)

    def points(self) -> list[Record]:
        """The records of the fixed batches."""
        peaks = peaks_of(self.sweep, self.bandwidth, self.engine)
        return [self._record(key, peaks) for key in self._fixed]

    def load(self) -> list[dict]:
        """The loads as the document has them."""
        peaks = peaks_of(self.sweep, self.bandwidth, self.engine)
        price, chips = self.sweep.price, -(-self.engine.mesh.size // peaks.devices_per_chip)
        found, one_by_one = [], not self.asking.draft_tokens
        for traffic in self.traffic:
            full, load = self.full(traffic.load), traffic.load
            row = load_row(
                traffic,
                self._record(full, peaks),
                self.rows,
                self._step_s(load.mean_context),
                service_floor_s(self.engine, peaks, full[0], load) if one_by_one else None,
                price and price * chips / 3600,
                None if one_by_one else self._verification_floor_s(full, peaks),
            )
            found.append(row | {"token_budget": self.asking.token_budget})
        return found

    def departures(self) -> list[dict]:
        """Arrivals that were answered in both ways, as the document has them."""
        return [departures_row(*both, self.asking.departure_s) for both in self.trains]

    def _verification_floor_s(self, full: tuple[int, int], peaks: Peaks) -> float:
        """Seconds of the floor of a full step, of a batch and a context, that verifies drafts."""
        engine, tokens = self.engine, self.asking.draft_tokens + 1
        counter = PassCounter(engine.config, engine.placement, engine.dtypes)
        return verification_floor(counter, peaks, Pass(*full, tokens, slots=self.asking.context))

    def _step_s(self, context: int) -> dict[int, float]:
        """Seconds of the steps of fixed batches at a context, by their rows."""
        timed = {rows: step.samples for (rows, at), step in self._fixed.items() if at == context}
        return {rows: float(np.median(samples)) for rows, samples in timed.items()}

    def _record(self, key: tuple[int, int], peaks: Peaks) -> Record:
        batch, context = key
        step = self._fixed[key]
        return step_record(
            self.engine,
            peaks,
            Pass(batch, context, slots=step.slots),
            samples=step.samples,
            steps_per_sample=step.burst,
            price_per_chip_hour=self.sweep.price,
        )


def measure(measured: Measured, say: Say, done: Callable[[str, int], None]) -> Iterator[None]:
    """Answers all loads; yields after each, and once more when the fixed batches are timed again.

    Args:
      measured: the work, which gets what was measured.
      say: called with a line that says what is being done.
      done: told the load and how many of its requests have ended.
    """
    measured.sample(say)
    asking, engine = measured.asking, measured.engine
    begun = time.perf_counter()
    say(f"compiling a service of {asking.rows} rows")
    sizes = asking.rows, asking.context, asking.token_budget
    batcher = Batcher(engine, *sizes, draft_tokens=asking.draft_tokens)
    batcher.warm_up()
    say(f"the service is compiled after {time.perf_counter() - begun:.0f} s")
    if processes.is_first():
        yield from _answer_all(measured, LeadingBatcher(batcher), say, done)
    else:
        follow(batcher)
    del batcher
    give_back()
    measured.sample(say)
    yield


def _answer_all(
    measured: Measured, batcher: LeadingBatcher, say: Say, done: Callable[[str, int], None]
) -> Iterator[None]:
    """Answers all loads in process 0, and yields after each."""
    asking, engine = measured.asking, measured.engine
    draw = Prompts(engine.config.vocabulary, asking.seed)
    first = Load("closed", [Asked(min(16, asking.context - 2), 2)] * asking.rows, asking.rows)
    drive(batcher, first, draw.requests(first))
    for load in asking.loads:
        say(f"{load}: {len(load.asked)} requests")
        traffic = answer(batcher, load, draw, done=lambda n, load=load: done(str(load), n))
        measured.traffic.append(traffic)
        if asking.departure_s is not None and load.arrivals != "closed":
            say(f"{load}, departures each {asking.departure_s * 1e3:g} ms")
            train = answer(
                batcher, load, draw, departure_s=asking.departure_s, seats=asking.rows,
                done=lambda n, load=load: done(f"{load}, train", n),
            )  # fmt: skip
            measured.trains.append((traffic, train))
        yield
    batcher.end()


class Prompts:
    """Prompts of random tokens, which have no beginnings in common.

    Args:
      vocabulary: tokens are drawn below it.
      seed: of the draws.
    """

    def __init__(self, vocabulary: int, seed: int = 0):
        self._random, self._vocabulary = np.random.default_rng(seed), vocabulary

    def draw(self, length: int) -> list[int]:
        """The next prompt, of so many tokens."""
        return self._random.integers(0, self._vocabulary, length).tolist()

    def requests(self, load: Load) -> list[Request]:
        """A request for each that is asked; none ends before its limit."""
        return [
            Request(prompt=self.draw(each.prompt_length), max_new_tokens=each.generated_tokens)
            for each in load.asked
        ]


def answer(batcher: LeadingBatcher, load: Load, draw: Prompts, **how) -> Traffic:
    """Answers one load, and counts what was compiled meanwhile; `how` is for `drive`."""
    requests = draw.requests(load)
    with counting() as counter:
        traffic = drive(batcher, load, requests, **how)
    traffic.compiled = counter.programs
    return traffic


def service_floor_s(engine: Engine, peaks: Peaks, concurrency: int, load: Load) -> float:
    """Seconds of each token in the floor of a service, prompts riding along with its steps."""
    placement = engine.placement
    deployment = Deployment(
        model=engine.config,
        slice=slice_here(placement.devices, peaks, engine.dtypes),
        dtypes=engine.dtypes,
        calibration=local_devices(placement.devices).calibration,
        layout=placement.layout,
        mesh=placement.mesh,
    )
    work = serving_work(deployment, Service(concurrency, *load.mean_lengths), concurrency)
    return floor(work.beside, peaks).seconds / concurrency
