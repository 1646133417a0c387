"""Published model shapes by name, each with its source and published parameter count."""

import math
from collections.abc import Mapping
from types import MappingProxyType

from model.catalog_deepseek import DEEPSEEK
from model.catalog_delta import DELTA
from model.catalog_gemma4 import GEMMA4
from model.catalog_labs import LABS
from model.catalog_llama4 import LLAMA4
from model.config import ModelConfig
from model.config_checks import ConfigError
from model.published_shape import Published, released
from model.published_shape import shape as _config
from model.rotary_scaling import scaling


def _palm(
    name: str, layers: int, width: int, heads: int, kv_heads: int = 1, head_size: int = 256
) -> ModelConfig:
    return _config(
        name,
        layers,
        width,
        heads,
        kv_heads,
        4 * width,
        head_size=head_size,
        vocabulary=256_000,
        max_context=2048,
        norm="layer",
        parallel_block=True,
        tied_embedding=True,
    )


def _llama3_factors(factor: float, head_size: int) -> tuple[float, ...]:
    """Divisors of rotary frequencies with which Llama 3.1 extends its 8,192 trained positions."""
    parameters = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return scaling(parameters, 500_000.0, head_size, 131_072).factors


def _llama31(factor: float, head_size: int = 128) -> dict:
    factors = _llama3_factors(factor, head_size)
    return _LLAMA3 | {"max_context": 131_072, "rotary_factors": factors}


def _gemma(name: str, layers: int, width: int, heads: int, kv_heads: int, d_ff: int, **more):
    more.setdefault("head_size", 256)
    scale = more.pop("attention_scale", None) or more["head_size"] ** -0.5
    return _config(
        name,
        layers,
        width,
        heads,
        kv_heads,
        d_ff,
        attention_scale=scale,
        embedding_scale=math.sqrt(width),
        norm_epsilon=1e-6,
        activation="gelu_tanh",
        norm_after=True,
        tied_embedding=True,
        **more,
    )


def _gemma2(name: str, layers: int, *sizes: int, **more):
    windows = tuple(4096 if layer % 2 == 0 else None for layer in range(layers))
    return _gemma(
        name,
        layers,
        *sizes,
        windows=windows,
        vocabulary=256_000,
        max_context=8192,
        attention_softcap=50.0,
        logit_softcap=30.0,
        **more,
    )


