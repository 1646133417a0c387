"""The properties and tensor names of each `model_type` of a Hugging Face `config.json`.

Sources: `configuration_*.py` and `modeling_*.py` of each family in
https://github.com/huggingface/transformers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from model.catalog_labs import GPT_OSS_ROTARY
from model.mlp import LIMIT, STEEPNESS
from model.weights.huggingface_deepseek import EXPERTS_OF_GLM, EXPERTS_OF_V2, EXPERTS_OF_V3

ANY = object()
"""Stands for every value a field may have."""
# fmt: off
_DESCRIPTIONS = [
    "_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype",
    "initializer_range", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id",
    "sep_token_id", "decoder_start_token_id", "attention_dropout", "router_aux_loss_coef",
    "router_jitter_noise", "output_router_logits", "pretraining_tp", "id2label", "label2id",
    "problem_type", "return_dict", "output_hidden_states", "output_attentions",
    "output_scores", "return_dict_in_generate", "chunk_size_feed_forward",
    "task_specific_params", "cache_implementation", "unsloth_version", "unsloth_fixed",
    "is_llama_config", "transformers.js_config", "tokenizer_class", "prefix",
    "finetuning_task", "torchscript", "use_bfloat16", "tf_legacy_loss",
    "remove_invalid_values", "max_length", "min_length", "do_sample", "temperature", "top_k",
    "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "num_beams",
    "num_beam_groups", "diversity_penalty", "early_stopping", "forced_bos_token_id",
    "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens",
    "exponential_decay_length_penalty", "name_or_path", "num_labels", "_commit_hash",
    "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal",
    "attn_implementation", "_experts_implementation", "experts_implementation",
    "_flash_attn_2_enabled", "resid_pdrop", "embd_pdrop", "gradient_checkpointing",
    "tie_last_hidden_states", "output_past", "pooler_output",
]
# fmt: on
# Fields that do not change inference when they have one of these values; null says nothing.
HARMLESS: Mapping[str, tuple[Any, ...] | object] = {
    **dict.fromkeys(_DESCRIPTIONS, ANY),
    "model_type": ANY,
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "qkv_bias": (False,),
    "use_qk_norm": (False,),
    "use_sliding_window": (False,),
    "per_layer_config": ({},),
    "is_decoder": (False, True),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "use_bidirectional_attention": (False,),
    "use_mrope": (False,),
    "rope_interleaved": (False,),
    "decoder_sparse_step": (1,),
    "mlp_only_layers": ([],),
    "shared_expert_intermediate_size": (0,),
    "_sliding_window_pattern": ANY,  # layer_types says the same
    "sliding_window": (0,),  # in families without windows
}


@dataclasses.dataclass(frozen=True)
class Names:
    """A family's names of the tensors that are named differently among families.

    Attributes:
      attention_norm, mlp_norm: the norms before attention and MLP.
      attention_norm_after, mlp_norm_after: the norms after attention and MLP; empty for none.
      norm_offset: added to stored scales of norms; 1 for Gemma, which stores scale - 1.
      router, experts: the router and the experts of a mixture.
      gate, up, down: the matrices of an MLP or an expert.
      gate_up: gate and up as one matrix, one after the other; empty where they are two.
      query_key_value: queries, keys and values as one matrix; empty where they are three.
      feed_forward: the MLP of a layer without experts.
      shared: the MLP beside experts.
      paired: the two rows of a rotary pair are adjacent in query and key matrices.
      stacked: all experts' matrices are one tensor, as `model.weights.stacked_experts` has it.
      halves: of such a tensor gate is the first half of a dimension and up the second; otherwise
        they alternate.
      delta: how a delta layer's projections are stored, ``joined`` or ``apart``, see
        `model.weights.huggingface_delta`; empty in families without such layers.
    """

    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    attention_norm_after: str = ""
    mlp_norm_after: str = ""
    norm_offset: int = 0
    router: str = "mlp.gate"
    experts: str = "mlp.experts"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    gate_up: str = ""
    query_key_value: str = ""
    feed_forward: str = "mlp"
    shared: str = "mlp.shared_experts"
    paired: bool = False
    stacked: bool = False
    halves: bool = False
    delta: str = ""


_GEMMA_NAMES = Names(
    mlp_norm="pre_feedforward_layernorm",
    attention_norm_after="post_attention_layernorm",
    mlp_norm_after="post_feedforward_layernorm",
    norm_offset=1,
)


@dataclasses.dataclass(frozen=True)
class Family:
    """Properties of a `model_type` that not all families share.

    Attributes:
      names: names of its tensors.
      activation_field: the field with the activation.
      tied: the default of `tie_word_embeddings`.
      epsilon: the default of `rms_norm_eps`.
      base: the default rotary base.
      rotary: the default of `rope_parameters`.
      local_base: the default base of layers with a window; None where all share one.
      local_base_field: the field that may say it.
      rotary_part: the default of `partial_rotary_factor`; None for families that rotate all.
      rotary_kinds: the kinds of rotary scaling.
      original: the default of `original_max_position_embeddings` beside the kind's fields.
      unrotated: the default of `no_rope_layer_interval`; 0 for families that rotate in all layers.
      window: the default of `sliding_window`; None for no windows.
      windows: the layers that have a window where `layer_types` is absent: ``all``; ``switched``,
        all if `use_sliding_window` is true; ``upper``, as ``switched``, from `max_window_layers`
        on; ``unrotated``, as ``switched``, those that rotate nothing; ``pattern``, all but the last
        of each group of `pattern` layers.
      pattern: layers of such a group; the default where a field says it.
      pattern_field: the field that may say it.
      attention_bias: the default of that field; None where no field says if there are biases.
      output_bias: it is also of the output of attention.
      mlp_bias: the field of that name is read.
      experts: the fields that may hold the number of experts; empty for a dense model.
      expert_width: the field with the d_ff of each expert.
      renormalise: whether chosen experts' router weights are divided by their sum; None where a
        field says it.
      settings: fields of `ModelConfig` that the family fixes.
      harmless: for each further field, the values with which it changes nothing.
      topk_method: how a router chooses where the field is absent, of families with experts beside
        a shared one (`model.weights.huggingface_deepseek`). Empty for others.
      expert_defaults: the defaults of those families' other fields of experts.
      latent: attention is latent (`model.weights.huggingface_deepseek`).
      normed_queries: the default of `use_qk_norm`, where that field says if queries and keys have a
        norm; None where it does not.
      scaled: embeddings are multiplied by sqrt(d_model), scores by query_pre_attn_scalar ** -0.5.
      attention_softcap, logit_softcap: the defaults where the fields are absent.
      multipliers: embeddings, scores, what is added to the residual stream, and logits have factors
        that fields say (Granite).
      chunks: experts in some layers, windows and queries are as Llama 4's fields say
        (`model.weights.huggingface_llama4`).
      other_parts: what the names of tensors begin with that are of no language model: left out.
      ignored_in_rotary: fields of `rope_parameters` that change nothing in a text.
      kinds_of_heads: layers with and without a window have heads of different sizes, and much else
        of their own (`model.weights.huggingface_gemma4`).
      quantized: the `quant_method` of a `quantization_config` that is read; empty for none.
    """

    names: Names = Names()
    activation_field: str = "hidden_act"
    tied: bool = False
    epsilon: float = 1e-6
    base: float = 10_000.0
    rotary: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    local_base: float | None = None
    local_base_field: str = ""
    rotary_part: float | None = None
    rotary_kinds: tuple[str, ...] = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
    original: int | None = None
    unrotated: int = 0
    window: int | None = None
    windows: str = ""
    pattern: int = 0
    pattern_field: str = ""
    attention_bias: bool | None = None
    output_bias: bool = True
    mlp_bias: bool = False
    experts: tuple[str, ...] = ()
    expert_width: str = "intermediate_size"
    renormalise: bool | None = True
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    harmless: Mapping[str, tuple[Any, ...] | object] = dataclasses.field(default_factory=dict)
    topk_method: str = ""
    expert_defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    latent: bool = False
    normed_queries: bool | None = None
    scaled: bool = False
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    multipliers: bool = False
    chunks: bool = False
    other_parts: tuple[str, ...] = ()
    ignored_in_rotary: tuple[str, ...] = ()
    kinds_of_heads: bool = False
    quantized: str = ""


_QWEN3 = Family(
    window=4096,
    windows="upper",
    attention_bias=False,
    settings={"query_key_norm": True},
    harmless={"use_qk_norm": (True,)},
)
_GEMMA = Family(
    names=_GEMMA_NAMES,
    activation_field="hidden_activation",
    tied=True,
    window=4096,
    windows="pattern",
    scaled=True,
    attention_bias=False,
    settings={"norm_after": True},
)
# Layers that predict further tokens: left out, as `transformers` does unless asked for them.
_PREDICTS_FURTHER = {"num_nextn_predict_layers": ANY, "num_mtp_layers": ANY}
_GEMMA4 = dataclasses.replace(
    _GEMMA,
    names=dataclasses.replace(_GEMMA_NAMES, norm_offset=0, stacked=True),
    window=512,
    pattern=6,
    scaled=False,
    attention_bias=None,
    kinds_of_heads=True,
    settings={
        "norm_after": True,
        "query_key_norm": True,
        "value_norm": True,
        "block_scale": True,
        "attention_scale": 1.0,
    },
    # Only what an image's tokens see of each other is otherwise.
    harmless={"use_bidirectional_attention": (False, "vision")},
)
_DEEPSEEK_V2 = Family(
    topk_method="greedy",
    expert_defaults=EXPERTS_OF_V2,
    latent=True,
    harmless={
        "auto_map": ANY,
        "ep_size": (1,),
        "moe_layer_freq": (1,),
        "seq_aux": ANY,
        "aux_loss_alpha": ANY,
        "rope_interleave": (True,),
    },
)
_DEEPSEEK_V3 = dataclasses.replace(
    _DEEPSEEK_V2,
    topk_method="noaux_tc",
    expert_defaults=EXPERTS_OF_V3,
    harmless={**_DEEPSEEK_V2.harmless, **_PREDICTS_FURTHER},
)
_LLAMA4 = Family(
    names=Names(
        router="feed_forward.router",
        experts="feed_forward.experts",
        feed_forward="feed_forward",
        shared="feed_forward.shared_expert",
        paired=True,
        stacked=True,
        halves=True,
    ),
    epsilon=1e-5,
    base=500_000.0,
    unrotated=4,
    attention_bias=False,
    settings={"chunked": True},
    harmless={"for_llm_compressor": (False,)},
    chunks=True,
    other_parts=("vision_model.", "multi_modal_projector."),
)
_QWEN3_NEXT = Family(
    names=Names(norm_offset=1, shared="mlp.shared_expert", delta="joined"),
    rotary_part=0.25,
    experts=("num_experts",),
    renormalise=False,
    settings={"query_key_norm": True, "output_gate": True},
    other_parts=("mtp.", "model.visual."),
    harmless={
        "attn_output_gate": (True,),
        "output_gate_type": ("swish",),
        "mamba_ssm_dtype": ("float32",),
        "linear_attention_interval": ANY,  # which transformers does not read
        # Layers that predict further tokens: left out, as transformers does.
        "mtp_num_hidden_layers": ANY,
        "mtp_use_dedicated_embeddings": ANY,
        "num_nextn_predict_layers": ANY,
    },
)
_QWEN3_5_MOE = dataclasses.replace(
    _QWEN3_NEXT,
    names=dataclasses.replace(_QWEN3_NEXT.names, delta="apart"),
    renormalise=True,
    ignored_in_rotary=("mrope_section", "mrope_interleaved"),  # all axes of a text are its tokens
)
_OLMO2 = Family(
    names=Names(
        attention_norm_after="post_attention_layernorm",
        mlp_norm_after="post_feedforward_layernorm",
    ),
    epsilon=1e-5,
    attention_bias=False,
    settings={
        "norm_before": False,
        "norm_after": True,
        "query_key_norm": True,
        "norm_over_heads": True,
    },
)
FAMILIES: Mapping[str, Family] = {
    "llama": Family(attention_bias=False, mlp_bias=True),
    "mistral": Family(window=4096, windows="all"),
    "mixtral": Family(
        names=Names(
            router="block_sparse_moe.gate",
            experts="block_sparse_moe.experts",
            gate="w1",
            up="w3",
            down="w2",
        ),
        epsilon=1e-5,
        base=1e6,
        windows="all",
        experts=("num_local_experts",),
    ),
    "qwen2": Family(
        window=4096,
        windows="upper",
        settings={"attention_bias": True},
        harmless={"attention_bias": (False, True), "qkv_bias": (False, True)},  # always there
    ),
    "qwen3": _QWEN3,
    "qwen3_moe": dataclasses.replace(
        _QWEN3,
        windows="switched",
        experts=("num_experts", "num_local_experts"),
        expert_width="moe_intermediate_size",
        renormalise=None,
    ),
    "qwen3_next": _QWEN3_NEXT,
    "qwen3_5_text": dataclasses.replace(_QWEN3_5_MOE, experts=()),
    "qwen3_5_moe_text": _QWEN3_5_MOE,
    "gemma2": dataclasses.replace(_GEMMA, pattern=2, attention_softcap=50.0, logit_softcap=30.0),
    "gemma3_text": dataclasses.replace(
        _GEMMA,
        base=1e6,
        local_base=10_000.0,
        local_base_field="rope_local_base_freq",
        pattern=6,
        pattern_field="sliding_window_pattern",
        settings={"norm_after": True, "query_key_norm": True},
    ),
    "gemma4_text": _GEMMA4,
    "deepseek_v2": _DEEPSEEK_V2,
    "deepseek_v3": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "olmo2": _OLMO2,
    "olmo3": dataclasses.replace(
        _OLMO2,
        base=500_000.0,
        local_base=500_000.0,
        window=4096,
        windows="pattern",
        pattern=4,
    ),
    "phi3": Family(
        names=Names(query_key_value="qkv_proj", gate_up="gate_up_proj"),
        epsilon=1e-5,
        windows="all",
        rotary_part=1.0,
        rotary_kinds=("default", "longrope", "su"),
        original=4096,
        harmless={
            "auto_map": ANY,  # to files beside it, which transformers has in its own code since
            "full_attn_mod": (1,),
            "interpolate_factor": (1,),
            "lm_head_bias": (False,),
        },
    ),
    "granite": Family(attention_bias=False, mlp_bias=True, multipliers=True),
    "smollm3": Family(
        tied=True,
        base=2e6,
        unrotated=4,
        windows="unrotated",
        attention_bias=False,
        mlp_bias=True,
        harmless={"max_window_layers": ANY},  # which other rules stand in for
    ),
    "glm4": Family(
        names=Names(
            attention_norm_after="post_self_attn_layernorm",
            mlp_norm_after="post_mlp_layernorm",
            gate_up="gate_up_proj",
            paired=True,
        ),
        epsilon=1.5625e-7,
        rotary_part=0.5,
        attention_bias=True,
        output_bias=False,
        settings={"norm_after": True},
    ),
    "llama4_text": _LLAMA4,
    "glm4_moe": Family(
        epsilon=1e-5,
        rotary_part=0.5,
        attention_bias=False,
        output_bias=False,
        normed_queries=False,
        topk_method="noaux_tc",
        expert_defaults=EXPERTS_OF_GLM,
        harmless=_PREDICTS_FURTHER,
    ),
    "gpt_oss": Family(
        names=Names(router="mlp.router", experts="mlp.experts", stacked=True),
        epsilon=1e-5,
        base=150_000.0,
        rotary=GPT_OSS_ROTARY,
        window=128,
        windows="pattern",
        pattern=2,
        experts=("num_local_experts", "num_experts"),
        settings={
            "attention_bias": True,
            "output_bias": True,
            "attention_sinks": True,
            "expert_bias": True,
            "activation": "clipped_silu",
        },
        harmless={
            "attention_bias": (True,),
            "swiglu_alpha": (STEEPNESS,),
            "swiglu_limit": (LIMIT, int(LIMIT)),
            "initial_context_length": ANY,  # rope_parameters say it
            "experts_per_token": ANY,  # num_experts_per_tok is what transformers reads
        },
        quantized="mxfp4",
    ),
}
