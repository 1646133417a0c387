"""Plans of steps: who runs when, in which row, and from what. No device takes part."""

import dataclasses

import numpy as np
import pytest

from decode.batching.answers import Answer, Row
from decode.batching.events import Ticket
from decode.batching.request import Request
from decode.batching.schedule import Plan, Schedule
from decode.batching.shape import Shape, smaller_steps

SHAPE = Shape(rows=4, groups=1, lanes=1, sizes=(16, 32, 64), spare=15, budget=64)


def answer_of(length: int | list[int], new: int = 3, number: int = 0) -> Answer:
    prompt = (
        length if isinstance(length, list) else [1000 * (number + 1) + n for n in range(length)]
    )
    return Answer(Ticket(number, Request(prompt=prompt, max_new_tokens=new)))


def schedule_of(*answers: Answer, **changes) -> Schedule:
    schedule = Schedule(dataclasses.replace(SHAPE, **changes))
    for answer in answers:
        schedule.add(answer)
    return schedule


def told(plan) -> tuple[list, list]:
    """Chunks as (size, [(number, row, source, first, tokens)]), and numbers that decode."""
    chunks = [
        (
            chunk.size,
            [
                p and (p.answer.ticket.number, p.answer.row.number, p.source.number, p.first,
                       len(p.tokens))
                for p in chunk.pieces
            ],
        )
        for chunk in plan.chunks
    ]  # fmt: skip
    return chunks, [answer.ticket.number for answer, _ in plan.decoding]


def finish(schedule: Schedule, answer: Answer) -> None:
    """Plans until an answer has launched its last token; its tokens are 1, 2, ..."""
    while answer.launched < answer.ticket.request.max_new_tokens:
        before = answer.launched
        schedule.plan()
        for token in range(before, answer.launched):
            schedule.learn(answer, token + 1)


def test_a_prompt_runs_in_chunks_within_the_budget_and_then_decodes_in_the_same_step():
    schedule = schedule_of(answer_of(90, new=3), answer_of(20, new=2, number=1))
    assert told(schedule.plan()) == ([(64, [(0, 0, 0, 0, 64)])], [])
    assert told(schedule.plan()) == (
        [(32, [(0, 0, 0, 64, 26)]), (32, [(1, 1, 1, 0, 20)])],
        [0, 1],
    )
    assert told(schedule.plan()) == ([], [0])
    assert told(schedule.plan()) == ([], [])
    assert schedule.running == 0 and not any(row.busy for row in schedule.rows)


def test_a_chunk_is_not_cut_smaller_for_those_before_it_in_the_step():
    schedule = schedule_of(answer_of(20), answer_of(60, number=1))
    assert told(schedule.plan())[0] == [(32, [(0, 0, 0, 0, 20)])]
    assert told(schedule.plan())[0] == [(64, [(1, 1, 1, 0, 60)])]


@pytest.mark.parametrize(
    ("tokens", "sizes"),
    [(1, [16]), (33, [32, 16]), (49, [64]), (48, [32, 16]), (200, [64, 64, 64, 16])],
)  # fmt: skip
def test_sizes_fill_chunks_up_by_few_tokens(tokens, sizes):
    found = []
    while tokens > 0:
        found.append(SHAPE.size(tokens))
        tokens -= found[-1]
    assert found == sizes


def test_requests_wait_in_order_and_a_row_is_free_with_the_last_token_that_is_launched():
    schedule = schedule_of(*(answer_of(16, new=2, number=n) for n in range(7)), rows=2)
    ran = [told(schedule.plan()) for _ in range(4)]
    assert [[piece[0][0] for _, piece in chunks] for chunks, _ in ran] == [
        [0, 1],
        [2, 3],
        [4, 5],
        [6],
    ]
    assert [decoding for _, decoding in ran] == [[0, 1], [2, 3], [4, 5], [6]]


def test_a_cancelled_answer_leaves_its_row_or_its_place_at_once():
    first, second, third = (answer_of(16, new=9, number=n) for n in range(3))
    schedule = schedule_of(first, second, third, rows=1)
    schedule.plan()
    schedule.end(second)
    schedule.end(first)
    assert (schedule.running, len(schedule.waiting)) == (0, 1)
    assert told(schedule.plan()) == ([(16, [(2, 0, 0, 0, 16)])], [2])


