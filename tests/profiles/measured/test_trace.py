"""Traces of a small function, taken and read back without a viewer."""

import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from profiles.measured import trace
from sharding.error_types import FloorlineError


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A folder with a trace of three runs, and the compiled program's text."""

    @jax.jit
    def step(x):
        with jax.named_scope("loop"):
            x = jax.lax.fori_loop(0, 5, lambda _, y: jnp.tanh(y @ x), x)
        with jax.named_scope("order"):
            return jnp.sort(x, axis=0)

    x = jnp.linspace(0.0, 1.0, 64 * 64).reshape(64, 64)
    compiled = step.lower(x).compile()
    step(x).block_until_ready()
    directory = tmp_path_factory.mktemp("trace")
    with trace.capture(directory):
        for _ in range(3):
            step(x).block_until_ready()
    return directory, compiled.as_text()


def test_a_trace_reads_back_as_timed_events_with_their_operations(traced):
    events = trace.read(traced[0])
    sorts = [event for event in events if event.operation.startswith("sort")]
    assert len(sorts) >= 3
    assert all(0 < event.duration_s < 10 for event in sorts)
    assert all(event.plane and event.line for event in events)


def test_scopes_say_which_part_of_the_model_an_operation_belongs_to(traced):
    directory, text = traced
    top = trace.top_operations(directory, 50, trace.scopes(text))
    (order,) = [operation for operation in top if operation.name.startswith("sort")]
    assert "/order/" in order.scope
    assert any("/loop/" in operation.scope for operation in top)


@pytest.mark.parametrize(
    ("written", "scope"), [("jit(step)/mlp/dot_general", "jit(step)/mlp/dot_general"),
                           ("XlaModule:", "")]
)  # fmt: skip
def test_what_a_gpu_says_of_every_operation_is_no_scope(written, scope):
    stats = [("hlo_op", "gemm_fusion_dot.1"), ("tf_op", written)]
    event = SimpleNamespace(name="kernel", stats=stats, start_ns=1, duration_ns=2)
    read = trace._event("/device:GPU:0", "Stream #14", event)
    assert (read.operation, read.scope) == ("gemm_fusion_dot.1", scope)


def test_top_operations_come_longest_first_and_no_more_than_asked(traced):
    every = trace.top_operations(traced[0], 50)
    assert [o.seconds for o in every] == sorted((o.seconds for o in every), reverse=True)
    assert trace.top_operations(traced[0], 2) == every[:2]


def test_a_loop_is_not_charged_for_the_operations_in_its_body():
    def event(name, start, duration, line="thread 1"):
        return trace.Event("/host:CPU", line, name, start, duration, name)

    events = [
        event("while", 0.0, 10.0),
        event("call", 1.0, 5.0),
        event("dot", 2.0, 3.0),
        event("tanh", 7.0, 2.0),
        event("copy", 10.0, 1.0),
        event("other", 3.0, 4.0, line="thread 2"),
    ]
    own = {event.name: seconds for event, seconds in trace._own_seconds(events)}
    assert own == {"while": 3.0, "call": 2.0, "dot": 3.0, "tanh": 2.0, "copy": 1.0, "other": 4.0}


def test_the_newest_trace_is_the_one_read(tmp_path):
    for hour, folder in enumerate(("b", "a")):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "host.xplane.pb"
        path.write_bytes(b"")
        trace_time = 1_700_000_000 + 3600 * hour
        os.utime(path, (trace_time, trace_time))
    assert trace.newest(tmp_path).parent.name == "a"


def test_a_folder_without_a_trace_is_named_with_the_remedy(tmp_path):
    with pytest.raises(FloorlineError, match=r"trace in .* is missing; run with --trace"):
        trace.read(tmp_path)


def test_a_file_that_is_no_trace_is_refused(tmp_path):
    (tmp_path / "host.xplane.pb").write_bytes(b"not a trace")
    with pytest.raises(FloorlineError, match=r"host\.xplane\.pb is unreadable"):
        trace.read(tmp_path)


def test_a_second_trace_at_once_is_refused_and_the_first_survives(tmp_path):
    refused = pytest.raises(FloorlineError, match="one trace at a time")
    with trace.capture(tmp_path / "first"), refused, trace.capture(tmp_path / "second"):
        pass
    assert trace.newest(tmp_path / "first").exists()


def test_traces_taken_within_a_second_are_all_kept(tmp_path):
    for _ in range(3):
        with trace.capture(tmp_path):
            pass
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 3


def test_a_failure_inside_a_trace_is_the_one_that_surfaces(tmp_path):
    with pytest.raises(KeyError, match="the step"), trace.capture(tmp_path):
        raise KeyError("the step")
    assert trace.newest(tmp_path).exists()
