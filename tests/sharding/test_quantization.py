"""Scaled arrays: a round trip within half a step, on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharding.float4 import decode_scales
from sharding.mesh import make_mesh, parse_mesh
from sharding.quantization import QUANTIZATIONS, QuantizedArray, quantize, stored_bytes


def round_trip(values: np.ndarray, outputs: int, name: str, mesh="1", spec=None):
    devices = make_mesh(parse_mesh(mesh))
    with jax.set_mesh(devices):
        where = jax.NamedSharding(devices, spec or jax.P(*(None,) * values.ndim))
        array = jax.device_put(jnp.asarray(values), where)
        return jax.jit(quantize, static_argnums=(1, 2))(array, outputs, QUANTIZATIONS[name])


def values_of(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def by_turns(cases: list) -> list:
    """Each quantization with one of the cases by turns; with the others in the slow set."""
    return [
        pytest.param(name, *case, marks=pytest.mark.slow if (n + m) % len(cases) else ())
        for n, name in enumerate(QUANTIZATIONS)
        for m, case in enumerate(cases)
    ]


@pytest.mark.parametrize(
    ("name", "shape", "outputs"),
    by_turns([((24, 64), 1), ((2, 8, 96), 2), ((6, 2, 4, 32), 1)]),
)
def test_a_round_trip_is_within_half_a_step(name, shape, outputs):
    values, quantization = values_of(shape), QUANTIZATIONS[name]
    scaled, finite = round_trip(values, outputs, name)
    assert finite and scaled.values.dtype == quantization.dtype
    error = np.abs(np.asarray(scaled.dense()) - values)
    repeat = values.shape[-1] // scaled.scales.shape[-1] if quantization.group else 1
    if name.startswith("fp8"):  # 3 bits of fraction, and steps of 2**-9 near zero
        least = np.repeat(np.asarray(scaled.scales), repeat, axis=-1) * 2**-10
        assert (error <= np.maximum(np.abs(values) / 16, least) * 1.0001).all()
        return
    if name == "mxfp4":  # above 4 codes are 2 apart, and 6 is the largest below 8
        sizes = np.repeat(np.asarray(decode_scales(scaled.scales)), quantization.group, axis=-1)
        assert (error <= np.maximum(np.abs(values) / 4, sizes / 4)).all() and error.any()
        return
    half = np.repeat(np.asarray(scaled.scales), repeat, axis=-1) / 2
    assert (error <= half * 1.0001).all()
    assert error.max() > half.min() / 4  # and not for nothing


@pytest.mark.parametrize(
    ("name", "spec"),
    by_turns([(("x", ("z", "y")),), ((("z", "y", "x"), None),), ((None, "z"),)]),
)
def test_devices_make_of_their_parts_what_one_makes_of_the_whole(name, spec):
    values = values_of((16, 512))  # groups of up to 128 inputs for each of four devices
    one, _ = round_trip(values, 1, name)
    many, _ = round_trip(values, 1, name, "2x2x2", jax.P(*spec))
    assert many.values.sharding.spec == jax.P(*spec)
    for mine, expected in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        np.testing.assert_array_equal(
            np.asarray(mine, np.float32), np.asarray(expected, np.float32)
        )


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_channels_of_zeros_stay_zeros(name):
    values = values_of((4, 64))
    values[1] = 0
    scaled, finite = round_trip(values, 1, name)
    assert finite and not np.asarray(scaled.dense())[1].any()


@pytest.mark.parametrize(
    ("name", "inputs", "group"),
    [
        ("fp8_grouped", 7168, 128),
        ("fp8_grouped", 576, 64),
        ("fp8_grouped", 32, 32),
        ("fp8_grouped", 48, 128),  # which does not divide it: whoever places it refuses
        ("int4", 64, 32),
        ("int4", 48, 32),
        ("fp8", 64, None),
    ],
)
def test_a_group_is_shorter_where_a_row_is_not_whole_groups(name, inputs, group):
    assert QUANTIZATIONS[name].group_of(inputs) == group


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_noticed_on_any_device(bad):
    values = values_of((16, 64))
    values[9, 33] = bad
    for mesh, spec in (("1", None), ("2x2x2", jax.P("x", ("z", "y")))):
        assert not round_trip(values, 1, "int8", mesh, spec)[1]


def test_the_compiler_takes_as_many_bytes_as_are_counted():
    for name, quantization in QUANTIZATIONS.items():
        scaled, _ = round_trip(values_of((64, 128)), 1, name)
        step = jax.jit(QuantizedArray.dense).lower(scaled).compile()
        counted = sum(map(stored_bytes, jax.tree.leaves(scaled)))
        assert step.memory_analysis().argument_size_in_bytes == counted, quantization
