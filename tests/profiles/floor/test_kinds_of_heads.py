"""What Gemma 4 costs, against numbers counted by hand, and against the compiler's."""

import pytest

from model.catalog import find_model
from model.dtypes import BFLOAT16, FLOAT32
from profiles.floor.activations import activation_bytes
from profiles.floor.alike_layers import kv_token_bytes
from profiles.floor.bytes_and_flops import PassCounter
from profiles.floor.passes import Pass
from profiles.floor.replication import replication_cost
from sharding.catalog import LAYOUTS
from sharding.placement import Placement
from tests.engines import carry_bytes, config_of, random_engine

LARGE, SMALL = find_model("gemma4-31b"), find_model("gemma4-e2b")
ONE, EIGHT = {"x": 1, "y": 1, "z": 1}, {"x": 1, "y": 1, "z": 8}


def placed(config, mesh) -> Placement:
    return Placement.of(LAYOUTS["weight_stationary_1d"], config.sizes, mesh)


def test_a_token_takes_other_bytes_in_layers_with_and_without_a_window():
    near, far = 50 * 16 * 256 * 2 * 2, 10 * 4 * 512 * 2 * 2  # keys and values in bfloat16
    assert kv_token_bytes(LARGE, placed(LARGE, ONE), BFLOAT16) == near + far
    # Eight chips divide 16 KV heads, and copy 4.
    assert kv_token_bytes(LARGE, placed(LARGE, EIGHT), BFLOAT16) == near / 8 + far
    (line,) = replication_cost(LARGE, placed(LARGE, EIGHT), BFLOAT16)
    assert line.startswith("4 KV heads do not divide over z=8, so the KV cache of layers with")


def test_a_borrowed_cache_is_kept_once_and_read_by_each_layer():
    """Of 35 layers each fifth sees all tokens, and the last 20 have no keys of their own."""
    counter = PassCounter(SMALL, placed(SMALL, ONE), BFLOAT16)
    counts = counter.count(Pass(2, 10_000, slots=16_384))
    near, far = 256 * 2 * 2, 512 * 2 * 2
    assert counts.kv_resident == 2 * (12 * 512 * near + 3 * 16_384 * far)
    assert counts.kv_written == 2 * (12 * near + 3 * far)
    assert counts.kv_read == 2 * (28 * 511 * near + 7 * 10_000 * far)
    # Rings are full; of the others every layer that reads one would read all slots.
    assert counter.unfilled(Pass(2, 10_000, slots=16_384)) == 2 * 7 * 6383 * far
    flops = 4 * 8 * (28 * 256 * 512 + 7 * 512 * 10_001)
    assert counter.attention_flops(Pass(2, 10_000)) == flops


def test_a_step_reads_one_row_of_the_table_for_layers():
    counter = PassCounter(SMALL, placed(SMALL, ONE), BFLOAT16)
    left = counter.resident - counter.weights_read(1)
    assert left == (262_144 - 1) * 35 * 256 * 2
    # What layers have of their own is there for the whole pass, a number of two bytes each.
    sizes = {"tokens": 1}
    whole = activation_bytes(SMALL, placed(SMALL, ONE), BFLOAT16, **sizes)
    assert whole > 35 * 256 * 2 + 262_144 * 4


@pytest.mark.parametrize(
    ("family", "mesh"),
    [
        pytest.param("borrowed_caches", "1x1x2", marks=pytest.mark.slow),
        pytest.param("two_kinds_of_heads", "2x2x2", marks=pytest.mark.long),
        pytest.param("experts_beside_mlp", "1x1x2", marks=pytest.mark.long),
    ],
)
def test_resident_bytes_equal_the_compilers(family, mesh):
    engine = random_engine(config_of(family), LAYOUTS["weight_stationary_1d"], mesh, FLOAT32)
    memory = engine.lower_decode(3, 64).compile().memory_analysis()
    counted = PassCounter(engine.config, engine.placement, FLOAT32).count(Pass(3, 10, slots=64))
    expected = counted.weights_resident + counted.kv_resident + carry_bytes(3)
    assert memory.argument_size_in_bytes == expected
    assert memory.alias_size_in_bytes == counted.kv_resident
