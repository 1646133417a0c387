"""Files of Gemma 4, where they say other things than its folders do, or what is not read."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from model.catalog import find_model
from model.weights import WeightsError
from model.weights.gguf import read_config, read_parameters
from model.weights.gguf_architectures import ARCHITECTURES
from model.weights.gguf_config import read_keys
from model.weights.gguf_file import GGUFFile
from model.weights.gguf_gemma4 import Gemma4Layer, input_parameters
from sharding.quantization import QUANTIZATIONS
from tests.family_cases import FOLDER
from tests.gguf_families import write_gguf


def write(tmp_path, case="gemma4", quantization="F32"):
    write_gguf(FOLDER / case, tmp_path / "m.gguf", quantization)
    return GGUFFile(tmp_path / "m.gguf")


def by_layer(full, sliding, every, layers):
    return np.array([full if (n + 1) % every == 0 else sliding for n in range(layers)])


# Of released models: tensors of a file, period of layers without a window, whether values are in
# them, and sizes, from logs of loading such files; E4B's number of tensors is 17 a layer and 6, as
# E2B's is. Files of both have the keys of all layers.
RELEASED = {
    "gemma4-31b": (833, 6, False, {
        "block_count": 60, "context_length": 262_144, "embedding_length": 5376,
        "feed_forward_length": 21_504, "attention.head_count": 32,
        "attention.head_count_kv": by_layer(4, 16, 6, 60), "attention.sliding_window": 1024,
    }),
    "gemma4-26b-a4b": (658, 6, False, {
        "block_count": 30, "context_length": 262_144, "embedding_length": 2816,
        "feed_forward_length": 2112, "attention.head_count": 16,
        "attention.head_count_kv": by_layer(2, 8, 6, 30), "attention.sliding_window": 1024,
        "expert_count": 128, "expert_used_count": 8, "expert_feed_forward_length": 704,
    }),
    "gemma4-e4b": (720, 6, True, {
        "block_count": 42, "context_length": 131_072, "embedding_length": 2560,
        "feed_forward_length": 10_240, "attention.head_count": 8, "attention.head_count_kv": 2,
        "attention.sliding_window": 512, "attention.shared_kv_layers": 18,
        "embedding_length_per_layer_input": 256,
    }),
    "gemma4-e2b": (601, 5, True, {
        "block_count": 35, "context_length": 131_072, "embedding_length": 1536,
        "feed_forward_length": np.array([6144] * 15 + [12_288] * 20),
        "attention.head_count": 8, "attention.head_count_kv": 1,
        "attention.sliding_window": 512, "attention.shared_kv_layers": 20,
        "embedding_length_per_layer_input": 256,
    }),
}  # fmt: skip
OF_ALL = {
    "attention.layer_norm_rms_epsilon": 1e-6,
    "final_logit_softcapping": 30.0,
    "rope.freq_base": 1e6,
    "rope.freq_base_swa": 10_000.0,
    "vocab_size": 262_144,
    **{f"{kind}_length{suffix}": size
       for kind in ("attention.key", "attention.value")
       for suffix, size in (("", 512), ("_swa", 256))},
    "rope.dimension_count": 512,
    "rope.dimension_count_swa": 256,
}  # fmt: skip


@pytest.mark.parametrize("name", RELEASED)
def test_keys_of_released_files_are_the_models_of_the_catalogue(name):
    tensors, every, values, sizes = RELEASED[name]
    pattern = by_layer(False, True, every, sizes["block_count"])
    keys = OF_ALL | sizes | {"attention.sliding_window_pattern": pattern}
    metadata = {"general.architecture": "gemma4", "general.name": name}
    file = SimpleNamespace(
        path=SimpleNamespace(name="m.gguf"),
        metadata=metadata | {f"gemma4.{key}": value for key, value in keys.items()},
        tensors={f"blk.{every - 1}.attn_v.weight": None} if values else {},
    )
    config, _ = read_keys(file)
    full = dataclasses.replace(config.full_attention, rotary_pairs=64)  # which a tensor says
    assert dataclasses.replace(config, full_attention=full) == find_model(name)
    parameters = input_parameters(config) if config.layer_inputs else []
    for n in range(config.layers):
        joined = {f"blk.{n}.ffn_gate_up_exps.weight"}
        parameters += Gemma4Layer(config.at(n), n, ARCHITECTURES["gemma4"], joined).parameters()
    beside = 3 + 3 * config.shared_cache_layers  # embedding, last norm, divisors; unused tensors
    assert sum(len(each.sources) for each in parameters) + beside == tensors


def test_keys_and_values_that_a_layer_never_uses_are_left_out(tmp_path):
    file = write(tmp_path, "gemma4_shared")
    config = read_config(file)
    names = {path for path, _ in read_parameters(file, config)}
    for layer, like in ((3, 0), (4, 2)):
        for part in ("k", "v", "k_norm"):
            info = file.tensors[f"blk.{like}.attn_{part}.weight"]
            file.tensors[f"blk.{layer}.attn_{part}.weight"] = info
    assert read_config(file) == config
    assert {path for path, _ in read_parameters(file, config)} == names
    file.tensors["blk.3.attn_k.bias"] = file.tensors["blk.0.attn_norm.weight"]
    with pytest.raises(WeightsError, match=r"1 left over \('blk.3.attn_k.bias'\)"):
        read_config(file)


def test_what_a_file_leaves_out_is_as_in_all_released_models(tmp_path):
    file = write(tmp_path)
    assert read_config(file).logit_softcap == 15
    for key in ("final_logit_softcapping", "rope.freq_base_swa", "rope.dimension_count_swa"):
        del file.metadata[f"gemma4.{key}"]
    config = read_config(file)
    assert (config.logit_softcap, config.local_rotary_base) == (30, 10_000)
    file.metadata["gemma4.final_logit_softcapping"] = 0.0
    assert read_config(file).logit_softcap is None


def test_experts_may_have_gate_and_up_in_two_tensors(tmp_path):
    file = write(tmp_path, "gemma4_experts")
    config = read_config(file)
    for layer in range(config.layers):
        info = file.tensors.pop(f"blk.{layer}.ffn_gate_up_exps.weight")
        shape = (config.experts, config.d_ff, config.d_model)
        for part in ("gate", "up"):
            name = f"blk.{layer}.ffn_{part}_exps.weight"
            file.tensors[name] = dataclasses.replace(info, name=name, shape=shape)
    assert read_config(file) == config


def test_keys_are_values_in_all_layers_without_a_window_or_in_none(tmp_path):
    file = write(tmp_path)
    assert read_config(file).full_attention.keys_are_values
    file.tensors["blk.1.attn_v.weight"] = file.tensors["blk.1.attn_k.weight"]
    with pytest.raises(WeightsError, match=r"1 missing \(blk.2.attn_v.weight\)"):
        read_config(file)


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("gemma4", {"attention.sliding_window_pattern": np.array([False] * 3)}, "are needed"),
        ("gemma4", {"attention.sliding_window_pattern": np.array([True] * 3)}, "are needed"),
        ("gemma4", {"attention.sliding_window_pattern": None}, "sliding_window_pattern.*needed"),
        ("gemma4", {"attention.sliding_window": 0}, "sliding_window' of m.gguf is 0, where some"),
        ("gemma4", {"attention.head_count_kv": np.array([2, 1, 2])}, "layers of one kind differ"),
        ("gemma4", {"attention.head_count_kv": np.array([2, 1])}, "there are 3 layers"),
        ("gemma4", {"attention.head_count_kv": np.array([2, 1.5, 1])}, "head_count_kv' .* 1.5"),
        ("gemma4", {"feed_forward_length": None}, "'gemma4.feed_forward_length' .* is missing"),
        ("gemma4", {"attention.key_length_swa": None}, "key_length_swa' of m.gguf is missing"),
        ("gemma4", {"attention.value_length": 16}, "value_length' .* is 16, where the head size"),
        ("gemma4", {"rope.dimension_count": 8}, "dimension_count' .* is 8, where the head size"),
        ("gemma4", {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}, "of type linear"),
        ("gemma4_shared", {"attention.shared_kv_layers": 5}, "is 5, where there are 5 layers"),
        ("gemma4_shared", {"feed_forward_length": np.array([64, 64, 64, 64, 96])}, "kind differ"),
        ("gemma4_shared", {"embedding_length_per_layer_input": 0}, "left over .*inp_gate"),
    ],
)
def test_what_a_file_says_and_is_not_read_is_refused_by_name(case, changes, message, tmp_path):
    file = write(tmp_path, case)
    for key, value in changes.items():
        file.metadata[f"gemma4.{key}"] = value
        if value is None:
            del file.metadata[f"gemma4.{key}"]
    with pytest.raises(WeightsError, match=message):
        read_config(file)


def test_pairs_that_turn_more_slowly_are_refused_by_name(tmp_path):
    file, read = write(tmp_path), GGUFFile.read
    assert read_config(file).full_attention.rotary_pairs == 4
    for divisors in ([1] * 15 + [2], [2] * 16, [1e30] * 16, [1] * 4 + [1e30] * 11 + [1]):
        file.read = lambda _, stored=divisors: np.array(stored, np.float32)
        with pytest.raises(WeightsError, match=r"rope_freqs.weight of m.gguf is \["):
            read_config(file)
    file.read = lambda _: np.ones(16, np.float32)
    assert read_config(file).full_attention.rotary_pairs is None
    file.read = lambda name: read(file, name)
    del file.tensors["rope_freqs.weight"]
    with pytest.raises(WeightsError, match=r"1 missing \(rope_freqs.weight\)"):
        read_config(file)


@pytest.mark.parametrize(
    ("case", "paths"),
    [
        ("gemma4_experts", [("mlp", "gate_up"), ("shared", "down"), ("attention", "key_value")]),
        ("gemma4_shared", [("input", "gate"), ("attention", "query"), ("mlp", "down")]),
    ],
)
def test_matrices_in_eight_bits_stay_in_them(case, paths, tmp_path):
    file = write(tmp_path, case, "Q8_0")
    config, kind = read_config(file), QUANTIZATIONS["int8_grouped"]
    keep = {("layers", 1, *path): kind for path in paths}
    plain = dict(read_parameters(file, config))
    found = dict(read_parameters(file, config, keep))
    for path in keep:
        assert found[path].values.dtype == np.int8
        scales = np.repeat(found[path].scales, 32, axis=-1)
        np.testing.assert_array_equal(found[path].values * scales, plain[path])
