"""Weights that a step unpacks as a whole are found, and none where it unpacks them by rows."""

import dataclasses

import jax.numpy as jnp
import pytest

from decode.engine import Engine
from model.catalog import find_model
from model.dtypes import FLOAT32, Dtypes
from profiles.hlo.unpacked import dequantized_bytes
from sharding import dot
from sharding.catalog import LAYOUTS
from sharding.quantization import QUANTIZATIONS
from tests.engines import random_engine
from tests.scripts.running import USUAL_KERNELS

CONFIG = dataclasses.replace(find_model("tiny"), layers=1, d_model=256, d_ff=512, head_size=64)
MATRICES = 3 * 256 * 512 + 2 * 256 * 64 * (CONFIG.query_heads + CONFIG.kv_heads)


def engine_of(dtypes: Dtypes, mesh: str = "1") -> Engine:
    return random_engine(CONFIG, LAYOUTS["weight_stationary_1d"], mesh, dtypes)


def found_in(engine: Engine, batch: int = 1) -> int:
    step = engine.lower_decode(batch, 64).compile(compiler_options=USUAL_KERNELS)
    return dequantized_bytes(engine, step.as_text())


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(dot, "_BLOCK", 2**12)


@pytest.mark.parametrize(
    ("name", "mesh"),
    [("int8", "2"), *(pytest.param(n, "1", marks=pytest.mark.slow) for n in ("int8", "fp8"))],
)
def test_matrices_are_converted_by_rows(small_blocks, name, mesh):
    assert found_in(engine_of(Dtypes(jnp.float32, QUANTIZATIONS[name]), mesh), batch=3) == 0


def test_whole_matrices_in_float_are_found(monkeypatch):
    monkeypatch.setattr(dot, "_BLOCK", 2**30)
    engine = engine_of(Dtypes(jnp.float32, QUANTIZATIONS["int8"]))
    temporary = engine.lower_decode(1, 64).compile().memory_analysis().temp_size_in_bytes
    assert found_in(engine) == 4 * MATRICES
    assert temporary > MATRICES  # they are in memory, some of them at a time


def test_four_bits_that_xla_cpu_cannot_slice_are_found_in_eight(small_blocks):
    assert found_in(engine_of(Dtypes(jnp.float32, QUANTIZATIONS["int4"]))) == MATRICES


def test_a_matrix_whose_inputs_are_in_groups_is_found():
    engine = engine_of(Dtypes(jnp.float32, QUANTIZATIONS["int4"]))
    text = """HloModule step

%fused (p.1: u4[2,512,256]) -> bf16[2,512,8,32] {
  %p.1 = u4[2,512,256]{2,1,0} parameter(0)
  %wide = bf16[2,512,256]{2,1,0} convert(%p.1)
  ROOT %split = bf16[2,512,8,32]{3,2,1,0} reshape(%wide)
}

ENTRY %main (p: u4[2,512,256]) -> bf16[2,512,8,32] {
  %p = u4[2,512,256]{2,1,0} parameter(0)
  ROOT %dense = bf16[2,512,8,32]{3,2,1,0} fusion(%p), kind=kLoop, calls=%fused
}
"""
    assert dequantized_bytes(engine, text) == 2 * 2 * 512 * 256  # as XLA:GPU makes it


def test_plain_weights_are_not_looked_for():
    assert found_in(engine_of(FLOAT32)) == 0
