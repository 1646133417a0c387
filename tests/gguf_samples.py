"""Tiny GGUF files with random weights, written as llama.cpp's converter would."""

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, TokenType
from gguf.quants import dequantize, quantize

SIZES = {
    "d_model": 32,
    "layers": 2,
    "query_heads": 4,
    "kv_heads": 2,
    "head_size": 16,
    "d_ff": 64,
    "max_context": 128,
    "vocabulary": 288,
}
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_MERGES = (
    "Ġ t,h e,Ġ a,i n,r e,o n,Ġt he,e r,Ġ s,a t,Ġ w,o u,Ġ o,e n,Ġ c,i t,i s,o r,a n,e s,"
    "in g,Ġa n,Ġan d,e d,Ġo f,l l,Ġt o,Ġ b"
)


def byte_characters() -> list[str]:
    """GPT-2's printable character for each byte, in the order of the bytes."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = iter(range(256, 512))
    return [chr(byte) if byte in kept else chr(next(moved)) for byte in range(256)]


def byte_tokenizer(vocabulary: int = 288) -> dict[str, Any]:
    """Metadata of a byte-level tokenizer: 3 control tokens, 256 bytes, a few merges, padding."""
    merges = _MERGES.split(",")
    tokens = _CONTROL + byte_characters() + [merge.replace(" ", "") for merge in merges]
    types = [TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(tokens) - 3)
    padding = vocabulary - len(tokens)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens + [f"[PAD{n}]" for n in range(padding)],
        "tokenizer.ggml.token_type": list(map(int, types + [TokenType.UNUSED] * padding)),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def write_tiny_gguf(
    path: Path,
    *,
    tied: bool = True,
    quantization: str = "F32",
    seed: int = 0,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray | None] | None = None,
    tensors_per_part: int = 0,
    empty_first_part: bool = False,
    **sizes: int,
) -> dict[str, np.ndarray]:
    """Writes a Llama model with random weights and a byte-level tokenizer.

    Args:
      path: the file to write.
      tied: leave the unembedding out.
      quantization: type of the matrices, such as "F32", "F16", "Q8_0" or "Q4_1".
      seed: of the weights.
      metadata: keys to add or replace; None drops one.
      tensors: float32 tensors to add or replace; None drops one.
      tensors_per_part: writes several files, `NAME-00001-of-00003.gguf` and so on, for NAME.gguf.
      empty_first_part: the first of them has no tensors.
      **sizes: other than `SIZES`.

    Returns:
      The weights as the file holds them, after quantization, by their Hugging Face names and in
      Hugging Face order.
    """
    sizes = SIZES | sizes
    keys = _metadata(sizes) | (metadata or {})
    writer = GGUFWriter(
        path,
        keys.pop("general.architecture", "llama"),
        split_max_tensors=tensors_per_part,
        small_first_shard=empty_first_part,
    )
    for key, value in keys.items():
        if value is not None:
            writer.add_key_value(key, value, _value_type(value))
    kind = GGMLQuantizationType[quantization]
    weights, stored = {}, {}
    for name, shape in _shapes(sizes, tied).items():
        values = _random(np.random.default_rng([seed, len(weights)]), shape)
        weights[name] = values
        if len(shape) == 2:
            weights[name] = dequantize(quantize(values, kind), kind).reshape(shape)
            values = quantize(_permuted(name, values, sizes), kind)
        stored[_gguf_name(name)] = values, kind if len(shape) == 2 else None
    for name, values in (tensors or {}).items():
        stored[name] = values, None
    for name, (values, raw_type) in stored.items():
        if values is not None:
            writer.add_tensor(name, values, raw_dtype=raw_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def _metadata(sizes: dict[str, int]) -> dict[str, Any]:
    return {
        "general.name": "tiny",
        "llama.block_count": sizes["layers"],
        "llama.context_length": sizes["max_context"],
        "llama.embedding_length": sizes["d_model"],
        "llama.feed_forward_length": sizes["d_ff"],
        "llama.attention.head_count": sizes["query_heads"],
        "llama.attention.head_count_kv": sizes["kv_heads"],
        "llama.attention.key_length": sizes["head_size"],
        "llama.attention.value_length": sizes["head_size"],
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": sizes["head_size"],
        "llama.rope.freq_base": 10_000.0,
        "llama.vocab_size": sizes["vocabulary"],
    } | byte_tokenizer(sizes["vocabulary"])


def _value_type(value: Any) -> GGUFValueType:
    kind = GGUFValueType.get_type(value)
    return GGUFValueType.UINT32 if kind is GGUFValueType.INT32 and value >= 0 else kind


def _shapes(sizes: dict[str, int], tied: bool) -> dict[str, tuple[int, ...]]:
    D, F, V = sizes["d_model"], sizes["d_ff"], sizes["vocabulary"]
    queries, keys = (sizes[heads] * sizes["head_size"] for heads in ("query_heads", "kv_heads"))
    shapes = {"model.embed_tokens.weight": (V, D)}
    for layer in range(sizes["layers"]):
        before = f"model.layers.{layer}."
        shapes |= {
            before + "input_layernorm.weight": (D,),
            before + "self_attn.q_proj.weight": (queries, D),
            before + "self_attn.k_proj.weight": (keys, D),
            before + "self_attn.v_proj.weight": (keys, D),
            before + "self_attn.o_proj.weight": (D, queries),
            before + "post_attention_layernorm.weight": (D,),
            before + "mlp.gate_proj.weight": (F, D),
            before + "mlp.up_proj.weight": (F, D),
            before + "mlp.down_proj.weight": (D, F),
        }
    shapes["model.norm.weight"] = (D,)
    return shapes if tied else shapes | {"lm_head.weight": (V, D)}


def _random(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    values = random.standard_normal(shape, np.float32)
    return 1 + values / 10 if len(shape) == 1 else values / np.float32(np.sqrt(shape[-1]))


def _permuted(name: str, values: np.ndarray, sizes: dict[str, int]) -> np.ndarray:
    """Query and key rows in the order of the file: `LlamaModel.permute` of the converter."""
    heads = {"q_proj": sizes["query_heads"], "k_proj": sizes["kv_heads"]}.get(name.split(".")[-2])
    if heads is None:
        return values
    halves = values.reshape(heads, 2, -1, values.shape[-1])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _gguf_name(name: str) -> str:
    for theirs, ours in {
        "model.embed_tokens": "token_embd",
        "lm_head": "output",
        "model.norm": "output_norm",
        "model.layers.": "blk.",
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.": "ffn_",
        "_proj": "",
    }.items():
        name = name.replace(theirs, ours)
    return name
