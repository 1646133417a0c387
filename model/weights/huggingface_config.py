"""A model's configuration from the `config.json` of a Hugging Face directory.

Every field is read by name or known to change nothing; any other is refused, so that a model is
never run with other arithmetic than it was trained with. Fields and defaults: the
`configuration_*.py` of each family in https://github.com/huggingface/transformers.
"""

import math
import os
from pathlib import Path
from typing import Any

from model.config import ModelConfig
from model.weights import huggingface_delta
from model.weights.config_fields import Fields
from model.weights.family_record import HARMLESS, Family
from model.weights.huggingface_deepseek import expert_fields, latent_fields
from model.weights.huggingface_families import FAMILIES
from model.weights.huggingface_gemma4 import layer_fields
from model.weights.huggingface_llama4 import chunk_windows, interleaved_experts, query_fields
from model.weights.huggingface_rotary import rotary
from model.weights.text_part import PARTS, text_model

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}

_WINDOWED = {"full_attention": False, "sliding_attention": True}


def read_config(folder: Path) -> tuple[ModelConfig, str]:
    """The configuration of the model in a directory, and its family.

    Args:
      folder: holds `config.json`.

    Returns:
      The configuration, and `model_type`.

    Raises:
      WeightsError: no readable `config.json`, another family, or a field that is missing, of
        another type, or not known.
      ConfigError: sizes that contradict each other.
    """
    fields, model_type = text_model(Fields(folder / "config.json"))
    if model_type not in FAMILIES:
        supported = ", ".join(sorted({*FAMILIES, *PARTS}))
        fields.refuse("model_type", model_type, f"supported are {supported}")
    family = FAMILIES[model_type]
    common = _common(fields, family, _name(folder))
    rotated = _rotary_layers(fields, family, common["layers"])
    delta = family.names.delta
    more = huggingface_delta.delta_fields(fields, common["layers"]) if delta else {}
    windows = None if delta else _windows(fields, family, common["layers"], rotated)
    more |= _feed_forward(fields, family, common["layers"])
    more |= _scales(fields, family, common["d_model"])
    more |= _biases(fields, family) | {"rotary_layers": rotated, "windows": windows}
    if family.kinds_of_heads:
        more |= layer_fields(fields, common | more)
    else:
        more |= _rotary(fields, family, common)
    config = ModelConfig(**common | more | family.settings)
    fields.finish(HARMLESS | family.harmless, family.quantized)
    return config, model_type


def _rotary(fields: Fields, family: Family, common: dict[str, Any]) -> dict[str, Any]:
    latent, head_size = common.get("latent"), common["head_size"]
    turned = latent.rotary if latent else head_size
    found = rotary(fields, family, turned, common["max_context"])
    scores = found.pop("scores")
    return found | ({"attention_scale": scores * head_size**-0.5} if latent else {})


def _name(folder: Path) -> str:
    """The model's name in reports: its folder's name, or `ORG/NAME` in a cache of the hub.

    The cache's folders are `models--ORG--NAME/snapshots/COMMIT`: see `repo_folder_name` of
    https://github.com/huggingface/huggingface_hub.
    """
    path = Path(os.path.abspath(folder))  # unlike Path.resolve, follows no links
    kind, *name = path.parent.parent.name.split("--")
    if path.parent.name == "snapshots" and kind == "models" and name:
        return "/".join(name)
    return path.name


def _common(fields: Fields, family: Family, name: str) -> dict[str, Any]:
    heads, d_model = fields.integer("num_attention_heads"), fields.integer("hidden_size")
    activation = fields.text(family.activation_field)
    if family.activation_field != "hidden_act":
        fields.take("hidden_act", None)  # Gemma 2 keeps the older name beside it, unused
    if activation not in _ACTIVATIONS:
        fields.refuse(
            family.activation_field, activation, f"supported are {', '.join(_ACTIVATIONS)}"
        )
    return {
        "name": name,
        "vocabulary": fields.integer("vocab_size"),
        "d_model": d_model,
        "layers": fields.integer("num_hidden_layers"),
        "query_heads": heads,
        "max_context": fields.integer("max_position_embeddings"),
        "norm_epsilon": fields.number("rms_norm_eps", family.epsilon),
        "tied_embedding": fields.truth("tie_word_embeddings", family.tied),
        "activation": _ACTIVATIONS[activation],
        **_heads(fields, family, heads, d_model),
    }


