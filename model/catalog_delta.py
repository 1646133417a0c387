"""Shapes of Qwen3-Next and Qwen3.5, whose layers are mostly gated delta layers, with sources."""

from typing import Any

from model.config import ModelConfig
from model.delta_sizes import DeltaSizes
from model.published_shape import Published, shape

_NEXT_SOURCE = "Qwen Team 2025, model card and config.json of Qwen3-Next-80B-A3B-Instruct"
_SMALL_SOURCE = "Qwen Team 2026, model cards and text_config of Qwen3.5-0.8B, 4B and 9B"
_27B_SOURCE = "Qwen Team 2026, model card and text_config of Qwen3.5-27B"
_35B_SOURCE = "Qwen Team 2026, model card and text_config of Qwen3.5-35B-A3B"
BILLION = 1_000_000_000


def _qwen(
    name: str, layers: int, *sizes: int, values_per_key: int, vocabulary: int, **more: Any
) -> ModelConfig:
    """Three layers of four are delta layers of 16 key heads; a quarter of each head is rotated."""
    return shape(
        name,
        layers,
        *sizes,
        vocabulary=vocabulary,
        head_size=256,
        rotary_size=64,
        rotary_base=1e7,
        max_context=262_144,
        norm_epsilon=1e-6,
        query_key_norm=True,
        output_gate=True,
        delta=DeltaSizes(key_heads=16, values_per_key=values_per_key, key_size=128, value_size=128),
        delta_layers=tuple(layer % 4 != 3 for layer in range(layers)),
        **more,
    )


def _experts(count: int, chosen: int) -> dict[str, Any]:
    return {
        "experts": count,
        "experts_per_token": chosen,
        "shared_d_ff": 512,
        "shared_gate": True,
    }


DELTA = (
    # name, layers, d_model, query heads, KV heads, d_ff; parameters without those of layers that
    # predict further tokens and of images, as cards round them
    Published(
        _qwen("qwen3-next-80b-a3b", 48, 2048, 16, 2, 512, values_per_key=2, vocabulary=151_936,
              **_experts(512, 10)),
        80 * BILLION, BILLION, _NEXT_SOURCE,
    ),
    Published(
        _qwen("qwen3.5-0.8b", 24, 1024, 8, 2, 3584, values_per_key=1, vocabulary=248_320,
              tied_embedding=True),
        BILLION * 8 // 10, BILLION // 10, _SMALL_SOURCE,
    ),
    Published(
        _qwen("qwen3.5-4b", 32, 2560, 16, 4, 9216, values_per_key=2, vocabulary=248_320,
              tied_embedding=True),
        4 * BILLION, BILLION, _SMALL_SOURCE,
    ),
    Published(
        _qwen("qwen3.5-9b", 32, 4096, 16, 4, 12_288, values_per_key=2, vocabulary=248_320),
        9 * BILLION, BILLION, _SMALL_SOURCE,
    ),
    Published(
        _qwen("qwen3.5-27b", 64, 5120, 24, 4, 17_408, values_per_key=3, vocabulary=248_320),
        27 * BILLION, BILLION, _27B_SOURCE,
    ),
    Published(
        _qwen("qwen3.5-35b-a3b", 40, 2048, 16, 2, 512, values_per_key=2, vocabulary=248_320,
              **_experts(256, 8)),
        35 * BILLION, BILLION, _35B_SOURCE,
    ),
)  # fmt: skip
