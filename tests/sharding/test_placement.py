"""A layout settled for sizes and a mesh: what divides, what is copied, what is refused."""

import jax
import pytest

from model.catalog import find_model
from sharding.catalog import LAYOUTS
from sharding.error_types import LayoutError
from sharding.layout import Layout
from sharding.mesh import parse_mesh
from sharding.placement import Placement, longest_dividing_run

ONE_D = LAYOUTS["weight_stationary_1d"]
SMOLLM2 = find_model("smollm2-135m").sizes
LLAMA3_70B = find_model("llama3-70b").sizes


def test_one_d_divides_d_ff_heads_and_vocabulary_over_all_axes():
    placement = Placement.of(ONE_D, LLAMA3_70B, parse_mesh("2x2x2"))
    assert placement.weights("CFD") == jax.P(None, ("x", "y", "z"), None)
    assert placement.weights("VD") == jax.P(("x", "y", "z"), None)
    assert placement.weights("KGhD") == jax.P(("x", "y", "z"), None, None, None)
    assert placement.cache("BKSh") == jax.P(None, ("x", "y", "z"), None, None)
    assert placement.activations("BTD") == jax.P(None, None, None)
    assert not placement.unused_axes("cache", "K")


def test_axes_that_do_not_divide_kv_heads_divide_query_heads_then_head_size():
    placement = Placement.of(ONE_D, LLAMA3_70B, parse_mesh("4x4x4"))  # 8 KV heads, 8 queries each
    assert placement.weights("KGhD") == jax.P("x", "y", "z", None)
    assert placement.weights("DKGh") == jax.P(None, "x", "y", "z")
    assert placement.activations("BTKG_") == jax.P(None, None, "x", "y", None)
    assert placement.copies(placement.weights("DKGh")) == 1
    # What is left copies the cache, and the placement says over which axes.
    assert placement.unused_axes("cache", "BKSh") == ("y", "z")
    assert placement.copies(placement.cache("BKSh")) == 16


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_no_weight_of_smollm2_is_copied_though_its_heads_do_not_divide(devices):
    placement = Placement.of(ONE_D, SMOLLM2, {"x": 1, "y": 1, "z": devices})
    for axes in ("KGhD", "DKGh", "CFD", "VD"):
        assert placement.copies(placement.weights(axes)) == 1
    assert placement.unused_axes("cache", "K") == ("z",)


def test_three_devices_divide_the_three_kv_heads_of_smollm2():
    placement = Placement.of(ONE_D, SMOLLM2, {"x": 1, "y": 1, "z": 3})
    assert placement.cache("BKSh") == jax.P(None, "z", None, None)
    assert not placement.unused_axes("cache", "K")


def test_d_ff_that_does_not_divide_is_refused_with_shard_counts_that_work():
    with pytest.raises(LayoutError) as refusal:
        Placement.of(ONE_D, SMOLLM2, {"x": 1, "y": 1, "z": 5})
    message = str(refusal.value)
    assert "d_ff is 1536" in message and "z=5" in message
    assert "use 2, 3, 4 or 6 shards" in message


def test_a_vocabulary_that_does_not_divide_is_copied_and_said_so():
    placement = Placement.of(ONE_D, {**SMOLLM2, "V": 49_153}, {"x": 1, "y": 1, "z": 2})
    assert placement.weights("VD") == jax.P(None, None)
    assert placement.unused_axes("weights", "VD") == ("z",)


def test_a_layout_is_data():
    mine = Layout(
        name="mlp_only",
        weights={"F": ("z",)},
        activations={"F": ("z",)},
        attention={},
        cache={},
        rules={},
        summary="only the MLP is divided",
    )
    placement = Placement.of(mine, SMOLLM2, {"x": 1, "y": 1, "z": 2})
    assert placement.weights("DF") == jax.P(None, "z")
    assert placement.copies(placement.weights("VD")) == 2


def test_the_longest_dividing_run_is_a_leading_one():
    mesh = {"x": 2, "y": 3, "z": 2}
    assert longest_dividing_run(12, ("x", "y", "z"), mesh) == (("x", "y", "z"), ())
    assert longest_dividing_run(6, ("x", "y", "z"), mesh) == (("x", "y"), ("z",))
    assert longest_dividing_run(3, ("x", "y", "z"), mesh) == ((), ("x", "y", "z"))
