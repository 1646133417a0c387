"""Held steps of a mixture: a batch's rows differ, and what experts they touch is told."""

import dataclasses

import numpy as np
import pytest

from decode.load import ModelSource
from model.catalog import find_model
from model.dtypes import FLOAT32
from profiles.floor.experts import expected_experts
from profiles.measured import bandwidth, timing
from profiles.measured.prompt_timing import RepeatedPrompt
from profiles.measured.sweep import Sweep, run
from profiles.measured.timing import RepeatedStep, draw_tokens
from profiles.report.step_table import step_table
from sharding.catalog import LAYOUTS
from sharding.mesh import parse_mesh
from tests.engines import counted_compilations, fresh, random_engine

EXPERTS = dict(experts=16, experts_per_token=2)
MIXTURE = dataclasses.replace(find_model("tiny"), **EXPERTS)


@pytest.mark.parametrize("batch", [16, pytest.param(64, marks=pytest.mark.slow)])
def test_rows_choose_as_many_experts_as_tokens_that_choose_evenly(batch):
    engine = random_engine(MIXTURE, LAYOUTS["weight_stationary_1d"], "1x1x1", FLOAT32)
    step = RepeatedStep(engine, batch, context=20)
    step.compile()
    assert step.experts_touched is None
    for _ in range(3):
        step.sample()
    even = 16 * (1 - (1 - 2 / 16) ** batch)  # of 16 experts 14.11, and 16.00; one token takes 2
    assert even == pytest.approx(expected_experts(MIXTURE, batch))
    assert step.experts_touched == pytest.approx(even, rel=0.1)


def test_a_bursts_tokens_are_on_the_devices_before_the_clock_starts(tiny_engine, monkeypatch):
    engine, fed = tiny_engine("1x1x1", layers=1), []
    step = RepeatedStep(engine, batch=8, context=20)
    step.compile()
    advance = engine.advance
    monkeypatch.setattr(engine, "put", lambda values: pytest.fail("the host made an array"))
    monkeypatch.setattr(
        engine, "advance", lambda *given: fed.append(given[1].tokens) or advance(*given)
    )
    step.sample()
    step.sample()
    rows = np.stack([np.asarray(tokens) for tokens in fed])
    assert all(len(set(tokens)) == 8 for tokens in rows.tolist())
    assert len({tuple(tokens) for tokens in rows.tolist()}) == len(rows) == 2 * timing.MIN_BURST


def test_tokens_go_on_from_one_cache_to_the_next(tiny_engine, monkeypatch):
    engine, fed = tiny_engine("1x1x1", layers=1), []
    step, advance = RepeatedStep(engine, batch=8, context=20), engine.advance
    monkeypatch.setattr(
        engine, "advance", lambda *given: fed.append(given[1].tokens) or advance(*given)
    )
    for _ in range(2):
        step.compile()
        step.sample()
        step.release()
    rows = {tuple(np.asarray(tokens).tolist()) for tokens in fed}
    bursts = timing.WARM_UP + timing.MIN_BURST, 1 + timing.MIN_BURST
    assert len(rows) == len(fed) == sum(bursts) <= timing.DRAWS


def test_what_is_lowered_and_compiled_beforehand_is_not_compiled_again(tiny_engine):
    engine = fresh(tiny_engine("1x1x1", layers=1))
    for step in (RepeatedStep(engine, 3, 20), RepeatedPrompt(engine, 3, 40)):
        engine.new_cache(3, step.slots)
        engine.start(np.full(3, 20, np.int32))
        with counted_compilations() as compiled:
            for program in step.lower():
                program.compile()
            assert len(compiled) == 1
            step.compile()
            assert len(compiled) == 1


def test_rows_take_different_tokens_while_there_are_as_many():
    for vocabulary, batch in ((50, 8), (8, 8), (8, 20)):
        for tokens in draw_tokens(vocabulary, batch):
            assert tokens.shape == (batch,) and tokens.dtype == np.int32
            assert len(set(tokens.tolist())) == min(vocabulary, batch)
            assert tokens.min() >= 0 and tokens.max() < vocabulary


def test_the_floor_reads_the_experts_that_were_touched(monkeypatch):
    monkeypatch.setattr(bandwidth, "READ_BYTES", 1 << 22)
    monkeypatch.setattr(bandwidth, "MATMUL_SIZE", 128)
    wanted = Sweep(
        source=ModelSource(MIXTURE, None, None),
        layouts=[LAYOUTS["weight_stationary_1d"]],
        shapes=[parse_mesh("1")],
        batches=[1, 16],
        contexts=[16],
        dtype_sets=[FLOAT32],
        seconds=0.0,
    )
    one, many = run(wanted, lambda text: None).points
    touched = [point.experts_touched["measured"] for point in (one, many)]
    assert touched == [2, pytest.approx(14.11, rel=0.1)]
    assert [p.experts_touched["expected"] for p in (one, many)] == [
        pytest.approx(2), pytest.approx(14.1109, rel=1e-4)
    ]  # fmt: skip
    more = many.bytes_per_chip["weights_read"] - one.bytes_per_chip["weights_read"]
    expert = 3 * MIXTURE.layers * MIXTURE.d_model * MIXTURE.d_ff * 4
    assert more == pytest.approx((touched[1] - 2) * expert, rel=1e-6)
    assert f"{touched[1]:.1f} (14.1)" in step_table([one, many])
