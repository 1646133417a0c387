"""Keys and tensors of Gemma 4 as llama.cpp's converter writes them (`conversion/gemma.py`)."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from model.weights.safetensors_files import SafetensorsFiles

_STANDS_STILL = 1e30
_MODEL = {
    "embed_tokens": "token_embd",
    "embed_tokens_per_layer": "per_layer_token_embd",
    "per_layer_model_projection": "per_layer_model_proj",
    "per_layer_projection_norm": "per_layer_proj_norm",
    "norm": "output_norm",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_feedforward_layernorm": "post_ffw_norm",
    "post_feedforward_layernorm_1": "post_ffw_norm_1",
    "pre_feedforward_layernorm_2": "pre_ffw_norm_2",
    "post_feedforward_layernorm_2": "post_ffw_norm_2",
    "router.proj": "ffn_gate_inp",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "experts.gate_up_proj": "ffn_gate_up_exps",
    "experts.down_proj": "ffn_down_exps",
    "per_layer_input_gate": "inp_gate",
    "per_layer_projection": "proj",
    "post_per_layer_input_norm": "post_norm",
    "layer_scalar": "layer_output_scale",
}


def keys(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Metadata of the text model beside, or in place of, what all models have.

    Args:
      config: its `config.json`; what `per_layer_config` says of layers without a window is in the
        two fields of released models.
    """
    sliding = [kind == "sliding_attention" for kind in config["layer_types"]]
    full = config["per_layer_config"][str(sliding.index(False))]
    layers, shared = config["num_hidden_layers"], config["num_kv_shared_layers"]
    for suffix, size in (("", full["head_dim"]), ("_swa", config["head_dim"])):
        yield f"attention.key_length{suffix}", size
        yield f"attention.value_length{suffix}", size
        yield f"rope.dimension_count{suffix}", size
    if "num_key_value_heads" in full:
        heads = config["num_key_value_heads"], full["num_key_value_heads"]
        yield "attention.head_count_kv", [heads[0] if each else heads[1] for each in sliding]
    if config["use_double_wide_mlp"]:
        width = config["intermediate_size"]
        own = layers - shared
        yield "feed_forward_length", [width if n < own else 2 * width for n in range(layers)]
    if config["enable_moe_block"]:
        yield "expert_used_count", config["top_k_experts"]
    yield "rope.freq_base_swa", config["rope_parameters"]["sliding_attention"]["rope_theta"]
    yield "attention.sliding_window_pattern", sliding
    yield "attention.shared_kv_layers", shared
    yield "embedding_length_per_layer_input", config["hidden_size_per_layer_input"]


def tensors(files: SafetensorsFiles, config: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Each tensor of the text model by its name in the file, and the divisors of rotary pairs."""
    for name in files.tensors:
        rest = name.removeprefix("model.").removeprefix("language_model.")
        if not rest.startswith(("vision_tower.", "embed_vision.")):
            yield _name(rest.removesuffix(".weight")), files.read(name)
    rotary = config["rope_parameters"]["full_attention"]
    size = next(iter(config["per_layer_config"].values()))["head_dim"]
    turning = int(size * rotary["partial_rotary_factor"] / 2)
    divisors = np.full(size // 2, _STANDS_STILL, np.float32)
    divisors[:turning] = 1
    yield "rope_freqs.weight", divisors


def _name(name: str) -> str:
    if name in _MODEL:
        return f"{_MODEL[name]}.weight"
    _, layer, rest = name.split(".", 2)
    stored = f"blk.{layer}.{_LAYER[rest]}"
    return stored if stored.endswith(".scale") else f"{stored}.weight"
