"""Weights in few bits: alike in every layout, counted to the byte, refused where they cannot be."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decode.engine import Engine
from decode.load import ModelSource
from model.catalog import find_model
from model.dtypes import Dtypes
from model.parameters import place_parameters
from model.transformer import Transformer
from profiles.floor.bytes_and_flops import PassCounter
from profiles.floor.passes import Pass
from sharding.catalog import COLLECTIVES, LAYOUTS, schedule_by
from sharding.error_types import FloorlineError, LayoutError
from sharding.mesh import make_mesh, parse_mesh
from sharding.placement import Placement
from sharding.quantization import QUANTIZATIONS
from tests.engines import carry_bytes, random_arrays, random_engine

# Large enough that groups of 32 divide over eight devices.
CONFIG = dataclasses.replace(
    find_model("tiny"), layers=1, d_model=256, d_ff=512, head_size=64, attention_bias=True
)
WIDE = dataclasses.replace(CONFIG, d_model=1024, d_ff=1024, head_size=256)  # and of 128
ONE_D = LAYOUTS["weight_stationary_1d"]
SLOTS = 16


@functools.cache
def engine_of(
    name: str | None,
    mesh: str = "1",
    layout: str = "weight_stationary_1d",
    collectives: str = "compiler",
) -> Engine:
    """The same one each time, whose programs are compiled once."""
    chosen = schedule_by(LAYOUTS[layout], collectives)
    config = WIDE if name == "fp8_grouped" else CONFIG
    return random_engine(config, chosen, mesh, Dtypes(jnp.float32, QUANTIZATIONS.get(name)))


def logits_of(engine: Engine) -> np.ndarray:
    """Of a prompt and of one token more, [2, B, V]."""
    tokens = np.random.default_rng(0).integers(0, 256, (8, 9)).astype(np.int32)
    lengths = np.full(8, 8, np.int32)
    first, cache = engine.prefill(engine.new_cache(8, SLOTS), tokens[:, :8], lengths)
    second, _ = engine.decode_step(cache, engine.put(tokens[:, 8]), engine.put(lengths))
    return np.stack([np.asarray(first), np.asarray(second)])


@functools.cache
def expected_of(name: str | None) -> np.ndarray:
    return logits_of(engine_of(name))


def check(name: str, layout: str, collectives: str) -> None:
    found = logits_of(engine_of(name, "2x2x2", layout, collectives))
    expected = expected_of(name)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "layout", "collectives"),
    # Products of gathered weights; `test_quantized_cache` has those of whole ones, and
    # `test_grouped_gpu` loops.
    [("int8", "weight_gathered_xyz", "compiler"),
     *(pytest.param(*case, marks=pytest.mark.slow)
       for case in (("int8", "weight_stationary_2d", "compiler"),
                    ("fp8", "weight_gathered_xyz", "compiler"),
                    ("int4", "weight_stationary_2d", "overlapped"),
                    ("int8", "weight_gathered_xy", "overlapped"),
                    ("int4_symmetric", "weight_stationary_1d", "compiler"),
                    ("fp8_grouped", "weight_stationary_2d", "overlapped")))],
)  # fmt: skip
def test_a_layout_gives_the_logits_of_one_device_with_the_same_weights(name, layout, collectives):
    check(name, layout, collectives)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name == "int4" else pytest.mark.long)
     for name in QUANTIZATIONS],
)  # fmt: skip
def test_every_layout_gives_the_logits_of_one_device_with_the_same_weights(name):
    for layout, collectives in itertools.product(LAYOUTS, COLLECTIVES):
        check(name, layout, collectives)


@pytest.mark.parametrize(
    ("name", "most"),
    [("int8", 0.03), pytest.param("fp8", 0.15, marks=pytest.mark.slow), ("int4", 0.4)],
)
def test_logits_are_near_those_of_plain_weights_and_not_the_same(name, most):
    difference = np.abs(expected_of(name) - expected_of(None)).max()
    assert 0 < difference < most * np.abs(expected_of(None)).max()


@pytest.mark.parametrize(
    "name",
    # It has offsets beside its scales.
    [pytest.param(name, marks=() if name == "int4" else pytest.mark.slow)
     for name in QUANTIZATIONS],
)  # fmt: skip
def test_the_floor_counts_the_bytes_that_the_compiler_takes(name):
    for engine in (engine_of(name), engine_of(name, "2x2x2", "weight_stationary_2d")):
        memory = engine.lower_decode(8, SLOTS).compile().memory_analysis()
        counter = PassCounter(engine.config, engine.placement, engine.dtypes)
        counted = counter.count(Pass(batch=8, context=10, slots=SLOTS))
        expected = counted.weights_resident + counted.kv_resident + carry_bytes(8)
        assert memory.argument_size_in_bytes == expected
        assert counted.weights_read == counted.weights_resident  # a tied embedding is read whole


def test_work_is_that_of_plain_weights():
    sizes = {"batch": 8, "context": 10, "slots": 64}
    placement = Placement.of(ONE_D, CONFIG.sizes, parse_mesh("1"))
    plain, few = (
        PassCounter(CONFIG, placement, Dtypes(jnp.float32, QUANTIZATIONS.get(name))).count(
            Pass(**sizes)
        )
        for name in (None, "int4")
    )
    assert few.flops == plain.flops and few.weights_read < plain.weights_read / 3


def test_groups_that_would_cross_devices_are_refused_with_what_works():
    config = find_model("smollm2-135m")
    source = ModelSource(config, None, None)
    with pytest.raises(LayoutError) as refusal:
        source.engine(ONE_D, parse_mesh("8"), Dtypes(jnp.float32, QUANTIZATIONS["int4"]))
    assert "attention.output has 64 inputs in 8 shards, which groups of 32 (int4)" in str(
        refusal.value
    )
    assert "use 1 or 2 shards, int8, fp8 or bfloat16" in str(refusal.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(bad):
    path, arrays = ("layers", 0, "mlp", "down"), dict(random_arrays(CONFIG))
    arrays[path] = arrays[path].copy()
    arrays[path][3, 5] = bad
    model, mesh = (
        Transformer(CONFIG, Dtypes(jnp.float32, QUANTIZATIONS["int8"])),
        parse_mesh("2x2x2"),
    )
    placement, devices = Placement.of(ONE_D, CONFIG.sizes, mesh), make_mesh(mesh)
    with pytest.raises(FloorlineError, match=r"layers\.0\.mlp\.down is not finite everywhere"):
        place_parameters(model, arrays.items(), placement, devices)


def test_random_weights_are_those_that_plain_ones_round_to():
    source = ModelSource(CONFIG, None, None)
    few = source.engine(ONE_D, parse_mesh("1"), Dtypes(jnp.float32, QUANTIZATIONS["int8"]))
    loaded = engine_of("int8")
    for mine, expected in zip(
        jax.tree.leaves(few.parameters), jax.tree.leaves(loaded.parameters), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(expected))
