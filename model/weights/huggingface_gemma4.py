"""Gemma 4's text models: fields of their `config.json` and names of their tensors.

Sources: `configuration_gemma4.py` and `modeling_gemma4.py` of
https://github.com/huggingface/transformers. Towers for images and sound are left out of
folders of the whole model (`model.weights.text_part`).
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from model.config import ModelConfig
from model.full_attention import FullAttention
from model.weights.assembled import Assembled, Piece

_TOWERS = re.compile(r"(vision_tower|embed_vision|audio_tower|embed_audio)\..*")
_OWN = re.compile(r"layers\.(\d+)\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\..*")
_PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
_PROPORTIONAL = {
    "rope_type": "proportional",
    "partial_rotary_factor": 0.25,
    "rope_theta": 1_000_000.0,
}


def layer_fields(fields: Any, common: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `ModelConfig` that this family alone has.

    Args:
      fields: those of the file, as `model.weights.huggingface_config` reads them.
      common: fields that are read already, `windows` and `d_ff` among them.
    """
    windows = common["windows"] or (None,) * common["layers"]
    windows = (*windows[:-1], None)  # the last layer sees all tokens whatever the file says
    full, rotary = _rotary(fields)
    heads = _full_attention(fields, common | {"windows": windows}, full)
    alike = not any(windows)
    return {
        "windows": None if alike else windows,
        **(heads.changes if alike else {"full_attention": heads}),
        **rotary,
        **_experts(fields, common),
        **_shared_caches(fields, common),
        "layer_inputs": _layer_inputs(fields, common),
        "embedding_scale": math.sqrt(common["d_model"]),
        "logit_softcap": fields.unset("final_logit_softcapping", None),
    }


