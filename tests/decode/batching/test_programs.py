"""Decode steps of fewer rows than a cache has: the rows that they touch, and where it lies."""

import re

import jax
import numpy as np
import pytest

from decode.batching.programs import Programs
from decode.engine import Engine
from model.block_attention import FEW_SLOTS
from model.cache import KVCache
from model.dtypes import FLOAT32, Dtypes
from sharding.catalog import LAYOUTS, attend_by
from sharding.quantization import QUANTIZATIONS
from tests.engines import config_of, random_engine

INT8 = Dtypes(FLOAT32.dtype, cache=QUANTIZATIONS["int8"])
ROWS, SLOW = 8, pytest.mark.slow


def engine_of(layout: str, attention: str, mesh: str, dtypes: Dtypes = FLOAT32) -> Engine:
    config = config_of("grouped", layers=1)
    return random_engine(config, attend_by(LAYOUTS[layout], attention), mesh, dtypes)


def rows_of(cache: KVCache) -> list[np.ndarray]:
    """Every array of a cache with its rows first."""
    arrays = map(np.asarray, jax.tree.leaves(cache))
    return [a if a.ndim == 4 else np.moveaxis(a, 1, 0) for a in arrays]


@pytest.mark.parametrize(
    ("layout", "attention", "mesh", "count", "slots", "first"),
    [("weight_stationary_1d", "heads", "1", 1, 32, [0]),
     pytest.param("weight_stationary_1d", "heads", "1", 4, FEW_SLOTS + 8, [0, 1, 2, 3],
                  marks=SLOW),
     pytest.param("data_parallel_x_1d", "sequence", "2x1x2", 4, 32, [0, 1, 4, 5], marks=SLOW)],
)  # fmt: skip
def test_a_step_of_few_rows_reads_and_writes_the_first_of_each_group_in_place(
    layout, attention, mesh, count, slots, first
):
    engine = engine_of(layout, attention, mesh)
    programs = Programs(engine)
    rows = programs.empty_rows(ROWS)._replace(
        tokens=engine.put(np.arange(ROWS, dtype=np.int32) + 7),
        lengths=engine.put(np.full(ROWS, 5, np.int32)),
    )
    draw = np.random.default_rng(0)
    made = jax.tree.map(
        lambda a: draw.normal(size=a.shape).astype(a.dtype), engine.new_cache(ROWS, slots)
    )
    place = lambda: jax.tree.map(  # noqa: E731
        lambda a, like: jax.device_put(a, like.sharding), made, engine.new_cache(ROWS, slots)
    )
    whole, _, all_chosen = programs.decode(place(), rows, engine.put(np.ones(ROWS, bool)))
    others = [row for row in range(ROWS) if row not in first]
    for array in rows_of(made):
        array[others] = np.nan  # what is read of them is seen
    active = engine.put(np.arange(count) != 1)
    found, found_rows, chosen = programs.decode(place(), rows, active)
    ran = [row for n, row in enumerate(first) if n != 1]
    kept = [n for n in range(count) if n != 1]
    assert np.asarray(chosen.tokens)[kept].tolist() == np.asarray(all_chosen.tokens)[ran].tolist()
    for before, after, full in zip(*map(rows_of, (made, found, whole)), strict=True):
        assert (after[ran] != before[ran]).any()
        np.testing.assert_allclose(after[ran], full[ran], rtol=1e-5, atol=1e-6)
        idle = [row for row in range(ROWS) if row not in ran]
        np.testing.assert_array_equal(after[idle], before[idle])
    lengths = np.full(ROWS, 5)
    lengths[ran] += 1
    assert np.asarray(found_rows.lengths).tolist() == lengths.tolist()
    program = programs.lowered.decode(found, rows, active).compile()
    layer = bytes_of(found) / engine.config.layers
    check_in_place(program, found, most=bytes_of(found) / 4 + layer * count / ROWS)


def bytes_of(cache: KVCache) -> int:
    """Bytes of a device's part."""
    return sum(array.addressable_shards[0].data.nbytes for array in jax.tree.leaves(cache))


def check_in_place(program: jax.stages.Compiled, cache: KVCache, most: float) -> None:
    """A device's part of the cache stays where it is, beside so many bytes at most."""
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes == bytes_of(cache)
    assert memory.temp_size_in_bytes < most
    shapes = {array.addressable_shards[0].data.shape for array in jax.tree.leaves(cache)}
    for shape in shapes:
        assert f"[{','.join(map(str, shape))}]" in program.as_text()
        assert not re.search(rf"\[{','.join(map(str, shape))}\]\S* copy\(", program.as_text())


@pytest.mark.parametrize("dtypes", [FLOAT32, pytest.param(INT8, marks=SLOW)])
def test_rows_change_places_with_all_that_they_hold(dtypes):
    engine = engine_of("data_parallel_x_1d", "heads", "2x1x1", dtypes)
    programs, draw = Programs(engine), np.random.default_rng(0)
    cache = jax.tree.map(
        lambda a: jax.device_put(draw.integers(1, 99, a.shape).astype(a.dtype), a.sharding),
        engine.new_cache(ROWS, 24),
    )
    rows = jax.tree.map(
        lambda a: engine.put(draw.integers(1, 99, a.shape).astype(a.dtype)),
        programs.empty_rows(ROWS),
    )
    program = programs.lowered.exchange(cache, rows, np.zeros(4, np.int32)).compile()
    check_in_place(program, cache, most=bytes_of(cache) * 2 / (ROWS // 2) + 4096)
    before, rows_before = rows_of(cache), jax.tree.map(np.asarray, rows)
    after, rows_after = programs.exchange(cache, rows, np.array([3, 0, 2, 2], np.int32))
    order = [3, 1, 2, 0, 4, 5, 6, 7]  # the second group's exchange is of a row with itself
    for old, new in zip(before, rows_of(after), strict=True):
        assert (new == old[order]).all()
    for old, new in zip(*map(jax.tree.leaves, (rows_before, rows_after)), strict=True):
        assert np.asarray(new).tolist() == old[order].tolist()
