"""Plans of steps whose counts are known late, and what rows hold then. No device takes part."""

import numpy as np
import pytest

from decode.batching.answers import Answer, Row
from decode.batching.schedule import Piece, Schedule
from decode.batching.shape import Shape
from tests.decode.batching.test_schedule import answer_of, schedule_of, told


@pytest.mark.parametrize(
    ("written", "alike", "reused"),
    [(66, 60, 60), (66, 59, 59), (66, 58, 0), (36, 18, 18), (37, 18, 0), (67, 59, 0)],
)
def test_a_ring_has_slots_for_what_drafts_may_have_written(written, alike, reused):
    """A window of 30 and 6 slots more: 60 tokens are known, others were refused behind them."""
    row = Row(0, list(range(60)), written)
    assert row.reusable([*range(alike), *[99] * 10], 30, False, 6) == reused


@pytest.mark.parametrize(("first", "alike", "reused"), [(33, 33, 33), (33, 32, 0), (29, 20, 20)])
def test_a_chunk_has_cleaned_a_row_of_what_its_window_does_not_see(first, alike, reused):
    row = Row(0, list(range(40)), 41, first)
    assert row.reusable([*range(alike), *[99] * 10], 30, False, 20) == reused


def test_a_row_knows_where_its_newest_chunk_began():
    answer = answer_of(90)
    schedule = schedule_of(answer)
    firsts = [schedule.plan() and schedule.rows[0].first for _ in range(2)]
    assert firsts == [0, 64]


def test_steps_with_drafts_count_on_one_token_and_learn_of_more():
    """A step is launched before what the one before gave is known."""
    answer, other = answer_of(16, new=9), answer_of(16, new=2, number=1)
    schedule = schedule_of(answer, other, rows=2, drafted=3)
    assert schedule.plan().context == 32  # a prompt each, and a step
    first, second = schedule.rows
    assert (first.written, second.written, second.busy) == (20, 17, False)  # 16 tokens and 4, or 1
    assert schedule.plan().context == 20  # where all drafts stand
    assert (answer.launched, first.written) == (3, 24)
    come(schedule, answer, [1])  # of the prompt
    come(schedule, answer, [2, 3, 4], drafted=True)
    assert (answer.launched, first.written, len(first.tokens)) == (5, 23, 20)
    assert schedule.plan().context == 23
    assert (answer.launched, first.written) == (6, 24)  # no more than there can be
    come(schedule, answer, [5, 6, 7, 8], drafted=True)
    assert (answer.launched, first.busy) == (9, False)  # the step that runs gives the last
    assert told(schedule.plan()) == ([], [])
    come(schedule, answer, [9], drafted=True)
    assert answer.launched == 9
    assert first.reusable([*first.tokens, 5, 5], None) == 24  # the last was never fed


def come(schedule: Schedule, answer: Answer, tokens: list[int], drafted: bool = False) -> None:
    """Tokens of an answer arrive, of a step with drafts or of its prompt."""
    for token in tokens:
        schedule.learn(answer, token)
    if drafted:
        schedule.stood(answer, len(tokens))


CONTEXT = 400


