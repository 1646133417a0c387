"""GGUF files: what the container holds, and the Llama model it makes."""

import dataclasses
import os

import gguf
import numpy as np
import pytest

from model.config_checks import ConfigError
from model.weights import WeightsError
from model.weights.gguf import read_config, read_parameters
from model.weights.gguf_file import GGUFFile
from tests.gguf_samples import SIZES, write_tiny_gguf


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tiny.gguf"


def config_of(path, **choices):
    write_tiny_gguf(path, **choices)
    return read_config(GGUFFile(path))


def heads_of(weight, heads):
    return weight.reshape(heads, -1, weight.shape[-1])


@pytest.mark.parametrize(
    "quantization", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0"]
)
def test_values_and_metadata_equal_those_of_the_gguf_package(path, quantization):
    sizes = {"d_model": 256, "d_ff": 256, "head_size": 64} if "TQ" in quantization else {}
    write_tiny_gguf(path, quantization=quantization, **sizes)
    file, theirs = GGUFFile(path), gguf.GGUFReader(path)
    assert list(file.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(file.read(tensor.name), values)
        assert file.read(tensor.name).dtype == np.float32
    for key, value in file.metadata.items():
        assert np.array_equal(value, theirs.fields[key].contents()), key


@pytest.mark.parametrize(
    "kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ2_XXS"]
)
def test_block_types_that_only_llama_cpp_writes_are_read(path, kind):
    kind = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    stored = np.random.default_rng(0).integers(0, 60, (4, 512 // block * size), np.uint8)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("matrix", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    values = GGUFFile(path).read("matrix")
    assert values.shape == (4, 512)
    np.testing.assert_array_equal(values, gguf.dequantize(stored, kind))


def test_a_type_without_dequantization_is_refused_by_name(path):
    kind = gguf.GGMLQuantizationType.Q8_K
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("matrix", np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), None, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(WeightsError, match=r"'matrix' in tiny.gguf is Q8_K"):
        GGUFFile(path).read("matrix")


def test_metadata_of_every_scalar_and_array_type_is_read(path):
    values = {f"x.{kind.name}": 1 for kind in gguf.GGUFValueType if kind.value < 8 or kind > 9}
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in values.items():
        kind = gguf.GGUFValueType[key.removeprefix("x.")]
        writer.add_key_value(key, value, kind)
        writer.add_key_value(key + "s", [value, 0], gguf.GGUFValueType.ARRAY, sub_type=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = GGUFFile(path).metadata
    for key, value in values.items():
        assert metadata[key] == value
        assert metadata[key + "s"].tolist() == [value, 0]
    assert metadata["x.BOOL"] is True


def test_the_configuration_is_that_of_the_metadata(path):
    config = config_of(path)
    assert {field: getattr(config, field) for field in SIZES} == SIZES
    assert (config.name, config.tied_embedding, config.rotary_factors) == ("tiny", True, None)
    assert config.norm_epsilon == pytest.approx(1e-5)
    assert not config_of(path, tied=False).tied_embedding


def test_what_the_metadata_leaves_out_follows_from_the_rest(path):
    absent = ["attention.key_length", "attention.value_length", "rope.dimension_count"]
    absent += ["rope.freq_base", "vocab_size", "attention.head_count_kv"]
    metadata = {f"llama.{key}": None for key in absent} | {"general.name": None}
    config = config_of(path, metadata=metadata, d_model=64, kv_heads=4)
    assert (config.head_size, config.kv_heads, config.vocabulary) == (16, 4, 288)
    assert (config.rotary_base, config.name) == (10_000.0, "tiny")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantization", ["F32", "Q4_1"])
def test_parameters_have_the_values_and_order_of_hugging_face(path, tied, quantization):
    weights = write_tiny_gguf(path, tied=tied, quantization=quantization)
    file = GGUFFile(path)
    config = read_config(file)
    found = dict(read_parameters(file, config))
    K, G, h, D = 2, 2, 16, 32
    expected = {("embedding", "weight"): weights["model.embed_tokens.weight"]}
    for layer in range(2):
        w = {
            name.split(".", 3)[3].removesuffix(".weight"): value
            for name, value in weights.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        queries = w["self_attn.q_proj"].reshape(K, G, h, D)
        keys, values = (w[f"self_attn.{name}_proj"].reshape(K, 1, h, D) for name in "kv")
        expected |= {
            ("layers", layer, *path): value
            for path, value in {
                ("attention_norm", "scale"): w["input_layernorm"],
                ("attention", "query"): queries,
                ("attention", "key_value"): np.concatenate([keys, values], axis=1),
                ("attention", "output"): w["self_attn.o_proj"].reshape(D, K, G, h),
                ("mlp_norm", "scale"): w["post_attention_layernorm"],
                ("mlp", "gate_up"): np.stack([w["mlp.gate_proj"], w["mlp.up_proj"]]),
                ("mlp", "down"): w["mlp.down_proj"],
            }.items()
        }
    expected["final_norm", "scale"] = weights["model.norm.weight"]
    if not tied:
        expected["unembedding", "weight"] = weights["lm_head.weight"]
    assert found.keys() == expected.keys()
    for path_, value in expected.items():
        np.testing.assert_array_equal(found[path_], value, err_msg=str(path_))


def test_linear_stretching_divides_every_frequency(path):
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    assert config_of(path, metadata=scaling).rotary_factors == (4.0,) * 8
    scaling["llama.rope.scaling.type"] = "none"
    assert config_of(path, metadata=scaling).rotary_factors is None


def test_stored_rotary_factors_are_taken(path):
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    config = config_of(path, tensors={"rope_freqs.weight": factors})
    assert config.rotary_factors == tuple(factors.tolist())


def test_sizes_listed_per_layer_are_taken_when_all_alike(path):
    assert config_of(path, metadata={"llama.attention.head_count_kv": [2, 2]}).kv_heads == 2
    with pytest.raises(WeightsError, match=r"head_count_kv' of tiny.gguf is array"):
        config_of(path, metadata={"llama.attention.head_count_kv": [0, 4]})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope.scaling.type", "su"),
        ("attention.value_length", 8),
        ("attention.sliding_window_pattern", 3),
        ("attention.causal", False),
        ("expert_weights_scale", 2.0),
        ("logit_scale", 2.0),
        ("block_count", "two"),
        ("context_length", 2.5),
    ],
)
def test_what_the_model_cannot_do_is_refused_by_name(path, key, value):
    with pytest.raises(WeightsError, match=rf"'llama.{key}' of tiny.gguf is {value!r}"):
        config_of(path, metadata={f"llama.{key}": value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expert_count", 0),
        ("attention.causal", True),
        ("rope.scaling.original_context_length", 64),
    ],
)
def test_metadata_that_changes_nothing_is_accepted(path, key, value):
    plain = config_of(path)
    assert config_of(path, metadata={f"llama.{key}": value}) == plain


def test_another_architecture_is_refused_with_the_supported_ones(path):
    with pytest.raises(WeightsError, match=r"architecture .* is 'mamba'; supported are llama"):
        config_of(path, metadata={"general.architecture": "mamba"})


def test_sizes_that_contradict_each_other_are_refused(path):
    with pytest.raises(ConfigError, match="not a multiple of its 3 kv_heads"):
        config_of(path, metadata={"llama.attention.head_count_kv": 3})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"blk.1.ffn_up.weight": None}, r"1 missing \(blk.1.ffn_up.weight\)"),
        ({"blk.0.attn_sinks.weight": np.zeros(4, np.float32)}, r"1 left over \('blk.0.attn_sinks"),
        ({"blk.0.attn_q.bias": np.zeros(64, np.float32)}, r"5 missing \(blk.0.attn_k.bias, blk.0"),
        (
            {"blk.0.ffn_down.weight": np.zeros((64, 32), np.float32)},
            r"1 misshapen \(blk.0.ffn_down.weight \[64, 32\] for \[32, 64\]\)",
        ),
        (
            {f"blk.0.{n}.weight": None for n in ("attn_q", "attn_k", "attn_v", "ffn_up")},
            "4 missing",
        ),
    ],
)
def test_a_tensor_list_other_than_the_model_needs_is_refused(path, tensors, message):
    with pytest.raises(WeightsError, match=message):
        config_of(path, tensors=tensors)


