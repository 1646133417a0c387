"""Weights of CPUs in huge pages."""

import dataclasses
import mmap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decode.load import ModelSource
from model.catalog import find_model
from model.dtypes import FLOAT32
from sharding.catalog import LAYOUTS
from sharding.huge_pages import PAGE, in_huge_pages
from sharding.mesh import make_mesh, parse_mesh

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


def parameters(mesh: jax.sharding.Mesh) -> dict:
    """Arrays of several types, divided and whole, of which some do not fill the alignment."""
    values = {
        "divided": (np.arange(2**20, dtype=np.float32).reshape(4, -1), jax.P("z")),
        "whole": (np.arange(7, dtype=np.int8), jax.P()),
        "bits": (np.arange(12).astype(jnp.bfloat16).reshape(4, 3), jax.P(None, None)),
    }
    return {
        "layer": {
            name: jax.device_put(array, jax.NamedSharding(mesh, spec))
            for name, (array, spec) in values.items()
        }
    }


@pytest.mark.parametrize("shape", ["1x1x1", "1x1x2"])
def test_arrays_keep_values_types_and_shardings(shape):
    mesh = make_mesh(parse_mesh(shape))
    before, given = parameters(mesh), parameters(mesh)
    after = in_huge_pages(given, mesh)
    assert not given  # few arrays are held twice
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert new.dtype == old.dtype and new.sharding == old.sharding
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("shape", ["1x1x1", "1x1x2"])
def test_every_shard_has_memory_of_its_own_in_huge_pages(shape):
    mesh = make_mesh(parse_mesh(shape))
    places = [
        place
        for a in jax.tree.leaves(in_huge_pages(parameters(mesh), mesh))
        for place in addresses(a)
    ]
    assert len(set(places)) == 3 * mesh.size
    assert min(places) % PAGE == 0 and max(places) - min(places) < 2**23
    assert all(asks_for_huge_pages(place) for place in places)


def test_few_bytes_stay_where_they_are():
    mesh = make_mesh(parse_mesh("1x1x1"))
    small = {"scale": jnp.ones(576)}
    assert in_huge_pages(small, mesh) is small and small


def test_an_engine_s_weights_are_in_huge_pages():
    source = ModelSource(dataclasses.replace(find_model("tiny"), d_ff=2**12), None, None)
    engine = source.engine(LAYOUTS["weight_stationary_1d"], parse_mesh("1x1x1"), FLOAT32)
    weights = jax.tree.leaves(engine.parameters)
    assert all(asks_for_huge_pages(place) for a in weights for place in addresses(a))
