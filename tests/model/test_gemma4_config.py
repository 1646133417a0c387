"""Fields of Gemma 4's `config.json`, and tensors that a text model leaves out."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from model.config_checks import ConfigError
from model.full_attention import FullAttention
from model.weights import WeightsError
from model.weights.huggingface import HuggingFaceFolder
from model.weights.huggingface_config import read_config
from tests.family_cases import FOLDER


def values_of(case):
    return json.loads((FOLDER / case / "config.json").read_text())


def read(folder, values):
    (folder / "config.json").write_text(json.dumps(values))
    return read_config(folder)[0]


def with_rotary(kind, **changes):
    rotary = values_of("gemma4_experts")["rope_parameters"]
    return {"rope_parameters": rotary | {kind: rotary[kind] | changes}}


@pytest.mark.parametrize(
    ("case", "changed", "words"),
    [
        ("gemma4_experts", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
        ("gemma4_experts", {"attention_bias": True}, "attention_bias.*True"),
        ("gemma4_experts", {"num_experts": None}, "num_experts.*missing"),
        ("gemma4_experts", {"rope_parameters": {"rope_type": "default"}}, "give full_attention"),
        ("gemma4_experts", with_rotary("full_attention", factor=8.0), "a factor is not"),
        ("gemma4_experts", with_rotary("full_attention", rope_type="yarn"), "proportional"),
        ("gemma4_experts", with_rotary("full_attention", partial_rotary_factor=0.01), "no part"),
        ("gemma4_experts", with_rotary("sliding_attention", rope_type="linear"), "rope_parameters"),
        ("gemma4_experts", with_rotary("sliding_attention", rope_theta=10**400), "give a number"),
        ("gemma4_experts", {"per_layer_config": {"1": {"head_dim": 32}}}, "per_layer_config"),
        ("gemma4_experts", {"per_layer_config": {"1": {"head_dim": 32}, "2": {"head_dim": 64}}},
         "per_layer_config.*same sizes"),
        ("gemma4_shared", {"vocab_size_per_layer_input": 64}, "vocab_size_per_layer_input.*64"),
        ("gemma4_shared", {"num_kv_shared_layers": 3}, "shared_cache_layers.*window"),
        ("gemma4_shared", {"num_kv_shared_layers": 5}, "shared_cache_layers.*0 to 4"),
        ("gemma4", {"text_config": [1]}, "text_config.*an object"),
        ("gemma4", {"tie_word_embeddings": False}, "tie_word_embeddings.*text_config says True"),
        ("gemma4", {"eyes": 2}, "eyes.*may change"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(tmp_path, case, changed, words):
    with pytest.raises((WeightsError, ConfigError), match=words) as caught:
        read(tmp_path, values_of(case) | changed)
    assert "\n" not in str(caught.value)


def test_sizes_of_heads_are_told_in_two_ways(tmp_path):
    values = values_of("gemma4_experts")
    by_layer = read(tmp_path, values)
    assert by_layer.full_attention == FullAttention(
        head_size=32, kv_heads=1, keys_are_values=True, rotary_pairs=4
    )
    del values["per_layer_config"]
    once = values | {"global_head_dim": 32, "num_global_key_value_heads": 1}
    assert read(tmp_path, once) == by_layer
    # Only where keys are values have they another number.
    apart = read(tmp_path, once | {"attention_k_eq_v": False})
    assert apart.full_attention == FullAttention(head_size=32, kv_heads=2, rotary_pairs=4)
    assert read(tmp_path, values).full_attention.head_size == 512


def test_the_last_layer_sees_all_tokens_whatever_is_said(tmp_path):
    values = values_of("gemma4_experts") | {"layer_types": None, "per_layer_config": None}
    assert read(tmp_path, values | {"num_hidden_layers": 8}).windows == (*[8] * 5, None, 8, None)


def test_a_model_without_windows_has_heads_of_one_size(tmp_path):
    full = {"layer_types": ["full_attention"] * 3, "per_layer_config": None}
    found = read(tmp_path, values_of("gemma4_experts") | full | {"global_head_dim": 64})
    assert found.full_attention is None and found.windows is None
    assert (found.head_size, found.rotary_pairs, found.keys_are_values) == (64, 8, True)


def test_a_layer_that_borrows_reads_the_last_one_with_as_long_a_window():
    config, _ = read_config(FOLDER / "gemma4_shared")
    assert [config.cache_layer(layer) for layer in range(5)] == [0, 1, 2, 1, 2]
    assert [config.lends(layer) for layer in range(5)] == [False, True, True, False, False]
    assert [config.mlp_width(layer) for layer in range(5)] == [*"FFFff"]


def test_keys_that_a_layer_never_uses_are_left_out_as_towers_are(tmp_path):
    shutil.copytree(FOLDER / "gemma4_shared", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    unused = {"model.layers.3.self_attn.k_proj.weight": np.zeros((32, 32), np.float32)}
    save_file(tensors | unused, file)
    HuggingFaceFolder(tmp_path)
    used = {"model.layers.0.self_attn.k_proj.bias": np.zeros(32, np.float32)}
    save_file(tensors | used, file)
    with pytest.raises(WeightsError, match=r"k_proj.bias is one of 1 that the configuration"):
        HuggingFaceFolder(tmp_path)
    assert any("vision_tower" in name for name in load_file(FOLDER / "gemma4/model.safetensors"))
    assert HuggingFaceFolder(FOLDER / "gemma4").config.layers == 3
