"""Qwen3-Next and Qwen3.5 of tests/families as llama.cpp's converter would write them."""

from collections.abc import Iterator
from typing import Any

import numpy as np

ARCHITECTURES = {
    "qwen3_next": "qwen3next",
    "qwen3_5_text": "qwen35",
    "qwen3_5_moe_text": "qwen35moe",
}
_SECTIONS = [11, 11, 10]  # which the converter writes where a folder has none
_RENAMED = {
    "in_proj_qkv.weight": "attn_qkv.weight",
    "in_proj_z.weight": "attn_gate.weight",
    "in_proj_b.weight": "ssm_beta.weight",
    "in_proj_a.weight": "ssm_alpha.weight",
    "in_proj_ba.weight": "ssm_ba.weight",
    "conv1d.weight": "ssm_conv1d.weight",
    "A_log": "ssm_a",
    "dt_bias": "ssm_dt.bias",
    "norm.weight": "ssm_norm.weight",
    "out_proj.weight": "ssm_out.weight",
}


def keys(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The metadata that gated delta layers need, without the name of the architecture."""
    values, further = config["linear_num_value_heads"], config.get("mtp_num_hidden_layers", 0)
    yield "ssm.conv_kernel", config["linear_conv_kernel_dim"]
    yield "ssm.state_size", config["linear_key_head_dim"]
    yield "ssm.group_count", config["linear_num_key_heads"]
    yield "ssm.time_step_rank", values
    yield "ssm.inner_size", values * config["linear_value_head_dim"]
    yield "full_attention_interval", config["layer_types"].index("full_attention") + 1
    if "shared_expert_intermediate_size" in config:
        yield "expert_shared_feed_forward_length", config["shared_expert_intermediate_size"]
    if config["model_type"] != "qwen3_next":
        sections = config["rope_parameters"].get("mrope_section", _SECTIONS)
        yield "rope.dimension_sections", [*sections, 0]
    if further:
        yield "nextn_predict_layers", further
        yield "block_count", config["num_hidden_layers"] + further


def tensors(
    config: dict[str, Any], name: str, stored: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """A tensor of a folder, of delta layers as in the file, of others by a name like a Qwen3-MoE's.

    Those for images are left out.
    """
    if "visual." in name:
        return
    if name == "mtp.norm.weight":
        yield f"blk.{config['num_hidden_layers']}.nextn.shared_head_norm.weight", stored + 1
        return
    name = name.replace("language_model.", "")
    before, inside, part = name.partition("linear_attn.")
    if inside:
        layer = before.removeprefix("model.layers.")
        for ours, array in _delta(config, part, stored):
            yield f"blk.{layer}{ours}", array
    elif "experts.gate_up_proj" in name or "experts.down_proj" in name:
        before, _, joined = name.removesuffix("_proj").rpartition(".")
        matrices = joined.split("_")
        for matrix, part in zip(matrices, np.split(stored, len(matrices), axis=1), strict=True):
            for number, each in enumerate(part):
                yield f"{before}.{number}.{matrix}_proj.weight", each
    elif "shared_expert_gate" in name:
        yield f"{before.partition('mlp.')[0]}ffn_gate_inp_shexp.weight", stored
    else:
        shared = name.replace("shared_expert.", "shared_experts.")
        yield shared, stored + np.float32(1) if name.endswith("norm.weight") else stored


def _delta(
    config: dict[str, Any], part: str, stored: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    each, size = values // keys, config["linear_value_head_dim"]
    queries = keys * config["linear_key_head_dim"]
    if part == "in_proj_qkvz.weight":  # head by head, of a key's query, key, values and gates
        heads = stored.reshape(keys, -1, stored.shape[1])
        ends = np.cumsum([config["linear_key_head_dim"]] * 2 + [each * size])
        *convolved, gates = (
            one.reshape(-1, stored.shape[1]) for one in np.split(heads, ends, axis=1)
        )
        yield "attn_qkv.weight", np.concatenate(convolved)
        yield "attn_gate.weight", gates
        return
    if part == "conv1d.weight":
        stored = stored.squeeze(1)
    if part == "A_log":
        stored = -np.exp(stored)
    if config["model_type"] != "qwen3_next" and part != "norm.weight":
        # Value heads go across key heads: of each its first, then of each its second.
        if part == "out_proj.weight":
            heads = stored.reshape(-1, keys, each, size)
            stored = heads.swapaxes(1, 2).reshape(stored.shape)
        else:
            first = 2 * queries if part in ("in_proj_qkv.weight", "conv1d.weight") else 0
            rest = stored[first:]
            across = rest.reshape(keys, each, -1, *rest.shape[1:]).swapaxes(0, 1)
            stored = np.concatenate([stored[:first], across.reshape(rest.shape)])
    yield _RENAMED[part], stored
