"""Slices to plan with, and the smallest on which a model fits."""

import dataclasses
import itertools

import jax.numpy as jnp
import pytest

from model.catalog import find_model
from model.dtypes import BFLOAT16, Dtypes
from profiles.chips.calibration import calibration_of
from profiles.chips.chip import chips, find_chip
from profiles.chips.slices import Slice, parse_slice, slices_of
from profiles.compiled.compiled_pass import compile_pass, too_large
from profiles.compiled.grid import GridPoint
from profiles.expected.candidates import LayoutNames, candidates, smallest_slice
from profiles.expected.estimate import Estimator
from profiles.expected.remedies import remedy
from profiles.floor.deployment import Deployment
from profiles.floor.passes import Pass
from profiles.floor.sized_models import sized_models
from sharding.error_types import LayoutError
from sharding.mesh import parse_mesh
from sharding.placement import Placement
from sharding.quantization import QUANTIZATIONS

INT8 = Dtypes(jnp.bfloat16, QUANTIZATIONS["int8"])
ONE_D, BY_BATCH = (
    LayoutNames("weight_stationary_1d", kind).layouts(find_model("llama3-70b"))
    for kind in ("heads", "batch")
)


def _deployment(model: str, chip: str, dtypes: Dtypes = BFLOAT16) -> Deployment:
    found = sized_models().get(model) or find_model(model)
    return Deployment(
        model=found,
        slice=Slice(find_chip(chip), (1,)),
        dtypes=dtypes,
        calibration=calibration_of(chip),
    )


def test_slices_to_plan_with_are_slices_that_a_chip_comes_in():
    for chip in chips():
        found = slices_of(chip, 512)
        assert [parse_slice(str(each)) for each in found] == found
        assert all(a.chips <= b.chips for a, b in itertools.pairwise(found))
        assert found[-1].chips <= 512
        assert len(slices_of(chip)) > len(found) or chip.wiring.domain in (256, None)


def test_the_most_compact_of_equally_many_chips_comes_first():
    found = [str(each) for each in slices_of(find_chip("v5p"), 256)]
    assert found.index("v5p:4x8x8") < found.index("v5p:4x4x16")


@pytest.mark.parametrize(
    ("model", "chip", "dtypes", "smallest"),
    [
        ("llama3-70b", "v5e", BFLOAT16, "v5e:4x4"),
        pytest.param("llama3-70b", "v5e", INT8, "v5e:2x4", marks=pytest.mark.slow),
        ("llama3-70b", "h100", BFLOAT16, "h100:2"),
        ("llama3-8b", "h100", BFLOAT16, "h100:1"),
        ("mixtral-8x7b", "tpu7x", BFLOAT16, "tpu7x:1x1x1"),
        ("deepseek-v3-even", "v6e", INT8, "v6e:4x8"),
    ],
)
def test_the_least_slice_holds_a_model_and_the_next_smaller_none(model, chip, dtypes, smallest):
    deployment = _deployment(model, chip, dtypes)
    found = smallest_slice(deployment, Pass(1, 1024), LayoutNames().layouts(deployment.model))
    assert str(found) == smallest
    for slice in slices_of(deployment.slice.chip, found.chips):
        smaller = dataclasses.replace(deployment, slice=slice)
        fitting = [
            each.decode(1, 1024).fits
            for each in candidates(smaller, LayoutNames().layouts(deployment.model))
        ]
        assert any(fitting) == (slice == found or slice.chips == found.chips)


def test_a_cache_that_is_copied_needs_a_larger_slice_than_one_that_is_divided():
    """8 KV heads on 16 chips are held twice if heads divide attention."""
    deployment = _deployment("llama3-70b", "v5e")
    copied = smallest_slice(deployment, Pass(32, 8192), ONE_D)
    divided = smallest_slice(deployment, Pass(32, 8192), BY_BATCH)
    assert (divided.chips, copied.chips) == (16, 32)


def test_what_no_slice_holds_has_no_least_slice():
    deployment = _deployment("palm-540b", "l4", Dtypes(jnp.float32))
    assert (
        smallest_slice(deployment, Pass(10**6, 2048), LayoutNames().layouts(deployment.model))
        is None
    )


def test_a_layout_that_goes_with_no_mesh_is_refused_nowhere_but_skipped():
    deployment = _deployment("smollm2-135m", "h100")
    with pytest.raises(LayoutError):
        Placement.of(
            ONE_D[0],
            deployment.model.sizes,
            {"x": 1, "y": 1, "z": 7},
        )
    assert str(smallest_slice(deployment, Pass(1, 1024), ONE_D)) == "h100:1"


def test_a_step_that_fits_in_another_layout_alone_says_so():
    names = LayoutNames("weight_stationary_1d", "heads")
    point = GridPoint(find_model("llama3-70b"), "v5e:4x4", names, BFLOAT16, Pass(128, 2048))
    found = compile_pass(point.estimator(), point.pass_)
    assert found.record.status == "does_not_fit" and found.compilation is None
    message = found.record.message
    assert "another layout fits: " in message and "; use --layout=auto" in message


@pytest.mark.parametrize("context", [8000, 2048])
def test_a_step_that_fits_on_another_mesh_of_the_slice_says_which(context):
    """8 KV heads on 1x1x16 are held 16 times, on 1x8x2 twice."""
    slice = parse_slice("v5e:4x4")
    deployment = dataclasses.replace(
        _deployment("llama3-8b", "v5e"),
        slice=slice,
        layout=ONE_D[0],
        mesh=parse_mesh("1x1x16"),
    )
    step = Estimator(deployment).decode(128 if context == 2048 else 64, context)
    assert not step.fits
    said = remedy(step, [deployment.layout])
    mesh = said.split("--mesh=")[1].split(",")[0]
    assert said.startswith("another mesh of it fits: give --mesh=") and mesh != "1x1x16"
    there = dataclasses.replace(deployment, mesh=parse_mesh(mesh))
    assert Estimator(there).estimate(step.pass_).fits
    # What compile_step.py says of the same is the same.
    assert too_large(step, 1e9).endswith(said)


def test_what_no_mesh_or_layout_of_the_slice_holds_needs_the_least_that_does():
    deployment = _deployment("llama3-70b", "v5e")
    smaller = dataclasses.replace(deployment, slice=parse_slice("v5e:2x2"))
    step = candidates(smaller, LayoutNames().layouts(deployment.model))[0].decode(1, 1024)
    assert remedy(step) == "the least slice that fits is v5e:4x4"
