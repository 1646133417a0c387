"""The models of tests/families as GGUF files, written as llama.cpp's converter would."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter

from model.rotary_scaling import scaling
from model.weights.safetensors_files import SafetensorsFiles

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "olmo2": "olmo2",
    "granite": "granite",
    "smollm3": "smollm3",
}
_PAIRED = ("llama", "granite", "smollm3")
_INTEGERS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "vocab_size": "vocab_size",
    "sliding_window": "attention.sliding_window",
    "num_local_experts": "expert_count",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}
_FLOATS = {
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "embedding_multiplier": "embedding_scale",
    "attention_multiplier": "attention.scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
_NAMES = {
    "model.embed_tokens": "token_embd",
    "lm_head": "output",
    "model.norm": "output_norm",
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.": "attn_",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.gate.": "ffn_gate_inp.",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.": "ffn_",
    "_proj": "",
}
_EXPERT = {"w1": "gate", "w2": "down", "w3": "up"}


def write_gguf(folder: Path, path: Path) -> None:
    """Writes the model of a Hugging Face folder as a GGUF file in float32, without tokenizer."""
    config = json.loads((folder / "config.json").read_text())
    architecture = ARCHITECTURES[config["model_type"]]
    writer = GGUFWriter(path, architecture)
    for key, name in _INTEGERS.items():
        if config.get(key) is not None:
            writer.add_uint32(f"{architecture}.{name}", config[key])
    for key, name in _FLOATS.items():
        if config.get(key) is not None:
            writer.add_float32(f"{architecture}.{name}", config[key])
    tensors = _tensors(folder, config, architecture)
    head_size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    for name in ("key", "value"):
        writer.add_uint32(f"{architecture}.attention.{name}_length", head_size)
    rotary = config["rope_parameters"]
    rotary = rotary.get("full_attention", rotary)
    writer.add_float32(f"{architecture}.rope.freq_base", rotary["rope_theta"])
    if rotary["rope_type"] == "linear":
        writer.add_string(f"{architecture}.rope.scaling.type", "linear")
        writer.add_float32(f"{architecture}.rope.scaling.factor", rotary["factor"])
    if rotary["rope_type"] == "llama3":
        given = {key: value for key, value in rotary.items() if key != "rope_theta"}
        found = scaling(given, rotary["rope_theta"], head_size, config["max_position_embeddings"])
        tensors["rope_freqs.weight"] = np.array(found.factors, np.float32)
    for name, values in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(folder: Path, config: dict[str, Any], architecture: str) -> dict[str, np.ndarray]:
    files = SafetensorsFiles(folder)
    found, experts = {}, {}
    for name in files.tensors:
        values = files.read(name)
        if "gemma" in architecture and name.endswith("norm.weight"):
            values = values + np.float32(1)
        if architecture in _PAIRED and name.endswith(("q_proj.weight", "k_proj.weight")):
            which = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
            halves = values.reshape(config[which], 2, -1, values.shape[-1])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        before, _, rest = name.partition(".experts.")
        if rest:  # model.layers.0.mlp.experts.3.gate_proj.weight
            number, matrix, _ = rest.split(".")
            matrix = _EXPERT.get(matrix, matrix.removesuffix("_proj"))
            key = f"blk.{before.split('.')[2]}.ffn_{matrix}_exps.weight"
            experts.setdefault(key, {})[int(number)] = values
        else:
            found[_gguf_name(name, architecture)] = values
    stacked = {key: np.stack([each[n] for n in sorted(each)]) for key, each in experts.items()}
    return found | stacked


def _gguf_name(name: str, architecture: str) -> str:
    after = "gemma" in architecture or architecture == "olmo2"
    norm = "post_attention_norm" if after else "ffn_norm"
    for theirs, ours in (_NAMES | {"post_attention_layernorm": norm}).items():
        name = name.replace(theirs, ours)
    return name
