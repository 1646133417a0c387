"""Rows of a cache taken out and put back, on devices that divide it in every way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decode.batching.cache_rows import put_rows, take_rows
from model.cache import KVCache, abstract_cache, with_shardings
from model.cache_write import NewTokens
from model.dtypes import Dtypes
from sharding.catalog import LAYOUTS, attend_by
from sharding.mesh import make_mesh, parse_mesh
from sharding.placement import Placement
from sharding.quantization import QUANTIZATIONS
from tests.engines import config_of

ROWS, SLOTS = 8, 24
PLAIN, INT8 = Dtypes(jnp.float32), Dtypes(jnp.float32, cache=QUANTIZATIONS["int8"])


def random_cache(placement: Placement, mesh: jax.sharding.Mesh, family: str, dtypes) -> KVCache:
    shapes = abstract_cache(config_of(family), ROWS, SLOTS, dtypes, placement.multiple("S"))
    draw = np.random.default_rng(0)
    return jax.tree.map(
        lambda a: jax.device_put(draw.integers(1, 99, a.shape).astype(a.dtype), a.sharding),
        with_shardings(shapes, placement, mesh, config_of(family)),
    )


@pytest.mark.parametrize(
    ("layout", "attention", "mesh", "family", "dtypes"),
    [("weight_stationary_1d", "heads", "1x1x2", "two_norms_and_caps", PLAIN),
     ("weight_stationary_1d", "sequence", "1x1x2", "biased_windowed", INT8),
     ("data_parallel_x_1d", "heads", "2x1x2", "grouped", INT8),
     ("weight_gathered_x", "batch", "2x2x1", "biased_windowed", PLAIN),
     ("weight_stationary_1d", "heads", "1x1x2", "borrowed_caches", INT8)],
)  # fmt: skip
def test_rows_go_where_they_should_and_only_what_is_seen(layout, attention, mesh, family, dtypes):
    config, shape = config_of(family), parse_mesh(mesh)
    placement = Placement.of(attend_by(LAYOUTS[layout], attention), config.sizes, shape)
    mesh = make_mesh(shape)
    cache = random_cache(placement, mesh, family, dtypes)
    groups = placement.parts(("cache", "B"))
    each, lanes = ROWS // groups, 2 * groups
    local = np.arange(lanes, dtype=np.int32) % 2  # of each group: row 0, then 1
    target = (local + 1) % each
    first = np.resize(np.array([7, 3, 0, 20], np.int32), lanes)
    count = np.resize(np.array([1, 2, 3, 0], np.int32), lanes)
    put = lambda array: jax.device_put(array, jax.NamedSharding(mesh, jax.P(None)))  # noqa: E731

    @jax.jit
    def both(cache, rows, target, new):
        part = take_rows(cache, rows, new, placement, config)
        return part, put_rows(cache, part, target, placement, config)

    with jax.set_mesh(mesh):
        part, after = both(cache, put(local), put(target), NewTokens(put(first), put(count)))
    of_lane = np.arange(lanes) // 2 * each
    for kind in range(2):
        for layer in range(config.layers):
            before, taken, now = (
                jax.tree.leaves(jax.tree.map(np.asarray, each[kind][layer]))
                for each in (cache, part, after)
            )
            for old, cut, new in zip(before, taken, now, strict=True):
                at, slots = (0, 2) if old.ndim == 4 else (1, 2)
                old, cut, new = (np.moveaxis(a, (at, slots), (0, 1)) for a in (old, cut, new))
                expected = old.copy()
                for lane in range(lanes):
                    row = old[of_lane[lane] + local[lane]].copy()
                    if count[lane]:
                        seen = seen_slots(first[lane], len(row), config.window(layer))
                        row[[slot for slot in range(len(row)) if slot not in seen]] = 0
                    assert (cut[lane] == row).all()
                    expected[of_lane[lane] + target[lane]] = row
                assert (new == expected).all()


def seen_slots(first: int, slots: int, window: int | None) -> set[int]:
    """Slots of the tokens that one at this position sees, itself apart."""
    earliest = 0 if window is None else max(first - window + 1, 0)
    return {position % slots for position in range(earliest, first)}