def test_parameters_are_refused_for_another_configuration_before_any_is_read(path):
    config = config_of(path)
    with pytest.raises(WeightsError, match="9 missing"):
        read_parameters(GGUFFile(path), dataclasses.replace(config, layers=3))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(path, bad):
    scale = np.full(32, 1, np.float32)
    scale[7] = bad
    config = config_of(path, tensors={"blk.1.attn_norm.weight": scale})
    with pytest.raises(WeightsError, match=r"'blk.1.attn_norm.weight' of tiny.gguf is not finite"):
        dict(read_parameters(GGUFFile(path), config))


def test_a_tensor_that_is_not_there_is_named(path):
    write_tiny_gguf(path)
    with pytest.raises(WeightsError, match=r"tensor 'nothing' is not in tiny.gguf"):
        GGUFFile(path).read("nothing")


def test_a_path_that_is_no_file_is_refused(tmp_path):
    (tmp_path / "empty.gguf").touch()
    os.mkfifo(tmp_path / "pipe.gguf")
    for name, message in {
        "absent.gguf": "No such file",
        ".": "not a regular file",
        "pipe.gguf": "not a regular file",
        "empty.gguf": "empty",
    }.items():
        with pytest.raises(WeightsError, match=message):
            GGUFFile(tmp_path / name)
