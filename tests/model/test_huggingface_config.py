"""`config.json` of every family: what is refused, and that nothing is passed over in silence."""

import dataclasses
import json
import os
import random
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from model.catalog import find_model
from model.config_checks import ConfigError
from model.rotary_scaling import scaling
from model.weights import WeightsError
from model.weights.huggingface import HuggingFaceFolder
from model.weights.huggingface_config import read_config
from model.weights.huggingface_families import FAMILIES
from model.weights.text_part import PARTS
from tests.family_cases import CASES, FOLDER
from tests.published_configs import PUBLISHED
from tests.published_configs_delta import PUBLISHED_DELTA
from tests.published_configs_experts import PUBLISHED_EXPERTS
from tests.published_configs_gemma4 import PUBLISHED_GEMMA4
from tests.published_configs_labs import PUBLISHED_LABS

ALL = PUBLISHED | PUBLISHED_LABS | PUBLISHED_EXPERTS | PUBLISHED_DELTA | PUBLISHED_GEMMA4


def values_of(case):
    return json.loads((FOLDER / case / "config.json").read_text())


def read(folder, values):
    (folder / "config.json").write_text(json.dumps(values))
    return read_config(folder)[0]


def test_every_family_has_a_model_made_by_transformers():
    types = {values_of(case)["model_type"] for case in CASES}
    assert {PARTS[each].model_type if each in PARTS else each for each in types} == set(FAMILIES)
    assert types & set(PARTS) >= {"llama4", "qwen3_5_moe"}


