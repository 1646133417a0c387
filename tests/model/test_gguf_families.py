"""A GGUF file and a Hugging Face folder of one model give the same configuration and arrays.

The folders are those whose logits and text are held to transformers in tests/decode.
"""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from decode.load import find_source
from model.config_checks import ConfigError
from model.dtypes import Dtypes
from model.weights import WeightsError, gguf_latent
from model.weights.gguf import read_config, read_parameters
from model.weights.gguf_architectures import ARCHITECTURES
from model.weights.gguf_file import GGUFFile
from model.weights.gguf_layers import Layer
from model.weights.huggingface import HuggingFaceFolder
from sharding.catalog import LAYOUTS
from sharding.mesh import parse_mesh
from tests import gguf_families
from tests.family_cases import FOLDER, GGUF_CASES

# What no key of the format says, so that a file has it from its architecture alone.
_ONE_FACTOR = {"rotary_scale"}  # of two that released models have alike, and these have not
UNSAID = {
    "gemma2": {"attention_scale"},
    "gemma3": {"attention_scale", "windows"},
    "llama_dynamic": {"rotary_limit"},
    "llama4_scout": {"windows", "query_growth"},
    "llama4_maverick": {"windows", "query_growth", "unit_queries_keys"},
    **dict.fromkeys(("deepseek_v2", "deepseek_v2_lite", "deepseek_v3", "kimi_k2"), _ONE_FACTOR),
}


@pytest.mark.parametrize("case", GGUF_CASES)
def test_a_gguf_file_is_the_model_of_the_folder(case, tmp_path):
    folder = HuggingFaceFolder(FOLDER / case)
    gguf_families.write_gguf(FOLDER / case, tmp_path / "m.gguf")
    file = GGUFFile(tmp_path / "m.gguf")
    config = read_config(file)
    for field in dataclasses.fields(config):
        if field.name not in {"name", "rotary_factors", *UNSAID.get(case, ())}:
            ours, theirs = getattr(config, field.name), getattr(folder.config, field.name)
            near = pytest.approx(theirs, rel=1e-6) if type(theirs) is float else theirs
            assert ours == near, field.name
    ours, theirs = config.rotary_factors or 1.0, folder.config.rotary_factors or 1.0
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    found = dict(read_parameters(file, config))
    expected = dict(folder.read_parameters(folder.config))
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        whole = array[tuple(slice(None) for _ in array.shape)]
        if path[-1] == "rates":  # a file has -exp(rates)
            np.testing.assert_allclose(found[path], whole, rtol=2e-7, atol=2e-7)
        else:
            np.testing.assert_array_equal(found[path], whole, err_msg=str(path))


def test_every_architecture_is_that_of_a_family():
    configs = [json.loads((FOLDER / case / "config.json").read_text()) for case in GGUF_CASES]
    types = {config.get("text_config", config)["model_type"] for config in configs}
    assert {gguf_families.ARCHITECTURES[kind] for kind in types} == set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("case", "layers", "scale"),
    [("gemma2", 46, 8**-0.5), ("gemma2", 3, 16**-0.5), ("gemma3", 62, 8**-0.5)],
)
def test_the_largest_gemmas_scale_their_scores_by_their_width(case, layers, scale, tmp_path):
    """32 wide over 4 heads is 8; the head size is 16."""
    gguf_families.write_gguf(FOLDER / case, tmp_path / "m.gguf")
    file = GGUFFile(tmp_path / "m.gguf")
    for name, info in list(file.tensors.items()):
        if name.startswith("blk.0."):
            names = [name.replace("blk.0.", f"blk.{n}.") for n in range(layers)]
            file.tensors.update(dict.fromkeys(names, info))
    file.metadata[f"{case}.block_count"] = layers
    assert read_config(file).attention_scale == pytest.approx(scale)


