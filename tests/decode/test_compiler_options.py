"""Options of the decode step: only for the platform that they are for, and where it knows them."""

from types import SimpleNamespace

import numpy as np
import pytest

from decode import compiler_options
from decode.compiler_options import IN_PLACE, SIDE_BY_SIDE, decode_options, known
from sharding.mesh import make_mesh, parse_mesh


def test_a_compiler_without_the_option_is_asked_first():
    mesh = make_mesh(parse_mesh("1x1x2"))
    assert not known(mesh, *IN_PLACE.items())  # XLA:CPU has it not, and says so
    assert decode_options(mesh) is None


@pytest.mark.parametrize(
    ("platform", "wanted"), [("tpu", IN_PLACE), ("gpu", SIDE_BY_SIDE), ("cpu", None)]
)
def test_each_platform_has_its_own(monkeypatch, platform, wanted):
    mesh = SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]))
    monkeypatch.setattr(compiler_options, "known", lambda mesh, *options: True)
    assert decode_options(mesh) == wanted
    monkeypatch.setattr(compiler_options, "known", lambda mesh, *options: False)
    assert decode_options(mesh) is None
