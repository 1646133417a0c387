"""The batching engine: requests join and leave between steps of one running batch.

A step is three things: schedule, run, deliver. The step after is launched before the tokens of this
one are read, so that the host's work hides behind the devices'.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from decode.batching.answers import Answer
from decode.batching.chunk_arrays import joining_of, lanes_of
from decode.batching.drafting import programs_of
from decode.batching.events import Event, Finished, Reason, Ticket, Token
from decode.batching.programs import Chosen, Lanes
from decode.batching.request import Request
from decode.batching.schedule import ChunkPlan, Plan, Schedule
from decode.batching.shape import shape_of
from decode.batching.stats import StepStats
from decode.chunks import TILE
from decode.compiling import compiling
from decode.engine import Engine
from decode.text_stops import StoppedText
from decode.tokenizer import Tokenizer

__all__ = ["Batcher", "Event", "Finished", "Request", "StepStats", "Ticket", "Token"]


@dataclasses.dataclass
class _Launched:
    """What a step has launched, until its tokens are read.

    Attributes:
      chosen: tokens on their way, each with the answers of its rows.
      chunks: the last chunk's logits, which are there when all chunks have run.
      decodes: whether the last of `chosen` are those of a decode step.
      started: when its first program was launched.
      stats: what it does.
    """

    chosen: list[tuple[Chosen, list[tuple[int, Answer]]]]
    chunks: jax.Array | None
    decodes: bool
    started: float
    stats: StepStats


class Batcher:
    """Answers requests in rows of one cache, each with the tokens that it gets alone.

    It belongs to one thread: whoever serves many hands requests over to that. Of several processes
    each has a batcher and gives it the same requests and cancellations between the same steps; what
    runs when follows from these alone, and from no clock.

    Attributes:
      stats: of the newest step whose tokens have been delivered.
    """

    stats: StepStats

    def __init__(
        self,
        engine: Engine,
        slots_of_sequences: int,
        context: int,
        token_budget: int = 512,
        *,
        tokenizer: Tokenizer | None = None,
        top_logprobs: int = 0,
        shares_prefixes: bool = True,
        draft_tokens: int = 0,
    ):
        """Allocates the cache; `warm_up` compiles.

        Args:
          engine: the model.
          slots_of_sequences: rows: how many requests run at once.
          context: tokens that each row has room for, prompt and answer together.
          token_budget: tokens of prompts that run between two decode steps, at most.
          tokenizer: makes text of tokens, for events and stop strings.
          top_logprobs: alternatives to each token that a request may ask for, at most.
          shares_prefixes: whether prompts start from what rows hold of their beginnings.
          draft_tokens: tokens of a draft that a decode step verifies in each row beside its newest;
            0 for steps of one token.

        Raises:
          DraftError: drafts of a model with gated delta layers.
          LayoutError: a number of rows that the layout does not divide.
          UsageError: numbers that are not positive, or a budget below a tile.
        """
        shape = shape_of(engine, slots_of_sequences, context, token_budget, draft_tokens)
        self._schedule = Schedule(shape, shares_prefixes)
        self._engine, self._context, self._tokenizer = engine, context, tokenizer
        self._programs, self._top_logprobs = programs_of(engine, shape, top_logprobs), top_logprobs
        self._cache = engine.new_cache(slots_of_sequences, context, shape.uncertain)
        self._rows = self._programs.empty_rows(slots_of_sequences)
        self._active_rows = np.zeros(0, bool)
        self._active = self._programs.put(self._active_rows)
        self._answers: dict[Ticket, Answer] = {}
        self._accepted, self._notices = 0, []
        self._in_flight: _Launched | None = None
        self._arrived = 0.0  # when the newest tokens were there; 0 after a pause
        self.stats = StepStats(0)

    def warm_up(self, each: Callable[[str, float], None] = lambda name, seconds: None) -> None:
        """Compiles every program that any request may need; nothing is compiled after it.

        Args:
          each: told of each program what it is, when it is ready, and the seconds since the one
            before: two compile at once.
        """
        begun = time.perf_counter()

        def ready(name: str, results: Any) -> None:
            nonlocal begun
            jax.block_until_ready(results)
            began, begun = begun, time.perf_counter()
            each(name, begun - began)

        jobs = self._compilations()
        with compiling(list(jobs.values())) as compilations:
            for name, job in zip(jobs, compilations, strict=True):
                ready(name, job.result())
        shape = self._schedule.shape
        logits = {}  # by lanes
        for chunk in self._idle_chunks():
            arrays = lanes_of(chunk, shape)
            logits[len(chunk.pieces)], self._cache = self._programs.chunk(self._cache, arrays)
        for again in ("", ", once more"):  # for arrays of programs another form may be compiled
            for lanes, scores in logits.items():
                joining = joining_of(ChunkPlan(TILE, [None] * lanes), shape)
                self._rows, chosen = self._programs.join(self._rows, scores, joining)
            for rows in (*shape.steps, shape.rows):
                self._put_active(np.zeros(rows, bool))
                chosen = self._decode()
            if shape.steps:
                self._exchange([None] * shape.groups)
            ready(f"the choice of first tokens{again}", (self._cache, chosen))

    def _compilations(self) -> dict[str, Callable[[], object]]:
        """What compiles the larger programs, by their names, in any order."""
        shape, lowered = self._schedule.shape, self._programs.lowered

        def chunk(lanes: Lanes) -> object:
            return lowered.chunk(self._cache, lanes).compile()

        def decode(rows: int) -> object:
            active = self._programs.put(np.zeros(rows, bool))
            return lowered.decode(self._cache, self._rows, active).compile()

        def exchange() -> object:
            places = np.zeros(2 * shape.groups, np.int32)
            return lowered.exchange(self._cache, self._rows, places).compile()

        jobs = {
            f"a chunk of {idle.named} tokens": functools.partial(chunk, lanes_of(idle, shape))
            for idle in self._idle_chunks()
        }
        for rows in (*shape.steps, shape.rows):
            jobs[f"a decode step of {rows} row{'s' * (rows > 1)}"] = functools.partial(decode, rows)
        return jobs | ({"an exchange of rows": exchange} if shape.steps else {})

    def _idle_chunks(self) -> list[ChunkPlan]:
        """A chunk of each kind, in which nothing runs."""
        return [ChunkPlan(size, [None] * lanes) for size, lanes in self._schedule.shape.chunks]

    def submit(self, request: Request) -> Ticket:
        """Accepts a request, which waits for a row: first come, first served.

        Raises:
          PromptError: it cannot run, for one because it is longer than `context`.
          SamplingError: a sampling value out of range.
        """
        request = dataclasses.replace(request, prompt=tuple(map(int, request.prompt)))
        texts = self._tokenizer is not None
        request.check(self._engine.config, self._context, self._top_logprobs, texts)
        ticket = Ticket(self._accepted, request)
        self._accepted += 1
        text = StoppedText(self._tokenizer.stream(), request.stop) if texts else None
        self._answers[ticket] = Answer(ticket, text)
        self._schedule.add(self._answers[ticket])
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Ends a request before the next step, if it has not ended; its row is free then."""
        if answer := self._answers.get(ticket):
            self._notices.append(self._end(answer, "cancelled"))

    def step(self) -> list[Event]:
        """Launches the next step, and tells what the one before has brought.

        Returns:
          Events in order; a request's tokens come in order, its `Finished` last.
        """
        launched = self._run(self._schedule.plan())
        events, self._notices = self._notices, []
        events += self._deliver(self._in_flight)
        self._in_flight = launched
        self._arrived = 0.0 if self.idle else self._arrived
        return events

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do: no request waits or runs, nothing is to be delivered."""
        return not (self._answers or self._in_flight or self._notices)

    @property
    def running(self) -> int:
        """Requests that have a row."""
        return self._schedule.running

    @property
    def waiting(self) -> int:
        """Requests that wait for a row."""
        return len(self._schedule.waiting)

    @property
    def decided(self) -> int:
        """As `Schedule.decided`: what has run until now, and in which order, in one number."""
        return self._schedule.decided

    def _run(self, plan: Plan) -> _Launched | None:
        """Launches a plan's programs one after another, without waiting for any."""
        if not (plan.chunks or plan.decoding):
            return None
        started, shape = time.perf_counter(), self._schedule.shape
        launched = _Launched([], None, bool(plan.decoding), started, self._stats_of(plan))
        for pairs in plan.exchanges:
            self._exchange(pairs)
        for chunk in plan.chunks:
            logits, self._cache = self._programs.chunk(self._cache, lanes_of(chunk, shape))
            launched.chunks = logits
            if any(piece.ends for piece in chunk.full):
                joining = joining_of(chunk, shape)
                self._rows, chosen = self._programs.join(self._rows, logits, joining)
                ends = [(n, p.answer) for n, p in enumerate(chunk.pieces) if p and p.ends]
                launched.chosen.append((_fetch(chosen), ends))
        if plan.decoding:
            active = np.zeros(plan.rows, bool)
            decoding = [(shape.in_step(row.number, plan.rows), a) for a, row in plan.decoding]
            active[[place for place, _ in decoding]] = True
            self._put_active(active)
            launched.chosen.append((_fetch(self._decode()), decoding))
        launched.stats.host_seconds = time.perf_counter() - started
        return launched

    def _decode(self) -> Chosen:
        """Launches a token more for the active rows."""
        self._cache, self._rows, chosen = self._programs.decode(
            self._cache, self._rows, self._active
        )
        return chosen

    def _exchange(self, pairs: Sequence[tuple[int, int] | None]) -> None:
        """Launches an exchange of two rows of every group, or of a row with itself."""
        each = self._schedule.shape.rows // len(pairs)
        both = [pair or (group * each,) * 2 for group, pair in enumerate(pairs)]
        places = np.array(both, np.int32).reshape(-1) % each
        self._cache, self._rows = self._programs.exchange(self._cache, self._rows, places)

    def _deliver(self, launched: _Launched | None) -> list[Event]:
        """Waits for the tokens of a step, and tells of them."""
        if launched is None:
            return []
        chosen = self._wait(launched)
        begun = time.perf_counter()
        events = []
        for number, (arrays, (_, answers)) in enumerate(zip(chosen, launched.chosen, strict=True)):
            decoded = launched.decodes and number == len(chosen) - 1
            for row, answer in answers:
                launched.stats.wasted += decoded and answer.ended
                if arrays.count is None:
                    events += self._tell(answer, arrays, row)
                else:
                    events += self._tell_standing(answer, arrays, row, launched.stats)
        launched.stats.host_seconds += time.perf_counter() - begun
        self.stats = launched.stats
        return events

    def _wait(self, launched: _Launched) -> list[Chosen]:
        """A step's tokens, on the host; the stats get the time that devices took for them."""
        stats = launched.stats
        begun = max(self._arrived, launched.started)
        if self._arrived:
            stats.idle_seconds = begun - self._arrived
        if launched.chunks is not None:
            launched.chunks.block_until_ready()
            stats.prompt_seconds = time.perf_counter() - begun
        chosen = [jax.tree.map(np.asarray, arrays) for arrays, _ in launched.chosen]
        self._arrived = time.perf_counter()
        if launched.decodes:
            stats.decode_seconds = self._arrived - begun - stats.prompt_seconds
        return chosen

    def _tell_standing(
        self, answer: Answer, chosen: Chosen, row: int, stats: StepStats
    ) -> Iterator[Event]:
        """Events of those tokens of a step with drafts that stand, up to a stop among them."""
        if answer.ended:
            return
        count, drafted = int(chosen.count[row]), self._schedule.shape.drafted
        left = answer.ticket.request.max_new_tokens - answer.generated
        stats.drafted += min(drafted, left - 1)
        stats.accepted += count - 1
        for place in range(count):
            yield from self._tell(answer, chosen, (row, place))
        if not answer.ended:
            self._schedule.stood(answer, count)

    def _tell(self, answer: Answer, chosen: Chosen, row: int | tuple[int, int]) -> Iterator[Event]:
        """Events of one token that has arrived for an answer; none if that has ended before."""
        if answer.ended:
            return
        request, token = answer.ticket.request, int(chosen.tokens[row])
        logprob = float(chosen.logprobs[row])
        if not np.isfinite(logprob):
            if answer.reused and not answer.generated:
                self._answers[answer.ticket] = self._schedule.run_again(answer)
                return
            self._schedule.fail(answer)
            yield self._end(
                answer,
                "error",
                f"logits of token {answer.generated + 1} are not finite; the weights hold NaN or "
                "infinity, or numbers overflow: fetch the model again, or give a wider --dtype",
            )
            return
        self._schedule.learn(answer, token)
        if token in request.stop_ids:
            yield self._end(answer, "stop")
            return
        answer.generated += 1
        text = answer.text.push(token) if answer.text else ""
        yield Token(answer.ticket, token, logprob, text, _alternatives(chosen, row, request))
        if answer.text and answer.text.found:
            yield self._end(answer, "stop")
        elif answer.generated == request.max_new_tokens:
            yield self._end(answer, "length")

    def _end(self, answer: Answer, reason: Reason, message: str = "") -> Finished:
        """The last event of an answer, whose row is free from now on."""
        if not answer.ended:
            self._schedule.end(answer)
        del self._answers[answer.ticket]
        text, stop = "", None
        if answer.text:
            text = "" if answer.text.found else answer.text.flush()
            stop = answer.text.found
            reason = "stop" if stop and reason == "length" else reason
        return Finished(
            answer.ticket,
            reason,
            message,
            text,
            stop,
            len(answer.ticket.request.prompt),
            answer.reused,
            answer.generated,
        )

    def _put_active(self, active: np.ndarray) -> None:
        """Rows of the next decode step, on the devices; sent only where they have changed."""
        if not np.array_equal(active, self._active_rows):
            self._active_rows, self._active = active, self._programs.put(active)

    def _stats_of(self, plan: Plan) -> StepStats:
        pieces = [piece for chunk in plan.chunks for piece in chunk.full]
        tokens = sum(len(piece.tokens) for piece in pieces)
        return StepStats(
            plan.rows,
            active=len(plan.decoding),
            context=plan.context,
            chunks=len(plan.chunks),
            prompt_tokens=tokens,
            reused_tokens=sum(p.first for p in pieces if p.first == p.answer.reused),
            padding=sum(chunk.tokens for chunk in plan.chunks) - tokens,
        )


def _fetch(chosen: Chosen) -> Chosen:
    for array in jax.tree.leaves(chosen):
        array.copy_to_host_async()
    return chosen


def _alternatives(
    chosen: Chosen, row: int | tuple[int, int], request: Request
) -> tuple[tuple[int, float], ...]:
    each = zip(chosen.top_tokens[row].tolist(), chosen.top_logprobs[row].tolist(), strict=True)
    return tuple(each)[: request.top_logprobs]
