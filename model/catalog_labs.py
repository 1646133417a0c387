"""Published shapes of models by Ai2, Microsoft, IBM, Hugging Face, Z.ai and OpenAI."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from model.config import ModelConfig
from model.published_shape import Published, released, shape
from model.rotary_scaling import scaling
from model.routing_rule import Routing

_OLMO = {
    "norm_before": False,
    "norm_after": True,
    "query_key_norm": True,
    "norm_over_heads": True,
    "norm_epsilon": 1e-6,
    "rotary_base": 500_000.0,
}
_OLMO2 = _OLMO | {"vocabulary": 100_352, "max_context": 4096}
_PHI3 = {"vocabulary": 32_064, "max_context": 4096}
_GRANITE = {
    "vocabulary": 49_155,
    "max_context": 131_072,
    "embedding_scale": 12.0,
    "embedding_scale_exact": True,
    "residual_scale": 0.22,
    "tied_embedding": True,
}
_GLM4 = {
    "vocabulary": 151_552,
    "max_context": 32_768,
    "norm_after": True,
    "head_size": 128,
    "rotary_size": 64,
}


GPT_OSS_ROTARY: Mapping[str, object] = MappingProxyType(
    {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    }
)
"""Rotary scaling of gpt-oss, also of a `config.json` that says none."""


def _gpt_oss(name: str, layers: int, experts: int) -> ModelConfig:
    """Every other layer has a window; YaRN extends 4,096 trained positions to 131,072."""
    extended = scaling(GPT_OSS_ROTARY, 150_000.0, 64, 131_072)
    return shape(
        name,
        layers,
        2880,
        64,
        8,
        2880,
        head_size=64,
        vocabulary=201_088,
        max_context=131_072,
        rotary_base=150_000.0,
        rotary_factors=extended.factors,
        rotary_scale=extended.scale,
        activation="clipped_silu",
        attention_bias=True,
        output_bias=True,
        attention_sinks=True,
        windows=tuple(None if layer % 2 else 128 for layer in range(layers)),
        experts=experts,
        experts_per_token=4,
        expert_bias=True,
    )


def _glm45(
    name: str, layers: int, width: int, d_ff: int, experts: int, scale: float, **more: Any
) -> ModelConfig:
    """Experts and one shared beside them, as DeepSeek-V3's, after one or more dense layers."""
    return shape(
        name,
        layers,
        width,
        96,
        8,
        d_ff,
        head_size=128,
        rotary_size=64,
        rotary_base=1e6,
        vocabulary=151_552,
        max_context=131_072,
        attention_bias=True,
        experts=experts,
        experts_per_token=8,
        routing=Routing(score="sigmoid", bias=True, group_scores=2, scale=scale),
        shared_d_ff=d_ff,
        **more,
    )


def _without_prediction(config: ModelConfig, total: int) -> int:
    """The count of a released file less its layer that predicts a further token.

    A layer of experts, which reads two vectors joined, and has tables of its own.
    """
    c, table = config, config.vocabulary * config.d_model
    attention = 2 * c.d_model * (c.query_heads + c.kv_heads) * c.head_size
    experts = 3 * c.d_model * (c.experts * c.d_ff + c.shared_d_ff)
    return total - attention - experts - 2 * c.d_model**2 - 2 * table


def _olmo3(layers: int) -> dict[str, Any]:
    """Three layers of four have a window and plain positions; YaRN stretches the fourth."""
    parameters = {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "attention_factor": 1.2079441541679836,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    }
    stretched = scaling(parameters, 500_000.0, 128, 65_536)
    return _OLMO | {
        "vocabulary": 100_278,
        "max_context": 65_536,
        "rotary_factors": stretched.factors,
        "rotary_scale": stretched.scale,
        "local_rotary_base": 500_000.0,
        "windows": tuple(None if layer % 4 == 3 else 4096 for layer in range(layers)),
    }


def _phi4_mini() -> dict[str, Any]:
    """Three quarters of each head are rotated; sequences beyond 4,096 tokens have other factors."""
    # fmt: off
    long = [
        1, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817,
        2.187582649, 2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023,
        4.785517845, 5.351743533, 5.984965424, 6.693110555, 7.485043894, 8.370679318, 9.36110372,
        10.4687158, 11.70738129, 13.09260651, 14.64173252, 16.37415215, 18.31155283, 20.47818807,
        22.90118105, 25.61086418, 28.64115884, 32.03, 32.1, 32.13, 32.23, 32.6, 32.61, 32.64,
        32.66, 32.7, 32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77,
    ]
    # fmt: on
    parameters = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 48,
        "long_factor": long,
        "original_max_position_embeddings": 4096,
    }
    found = scaling(parameters, 10_000.0, 96, 131_072)
    return {
        "vocabulary": 200_064,
        "max_context": found.reach,
        "rotary_size": 96,
        "rotary_factors": found.factors,
        "long_rotary_factors": found.long_factors,
        "rotary_limit": found.limit,
        "rotary_scale": found.scale,
        "windows": (262_144,) * 32,
        "tied_embedding": True,
    }


