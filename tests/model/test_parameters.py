"""One declaration per array: placement, checks, and the bytes on each device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.catalog import find_model
from model.declarations import declarations, declare
from model.dtypes import BFLOAT16
from model.parameters import place_parameters
from model.transformer import Transformer
from sharding.catalog import LAYOUTS
from sharding.mesh import make_mesh, parse_mesh
from sharding.placement import Placement

CONFIG = find_model("tiny")
SHAPE = parse_mesh("1x1x4")


def host_arrays():
    random = np.random.default_rng(0)
    declared = declarations(Transformer(CONFIG, BFLOAT16))
    return {path: random.normal(size=param.shape) for path, param in declared.items()}


def placed(arrays):
    placement = Placement.of(LAYOUTS["weight_stationary_1d"], CONFIG.sizes, SHAPE)
    model = Transformer(CONFIG, BFLOAT16)
    return place_parameters(model, arrays.items(), placement, make_mesh(SHAPE))


def test_arrays_keep_their_values_in_the_declared_dtype_and_are_divided():
    arrays = host_arrays()
    parameters = placed(arrays)
    down = parameters["layers"][1]["mlp"]["down"]  # [D, F.z]
    assert down.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        np.asarray(down), arrays["layers", 1, "mlp", "down"].astype(jnp.bfloat16)
    )
    assert {shard.data.shape for shard in down.addressable_shards} == {(64, 128 // 4)}


def test_copies_of_a_whole_array_have_memory_of_their_own():
    for _ in range(8):  # JAX borrows host memory where it happens to be aligned
        scale = placed(host_arrays())["final_norm"]["scale"]
        pointers = {shard.data.unsafe_buffer_pointer() for shard in scale.addressable_shards}
        assert len(pointers) == 4


def test_a_missing_an_unknown_and_a_misshapen_array_are_refused():
    arrays = host_arrays()
    with pytest.raises(ValueError, match="not in the checkpoint"):
        placed({path: array for path, array in arrays.items() if path[0] != "final_norm"})
    with pytest.raises(ValueError, match="not in the model"):
        placed(arrays | {("extra",): np.zeros(1)})
    with pytest.raises(ValueError, match="not in the model"):
        placed(arrays | {("final_norm", "scale"): np.zeros(65)})


def test_a_shape_follows_from_the_letters_that_declare_it():
    param = declare(CONFIG, "KChD", jnp.float32, jax.nn.initializers.ones)
    assert param.shape == (CONFIG.kv_heads, 2, CONFIG.head_size, CONFIG.d_model)
    with pytest.raises(KeyError):
        declare(CONFIG, "Q", jnp.float32, jax.nn.initializers.ones)