def test_an_answer_cancelled_within_its_prompt_leaves_what_has_run():
    long = answer_of(100)
    schedule = schedule_of(long)
    schedule.plan()
    schedule.end(long)
    schedule.add(answer_of(list(long.ticket.request.prompt[:80]), number=1))
    assert told(schedule.plan())[0] == [(16, [(1, 0, 0, 64, 16)])]


def test_a_prompt_starts_from_a_row_that_holds_its_beginning():
    old = answer_of(40, new=4)
    schedule = schedule_of(old)
    finish(schedule, old)
    prompt = list(old.ticket.request.prompt)
    goes_on = answer_of([*prompt, 1, 2, 3, 77, 78], number=1)  # the fourth token was never fed
    schedule.add(goes_on)
    assert told(schedule.plan())[0] == [(16, [(1, 0, 0, 43, 2)])]
    departs = answer_of([*prompt[:36], 5, 6, 7], number=2)
    schedule.add(departs)
    assert told(schedule.plan())[0] == [(16, [(2, 1, 0, 36, 3)])]
    assert (goes_on.reused, departs.reused) == (43, 36)


def test_a_prompt_keeps_a_token_to_run_and_takes_no_other_rows_place():
    old = answer_of(40, new=1)
    schedule = schedule_of(old)
    finish(schedule, old)
    schedule.add(answer_of(list(old.ticket.request.prompt), number=1))
    assert told(schedule.plan())[0] == [(16, [(1, 0, 0, 39, 1)])]


def test_running_rows_are_copied_as_far_as_they_have_got():
    system = [7] * 48
    first, second = answer_of([*system, *range(60)], new=9), answer_of([*system, 1], number=1)
    schedule = schedule_of(first, second, budget=128)
    assert told(schedule.plan())[0] == [
        (64, [(0, 0, 0, 0, 64)]),
        (32, [(0, 0, 0, 64, 32)]),
        (16, [(0, 0, 0, 96, 12)]),
    ]
    assert told(schedule.plan())[0] == [(16, [(1, 1, 0, 48, 1)])]


def test_what_a_failed_answer_leaves_is_not_started_from():
    bad = answer_of(40, new=9)
    schedule = schedule_of(bad)
    schedule.plan()
    schedule.fail(bad)
    schedule.add(answer_of(list(bad.ticket.request.prompt), number=1))
    assert told(schedule.plan())[0][0][1] == [(1, 0, 0, 0, 32)]


@pytest.mark.parametrize(
    ("window", "written", "alike", "reused"),
    [(None, 61, 18, 18), (None, 61, 15, 0), (30, 30, 18, 18), (30, 31, 18, 0), (30, 60, 60, 60),
     (30, 60, 59, 59), (30, 60, 58, 0), (30, 61, 60, 60), (30, 61, 59, 0), (60, 50, 40, 40)],
)  # fmt: skip
def test_a_window_has_forgotten_what_is_far_behind_its_newest_token(window, written, alike, reused):
    row = Row(0, list(range(60)), written)
    assert row.reusable([*range(alike), *[99] * 10], window) == reused


@pytest.mark.parametrize(
    ("written", "alike", "reused"),
    [(60, 60, 60), (59, 60, 59), (60, 59, 0), (61, 60, 0), (9, 60, 0)],
)
def test_of_a_row_that_is_of_use_whole_alone_all_that_was_written_is_taken(written, alike, reused):
    row = Row(0, list(range(60)), written)
    assert row.reusable([*range(alike), *[99] * 10], None, whole=True) == reused
    assert row.reusable(list(range(written)), None, whole=True) == 0  # one is left to run


def test_each_row_is_looked_at_once_however_many_blocks_a_prompt_has(monkeypatch):
    schedule, shared = schedule_of(rows=32, window=1024), list(range(8100))
    for row in schedule.rows:
        row.tokens = [*shared, *[row.number] * 60]
        row.written = len(row.tokens)
        schedule._hold(row)
    looks, reusable = [], Row.reusable

    def counted(row, *given):
        looks.append(row.number)
        return reusable(row, *given)

    monkeypatch.setattr(Row, "reusable", counted)
    schedule.add(answer_of([*shared, *[99] * 60], number=1))
    assert told(schedule.plan())[0] == [(64, [(1, 0, 0, 0, 64)])]
    assert sorted(looks) == list(range(32))


