"""Experts beside shared ones in a GGUF file: keys of their sizes and router.

Source: `conversion/deepseek.py`, `conversion/glm.py`, and `build_moe_ffn` in `src/llama-graph.cpp`,
of https://github.com/ggml-org/llama.cpp.
"""

from collections.abc import Mapping
from typing import Any

from model.routing_rule import Routing
from model.weights.gguf_file import GGUFFile
from model.weights.gguf_keys import Keys

_SCORES = {1: "softmax", 2: "sigmoid"}
"""What makes a score of a router's product, by `expert_gating_func`."""


def shared_experts(
    keys: Keys, file: GGUFFile, common: Mapping[str, Any], gating: int
) -> dict[str, Any]:
    """Fields of a `ModelConfig` for experts beside shared ones (DeepSeek, GLM-4.5).

    Args:
      keys: the file's.
      file: its tensors tell whether routers have a bias for the choice.
      common: the fields that are known.
      gating: `expert_gating_func` where the file has none.

    Raises:
      WeightsError: sizes that are missing, or a router of another kind.
    """
    bias = any("exp_probs_b" in name for name in file.tensors)
    gating = keys.integer("expert_gating_func", gating)
    if gating not in _SCORES:
        keys.refuse("expert_gating_func", gating)
    width = keys.integer("expert_feed_forward_length")
    dense = min(keys.integer("leading_dense_block_count", 0), common["layers"])
    return {
        "experts": keys.integer("expert_count"),
        "experts_per_token": keys.integer("expert_used_count"),
        "renormalise_experts": keys.truth("expert_weights_norm", False),
        "routing": Routing(
            score=_SCORES[gating],
            bias=bias,
            groups=keys.integer("expert_group_count", 1),
            chosen_groups=keys.integer("expert_group_used_count", 1),
            group_scores=2 if bias else 1,
            scale=keys.number("expert_weights_scale", 1.0),
        ),
        "d_ff": width,
        "dense_layers": dense,
        "dense_d_ff": common["d_ff"] if dense else 0,
        "shared_d_ff": width * keys.integer("expert_shared_count", 0),
    }


def gated_shared_expert(keys: Keys) -> dict[str, Any]:
    """Fields of a `ModelConfig` for a shared expert that has a gate (Qwen3-Next, Qwen3.5).

    Args:
      keys: the file's.

    Raises:
      WeightsError: its width is missing.
    """
    return {"shared_d_ff": keys.integer("expert_shared_feed_forward_length"), "shared_gate": True}
