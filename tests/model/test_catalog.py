"""The catalogue: published shapes have their published parameter counts."""

import pytest

from model.catalog import CATALOG, find_model
from model.config_checks import ConfigError
from model.declarations import count, count_active, declarations
from model.dtypes import BFLOAT16
from model.transformer import Transformer

COUNTED = [name for name, entry in CATALOG.items() if entry.parameters]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if k % 2 else ()) for k, n in enumerate(COUNTED)],
)
def test_parameter_counts_equal_the_published_ones(name):
    entry = CATALOG[name]
    counted = count(Transformer(entry.config, BFLOAT16))
    assert abs(counted - entry.parameters) < entry.digit  # equal, where the count is exact


@pytest.mark.parametrize(
    ("name", "published", "digit"),
    [
        ("mixtral-8x7b", 12.9e9, 0.1e9),  # Jiang et al. 2024, abstract: 13B
        ("mixtral-8x22b", 39e9, 1e9),
        ("qwen3-30b-a3b", 3.3e9, 0.1e9),  # Yang et al. 2025, table 2
        ("qwen3-235b-a22b", 22e9, 1e9),
        ("gemma4-26b-a4b", 3.8e9, 0.1e9),  # its model card
        ("deepseek-v3", 37e9, 1e9),  # DeepSeek-AI 2024 (DeepSeek-V3), abstract
        ("llama4-scout", 17e9, 1e9),  # Meta 2025, model card of Llama 4
        ("llama4-maverick", 17e9, 1e9),
    ],
)
def test_a_token_meets_as_many_parameters_of_a_mixture_as_published(name, published, digit):
    active = count_active(Transformer(find_model(name), BFLOAT16))
    assert abs(active - published) < digit


def test_a_token_meets_as_many_parameters_of_gpt_oss_as_published():
    """The model card's count leaves out the embedding, table 1."""
    for name, published in (("gpt-oss-20b", 3.61e9), ("gpt-oss-120b", 5.13e9)):
        config = find_model(name)
        active = count_active(Transformer(config, BFLOAT16)) - config.vocabulary * config.d_model
        assert abs(active - published) < 0.01e9
    whole = count(Transformer(find_model("gpt-oss-120b"), BFLOAT16))
    assert whole == 116_829_156_672  # as the released arrays add up


def test_a_token_meets_as_many_parameters_of_glm45_as_published():
    """GLM-4.5 Team 2025, table 1, whose counts leave out embedding and unembedding."""
    for name, published in (("glm4.5", 32e9), ("glm4.5-air", 12e9)):
        config = find_model(name)
        tables = 2 * config.vocabulary * config.d_model
        assert abs(count_active(Transformer(config, BFLOAT16)) - tables - published) < 0.5e9


def test_gemma4_e2b_has_what_llama_cpp_counts_but_for_keys_that_are_never_used():
    """Its files keep keys and values of 20 layers that read others': llama-bench says 4.65B."""
    config = find_model("gemma4-e2b")
    unused = sum(
        2 * config.d_model * seen.kv_heads * seen.head_size
        for seen in map(config.at, range(15, 35))
    )
    assert abs(count(Transformer(config, BFLOAT16)) + unused - 4.65e9) < 0.01e9


def test_palm_is_multi_query_with_parallel_blocks():
    for name in ("palm-8b", "palm-62b", "palm-540b"):
        config = find_model(name)
        assert config.kv_heads == 1 and config.parallel_block and config.norm == "layer"
    paths = declarations(Transformer(find_model("palm-8b"), BFLOAT16))
    assert ("layers", 0, "mlp_norm", "scale") not in paths


def test_an_unknown_model_is_refused_with_the_names():
    with pytest.raises(ConfigError, match=r"model is 'nosuch'; .*smollm2-135m"):
        find_model("nosuch")
