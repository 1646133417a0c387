"""Planted traces of a CPU, a GPU and a TPU: whose the wall time is, and that it adds up."""

import pytest

from profiles.explained.attribution import attribute
from profiles.measured.trace import Event, TraceError

CPU, GPU, TPU = "/host:CPU", "/device:GPU:0", "/device:TPU:{}"


def step(start, duration=0.1):
    return Event(CPU, "python", "step", start, duration)


def ran(name, start, duration, line="thread 1", plane=CPU, scope=""):
    return Event(plane, line, name, start, duration, name, scope)


def shared(events, *containers):
    found = attribute(events, containers.__contains__)
    total = sum(found.operations.values()) + found.launches + found.host
    assert total == pytest.approx(found.step_s, rel=1e-12)
    return found


def test_threads_share_the_time_in_which_they_all_run():
    found = shared([step(0.0), ran("a", 1.0, 4.0), ran("b", 3.0, 4.0, "thread 2")])
    assert found.step_s == 6.0 and found.operations == {"a": 3.0, "b": 3.0}


def test_a_loop_has_only_the_time_in_which_nothing_else_runs_on_any_thread():
    events = [step(0.0), ran("while", 1.0, 9.0), ran("dot", 2.0, 3.0), ran("tanh", 3.0, 1.0),
              ran("sum", 6.0, 2.0, "thread 2")]  # fmt: skip
    found = shared(events, "while")
    assert found.operations == {"while": 4.0, "dot": 2.0, "tanh": 1.0, "sum": 2.0}


def test_an_operation_that_goes_on_after_one_inside_it_has_the_time_before_and_after():
    found = shared([step(0.0), ran("a", 0.0, 6.0), ran("b", 2.0, 1.0), ran("c", 6.0, 1.0)])
    assert found.operations == {"a": 5.0, "b": 1.0, "c": 1.0}


def test_time_without_operations_is_between_them_or_between_steps():
    events = [step(0.0), step(0.2)]
    for start in (1.0, 11.0):
        events += [ran("a", start, 2.0), ran("b", start + 3.0, 2.0)]
    found = shared(events)
    assert found.steps == 2 and found.step_s == 7.5
    assert found.operations == {"a": 2.0, "b": 2.0}
    assert found.launches == 1.0  # a second between a and b in each of the two
    assert found.host == 2.5  # five seconds between the two steps


def test_what_ran_before_the_first_step_is_no_part_of_it():
    assert shared([ran("warm", 0.0, 1.0), step(2.0), ran("a", 3.0, 1.0)]).operations == {"a": 1.0}


def test_marks_of_ends_are_no_operations():
    end = Event(CPU, "thread 2", "end: a", 2.0, 0.5, "a")
    assert shared([step(0.0), ran("a", 1.0, 1.0), end]).operations == {"a": 1.0}


def test_streams_of_a_gpu_share_its_time_and_lines_made_of_them_are_left_out():
    events = [step(50.0), Event(GPU, "XLA Modules", "jit_step", 0.0, 9.0, "jit_step"),
              ran("gemm", 1.0, 2.0, "Stream #14", GPU, "jit(f)/decode_step/layer_0/mlp/dot"),
              ran("copy", 2.0, 2.0, "Stream #15", GPU), ran("host_op", 51.0, 1.0)]  # fmt: skip
    found = shared(events)
    assert found.operations == {"gemm": 1.5, "copy": 1.5}
    assert found.scopes == {"gemm": "jit(f)/decode_step/layer_0/mlp/dot"}


def test_kernels_that_tell_no_operation_run_all_the_same():
    """Those of CUDA graphs: no block is known of them, and no time is lost."""
    graph = Event(GPU, "Stream #14", "gemm_kernel", 3.0, 4.0)
    found = shared([step(0.0), ran("gemm", 1.0, 2.0, "Stream #14", GPU), graph])
    assert found.operations == {"gemm": 2.0, "kernel gemm_kernel": 4.0}


def test_chips_are_averaged_and_asynchronous_lines_are_left_out():
    events = [step(0.0)]
    for number, seconds in ((0, 2.0), (1, 4.0)):
        plane = TPU.format(number)
        events += [ran("fusion.1", 1.0, seconds, "XLA Ops", plane),
                   ran("copy-start", 0.0, 9.0, "Async XLA Ops", plane)]  # fmt: skip
    found = shared(events)
    assert found.operations == {"fusion.1": 3.0} and found.step_s == 4.0
    assert found.launches == 1.0


@pytest.mark.parametrize(
    ("events", "what"),
    [([], "steps"), ([ran("a", 0.0, 1.0)], "steps"), ([step(0.0)], "operations")],
)
def test_a_trace_without_steps_is_refused(events, what):
    with pytest.raises(TraceError, match=f"number of {what} in the trace is 0; take it"):
        attribute(events, lambda name: False)
