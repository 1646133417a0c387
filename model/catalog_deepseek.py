"""Shapes of DeepSeek V2, V3 and R1, and Kimi K2, with their sources."""

from model.config import ModelConfig
from model.latent_sizes import LatentSizes
from model.rotary_scaling import scaling
from model.routing_rule import Routing

_LATENT = {"rank": 512, "rotary": 64, "content": 128, "value": 128}
_V2_SOURCE = "DeepSeek-AI 2024 (DeepSeek-V2), section 3.1 and appendix B"
_V3_SOURCE = "DeepSeek-AI 2024 (DeepSeek-V3), section 4.2; without the layer that predicts further"
_K2_SOURCE = "Kimi Team 2025 (Kimi K2), table 2, and the model card of Kimi-K2-Instruct: 1T"


def _yarn(factor: float, mscale: float, base: float, fast: float = 32.0) -> dict:
    """Rotary fields of a model that extends 4,096 trained positions; see `model.rotary_scaling`."""
    parameters = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": 4096,
        "beta_fast": fast,
        "beta_slow": 1.0,
        "mscale": mscale,
        "mscale_all_dim": mscale,
    }
    longest, head = int(4096 * factor), _LATENT["content"] + _LATENT["rotary"]
    found = scaling(parameters, base, _LATENT["rotary"], longest)
    return {
        "rotary_base": base,
        "rotary_factors": found.factors,
        "rotary_scale": found.scale,
        "attention_scale": found.scores * head**-0.5,
        "max_context": longest,
    }


def _config(name: str, *, query_rank: int | None = 1536, heads: int, **more) -> ModelConfig:
    latent = LatentSizes(**_LATENT, query_rank=query_rank)
    return ModelConfig(
        name=name,
        query_heads=heads,
        kv_heads=1,
        head_size=latent.content + latent.rotary,
        latent=latent,
        norm_epsilon=1e-6,
        **more,
    )


def _sigmoid(groups: int, chosen: int, scale: float) -> Routing:
    return Routing(
        score="sigmoid",
        bias=True,
        groups=groups,
        chosen_groups=chosen,
        group_scores=2,
        scale=scale,
    )


_V2 = {"vocabulary": 102_400, "dense_layers": 1, "renormalise_experts": False}
_V3 = {"vocabulary": 129_280, "d_model": 7168, "layers": 61, "d_ff": 2048, "dense_d_ff": 18_432}

DEEPSEEK = (
    # configuration; parameters, and the unit that they are rounded to; source
    (
        _config(
            "deepseek-v2-lite", layers=27, d_model=2048, heads=16, query_rank=None, d_ff=1408,
            dense_d_ff=10_944, shared_d_ff=2 * 1408, experts=64, experts_per_token=6,
            **_V2, **_yarn(40.0, 0.707, 10_000.0),
        ),
        15_706_484_224, 1, _V2_SOURCE,
    ),
    (
        _config(
            "deepseek-v2", layers=60, d_model=5120, heads=128, d_ff=1536, dense_d_ff=12_288,
            shared_d_ff=2 * 1536, experts=160, experts_per_token=6,
            routing=Routing(groups=8, chosen_groups=3, scale=16.0),
            **_V2, **_yarn(40.0, 0.707, 10_000.0),
        ),
        235_741_434_880, 1, _V2_SOURCE,
    ),
    (
        _config(
            "deepseek-v3", heads=128, shared_d_ff=2048, experts=256, experts_per_token=8,
            dense_layers=3, routing=_sigmoid(8, 4, 2.5), **_V3, **_yarn(40.0, 1.0, 10_000.0),
        ),
        671_026_419_200, 1, _V3_SOURCE,
    ),
    (
        _config(
            "kimi-k2", heads=64, shared_d_ff=2048, experts=384, experts_per_token=8,
            dense_layers=1, routing=_sigmoid(1, 1, 2.827),
            **_V3 | {"vocabulary": 163_840}, **_yarn(32.0, 1.0, 50_000.0, fast=1.0),
        ),
        1_000_000_000_000, 100_000_000_000, _K2_SOURCE,
    ),
)  # fmt: skip
"""DeepSeek-R1 has V3's shape."""