class Cache:
    """What programs leave in rows that are rings, and what the devices know of answers.

    Attributes:
      rows: of each the position and token in each slot.
      length: tokens of each answer in its row.
      left: tokens that each may still have.
      flying: answers of the newest step, each with how many tokens have come of it.
    """

    def __init__(self, shape: Shape, draw: np.random.Generator):
        self.shape, self.draw = shape, draw
        self.ring = shape.window + shape.uncertain if shape.window else shape.context
        self.rows: list[dict[int, tuple[int, int]]] = [{} for _ in range(shape.rows)]
        self.length, self.left, self.flying = {}, {}, []

    def seen(self, piece: Piece) -> range:
        """Positions before a piece that its first token sees."""
        return range(max(piece.first + 1 - (self.shape.window or CONTEXT), 0), piece.first)

    def run(self, schedule: Schedule) -> None:
        """A step: prompts start from what their sources hold, and drafts are put behind."""
        plan, self.flying = schedule.plan(), []
        for chunk in plan.chunks:
            before = [dict(row) for row in self.rows]
            for piece in chunk.full:
                answer, prompt = piece.answer, piece.answer.ticket.request.prompt
                held = {n: (n, prompt[n]) for n in self.seen(piece)}
                found = before[piece.source.number]
                assert all(found.get(n % self.ring) == held[n] for n in held)
                held |= {piece.first + n: (piece.first + n, t) for n, t in enumerate(piece.tokens)}
                kept = {n % self.ring: held[n] for n in sorted(held)}
                self.rows[answer.row.number] = kept
                if piece.ends:
                    self.length[answer] = len(prompt)
                    self.left[answer] = answer.ticket.request.max_new_tokens - 1
                    self.flying.append((answer, 1, False))
        true = sum(self.length[answer] for answer, _ in plan.decoding)
        assert true <= plan.context <= true + len(plan.decoding) * self.shape.drafted
        for answer, row in plan.decoding:
            self.flying.append((answer, self.verify(answer, row), True))

    def verify(self, answer: Answer, row: Row) -> int:
        """Puts an answer's newest token and a draft into its row; returns how many tokens stand."""
        length, count = self.length[answer], min(self.shape.drafted + 1, self.left[answer])
        stands = int(self.draw.integers(1, count + 1)) if count else 0
        for place in range(length, length + count):
            token = token_at(answer, place) if place < length + stands else -1
            self.rows[row.number][place % self.ring] = place, token
        self.length[answer] += stands
        self.left[answer] -= stands
        return stands


def token_at(answer: Answer, place: int) -> int:
    """The token of an answer at a position of its text."""
    return 1000 * (answer.ticket.number + 1) + place


@pytest.mark.parametrize(("window", "together"), [(None, 0), (20, 0), (20, 16)])
def test_prompts_start_from_what_refused_drafts_have_left_whole(window, together):
    """Answers that go on, stop and are cancelled while drafts are in flight, at random."""
    draw, answers, texts = np.random.default_rng(0), [], [[]]
    shape = Shape(
        rows=4, groups=1, lanes=1, sizes=(16, 32), spare=15, budget=64, window=window,
        context=CONTEXT, drafted=3, together=together,
    )  # fmt: skip
    schedule, cache = Schedule(shape), Cache(shape, draw)
    while len(answers) < 150 or schedule.running or schedule.waiting or cache.flying:
        if len(answers) < 150 and not draw.integers(4):
            text = texts[draw.integers(max(len(texts) - 4, 0), len(texts))]
            text = text[: int(draw.integers(len(text) + 1))] if draw.integers(2) else text
            prompt = [*text[:200], *(1000 * len(answers) + draw.integers(9, size=20)).tolist()]
            answers.append(answer_of(prompt, int(draw.integers(1, 40)), len(answers)))
            schedule.add(answers[-1])
        arrived = cache.flying
        cache.run(schedule)
        for answer, count, drafted in arrived:
            if not answer.ended:
                deliver(schedule, answer, count, drafted, stops=not draw.integers(20))
            if answer.ended:
                texts.append([*answer.ticket.request.prompt, *tokens_of(answer)])
        running = [answer for answer in answers if answer.row and not answer.ended]
        if running and not draw.integers(15):
            schedule.end(running[draw.integers(len(running))])
    assert all(answer.ended for answer in answers)
    assert sum(answer.reused > shape.uncertain + (window or 0) for answer in answers) > 10


def deliver(schedule: Schedule, answer: Answer, count: int, drafted: bool, stops: bool) -> None:
    """What a step has brought of an answer, up to its limit or a stop at the first token."""
    request = answer.ticket.request
    assert count and answer.generated + count <= request.max_new_tokens
    for _ in range(1 if stops else count):
        schedule.learn(answer, token_at(answer, len(request.prompt) + answer.generated))
        answer.generated += 1
    if stops or answer.generated == request.max_new_tokens:
        schedule.end(answer)
    elif drafted:
        schedule.stood(answer, count)


def tokens_of(answer: Answer) -> list[int]:
    """The tokens of an answer that have arrived."""
    prompt = len(answer.ticket.request.prompt)
    return [token_at(answer, prompt + n) for n in range(answer.generated)]
