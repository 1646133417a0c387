"""Which prompts run in one chunk together, and which one after another. No device takes part."""

import pytest

from tests.decode.batching.test_schedule import answer_of, schedule_of, told

TOGETHER = {"rows": 8, "budget": 128, "together": 32}


def beginning(number: int, tokens: int) -> list[int]:
    """A prompt that begins like no other."""
    return [number] * tokens


@pytest.mark.parametrize(
    ("prompts", "sizes"),
    [
        ([beginning(n, 32) for n in range(4)], [(32, 4)]),
        ([beginning(n, 24) for n in range(4)], [(32, 4)]),  # three quarters are filled
        ([beginning(n, 23) for n in range(4)], [(32, 1)] * 4),
        ([beginning(n, 32) for n in range(3)], [(32, 4)]),
        ([beginning(n, 32) for n in range(2)], [(32, 1)] * 2),
        ([beginning(n, 33) for n in range(3)], [(32, 1), (16, 1)] * 2 + [(32, 1)]),  # none waits
        ([beginning(7, 32) for _ in range(4)], [(32, 1), (16, 1), (16, 1), (16, 1)]),
    ],
)
def test_prompts_that_fill_a_chunk_together_run_in_one_and_alike_ones_after_another(prompts, sizes):
    schedule = schedule_of(
        *(answer_of(p, new=9, number=n) for n, p in enumerate(prompts)), **TOGETHER
    )
    plan = schedule.plan()
    assert [(chunk.size, len(chunk.pieces)) for chunk in plan.chunks] == sizes
    ran = dict.fromkeys(p.answer.ticket.number for c in plan.chunks for p in c.full)
    assert list(ran) == list(range(len(prompts)))


def test_what_rows_hold_of_waiting_prompts_fills_no_chunk():
    """Further turns of four conversations have 4 tokens each to run, not 32."""
    first = [answer_of(beginning(n, 28), new=1, number=n) for n in range(4)]
    schedule = schedule_of(*first, **TOGETHER)
    schedule.plan()
    for n in range(4):
        schedule.add(answer_of([*beginning(n, 28), *[9] * 4], number=4 + n))
    chunks, _ = told(schedule.plan())
    assert chunks == [(16, [(4 + n, n, n, 28, 4)]) for n in range(4)]
