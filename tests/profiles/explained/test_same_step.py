"""What a trace says of its steps, and that traces of several rows are refused."""

import jax
import pytest

from profiles.explained.same_step import step_facts
from profiles.measured.timing import RepeatedStep
from profiles.measured.trace import TraceError, capture


@pytest.fixture(scope="module")
def step(tiny_engine):
    step = RepeatedStep(tiny_engine(), 2, 20)
    step.compile()
    return step


def test_a_trace_says_which_step_it_is_of(step, tmp_path):
    with capture(tmp_path):
        step.rehearse()
    facts = {"model": "tiny", "devices": "1", "batch": "2", "context": "20", "slots": "32"}
    assert step_facts(tmp_path) == facts


def test_a_trace_of_several_rows_is_refused(step, tmp_path):
    with capture(tmp_path):
        for batch in (1, 2):
            with jax.profiler.StepTraceAnnotation("step", step_num=0, batch=batch):
                pass
    with pytest.raises(TraceError, match=r"number of different steps in .* is 2; give a trace of"):
        step_facts(tmp_path)


def test_a_trace_of_another_program_may_say_nothing(tmp_path):
    with capture(tmp_path):
        jax.numpy.zeros(3).block_until_ready()
    assert step_facts(tmp_path) == {}
