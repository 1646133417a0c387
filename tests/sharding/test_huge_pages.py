"""Weights of CPUs in huge pages."""

import math
import mmap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.catalog import find_model
from model.declarations import declarations
from model.dtypes import FLOAT32
from model.parameters import place_parameters
from model.transformer import Transformer
from profiles.measured.bandwidth import read_operands
from sharding.catalog import LAYOUTS
from sharding.huge_pages import PAGE, Convert, convert_to_stay
from sharding.mesh import make_mesh, parse_mesh
from sharding.placement import Placement

pytestmark = pytest.mark.skipif(
    not hasattr(mmap, "MADV_HUGEPAGE"), reason="the system has no huge pages"
)


def addresses(array: jax.Array) -> list[int]:
    return [shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards]


def asks_for_huge_pages(address: int) -> bool:
    """Whether the system is asked for huge pages at this address (the flag `hg` in smaps)."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= address < end
        elif inside and first == "VmFlags:":
            return "hg" in rest
    return False


def place(
    values: np.ndarray, dtype: jnp.dtype, mesh: jax.sharding.Mesh, spec: jax.P, stay: Convert
):
    return jax.make_array_from_callback(
        values.shape, jax.NamedSharding(mesh, spec), lambda index: stay(values[index], dtype)
    )


CASES = [
    ((4, 2**18), jnp.float32, jax.P("z")),
    ((7,), jnp.int8, jax.P(None)),
    ((2, 3), jnp.bfloat16, jax.P("z", None)),
    ((3, 2**21), jnp.int8, jax.P(None, "z")),  # with those before, more than a region
]
REGION = 2**23  # bytes asked for at a time


@pytest.mark.parametrize("shape", ["1x1x1", "1x1x2"])
def test_arrays_have_memory_of_their_own_in_huge_pages(shape, monkeypatch):
    monkeypatch.setattr("sharding.huge_pages._REGION", REGION)
    mesh = make_mesh(parse_mesh(shape))
    stay = convert_to_stay(mesh)
    values = [np.arange(math.prod(sizes)).reshape(sizes) % 100 for sizes, _, _ in CASES]
    arrays = [
        place(each, dtype, mesh, spec, stay)
        for each, (_, dtype, spec) in zip(values, CASES, strict=True)
    ]
    for array, each, (_, dtype, _) in zip(arrays, values, CASES, strict=True):
        assert array.dtype == dtype
        np.testing.assert_array_equal(np.asarray(array, np.int64), each)
        assert all(asks_for_huge_pages(place) for place in addresses(array))
    assert addresses(arrays[0])[0] % PAGE == 0
    # One behind the other: the second begins where the first ends.
    if mesh.size == 1:
        assert addresses(arrays[1])[0] - addresses(arrays[0])[0] == 2**22


def test_pieces_of_many_threads_do_not_overlap():
    stay = convert_to_stay(make_mesh(parse_mesh("1x1x1")))
    with ThreadPoolExecutor(8) as pool:
        given = [np.full(100_003, number) for number in range(64)]
        pieces = list(pool.map(lambda values: stay(values, np.int32), given))
    for values, piece in zip(given, pieces, strict=True):
        np.testing.assert_array_equal(piece, values)


def read_whole(model: Transformer) -> list[tuple]:
    return [(path, np.zeros(p.shape, np.float32)) for path, p in declarations(model).items()]


def test_a_file_s_weights_stay_in_huge_pages():
    model = Transformer(find_model("tiny"), FLOAT32)
    shape = parse_mesh("1x1x1")
    placement = Placement.of(LAYOUTS["weight_stationary_1d"], model.config.sizes, shape)
    weights = place_parameters(model, read_whole(model), placement, make_mesh(shape))
    assert all(asks_for_huge_pages(p) for a in jax.tree.leaves(weights) for p in addresses(a))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell")
def test_what_measures_the_memory_of_a_cpu_is_in_huge_pages_as_weights_are():
    """Else its rate would be too low, and with it all floors too long."""
    big, _ = read_operands(make_mesh(parse_mesh("2")), 4 * PAGE)
    assert all(map(asks_for_huge_pages, addresses(big)))
    assert big.nbytes == 4 * PAGE
    assert np.asarray(big).min() == 0.5
