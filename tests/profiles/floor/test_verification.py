"""The floor of a step that verifies drafts, against counts by hand of all that it runs."""

import pytest

from model.catalog import find_model
from model.dtypes import FLOAT32
from profiles.chips.chip import Peaks
from profiles.floor.bytes_and_flops import PassCounter
from profiles.floor.passes import Pass
from profiles.floor.speculation import draft_floor, verification, verification_floor
from sharding.catalog import LAYOUTS, attend_by
from sharding.placement import Placement
from tests.engines import config_of

ONE_D = LAYOUTS["weight_stationary_1d"]
ONE, TWO = {"x": 1, "y": 1, "z": 1}, {"x": 1, "y": 1, "z": 2}


def counter(config, layout=ONE_D, mesh=ONE) -> PassCounter:
    return PassCounter(config, Placement.of(layout, config.sizes, mesh), FLOAT32)


def test_a_step_of_five_tokens_reads_once_and_multiplies_and_writes_five_of_each_row():
    """SmolLM2-135M, 4 rows of 100 tokens: 4 drafted tokens beside the newest of each."""
    layers, width, heads, kv_heads, size, inner, vocabulary = 30, 576, 9, 3, 64, 1536, 49_152
    matrices = layers * (width * (2 * heads + 2 * kv_heads) * size + 3 * width * inner)
    table, norms = vocabulary * width, (2 * layers + 1) * width
    token = layers * 2 * kv_heads * size * 4
    each = counter(find_model("smollm2-135m"))
    counts = verification(each, Pass(4, 100, 5))
    assert counts.weights_read == 4 * (matrices + table + norms)
    assert (counts.kv_read, counts.kv_written) == (4 * 100 * token, 4 * 5 * token)
    pairs = 101 + 102 + 103 + 104 + 105
    attention = 4 * heads * size * layers * pairs
    assert counts.flops == 4 * (5 * 2 * (matrices + table) + attention)
    slow_memory = Peaks(bandwidth=1e6, flops=1e18, source="given")
    moved = counts.weights_read + 4 * 105 * token
    assert verification_floor(each, slow_memory, Pass(4, 100, 5)) == pytest.approx(moved / 1e6)
    slow_arithmetic = Peaks(bandwidth=1e18, flops=1e9, source="given")
    found = verification_floor(each, slow_arithmetic, Pass(4, 100, 5))
    assert found == pytest.approx(counts.flops / 1e9)
    one = (counts.weights_read + 4 * 101 * token) / 1e6  # a draft runs as many steps of one token
    assert draft_floor(each, slow_memory, Pass(4, 100, 5)) == pytest.approx(5 * one)


def test_where_slots_are_divided_each_device_meets_its_own_of_earlier_tokens():
    config = config_of("grouped", kv_heads=1)
    each = 4 * config.query_heads * config.head_size * config.layers
    whole = counter(config).attention_flops(Pass(2, 40, 3))
    assert whole == each * (3 * 40 + 1 + 2 + 3)
    divided = counter(config, attend_by(ONE_D, "sequence"), TWO).attention_flops
    assert divided(Pass(2, 40)) == each * 41 / 2
    assert divided(Pass(2, 40, 3)) == each * 3 * 40 / 2 + divided(Pass(2, 0, 3)) <= whole
