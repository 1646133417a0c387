"""Changes of sharding: one collective at a time, and the same values."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharding.collectives import reshard, reshard_path
from sharding.mesh import make_mesh, parse_mesh

X, Y, Z = "xyz"
DIVISIONS = [
    ((), (), ()),
    ((Z, Y, X), (), ()),
    ((X, Z, Y), (), ()),
    ((), (Z,), (Y, X)),
    ((X,), (Z, Y), ()),
    ((), (Z, Y), (X,)),
    ((Y,), (), (Z,)),
]


def test_each_move_is_one_collective():
    assert reshard_path(((), (Z, Y, X)), ((Z, Y, X), ())) == [((Z, Y, X), ())]  # one all-to-all
    assert reshard_path(((), (Z, Y, X)), ((), (Z, Y))) == [((), (Z, Y))]  # one all-gather
    assert reshard_path(((), (Z, Y)), ((), (Z, Y, X))) == [((), (Z, Y, X))]  # none
    assert reshard_path(((X,), ()), ((X,), ())) == []
    assert reshard_path(((X, Z, Y), ()), ((), (X,))) == [
        ((X,), ()),
        ((), (X,)),
    ]  # gather, all-to-all
    assert reshard_path(((), (Z,), (Y, X)), ((Z, Y, X), (), ())) == [((Z, Y, X), (), ())]
    assert reshard_path(((Z, Y, X), (), ()), ((), (Z,), (Y, X))) == [((), (Z,), (Y, X))]


@pytest.mark.parametrize(("start", "target"), list(itertools.permutations(DIVISIONS, 2)))
def test_moves_lead_there_without_dividing_twice_by_an_axis(start, target):
    path = reshard_path(start, target)
    assert path[-1] == target and len(path) <= 5
    for before, division in itertools.pairwise([start, *path]):
        used = [axis for axes in division for axis in axes]
        assert len(used) == len(set(used))
        pairs = [(a, b) for a, b in zip(before, division, strict=True) if a != b]
        assert all(a[: len(b)] == b or b[: len(a)] == a for a, b in pairs)
        lost = {axis for a, b in pairs for axis in a[len(b) :]}
        assert lost <= set(used) or not lost & set(used)  # an all-to-all, or a gather


@pytest.mark.parametrize("target", DIVISIONS)
def test_values_stay_and_xla_gathers_no_more_than_it_must(target, capfd):
    values = np.arange(8 * 8 * 16, dtype=np.float32).reshape(8, 8, 16)
    mesh = make_mesh(parse_mesh("2x2x2"))
    with jax.set_mesh(mesh):
        for start in DIVISIONS:
            where = jax.NamedSharding(mesh, jax.P(*(axes or None for axes in start)))
            array = jax.device_put(jnp.asarray(values), where)
            spec = jax.P(*(axes or None for axes in target))
            moved = jax.jit(lambda a, spec=spec: reshard(a, spec))(array)
            np.testing.assert_array_equal(moved, values)
            shard = moved.addressable_shards[0].data.shape
            assert np.prod(shard) == values.size // 2 ** len(sum(target, ()))
    assert "rematerialization" not in capfd.readouterr().err