def test_a_prompt_that_a_window_has_forgotten_is_not_compared():
    class Counted(list):
        read = 0

        def __getitem__(self, each):
            self.read += 1
            return super().__getitem__(each)

        def __iter__(self):
            self.read += 1
            return super().__iter__()

    prompt = Counted(range(500))
    assert Row(0, list(range(600)), 600).reusable(prompt, 100) == 0
    assert prompt.read == 0
    assert Row(0, list(range(600)), 600).reusable(prompt, None) == 499
    assert prompt.read <= 2


@pytest.mark.parametrize("alike", [16, 255, 256, 257, 511, 512, 599])
def test_what_is_alike_is_found_within_and_between_blocks(alike):
    row = Row(0, list(range(600)), 600)
    assert row.reusable((*range(alike), *[-1] * 700), None) == alike


def test_prompts_of_each_group_run_in_its_lanes():
    shape = {"rows": 8, "groups": 2, "lanes": 4, "budget": 256}
    schedule = schedule_of(*(answer_of(16, new=5, number=n) for n in range(5)), **shape)
    chunks, decoding = told(schedule.plan())
    assert [[p and p[:2] for p in pieces] for _, pieces in chunks] == [
        [(0, 0), (2, 1), (1, 4), (3, 5)],
        [(4, 2), None, None, None],
    ]
    assert decoding == [0, 2, 4, 1, 3]


def test_a_prompt_goes_where_its_beginning_is():
    shape = {"rows": 4, "groups": 2, "lanes": 2, "budget": 128}
    old = [answer_of(40, new=1, number=n) for n in range(2)]
    schedule = schedule_of(*old, **shape)
    schedule.plan()
    schedule.add(answer_of([*old[1].ticket.request.prompt, 5], number=2))
    assert told(schedule.plan())[0] == [(16, [None, (2, 2, 2, 40, 1)])]


