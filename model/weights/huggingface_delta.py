"""Qwen3-Next and Qwen3.5: fields of their `config.json` and names of their tensors.

Sources: `configuration_qwen3_next.py`, `configuration_qwen3_5*.py` and the `modeling_*.py` beside
them, of https://github.com/huggingface/transformers. Released folders of Qwen3.5 hold a model of
images and text, whose text model is read (`model.weights.text_part`).
"""

from typing import Any

from model.config import ModelConfig
from model.delta_sizes import DeltaSizes
from model.weights.assembled import Assembled, Piece
from model.weights.chosen_rows import ChosenRows

_FULL = {"full_attention": True, "linear_attention": False}


def delta_fields(fields: Any, layers: int) -> dict[str, Any]:
    """Fields of a `ModelConfig` for gated delta layers.

    Args:
      fields: those of the file, as `model.weights.huggingface_config` reads them.
      layers: `num_hidden_layers`.
    """
    full = fields.kinds_of_layers(layers, _FULL)
    full = fields.last_of_groups("full_attention_interval", 4, layers, full)
    keys = fields.integer("linear_num_key_heads", 16)
    values = fields.integer("linear_num_value_heads", 32)
    if not keys or values % keys:
        fields.refuse("linear_num_value_heads", values, f"give a multiple of {keys} key heads")
    sizes = DeltaSizes(
        key_heads=keys,
        values_per_key=values // keys,
        key_size=fields.integer("linear_key_head_dim", 128),
        value_size=fields.integer("linear_value_head_dim", 128),
        taps=fields.integer("linear_conv_kernel_dim", 4),
    )
    if all(full):
        return {}
    return {"delta": sizes, "delta_layers": tuple(not each for each in full)}


def expert_fields(fields: Any, renormalises: bool) -> dict[str, Any]:
    """Fields of a `ModelConfig` for experts beside a shared one that has a gate.

    Args:
      fields: those of the file.
      renormalises: whether chosen experts' shares add up to one whatever `norm_topk_prob` says.
    """
    fields.take("intermediate_size", None)  # of layers without experts, of which there are none
    given = fields.truth("norm_topk_prob", True)
    return {
        "d_ff": fields.integer("moe_intermediate_size", 512),
        "experts": fields.integer("num_experts"),
        "experts_per_token": fields.integer("num_experts_per_tok"),
        "renormalise_experts": given or renormalises,
        "shared_d_ff": fields.integer("shared_expert_intermediate_size", 512),
        "shared_gate": True,
    }


def layer_arrays(arrays: Any, config: ModelConfig, prefix: str, joined: bool) -> dict[str, Any]:
    """Arrays of a delta layer by their path within the layer.

    Args:
      arrays: makes one of a tensor's name, its stored shape and its shape in the model, as
        `model.weights.huggingface` does.
      config: the model.
      prefix: of the names of the layer's tensors.
      joined: each key head's query, key, values and gates are one part of one tensor (Qwen3-Next);
        else all heads' are one after the other (Qwen3.5).
    """
    sizes, D, files = config.delta, config.d_model, arrays.files
    N, M, i, o = sizes.key_heads, sizes.values_per_key, sizes.key_size, sizes.value_size
    width = sizes.projected
    convolved = ((0, i), (i, i), (2 * i, M * o))  # where in a key head they begin, and how many

    def one_after_the_other(name: str, last: int, stored: tuple[int, ...]) -> tuple[Piece, ...]:
        starts = (0, N * i * last, 2 * N * i * last)
        return tuple(
            Piece(name, stored, (N, size, last), (0, at, 0), first)
            for (at, size), first in zip(convolved, starts, strict=True)
        )

    if joined:
        made = arrays.one(f"{prefix}in_proj_qkvz", (N * width, D), (N, width, D))
        gates = arrays.one(f"{prefix}in_proj_ba", (2 * N * M, D), (N, 2, M, D))
    else:
        name, rows = f"{prefix}in_proj_qkv.weight", N * sizes.convolved
        gate = Piece(f"{prefix}in_proj_z.weight", (N * M * o, D), (N, M * o, D),
                     (0, sizes.convolved, 0))  # fmt: skip
        pieces = (*one_after_the_other(name, D, (rows, D)), gate)
        made = Assembled(files, (N, width, D), pieces)
        pieces = tuple(
            Piece(f"{prefix}in_proj_{letter}.weight", (N * M, D), (N, 1, M, D), (0, at, 0, 0))
            for at, letter in enumerate("ba")
        )
        gates = Assembled(files, (N, 2, M, D), pieces)
    taps = one_after_the_other(
        f"{prefix}conv1d.weight", sizes.taps, (N * sizes.convolved, 1, sizes.taps)
    )
    return {
        "attention.query_key_value": made,
        "attention.strength_fade": gates,
        "attention.taps": Assembled(files, (N, sizes.convolved, sizes.taps), taps),
        "attention.rates": arrays.one(f"{prefix}A_log", (N * M,), (N, M), kind=""),
        "attention.rates_bias": arrays.one(f"{prefix}dt_bias", (N * M,), (N, M), kind=""),
        "attention.norm.scale": arrays.one(f"{prefix}norm", (o,)),  # whole, unlike other norms
        "attention.output": arrays.one(f"{prefix}out_proj", (D, N * M * o), (D, N, M, o)),
    }


def gated_queries(arrays: Any, config: ModelConfig, prefix: str) -> dict[str, Any]:
    """Queries and the gates of what they find, which are one tensor, head by head."""
    K, G, h, D = config.kv_heads, config.group, config.head_size, config.d_model
    both = arrays.one(prefix + "q_proj", (K * G * 2 * h, D), (K, G, 2 * h, D))
    return {
        "attention.query": ChosenRows(both, 2, tuple(range(h))),
        "attention.gate": ChosenRows(both, 2, tuple(range(h, 2 * h))),
    }


def joined_experts(arrays: Any, config: ModelConfig, prefix: str) -> dict[str, Any] | None:
    """Experts whose matrices are one tensor for all, as in Qwen3.5's own files; None if not so."""
    name = f"{prefix}mlp.experts.gate_up_proj"
    if name not in arrays.files.tensors:
        return None
    D, F, E = config.d_model, config.d_ff, config.experts
    return {
        "mlp.gate_up": arrays.one(name, (E, 2 * F, D), (E, 2, F, D), kind=""),
        "mlp.down": arrays.one(f"{prefix}mlp.experts.down_proj", (E, D, F), kind=""),
    }