def test_gemma_3_sees_all_in_every_sixth_layer_as_its_file_may_say(tmp_path):
    gguf_families.write_gguf(FOLDER / "gemma3", tmp_path / "m.gguf")
    file = GGUFFile(tmp_path / "m.gguf")
    assert read_config(file).windows == (8, 8, 8, 8)
    for name, info in list(file.tensors.items()):
        if name.startswith("blk.0."):
            more = [name.replace("blk.0.", f"blk.{n}.") for n in range(4, 13)]
            file.tensors.update(dict.fromkeys(more, info))
    file.metadata |= {"gemma3.block_count": 13, "gemma3.attention.sliding_window_pattern": 6}
    assert read_config(file).windows == ((8,) * 5 + (None,)) * 2 + (8,)
    file.metadata["gemma3.attention.sliding_window_pattern"] = 4
    with pytest.raises(WeightsError, match="sliding_window_pattern"):
        read_config(file)
    del file.metadata["gemma3.attention.sliding_window_pattern"]
    file.metadata["gemma3.rope.freq_base_swa"] = 500.0
    assert read_config(file).local_rotary_base == 500.0


def test_gemma_2_has_its_window_and_caps_where_the_file_leaves_them_out(tmp_path):
    gguf_families.write_gguf(FOLDER / "gemma2", tmp_path / "m.gguf")
    file = GGUFFile(tmp_path / "m.gguf")
    for key in ("attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping"):
        del file.metadata[f"gemma2.{key}"]
    file.metadata["gemma2.context_length"] = 8192
    config = read_config(file)
    assert config.windows == (4096, None, 4096)
    assert (config.attention_softcap, config.logit_softcap) == (50.0, 30.0)


def test_keys_of_a_vision_tower_are_not_those_of_the_language_model(tmp_path):
    gguf_families.write_gguf(FOLDER / "gemma3", tmp_path / "m.gguf")
    file = GGUFFile(tmp_path / "m.gguf")
    file.metadata |= {"gemma3.vision.block_count": 27, "gemma3.mm.tokens_per_image": 256}
    assert read_config(file).layers == 4


@pytest.mark.parametrize("case", GGUF_CASES)
def test_no_size_crashes_the_reader(case, tmp_path):
    gguf_families.write_gguf(FOLDER / case, tmp_path / "m.gguf")
    file = GGUFFile(tmp_path / "m.gguf")
    good, refused = file.metadata, 0
    sizes = [key for key, value in good.items() if isinstance(value, int | float)]
    for key in sizes:
        for value in (0, -32, 46, 2**31, 0.5, float("nan"), "x", [1], True):
            file.metadata = good | {key: value}
            try:
                read_config(file)
            except (WeightsError, ConfigError) as error:
                refused += 1
                assert "\n" not in str(error) and "; " in str(error)
    assert refused > 5 * len(sizes)  # of nine values; a base of 46 or a window of 0 may be meant


def deepseek(tmp_path, name="deepseek_v2"):
    gguf_families.write_gguf(FOLDER / name, tmp_path / "m.gguf")
    return GGUFFile(tmp_path / "m.gguf")


def test_an_older_deepseek_file_has_keys_and_values_of_latents_in_one_matrix(tmp_path):
    """As llama.cpp wrote them before April 2025, with the sizes of heads and not of latents."""
    file, folder = deepseek(tmp_path), HuggingFaceFolder(FOLDER / "deepseek_v2")
    sizes = folder.config.latent
    both = (4 * (sizes.content + sizes.value), sizes.rank)
    for layer in range(3):
        for part in ("k_b", "v_b"):
            info = file.tensors.pop(f"blk.{layer}.attn_{part}.weight")
        name = f"blk.{layer}.attn_kv_b.weight"
        file.tensors[name] = dataclasses.replace(info, name=name, shape=both)
    for name in ("key", "value"):
        mla = file.metadata.pop(f"deepseek2.attention.{name}_length_mla")
        file.metadata[f"deepseek2.attention.{name}_length"] = mla
    file.metadata["deepseek2.attention.head_count_kv"] = 4
    config = read_config(file)
    assert config.latent == sizes
    stored = np.arange(both[0] * both[1], dtype=np.float32).reshape(both)
    keys, values = gguf_latent.split_keys_values(config, stored)
    heads = stored.reshape(4, -1, sizes.rank)
    np.testing.assert_array_equal(keys[0], heads[:, : sizes.content])
    np.testing.assert_array_equal(values[0], heads[:, sizes.content :])
    layer = Layer(config, 0, ARCHITECTURES["deepseek2"], file.tensors)
    paths = [p.path[2:] for p in layer.parameters()]
    assert paths.count(("attention", "key")) == paths.count(("attention", "value")) == 1


