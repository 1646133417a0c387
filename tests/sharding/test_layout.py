"""Layouts: what divides, what is copied and said so, what is refused."""

import dataclasses

import jax
import pytest

from model.catalog import find_model
from sharding.errors import LayoutError, UsageError
from sharding.layout import (
    ATTENTION,
    LAYOUTS,
    attend_by,
    divide_experts,
    find_layout,
    prefill_by,
)
from sharding.mesh import parse_mesh
from sharding.placement import Layout, longest_dividing_run

ONE_D = LAYOUTS["weight_stationary_1d"]
SMOLLM2 = find_model("smollm2-135m").sizes
LLAMA3_70B = find_model("llama3-70b").sizes


def test_one_d_divides_d_ff_heads_and_vocabulary_over_all_axes():
    placement = ONE_D.check(LLAMA3_70B, parse_mesh("2x2x2"))
    assert placement.weights("C", "F", "D") == jax.P(None, ("x", "y", "z"), None)
    assert placement.weights("V", "D") == jax.P(("x", "y", "z"), None)
    assert placement.weights("K", "G", "h", "D") == jax.P(("x", "y", "z"), None, None, None)
    assert placement.cache("B", "K", "S", "h") == jax.P(None, ("x", "y", "z"), None, None)
    assert placement.activations("B", "T", "D") == jax.P(None, None, None)
    assert not placement.left_over("cache", ("K",))


def test_axes_that_do_not_divide_kv_heads_divide_query_heads_then_head_size():
    placement = ONE_D.check(LLAMA3_70B, parse_mesh("4x4x4"))  # 8 KV heads, 8 queries each
    assert placement.weights("K", "G", "h", "D") == jax.P("x", "y", "z", None)
    assert placement.weights("D", "K", "G", "h") == jax.P(None, "x", "y", "z")
    assert placement.activations("B", "T", "K", "G", None) == jax.P(None, None, "x", "y", None)
    assert placement.copies(placement.weights("D", "K", "G", "h")) == 1
    # What is left copies the cache, and the placement says over which axes.
    assert placement.left_over("cache", ("B", "K", "S", "h")) == ("y", "z")
    assert placement.copies(placement.cache("B", "K", "S", "h")) == 16


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_no_weight_of_smollm2_is_copied_though_its_heads_do_not_divide(devices):
    placement = ONE_D.check(SMOLLM2, {"x": 1, "y": 1, "z": devices})
    for axes in (("K", "G", "h", "D"), ("D", "K", "G", "h"), ("C", "F", "D"), ("V", "D")):
        assert placement.copies(placement.weights(*axes)) == 1
    assert placement.left_over("cache", ("K",)) == ("z",)


def test_three_devices_divide_the_three_kv_heads_of_smollm2():
    placement = ONE_D.check(SMOLLM2, {"x": 1, "y": 1, "z": 3})
    assert placement.cache("B", "K", "S", "h") == jax.P(None, "z", None, None)
    assert not placement.left_over("cache", ("K",))


def test_d_ff_that_does_not_divide_is_refused_with_shard_counts_that_work():
    with pytest.raises(LayoutError) as refusal:
        ONE_D.check(SMOLLM2, {"x": 1, "y": 1, "z": 5})
    message = str(refusal.value)
    assert "d_ff is 1536" in message and "z=5" in message
    assert "use 2, 3, 4 or 6 shards" in message


def test_a_vocabulary_that_does_not_divide_is_copied_and_said_so():
    placement = ONE_D.check({**SMOLLM2, "V": 49_153}, {"x": 1, "y": 1, "z": 2})
    assert placement.weights("V", "D") == jax.P(None, None)
    assert placement.left_over("weights", ("V", "D")) == ("z",)


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
    placement = mine.check(SMOLLM2, {"x": 1, "y": 1, "z": 2})
    assert placement.weights("D", "F") == jax.P(None, "z")
    assert placement.copies(placement.weights("V", "D")) == 2


