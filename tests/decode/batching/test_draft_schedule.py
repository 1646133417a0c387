"""Plans of steps whose counts are known late, and what rows hold then. No device takes part."""

import pytest

from decode.batching.answers import Answer, Row
from decode.batching.schedule import Schedule
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
