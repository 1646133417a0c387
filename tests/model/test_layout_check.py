"""One question whether a layout goes with a model, for engines, estimates and plans alike."""

import dataclasses

import jax.numpy as jnp
import pytest

from model.catalog import find_model
from model.dtypes import BFLOAT16, Dtypes
from model.layout_check import settle
from profiles.chips.calibration import calibration_of
from profiles.chips.chip import Price
from profiles.chips.slices import parse_slice
from profiles.expected.candidates import candidates
from profiles.expected.estimate import Estimator
from profiles.floor.deployment import Deployment
from profiles.plan.space import Space
from sharding.catalog import LAYOUTS
from sharding.error_types import LayoutError
from sharding.mesh import parse_mesh
from sharding.quantization import QUANTIZATIONS

ONE_D, INT4 = LAYOUTS["weight_stationary_1d"], Dtypes(jnp.bfloat16, QUANTIZATIONS["int4"])
LLAMA = find_model("llama3-8b")


def deployment(dtypes: Dtypes, topology: str, mesh: str | None = None) -> Deployment:
    slice = parse_slice(topology)
    return Deployment(
        model=LLAMA,
        slice=slice,
        dtypes=dtypes,
        calibration=calibration_of(slice.chip.name),
        layout=ONE_D,
        mesh=mesh and parse_mesh(mesh),
    )


def test_groups_that_would_cross_devices_are_refused_by_estimates_as_by_engines():
    mesh = parse_mesh("1x1x16")
    assert settle(LLAMA, BFLOAT16, ONE_D, mesh).devices == 16
    for ask in (
        lambda: settle(LLAMA, INT4, ONE_D, mesh),
        lambda: Estimator(deployment(INT4, "v5e:4x4", "1x1x16")),
        lambda: candidates(deployment(INT4, "v5e:4x4"), [ONE_D], [mesh]),
    ):
        with pytest.raises(LayoutError, match=r"groups of 32 \(int4\) do not divide; use .*int8"):
            ask()


@pytest.mark.parametrize("dtypes", [INT4, BFLOAT16])
def test_plans_look_at_what_the_engine_admits_and_at_nothing_else(dtypes):
    slice = parse_slice("v5e:4x4")
    space = Space(
        model=LLAMA,
        slices=((slice, Price(1.2)),),
        dtype_sets=(dtypes,),
        layouts=(ONE_D,),
        calibration=calibration_of,
        context=2048,
        slots=2049,
    )
    (cell,) = space.cells
    for row in cell.rows:
        settle(LLAMA, dtypes, row.layout, row.mesh)
    meshes = {tuple(row.mesh.values()) for row in cell.rows}
    assert ((1, 1, 16) in meshes) == (dtypes is BFLOAT16)


def test_a_plan_with_no_layout_at_all_holds_nothing():
    narrow = dataclasses.replace(LLAMA, d_ff=14_336 + 16)
    slice = parse_slice("v5e:1x1")
    space = Space(
        model=narrow,
        slices=((slice, Price(1.2)),),
        dtype_sets=(INT4,),
        layouts=(ONE_D,),
        calibration=calibration_of,
        context=2048,
        slots=2049,
    )
    (cell,) = space.cells
    assert not cell.rows and cell.missing_bytes(()) == float("inf")