def _gemma3(name: str, layers: int, *sizes: int, long: bool = True, **more):
    """Every sixth layer sees all tokens; long models divide its rotary frequencies by eight."""
    head_size = more.get("head_size", 256)
    window = 1024 if long else 512
    return _gemma(
        name,
        layers,
        *sizes,
        windows=tuple(None if layer % 6 == 5 else window for layer in range(layers)),
        vocabulary=262_208 if long else 262_144,
        max_context=131_072 if long else 32_768,
        rotary_base=1e6,
        local_rotary_base=10_000.0,
        rotary_factors=(8.0,) * (head_size // 2) if long else None,
        query_key_norm=True,
        **more,
    )


_LLAMA2 = {"vocabulary": 32_000, "max_context": 4096}
_LLAMA3 = {"vocabulary": 128_256, "max_context": 8192, "rotary_base": 500_000.0}
_MISTRAL = {"vocabulary": 32_000, "max_context": 32_768}
_MIXTRAL = {"vocabulary": 32_000, "rotary_base": 1e6, "experts": 8, "experts_per_token": 2}
_QWEN = {"vocabulary": 151_936, "max_context": 32_768, "rotary_base": 1e6, "norm_epsilon": 1e-6}
_QWEN2 = _QWEN | {"attention_bias": True}
_QWEN2_LARGE = _QWEN2 | {"vocabulary": 152_064}
_QWEN3 = _QWEN | {"max_context": 40_960, "head_size": 128, "query_key_norm": True}
_QWEN3_MOE = _QWEN3 | {"experts": 128, "experts_per_token": 8}
_TIED = {"tied_embedding": True}

# Sources of the shapes, in addition to config.json and the weights of each released model.
_LLAMA2_SOURCE = "Touvron et al. 2023 (Llama 2)"
_LLAMA3_SOURCE = "Llama Team 2024 (The Llama 3 herd of models)"
_LLAMA32_SOURCE = "Meta, Llama 3.2 and 3.3 model cards (2024)"
_MISTRAL_SOURCE = "Jiang et al. 2023 (Mistral 7B)"
_MIXTRAL_SOURCE = "Jiang et al. 2024 (Mixtral of experts)"
_QWEN2_SOURCE = "Yang et al. 2024 (Qwen2 and Qwen2.5 technical reports)"
_QWEN3_SOURCE = "Yang et al. 2025 (Qwen3 technical report)"
_GEMMA2_SOURCE = "Gemma Team 2024 (Gemma 2)"
_GEMMA3_SOURCE = "Gemma Team 2025 (Gemma 3); the language model alone, without the vision tower"
_SMOLLM2_SOURCE = "Ben Allal et al. 2025 (SmolLM2)"
_PALM_SOURCE = "Chowdhery et al. 2022 (PaLM), table 1"
_ESTI_SOURCE = (
    "Pope et al. 2022, section 4: PaLM 540B with 64 heads, of 128 where each has its own KV"
)

# fmt: off
_EXACT = (
    # name, layers, d_model, query heads, KV heads, d_ff; parameters; source
    (_config("llama2-7b", 32, 4096, 32, 32, 11_008, **_LLAMA2), 6_738_415_616, _LLAMA2_SOURCE),
    (_config("llama2-13b", 40, 5120, 40, 40, 13_824, **_LLAMA2), 13_015_864_320, _LLAMA2_SOURCE),
    (_config("llama2-70b", 80, 8192, 64, 8, 28_672, **_LLAMA2), 68_976_648_192, _LLAMA2_SOURCE),
    (_config("llama3-8b", 32, 4096, 32, 8, 14_336, **_LLAMA3), 8_030_261_248, _LLAMA3_SOURCE),
    (_config("llama3-70b", 80, 8192, 64, 8, 28_672, **_LLAMA3), 70_553_706_496, _LLAMA3_SOURCE),
    # This size was only released as 3.1.
    (_config("llama3-405b", 126, 16_384, 128, 8, 53_248, **_llama31(8)),
     405_853_388_800, _LLAMA3_SOURCE),
    (_config("llama3.1-8b", 32, 4096, 32, 8, 14_336, **_llama31(8)),
     8_030_261_248, _LLAMA3_SOURCE),
    (_config("llama3.1-70b", 80, 8192, 64, 8, 28_672, **_llama31(8)),
     70_553_706_496, _LLAMA3_SOURCE),
    (_config("llama3.2-1b", 16, 2048, 32, 8, 8192, **_llama31(32, 64), **_TIED),
     1_235_814_400, _LLAMA32_SOURCE),
    (_config("llama3.2-3b", 28, 3072, 24, 8, 8192, **_llama31(32), **_TIED),
     3_212_749_824, _LLAMA32_SOURCE),
    (_config("llama3.3-70b", 80, 8192, 64, 8, 28_672, **_llama31(8)),
     70_553_706_496, _LLAMA32_SOURCE),
    (_config("smollm2-135m", 30, 576, 9, 3, 1536, vocabulary=49_152, max_context=8192,
             rotary_base=100_000.0, **_TIED),
     134_515_008, _SMOLLM2_SOURCE),
    (_config("mistral-7b", 32, 4096, 32, 8, 14_336, windows=(4096,) * 32, **_MISTRAL),
     7_241_732_096, _MISTRAL_SOURCE),
    (_config("mixtral-8x7b", 32, 4096, 32, 8, 14_336, max_context=32_768, **_MIXTRAL),
     46_702_792_704, _MIXTRAL_SOURCE),
    (_config("mixtral-8x22b", 56, 6144, 48, 8, 16_384, max_context=65_536, **_MIXTRAL),
     140_620_634_112, _MIXTRAL_SOURCE),
    (_config("qwen2-0.5b", 24, 896, 14, 2, 4864, **_QWEN2, **_TIED), 494_032_768, _QWEN2_SOURCE),
    (_config("qwen2-1.5b", 28, 1536, 12, 2, 8960, **_QWEN2, **_TIED),
     1_543_714_304, _QWEN2_SOURCE),
    (_config("qwen2-7b", 28, 3584, 28, 4, 18_944, **_QWEN2_LARGE), 7_615_616_512, _QWEN2_SOURCE),
    (_config("qwen2-72b", 80, 8192, 64, 8, 29_568, **_QWEN2_LARGE), 72_706_203_648, _QWEN2_SOURCE),
    (_config("qwen2.5-3b", 36, 2048, 16, 2, 11_008, **_QWEN2, **_TIED),
     3_085_938_688, _QWEN2_SOURCE),
    (_config("qwen2.5-14b", 48, 5120, 40, 8, 13_824, **_QWEN2_LARGE),
     14_770_033_664, _QWEN2_SOURCE),
    (_config("qwen2.5-32b", 64, 5120, 40, 8, 27_648, **_QWEN2_LARGE),
     32_763_876_352, _QWEN2_SOURCE),
    (_config("qwen3-0.6b", 28, 1024, 16, 8, 3072, **_QWEN3, **_TIED), 596_049_920, _QWEN3_SOURCE),
    (_config("qwen3-1.7b", 28, 2048, 16, 8, 6144, **_QWEN3, **_TIED),
     1_720_574_976, _QWEN3_SOURCE),
    (_config("qwen3-4b", 36, 2560, 32, 8, 9728, **_QWEN3, **_TIED), 4_022_468_096, _QWEN3_SOURCE),
    (_config("qwen3-8b", 36, 4096, 32, 8, 12_288, **_QWEN3), 8_190_735_360, _QWEN3_SOURCE),
    (_config("qwen3-14b", 40, 5120, 40, 8, 17_408, **_QWEN3), 14_768_307_200, _QWEN3_SOURCE),
    (_config("qwen3-32b", 64, 5120, 64, 8, 25_600, **_QWEN3), 32_762_123_264, _QWEN3_SOURCE),
    (_config("qwen3-30b-a3b", 48, 2048, 32, 4, 768, **_QWEN3_MOE),
     30_532_122_624, _QWEN3_SOURCE),
    (_config("qwen3-235b-a22b", 94, 4096, 64, 4, 1536, **_QWEN3_MOE),
     235_093_634_560, _QWEN3_SOURCE),
    (_gemma2("gemma2-2b", 26, 2304, 8, 4, 9216), 2_614_341_888, _GEMMA2_SOURCE),
    (_gemma2("gemma2-9b", 42, 3584, 16, 8, 14_336), 9_241_705_984, _GEMMA2_SOURCE),
    (_gemma2("gemma2-27b", 46, 4608, 32, 16, 36_864, head_size=128, attention_scale=144**-0.5),
     27_227_128_320, _GEMMA2_SOURCE),
    (_gemma3("gemma3-270m", 18, 640, 4, 1, 2048, long=False), 268_098_176, _GEMMA3_SOURCE),
    (_gemma3("gemma3-1b", 26, 1152, 4, 1, 6912, long=False), 999_885_952, _GEMMA3_SOURCE),
    (_gemma3("gemma3-4b", 34, 2560, 8, 4, 10_240), 3_880_263_168, _GEMMA3_SOURCE),
    (_gemma3("gemma3-12b", 48, 3840, 16, 8, 15_360), 11_766_034_176, _GEMMA3_SOURCE),
    (_gemma3("gemma3-27b", 62, 5376, 32, 16, 21_504, head_size=128, attention_scale=168**-0.5),
     27_009_346_304, _GEMMA3_SOURCE),
)
# fmt: on
_ENTRIES = (
    *(released(*entry) for entry in _EXACT),
    *GEMMA4,
    *LABS,
    *LLAMA4,
    *DELTA,
    *(
        Published(config, parameters, digit, f"{source}; config.json of the released model")
        for config, parameters, digit, source in DEEPSEEK
    ),
    Published(_palm("palm-8b", 32, 4096, 16), 8_630_000_000, 10_000_000, _PALM_SOURCE),
    Published(_palm("palm-62b", 64, 8192, 32), 62_500_000_000, 10_000_000, _PALM_SOURCE),
    Published(_palm("palm-540b", 118, 18_432, 48), 540_350_000_000, 10_000_000, _PALM_SOURCE),
    Published(_palm("palm-540b-padded", 118, 18_432, 64), None, 1, _ESTI_SOURCE),
    Published(_palm("palm-540b-multihead", 118, 18_432, 64, 64, 128), None, 1, _ESTI_SOURCE),
    Published(
        _config("tiny", 2, 64, 4, 2, 128, vocabulary=256, max_context=512, **_TIED),
        None,
        1,
        "this project: small enough for every test",
    ),
)

CATALOG: Mapping[str, Published] = MappingProxyType(
    {entry.config.name: entry for entry in _ENTRIES}
)


def find_model(name: str) -> ModelConfig:
    """The catalogue's configuration of this name.

    Raises:
      ConfigError: the catalogue has no such name.
    """
    if name not in CATALOG:
        raise ConfigError(
            f"model is {name!r}; give a GGUF file, a Hugging Face or Orbax folder, or one of "
            f"{', '.join(CATALOG)}"
        )
    return CATALOG[name].config
