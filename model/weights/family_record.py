"""What a `model_type` of Hugging Face has of its own: fields, and names of tensors."""

import dataclasses
from collections.abc import Mapping
from typing import Any

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
