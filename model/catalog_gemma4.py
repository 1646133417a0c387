"""Shapes of the text models of Gemma 4, without their towers for images and sound.

Sources: `gemma/gm/nn/gemma4/_gemma4.py` of https://github.com/google-deepmind/gemma and
`convert_gemma4_weights.py` of https://github.com/huggingface/transformers, which agree. Counts of
the large models are those of the model card; its counts of the small ones have their towers, so
that theirs is what llama.cpp counts of the text model's files. Of gemma4-e2b that is 4.65B, with
keys and values of layers that borrow others' and never use their own: they are left out here.
"""

import math
from typing import Any

from model.config import ModelConfig
from model.full_attention import FullAttention
from model.published_shape import Published, shape

_CODE = "gemma/gm/nn/gemma4 of https://github.com/google-deepmind/gemma"
_CARD = f"Google DeepMind 2026 (Gemma 4 model card) and {_CODE}"
_LLAMA_CPP = f"{_CODE}; parameters by llama-bench of https://github.com/ggml-org/llama.cpp"


def _gemma4(
    name: str, layers: int, *sizes: int, full: FullAttention, window: int, every: int, **more: Any
) -> ModelConfig:
    """Every so-manieth layer sees all tokens, with wider heads of which a quarter is rotated."""
    windows = tuple(None if (layer + 1) % every == 0 else window for layer in range(layers))
    width = sizes[0]
    return shape(
        name,
        layers,
        *sizes,
        head_size=256,
        full_attention=full,
        windows=windows,
        vocabulary=262_144,
        rotary_base=1e6,
        local_rotary_base=10_000.0,
        norm_epsilon=1e-6,
        activation="gelu_tanh",
        query_key_norm=True,
        value_norm=True,
        norm_after=True,
        block_scale=True,
        attention_scale=1.0,
        embedding_scale=math.sqrt(width),
        logit_softcap=30.0,
        tied_embedding=True,
        **more,
    )


def _small(name: str, layers: int, *sizes: int, every: int, **more: Any) -> ModelConfig:
    full = FullAttention(head_size=512, kv_heads=sizes[2], rotary_pairs=64)
    more |= {"window": 512, "max_context": 131_072, "layer_inputs": 256}
    return _gemma4(name, layers, *sizes, full=full, every=every, **more)


def _large(name: str, layers: int, *sizes: int, kv_heads: int, **more: Any) -> ModelConfig:
    full = FullAttention(head_size=512, kv_heads=kv_heads, keys_are_values=True, rotary_pairs=64)
    more |= {"window": 1024, "max_context": 262_144}
    return _gemma4(name, layers, *sizes, full=full, every=6, **more)


_EXPERTS = {"experts": 128, "experts_per_token": 8, "shared_d_ff": 2112, "experts_apart": True}

# fmt: off
GEMMA4 = (
    # name, layers, d_model, query heads, KV heads, d_ff; parameters; unit they are rounded to
    Published(_small("gemma4-e2b", 35, 1536, 8, 1, 6144, every=5, shared_cache_layers=20,
                     shared_cache_d_ff=12_288),
              None, 1, _CODE),
    Published(_small("gemma4-e4b", 42, 2560, 8, 2, 10_240, every=6, shared_cache_layers=18),
              7_460_000_000, 10_000_000, _LLAMA_CPP),
    Published(_large("gemma4-26b-a4b", 30, 2816, 16, 8, 704, kv_heads=2, **_EXPERTS),
              25_200_000_000, 100_000_000, _CARD),
    Published(_large("gemma4-31b", 60, 5376, 32, 16, 21_504, kv_heads=4),
              30_700_000_000, 100_000_000, _CARD),
)
# fmt: on
