"""Engines run the same work in rounds that alternate; then what the rounds say of each.

One engine works while the others wait for their turn. Odd rounds go through the engines backwards,
so that a slow minute of the machine is no engine's own. The first round of each is not counted: it
compiles and warms up.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

from profiles.peers.engine_process import OWN, EngineError, EngineProcess
from profiles.peers.messages import About, Job, Round, Status, Work
from profiles.report.document import summarise

PAUSE_S = 0.1  # until threads of the engine before have gone to sleep

Open = Callable[[Job], contextlib.AbstractContextManager[EngineProcess]]
Say = Callable[[str], None]


@dataclasses.dataclass
class Outcome:
    """What became of one engine.

    Attributes:
      job: what it was given.
      about: what it says of itself, once it is loaded.
      start_s: seconds until it was loaded and had run its first round, when first started.
      rounds: those that count.
      status: ``ok``, or why not all rounds are there.
      message: the same in words.
    """

    job: Job
    about: About | None = None
    start_s: float | None = None
    rounds: list[Round] = dataclasses.field(default_factory=list)
    status: Status = "ok"
    message: str = ""

    @property
    def ran(self) -> bool:
        """Whether any round counts."""
        return bool(self.rounds)


def compare(
    jobs: Sequence[Job],
    work: Work,
    rounds: int,
    *,
    together: bool = True,
    say: Say = lambda text: None,
    open_process: Open = EngineProcess,
) -> list[Outcome]:
    """Runs engines in turns.

    Args:
      jobs: one for each engine. Where Floorline is the first, the others are given its dtype and
        platform if they have none of their own.
      work: what each does in each round.
      rounds: how many count.
      together: whether all engines are loaded at the same time; otherwise each is loaded anew for
        each of its rounds.
      say: shows a line to the user.
      open_process: starts an engine.

    Returns:
      An outcome for each job. An engine that fails is left out of later rounds.
    """
    outcomes = [Outcome(job) for job in jobs]
    with contextlib.ExitStack() as processes:
        turns = _Turns(work, say, open_process, processes if together else None)
        for place, outcome in enumerate(outcomes):
            if outcome.job.engine != OWN:
                outcome.job = _as_floorline(outcome.job, outcomes[0].about)
            turns.first(outcome)
            if place and outcome.status != "ok":
                say(f"{outcome.job.engine} is left out: {outcome.message}")
        for number in range(rounds):
            for outcome in outcomes[:: -1 if number % 2 else 1]:
                if outcome.status == "ok":
                    turns.counted(outcome)
            say(f"round {number + 1} of {rounds} is done")
    return outcomes


def _as_floorline(job: Job, about: About | None) -> Job:
    """The job in Floorline's dtype, on its platform."""
    if about is None:
        return dataclasses.replace(job, dtype=job.dtype or "float32")
    return dataclasses.replace(
        job, dtype=job.dtype or about.dtype, platform=job.platform or about.platform
    )


class _Turns:
    """Gives engines their turns; what fails is told in the outcome."""

    def __init__(
        self, work: Work, say: Say, open_process: Open, processes: contextlib.ExitStack | None
    ):
        self.work, self.say, self.open_process = work, say, open_process
        self.processes = processes  # those that stay; None where each turn starts its own
        self.running: dict[str, EngineProcess] = {}

    def first(self, outcome: Outcome) -> None:
        """Loads an engine and runs a round that does not count."""
        begin, name = time.perf_counter(), outcome.job.engine
        with _telling(outcome), contextlib.ExitStack() as own:
            process = own.enter_context(self.open_process(outcome.job))
            outcome.about = process.about
            process.round(self.work)
            outcome.start_s = time.perf_counter() - begin
            self.say(f"{name} is ready after {outcome.start_s:.1f} s")
            if self.processes is not None:
                self.processes.push(own.pop_all())
                self.running[name] = process

    def counted(self, outcome: Outcome) -> None:
        """Runs a round that counts."""
        with _telling(outcome), contextlib.ExitStack() as own:
            process = self.running.get(outcome.job.engine)
            if process is None:
                process = own.enter_context(self.open_process(outcome.job))
                process.round(self.work)
            time.sleep(PAUSE_S)
            outcome.rounds.append(process.round(self.work))
        if outcome.status != "ok" and outcome.job.engine in self.running:
            self.running.pop(outcome.job.engine).close()  # it must not work beside the others


