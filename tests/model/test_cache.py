"""Cache writes: each token to its slot, in place, dropped past the end, in the cache's form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.cache import CACHE_AXES, PADDING, QuantizedKV, abstract_cache, round_up_to_tiles
from model.cache_write import NewTokens, _scatter, write
from model.cache_write_tpu import write_tokens
from model.catalog import find_model
from model.dtypes import FLOAT32, Dtypes
from sharding.catalog import LAYOUTS, attend_by
from sharding.mesh import make_mesh, parse_mesh
from sharding.placement import Placement
from sharding.quantization import QUANTIZATIONS, round_rows, stored_bytes
from tests.engines import config_of
from tests.scripts.running import USUAL_KERNELS

K, S, h = 2, 8, 4
SLOW = pytest.mark.slow
DTYPES = {
    "float32": FLOAT32,
    "int8": Dtypes(jnp.float32, None, QUANTIZATIONS["int8"]),
    "fp8": Dtypes(jnp.float32, None, QUANTIZATIONS["fp8"]),
}


WRITTEN = ("float32", "int8", pytest.param("fp8", marks=SLOW))  # codes of 8 bits all


@pytest.fixture(
    params=[("1x1x1", "heads"), pytest.param(("1x1x2", "heads"), marks=SLOW), ("1x1x2", "sequence")]
)
def setting(request):
    shape, layout = parse_mesh(request.param[0]), LAYOUTS["weight_stationary_1d"]
    placement = Placement.of(attend_by(layout, request.param[1]), find_model("tiny").sizes, shape)
    return placement, make_mesh(shape)


def run(setting, positions, dtypes, new=None, **how):
    """A cache of -1s with tokens written at `positions`, 1, 2, ..."""
    with jax.set_mesh(setting[1]):
        step, given = write_step(setting, positions, dtypes, new, **how)
        found = step(*given)
        return np.asarray(meant(found) if isinstance(found, QuantizedKV) else found)


def write_step(setting, positions, dtypes, new=None, **how):
    """The write of `run`, and what it is given; in the context of the mesh."""
    placement = setting[0]
    B, T = positions.shape
    if new is None:
        new = np.arange(1, B * T + 1).reshape(B, T, 1, 1) * np.ones((1, 1, K, h))
    full = jnp.full((B, K, S, h), -1.0, out_sharding=placement.cache("BKSh"))
    full = full if dtypes is FLOAT32 else jax.jit(stored, static_argnums=1)(full, dtypes.cache)
    new = jax.device_put(np.float32(new), placement.cache("BTKh"))
    where = NewTokens.at(jax.device_put(positions, jax.P(None, None)))
    how = {"ring": False, "continues": True} | how
    step = jax.jit(lambda c, n, w: write(c, n, w, placement, dtypes, **how), donate_argnums=0)
    return step, (full, new, where)


def stored(full, quantization):
    """A cache of these values in few bits, its scales [K, B, S]."""
    values, scales = round_rows(full, quantization)
    return QuantizedKV(values, jnp.swapaxes(scales, 0, 1))


def meant(cache):
    return cache.values.astype(jnp.float32) * jnp.swapaxes(cache.scales, 0, 1)[..., None]


@pytest.mark.parametrize("dtypes", WRITTEN)
@pytest.mark.parametrize(
    "positions",
    [[[0], [7], [3]], [[6, 7, 8, 9]],
     *(pytest.param(each, marks=SLOW) for each in ([[5]], [[1, 2, 3], [4, 5, 6]]))],
)  # fmt: skip
def test_tokens_land_in_their_slots_and_nowhere_else(setting, positions, dtypes):
    positions = np.array(positions, np.int32)
    expected = np.full((len(positions), K, S, h), -1.0)
    for b, row in enumerate(positions):
        for t, slot in enumerate(row):
            if slot < S:  # past the last slot: dropped
                expected[b, :, slot] = b * len(row) + t + 1
    found = run(setting, positions, DTYPES[dtypes])
    np.testing.assert_allclose(found, expected, rtol=0 if dtypes == "float32" else 1e-6)


@pytest.mark.parametrize("dtypes", WRITTEN)
@pytest.mark.parametrize(("tokens", "ring"), [(3, False), (S, False), (12, True), (3, True)])
def test_prompts_land_in_the_first_slots_and_the_last_of_long_ones_in_a_ring(
    setting, tokens, ring, dtypes
):
    lengths = np.array([tokens, 2])
    place = np.arange(tokens, dtype=np.int32)
    positions = np.where(place < lengths[:, None], place, PADDING)
    found = run(setting, positions, DTYPES[dtypes], ring=ring, continues=False)
    tolerance = 0 if dtypes == "float32" else 1e-6
    for b, length in enumerate(lengths):
        for position in range(max(0, length - S), length):
            token = b * tokens + position + 1
            np.testing.assert_allclose(found[b, :, position % S], token, rtol=tolerance)
    np.testing.assert_array_equal(found[:, :, tokens:], -1)  # nor is any other slot written


@pytest.mark.parametrize("dtypes", WRITTEN)
@pytest.mark.parametrize(
    ("first", "tokens"),
    [(0, 12), (21, 6), (9, 20),
     *(pytest.param(*case, marks=SLOW) for case in ((3, 3), (5, 8), (15, 2)))],
)  # fmt: skip
def test_what_follows_in_a_ring_takes_the_place_of_the_oldest(setting, first, tokens, dtypes):
    firsts = np.array([first, first + 2], np.int32)
    counts = np.array([tokens, max(tokens - 2, 1)])
    order = np.arange(tokens, dtype=np.int32)
    positions = np.where(order < counts[:, None], firsts[:, None] + order, PADDING)
    expected = np.full((2, K, S, h), -1.0)
    for b in range(2):
        for t in range(counts[b]):
            expected[b, :, (firsts[b] + t) % S] = b * tokens + t + 1
    found = run(setting, positions.astype(np.int32), DTYPES[dtypes], ring=True)
    np.testing.assert_allclose(found, expected, rtol=0 if dtypes == "float32" else 1e-6)


@pytest.mark.parametrize("dtypes", ["int8", "fp8"])
def test_a_round_trip_is_within_half_a_step_and_rows_of_zeros_stay(setting, dtypes):
    new = np.random.default_rng(0).normal(size=(3, S, K, h)).astype(np.float32)
    new[1, 2] = 0
    positions = np.tile(np.arange(S, dtype=np.int32), (3, 1))
    found = np.swapaxes(run(setting, positions, DTYPES[dtypes], new), 1, 2)
    scales = np.abs(new).max(axis=-1, keepdims=True) / QUANTIZATIONS[dtypes].largest
    half = scales / 2
    if dtypes == "fp8":  # 3 bits of fraction, and steps of 2**-9 near zero
        half = np.maximum(np.abs(new) / 16, scales * 2**-10)
    assert (np.abs(found - new) <= half * 1.0001).all() and not found[1, 2].any()
    assert (found != new).any()


# Not fp8: XLA:CPU has no scatter of it, and makes one of float16, converted there and back.
@pytest.mark.parametrize("dtypes", [pytest.param("float32", marks=SLOW), "int8"])
@pytest.mark.parametrize(
    ("positions", "continues"),
    [([[5]], True), ([[0], [7]], True), ([[0, 1, 2]] * 2, False), ([[3, 4, 5]] * 2, True)],
)
def test_a_write_moves_no_whole_cache(setting, positions, continues, dtypes):
    how = {"continues": len(positions[0]) == 1 or continues}
    placement, mesh = setting
    with jax.set_mesh(mesh):
        step, given = write_step(setting, np.array(positions, np.int32), DTYPES[dtypes], **how)
        compiled = step.lower(*given).compile(compiler_options=USUAL_KERNELS)
    where = jax.NamedSharding(mesh, placement.cache(CACHE_AXES))
    batch, heads, slots, _ = where.shard_shape((len(positions), K, S, h))
    token = {"float32": h * 4, "int8": h + 4}[dtypes]  # bytes, the scale's included
    assert compiled.memory_analysis().alias_size_in_bytes == batch * heads * slots * token
    element = {"float32": "f32", "int8": "s8"}[dtypes]
    shapes = [f"{element}[{batch},{heads},{slots},{h}]{{", f"f32[{heads},{batch},{slots}]{{"]
    text = compiled.as_text().splitlines()
    for shape in shapes[: 1 if dtypes == "float32" else 2]:
        lines = [line for line in text if shape in line]
        assert lines and not [line for line in lines if " copy(" in line or " select(" in line]


def test_slots_on_tpus_are_whole_tiles_and_of_scales_whole_registers():
    assert [round_up_to_tiles(slots, FLOAT32) for slots in (1, 32, 2049)] == [32, 32, 2080]
    assert [round_up_to_tiles(slots, DTYPES["int8"]) for slots in (1, 128, 2049)] == [
        128,
        128,
        2176,
    ]


@pytest.mark.parametrize(("dtypes", "beside"), [("float32", 0), ("int8", 4)])
def test_latent_attention_caches_a_latent_and_a_rotary_key_and_nothing_else(dtypes, beside):
    """With a scale of 4 bytes for both where they are in few bits."""
    config, types = config_of("latent"), DTYPES[dtypes]
    cache = abstract_cache(config, batch=3, slots=16, dtypes=types)
    sizes = config.latent
    assert [keys.shape for keys in cache.keys] == [(3, 1, 16, sizes.rank + sizes.rotary)] * 2
    assert cache.values == (None, None)
    held = sum(stored_bytes(leaf) for leaf in jax.tree.leaves(cache))
    number = 4 if dtypes == "float32" else 1
    assert held == 2 * 3 * 16 * ((sizes.rank + sizes.rotary) * number + beside)


@pytest.mark.parametrize(
    ("dtype", "count"), [("float32", S), pytest.param("int8", 256, marks=SLOW)]
)
def test_tokens_written_into_a_cache_by_its_slots_are_those_that_are_scattered(dtype, count):
    """As on TPUs where a head is no whole number of registers; some belong in no slot here."""
    random = np.random.default_rng(0)
    cache, new = (
        jnp.asarray(random.integers(-99, 99, size=n), dtype)
        for n in ((5, K, count, h), (4, 1, K, h))
    )
    slots = jnp.array([[3], [count], [-2], [count - 1]], jnp.int32)
    found = write_tokens(cache, new, slots, interpret=True)
    np.testing.assert_array_equal(found, _scatter(CACHE_AXES, cache, new, slots))
    changed = [True, False, False, True, False]  # there are no tokens of the last sequence
    assert (found != cache).any(axis=(1, 2, 3)).tolist() == changed
