"""Four-bit floats: bytes by hand, arithmetic, and refusals of those that do not run."""

import jax.numpy as jnp
import pytest

from decode.load import ModelSource
from model.catalog import find_model
from model.dtypes import Dtypes, check_runs
from profiles.chips.calibration import calibration_of
from profiles.chips.slices import parse_slice
from profiles.expected.estimate import Estimator
from profiles.floor.bytes_and_flops import PassCounter
from profiles.floor.deployment import Deployment
from profiles.floor.passes import Pass
from profiles.floor.sized_models import SizedPassCounter
from sharding.catalog import LAYOUTS
from sharding.error_types import UsageError
from sharding.mesh import parse_mesh
from sharding.placement import Placement
from sharding.quantization import COUNTED, QUANTIZATIONS, bits_of
from tests.profiles.sized import WINDOWED

ONE_D = LAYOUTS["weight_stationary_1d"]
# Bytes of a value with its part of a scale, and of the scale of a whole matrix.
SIZES = {"nvfp4": (0.5 + 1 / 16, 4), "mxfp4": (0.5 + 1 / 32, 0)}
FORMS = COUNTED | QUANTIZATIONS


def resident(name, stored, mesh="1"):
    config = find_model(name)
    placement = Placement.of(ONE_D, config.sizes, parse_mesh(mesh))
    dtypes = Dtypes(jnp.bfloat16, FORMS[stored])
    return PassCounter(config, placement, dtypes).count(Pass(1, 128)).weights_resident


@pytest.mark.parametrize("stored", SIZES)
def test_bytes_of_a_dense_model_are_those_of_its_matrices_by_hand(stored):
    value, whole = SIZES[stored]
    # Per layer: query and output 4096 x 4096, keys and values 1024 x 4096 each in one matrix, gate
    # and up 14336 x 4096 each in one, down 4096 x 14336.
    matrices = 2 * 4096**2 + 2 * 1024 * 4096 + 3 * 14336 * 4096
    plain = 2 * 2 * 128256 * 4096 + 4 * 65 * 4096  # embedding and unembedding; norms in float32
    assert resident("llama3-8b", stored) == 32 * (matrices * value + 5 * whole) + plain


@pytest.mark.parametrize("stored", SIZES)
def test_each_expert_has_a_scale_of_its_own_matrix(stored):
    value, whole = SIZES[stored]
    attention = 2 * 4096**2 + 2 * 1024 * 4096
    experts = 8 * 3 * 14336 * 4096
    router = 2 * 8 * 4096
    plain = 2 * 2 * 32000 * 4096 + 4 * 65 * 4096
    a_layer = experts * value + (3 + 8 * 2) * whole + router
    a_layer += attention * (2 if stored == "mxfp4" else value)  # which is for experts alone
    assert resident("mixtral-8x7b", stored) == 32 * a_layer + plain


def test_devices_share_values_and_scales_and_each_has_the_scale_of_a_matrix():
    one, two = (resident("llama3-8b", "nvfp4", mesh) for mesh in ("1", "2"))
    copied = 4 * 65 * 4096 + 32 * 5 * 4
    assert two == (one - copied) / 2 + copied


def test_a_model_known_by_its_sizes_has_as_many_bits_a_parameter():
    model = WINDOWED
    counted = SizedPassCounter(model, Dtypes(jnp.bfloat16, QUANTIZATIONS["mxfp4"]), devices=1)
    assert counted.resident == model.total * 17 / 32
    counted = SizedPassCounter(model, Dtypes(jnp.bfloat16, jnp.dtype("float4_e2m1fn")), devices=1)
    assert counted.resident == model.total / 2


@pytest.mark.parametrize("name", ["int4", "uint4", "float4_e2m1fn"])
def test_plain_values_of_four_bits_are_half_a_byte_wherever_they_are_counted(name):
    config = find_model("llama3-8b")
    placement = Placement.of(ONE_D, config.sizes, parse_mesh("1"))
    one, two = (
        PassCounter(config, placement, Dtypes(jnp.bfloat16, jnp.dtype(name))).count(Pass(n, 128))
        for n in (1, 2)
    )
    assert bits_of(jnp.dtype(name)) == 4
    assert two.weights_read - one.weights_read == 4096 / 2  # a row of the embedding


@pytest.mark.parametrize("stored", SIZES)
def test_they_are_multiplied_as_they_are_where_a_chip_can(stored):
    dtypes = Dtypes(jnp.bfloat16, FORMS[stored])

    def peak(topology):
        slice = parse_slice(topology)
        deployment = Deployment(
            model=find_model("llama3-8b"),
            slice=slice,
            dtypes=dtypes,
            calibration=calibration_of(slice.chip.name),
            layout=ONE_D,
            mesh=parse_mesh("1"),
        )
        return Estimator(deployment).peaks.flops

    assert peak("b200:1") == 9e15
    assert peak("h100:1") == 9.894e14


def test_a_model_with_them_does_not_run():
    dtypes = Dtypes(jnp.float32, COUNTED["nvfp4"])
    with pytest.raises(UsageError, match=r"weights are nvfp4, .* does not run; use one of"):
        check_runs(dtypes)
    with pytest.raises(UsageError, match="does not run"):
        ModelSource(find_model("tiny"), None, None).engine(ONE_D, parse_mesh("1"), dtypes)