@contextlib.contextmanager
def _telling(outcome: Outcome):
    try:
        yield
    except EngineError as error:
        outcome.status, outcome.message = error.status, str(error)


def engine_rows(
    outcomes: Sequence[Outcome], batch: int, end_ids: frozenset[int] = frozenset()
) -> list[dict]:
    """What programs read of each engine, times in seconds.

    `same_text` says whether its tokens are Floorline's in the `sequences_compared`, and
    `first_difference` where they first differ (sequence and token, from 0). None of them is there
    with random weights, which are others in each engine, or without Floorline.

    Args:
      outcomes: of one comparison.
      batch: sequences decoded together.
      end_ids: tokens at which Floorline's sequences are compared no further: some engines never
        take such a token, and all go on behind it.
    """
    own = _own(outcomes)
    rows = []
    for outcome in outcomes:
        row: dict = {"name": outcome.job.engine, "status": outcome.status}
        if outcome.about:
            row |= {name: getattr(outcome.about, name) for name in ("version", "device", "dtype")}
        if outcome.start_s is not None:
            row["start_s"] = outcome.start_s
        if outcome.ran:
            step = summarise([each.step_s for each in outcome.rounds])
            first = summarise([each.first_token_s for each in outcome.rounds])
            row |= {"step_s": step, "tokens_per_s": batch / step["median"], "first_token_s": first}
            if own and outcome.job.form != "random":
                row |= _same(own.rounds[0].tokens, outcome.rounds[0].tokens, end_ids)
        if outcome.message:
            row["message"] = outcome.message
        rows.append(row)
    return rows


def ratios(outcomes: Sequence[Outcome]) -> list[dict]:
    """Each peer's times over Floorline's of the same round: medians over the rounds.

    Above 1 Floorline is the faster.
    """
    own = _own(outcomes)
    found = []
    for outcome in outcomes:
        if own and outcome.ran and outcome is not own:
            pairs = list(zip(outcome.rounds, own.rounds, strict=False))
            found.append(
                {
                    "name": outcome.job.engine,
                    "step": _median([peer.step_s / mine.step_s for peer, mine in pairs]),
                    "first_token": _median(
                        [peer.first_token_s / mine.first_token_s for peer, mine in pairs]
                    ),
                }
            )
    return found


def _same(
    own: Sequence[Sequence[int]], other: Sequence[Sequence[int]], end_ids: frozenset[int]
) -> dict:
    """Whether tokens are the same; of several places where they differ, the earliest token."""
    compared = {}  # by sequence: pairs of tokens
    for sequence, (mine, its) in enumerate(zip(own, other, strict=True)):
        end = next((place for place, token in enumerate(mine) if token in end_ids), len(mine))
        if its and end:
            compared[sequence] = list(zip(mine, its, strict=True))[:end]
    if not compared:
        return {}
    places = [
        (token, sequence)
        for sequence, pairs in compared.items()
        for token, (mine, its) in enumerate(pairs)
        if mine != its
    ]
    found: dict = {"same_text": not places, "sequences_compared": len(compared)}
    if places:
        token, sequence = min(places)
        found["first_difference"] = {"sequence": sequence, "token": token}
    return found


def _own(outcomes: Sequence[Outcome]) -> Outcome | None:
    return next((each for each in outcomes if each.job.engine == OWN and each.ran), None)


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))


def measure(job: Job, *, context: int, new_tokens: int, repeats: int, vocabulary: int, **how):
    """One engine alone: its medians over some rounds, on random prompts of `context` tokens.

    Args:
      job: the engine and its model; its slots are made enough.
      context: tokens of each prompt.
      new_tokens: tokens that follow.
      repeats: rounds that count.
      vocabulary: tokens are drawn below it.
      **how: of `EngineProcess`.

    Returns:
      What `engine_rows` says of it.

    Raises:
      EngineError: it fails.
    """
    work = Work(random_prompts(vocabulary, job.batch, context), new_tokens)
    job = dataclasses.replace(job, slots=max(job.slots, context + new_tokens))
    (outcome,) = compare([job], work, repeats, open_process=lambda job: EngineProcess(job, **how))
    if outcome.status != "ok":
        raise EngineError(outcome.message, outcome.status)
    return engine_rows([outcome], job.batch)[0]


def random_prompts(vocabulary: int, batch: int, length: int) -> list[list[int]]:
    """Token ids drawn uniformly, [batch][length], the same at each call."""
    return np.random.default_rng(0).integers(0, vocabulary, (batch, length)).tolist()
