"""`config.json` of families with routed experts: fields that are absent, null or odd; tensors."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from model.config_checks import ConfigError
from model.weights import WeightsError
from model.weights.huggingface import HuggingFaceFolder
from model.weights.huggingface_config import read_config
from tests.family_cases import FOLDER


def values_of(case):
    return json.loads((FOLDER / case / "config.json").read_text())


def read(folder, values):
    (folder / "config.json").write_text(json.dumps(values))
    return read_config(folder)[0]


def test_groups_that_are_not_given_are_those_of_transformers(tmp_path):
    values = values_of("deepseek_v3") | {"n_routed_experts": 32}
    del values["n_group"], values["topk_group"]
    routing = read(tmp_path, values).routing
    assert (routing.groups, routing.chosen_groups) == (8, 4)


def test_null_shares_are_not_renormalised(tmp_path):
    values = values_of("deepseek_v3")
    assert not read(tmp_path, values | {"norm_topk_prob": None}).renormalise_experts
    del values["norm_topk_prob"]
    assert read(tmp_path, values).renormalise_experts


@pytest.mark.parametrize("case", ["deepseek_v2", "deepseek_v3"])
def test_a_model_without_dense_layers_has_their_width_all_the_same(tmp_path, case):
    config = read(tmp_path, values_of(case) | {"first_k_dense_replace": 0})
    assert (config.dense_layers, config.dense_d_ff) == (0, 0)


@pytest.mark.parametrize(
    ("case", "changed"),
    [
        ("deepseek_v3", {"topk_method": []}),
        ("deepseek_v2", {"topk_method": {}}),
        ("smollm3", {"no_rope_layers": [[1], 0, 1, 1]}),
    ],
)
def test_a_value_of_another_kind_is_refused_by_name(tmp_path, case, changed):
    with pytest.raises(WeightsError, match=next(iter(changed))) as caught:
        read(tmp_path, values_of(case) | changed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("case", "changed", "words"),
    [
        ("llama4_maverick", {"moe_layers": "all"}, "moe_layers.*list of layers"),
        ("llama4_maverick", {"moe_layers": None, "interleave_moe_layer_step": 0}, "interleave"),
        ("llama4_maverick", {"attention_chunk_size": 0}, "attention_chunk_size.*positive"),
        ("llama4_maverick", {"layer_types": ["sliding_attention"] * 4}, "layer_types.*chunked"),
        ("llama4_maverick", {"attn_temperature_tuning": "on"}, "attn_temperature_tuning"),
        ("llama4_scout", {"text_config": None}, "text_config"),
        ("llama4_scout", {"text_config": {"model_type": "llama"}}, "model_type.*llama4_text"),
        ("llama4_scout", {"tie_word_embeddings": True}, "tie_word_embeddings.*text_config says"),
        ("llama4_scout", {"audio_config": {"layers": 2}}, "audio_config"),
    ],
)
def test_what_llama4_does_not_have_is_refused_by_name(tmp_path, case, changed, words):
    with pytest.raises(WeightsError, match=words):
        read(tmp_path, values_of(case) | changed)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("changed", [{"factor": 0}, {"rope_theta": 0}, {"rope_theta": 10**400}])
def test_rotary_fields_that_give_no_numbers_are_refused_in_one_line(tmp_path, changed):
    """NumPy says nothing beside it."""
    values = values_of("llama4_scout")
    values["text_config"]["rope_parameters"] |= changed
    with pytest.raises((WeightsError, ConfigError), match=r"rope|rotary_base"):
        read(tmp_path, values)


def test_a_list_of_layers_with_experts_counts_before_an_interval(tmp_path):
    changed = {"moe_layers": [0, 3], "interleave_moe_layer_step": 0}
    config = read(tmp_path, values_of("llama4_maverick") | changed)
    assert config.expert_layers == (True, False, False, True)


def test_dense_layers_count_as_layers_without_experts(tmp_path):
    """Many experts in one of few layers: there are fewer tensors than layers times experts."""
    first, last, layers, experts = "model.layers.0.", "model.layers.2.", 4, 64
    stored = load_file(FOLDER / "deepseek_v3" / "model.safetensors")
    found = {name: array for name, array in stored.items() if "layers." not in name}
    for name, array in stored.items():
        if name.startswith(first):
            for layer in range(layers - 1):
                found[name.replace(".0.", f".{layer}.", 1)] = array
        if name.startswith(last):
            name = name.replace(".2.", f".{layers - 1}.", 1)
            for expert in range(experts if ".experts.0." in name else 1):
                found[name.replace(".experts.0.", f".experts.{expert}.")] = array
            if ".gate." in name:
                found[name] = np.concatenate([array] * (experts // len(array)))
    save_file(found, tmp_path / "model.safetensors")
    assert len(found) < layers * experts
    values = {"num_hidden_layers": layers, "first_k_dense_replace": 3, "n_routed_experts": experts}
    (tmp_path / "config.json").write_text(json.dumps(values_of("deepseek_v3") | values))
    folder = HuggingFaceFolder(tmp_path)
    assert dict(folder.read_parameters(folder.config))


@pytest.mark.parametrize("whole", [True, False])
def test_a_layer_that_predicts_further_tokens_is_left_out(tmp_path, whole):
    """GLM-4.5's has tables of its own, whose names end as the model's do."""
    stored = load_file(FOLDER / "glm4_moe" / "model.safetensors")
    for name in ("eh_proj", "embed_tokens", "enorm", "shared_head.head")[0 if whole else 1 :]:
        stored[f"model.layers.3.{name}.weight"] = np.ones((4, 4), np.float32)
    save_file(stored, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(values_of("glm4_moe")))
    if whole:
        folder = HuggingFaceFolder(tmp_path)
        assert dict(folder.read_parameters(folder.config))
        return
    with pytest.raises(WeightsError, match=r"model\.layers\.3\..* no use for"):
        HuggingFaceFolder(tmp_path)


def test_llama4_may_have_experts_nowhere_and_no_chunks(tmp_path):
    values = values_of("llama4_maverick")
    config = read(tmp_path, values | {"moe_layers": []})
    assert (config.experts, config.d_ff) == (0, values["intermediate_size_mlp"])
    whole = read(tmp_path, values | {"attention_chunk_size": None, "layer_types": None})
    assert whole.windows is None and whole.rotary_layers == (True, True, True, False)
    assert read(tmp_path, values | {"attn_temperature_tuning": 0}).query_growth is None
