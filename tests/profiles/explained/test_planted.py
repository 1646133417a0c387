"""A block that is made slow is named first, by steps that run here."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decode.load import find_source
from model import transformer
from model.dtypes import FLOAT32
from model.mlp import MLP
from profiles.explained.explained_table import fields
from profiles.explained.live import explain_live
from profiles.measured.sweep import Sweep
from sharding.catalog import LAYOUTS
from sharding.mesh import parse_mesh

SLEEP_S = 0.01


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
            source=find_source("tiny", random_weights=True),
            layouts=[LAYOUTS["weight_stationary_1d"]],
            shapes=[parse_mesh(mesh)],
            batches=[2],
            contexts=[20],
            dtype_sets=[FLOAT32],
            seconds=0,
        )
        return explain_live(sweep, tmp_path / "trace", lambda line: None)[0]

    return make


@pytest.mark.parametrize(
    ("where", "slow", "block", "said"),
    [
        ("mlp", sleeping, "MLP", "it calls a function of Python"),
        ("planted", copying, "planted", "of it copy arrays or change"),
    ],
)
def test_a_planted_slow_block_is_named_first(explained, where, slow, block, said):
    found = explained(planted_in(where, slow))
    first, second, *_ = found.blocks
    assert first.name == block
    assert first.over_floor_s > 2 * second.over_floor_s
    assert said in fields(found, "cpu")["blocks"][0]["remedy"]


def test_blocks_of_a_step_over_two_devices_add_up_and_collectives_are_among_them(explained):
    found = explained(mesh="1x1x2")
    total = sum(block.measured_s for block in found.blocks) + found.unattributed_s
    assert total == pytest.approx(found.measured_s, rel=1e-9)
    assert found.steps == 8 and found.named > 0.9
    names = {block.name for block in found.blocks if block.measured_s}
    assert {"all-reduce", "MLP", "attention", "between steps", "sampling"} <= names
