"""Shapes of Llama 4 Scout and Maverick, with their sources: the language models alone."""

from typing import Any

from model.config import ModelConfig
from model.published_shape import Published, shape
from model.rotary_scaling import scaling
from model.routing_rule import Routing

_LAYERS = 48
_CHUNK = 8192
_ROTATED = tuple(layer % 4 != 3 for layer in range(_LAYERS))
_SOURCE = (
    "Meta 2025, model card and config.json of Llama 4; parameters of the language model as "
    "llama.cpp counts them, without the vision tower"
)


def _llama4(name: str, experts: int, **more: Any) -> ModelConfig:
    """Three layers of four rotate and see their chunk; the fourth sees all, by longer queries."""
    return shape(
        name,
        _LAYERS,
        5120,
        40,
        8,
        8192,
        vocabulary=202_048,
        rotary_base=500_000.0,
        rotary_layers=_ROTATED,
        windows=tuple(_CHUNK if rotated else None for rotated in _ROTATED),
        chunked=True,
        query_growth=(_CHUNK, 0.1),
        experts=experts,
        experts_per_token=1,
        renormalise_experts=False,
        routing=Routing(score="sigmoid", of_inputs=True),
        shared_d_ff=8192,
        **more,
    )


def _scout() -> ModelConfig:
    parameters = {
        "rope_type": "llama3",
        "factor": 16.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
    }
    longest = 10_485_760
    return _llama4(
        "llama4-scout",
        16,
        max_context=longest,
        rotary_factors=scaling(parameters, 500_000.0, 128, longest).factors,
        unit_queries_keys=True,
    )


def _maverick() -> ModelConfig:
    """Every other layer has experts, and those between have one MLP twice as wide."""
    return _llama4(
        "llama4-maverick",
        128,
        max_context=1_048_576,
        expert_layers=tuple(layer % 2 == 1 for layer in range(_LAYERS)),
        dense_d_ff=16_384,
    )


LLAMA4 = (
    Published(_scout(), 107_770_000_000, 10_000_000, _SOURCE),
    Published(_maverick(), 400_710_000_000, 10_000_000, _SOURCE),
)
