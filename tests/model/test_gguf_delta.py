"""Gated delta layers in GGUF files: their other forms, few bits, and what is refused."""

import dataclasses

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from model.config import ModelConfig
from model.delta_sizes import DeltaSizes
from model.weights import WeightsError
from model.weights.gguf import read_config, read_parameters
from model.weights.gguf_architectures import ARCHITECTURES
from model.weights.gguf_delta import DeltaTensors
from model.weights.gguf_file import GGUFFile
from model.weights.gguf_layers import Layer
from model.weights.huggingface import HuggingFaceFolder
from sharding.quantization import QUANTIZATIONS, QuantizedArray
from tests.family_cases import FOLDER
from tests.gguf_families import write_gguf


def written(case, tmp_path):
    write_gguf(FOLDER / case, tmp_path / "m.gguf")
    return GGUFFile(tmp_path / "m.gguf")


def test_layers_that_predict_further_tokens_are_left_out(tmp_path):
    file = written("qwen3_5_moe", tmp_path)
    assert file.metadata["qwen35moe.block_count"] == 4
    assert "blk.3.nextn.shared_head_norm.weight" in file.tensors
    assert read_config(file).layers == 3
    file.metadata["qwen35moe.nextn_predict_layers"] = 4
    with pytest.raises(WeightsError, match=r"predict_layers' .* is 4, of 4 layers"):
        read_config(file)
    file.metadata["qwen35moe.nextn_predict_layers"] = 0
    with pytest.raises(WeightsError, match=r"tensor list of m.gguf is .* missing"):
        read_config(file)


def test_a_file_may_say_of_each_layer_whether_it_has_attention(tmp_path):
    file = written("qwen3_5_moe", tmp_path)
    del file.metadata["qwen35moe.full_attention_interval"]  # so that it is 4
    with pytest.raises(WeightsError, match=r"blk\.1\.ssm_"):
        read_config(file)
    for kind in (bool, np.uint32):
        given = np.array([1, 0, 1, 0], kind)  # the last predicts further tokens
        file.metadata["qwen35moe.attention.recurrent_layers"] = given
        assert read_config(file).delta_layers == (True, False, True)
    file.metadata["qwen35moe.attention.recurrent_layers"] = given[:3]
    with pytest.raises(WeightsError, match=r"recurrent_layers' .* where there are 4 layers"):
        read_config(file)


def test_older_files_of_qwen3_next_have_what_a_key_head_makes_in_one_tensor(tmp_path):
    file = written("qwen3_next", tmp_path)
    config = read_config(file)
    sizes, width = config.delta, config.delta.key_heads * config.delta.projected
    for layer in (0, 2):
        file.tensors.pop(f"blk.{layer}.attn_gate.weight")
        info = file.tensors.pop(f"blk.{layer}.attn_qkv.weight")
        name = f"blk.{layer}.ssm_in.weight"
        file.tensors[name] = dataclasses.replace(info, name=name, shape=(width, config.d_model))
    assert read_config(file) == config
    layer = Layer(config, 0, ARCHITECTURES["qwen3next"], tensors=file.tensors)
    (made,) = (p for p in layer.parameters() if p.path[-1] == "query_key_value")
    stored = np.arange(width * config.d_model, dtype=np.float32).reshape(width, -1)
    expected = stored.reshape(sizes.key_heads, sizes.projected, -1)
    np.testing.assert_array_equal(made.build(stored), expected)


def test_experts_may_have_gate_and_up_in_one_tensor(tmp_path):
    file = written("qwen3_next", tmp_path)
    config = read_config(file)
    E, F, D = config.experts, config.d_ff, config.d_model
    for layer in range(config.layers):
        info = file.tensors.pop(f"blk.{layer}.ffn_gate_exps.weight")
        file.tensors.pop(f"blk.{layer}.ffn_up_exps.weight")
        name = f"blk.{layer}.ffn_gate_up_exps.weight"
        file.tensors[name] = dataclasses.replace(info, name=name, shape=(E, 2 * F, D))
    assert read_config(file) == config
    layer = Layer(config, 0, ARCHITECTURES["qwen3next"], tensors=file.tensors)
    (both,) = (p for p in layer.parameters() if p.path[-2:] == ("mlp", "gate_up"))
    gate, up = (np.full((E, F, D), value) for value in (1, 2))
    built = both.build(np.concatenate([gate, up], axis=1))
    np.testing.assert_array_equal(built, np.stack([gate, up], axis=1))


