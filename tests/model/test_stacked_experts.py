"""Experts in one tensor: MXFP4 as transformers dequantizes it, kept in four bits, and any part."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decode.engine import Engine
from decode.generate import Request, generate
from decode.load import find_source
from model.dtypes import BFLOAT16, Dtypes
from model.weights import WeightsError
from model.weights.huggingface import HuggingFaceFolder
from sharding.catalog import LAYOUTS, divide_experts
from sharding.mesh import parse_mesh
from sharding.quantization import QUANTIZATIONS, QuantizedArray
from tests.decode.test_families import reference_of
from tests.family_cases import FOLDER

CASE, MXFP4 = "gpt_oss_mxfp4", QUANTIZATIONS["mxfp4"]
PATHS = {name: ("layers", 0, "mlp", name) for name in ("gate_up", "down")}
ONE_D = LAYOUTS["weight_stationary_1d"]


def arrays(keep=()):
    folder = HuggingFaceFolder(FOLDER / CASE)
    found = dict(folder.read_parameters(folder.config, keep))
    return {name: found[path] for name, path in PATHS.items()}


def whole(array):
    return array[(slice(None),) * len(array.shape)]


def dequantized() -> dict[str, np.ndarray]:
    """What transformers makes of the first layer's, in the order of this project's arrays."""
    stored = np.load(FOLDER / CASE / "reference.npz")
    gate_up, down = stored["gate_up_proj"], stored["down_proj"]  # [E, D, 2 F], [E, F, D]
    pairs = gate_up.reshape(*gate_up.shape[:2], -1, 2)
    return {"gate_up": pairs.transpose(0, 3, 2, 1), "down": down.transpose(0, 2, 1)}


def test_mxfp4_is_what_transformers_dequantizes_bit_for_bit():
    for name, expected in dequantized().items():
        np.testing.assert_array_equal(whole(arrays()[name]), expected)
        kept = jax.tree.map(whole, arrays(PATHS.values())[name])
        assert isinstance(kept, QuantizedArray) and kept.values.dtype == jnp.uint4
        np.testing.assert_array_equal(jax.tree.map(jnp.asarray, kept).dense(), expected)


def test_any_part_is_that_part_of_the_whole():
    parts = {
        "gate_up": (slice(1, 3), slice(1, 2), slice(8, 24), slice(32, 64)),
        "down": (slice(0, 4), slice(5, 6), slice(24, 40)),  # within groups that share a scale
    }
    for name, index in parts.items():
        array = arrays()[name]
        np.testing.assert_array_equal(array[index], whole(array)[index])


@functools.cache
def engine_of(mesh: str) -> Engine:
    source = find_source(str(FOLDER / CASE))
    dtypes = Dtypes(jnp.float32, source.stored_quantization())
    layout = ONE_D if mesh == "1x1x1" else divide_experts(ONE_D)
    return source.engine(layout, parse_mesh(mesh), dtypes)


def test_a_folder_in_mxfp4_stays_in_it():
    layer = engine_of("1x1x1").parameters["layers"][1]
    assert layer["mlp"]["down"]["values"].dtype == jnp.uint4
    assert layer["mlp"]["gate_up"]["scales"].dtype == jnp.uint8
    assert layer["attention"]["query"].dtype == jnp.float32  # as the router: not of experts


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["1x1x1", "2x2x2"])
def test_a_folder_in_mxfp4_answers_as_transformers_does(mesh):
    engine, (prompts, _, tokens) = engine_of(mesh), reference_of(CASE)
    *_, completions = generate(engine, Request(prompts=prompts, max_new_tokens=32))
    assert [each.tokens for each in completions] == tokens.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("case", ["gpt_oss", CASE])
def test_prompts_in_chunks_give_the_logits_of_transformers(case):
    """A sink joins once, whatever the number of parts: chunks go on behind those before."""
    source = find_source(str(FOLDER / case))
    engine = source.engine(ONE_D, parse_mesh("1"), Dtypes(jnp.float32, None))
    engine.chunk = 16  # of a prompt of 19 tokens
    prompts, logits, _ = reference_of(case)
    tokens = np.asarray(prompts[-1:], np.int32)
    assert tokens.shape[1] > engine.chunk
    found, _ = engine.prefill(engine.new_cache(1, 64), tokens, np.array([tokens.shape[1]]))
    assert np.abs(found[0] - logits[-1][-1]).max() < 1e-4 * np.abs(logits[-1][-1]).max()


def test_matrices_in_plain_bfloat16_are_read_from_it_too():
    source = find_source(str(FOLDER / CASE))
    assert source.stored_quantization() is MXFP4
    engine = source.engine(ONE_D, parse_mesh("1"), BFLOAT16)
    found = np.asarray(engine.parameters["layers"][0]["mlp"]["down"], np.float32)
    np.testing.assert_array_equal(found, dequantized()["down"])


@pytest.mark.parametrize("method", ["awq", "fp8"])
def test_experts_quantized_otherwise_are_refused_by_name(method, tmp_path):
    shutil.copytree(FOLDER / CASE, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    values = json.loads(file.read_text())
    values["quantization_config"]["quant_method"] = method
    file.write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=f"weights quantized by '{method}' are not read"):
        find_source(str(tmp_path / "model"))
