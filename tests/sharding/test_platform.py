"""Only what suits the platform is traced, where the mesh says what it runs on."""

import jax
import numpy as np
import pytest

from sharding.error_types import FloorlineError
from sharding.mesh import make_mesh, parse_mesh
from sharding.platform import by_platform, default_platform, devices
from tests.sharding.pretended import mesh_of

FACTORS = {"cpu": 2, "tpu": 3, "cuda": 5, "rocm": 7}
OTHERS = {
    platform: lambda x, factor=factor: x * np.float32(factor)
    for platform, factor in FACTORS.items()
}


def step(x):
    return by_platform(x, default=lambda x: x, **OTHERS)


@pytest.mark.parametrize(
    ("platform", "kind", "factor"),
    [
        ("cpu", "cpu", 2),
        ("tpu", "TPU v5 lite", 3),
        ("gpu", "NVIDIA H200", 5),
        ("gpu", "AMD Instinct MI300X", 7),
        ("neuron", "", None),
    ],
)
def test_only_what_suits_the_mesh_is_traced(platform, kind, factor):
    with mesh_of(platform, kind):
        traced = str(jax.jit(step).trace(jax.ShapeDtypeStruct((2,), np.float32)).jaxpr)
    factors = [each for each in FACTORS.values() if f" {each}.0:f32" in traced]
    assert factors == ([factor] if factor else [])
    assert "cond" not in traced


def test_without_a_mesh_the_platform_decides_as_the_step_is_lowered():
    traced = jax.jit(step).trace(jax.ShapeDtypeStruct((2,), np.float32))
    assert "platform_index" in str(traced.jaxpr)
    assert jax.jit(step)(np.ones(2, np.float32)).tolist() == [2, 2]


def test_a_step_runs_what_its_devices_want():
    with jax.set_mesh(make_mesh(parse_mesh("2"))):
        assert jax.jit(step)(np.ones(2, np.float32)).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("wanted", "raised", "said"),
    [
        ("cuda", AssertionError(), r"'cuda', of which JAX finds no device; install its plugin "
         r"\(pip install -e '\.\[cuda\]'\) or set JAX_PLATFORMS=cpu"),
        ("tpu", RuntimeError("no\nlibtpu.so"), r"'tpu', .*\(no libtpu.so\); .*'\.\[tpu\]'"),
        ("abacus", RuntimeError("unknown"), r"'abacus', .* \(unknown\); set JAX_PLATFORMS=cpu"),
    ],
)  # fmt: skip
def test_a_platform_without_devices_is_named_with_what_would_help(
    wanted, raised, said, monkeypatch
):
    def fail():
        raise raised

    monkeypatch.setattr(jax, "devices", fail)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", wanted)
    try:
        for start in (devices, default_platform, lambda: make_mesh(parse_mesh("1"))):
            with pytest.raises(FloorlineError, match="JAX_PLATFORMS is " + said):
                start()
    finally:
        jax.config.update("jax_platforms", before)
