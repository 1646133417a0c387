"""Folders in fp8 are kept: values and scales are the file's, and logits those of the numbers."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from decode.engine import Engine
from decode.load import find_source
from model.declarations import matrices
from model.dtypes import FLOAT32, Dtypes
from model.transformer import Transformer
from model.weights.huggingface import HuggingFaceFolder
from model.weights.orbax_checkpoint import save
from sharding.catalog import LAYOUTS, divide_experts
from sharding.mesh import parse_mesh
from sharding.quantization import QUANTIZATIONS, QuantizedArray
from tests.family_cases import FOLDER
from tests.model.test_fp8_files import in_blocks

TIMES = 8
"""A fixture's sizes are multiplied by it, so that rows have several groups and parts of blocks."""
BLOCK = (128, 128)
SIZES = (
    "head_dim", "hidden_size", "intermediate_size", "kv_lora_rank", "moe_intermediate_size",
    "q_lora_rank", "qk_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
)  # fmt: skip
STILL = "embed_tokens.weight", "lm_head.weight", "gate.weight", "e_score_correction_bias"
GROUPED, BY_OUTPUT = QUANTIZATIONS["fp8_grouped"], QUANTIZATIONS["fp8"]


def enlarged(case: str) -> dict[str, np.ndarray]:
    """Random tensors with the names of a fixture's."""
    random, found = np.random.default_rng(0), {}
    for name, array in sorted(load_file(FOLDER / case / "model.safetensors").items()):
        still = name.endswith(STILL)
        shape = [n if still and not at else n * TIMES for at, n in enumerate(array.shape)]
        if array.ndim == 1:
            found[name] = np.ones(shape, np.float32)
        else:
            found[name] = random.normal(0, shape[1] ** -0.5, shape).astype(np.float32)
    return found


def write(case: str, folder, by_rows: bool = False) -> dict[str, np.ndarray]:
    """A folder in fp8, in blocks or with a scale to each row; its tensors."""
    stored = {}
    for name, array in enlarged(case).items():
        stored[name] = array
        if array.ndim == 2 and "proj" in name:
            block = (1, array.shape[1]) if by_rows else BLOCK
            end = "_scale" if by_rows else "_scale_inv"
            stored[name], stored[name + end] = in_blocks(array, block)
    shutil.copytree(FOLDER / case, folder)
    save_file(stored, folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text())
    values |= {name: values[name] * TIMES for name in SIZES if name in values}
    block = None if by_rows else list(BLOCK)
    values["quantization_config"] = {"quant_method": "fp8", "weight_block_size": block}
    (folder / "config.json").write_text(json.dumps(values))
    return stored


def whole(array) -> np.ndarray:
    return array[(slice(None),) * len(array.shape)]


def kept(folder: HuggingFaceFolder) -> dict:
    model = Transformer(folder.config, Dtypes(jnp.float32, folder.quantization))
    return dict(folder.read_parameters(folder.config, matrices(model)))


