"""The program that an engine runs, read on the fake devices of a CPU, sound and with faults."""

import contextlib
import dataclasses
import functools

import jax
import numpy as np
import pytest

from decode.engine import Engine
from decode.load import ModelSource
from decode.sampling import GREEDY
from model.catalog import find_model
from model.dtypes import FLOAT32
from profiles.compiled import running
from profiles.compiled.running import inspect_pass
from profiles.floor.passes import Pass
from profiles.hlo.program import HloError
from profiles.measured import bandwidth
from profiles.measured.row_records import inspect_row
from profiles.measured.sweep import Sweep, run
from profiles.report.compiled_lines import compiled_lines
from profiles.report.numbers import byte_size
from profiles.report.step_table import step_table
from sharding.catalog import LAYOUTS
from sharding.mesh import parse_mesh
from tests.engines import fresh

STEP = Pass(2, 16, slots=64)
FACTS = {
    "argument_bytes", "output_bytes", "aliased_bytes", "temporary_bytes", "cache_aliased",
    "collectives", "copies", "temporaries", "resident_bytes", "cache_not_aliased_bytes",
    "differing",
}  # fmt: skip


@pytest.fixture
def quick_meter(monkeypatch):
    monkeypatch.setattr(bandwidth, "READ_BYTES", 1 << 22)
    monkeypatch.setattr(bandwidth, "MATMUL_SIZE", 128)


def measured(layers=1, **changes):
    """A sweep of one tiny row, its program read."""
    config = dataclasses.replace(find_model("tiny"), layers=layers)
    settings = {
        "source": ModelSource(config, None, None),
        "layouts": [LAYOUTS["weight_stationary_1d"]],
        "shapes": [parse_mesh("2")],
        "batches": [2],
        "contexts": [16],
        "dtype_sets": [FLOAT32],
        "seconds": 0.0,
        "inspect": functools.partial(inspect_row, inspect_pass),
    }
    return run(Sweep(**settings | changes), lambda text: None)


def without_donation(engine: Engine) -> None:
    """Makes the engine's step keep the cache that it is given."""
    engine._advance = jax.jit(engine._advance_step, static_argnames=("sampler", "steps"))


@contextlib.contextmanager
def compilations():
    """A list that has an entry for each program that JAX compiles."""
    found = []

    def note(name: str, *_: object, **__: object) -> None:
        if name == "/jax/core/compile/backend_compile_duration":
            found.append(name)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def test_a_sound_step_has_its_cache_in_place_and_its_bytes_and_collectives(quick_meter):
    (point,) = measured(layers=2).points
    assert point.compiled.keys() == FACTS
    assert point.compiled["cache_aliased"] and point.collectives_as_expected
    sizes = point.bytes_per_chip
    resident = 2 * point.compiled["resident_bytes"]  # both devices are one chip
    assert resident == sizes["weights_resident"] + sizes["kv_resident"]
    sums = [each for each in point.compiled["collectives"] if each["where"] == "layer/mlp"]
    assert [(each["kind"], each["count"]) for each in sums] == [("all-reduce", 2)]  # both layers
    assert len(compiled_lines([point])) == 1


def test_a_cache_that_is_not_donated_shows_under_the_table(quick_meter, monkeypatch):
    made = Engine.__init__

    def undonated(self, *arguments, **named):
        made(self, *arguments, **named)
        without_donation(self)

    monkeypatch.setattr(Engine, "__init__", undonated)
    outcome = measured(shapes=[parse_mesh("1")])
    (point,) = outcome.points
    assert not point.compiled["cache_aliased"]
    assert point.compiled["cache_not_aliased_bytes"] == point.bytes_per_chip["kv_resident"]
    text = " ".join(step_table(outcome.points, outcome.bandwidth).split())
    size = byte_size(point.bytes_per_chip["kv_resident"])
    assert f"compiled, all rows: cache NOT in place: each step writes {size} of it to" in text
    assert "cache in place" not in text


def test_a_weight_that_is_gathered_unasked_shows_as_a_collective(tiny_engine, monkeypatch):
    engine = tiny_engine("1x1x2", layers=1)

    def gathering(parameters, cache, carry, sampler, steps):
        down = parameters["layers"][0]["mlp"]["down"]
        whole = jax.lax.optimization_barrier(jax.reshard(down, jax.P(None, None)))
        back = jax.reshard(whole, jax.typeof(down).sharding.spec)
        first = parameters["layers"][0] | {"mlp": parameters["layers"][0]["mlp"] | {"down": back}}
        layers = parameters["layers"] | {0: first}
        return Engine._advance_step(engine, parameters | {"layers": layers}, cache, carry, sampler)

    static = ("sampler", "steps")
    planted = jax.jit(gathering, static_argnames=static, donate_argnames="cache")
    monkeypatch.setattr(engine, "_advance", planted)
    found = inspect_pass(engine, STEP)
    assert not found.collectives_as_expected
    size = engine.parameters["layers"][0]["mlp"]["down"].nbytes
    assert found.compiled["differing"] == [f"1 more all-gather over z of {size:,} bytes"]


def test_asking_what_a_step_was_compiled_to_compiles_nothing(tiny_engine):
    engine = fresh(tiny_engine("1x1x1", layers=1))
    cache, carry = engine.new_cache(3, 64), engine.start(np.full(3, 16, np.int32))
    with compilations() as compiled:
        engine.advance(cache, carry, GREEDY)
    assert len(compiled) == 1
    with compilations() as compiled:
        assert inspect_pass(engine, Pass(3, 16, slots=64)).compiled.keys() == FACTS
    assert not compiled


def test_each_program_of_a_prompts_chunks_is_read_once(quick_meter):
    asked, compiled = [], []

    def noting(engine: Engine, pass_: Pass):
        asked.append(pass_)
        with compilations() as more:
            found = inspect_pass(engine, pass_)
        compiled.extend(more)
        return found

    inspect = functools.partial(inspect_row, noting)
    prompts = {"contexts": (), "prompt_lengths": [100], "chunk": 32, "inspect": inspect}
    points = measured(shapes=[parse_mesh("1")], **prompts).points
    assert [(each.continues, each.tokens) for each in asked] == [(True, 32), (True, 16)]
    assert all(point.compiled.keys() == FACTS for point in points)
    first, second, third, last = (point.compiled for point in points)
    assert first == second == third != last
    assert not compiled  # each chunk's program was there


def test_a_program_of_an_unknown_form_costs_no_measurement(quick_meter, monkeypatch):
    def refusing(*_):
        raise HloError("instruction a is 'b'; only HLO text can be read")

    monkeypatch.setattr(running, "read", refusing)
    (point,) = measured(shapes=[parse_mesh("1")]).points
    assert point.ran and point.collectives_as_expected is None
    assert point.compiled["unread"] == "HloError: instruction a is 'b'; only HLO text can be read"
