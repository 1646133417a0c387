"""DeepSeek V2, V3 and R1, and Kimi K2 in a GGUF file: keys and tensors of `deepseek2`.

llama.cpp's converter leaves rotary pairs adjacent, and divides the matrix that takes latents to
keys and values in two, the keys' turned; older files have it whole. Source:
`conversion/deepseek.py` and `src/models/deepseek2.cpp` of https://github.com/ggml-org/llama.cpp.
"""

from typing import Any

import numpy as np

from model.config import ModelConfig
from model.latent_sizes import LatentSizes
from model.weights import WeightsError
from model.weights.chosen_rows import halves_of_pairs
from model.weights.gguf_keys import Keys

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


def check_groups(keys: Keys, layers: int) -> None:
    """Refuses a file that does not say how its router groups experts.

    Args:
      keys: the file's.
      layers: of the model.

    Raises:
      WeightsError: such a file.
    """
    if "expert_group_count" not in keys and layers != _LITE:
        raise WeightsError(
            f"metadata '{keys.architecture}.expert_group_count' of {keys.file.path.name} is "
            "missing, as in files of 2025; convert the model again with a newer llama.cpp, or give "
            "its Hugging Face folder"
        )


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
