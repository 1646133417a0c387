"""Layouts of the catalogue, and with experts divided over chips."""

import dataclasses

import jax
import pytest

from model.catalog import find_model
from sharding.catalog import ATTENTION, LAYOUTS, attend_by, divide_experts, find_layout, prefill_by
from sharding.error_types import LayoutError, UsageError
from sharding.mesh import parse_mesh
from sharding.placement import Placement

ONE_D = LAYOUTS["weight_stationary_1d"]
MIXTRAL = find_model("mixtral-8x7b").sizes
GATE_UP, DOWN = "ECFD", "EDF"


@pytest.mark.parametrize("name", LAYOUTS)
def test_experts_take_every_mesh_axis_before_what_is_in_them_and_no_other_array_changes(name):
    base, divided = (
        Placement.of(layout, MIXTRAL, parse_mesh("2x2x2"))
        for layout in (LAYOUTS[name], divide_experts(LAYOUTS[name]))
    )
    for kind in ("weights", "use"):
        assert getattr(divided, kind)(GATE_UP) == jax.P(("z", "y", "x"), None, None, None)
        assert getattr(divided, kind)(DOWN) == jax.P(("z", "y", "x"), None, None)
        for axes in ("KGhD", "VD", "eD", "CFD"):
            assert getattr(divided, kind)(axes) == getattr(base, kind)(axes)
    assert divided.beside_stored("BTD") == base.beside_stored("BTD")
    assert not divided.unused_axes("weights", GATE_UP)


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
    placement = Placement.of(
        divide_experts(LAYOUTS[name]), {**MIXTRAL, "E": 6}, parse_mesh("2x2x2")
    )
    assert placement.weights("EFD") == jax.P(*stored)
    assert placement.use("EFD") == jax.P(*use)
    assert placement.unused_axes("weights", GATE_UP) == copied


def test_d_ff_need_only_divide_what_experts_leave():
    layout, odd = divide_experts(ONE_D), {**MIXTRAL, "F": 14_337}
    assert Placement.of(layout, odd, parse_mesh("2x2x2")).unused_axes("weights", GATE_UP) == ()
    with pytest.raises(LayoutError, match=r"d_ff is 14337, .* x=2 y=2 \(4 shards\) .*; use "):
        Placement.of(layout, odd | {"E": 6}, parse_mesh("2x2x2"))
    with pytest.raises(LayoutError, match=r"d_ff is 14337, .* x=2 y=2 z=2 \(8 shards\)"):
        Placement.of(ONE_D, odd, parse_mesh("2x2x2"))


@pytest.mark.parametrize("attention", ATTENTION)
def test_prompts_divide_experts_as_steps_do(attention):
    steps = attend_by(LAYOUTS["weight_stationary_2d"], attention)
    both = divide_experts(prefill_by(steps, LAYOUTS["weight_gathered_xyz"]))
    placement = Placement.of(both, MIXTRAL, parse_mesh("2x2x2"))
    assert placement.weights(GATE_UP) == placement.prefill.weights(GATE_UP)
    assert placement.prefill.use(GATE_UP) == placement.weights(GATE_UP)
    assert placement.cache("BKSh") == placement.prefill.cache("BKSh")


def test_layouts_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ONE_D.name = "other"
    with pytest.raises(UsageError, match="layout is 'nosuch'; use one of weight_stationary_1d"):
        find_layout("nosuch")
