"""A model's configuration from the metadata of a GGUF file.

Every key of the architecture is read by name or known to change nothing; any other is refused.
Source: the key names of the GGUF specification
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

import math
from collections.abc import Mapping
from typing import Any

from model.config import ModelConfig
from model.weights.gguf_architectures import ARCHITECTURES, Architecture
from model.weights.gguf_delta import check_sections, delta_fields
from model.weights.gguf_experts import gated_shared_expert, shared_experts
from model.weights.gguf_file import GGUFFile
from model.weights.gguf_gemma4 import layer_fields, window_heads
from model.weights.gguf_keys import Keys, last_of_groups
from model.weights.gguf_latent import check_groups, latent_heads
from model.weights.gguf_llama4 import chunk_fields, interleaved_experts
from model.weights.gguf_rotary import rotary_parameters

# Fields of `ModelConfig` that the tensors of the first layer tell.
_BIASES = {"attention_bias": "attn_q", "output_bias": "attn_output", "mlp_bias": "ffn_gate"}


def read_keys(file: GGUFFile) -> tuple[ModelConfig, dict[str, Any]]:
    """The model's configuration from the metadata, and the fields of its rotary scaling.

    Args:
      file: a GGUF file of one of `ARCHITECTURES`.

    Raises:
      WeightsError: another architecture, or metadata that is missing, unknown or asks for
        something not supported.
      ConfigError: sizes that contradict each other.
    """
    keys = Keys(file, ARCHITECTURES)
    architecture = ARCHITECTURES[keys.architecture]
    common = _common(keys, file, architecture)
    ModelConfig(**common)  # refuses wrong sizes before anything is computed from them
    layers = common["layers"]
    more = {field: True for field, name in _BIASES.items() if f"blk.0.{name}.bias" in file.tensors}
    if architecture.normed_queries:
        more["query_key_norm"] = "blk.0.attn_q_norm.weight" in file.tensors
    more |= _feed_forward(keys, file, architecture, common)
    if architecture.delta:
        check_sections(keys, common["rotary_size"] or common["head_size"])
        more |= delta_fields(keys, layers)
    more |= _windows(keys, architecture, layers, common["rotary_base"])
    if architecture.scaled:
        more |= _gemma(keys, architecture, common)
    if architecture.kinds_of_heads:
        more |= layer_fields(keys, file, common, more)
    if architecture.multipliers:
        more |= _multipliers(keys)
    if every := architecture.unrotated:
        still = last_of_groups(every, layers)
        more["rotary_layers"] = tuple(not each for each in still) if any(still) else None
    config = ModelConfig(**{**common, **more, **architecture.settings})
    rotary = rotary_parameters(keys, file, config.max_context)
    keys.finish()
    return config, rotary


def _common(keys: Keys, file: GGUFFile, architecture: Architecture) -> dict[str, Any]:
    heads = keys.integer("attention.head_count")
    d_model = keys.integer("embedding_length")
    found = window_heads if architecture.kinds_of_heads else _heads
    found = latent_heads if architecture.latent else found
    integer, width = keys.integer, "feed_forward_length"
    if architecture.kinds_of_heads:
        integer = keys.first
    elif architecture.delta and width not in keys:  # every layer has experts
        width = f"expert_{width}"
    return {
        "name": _name(file),
        "vocabulary": keys.integer("vocab_size", _vocabulary(file)),
        "d_model": d_model,
        "layers": _layers(keys),
        "query_heads": heads,
        **found(keys, heads, d_model),
        "d_ff": integer(width),
        "max_context": keys.integer("context_length"),
        "rotary_base": keys.number("rope.freq_base", 10_000.0),
        "norm_epsilon": keys.number("attention.layer_norm_rms_epsilon"),
        "tied_embedding": "output.weight" not in file.tensors,
    }


def _layers(keys: Keys) -> int:
    """Layers of the model, without those that predict further tokens: these come last."""
    blocks, further = keys.integer("block_count"), keys.integer("nextn_predict_layers", 0)
    if further and not 0 < further < blocks:
        keys.refuse("nextn_predict_layers", further, f", of {blocks} layers")
    return blocks - further


def _heads(keys: Keys, heads: int, d_model: int) -> dict[str, Any]:
    head_size = keys.integer("attention.key_length", d_model // max(heads, 1))
    keys.expect("attention.value_length", head_size, "the head size of the keys")
    rotated = keys.integer("rope.dimension_count", head_size)
    return {
        "kv_heads": keys.integer("attention.head_count_kv", heads),
        "head_size": head_size,
        "rotary_size": None if rotated == head_size else rotated,
    }


def _feed_forward(
    keys: Keys, file: GGUFFile, architecture: Architecture, common: Mapping[str, Any]
) -> dict[str, Any]:
    """Experts, as the architecture has them."""
    if architecture.chunks:
        return interleaved_experts(keys, common)
    if not architecture.gating:
        found = _experts(keys)
        return found | (gated_shared_expert(keys) if found and architecture.delta else {})
    if architecture.latent:
        check_groups(keys, common["layers"])
    return shared_experts(keys, file, common, architecture.gating)


def _experts(keys: Keys) -> dict[str, Any]:
    """Sizes of the experts; for a model without any, these keys change nothing."""
    count = keys.integer("expert_count", 0)
    if not count:
        return {}
    width = keys.integer("expert_feed_forward_length", 0)
    more = {"d_ff": width} if width else {}
    return {"experts": count, "experts_per_token": keys.integer("expert_used_count"), **more}


def _windows(keys: Keys, architecture: Architecture, layers: int, base: float) -> dict[str, Any]:
    if architecture.chunks:
        return chunk_fields(keys, layers)
    size = keys.integer("attention.sliding_window", architecture.window)
    pattern, name = architecture.pattern, "attention.sliding_window_pattern"
    windowed = keys.truths(name, layers)
    if windowed is None:
        keys.expect(name, pattern, "that of the architecture")
        # Without a pattern no layer is the last of its group, so that all have a window.
        windowed = (not each for each in last_of_groups(pattern or layers + 1, layers))
    if size <= 0:
        return {}
    found: dict[str, Any] = {"windows": tuple(size if each else None for each in windowed)}
    if architecture.plain_windows:
        found["local_rotary_base"] = keys.number("rope.freq_base_swa", base)
    return found


def _gemma(keys: Keys, architecture: Architecture, common: Mapping[str, Any]) -> dict[str, Any]:
    d_model, local = common["d_model"], architecture.local_base
    size = d_model / common["query_heads"] if common["layers"] == architecture.largest else None
    attention = keys.number("attn_logit_softcapping", architecture.attention_softcap or 0.0)
    final = keys.number("final_logit_softcapping", architecture.logit_softcap or 0.0)
    return {
        "embedding_scale": math.sqrt(d_model),
        "attention_scale": (size or common["head_size"]) ** -0.5,
        "attention_softcap": attention or None,
        "logit_softcap": final or None,
        "local_rotary_base": keys.number("rope.freq_base_swa", local) if local else None,
    }


def _multipliers(keys: Keys) -> dict[str, Any]:
    logits = keys.number("logit_scale", 1.0)
    if not logits:
        keys.refuse("logit_scale", logits)
    return {
        "embedding_scale": keys.number("embedding_scale", 1.0),
        "embedding_scale_exact": True,
        "attention_scale": keys.number("attention.scale", 0.0) or None,
        "residual_scale": keys.number("residual_scale", 1.0),
        "logit_scale": 1 / logits,
    }


def _vocabulary(file: GGUFFile) -> int:
    """The number of token ids, for files without a key for it."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and tokens:
        return len(tokens)
    embedding = file.tensors.get("token_embd.weight")
    return embedding.shape[0] if embedding else 0


def _name(file: GGUFFile) -> str:
    name = file.metadata.get("general.name")
    return name[:80] if isinstance(name, str) and name.isprintable() and name else file.path.stem
