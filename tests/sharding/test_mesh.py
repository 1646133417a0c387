"""Meshes: how they are written, and what is refused."""

import jax
import pytest

from sharding.error_types import LayoutError, UsageError
from sharding.mesh import make_mesh, parse_mesh, request_cpu_devices


@pytest.mark.parametrize(
    ("text", "sizes"), [("8", (1, 1, 8)), ("2x4", (1, 2, 4)), ("2x3x4", (2, 3, 4))]
)
def test_missing_axes_are_one(text, sizes):
    assert tuple(parse_mesh(text).values()) == sizes


@pytest.mark.parametrize(
    "text", ["", "0", "2x0", "axb", "2x", "1x2x3x4", "-2", "2,2", " 2", "1x" + "9" * 5000]
)
def test_what_is_no_mesh_is_refused(text):
    with pytest.raises(UsageError, match="mesh is"):
        parse_mesh(text)


def test_a_mesh_has_explicit_axes_in_order():
    mesh = make_mesh(parse_mesh("2x1x3"))
    assert mesh.axis_names == ("x", "y", "z") and mesh.devices.shape == (2, 1, 3)
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Explicit}


def test_more_fake_devices_than_jax_can_start_are_not_asked_for_and_refused():
    before = jax.config.jax_num_cpu_devices
    request_cpu_devices(100_000)
    assert jax.config.jax_num_cpu_devices == before
    with pytest.raises(LayoutError, match=r"needs 100000 devices.* use a mesh of at most 512"):
        make_mesh(parse_mesh("100000"))


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(LayoutError, match="needs 16 devices, but JAX has 8"):
        make_mesh(parse_mesh("4x4"))
