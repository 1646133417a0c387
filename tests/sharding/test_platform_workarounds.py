"""Only what suits the platform is traced, where the mesh says what it runs on."""

import jax
import numpy as np
import pytest

from sharding.dot import dot
from sharding.mesh import make_mesh, parse_mesh
from sharding.platform_workarounds import (
    by_platform,
    faster_in_halves,
    faster_tokens_first,
    multiply_in_halves,
)
from tests.sharding.pretended import like, mesh_of

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
    ("tokens", "outputs", "mesh", "halved"),
    [(1, 6, "1", True), (2, 6, "1", False), (1, 5, "1", False), (1, 6, "2", False)],
)
def test_one_token_alone_is_multiplied_in_halves(tokens, outputs, mesh, halved):
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(outputs, 4, 2)), rng.normal(size=(1, tokens, 4, 2))
    whole = jax.NamedSharding(make_mesh(parse_mesh(mesh)), jax.P())
    weight, x = jax.device_put((weight, x), whole)
    assert faster_in_halves(weight, x) == halved
    if halved:
        expected = np.einsum("oac,btac->bto", weight, x)
        np.testing.assert_allclose(multiply_in_halves(weight, x, x.dtype), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("batch", "tokens", "mesh", "first"),
    [
        (1, 128, "1", True),
        (8, 16, "1", True),
        (1, 127, "1", False),
        (127, 1, "1", False),
        (1, 128, "2", False),
    ],
)
def test_many_tokens_are_the_first_operand(batch, tokens, mesh, first):
    whole = jax.NamedSharding(make_mesh(parse_mesh(mesh)), jax.P())
    arrays = jax.numpy.zeros((6, 4, 2)), jax.numpy.zeros((batch, tokens, 4, 2))
    assert faster_tokens_first(*jax.device_put(arrays, whole)) == first


@pytest.mark.parametrize("dtype", [np.float32, jax.numpy.bfloat16])
def test_a_prompts_product_is_turned_round_on_other_platforms_alone(dtype):
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(3, 5, 4, 2)), rng.normal(size=(2, 64, 4, 2))
    given = jax.numpy.asarray(weight, dtype), jax.numpy.asarray(x, dtype)
    step = jax.jit(lambda weight, x: dot(weight, x, jax.numpy.float32))
    with mesh_of("tpu", "TPU v5 lite"):
        assert "transpose" in str(step.trace(*like(given)).jaxpr)
    mesh = make_mesh(parse_mesh("1"))
    given = jax.device_put(given, jax.NamedSharding(mesh, jax.P()))
    with jax.set_mesh(mesh):
        assert "transpose" not in str(step.trace(*given).jaxpr)
        product = step(*given)
    wanted = np.einsum("mncd,btcd->btmn", *(np.asarray(each, np.float32) for each in given))
    np.testing.assert_allclose(product, wanted, atol=1e-4)