_OLMO2_SOURCE = "OLMo Team 2024 (2 OLMo 2 furious)"
_OLMO3_SOURCE = "OLMo Team 2025 (Olmo 3)"
_PHI3_SOURCE = "Abdin et al. 2024 (Phi-3 technical report)"
_PHI4_SOURCE = "Abdin et al. 2024 (Phi-4 technical report)"
_PHI4_MINI_SOURCE = "Microsoft 2025 (Phi-4-mini technical report)"
_GRANITE_SOURCE = "Granite Team, IBM 2024 (Granite 3.0 language models) and model cards of 3.1"
_SMOLLM3_SOURCE = "Bakouch et al. 2025 (SmolLM3: smol, multilingual, long-context reasoner)"
_GPT_OSS_SOURCE = (
    "OpenAI 2025 (gpt-oss-120b and gpt-oss-20b model card), table 1; config.json of the released "
    "model"
)
_GLM45 = (
    # configuration; parameters of the released file
    (
        _glm45("glm4.5", 92, 5120, 1536, 160, 2.5, dense_layers=3, dense_d_ff=12_288,
               query_key_norm=True),
        358_340_000_000,
    ),
    (
        _glm45("glm4.5-air", 46, 4096, 1408, 128, 1.0, dense_layers=1, dense_d_ff=10_944),
        110_470_000_000,
    ),
)  # fmt: skip
"""GLM-4.6 and 4.7 have the shape of GLM-4.5, and go to 202,752 tokens."""
_GLM45_SOURCE = (
    "GLM-4.5 Team 2025 (GLM-4.5), table 1; parameters as llama.cpp counts the released files, "
    "without the layer that predicts further"
)
_GLM4_SOURCE = "GLM Team 2024 (ChatGLM) and model cards of GLM-4-0414"

# fmt: off
LABS = (
    # name, layers, d_model, query heads, KV heads, d_ff; parameters; source
    released(shape("olmo2-1b", 16, 2048, 16, 16, 8192, **_OLMO2), 1_484_916_736, _OLMO2_SOURCE),
    released(shape("olmo2-7b", 32, 4096, 32, 32, 11_008, **_OLMO2), 7_298_617_344, _OLMO2_SOURCE),
    released(shape("olmo2-13b", 40, 5120, 40, 40, 13_824, **_OLMO2),
             13_716_198_400, _OLMO2_SOURCE),
    released(shape("olmo2-32b", 64, 5120, 40, 8, 27_648, **_OLMO2),
             32_234_279_936, _OLMO2_SOURCE),
    released(shape("olmo3-7b", 32, 4096, 32, 32, 11_008, **_olmo3(32)),
             7_298_011_136, _OLMO3_SOURCE),
    released(shape("olmo3-32b", 64, 5120, 40, 8, 27_648, **_olmo3(64)),
             32_233_522_176, _OLMO3_SOURCE),
    released(shape("phi3-mini", 32, 3072, 32, 32, 8192, windows=(2047,) * 32, **_PHI3),
             3_821_079_552, _PHI3_SOURCE),
    released(shape("phi3-medium", 40, 5120, 40, 10, 17_920, windows=(2047,) * 40, **_PHI3),
             13_960_238_080, _PHI3_SOURCE),
    released(shape("phi4", 40, 5120, 40, 10, 17_920, vocabulary=100_352, max_context=16_384,
                   rotary_base=250_000.0),
             14_659_507_200, _PHI4_SOURCE),
    released(shape("phi4-mini", 32, 3072, 24, 8, 8192, **_phi4_mini()),
             3_836_021_760, _PHI4_MINI_SOURCE),
    released(shape("granite3.1-2b", 40, 2048, 32, 8, 8192, attention_scale=1 / 64,
                   logit_scale=1 / 8, rotary_base=5e6, **_GRANITE),
             2_533_531_648, _GRANITE_SOURCE),
    released(shape("granite3.1-8b", 40, 4096, 32, 8, 12_800, attention_scale=1 / 128,
                   logit_scale=1 / 16, rotary_base=1e7, **_GRANITE),
             8_170_848_256, _GRANITE_SOURCE),
    released(shape("smollm3-3b", 36, 2048, 16, 4, 11_008, vocabulary=128_256, max_context=65_536,
                   rotary_base=5e6, norm_epsilon=1e-6, tied_embedding=True,
                   rotary_layers=tuple(layer % 4 != 3 for layer in range(36))),
             3_075_098_624, _SMOLLM3_SOURCE),
    released(shape("glm4-9b", 40, 4096, 32, 2, 13_696, attention_bias=True, **_GLM4),
             9_400_279_040, _GLM4_SOURCE),
    released(shape("glm4-32b", 61, 6144, 48, 2, 23_040, **_GLM4), 32_566_081_536, _GLM4_SOURCE),
    *(Published(config, _without_prediction(config, total), 10_000_000, _GLM45_SOURCE)
      for config, total in _GLM45),
    Published(_gpt_oss("gpt-oss-20b", 24, 32), 20_910_000_000, 10_000_000, _GPT_OSS_SOURCE),
    Published(_gpt_oss("gpt-oss-120b", 36, 128), 116_830_000_000, 10_000_000, _GPT_OSS_SOURCE),
)
# fmt: on