MIXTRAL = find_model("mixtral-8x7b").sizes
GATE_UP, DOWN = ("E", "C", "F", "D"), ("E", "D", "F")


@pytest.mark.parametrize("name", LAYOUTS)
def test_experts_take_every_mesh_axis_before_what_is_in_them_and_no_other_array_changes(name):
    base, divided = (
        layout.check(MIXTRAL, parse_mesh("2x2x2"))
        for layout in (LAYOUTS[name], divide_experts(LAYOUTS[name]))
    )
    for kind in ("weights", "use"):
        assert getattr(divided, kind)(*GATE_UP) == jax.P(("z", "y", "x"), None, None, None)
        assert getattr(divided, kind)(*DOWN) == jax.P(("z", "y", "x"), None, None)
        for axes in (("K", "G", "h", "D"), ("V", "D"), ("e", "D"), ("C", "F", "D")):
            assert getattr(divided, kind)(*axes) == getattr(base, kind)(*axes)
    assert divided.beside_stored("B", "T", "D") == base.beside_stored("B", "T", "D")
    assert not divided.left_over("weights", GATE_UP)


@pytest.mark.parametrize(
    ("name", "stored", "use", "copied"),
    [
        ("weight_stationary_1d", ("z", ("x", "y"), None), ("z", ("x", "y"), None), ()),
        ("weight_stationary_2d", ("z", "y", "x"), ("z", "y", "x"), ()),
        ("weight_gathered_xyz", ("z", "y", "x"), ("z", None, None), ()),
        ("data_parallel_x_1d", ("z", "y", None), ("z", "y", None), ("x",)),
    ],
)
def test_axes_that_do_not_divide_the_experts_divide_d_ff_and_d_model(name, stored, use, copied):
    placement = divide_experts(LAYOUTS[name]).check({**MIXTRAL, "E": 6}, parse_mesh("2x2x2"))
    assert placement.weights("E", "F", "D") == jax.P(*stored)
    assert placement.use("E", "F", "D") == jax.P(*use)
    assert placement.left_over("weights", GATE_UP) == copied


def test_d_ff_need_only_divide_what_experts_leave():
    layout, odd = divide_experts(ONE_D), {**MIXTRAL, "F": 14_337}
    assert layout.check(odd, parse_mesh("2x2x2")).left_over("weights", GATE_UP) == ()
    with pytest.raises(LayoutError, match=r"d_ff is 14337, .* x=2 y=2 \(4 shards\) .*; use "):
        layout.check(odd | {"E": 6}, parse_mesh("2x2x2"))
    with pytest.raises(LayoutError, match=r"d_ff is 14337, .* x=2 y=2 z=2 \(8 shards\)"):
        ONE_D.check(odd, parse_mesh("2x2x2"))


@pytest.mark.parametrize("attention", ATTENTION)
def test_prompts_divide_experts_as_steps_do(attention):
    steps = attend_by(LAYOUTS["weight_stationary_2d"], attention)
    both = divide_experts(prefill_by(steps, LAYOUTS["weight_gathered_xyz"]))
    placement = both.check(MIXTRAL, parse_mesh("2x2x2"))
    assert placement.weights(*GATE_UP) == placement.prefill.weights(*GATE_UP)
    assert placement.prefill.use(*GATE_UP) == placement.weights(*GATE_UP)
    assert placement.cache("B", "K", "S", "h") == placement.prefill.cache("B", "K", "S", "h")


def test_layouts_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ONE_D.name = "other"
    with pytest.raises(UsageError, match="layout is 'nosuch'; use one of weight_stationary_1d"):
        find_layout("nosuch")


def test_the_longest_dividing_run_is_a_leading_one():
    mesh = {"x": 2, "y": 3, "z": 2}
    assert longest_dividing_run(12, ("x", "y", "z"), mesh) == (("x", "y", "z"), ())
    assert longest_dividing_run(6, ("x", "y", "z"), mesh) == (("x", "y"), ("z",))
    assert longest_dividing_run(3, ("x", "y", "z"), mesh) == ((), ("x", "y", "z"))
