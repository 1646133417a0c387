"""Options of the decode step: only for the platform that they are for, and where it knows them."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from decode import compiler_options
from decode.compiler_options import IN_PLACE, SIDE_BY_SIDE, decode_options, known
from model.dtypes import BFLOAT16, Dtypes
from sharding.mesh import make_mesh, parse_mesh
from sharding.quantization import QUANTIZATIONS


def test_a_compiler_without_the_option_is_asked_first():
    mesh = make_mesh(parse_mesh("1x1x2"))
    assert not known(mesh, *IN_PLACE.items())  # XLA:CPU has it not, and says so
    assert decode_options(mesh, BFLOAT16) is None


@pytest.mark.parametrize(
    ("platform", "wanted"), [("tpu", IN_PLACE), ("gpu", SIDE_BY_SIDE), ("cpu", None)]
)
def test_each_platform_has_its_own(monkeypatch, platform, wanted):
    mesh = SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]))
    monkeypatch.setattr(compiler_options, "known", lambda mesh, *options: True)
    assert decode_options(mesh, BFLOAT16) == wanted
    monkeypatch.setattr(compiler_options, "known", lambda mesh, *options: False)
    assert decode_options(mesh, BFLOAT16) is None


@pytest.mark.parametrize(("weights", "wanted"), [("int8", SIDE_BY_SIDE), ("int4", None)])
def test_on_gpus_kernels_run_side_by_side_unless_matrices_are_written_out(
    monkeypatch, weights, wanted
):
    """Those of all layers would lie in memory at once."""
    mesh = SimpleNamespace(devices=np.array([SimpleNamespace(platform="gpu")]))
    monkeypatch.setattr(compiler_options, "known", lambda mesh, *options: True)
    assert decode_options(mesh, Dtypes(jnp.bfloat16, QUANTIZATIONS[weights])) == wanted