@pytest.mark.parametrize(
    ("case", "changed", "words"),
    [
        ("llama2", {"model_type": "falcon"}, "model_type.*falcon.*llama"),
        ("llama2", {"hidden_act": "relu2"}, "hidden_act.*relu2.*silu"),
        ("mistral", {"attention_bias": True}, "attention_bias.*True"),
        ("qwen2", {"mlp_bias": True}, "mlp_bias"),
        (
            "llama2",
            {"quantization_config": {"bits": 4}},
            "quantization_config.*; weights quantized",
        ),
        ("llama2", {"quantization_config": {"quant_method": "awq"}}, "quantized by 'awq' are not"),
        (
            "llama2",
            {"quantization": {"group_size": 64}},
            "quantized are not read; give them in BF16",
        ),
        ("llama2", {"alibi": True}, "alibi"),
        ("deepseek_v3", {"moe_layer_freq": 2}, "moe_layer_freq"),
        ("deepseek_v3", {"topk_method": "greedy"}, "topk_method.*supported is noaux_tc"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func.*noaux_tc has sigmoid"),
        ("deepseek_v3", {"num_key_value_heads": 2}, "num_key_value_heads.*has 4"),
        ("deepseek_v3", {"rope_interleave": False}, "rope_interleave"),
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("deepseek_v2", {"n_group": 3}, "routing of .* groups is 3"),
        ("llama2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama2", {"num_hidden_layers": "2"}, "num_hidden_layers.*integer"),
        ("llama2", {"num_hidden_layers": None}, "num_hidden_layers.*missing"),
        ("llama2", {"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
        ("llama3", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "low_freq"),
        ("llama_yarn", {"rope_parameters": {"rope_type": "yarn", "factor": 0.0}}, "yarn|rope"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("qwen3_moe", {"num_experts": 4}, "num_(local_)?experts"),
        ("qwen3_moe", {"shared_expert_intermediate_size": 64}, "shared_expert"),
        ("gemma3", {"layer_types": ["chunked_attention"] * 4}, "layer_types"),
        ("gemma3", {"layer_types": ["full_attention"] * 3}, "layer_types"),
        ("gemma3", {"use_bidirectional_attention": True}, "bidirectional"),
        ("gemma2", {"hidden_activation": "relu"}, "hidden_activation"),
        ("mistral", {"num_key_value_heads": 3}, "heads"),
        # Fields that other families would take, or that say two things.
        ("llama2", {"sliding_window": 8}, "sliding_window.*8; this may change"),
        ("llama2", {"layer_types": ["sliding_attention"] * 2}, "layer_types.*has no windows"),
        ("llama2", {"rope_local_base_freq": 5.0}, "rope_local_base_freq.*; this may change"),
        ("llama2", {"use_qk_norm": True}, "use_qk_norm.*; this may change"),
        ("llama3", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "says otherwise"),
        ("llama3", {"rope_theta": 1e4}, "rope_theta.*; rope_parameters says 500000"),
        ("gemma2", {"sliding_window_size": 9}, "sliding_window_size.*9; sliding_window says 8"),
        ("gemma3", {"layer_types": None, "sliding_window_pattern": 0}, "pattern.*0; give a pos"),
        # Sizes that others are computed from, and numbers that are none.
        ("llama_linear", {"head_dim": 2**40}, "head_dim.*1099511627776; give"),
        ("llama2", {"rope_parameters": {"rope_type": "linear", "factor": "8"}}, "is no number"),
        ("llama2", {"rope_parameters": {"rope_type": "dynamic", "factor": True}}, "is no number"),
        ("llama2", {"rope_parameters": {"rope_type": ["linear"], "factor": 2}}, "is not one of"),
        ("llama2", {"rope_parameters": {"rope_type": "linear"}}, "'factor' is missing"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, case, changed, words):
    with pytest.raises((WeightsError, ConfigError), match=words) as caught:
        read(tmp_path, values_of(case) | changed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"swiglu_limit": 6.0}, "swiglu_limit"),
        ({"swiglu_alpha": 1.5}, "swiglu_alpha"),
        ({"attention_bias": False}, "attention_bias"),
    ],
)
def test_another_gate_or_no_bias_of_gpt_oss_is_refused(tmp_path, changed, words):
    with pytest.raises(WeightsError, match=f"{words}.* may change the mathematics"):
        read(tmp_path, values_of("gpt_oss") | changed)


def test_a_gpt_oss_that_says_no_rotary_scaling_has_the_released_ones(tmp_path):
    values = PUBLISHED_EXPERTS["gpt-oss-20b"]
    silent = {name: value for name, value in values.items() if name != "rope_scaling"}
    assert read(tmp_path, silent) == read(tmp_path, values)


@pytest.mark.parametrize("case", CASES)
def test_an_unknown_field_is_refused_in_every_family(tmp_path, case):
    with pytest.raises(WeightsError, match=r"attention_twist.*may change the mathematics"):
        read(tmp_path, values_of(case) | {"attention_twist": 2})


def test_a_field_given_twice_is_refused(tmp_path):
    text = (FOLDER / "llama2" / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("{", '{"hidden_size": 64,', 1))
    with pytest.raises(WeightsError, match="twice"):
        read_config(tmp_path)


def test_older_spellings_of_rotary_fields_mean_the_same(tmp_path):
    new = values_of("llama3")
    rope = dict(new["rope_parameters"])
    old = {k: v for k, v in new.items() if k != "rope_parameters"}
    old |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    assert read(tmp_path, old) == read(tmp_path, new)
    rope["type"] = rope.pop("rope_type")
    assert read(tmp_path, old | {"rope_scaling": rope}) == read(tmp_path, new)


def test_layers_have_windows_as_each_family_says(tmp_path):
    gemma3 = values_of("gemma3") | {"num_hidden_layers": 12, "layer_types": None}
    gemma3.pop("_sliding_window_pattern", None)
    assert read(tmp_path, gemma3).windows == (8, 8, 8, 8, 8, None) * 2
    gemma2 = values_of("gemma2") | {"layer_types": None}
    assert read(tmp_path, gemma2).windows == (8, None, 8)
    assert read(tmp_path, values_of("mistral")).windows == (8, 8)
    qwen2 = values_of("qwen2") | {"layer_types": None, "sliding_window": 8}
    assert read(tmp_path, qwen2).windows is None
    qwen2 |= {"use_sliding_window": True, "max_window_layers": 1}
    assert read(tmp_path, qwen2).windows == (None, 8)
    mixture = values_of("qwen3_moe") | {"sliding_window": 8, "use_sliding_window": True}
    mixture |= {"layer_types": None, "max_window_layers": 28}
    assert read(tmp_path, mixture).windows == (8, 8)  # there max_window_layers has no say


@pytest.mark.parametrize("name", ALL)
def test_a_released_models_config_is_the_catalogues_shape(tmp_path, name):
    found = read(tmp_path, ALL[name])
    assert dataclasses.replace(found, name=name) == find_model(name)


def test_what_a_config_leaves_out_is_what_transformers_would_assume(tmp_path):
    def without(case, *names):
        left = {key: value for key, value in values_of(case).items() if key not in names}
        return read(tmp_path, left | {"max_position_embeddings": 8192})

    gemma2 = without(
        "gemma2", "attn_logit_softcapping", "final_logit_softcapping", "sliding_window"
    )
    assert (gemma2.attention_softcap, gemma2.logit_softcap) == (50.0, 30.0)
    assert set(gemma2.windows) == {4096, None}
    assert without("mistral", "sliding_window").windows == (4096, 4096)
    assert without("mixtral", "rms_norm_eps").norm_epsilon == 1e-5
    assert without("qwen3", "rms_norm_eps").norm_epsilon == 1e-6
    unset = values_of("gemma2") | {"attn_logit_softcapping": None}
    assert read(tmp_path, unset).attention_softcap is None


def test_the_long_gemma_3_stretches_the_layers_that_see_all(tmp_path):
    rotary = values_of("gemma3")["rope_parameters"]
    rotary["full_attention"] |= {"rope_type": "linear", "factor": 8.0}
    found = read(tmp_path, values_of("gemma3") | {"rope_parameters": rotary})
    assert found.rotary_factors == (8.0,) * 8 and found.local_rotary_base == 10_000.0


def test_a_pipe_in_place_of_a_config_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(WeightsError, match="no regular file"):
        read_config(tmp_path)


def test_tensors_of_several_dtypes_make_one_array_that_holds_them_all(tmp_path):
    """Queries in float16 beside values that only float32 holds."""
    shutil.copytree(FOLDER / "qwen3", tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    key, value = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "kv")
    tensors[key] = tensors[key].astype(np.float16)
    tensors[value] = tensors[value] * np.float32(1e6)
    save_file(tensors, tmp_path / "model.safetensors")
    folder = HuggingFaceFolder(tmp_path)
    parameters = dict(folder.read_parameters(folder.config))
    joined = next(a for p, a in parameters.items() if {key, value} <= {q.name for q in a.pieces})
    found = joined[tuple(slice(None) for _ in joined.shape)]
    assert np.abs(found).max() == np.abs(tensors[value]).max()


def test_no_damaged_config_crashes(tmp_path):
    """Fields changed at random are refused, or read as a configuration that says so."""
    draw = random.Random(0)
    replacements = [None, -1, 0, 3, 2**70, 1e999, "x", [], {}, [1], True, False, 0.5, ["x"] * 2]
    refused = 0
    for _ in range(300):
        case = draw.choice(CASES)
        values = values_of(case)
        name = draw.choice(sorted(values))
        values[name] = draw.choice(replacements)
        try:
            config = read(tmp_path, values)
        except (WeightsError, ConfigError) as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert dataclasses.is_dataclass(config)
    assert refused > 100


def test_tensors_that_the_configuration_does_not_expect_are_refused(tmp_path):
    shutil.copytree(FOLDER / "qwen3", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    good = load_file(file)
    norm = "model.layers.0.self_attn.q_norm.weight"
    wrong = {
        "missing": {k: v for k, v in good.items() if k != norm},
        "no use": good | {"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)},
        "has shape": good | {norm: np.zeros(8, np.float32)},
        "quantized": good | {norm: np.zeros(16, np.int8)},
    }
    for words, tensors in wrong.items():
        save_file(tensors, file)
        with pytest.raises(WeightsError, match=words):
            HuggingFaceFolder(tmp_path)


@pytest.fixture
def saved_as(tmp_path):
    """Makes a folder of a family whose tensors have other names."""

    def save(case, rename):
        folder = tmp_path / case
        shutil.copytree(FOLDER / case, folder)
        for path in folder.glob("*.safetensors*"):
            path.unlink()
        tensors = {}
        for path in (FOLDER / case).glob("*.safetensors"):
            tensors |= load_file(path)
        save_file({rename(name): a for name, a in tensors.items()}, folder / "model.safetensors")
        return folder

    return save


@pytest.mark.parametrize(
    ("case", "before", "after"),
    [
        ("qwen2", "model.", ""),  # the base model alone; the unembedding is the embedding
        ("qwen3", "", "_orig_mod."),
        ("llama2", "", "language_model."),
        ("llama3", "model.", "model.language_model."),
    ],
)
def test_weights_of_the_base_model_or_of_one_around_it_are_read(saved_as, case, before, after):
    def rename(name):
        return after + name.removeprefix(before) if name.startswith(before) else name

    found, plain = HuggingFaceFolder(saved_as(case, rename)), HuggingFaceFolder(FOLDER / case)
    theirs = dict(plain.read_parameters(plain.config))
    for path, array in found.read_parameters(found.config):
        whole = tuple(slice(None) for _ in array.shape)
        np.testing.assert_array_equal(array[whole], theirs[path][whole])


def test_weights_under_names_of_their_own_are_told_by_one_of_them(saved_as):
    names = {"model.norm.weight": "model.last.weight"}
    with pytest.raises(WeightsError, match=r"norm.weight is missing, where model.last.weight is"):
        HuggingFaceFolder(saved_as("qwen2", lambda name: names.get(name, name)))
    folder = saved_as("llama2", lambda name: name.replace("lm_head.weight", "rotary_emb.inv_freq"))
    with pytest.raises(WeightsError, match=r"lm_head.weight is missing, as where the base model"):
        HuggingFaceFolder(folder)


@pytest.mark.parametrize(
    ("kind", "file", "message"),
    [
        ("g_idx", "quantize_config.json", r"q_proj.g_idx is quantized by GPTQ \(quantize_config"),
        ("qweight", "quant_config.json", r"quantized by AWQ \(quant_config.json\); .* GGUF file"),
        ("qweight", "other.json", "quantized by GPTQ or AWQ; .* BF16, F16 or F32"),
        ("weight.absmax", "other.json", "quantized by bitsandbytes"),
        ("weight_packed", "other.json", "quantized by compressed-tensors"),
    ],
)
def test_quantized_weights_are_named_for_what_they_are(saved_as, kind, file, message):
    """Though config.json does not say so, and tensors are missing because of it."""
    folder = saved_as("llama2", lambda name: name.replace("q_proj.weight", f"q_proj.{kind}"))
    (folder / file).write_text("{}")
    with pytest.raises(WeightsError, match=message):
        HuggingFaceFolder(folder)


def test_a_number_of_layers_that_no_file_could_hold_is_refused_at_once(tmp_path):
    shutil.copytree(FOLDER / "llama3", tmp_path, dirs_exist_ok=True)
    read(tmp_path, values_of("llama3") | {"num_hidden_layers": 100_000})
    with pytest.raises(WeightsError, match="layers but there are"):
        HuggingFaceFolder(tmp_path)


def test_a_tied_model_may_store_its_unembedding_only_when_it_is_the_embedding(tmp_path):
    shutil.copytree(FOLDER / "qwen2", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, file)
    assert HuggingFaceFolder(tmp_path).config.tied_embedding
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, file)
    with pytest.raises(WeightsError, match="tie"):
        HuggingFaceFolder(tmp_path)


def test_llama3_keeps_short_waves_and_stretches_long_ones_by_the_factor():
    given = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    factors = np.array(scaling(given, 500_000.0, 128, 131_072).factors)
    waves = 2 * np.pi * 500_000.0 ** (np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(factors[waves < 8192 / 4], 1)
    np.testing.assert_allclose(factors[waves > 8192], 8)
    assert (np.diff(factors) >= 0).all()


def test_yarn_scales_cosines_by_the_published_logarithm():
    """YaRN, equation 22: 0.1 ln(s) + 1."""
    given = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    assert scaling(given, 1e4, 128, 16384).scale == pytest.approx(0.1 * np.log(4) + 1)


@pytest.mark.parametrize(
    ("given", "length"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, 96),
        ({"rope_type": "yarn", "factor": 4.0}, 384),
        ({"rope_type": "linear", "factor": 4.0}, 96),  # either length may be stated
        ({"rope_type": "dynamic", "factor": 4.0}, 96),
    ],
)
def test_yarn_reaches_as_far_as_it_stretches(tmp_path, given, length):
    values = values_of("llama_yarn") | {"rope_parameters": given, "max_position_embeddings": 96}
    config = read(tmp_path, values)
    assert config.max_context == length
    if given["rope_type"] == "dynamic":  # further, the frequencies would be others
        with pytest.raises(ConfigError, match=r"max_context of .* is 97, .*; use at most 96"):
            dataclasses.replace(config, max_context=97)


def test_a_window_counts_where_sequences_may_be_longer(tmp_path):
    config = read(tmp_path, values_of("mistral") | {"max_position_embeddings": 8})
    assert config.window(0) is None
    assert dataclasses.replace(config, max_context=16).window(0) == 8


def test_a_model_of_a_hubs_cache_has_the_name_that_it_has_there(tmp_path):
    snapshot = tmp_path / "models--acme--tiny-llama" / "snapshots" / "7b719225"
    snapshot.mkdir(parents=True)
    values = values_of("llama2")
    assert read(snapshot, values).name == "acme/tiny-llama"
    (tmp_path / "mine").symlink_to(snapshot)
    assert read(tmp_path / "mine", values).name == "mine"
    assert read(snapshot.parent, values).name == "snapshots"


def test_a_rotary_field_that_nothing_uses_is_refused():
    with pytest.raises(ValueError, match="extra"):
        scaling({"rope_type": "linear", "factor": 2.0, "extra": 1}, 1e4, 64, 128)
