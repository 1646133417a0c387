"""The properties and tensor names of each `model_type` of a Hugging Face `config.json`.

Sources: `configuration_*.py` and `modeling_*.py` of each family in
https://github.com/huggingface/transformers.
"""

import dataclasses
from collections.abc import Mapping

from model.catalog_labs import GPT_OSS_ROTARY
from model.mlp import LIMIT, STEEPNESS
from model.weights.family_record import ANY, Family, Names
from model.weights.huggingface_deepseek import EXPERTS_OF_GLM, EXPERTS_OF_V2, EXPERTS_OF_V3

_GEMMA_NAMES = Names(
    mlp_norm="pre_feedforward_layernorm",
    attention_norm_after="post_attention_layernorm",
    mlp_norm_after="post_feedforward_layernorm",
    norm_offset=1,
)
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