def test_a_router_whose_groups_a_file_does_not_say_is_refused_by_name(tmp_path):
    file = deepseek(tmp_path)
    for key in ("expert_group_count", "expert_group_used_count"):
        del file.metadata[f"deepseek2.{key}"]
    with pytest.raises(WeightsError, match=r"expert_group_count' of .* is missing.*; convert the"):
        read_config(file)
    file.metadata["deepseek2.block_count"] = 27  # DeepSeek-V2-Lite has no groups
    for name, info in list(file.tensors.items()):
        if name.startswith("blk.2."):
            file.tensors.update({name.replace(".2.", f".{n}.", 1): info for n in range(3, 27)})
    assert read_config(file).routing.groups == 1


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("phi3", {"phi3.rope.scaling.type": "longrope"}, "where 0 of its two tensors are there"),
        ("phi3_long", {"phi3.rope.scaling.type": "none"}, "where 2 of its two tensors are there"),
        ("llama_yarn", {"llama.rope.scaling.factor": 0.5}, "'rope.scaling' of m.gguf .*below 1"),
        ("llama_yarn", {"llama.rope.scaling.type": "ntk"}, "rope.scaling.type' of m.gguf is 'ntk'"),
        ("deepseek_v3", {"deepseek2.expert_gating_func": 4}, "expert_gating_func' .* is 4; this"),
        ("deepseek_v3", {"deepseek2.attention.head_count_kv": 4}, "is 4, where that of latents"),
        ("olmo3", {"olmo2.attention.sliding_window_pattern": np.array([True])}, "are 4 layers"),
    ],
)
def test_what_a_file_says_and_is_not_read_is_refused_by_name(case, changes, message, tmp_path):
    gguf_families.write_gguf(FOLDER / case, tmp_path / "m.gguf")
    file = GGUFFile(tmp_path / "m.gguf")
    file.metadata |= changes
    with pytest.raises(WeightsError, match=message):
        read_config(file)


def test_experts_in_mxfp4_stay_in_it(tmp_path):
    gguf_families.write_gguf(FOLDER / "gpt_oss_mxfp4", tmp_path / "m.gguf")
    source, folder = (
        find_source(str(tmp_path / "m.gguf")),
        HuggingFaceFolder(FOLDER / "gpt_oss_mxfp4"),
    )
    kind = source.stored_quantization()
    assert kind is folder.quantization
    paths = {("layers", 1, "mlp", name): kind for name in ("gate_up", "down")}
    found = dict(read_parameters(source.file, source.config, paths))
    for path, theirs in folder.read_parameters(folder.config, paths):
        if path in paths:
            for name in ("values", "scales"):
                expected = getattr(theirs, name)
                whole = expected[(slice(None),) * len(expected.shape)]
                ours = getattr(found[path], name)
                np.testing.assert_array_equal(ours, whole)
                assert ours.dtype == whole.dtype


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        *("deepseek_v2", "deepseek_v3", "glm4", "glm4_moe", "gpt_oss_mxfp4", "olmo3", "phi3_long"),
        *("qwen3_5", "qwen3_next"),
    ],
)
def test_a_gguf_file_has_the_logits_of_the_folder(case, tmp_path):
    shutil.copytree(FOLDER / case, tmp_path / "folder")
    file = tmp_path / "folder" / "config.json"
    config = json.loads(file.read_text())
    if "mscale" in config["rope_parameters"]:  # the one of two factors that files have is both
        config["rope_parameters"]["mscale"] = config["rope_parameters"]["mscale_all_dim"]
    file.write_text(json.dumps(config))
    gguf_families.write_gguf(tmp_path / "folder", tmp_path / "m.gguf")
    logits = []
    for path in ("m.gguf", "folder"):
        source = find_source(str(tmp_path / path))
        dtypes = Dtypes(jnp.float32, source.stored_quantization())
        engine = source.engine(LAYOUTS["weight_stationary_1d"], parse_mesh("1"), dtypes)
        logits.append(engine.forward(np.arange(3, 40, dtype=np.int32)[None]))
    np.testing.assert_allclose(*logits, atol=1e-5 * np.abs(logits[1]).max())
