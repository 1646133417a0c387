"""Steps that are traced here: a block that is made slow is named first, and blocks add up."""

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decode.compiler_options import NO_GRAPHS
from decode.engine import Engine
from decode.load import ModelSource, find_source
from model import transformer
from model.catalog import find_model
from model.dtypes import FLOAT32
from model.mlp import MLP
from profiles.compiled.inspection import PassProgram
from profiles.explained import live
from profiles.explained.blocks import HOST, LAUNCHES
from profiles.explained.explained_table import fields
from profiles.explained.explanation import Explanation
from profiles.floor.passes import Pass
from profiles.measured.sweep import Sweep
from profiles.measured.trace import Event
from sharding.catalog import LAYOUTS
from sharding.error_types import UsageError
from sharding.mesh import parse_mesh
from sharding.placement import Placement

SLEEP_S = 0.07  # far more than a busy machine takes a core away for
LAYOUT = "weight_stationary_1d"


def sleeping(x: jax.Array) -> jax.Array:
    def wait() -> np.ndarray:
        time.sleep(SLEEP_S)
        return np.zeros((), np.float32)

    with jax.named_scope("planted"):
        return x + jax.pure_callback(wait, jax.ShapeDtypeStruct((), np.float32))


def copying(x: jax.Array) -> jax.Array:
    """Writes 16 MB, and writes them again in another order."""
    with jax.named_scope("planted"):
        rows = jnp.arange(2048, dtype=jnp.float32)[:, None]
        large = jax.lax.optimization_barrier(jnp.broadcast_to(x[0, 0, 0] + rows, (2048, 2048)))
        return x + 1e-9 * jnp.max(jax.lax.optimization_barrier(large.T))


def planted_in(where: str, slow) -> type:
    """An MLP that is slow in its own scope, or in a scope of another name behind it."""

    class Slow(MLP):
        def __call__(self, x, placement):
            if where == "planted":
                return slow(super().__call__(x, placement))
            with jax.named_scope(where):
                return slow(super().__call__(x, placement))

    return Slow


@pytest.fixture
def explained(tmp_path, monkeypatch):
    """Explains a step of the tiny model, whose memory is measured by small arrays."""
    monkeypatch.setattr("profiles.measured.bandwidth.READ_BYTES", 1 << 22)
    monkeypatch.setattr("profiles.measured.sweep.MIN_ROUNDS", 2)

    def make(mlp: type = MLP, mesh: str = "1x1x1"):
        monkeypatch.setattr(transformer, "MLP", mlp)
        sweep = Sweep(
            source=ModelSource(dataclasses.replace(find_model("tiny"), layers=1), None, None),
            layouts=[LAYOUTS[LAYOUT]],
            shapes=[parse_mesh(mesh)],
            batches=[2],
            contexts=[20],
            dtype_sets=[FLOAT32],
            seconds=0,
        )
        return live.explain_live(sweep, tmp_path / "trace", lambda line: None)[0]

    return make


def check_named(found: Explanation, directory: Path) -> None:
    """Nearly all operations that ran are of a block, whatever time each took."""
    named = {share.name for block in found.blocks for share in block.operations}
    ran = live.attribute(live.read(directory), lambda name: False).operations.keys()
    assert len(ran & named) > 0.9 * len(ran)


@pytest.mark.parametrize(
    ("where", "slow", "block", "said"),
    [
        pytest.param(
            "mlp", sleeping, "MLP", "it calls a function of Python", marks=pytest.mark.slow
        ),
        ("planted", copying, "planted", "of it copy arrays or change"),
    ],
)
def test_a_planted_slow_block_is_named_first(explained, where, slow, block, said):
    found = explained(planted_in(where, slow))
    # In no operation a step is as long as others have the cores.
    first, second, *_ = (each for each in found.blocks if each.name not in (LAUNCHES, HOST))
    assert first.name == block
    assert first.over_floor_s > 2 * second.over_floor_s
    (told,) = (each for each in fields(found)["blocks"] if each["name"] == block)
    assert said in told["remedy"]


def test_blocks_of_a_step_over_two_devices_add_up_and_collectives_are_among_them(
    explained, tmp_path
):
    found = explained(mesh="1x1x2")
    total = sum(block.measured_s for block in found.blocks) + found.unattributed_s
    assert total == pytest.approx(found.measured_s, rel=1e-9)
    assert found.steps == 8
    check_named(found, tmp_path / "trace")
    names = {block.name for block in found.blocks if block.measured_s}
    assert {"all-reduce", "MLP", "attention", "host", "sampling"} <= names


def test_on_a_gpu_the_traced_step_is_compiled_without_graphs_by_options_that_xla_has(
    explained, tiny_engine, monkeypatch, tmp_path
):
    """XLA reads them on every platform, and refuses those that it does not know."""
    given = []

    class Told(Engine):
        def __init__(self, *arguments, options=None):
            given.append(options)
            super().__init__(*arguments, options=options)

    monkeypatch.setattr(live, "Engine", Told)
    assert live.without_graphs(tiny_engine()) is tiny_engine() and not given
    monkeypatch.setattr(live, "platform_here", lambda: "gpu")
    found = explained()
    total = sum(block.measured_s for block in found.blocks) + found.unattributed_s
    assert total == pytest.approx(found.measured_s, rel=1e-9)
    check_named(found, tmp_path / "trace")
    assert given == [NO_GRAPHS] and len(NO_GRAPHS) == 2


def test_the_trace_of_a_gpu_is_read_where_there_is_none(monkeypatch, tmp_path):
    """By its own scopes, and at rates that are given."""
    mlp = "jit(_advance_step)/decode_step/layer_0/mlp/dot_general"
    plane, stream = "/device:GPU:0", "Stream #14"
    events = [
        Event("/host:CPU", "python", "step", 0.0, 0.1),
        Event(plane, stream, "gemm", 1.0, 3.0, "gemm_fusion_dot.1", mlp),
        Event(plane, stream, "ncclDevKernel_AllReduce", 4.0, 1.0, "all-reduce-start.2"),
        Event(plane, stream, "memcpy", 5.0, 0.5, "wrapped_copy.7"),
    ]
    monkeypatch.setattr(live, "read", lambda directory: events)
    monkeypatch.setattr(live, "step_facts", lambda directory: {"batch": "2"})
    config, layout = find_source("tiny", random_weights=True).config, LAYOUTS[LAYOUT]
    placement = Placement.of(layout, config.sizes, parse_mesh("1"))
    program = PassProgram(
        config=config, placement=placement, dtypes=FLOAT32, pass_=Pass(2, 20, slots=64)
    )
    with pytest.raises(UsageError, match="trace is of a gpu, whose peak rates are not known"):
        live.explain_trace(program, tmp_path, None, None)
    found, rates = live.explain_trace(program, tmp_path, 1e12, 1e14)
    times = {block.name: block.measured_s for block in found.blocks if block.measured_s}
    assert times == {"MLP": 3.0, "all-reduce": 1.0} and found.unattributed_s == 0.5
    assert found.record.device_kind == found.platform == "gpu"
    assert rates == {"source": "given", "bytes_per_s": 1e12, "peak_flops_per_s": 1e14}
