"""Counts by block add up to those of the whole pass, whatever the model and its layout."""

import itertools

import jax.numpy as jnp
import pytest

from model.dtypes import FLOAT32, Dtypes
from profiles.floor.block_counts import BLOCKS, block_counts, block_of_weight
from profiles.floor.bytes_and_flops import PassCounter, declared
from profiles.floor.passes import Pass
from sharding.catalog import LAYOUTS
from sharding.placement import Placement
from sharding.quantization import QUANTIZATIONS
from tests.engines import FAMILIES, config_of

DTYPES = FLOAT32, Dtypes(jnp.dtype("bfloat16"), QUANTIZATIONS["int8"], QUANTIZATIONS["int8"])
PASSES = Pass(4, 100), Pass(8, 0, 64), Pass(4, 64, 32)
MESHES = {"x": 1, "y": 1, "z": 1}, {"x": 2, "y": 2, "z": 2}


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_add_up_to_the_whole_pass_exactly(family):
    config = config_of(family)
    for mesh, dtypes, pass_ in itertools.product(MESHES, DTYPES, PASSES):
        placement = Placement.of(LAYOUTS["weight_stationary_2d"], config.sizes, mesh)
        whole = PassCounter(config, placement, dtypes).count(pass_)
        blocks = block_counts(config, placement, dtypes, pass_)
        assert set(blocks) <= {*BLOCKS} and list(blocks) == [b for b in BLOCKS if b in blocks]
        assert sum(block.flops for block in blocks.values()) == whole.flops
        moved = whole.weights_read + whole.kv_read + whole.kv_written
        assert sum(block.bytes for block in blocks.values()) == pytest.approx(moved, rel=1e-15)


def test_experts_that_were_touched_are_those_that_the_block_reads():
    config = config_of("experts")
    placement = Placement.of(LAYOUTS["weight_stationary_1d"], config.sizes, MESHES[0])
    few, all_ = (
        block_counts(config, placement, FLOAT32, Pass(1, 100), touched) for touched in (2.0, "all")
    )
    assert few["experts"].bytes < all_["experts"].bytes < 4 * few["experts"].bytes
    assert few["attention"] == all_["attention"]


@pytest.mark.parametrize(
    ("family", "block", "names"),
    [
        ("multi_head_untied", "embedding", {"embedding"}),
        ("multi_head_untied", "unembedding", {"unembedding"}),
        ("grouped", "unembedding", {"embedding"}),
        ("grouped", "output projection", {"output"}),
        ("biased_windowed", "query/key/value", {"query", "key_value", "query_bias",
                                                  "key_value_bias"}),
        ("experts", "experts", {"router", "gate_up", "down"}),
        ("grouped", "MLP", {"gate_up", "down"}),
    ],
)  # fmt: skip
def test_a_weight_belongs_to_the_block_that_multiplies_by_it(family, block, names):
    config = config_of(family)
    paths = [each.path for each in declared(config, FLOAT32)]
    mine = [path for path in paths if block_of_weight(path, config) == block]
    assert {str(path[0 if path[0] != "layers" else 3]) for path in mine} == names
