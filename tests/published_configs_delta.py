"""`config.json` of released Qwen3-Next and Qwen3.5 models as published, by their name here."""

_DELTA = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 262144,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-06,
    "use_cache": True,
}
_TEXT = _DELTA | {
    "attn_output_gate": True,
    "bos_token_id": 248044,
    "dtype": "bfloat16",
    "eos_token_id": 248044,
    "mamba_ssm_dtype": "float32",
    "mtp_num_hidden_layers": 1,
    "mtp_use_dedicated_embeddings": False,
    "rope_parameters": {
        "mrope_interleaved": True,
        "mrope_section": [11, 11, 10],
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000000,
        "rope_type": "default",
    },
    "tie_word_embeddings": False,
    "vocab_size": 248320,
}
_IMAGES = {
    "image_token_id": 248056,
    "tie_word_embeddings": False,
    "video_token_id": 248057,
    "vision_config": {"depth": 27, "hidden_size": 1152, "out_hidden_size": 5120},
    "vision_end_token_id": 248054,
    "vision_start_token_id": 248053,
}


def _types(layers: int) -> list[str]:
    kinds = ["linear_attention"] * 3 + ["full_attention"]
    return kinds * (layers // 4)


PUBLISHED_DELTA = {
    "qwen3-next-80b-a3b": _DELTA
    | {
        "architectures": ["Qwen3NextForCausalLM"],
        "bos_token_id": 151643,
        "decoder_sparse_step": 1,
        "eos_token_id": 151645,
        "hidden_size": 2048,
        "intermediate_size": 5120,
        "linear_num_value_heads": 32,
        "mlp_only_layers": [],
        "model_type": "qwen3_next",
        "moe_intermediate_size": 512,
        "norm_topk_prob": True,
        "num_attention_heads": 16,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "num_hidden_layers": 48,
        "num_key_value_heads": 2,
        "output_router_logits": False,
        "rope_scaling": None,
        "rope_theta": 10000000,
        "router_aux_loss_coef": 0.001,
        "shared_expert_intermediate_size": 512,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.57.0.dev0",
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "qwen3.5-0.8b": _IMAGES
    | {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "tie_word_embeddings": True,
        "transformers_version": "4.57.0.dev0",
        "text_config": _TEXT
        | {
            "hidden_size": 1024,
            "intermediate_size": 3584,
            "layer_types": _types(24),
            "linear_num_value_heads": 16,
            "mlp_only_layers": [],
            "model_type": "qwen3_5_text",
            "num_attention_heads": 8,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    },
    "qwen3.5-4b": _IMAGES
    | {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "tie_word_embeddings": True,
        "text_config": _TEXT
        | {
            "hidden_size": 2560,
            "intermediate_size": 9216,
            "layer_types": _types(32),
            "linear_num_value_heads": 32,
            "model_type": "qwen3_5_text",
            "num_attention_heads": 16,
            "num_hidden_layers": 32,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
        },
    },
    "qwen3.5-9b": _IMAGES
    | {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "text_config": _TEXT
        | {
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "layer_types": _types(32),
            "linear_num_value_heads": 32,
            "model_type": "qwen3_5_text",
            "num_attention_heads": 16,
            "num_hidden_layers": 32,
            "num_key_value_heads": 4,
        },
    },
    "qwen3.5-27b": _IMAGES
    | {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "text_config": _TEXT
        | {
            "hidden_size": 5120,
            "intermediate_size": 17408,
            "layer_types": _types(64),
            "linear_num_value_heads": 48,
            "model_type": "qwen3_5_text",
            "num_attention_heads": 24,
            "num_hidden_layers": 64,
            "num_key_value_heads": 4,
            "output_gate_type": "swish",
        },
    },
    "qwen3.5-35b-a3b": _IMAGES
    | {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "model_type": "qwen3_5_moe",
        "text_config": _TEXT
        | {
            "hidden_size": 2048,
            "layer_types": _types(40),
            "linear_num_value_heads": 32,
            "model_type": "qwen3_5_moe_text",
            "moe_intermediate_size": 512,
            "num_attention_heads": 16,
            "num_experts": 256,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 40,
            "num_key_value_heads": 2,
            "shared_expert_intermediate_size": 512,
        },
    },
}
