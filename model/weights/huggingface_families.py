"""The properties and tensor names of each `model_type` of a Hugging Face `config.json`.

Sources: `configuration_*.py` and `modeling_*.py` of each family in
https://github.com/huggingface/transformers.
"""

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
    "exponential_decay_length_penalty",
]
# fmt: on
# Fields that do not change inference when they have one of these values.
HARMLESS: Mapping[str, tuple[Any, ...] | object] = {
    **dict.fromkeys(_DESCRIPTIONS, ANY),
    "model_type": ANY,
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "qkv_bias": (False,),
    "is_decoder": (False, True),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "use_bidirectional_attention": (False, None),
    "use_mrope": (False,),
    "rope_interleaved": (False,),
    "decoder_sparse_step": (1,),
    "mlp_only_layers": ([], None),
    "shared_expert_intermediate_size": (0, None),
    "_sliding_window_pattern": ANY,  # layer_types says the same
    "sliding_window": (None,),  # in families without windows
    "layer_types": (None,),
    "partial_rotary_factor": (1.0,),
}


@dataclasses.dataclass(frozen=True)
class Names:
    """A family's names of the tensors that are named differently among families.

    Attributes:
      mlp_norm: the norm before the MLP.
      attention_norm_after, mlp_norm_after: the norms after attention and MLP; empty for none.
      norm_offset: added to stored scales of norms; 1 for Gemma, which stores scale - 1.
      router, experts: the router and the experts of a mixture.
      gate, up, down: the matrices of an MLP or an expert.
    """

    mlp_norm: str = "post_attention_layernorm"
    attention_norm_after: str = ""
    mlp_norm_after: str = ""
    norm_offset: int = 0
    router: str = "mlp.gate"
    experts: str = "mlp.experts"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


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
      local_base: the default base of layers with a window; None where all share one.
      window: the default of `sliding_window`; 0 for families that have none.
      windows: the layers that have a window where `layer_types` is absent: ``all``; ``switched``,
        all if `use_sliding_window` is true; ``upper``, as ``switched``, from `max_window_layers`
        on; ``pattern``, all but the last of each group of `pattern` layers.
      pattern: layers of such a group; the default where a field says it.
      experts: the fields that may hold the number of experts; empty for a dense model.
      expert_width: the field with the d_ff of each expert.
      renormalise: whether chosen experts' router weights are divided by their sum; None where a
        field says it.
      settings: fields of `ModelConfig` that the family fixes.
      harmless: for each further field, the values with which it changes nothing.
      topk_method: how a router chooses where the field is absent; with latent attention and
        experts beside a shared one (`model.weights.huggingface_deepseek`). Empty for others.
      scaled: embeddings are multiplied by sqrt(d_model), scores by query_pre_attn_scalar ** -0.5.
      attention_softcap, logit_softcap: the defaults where the fields are absent.
    """

    names: Names = Names()
    activation_field: str = "hidden_act"
    tied: bool = False
    epsilon: float = 1e-6
    base: float = 10_000.0
    local_base: float | None = None
    window: int = 0
    windows: str = ""
    pattern: int = 0
    experts: tuple[str, ...] = ()
    expert_width: str = "intermediate_size"
    renormalise: bool | None = True
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    harmless: Mapping[str, tuple[Any, ...] | object] = dataclasses.field(default_factory=dict)
    topk_method: str = ""
    scaled: bool = False
    attention_softcap: float | None = None
    logit_softcap: float | None = None


_QWEN3 = Family(
    window=4096,
    windows="upper",
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
    settings={"norm_after": True},
)
_DEEPSEEK_V2 = Family(
    topk_method="greedy",
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
    # Layers that predict further tokens: left out, as `transformers` does unless asked for them.
    harmless={**_DEEPSEEK_V2.harmless, "num_nextn_predict_layers": ANY, "num_mtp_layers": ANY},
)
FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
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
    "qwen2": Family(window=4096, windows="upper", settings={"attention_bias": True}),
    "qwen3": _QWEN3,
    "qwen3_moe": dataclasses.replace(
        _QWEN3,
        windows="switched",
        experts=("num_experts", "num_local_experts"),
        expert_width="moe_intermediate_size",
        renormalise=None,
    ),
    "gemma2": dataclasses.replace(_GEMMA, pattern=2, attention_softcap=50.0, logit_softcap=30.0),
    "gemma3_text": dataclasses.replace(
        _GEMMA,
        base=1e6,
        local_base=10_000.0,
        pattern=6,
        settings={"norm_after": True, "query_key_norm": True},
    ),
    "deepseek_v2": _DEEPSEEK_V2,
    "deepseek_v3": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
}
