"""check_kernels.py, whose kernels are interpreted here; and what it says of one that is wrong."""

import json

import jax.numpy as jnp
import pytest

from model.catalog import find_model
from profiles.measured import kernel_checks
from profiles.measured.kernel_checks import Check
from sharding.stored_types import GPU_KERNELS
from tests.scripts.running import run


@pytest.mark.slow
def test_all_kernels_are_right_at_the_shapes_of_a_tiny_model(tmp_path):
    flags = "--model=tiny", "--batch=2,12", "--context=48", "--output_dir=out", "--json=-"
    done = run("check_kernels.py", *flags, folder=tmp_path)
    assert done.code == 0, done.stderr
    document = json.loads((tmp_path / "out/kernels.json").read_text())
    assert document["interpreted"] and all(each["right"] for each in document["checks"])
    names = {each["kernel"] for each in document["checks"]}
    assert names == set(GPU_KERNELS)


@pytest.mark.parametrize(("factor", "right"), [(1, True), (1.05, False)])
def test_a_product_of_other_numbers_is_wrong(monkeypatch, factor, right):
    def product(values, scales, offsets, x, **_):  # of the same matrix, without a kernel
        group = values.shape[-1] // scales.shape[-1]
        each, more = (jnp.repeat(part[0, 0], group, axis=1) for part in (scales, offsets))
        dense = values[0, 0].astype(jnp.float32) * each + more
        return factor * (x[:, 0].astype(jnp.float32) @ dense.T)[:, None]

    monkeypatch.setattr(kernel_checks, "multiply_packed", product)
    weight = kernel_checks._matrix("int4", find_model("tiny"))
    error = kernel_checks._product_error(weight, 2, interpret=True)
    assert Check("int4", "", error).right == right


def test_what_is_not_finite_is_wrong():
    nothing = jnp.full(3, jnp.nan)
    assert kernel_checks._error(nothing, jnp.ones(3)) == float("inf")
