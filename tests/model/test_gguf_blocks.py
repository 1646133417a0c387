"""GGUF's 4- and 8-bit tensors are kept code by code where the form asked for is theirs."""

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from gguf import GGMLQuantizationType as Kind

from decode.load import ModelSource, find_source
from model.dtypes import Dtypes
from model.weights import WeightsError
from model.weights.gguf import read_config, read_parameters
from model.weights.gguf_blocks import KEPT, read_blocks
from model.weights.gguf_file import GGUFFile
from sharding.catalog import LAYOUTS
from sharding.float4 import NUMBERS
from sharding.mesh import parse_mesh
from sharding.quantization import QUANTIZATIONS, QuantizedArray
from tests.gguf_samples import write_tiny_gguf

MATRICES = ["query", "key_value", "output", "gate_up", "down"]


def meant(values, scales, offsets=None) -> np.ndarray:
    """What codes and numbers stand for, in float32 as GGUF computes it."""
    if scales.dtype == np.uint8:
        values, scales = NUMBERS[values], np.exp2(scales.astype(np.float32) - 127)
    groups = np.asarray(values).astype(np.float32).reshape(*scales.shape, -1)
    found = groups * np.asarray(scales)[..., None]
    if offsets is not None:
        found = found + np.asarray(offsets)[..., None]
    return found.reshape(values.shape)


@pytest.mark.parametrize("kind", KEPT)
def test_blocks_mean_what_the_gguf_package_makes_of_them(kind):
    rng = np.random.default_rng(0)
    size, length = KEPT[kind][1], 512
    count = length // gguf.GGML_QUANT_SIZES[kind][0]
    blocks = rng.integers(0, 256, (7, count, size)).astype(np.uint8)
    for start in range(0, 4 if kind in (Kind.Q4_1, Kind.Q4_K) else 2, 2):  # finite floats
        halves = rng.normal(size=(7, count, 1)).astype("<f2")
        blocks[..., start : start + 2] = halves.view(np.uint8)
    if kind is Kind.MXFP4:
        blocks[..., 0] = rng.integers(100, 150, (7, count))  # an exponent, of no infinite number
    rows = blocks.reshape(7, -1)
    parts = read_blocks(rows, kind)
    np.testing.assert_array_equal(meant(*parts), gguf.dequantize(rows, kind))
    quantization = QUANTIZATIONS[KEPT[kind][0]]
    np.testing.assert_array_equal(parts[0].astype(quantization.dtype).astype(int), parts[0])
    assert (len(parts) == 3) == quantization.offset and parts[1].shape == (
        7,
        length // quantization.group,
    )


@pytest.mark.parametrize(
    ("stored", "wanted"), [("Q4_0", "int4_symmetric"), ("Q4_1", "int4"), ("Q8_0", "int8_grouped")]
)
def test_matrices_of_the_form_asked_for_are_kept_and_others_are_not(tmp_path, stored, wanted):
    write_tiny_gguf(tmp_path / "m.gguf", quantization=stored, head_size=32)
    file = GGUFFile(tmp_path / "m.gguf")
    config = read_config(file)
    plain = dict(read_parameters(file, config))
    keep = {path: QUANTIZATIONS[wanted] for path in plain if path[-1] in MATRICES}
    found = dict(read_parameters(file, config, keep))
    assert {path for path, part in found.items() if isinstance(part, QuantizedArray)} == keep.keys()
    for path, part in found.items():
        if path not in keep:
            np.testing.assert_array_equal(part, plain[path])
            continue
        np.testing.assert_array_equal(meant(part.values, part.scales, part.offsets), plain[path])
    other = dict.fromkeys(keep, QUANTIZATIONS["int8"])
    assert not any(isinstance(p, QuantizedArray) for _, p in read_parameters(file, config, other))


def test_an_engine_keeps_a_small_model_as_it_is_on_two_devices(tmp_path):
    write_tiny_gguf(tmp_path / "m.gguf", quantization="Q4_1", head_size=32)
    check_kept(find_source(str(tmp_path / "m.gguf")), "2")


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["2", "1"])
def test_smollm2_is_kept_as_it_is_on_any_mesh(smollm2, mesh):
    check_kept(smollm2, mesh)


def check_kept(source: ModelSource, mesh: str) -> None:
    plain = dict(read_parameters(source.file, source.config))
    dtypes = Dtypes(jnp.float32, QUANTIZATIONS["int4"])
    layout = LAYOUTS["weight_stationary_1d"]
    flat = flatten_dict(source.engine(layout, parse_mesh(mesh), dtypes).parameters)
    last = source.config.layers - 1
    for layer, name in ((0, ("attention", "key_value")), (last, ("mlp", "down"))):
        path = ("layers", layer, *name)
        parts = (np.asarray(flat[*path, part]) for part in ("values", "scales", "offsets"))
        np.testing.assert_array_equal(meant(*parts), plain[path])


def test_a_scale_that_is_not_finite_is_refused(tmp_path):
    write_tiny_gguf(tmp_path / "m.gguf", quantization="Q4_1", head_size=32)
    file = GGUFFile(tmp_path / "m.gguf")
    info = file.tensors["blk.0.ffn_down.weight"]
    content = bytearray((tmp_path / "m.gguf").read_bytes())
    content[info.offset : info.offset + 2] = np.float16(np.inf).tobytes()
    (tmp_path / "m.gguf").write_bytes(content)
    source = find_source(str(tmp_path / "m.gguf"))
    dtypes = Dtypes(jnp.float32, QUANTIZATIONS["int4"])
    with pytest.raises(WeightsError, match=r"blk\.0\.ffn_down\.weight.* is not finite everywhere"):
        source.engine(LAYOUTS["weight_stationary_1d"], parse_mesh("1"), dtypes)
