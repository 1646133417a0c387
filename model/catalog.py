"""Published model shapes by name, each with its source and published parameter count."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from model.config import ConfigError, ModelConfig


@dataclasses.dataclass(frozen=True)
class Published:
    """A catalogue entry.

    Attributes:
      config: the shape.
      parameters: the published count; None for a shape of our own.
      digit: what the published count is rounded to: 1 where it is exact.
      source: where shape and count were published.
    """

    config: ModelConfig
    parameters: int | None
    digit: int
    source: str


def _llama(name: str, layers: int, width: int, heads: int, kv_heads: int, d_ff: int, **more):
    return ModelConfig(
        name=name,
        layers=layers,
        d_model=width,
        query_heads=heads,
        kv_heads=kv_heads,
        head_size=width // heads,
        d_ff=d_ff,
        **more,
    )


def _palm(name: str, layers: int, width: int, heads: int) -> ModelConfig:
    return ModelConfig(
        name=name,
        layers=layers,
        d_model=width,
        query_heads=heads,
        kv_heads=1,
        head_size=256,
        d_ff=4 * width,
        vocabulary=256_000,
        max_context=2048,
        norm="layer",
        parallel_block=True,
        tied_embedding=True,
    )


_LLAMA2 = {"vocabulary": 32_000, "max_context": 4096}
_LLAMA3 = {"vocabulary": 128_256, "max_context": 8192, "rotary_base": 500_000.0}
_LLAMA2_SOURCE = "Touvron et al. 2023 (Llama 2), config.json and weights of the released model"
_LLAMA3_SOURCE = "Llama Team 2024 (Llama 3), config.json and weights of the released model"
_PALM_SOURCE = "Chowdhery et al. 2022 (PaLM), table 1"

_ENTRIES = (
    Published(
        _llama("llama2-7b", 32, 4096, 32, 32, 11_008, **_LLAMA2), 6_738_415_616, 1, _LLAMA2_SOURCE
    ),
    Published(
        _llama("llama2-13b", 40, 5120, 40, 40, 13_824, **_LLAMA2),
        13_015_864_320,
        1,
        _LLAMA2_SOURCE,
    ),
    Published(
        _llama("llama2-70b", 80, 8192, 64, 8, 28_672, **_LLAMA2), 68_976_648_192, 1, _LLAMA2_SOURCE
    ),
    Published(
        _llama("llama3-8b", 32, 4096, 32, 8, 14_336, **_LLAMA3), 8_030_261_248, 1, _LLAMA3_SOURCE
    ),
    Published(
        _llama("llama3-70b", 80, 8192, 64, 8, 28_672, **_LLAMA3), 70_553_706_496, 1, _LLAMA3_SOURCE
    ),
    Published(
        _llama("llama3-405b", 126, 16_384, 128, 8, 53_248, **_LLAMA3),
        405_853_388_800,
        1,
        _LLAMA3_SOURCE + "; released as 3.1, whose stretched positions are left out here",
    ),
    Published(
        _llama(
            "smollm2-135m",
            30,
            576,
            9,
            3,
            1536,
            vocabulary=49_152,
            max_context=8192,
            rotary_base=100_000.0,
            tied_embedding=True,
        ),
        134_515_008,
        1,
        "Ben Allal et al. 2025 (SmolLM2), config.json and weights of SmolLM2-135M-Instruct",
    ),
    Published(_palm("palm-8b", 32, 4096, 16), 8_630_000_000, 10_000_000, _PALM_SOURCE),
    Published(_palm("palm-62b", 64, 8192, 32), 62_500_000_000, 10_000_000, _PALM_SOURCE),
    Published(_palm("palm-540b", 118, 18_432, 48), 540_350_000_000, 10_000_000, _PALM_SOURCE),
    Published(
        _llama("tiny", 2, 64, 4, 2, 128, vocabulary=256, max_context=512, tied_embedding=True),
        None,
        1,
        "this project: small enough for every test",
    ),
)

CATALOG: Mapping[str, Published] = MappingProxyType(
    {entry.config.name: entry for entry in _ENTRIES}
)


def find_model(name: str) -> ModelConfig:
    """The catalogue's shape of this name.

    Raises:
      ConfigError: there is none.
    """
    if name not in CATALOG:
        raise ConfigError(f"model is {name!r}; give a GGUF file or one of {', '.join(CATALOG)}")
    return CATALOG[name].config