def test_random_traffic_is_answered_whole_in_order_and_within_all_bounds():
    draw, exchanges, widest = np.random.default_rng(0), 0, 0
    for trial in range(30):
        lanes, groups = ((1, 1), (2, 1), (2, 2), (4, 2))[trial % 4]
        rows, budget = (lanes * int(each) for each in (draw.integers(1, 7), draw.choice([32, 64])))
        steps = smaller_steps(rows, lanes) if trial % 3 else ()
        several = 16 if lanes == 1 and rows >= 4 and budget >= 64 else 0
        shape = Shape(rows, groups, lanes, (16, 32), 15, budget, steps=steps, together=several)
        schedule, answers, began = Schedule(shape), [], []
        held = [[] for _ in range(shape.rows)]  # what programs have written
        while len(answers) < 40 or schedule.running or schedule.waiting:
            several_come = 4 if several and len(answers) % 8 == 4 else 1
            for _ in range(several_come if len(answers) < 40 else 0):
                begins = 5 if len(answers) % 8 < 4 else 10 + len(answers)  # alike by turns
                most = 40 if several_come == 1 else 8
                prompt = [begins] * int(draw.integers(0, most)) + draw.integers(0, 9, 9).tolist()
                answers.append(answer_of(prompt, int(draw.integers(1, 6)), len(answers)))
                schedule.add(answers[-1])
            plan = schedule.plan()
            assert sum(chunk.tokens for chunk in plan.chunks) <= shape.budget
            widest = max([widest, *(len(chunk.pieces) // lanes for chunk in plan.chunks)])
            check_exchanges(plan, shape, held)
            exchanges += len(plan.exchanges)
            for chunk in plan.chunks:
                before = [list(row) for row in held]
                targets = [piece.answer.row.number for piece in chunk.full]
                assert len(set(targets)) == len(targets)
                for lane, piece in enumerate(chunk.pieces):
                    if piece:
                        row, source = piece.answer.row.number, piece.source.number
                        group = shape.rows // groups
                        each = len(chunk.pieces) // groups
                        assert row // group == source // group == lane // each
                        assert len(piece.tokens) <= chunk.size
                        prompt = piece.answer.ticket.request.prompt
                        assert before[source][: piece.first] == prompt[: piece.first]
                        held[row] = prompt[: piece.first + len(piece.tokens)]
                        if piece.first == piece.answer.reused:
                            began.append(piece.answer.ticket.number)
            assert plan.rows in ((*steps, shape.rows) if plan.decoding else (0,))
            for answer, row in plan.decoding:
                assert shape.within_group(row.number)[1] < plan.rows // groups
                held[row.number].append(100 + answer.launched - 2)
            launched = [p.answer for chunk in plan.chunks for p in chunk.full if p.ends]
            for answer in [*launched, *(answer for answer, _ in plan.decoding)]:
                schedule.learn(answer, 100 + answer.generated)
                answer.generated += 1
        assert began == sorted(began)
        assert all(a.generated == a.ticket.request.max_new_tokens for a in answers)
        assert sum(answer.reused for answer in answers) > 0
    assert exchanges > 100
    assert widest == 4


def check_exchanges(plan: Plan, shape: Shape, held: list[list[int]]) -> None:
    """Makes a plan's exchanges in what rows hold; each is within its group."""
    for pairs in plan.exchanges:
        assert len(pairs) == shape.groups
        for group, pair in enumerate(pairs):
            if pair:
                one, other = pair
                assert {shape.within_group(number)[0] for number in pair} == {group}
                held[one], held[other] = held[other], held[one]


def test_taken_rows_come_together_where_fewer_rows_can_decode_then():
    answers = [answer_of(16, new=2 + 3 * n, number=n) for n in range(3)]
    schedule = schedule_of(*answers, steps=(1, 2))
    plan = schedule.plan()
    assert (plan.exchanges, plan.rows) == ([], 4)
    plans = [schedule.plan() for _ in range(6)]
    assert [plan.exchanges for plan in plans] == [[((2, 0),)], [], [], [], [], []]
    assert [plan.rows for plan in plans] == [2, 2, 2, 1, 1, 1]


def test_a_new_prompt_takes_the_oldest_row_and_what_lay_in_its_place_is_kept():
    old = answer_of(40, new=1)
    schedule = schedule_of(old, steps=(1,))
    schedule.plan()
    schedule.add(answer_of(16, number=1))
    plan = schedule.plan()
    assert plan.exchanges == [((1, 0),)] and plan.rows == 1
    assert told(plan)[0] == [(16, [(1, 0, 0, 0, 16)])]
    schedule.add(answer_of([*old.ticket.request.prompt, 5], number=2))
    assert told(schedule.plan())[0] == [(16, [(2, 1, 1, 40, 1)])]


def test_without_shared_beginnings_a_new_prompt_takes_the_first_free_row():
    schedule = Schedule(dataclasses.replace(SHAPE, steps=(1,)), shares_prefixes=False)
    for number in range(3):
        schedule.add(answer_of(16, new=1, number=number))
        plan = schedule.plan()
        assert told(plan)[0] == [(16, [(number, 0, 0, 0, 16)])] and not plan.exchanges


def test_each_group_has_as_many_rows_in_a_step():
    shape = {"rows": 8, "groups": 2, "lanes": 2, "budget": 128, "steps": (2, 4)}
    schedule = schedule_of(*(answer_of(16, new=9, number=n) for n in range(3)), **shape)
    assert schedule.plan().rows == 4  # two in the first group, one in the second
    assert [smaller_steps(rows, least) for rows, least in ((32, 1), (32, 2), (7, 1), (3, 1))] == [
        (1, 4, 16),
        (2, 8),
        (1,),
        (),
    ]


def test_what_is_decided_is_one_number_that_is_another_after_any_other_step_or_token():
    def decided(budget: int = 64, token: int = 1) -> int:
        answer = answer_of(90)
        schedule = schedule_of(answer, answer_of(20, number=1), budget=budget)
        for _ in range(3):
            schedule.plan()
        schedule.learn(answer, token)
        return schedule.decided

    assert decided() == decided()
    assert len({decided(), decided(token=2), decided(budget=128)}) == 3
