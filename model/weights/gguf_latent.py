"""DeepSeek V2, V3 and R1, and Kimi K2 in a GGUF file: keys and tensors of `deepseek2`.

llama.cpp's converter leaves rotary pairs adjacent, and divides the matrix that takes latents to
keys and values in two, the keys' turned; older files have it whole. Source:
`conversion/deepseek.py` and `src/models/deepseek2.cpp` of https://github.com/ggml-org/llama.cpp.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from model.config import ModelConfig
from model.latent_sizes import LatentSizes
from model.routing_rule import Routing
from model.weights import WeightsError
from model.weights.chosen_rows import halves_of_pairs
from model.weights.gguf_file import GGUFFile
from model.weights.gguf_keys import Keys

_SCORES = {1: "softmax", 2: "sigmoid"}
"""What makes a score of a router's product, by `expert_gating_func`."""
_LITE = 27
"""Layers of DeepSeek-V2-Lite, the one model without groups of experts where no key says so."""


def latent_heads(keys: Keys, heads: int, d_model: int) -> dict[str, Any]:
    """Fields of a `ModelConfig` for latent attention.

    Args:
      keys: the file's.
      heads: `attention.head_count`.
      d_model: not asked for here.

    Raises:
      WeightsError: sizes that are missing, or contradict each other.
    """
    rank, rotary = keys.integer("attention.kv_lora_rank"), keys.integer("rope.dimension_count")
    if "attention.key_length_mla" in keys:
        keys.expect("attention.key_length", rank + rotary, "that of a cached latent")
        keys.expect("attention.value_length", rank, "that of a latent")
        keys.expect("attention.head_count_kv", 1, "that of latents")
        whole = keys.integer("attention.key_length_mla")
        value = keys.integer("attention.value_length_mla")
    else:  # older files
        whole, value = (keys.integer(f"attention.{name}_length") for name in ("key", "value"))
        kv_heads = keys.integer("attention.head_count_kv", heads)
        if kv_heads not in (1, heads):
            keys.refuse("attention.head_count_kv", kv_heads, f", where there are {heads} heads")
    query = keys.integer("attention.q_lora_rank", 0) or None
    sizes = LatentSizes(
        rank=rank, rotary=rotary, content=whole - rotary, value=value, query_rank=query
    )
    return {"kv_heads": 1, "head_size": whole, "latent": sizes}


def latent_experts(keys: Keys, file: GGUFFile, common: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `ModelConfig` for experts beside shared ones.

    Args:
      keys: the file's.
      file: its tensors tell whether routers have a bias for the choice.
      common: the fields that are known.

    Raises:
      WeightsError: a router of another kind, or one whose groups the file does not say.
    """
    layers, bias = common["layers"], any("exp_probs_b" in name for name in file.tensors)
    gating = keys.integer("expert_gating_func", 1)
    if gating not in _SCORES:
        keys.refuse("expert_gating_func", gating)
    if "expert_group_count" not in keys and layers != _LITE:
        raise WeightsError(
            f"metadata '{keys.architecture}.expert_group_count' of {file.path.name} is missing, as "
            "in files of 2025; convert the model again with a newer llama.cpp, or give its Hugging "
            "Face folder"
        )
    groups = keys.integer("expert_group_count", 1)
    width = keys.integer("expert_feed_forward_length")
    dense = min(keys.integer("leading_dense_block_count"), layers)
    return {
        "experts": keys.integer("expert_count"),
        "experts_per_token": keys.integer("expert_used_count"),
        "renormalise_experts": keys.truth("expert_weights_norm", False),
        "routing": Routing(
            score=_SCORES[gating],
            bias=bias,
            groups=groups,
            chosen_groups=keys.integer("expert_group_used_count", 1),
            group_scores=2 if bias else 1,
            scale=keys.number("expert_weights_scale", 1.0),
        ),
        "d_ff": width,
        "dense_layers": dense,
        "dense_d_ff": common["d_ff"] if dense else 0,
        "shared_d_ff": width * keys.integer("expert_shared_count", 0),
    }


def turned_queries(config: ModelConfig, stored: np.ndarray) -> np.ndarray:
    """[G * h, ...] as [1, G, h, ...] with the halves of rotary pairs one after the other."""
    sizes = config.latent
    heads = stored.reshape(1, config.query_heads, config.head_size, *stored.shape[1:])
    return heads[:, :, list(halves_of_pairs(sizes.content, sizes.rotary))]


def turned_latents(config: ModelConfig, stored: np.ndarray) -> np.ndarray:
    """[l, D] with the halves of rotary pairs one after the other."""
    return stored[list(halves_of_pairs(config.latent.rank, config.latent.rotary))]


def split_keys_values(config: ModelConfig, stored: np.ndarray) -> list[np.ndarray]:
    """[G * (u + v), c] of an older file as keys [1, G, u, c] and values [1, G, v, c]."""
    sizes = config.latent
    both = stored.reshape(1, config.query_heads, sizes.content + sizes.value, sizes.rank)
    return np.split(both, [sizes.content], axis=2)
