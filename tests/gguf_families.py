"""The models of tests/families as GGUF files, written as llama.cpp's converter would."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from model.rotary_scaling import scaling
from model.weights.safetensors_files import SafetensorsFiles
from tests import gguf_delta, gguf_gemma4

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gemma4": "gemma4",
    "gemma4_text": "gemma4",
    "olmo2": "olmo2",
    "olmo3": "olmo2",
    "phi3": "phi3",
    "granite": "granite",
    "smollm3": "smollm3",
    "glm4": "glm4",
    "gpt_oss": "gpt-oss",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "kimi_k2": "deepseek2",
    "glm4_moe": "glm4moe",
    "llama4_text": "llama4",
    **gguf_delta.ARCHITECTURES,
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
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.sinks": "attn_sinks.weight",
    "self_attn.": "attn_",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.gate.": "ffn_gate_inp.",
    "mlp.router.": "ffn_gate_inp.",
    "feed_forward.router": "ffn_gate_inp",
    "feed_forward.": "ffn_",
    "mlp.gate_up_proj": "ffn_up",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "post_self_attn_layernorm": "post_attention_norm",
    "post_mlp_layernorm": "post_ffw_norm",
    "mlp.": "ffn_",
    "_proj": "",
}
_SHARED = re.compile(r"(?:mlp|feed_forward)\.shared_experts?\.(\w+)_proj")
_OTHER_PARTS = ("vision_model.", "multi_modal_projector.")
_EXPERT = {"w1": "gate", "w2": "down", "w3": "up"}
_YARN = {
    "attention_factor": "yarn_attn_factor",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}


class _Packed(NamedTuple):
    """A tensor in MXFP4, as a file holds it."""

    blocks: np.ndarray


class _Model:
    """A Hugging Face folder as a file of its architecture."""

    def __init__(self, folder: Path):
        config = json.loads((folder / "config.json").read_text())
        self.config: dict[str, Any] = config.get("text_config", config)
        self.files = SafetensorsFiles(folder)
        self.architecture = ARCHITECTURES[self.config["model_type"]]
        self.delta = "linear_num_key_heads" in self.config
        heads, width = self.config["num_attention_heads"], self.config["hidden_size"]
        self.head_size = self.config.get("head_dim") or width // heads
        every = self.config["rope_parameters"]
        self.rotary = every.get("full_attention", every)

    def keys(self) -> Iterator[tuple[str, Any]]:
        """The metadata of the architecture, without its name before them."""
        c = self.config
        for names in (_INTEGERS, _FLOATS):
            yield from ((name, c[key]) for key, name in names.items() if c.get(key) is not None)
        part = self.rotary.get("partial_rotary_factor", 1.0)
        if self.architecture == "deepseek2":
            yield from self.latent_keys()
        else:
            yield from ((f"attention.{n}_length", self.head_size) for n in ("key", "value"))
            yield "rope.dimension_count", int(part * self.head_size)
        if c["model_type"] == "olmo3":
            windowed = [kind == "sliding_attention" for kind in c["layer_types"]]
            yield "attention.sliding_window_pattern", windowed
            yield "rope.freq_base_swa", c["rope_parameters"]["sliding_attention"]["rope_theta"]
        if self.architecture == "gpt-oss":
            yield "expert_feed_forward_length", c["intermediate_size"]
        if self.architecture == "llama4":
            yield "feed_forward_length", c["intermediate_size_mlp"]
            yield "expert_feed_forward_length", c["intermediate_size"]
            yield "interleave_moe_layer_step", c["interleave_moe_layer_step"]
        if "n_routed_experts" in c:
            yield from self.routed_keys()
        if self.architecture == "glm4moe":
            further = c["num_nextn_predict_layers"]
            yield "nextn_predict_layers", further
            yield "block_count", c["num_hidden_layers"] + further
        if self.delta:
            yield from gguf_delta.keys(c)
        yield "rope.freq_base", self.rotary["rope_theta"]
        yield from self.scaling_keys()
        if self.architecture == "gemma4":
            yield from gguf_gemma4.keys(c)

    def latent_keys(self) -> Iterator[tuple[str, Any]]:
        c = self.config
        rank, rotary = c["kv_lora_rank"], c["qk_rope_head_dim"]
        yield "attention.head_count_kv", 1
        yield "attention.kv_lora_rank", rank
        yield "attention.key_length", rank + rotary
        yield "attention.value_length", rank
        yield "attention.key_length_mla", c["qk_nope_head_dim"] + rotary
        yield "attention.value_length_mla", c["v_head_dim"]
        yield "rope.dimension_count", rotary
        if c["q_lora_rank"]:
            yield "attention.q_lora_rank", c["q_lora_rank"]

    def routed_keys(self) -> Iterator[tuple[str, Any]]:
        c = self.config
        yield "leading_dense_block_count", c["first_k_dense_replace"]
        yield "expert_count", c["n_routed_experts"]
        yield "expert_shared_count", c["n_shared_experts"]
        yield "expert_weights_scale", c["routed_scaling_factor"]
        yield "expert_group_count", c["n_group"] or 1
        yield "expert_group_used_count", c["topk_group"] or 1
        yield "expert_gating_func", 1 if c["model_type"] == "deepseek_v2" else 2
        if c["norm_topk_prob"]:
            yield "expert_weights_norm", True

    def scaling_keys(self) -> Iterator[tuple[str, Any]]:
        rotary, before = self.rotary, "rope.scaling."
        kind = rotary["rope_type"]
        if kind in ("linear", "yarn", "longrope"):
            yield f"{before}type", kind
        if kind in ("linear", "yarn"):
            yield f"{before}factor", rotary["factor"]
        if kind in ("yarn", "longrope"):
            original = rotary["original_max_position_embeddings"]
            yield f"{before}original_context_length", original
        if kind == "yarn":
            yield from ((before + name, rotary[k]) for k, name in _YARN.items() if k in rotary)
            if (scale := rotary.get("mscale_all_dim")) is not None:
                yield f"{before}yarn_log_multiplier", 0.1 * scale
        if kind == "longrope":
            factor = self.config["max_position_embeddings"] / original
            yield f"{before}attn_factor", math.sqrt(1 + math.log(factor) / math.log(original))

    def tensors(self) -> Iterator[tuple[str, np.ndarray | _Packed]]:
        """Each tensor by its name in the file."""
        if self.architecture == "gemma4":
            yield from gguf_gemma4.tensors(self.files, self.config)
            return
        experts: dict[str, dict[int, np.ndarray]] = {}
        for name, values in self.stored():
            before, _, rest = name.partition(".experts.")
            layer = before.split(".")[2] if rest else ""
            if not rest:
                yield from self.plain(name, values)
            elif rest[0].isdecimal():  # model.layers.0.mlp.experts.3.gate_proj.weight
                number, matrix, _ = rest.split(".")
                matrix = _EXPERT.get(matrix, matrix.removesuffix("_proj"))
                key = f"blk.{layer}.ffn_{matrix}_exps.weight"
                experts.setdefault(key, {})[int(number)] = values
            elif not rest.endswith("_scales"):  # model.layers.0.mlp.experts.gate_up_proj
                yield from self.stacked(f"blk.{layer}.ffn_%s_exps.%s", name, rest, values)
        for key, each in experts.items():
            yield key, np.stack([each[number] for number in sorted(each)])
        yield from self.divisors()

    def further(self, tensors: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
        """Tensors of layers that predict further tokens, of which transformers keeps none."""
        c, last = self.config, self.config["num_hidden_layers"] - 1
        for number in range(1, 1 + c["num_nextn_predict_layers"]):
            before = f"blk.{last + number}."
            for name, values in tensors.items():
                if name.startswith(f"blk.{last}."):
                    yield name.replace(f"blk.{last}.", before), values
            width = c["hidden_size"]
            yield f"{before}nextn.eh_proj.weight", np.ones((width, 2 * width), np.float32)
            for norm in ("enorm", "hnorm", "shared_head_norm"):
                yield f"{before}nextn.{norm}.weight", np.ones(width, np.float32)

    def stored(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each tensor of the text by its name in the folder, or in files of delta layers."""
        for stored in self.files.tensors:
            if stored.startswith(_OTHER_PARTS):
                continue
            values, name = self.files.read(stored), stored.removeprefix("language_model.")
            if self.delta:
                yield from gguf_delta.tensors(self.config, name, values)
            else:
                yield name, values

    def plain(self, name: str, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        c, architecture = self.config, self.architecture
        if "gemma" in architecture and name.endswith("norm.weight"):
            values = values + np.float32(1)
        if architecture in _PAIRED and ("q_proj." in name or "k_proj." in name):
            which = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
            halves = values.reshape(c[which], 2, -1, *values.shape[1:])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        if "kv_b_proj" not in name:
            yield _gguf_name(name, architecture), values
            return
        heads = values.reshape(c["num_attention_heads"], -1, values.shape[-1])
        keys, content = name.replace("kv_b_proj", "k_b_proj"), c["qk_nope_head_dim"]
        yield _gguf_name(keys, architecture), heads[:, :content].swapaxes(1, 2)
        yield _gguf_name(keys.replace("k_b", "v_b"), architecture), heads[:, content:]

    def stacked(
        self, template: str, name: str, rest: str, values: np.ndarray
    ) -> Iterator[tuple[str, np.ndarray | _Packed]]:
        """Experts of gpt-oss, of which gate and up alternate, and of Llama 4, where they do not."""
        matrix, kind = rest.partition("_proj")[::2]
        parts = {"gate": slice(0, None, 2), "up": slice(1, None, 2)}
        if self.architecture == "llama4":
            width = self.config["intermediate_size"]
            parts = {"gate": slice(width), "up": slice(width, None)}
        parts = parts if matrix == "gate_up" else {"down": slice(None)}
        scales = self.files.read(name.replace("_blocks", "_scales")) if kind == "_blocks" else None
        for part, rows in parts.items():
            if kind == "_bias":
                yield template % (part, "bias"), values[:, rows]
            elif scales is None:
                yield template % (part, "weight"), values.swapaxes(1, 2)[:, rows]
            else:
                yield template % (part, "weight"), _packed(values[:, rows], scales[:, rows])

    def divisors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Tensors of rotary divisors."""
        c, kind = self.config, self.rotary["rope_type"]
        if kind == "longrope":
            for which in ("short", "long"):
                values = np.array(self.rotary[f"{which}_factor"], np.float32)
                yield f"rope_factors_{which}.weight", values
        if kind == "llama3":
            base = self.rotary["rope_theta"]
            given = {key: value for key, value in self.rotary.items() if key != "rope_theta"}
            found = scaling(given, base, self.head_size, c["max_position_embeddings"])
            yield "rope_freqs.weight", np.array(found.factors, np.float32)


def _packed(blocks: np.ndarray, scales: np.ndarray) -> _Packed:
    """MXFP4 of a folder, neighbours in a byte, as blocks: a scale, and halves of 32 values."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
    halves = codes[..., :16] | codes[..., 16:] << 4
    whole = np.concatenate([scales[..., None], halves], axis=-1)
    return _Packed(whole.reshape(*whole.shape[:2], -1))


def write_gguf(folder: Path, path: Path, quantization: str = "F32") -> None:
    """Writes the model of a Hugging Face folder as a GGUF file, plain tensors in float32.

    Args:
      folder: the model.
      path: the file to write, without tokenizer.
      quantization: type of the matrices whose rows are whole blocks of it.
    """
    model = _Model(folder)
    writer = GGUFWriter(path, model.architecture)
    for key, value in dict(model.keys()).items():
        _add(writer, f"{model.architecture}.{key}", value)
    tensors = dict(model.tensors())
    if model.architecture == "glm4moe":
        tensors |= dict(model.further(tensors))
    for name, values in tensors.items():
        if isinstance(values, _Packed):
            writer.add_tensor(name, values.blocks, raw_dtype=GGMLQuantizationType.MXFP4)
        elif quantization != "F32" and values.ndim > 1 and values.shape[-1] % 32 == 0:
            kind = GGMLQuantizationType[quantization]
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif key.rpartition(".")[2] in _ALWAYS_FLOATS or isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


_ALWAYS_FLOATS = {*(name.rpartition(".")[2] for name in _FLOATS.values()), "freq_base", "factor"}


def _gguf_name(name: str, architecture: str) -> str:
    own = ("olmo2", "gpt-oss", "glm4moe", *gguf_delta.ARCHITECTURES.values())
    after = "gemma" in architecture or architecture in own
    norm = "post_attention_norm" if after else "ffn_norm"
    name = _SHARED.sub(r"ffn_\1_shexp", name)
    for theirs, ours in (_NAMES | {"post_attention_layernorm": norm}).items():
        name = name.replace(theirs, ours)
    return name