def _heads(fields: Fields, family: Family, heads: int, d_model: int) -> dict[str, Any]:
    if family.latent:
        return latent_fields(fields, heads)
    return {
        "kv_heads": fields.integer("num_key_value_heads", heads),
        "head_size": fields.integer("head_dim", d_model // max(heads, 1)),
    }


def _feed_forward(fields: Fields, family: Family, layers: int) -> dict[str, Any]:
    if family.chunks:
        return interleaved_experts(fields, layers)
    if family.topk_method:
        return expert_fields(fields, family.topk_method, family.expert_defaults, layers)
    if family.names.delta and family.experts:
        return huggingface_delta.expert_fields(fields, bool(family.renormalise))
    if not family.experts:
        return {"d_ff": fields.integer("intermediate_size")}
    fields.take("intermediate_size", None)
    renormalise = family.renormalise
    if renormalise is None:
        renormalise = fields.truth("norm_topk_prob", False)
    return {
        "d_ff": fields.integer(family.expert_width),
        "experts": fields.one_of(family.experts),
        "experts_per_token": fields.integer("num_experts_per_tok"),
        "renormalise_experts": renormalise,
    }


def _biases(fields: Fields, family: Family) -> dict[str, Any]:
    """Which parts have a bias, and whether queries and keys have a norm, where fields say it."""
    found: dict[str, Any] = {}
    if family.attention_bias is not None:
        found["attention_bias"] = fields.truth("attention_bias", family.attention_bias)
        found["output_bias"] = found["attention_bias"] and family.output_bias
    if family.mlp_bias:
        found["mlp_bias"] = fields.truth("mlp_bias", False)
    if family.normed_queries is not None:
        found["query_key_norm"] = fields.truth("use_qk_norm", family.normed_queries)
    return found


def _scales(fields: Fields, family: Family, d_model: int) -> dict[str, Any]:
    """Factors of embeddings, queries, scores and logits, and caps of these."""
    if family.multipliers:
        return {
            "embedding_scale": fields.number("embedding_multiplier", 1.0),
            "embedding_scale_exact": True,
            "attention_scale": fields.number("attention_multiplier", 1.0),
            "residual_scale": fields.number("residual_multiplier", 1.0),
            "logit_scale": 1 / (fields.number("logits_scaling", 1.0) or math.inf),
        }
    if family.chunks:
        return query_fields(fields)
    if not family.scaled:
        return {}
    return {
        "embedding_scale": math.sqrt(d_model),
        "attention_scale": fields.number("query_pre_attn_scalar") ** -0.5,
        "attention_softcap": fields.unset("attn_logit_softcapping", family.attention_softcap),
        "logit_softcap": fields.unset("final_logit_softcapping", family.logit_softcap),
    }


def _rotary_layers(fields: Fields, family: Family, layers: int) -> tuple[bool, ...] | None:
    """Which layers rotate their queries and keys; None if all do."""
    if not family.unrotated:
        return None
    listed, still = fields.take("no_rope_layers", None), None  # which it names by 0
    if listed is not None and (listed or not family.chunks):
        if (
            not isinstance(listed, list)
            or len(listed) < layers
            or not all(each in (0, 1) for each in listed)
        ):
            fields.refuse("no_rope_layers", listed, f"give 0 or 1 for each of {layers} layers")
        still = [not each for each in listed[:layers]]
    still = fields.last_of_groups("no_rope_layer_interval", family.unrotated, layers, still)
    return tuple(not each for each in still) if any(still) else None


def _windows(
    fields: Fields, family: Family, layers: int, rotated: tuple[bool, ...] | None
) -> tuple[int | None, ...] | None:
    """Each layer's window, by `layer_types` if the field is there and the family reads it."""
    if family.chunks:
        return chunk_windows(fields, layers, rotated)
    types = fields.kinds_of_layers(layers, _WINDOWED)
    if not family.windows:
        if types and any(types):
            fields.refuse("layer_types", "sliding_attention", "this family has no windows")
        return None
    size = fields.unset("sliding_window", family.window)
    size = size and int(size)
    older = fields.take("sliding_window_size", size)
    if older != size:
        fields.refuse("sliding_window_size", older, f"sliding_window says {size}")
    windowed = _windowed(fields, family, layers, rotated)
    if size is None and family.windows != "pattern":
        windowed = [False] * layers
    if types is not None and types != windowed:
        used = family.windows in ("upper", "unrotated")
        if used and not fields.truth("use_sliding_window", False):
            fields.refuse("layer_types", "sliding_attention", "use_sliding_window says otherwise")
        if not used and family.windows != "pattern":
            fields.refuse("layer_types", "another list", "this family reads other fields for it")
        windowed = types
    if not any(windowed):
        return None
    if not size:
        fields.refuse("sliding_window", size, "layers need a window of one token or more")
    return tuple(size if each else None for each in windowed)


def _windowed(
    fields: Fields, family: Family, layers: int, rotated: tuple[bool, ...] | None
) -> list[bool]:
    """Whether each layer has a window, by the family's rule."""
    if family.windows == "unrotated":
        used = fields.truth("use_sliding_window", False)
        return [used and not each for each in rotated or (True,) * layers]
    if family.windows == "pattern":
        last = fields.last_of_groups(family.pattern_field, family.pattern, layers)
        return [not each for each in last]
    first = 0
    if family.windows in ("upper", "switched"):
        first = fields.integer("max_window_layers", 28)
        if not fields.truth("use_sliding_window", False):
            first = layers
        elif family.windows == "switched":
            first = 0
    return [layer >= first for layer in range(layers)]