@pytest.mark.parametrize(
    ("case", "by_rows"), [("qwen3_moe", False), ("deepseek_v3", False), ("deepseek_v3", True)]
)
def test_values_and_scales_are_those_of_the_file(tmp_path, case, by_rows):
    stored = write(case, tmp_path / case, by_rows)
    folder = HuggingFaceFolder(tmp_path / case)
    assert folder.quantization is (BY_OUTPUT if by_rows else GROUPED)
    numbers = dict(folder.read_parameters(folder.config))
    found = {p: a for p, a in kept(folder).items() if isinstance(a, QuantizedArray)}
    assert {path[-1] for path in found} >= {"query", "output", "gate_up", "down"}
    for path, array in found.items():
        part = tuple(slice(n // 2 if n % 128 == 0 else 0, n) for n in array.shape[:-1])
        one = jax.tree.map(lambda leaf, part=part: leaf[_within(leaf.shape, part)], array)
        dense = one.values.astype(np.float32) * _spread(one)
        np.testing.assert_array_equal(dense, numbers[path][(*part, slice(None))])
    for name, path in (
        ("self_attn.o_proj", ("layers", 1, "attention", "output")),
        ("mlp.experts.3.down_proj", ("layers", 1, "mlp", "down")),
    ):
        values, scales = (whole(part) for part in (found[path].values, found[path].scales))
        if "experts" in name:
            values, scales = values[3], scales[3]
        name = f"model.layers.1.{name}.weight"
        codes = stored[name]
        assert values.dtype == codes.dtype
        np.testing.assert_array_equal(values.reshape(codes.shape).view("u1"), codes.view("u1"))
        theirs = stored[name + ("_scale" if by_rows else "_scale_inv")]
        assert set(scales.ravel()) == set(theirs.ravel())


def _within(shape, part) -> tuple[slice, ...]:
    """The outputs that `part` says, of values or of scales."""
    return (*(s if n > 1 else slice(None) for n, s in zip(shape, part, strict=False)), slice(None))


def _spread(array: QuantizedArray) -> np.ndarray:
    return np.repeat(array.scales, array.group, axis=-1) if array.group else array.scales


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Gives the folder in blocks of a fixture's name, written once."""

    @functools.cache
    def written(case: str):
        folder = tmp_path_factory.mktemp("fp8") / case
        write(case, folder)
        return folder

    return written


def engine_of(folder, dtypes: Dtypes, mesh: str = "1") -> Engine:
    layout = LAYOUTS["weight_stationary_1d"]
    layout = layout if mesh == "1" else divide_experts(layout)
    return find_source(str(folder)).engine(layout, parse_mesh(mesh), dtypes)


def logits_of(engine: Engine) -> np.ndarray:
    return np.asarray(engine.forward(np.random.default_rng(0).integers(0, 128, (4, 2), np.int32)))


@pytest.mark.parametrize(
    ("case", "mesh"),
    [
        ("qwen3_moe", "1"),
        pytest.param("deepseek_v3", "1", marks=pytest.mark.slow),
        pytest.param("qwen3_moe", "2x1x2", marks=pytest.mark.slow),
    ],
)
def test_logits_are_those_of_the_numbers_that_they_stand_for(folder_of, case, mesh):
    folder = folder_of(case)
    source = find_source(str(folder))
    dtypes = Dtypes(jnp.float32, source.stored_quantization())
    engine = engine_of(folder, dtypes, mesh)
    assert engine.parameters["layers"][1]["mlp"]["down"]["values"].dtype == jnp.float8_e4m3fn
    found, expected = logits_of(engine), logits_of(engine_of(folder, FLOAT32))
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.slow
def test_a_checkpoint_of_them_has_the_same_values_and_scales(folder_of, tmp_path):
    folder = folder_of("qwen3_moe")
    engine = engine_of(folder, Dtypes(jnp.float32, GROUPED))
    save(tmp_path / "m", engine.config, engine.parameters, quantization=GROUPED)
    again = engine_of(tmp_path / "m", Dtypes(jnp.float32, GROUPED), "1x1x2")
    for one, other in zip(
        *map(jax.tree.leaves, (engine.parameters, again.parameters)), strict=True
    ):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(*(np.asarray(a, np.float32) for a in (one, other)))


def test_blocks_of_another_width_are_read_as_numbers_alone(tmp_path):
    stored = {name: array for name, array in load_file(FOLDER / "qwen3/model.safetensors").items()}
    for name in [name for name in stored if "proj" in name]:
        stored[name], stored[f"{name}_scale_inv"] = in_blocks(stored[name], (8, 16))
    shutil.copytree(FOLDER / "qwen3", tmp_path / "m")
    save_file(stored, tmp_path / "m/model.safetensors")
    values = json.loads((tmp_path / "m/config.json").read_text())
    values["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [8, 16]}
    (tmp_path / "m/config.json").write_text(json.dumps(values))
    folder = HuggingFaceFolder(tmp_path / "m")
    assert folder.quantization is None and folder.dtype == "bfloat16"
