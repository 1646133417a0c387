"""Fields of Llama 4's text models: experts in some layers, chunks, and queries that grow.

Source: `configuration_llama4.py` and `modeling_llama4.py` of
https://github.com/huggingface/transformers.
"""

from typing import Any

from model.routing_rule import Routing

_CHUNKED = {"full_attention": False, "chunked_attention": True}


def interleaved_experts(fields: Any, layers: int) -> dict[str, Any]:
    """Fields of a `ModelConfig` for experts: in the layers of a list, or every so many-th.

    Args:
      fields: those of the file, as `model.weights.huggingface_config` reads them.
      layers: `num_hidden_layers`.
    """
    listed, given = fields.take("moe_layers", None), None
    if listed is not None:
        if not isinstance(listed, list) or not all(type(each) is int for each in listed):
            fields.refuse("moe_layers", listed, "give a list of layers")
        numbers = {*listed}
        given = [layer in numbers for layer in range(layers)]
    routed = tuple(fields.last_of_groups("interleave_moe_layer_step", 1, layers, given))
    width, dense_width = (
        fields.integer("intermediate_size"),
        fields.integer("intermediate_size_mlp"),
    )
    experts, chosen = fields.integer("num_local_experts"), fields.integer("num_experts_per_tok", 1)
    if not any(routed):
        return {"d_ff": dense_width}
    return {
        "d_ff": width,
        "shared_d_ff": width,
        "experts": experts,
        "experts_per_token": chosen,
        "renormalise_experts": False,
        "routing": Routing(score="sigmoid", of_inputs=True),
        "expert_layers": None if all(routed) else routed,
        "dense_d_ff": 0 if all(routed) else dense_width,
    }


def chunk_windows(
    fields: Any, layers: int, rotated: tuple[bool, ...] | None
) -> tuple[int | None, ...] | None:
    """Each layer's chunk: those that rotate have one, unless `layer_types` says otherwise.

    Args:
      fields: those of the file.
      layers: `num_hidden_layers`.
      rotated: which layers rotate their queries and keys; None if all do.
    """
    size = fields.unset("attention_chunk_size", 8192)
    chunked = fields.kinds_of_layers(layers, _CHUNKED) or list(rotated or (True,) * layers)
    if size is None or not any(chunked):
        return None
    if size < 1 or size != int(size):
        fields.refuse("attention_chunk_size", size, "give a positive integer, or null")
    return tuple(int(size) if each else None for each in chunked)


def query_fields(fields: Any) -> dict[str, Any]:
    """Fields of a `ModelConfig` for the length of queries.

    Args:
      fields: those of the file.
    """
    grows = fields.take("attn_temperature_tuning", True)
    if not isinstance(grows, int):  # files have true, false and 4
        fields.refuse("attn_temperature_tuning", grows, "give true or false")
    growth = fields.integer("floor_scale", 8192), fields.number("attn_scale", 0.1)
    return {
        "unit_queries_keys": fields.truth("use_qk_norm", True),
        "query_growth": growth if grows else None,
    }
