"""DeepSeek V2, V3 and R1, and Kimi K2: fields of their `config.json` and names of their tensors.

GLM-4.5 has the experts of DeepSeek-V3, and attention of its own.

Sources: `configuration_*.py` and `modeling_*.py` of those families in
https://github.com/huggingface/transformers; Kimi K2 (https://huggingface.co/moonshotai) is
DeepSeek-V3 with other numbers under a `model_type` of its own.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from model.config import ModelConfig
from model.latent_sizes import LatentSizes
from model.routing_rule import Routing
from model.weights.chosen_rows import ChosenRows, halves_of_pairs

# Rules of a router by `topk_method`: what a score is made by, whether it has a bias for the choice,
# and how many of a group's scores rank the group.
_RULES = {
    "greedy": ("softmax", False, 1),
    "group_limited_greedy": ("softmax", False, 1),
    "noaux_tc": ("sigmoid", True, 2),
}
_FIELDS = (
    "n_group",
    "topk_group",
    "n_shared_experts",
    "first_k_dense_replace",
    "routed_scaling_factor",
)
EXPERTS_OF_V2 = dict(zip(_FIELDS, (1, 1, 0, 0, 1.0), strict=True))
EXPERTS_OF_V3 = dict(zip(_FIELDS, (8, 4, 0, 3, 2.5), strict=True))
EXPERTS_OF_GLM = dict(zip(_FIELDS, (1, 1, 1, 1, 1.0), strict=True))
"""Values of fields that a `config.json` has not, in DeepSeek V2, V3 and GLM-4.5."""
_PREDICTS_FURTHER = re.compile(r"(.*\.)?layers\.(\d+)\.eh_proj\.weight")


def latent_fields(fields: Any, heads: int) -> dict[str, Any]:
    """Fields of a `ModelConfig` for latent attention.

    Args:
      fields: those of the file, as `model.weights.huggingface_config` reads them.
      heads: `num_attention_heads`.
    """
    sizes = LatentSizes(
        rank=fields.integer("kv_lora_rank"),
        rotary=fields.integer("qk_rope_head_dim"),
        content=fields.integer("qk_nope_head_dim"),
        value=fields.integer("v_head_dim"),
        query_rank=fields.integer("q_lora_rank", 0) or None,
    )
    whole = sizes.content + sizes.rotary
    for name, value in (
        ("num_key_value_heads", heads),
        ("head_dim", sizes.rotary),
        ("qk_head_dim", whole),
    ):
        if fields.take(name, value) != value:
            fields.refuse(name, fields.take(name), f"latent attention of these sizes has {value}")
    return {"kv_heads": 1, "head_size": whole, "latent": sizes}


def expert_fields(
    fields: Any, method: str, defaults: Mapping[str, Any], layers: int
) -> dict[str, Any]:
    """Fields of a `ModelConfig` for experts.

    Args:
      fields: those of the file, as `model.weights.huggingface_config` reads them.
      method: `topk_method` where the file has none.
      defaults: what other fields are where the file has none.
      layers: `num_hidden_layers`.
    """
    given = fields.take("topk_method", method)
    if (
        not isinstance(given, str)
        or given not in _RULES
        or (method == "noaux_tc") != (given == "noaux_tc")
    ):
        fields.refuse("topk_method", given, f"supported is {method}")
    score, bias, ranked = _RULES[given]
    if (made := fields.take("scoring_func", score)) != score:
        fields.refuse("scoring_func", made, f"{given} has {score}")
    renormalise = fields.truth("norm_topk_prob", bias, null=False)
    if renormalise and not bias:
        fields.refuse("norm_topk_prob", renormalise, "transformers leaves it out of DeepSeek-V2")
    width = fields.integer("moe_intermediate_size")
    grouped = given != "greedy"
    groups, chosen, shared, first_dense = (
        fields.integer(name, defaults[name]) for name in _FIELDS[:-1]
    )
    width_of_dense, dense = fields.integer("intermediate_size"), min(first_dense, layers)
    return {
        "experts": fields.integer("n_routed_experts"),
        "experts_per_token": fields.integer("num_experts_per_tok"),
        "renormalise_experts": renormalise,
        "routing": Routing(
            score=score,
            bias=bias,
            groups=groups if grouped else 1,
            chosen_groups=chosen if grouped else 1,
            group_scores=ranked if grouped else 1,
            scale=fields.number("routed_scaling_factor", defaults["routed_scaling_factor"]),
        ),
        "d_ff": width,
        "dense_layers": dense,
        "dense_d_ff": width_of_dense if dense else 0,
        "shared_d_ff": width * shared,
    }


def attention_arrays(arrays: Any, config: ModelConfig, prefix: str) -> dict[str, Any]:
    """Arrays of latent attention by their path within a layer.

    Args:
      arrays: makes one of a tensor's name, its stored shape and its shape in the model, as
        `model.weights.huggingface` does.
      config: the model.
      prefix: of the names of the layer's tensors.
    """
    sizes, D, G, h = config.latent, config.d_model, config.group, config.head_size
    rank, both = sizes.rank, sizes.content + sizes.value

    def turned(array: Any, axis: int, before: int) -> Any:
        return ChosenRows(array, axis, halves_of_pairs(before, sizes.rotary))

    name, inputs = ("q_b_proj", sizes.query_rank) if sizes.query_rank else ("q_proj", D)
    query = arrays.one(prefix + name, (G * h, inputs), (1, G, h, inputs))
    latent = arrays.one(prefix + "kv_a_proj_with_mqa", (sizes.cached, D))
    key_value = arrays.one(prefix + "kv_b_proj", (G * both, rank), (1, G, both, rank))
    output = arrays.one(prefix + "o_proj", (D, G * sizes.value), (D, 1, G, sizes.value))
    found = {
        "attention.query": turned(query, 2, sizes.content),
        "attention.latent": turned(latent, 0, rank),
        "attention.latent_norm.scale": arrays.scale(prefix + "kv_a_layernorm", (rank,)),
        "attention.key": ChosenRows(key_value, 2, tuple(range(sizes.content))),
        "attention.value": ChosenRows(key_value, 2, tuple(range(sizes.content, both))),
        "attention.output": output,
    }
    if sizes.query_rank:
        found["attention.query_down"] = arrays.one(prefix + "q_a_proj", (sizes.query_rank, D))
        found["attention.query_norm.scale"] = arrays.scale(
            prefix + "q_a_layernorm", (sizes.query_rank,)
        )
    return found


def prediction_layers(names: Iterable[str]) -> set[str]:
    """Prefixes of layers that predict further tokens (DeepSeek-V3, section 2.2): left out.

    Args:
      names: of all tensors.
    """
    found = map(_PREDICTS_FURTHER.fullmatch, names)
    return {f"{match[1] or ''}layers.{match[2]}." for match in found if match}
