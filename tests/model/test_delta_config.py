"""What a `config.json` of Qwen3-Next or Qwen3.5 may say, and what is refused by name."""

import pytest

from model.weights import WeightsError
from tests.model.test_huggingface_config import read, values_of


@pytest.mark.parametrize(
    ("case", "changed", "words"),
    [
        ("qwen3_next", {"layer_types": ["sliding_attention"] * 3}, "layer_types.*linear_attention"),
        ("qwen3_next", {"linear_num_value_heads": 3}, "linear_num_value_heads.*multiple of 2"),
        ("qwen3_next", {"attention_bias": True}, "attention_bias"),
        ("qwen3_next", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("qwen3_next", {"layer_types": None, "full_attention_interval": 0}, "full_attention_int"),
        ("qwen3_5_moe", {"tie_word_embeddings": True}, "tie_word_embeddings.*text_config says"),
        ("qwen3_5_moe", {"text_config": 3}, "text_config.*give an object"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, case, changed, words):
    with pytest.raises(WeightsError, match=words) as caught:
        read(tmp_path, values_of(case) | changed)
    assert "\n" not in str(caught.value)


def test_layers_without_a_list_are_of_attention_at_each_interval(tmp_path):
    changed = {"layer_types": None, "full_attention_interval": 2, "num_hidden_layers": 5}
    config = read(tmp_path, values_of("qwen3_next") | changed)
    assert config.delta_layers == (True, False, True, False, True)


def test_a_text_model_is_read_alone_or_within_one_of_images(tmp_path):
    whole = values_of("qwen3_5_moe")
    assert read(tmp_path, whole["text_config"]) == read(tmp_path, whole)