def _rotary(fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is said of the layers without a window, and the bases of both kinds of layers."""
    given = fields.take(
        "rope_parameters", {"full_attention": _PROPORTIONAL, "sliding_attention": _PLAIN}
    )
    names = ["full_attention", "sliding_attention"]
    kinds = [given[name] for name in names] if _has_exactly(given, names) else [None]
    if not all(isinstance(kind, dict) for kind in kinds):
        fields.refuse("rope_parameters", given, "give full_attention and sliding_attention")
    full, plain = ({n: v for n, v in kind.items() if v is not None} for kind in kinds)
    for kind, allowed in ((full, ("proportional", "default")), (plain, ("default",))):
        known = {"rope_type", "rope_theta"} | (_PROPORTIONAL.keys() if kind is full else set())
        if kind.get("rope_type", "default") not in allowed or kind.keys() - known - {"factor"}:
            fields.refuse("rope_parameters", kind, f"supported is rope_type {' or '.join(allowed)}")
        if kind.get("factor", 1.0) != 1:
            fields.refuse("rope_parameters", kind, "a factor is not supported")
    base, local = (fields.as_number("rope_theta", kind.get("rope_theta")) for kind in kinds)
    return full, {"rotary_base": base, "local_rotary_base": local}


def _has_exactly(given: Any, names: list[str]) -> bool:
    return isinstance(given, dict) and sorted(given) == names


def _full_attention(
    fields: Any, common: Mapping[str, Any], rotary: Mapping[str, Any]
) -> FullAttention:
    """Sizes of attention in the layers without a window."""
    keys_are_values = fields.truth("attention_k_eq_v", False)
    heads = fields.integer("num_global_key_value_heads", 0) if keys_are_values else 0
    if not keys_are_values:
        fields.take("num_global_key_value_heads", None)  # which is then not read
    sizes = {
        "head_dim": fields.integer("global_head_dim", 512),
        "num_key_value_heads": heads or common["kv_heads"],
    }
    sizes |= _by_layer(fields, common)
    size, part = sizes["head_dim"], rotary.get("partial_rotary_factor", 1.0)
    if isinstance(part, bool) or not isinstance(part, int | float) or not 0 < part <= 1:
        fields.refuse("partial_rotary_factor", part, "give a part of a head")
    proportional = rotary.get("rope_type") == "proportional"
    pairs = int(part * size // 2) if proportional else size // 2
    if not pairs or (part != 1 and not proportional):
        fields.refuse("partial_rotary_factor", part, f"it leaves no part of a head of {size}")
    return FullAttention(
        head_size=size,
        kv_heads=sizes["num_key_value_heads"],
        keys_are_values=keys_are_values,
        rotary_pairs=None if pairs == size // 2 else pairs,
    )


def _by_layer(fields: Any, common: Mapping[str, Any]) -> dict[str, int]:
    """Sizes of the layers without a window, where the file says them layer by layer."""
    given = fields.take("per_layer_config", {})
    full = [n for n, window in enumerate(common["windows"]) if window is None]
    if not given:
        return {}
    said = {int(layer): sizes for layer, sizes in given.items()} if _is_by_layer(given) else {}
    alike = {tuple(sorted(sizes.items())) for sizes in said.values()}
    names = {"head_dim", "num_key_value_heads"}
    if sorted(said) != full or len(alike) != 1 or {name for name, _ in min(alike)} - names:
        fields.refuse(
            "per_layer_config",
            given,
            "give the same sizes of heads for each layer without a window",
        )
    return {"num_key_value_heads": common["kv_heads"], **dict(min(alike))}


def _is_by_layer(given: Any) -> bool:
    return isinstance(given, dict) and all(
        layer.isdigit()
        and isinstance(sizes, dict)
        and all(type(size) is int for size in sizes.values())
        for layer, sizes in given.items()
    )


def _experts(fields: Any, common: Mapping[str, Any]) -> dict[str, Any]:
    """Experts beside the MLP, whose width is then not that of the model's `d_ff`."""
    names = "num_experts", "top_k_experts", "moe_intermediate_size"
    if not fields.truth("enable_moe_block", False):
        for name in names:
            fields.take(name, None)  # which are then not read
        return {}
    experts, chosen, width = map(fields.integer, names)
    return {
        "experts": experts,
        "experts_per_token": chosen,
        "d_ff": width,
        "shared_d_ff": common["d_ff"],
        "experts_apart": True,
    }


def _shared_caches(fields: Any, common: Mapping[str, Any]) -> dict[str, int]:
    """How many of the last layers read other layers' keys and values, and how wide their MLP is."""
    layers, wide = (
        fields.integer("num_kv_shared_layers", 0),
        fields.truth("use_double_wide_mlp", False),
    )
    return {
        "shared_cache_layers": layers,
        "shared_cache_d_ff": 2 * common["d_ff"] if layers and wide else 0,
    }


def _layer_inputs(fields: Any, common: Mapping[str, Any]) -> int:
    """Numbers of the embedding that each layer has for itself."""
    width = fields.integer("hidden_size_per_layer_input", 256)
    rows = fields.integer("vocab_size_per_layer_input", 262_144)
    if width and rows != common["vocabulary"]:
        fields.refuse("vocab_size_per_layer_input", rows, f"vocab_size says {common['vocabulary']}")
    return width


def left_out(names: Iterable[str], prefix: str, config: ModelConfig) -> set[str]:
    """Tensors that the text model has no use for: towers, and keys and values that it borrows.

    Args:
      names: of all tensors.
      prefix: what the names of the text model's begin with.
      config: the model.
    """
    beside = prefix.removesuffix("language_model.")
    return {
        name
        for name in names
        if (_TOWERS.fullmatch(name.removeprefix(beside)) and name.startswith(beside))
        or (
            (own := _OWN.fullmatch(name.removeprefix(prefix)))
            and int(own[1]) < config.layers
            and config.borrows(int(own[1]))
        )
    }


def attention_arrays(arrays: Any, config: ModelConfig, layer: int, prefix: str) -> dict[str, Any]:
    """Arrays of attention by their path within a layer.

    Args:
      arrays: makes one of a tensor's name, its stored shape and its shape in the model, as
        `model.weights.huggingface` does.
      config: the model.
      layer: number of the layer.
      prefix: of the names of the layer's tensors.
    """
    seen, D = config.at(layer), config.d_model
    K, G, h = seen.kv_heads, seen.group, seen.head_size
    found = {
        "attention.query": arrays.one(prefix + "q_proj", (K * G * h, D), (K, G, h, D)),
        "attention.output": arrays.one(prefix + "o_proj", (D, K * G * h), (D, K, G, h)),
        "attention.query_norm.scale": arrays.scale(prefix + "q_norm", (h,)),
    }
    if config.borrows(layer):
        return found
    found["attention.key_norm.scale"] = arrays.scale(prefix + "k_norm", (h,))
    if seen.keys_are_values:
        keys = arrays.one(prefix + "k_proj", (K * h, D), (K, h, D))
        return found | {"attention.key_value": keys}
    pieces = tuple(
        Piece(f"{prefix}{name}.weight", (K * h, D), (K, 1, h, D), (0, at, 0, 0))
        for at, name in enumerate(("k_proj", "v_proj"))
    )
    return found | {"attention.key_value": Assembled(arrays.files, (K, 2, h, D), pieces)}


def block_arrays(arrays: Any, config: ModelConfig, layer: int, prefix: str) -> dict[str, Any]:
    """Arrays of a layer beside attention, MLP and the norms around both; see `attention_arrays`."""
    found = {"block_scale": arrays.one(prefix + "layer_scalar", (1,), (), kind="")}
    if p := config.layer_inputs:
        D = config.d_model
        found["input.gate"] = arrays.one(prefix + "per_layer_input_gate", (p, D))
        found["input.projection"] = arrays.one(prefix + "per_layer_projection", (D, p))
        found["input.norm_after.scale"] = arrays.scale(prefix + "post_per_layer_input_norm")
    return found | (_expert_arrays(arrays, config, prefix) if config.has_experts(layer) else {})


def _expert_arrays(arrays: Any, config: ModelConfig, prefix: str) -> dict[str, Any]:
    """Router, experts, the MLP beside them, and their norms."""
    E, D, F = config.experts, config.d_model, config.d_ff
    norms = {"shared_norm_after": "post_feedforward_layernorm_1",
             "experts_norm": "pre_feedforward_layernorm_2",
             "experts_norm_after": "post_feedforward_layernorm_2"}  # fmt: skip
    return {
        "mlp.router": arrays.one(prefix + "router.proj", (E, D)),
        "mlp.router_scale": arrays.one(prefix + "router.scale", (D,), kind=""),
        "mlp.expert_scale": arrays.one(prefix + "router.per_expert_scale", (E,), kind=""),
        "mlp.gate_up": arrays.one(
            prefix + "experts.gate_up_proj", (E, 2 * F, D), (E, 2, F, D), kind=""
        ),
        "mlp.down": arrays.one(prefix + "experts.down_proj", (E, D, F), kind=""),
        **arrays.mlp(prefix + "mlp.", "shared", config.shared_d_ff),
        **{f"{ours}.scale": arrays.scale(prefix + name) for ours, name in norms.items()},
    }


def input_arrays(arrays: Any, config: ModelConfig, prefix: str) -> dict[tuple[str, ...], Any]:
    """Arrays of what layers have of their own of each token; see `attention_arrays`."""
    sizes, D = config.sizes, config.d_model
    table = prefix + "embed_tokens_per_layer", (config.vocabulary, sizes["P"])
    norm = arrays.scale(prefix + "per_layer_projection_norm", (sizes["p"],))
    projection = arrays.one(prefix + "per_layer_model_projection", (sizes["P"], D))
    return {
        ("layer_inputs", "weight"): arrays.one(*table),
        ("layer_inputs", "projection"): projection,
        ("layer_inputs", "norm", "scale"): norm,
    }
