"""The devices that JAX finds, or why it finds none."""

import jax
import pytest

from sharding.devices import default_platform, devices
from sharding.error_types import FloorlineError
from sharding.mesh import make_mesh, parse_mesh


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