def test_a_matrix_of_one_row_may_be_stored_as_the_row(tmp_path):
    """llama.cpp's converter writes [1, D], and its quantizer, which knows no such shape, [D]."""
    file = written("qwen3_next", tmp_path)
    for name, info in list(file.tensors.items()):
        if "gate_inp_shexp" in name:
            assert info.shape[0] == 1
            file.tensors[name] = dataclasses.replace(info, shape=info.shape[1:])
    config = read_config(file)
    gates = {p: a for p, a in read_parameters(file, config) if p[-2:] == ("shared", "gate")}
    expected = dict(HuggingFaceFolder(FOLDER / "qwen3_next").read_parameters(config))
    assert len(gates) == 3
    for path, gate in gates.items():
        np.testing.assert_array_equal(gate, expected[path][:, :])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ssm.time_step_rank": 3}, "time_step_rank' of m.gguf is 3, where there are 2 key heads"),
        ({"ssm.inner_size": 50}, "inner_size' of m.gguf is 50, where there are 4 value heads"),
        ({"full_attention_interval": 0}, "full_attention_interval' of m.gguf is 0"),
        ({"rope.dimension_sections": np.array([1, 0, 0, 0])}, None),  # the last is never reached
        ({"rope.dimension_sections": np.array([1, 0, 0, 1])}, "axis that no text has"),
        ({"rope.dimension_sections": np.array([0, 2, 0, 0])}, "leave some of 2 frequencies"),
        ({"rope.dimension_sections": np.array([1, 1, 0])}, r"sections' of m.gguf is \[1, 1, 0\]"),
        ({"rope.dimension_sections": np.array([2, 1, -1, 0])}, "sections' of m.gguf is"),
        ({"rope.dimension_sections": np.array([0.5])}, "sections' of m.gguf is"),
        ({"expert_weights_scale": 2.0}, "expert_weights_scale' of m.gguf is 2.0"),
    ],
)
def test_what_no_model_of_the_family_has_is_refused_by_name(changes, message, tmp_path):
    file = written("qwen3_5", tmp_path)
    file.metadata |= {f"qwen35.{key}": value for key, value in changes.items()}
    if message is None:
        read_config(file)
        return
    with pytest.raises(WeightsError, match=message):
        read_config(file)


def test_a_rate_that_is_not_negative_is_refused():
    sizes = DeltaSizes(key_heads=1, values_per_key=2, key_size=2, value_size=2)
    tensors = DeltaTensors(dataclasses.replace(_wide(), delta=sizes), apart=True)
    with pytest.raises(WeightsError, match=r"ssm_a has 0\.5, which is not negative; .*fetch it"):
        tensors.rates(np.array([-1.0, 0.5], np.float32))


@pytest.mark.parametrize(("size", "kept"), [(32, True), (24, False)])
def test_matrices_in_few_bits_are_kept_where_their_scales_are_of_one_head(size, kept, tmp_path):
    """Heads of 24 values share a scale among two, so that the output is read as it stands for."""
    config = _wide(size)
    path = tmp_path / "m.gguf"
    _write(path, config)
    file = GGUFFile(path)
    found = dataclasses.replace(read_config(file), name="wide", norm_epsilon=config.norm_epsilon)
    assert found == config
    plain = dict(read_parameters(file, config))
    form = QUANTIZATIONS["int8_grouped"]
    paths = [("layers", 0, "attention", name) for name in ("query_key_value", "output")]
    found = dict(read_parameters(file, config, dict.fromkeys(paths, form)))
    for path in paths:
        array = found[path]
        assert isinstance(array, QuantizedArray) == (kept or path[-1] != "output")
        if isinstance(array, QuantizedArray):
            groups = array.values.reshape(*array.scales.shape, 32)
            array = (groups * array.scales[..., None]).reshape(array.values.shape)
        np.testing.assert_array_equal(array, plain[path])


def _wide(value_size=32):
    return ModelConfig(
        name="wide",
        vocabulary=32,
        d_model=64,
        layers=2,
        query_heads=2,
        kv_heads=1,
        head_size=32,
        rotary_size=8,
        d_ff=32,
        max_context=64,
        norm_epsilon=1e-6,
        query_key_norm=True,
        output_gate=True,
        tied_embedding=True,
        delta=DeltaSizes(key_heads=2, values_per_key=2, key_size=16, value_size=value_size),
        delta_layers=(True, False),
    )


def _write(path, config):
    """A random model of Qwen3.5 whose matrices are in 8 bits, by the shapes of its tensors."""
    random, writer, sizes = np.random.default_rng(0), GGUFWriter(path, "qwen35"), config.delta
    keys = {
        "embedding_length": config.d_model,
        "block_count": config.layers,
        "attention.head_count": config.query_heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        "rope.dimension_count": config.rotary_size,
        "feed_forward_length": config.d_ff,
        "context_length": config.max_context,
        "full_attention_interval": 2,
        "ssm.conv_kernel": sizes.taps,
        "ssm.state_size": sizes.key_size,
        "ssm.group_count": sizes.key_heads,
        "ssm.time_step_rank": sizes.value_heads,
        "ssm.inner_size": sizes.value_heads * sizes.value_size,
    }
    for key, value in keys.items():
        writer.add_uint32(f"qwen35.{key}", value)
    writer.add_float32("qwen35.attention.layer_norm_rms_epsilon", config.norm_epsilon)
    layers = (Layer(config, number, ARCHITECTURES["qwen35"]) for number in range(config.layers))
    shapes = {
        name: s for layer in layers for p in layer.parameters() for name, s in p.sources.items()
    }
    shapes |= {"token_embd.weight": (config.vocabulary, config.d_model)}
    shapes |= {"output_norm.weight": (config.d_model,)}
    for name, shape in shapes.items():
        values = -np.exp(random.standard_normal(shape, np.float32))
        kind = GGMLQuantizationType.F32 if shape[-1] % 32 else GGMLQuantizationType.Q8_0
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
