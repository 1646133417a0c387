"""What is fixed of each `general.architecture` of a GGUF file, so that no key says it.

Sources: defaults of each architecture, from the `load_hparams` of its model in
https://github.com/ggml-org/llama.cpp, and what the `conversion` of that project does to tensors.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Properties of a `general.architecture` that not all architectures share.

    Attributes:
      paired: the two rows of a rotary pair are adjacent in query and key matrices.
      joined_attention: queries, keys and values are rows of one matrix.
      joined_gate: gate and up are rows of one matrix, the gate's first.
      mlp_norm: name of the norm before the MLP.
      delta: layers without attention are gated delta layers, whose strengths and fades are "joined"
        in one tensor or "apart" in two, as `model.weights.gguf_delta` reads them; empty for none.
      latent: attention is latent (DeepSeek), as `model.weights.gguf_latent` reads it.
      kinds_of_heads: layers with and without a window have heads of different sizes, and much else
        of their own (Gemma 4), as `model.weights.gguf_gemma4` reads them.
      gating: the default of `expert_gating_func`, where `model.weights.gguf_experts` reads the
        router and the shared experts; 0 for others.
      chunks: experts in some layers, chunks, and queries are those of Llama 4, as
        `model.weights.gguf_llama4` reads them.
      normed_queries: queries and keys have a norm where the file has its tensors.
      settings: fields of `ModelConfig` that the architecture fixes.
      window: the default sliding window.
      pattern: period of the layers without a window, in a model with windows: the last layer of
        each group of so many sees all tokens; 0 if none does.
      plain_windows: layers with a window have plain positions, of the others' base unless a key
        says another.
      local_base: the default rotary base of the layers with a window; None for that of the others.
      scaled: embeddings are multiplied by sqrt(d_model), scores by head_size ** -0.5 (Gemma)
        if `settings` do not say by what.
      largest: number of layers of the one Gemma whose scores are multiplied by
        (d_model / heads) ** -0.5 instead, which no key says.
      attention_softcap, logit_softcap: the defaults.
      multipliers: keys say factors of embeddings, scores, what is added to the residual stream, and
        logits (Granite).
      unrotated: the last layer of each group of so many rotates nothing; 0 where all rotate.
      scaling: fields of rotary scaling, if there is one, that no key says.
    """

    paired: bool = False
    joined_attention: bool = False
    joined_gate: bool = False
    mlp_norm: str = "ffn_norm"
    delta: str = ""
    latent: bool = False
    kinds_of_heads: bool = False
    gating: int = 0
    chunks: bool = False
    normed_queries: bool = False
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    window: int = 0
    pattern: int = 0
    plain_windows: bool = False
    local_base: float | None = None
    scaled: bool = False
    largest: int = 0
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    multipliers: bool = False
    unrotated: int = 0
    scaling: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_QWEN_DELTA = {"query_key_norm": True, "output_gate": True}
_GEMMA = {"norm_after": True, "activation": "gelu_tanh"}
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(paired=True),  # also Mistral and Mixtral
    "qwen2": Architecture(settings={"attention_bias": True}),
    "qwen3": Architecture(settings={"query_key_norm": True}),
    "qwen3moe": Architecture(settings={"query_key_norm": True}),
    "qwen3next": Architecture(delta="joined", mlp_norm="post_attention_norm", settings=_QWEN_DELTA),
    **dict.fromkeys(
        ("qwen35", "qwen35moe"),
        Architecture(delta="apart", mlp_norm="post_attention_norm", settings=_QWEN_DELTA),
    ),
    "gemma2": Architecture(
        settings=_GEMMA,
        window=4096,
        pattern=2,
        scaled=True,
        largest=46,
        attention_softcap=50.0,
        logit_softcap=30.0,
    ),
    "gemma3": Architecture(
        settings=_GEMMA | {"query_key_norm": True},
        pattern=6,
        local_base=10_000.0,
        scaled=True,
        largest=62,
    ),
    "gemma4": Architecture(
        kinds_of_heads=True,
        settings=_GEMMA
        | {
            "query_key_norm": True,
            "value_norm": True,
            "block_scale": True,
            "attention_scale": 1.0,
        },
        local_base=10_000.0,
        scaled=True,
        logit_softcap=30.0,
    ),
    "olmo2": Architecture(  # also OLMo 3, which has windows
        settings={
            "norm_before": False,
            "norm_after": True,
            "query_key_norm": True,
            "norm_over_heads": True,
        },
        pattern=4,
        plain_windows=True,
    ),
    "phi3": Architecture(joined_attention=True, joined_gate=True),
    "granite": Architecture(paired=True, multipliers=True),
    "smollm3": Architecture(paired=True, unrotated=4),
    "glm4": Architecture(paired=True, joined_gate=True, settings={"norm_after": True}),
    "gpt-oss": Architecture(
        mlp_norm="post_attention_norm",
        settings={
            "attention_bias": True,
            "output_bias": True,
            "attention_sinks": True,
            "expert_bias": True,
            "activation": "clipped_silu",
        },
        window=128,
        pattern=2,
        # llama.cpp rounds the bounds of the stretched dimensions, unlike what the model has.
        scaling={"truncate": False},
    ),
    "deepseek2": Architecture(latent=True, gating=1),  # DeepSeek V2, V3 and R1, and Kimi K2
    "glm4moe": Architecture(mlp_norm="post_attention_norm", gating=2, normed_queries=True),
    "llama4": Architecture(paired=True, chunks=True),
}
