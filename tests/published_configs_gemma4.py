"""`config.json` of Gemma 4 as published, by name in the catalogue.

Sizes are those of `convert_gemma4_weights.py` of https://github.com/huggingface/transformers, which
wrote the released files; of their towers a few fields stand for all.
"""

_ROTARY = {
    "full_attention": {
        "partial_rotary_factor": 0.25,
        "rope_theta": 1000000.0,
        "rope_type": "proportional",
    },
    "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
}
_TEXT = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "dtype": "bfloat16",
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "global_head_dim": 512,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.02,
    "model_type": "gemma4_text",
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_parameters": _ROTARY,
    "tie_word_embeddings": True,
    "use_cache": True,
    "vocab_size": 262144,
    "vocab_size_per_layer_input": 262144,
}
_SMALL = _TEXT | {
    "attention_k_eq_v": False,
    "enable_moe_block": False,
    "hidden_size_per_layer_input": 256,
    "max_position_embeddings": 131072,
    "moe_intermediate_size": None,
    "num_attention_heads": 8,
    "num_experts": None,
    "num_global_key_value_heads": None,
    "sliding_window": 512,
    "top_k_experts": None,
    "use_bidirectional_attention": None,
}
_LARGE = _TEXT | {
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
    "max_position_embeddings": 262144,
    "num_kv_shared_layers": 0,
    "sliding_window": 1024,
    "use_bidirectional_attention": "vision",
    "use_double_wide_mlp": False,
}


def _layers(count: int, every: int) -> dict:
    types = (["sliding_attention"] * (every - 1) + ["full_attention"]) * (count // every)
    return {"num_hidden_layers": count, "layer_types": types}


def _whole(**text: object) -> dict:
    return {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "audio_config": None,
        "boa_token_id": 256000,
        "boi_token_id": 255999,
        "dtype": "bfloat16",
        "eoa_token_index": 258883,
        "eoi_token_id": 258882,
        "eos_token_id": [1, 106],
        "image_token_id": 258880,
        "initializer_range": 0.02,
        "model_type": "gemma4",
        "text_config": text,
        "tie_word_embeddings": True,
        "video_token_id": 258884,
        "vision_config": {"hidden_size": 1152, "model_type": "gemma4_vision"},
        "vision_soft_tokens_per_image": 280,
    }


PUBLISHED_GEMMA4 = {
    "gemma4-e2b": _whole(
        **_SMALL,
        **_layers(35, 5),
        hidden_size=1536,
        intermediate_size=6144,
        num_key_value_heads=1,
        num_kv_shared_layers=20,
        use_double_wide_mlp=True,
    ),
    "gemma4-e4b": _whole(
        **_SMALL,
        **_layers(42, 6),
        hidden_size=2560,
        intermediate_size=10240,
        num_key_value_heads=2,
        num_kv_shared_layers=18,
        use_double_wide_mlp=False,
    ),
    "gemma4-26b-a4b": _whole(
        **_LARGE,
        **_layers(30, 6),
        enable_moe_block=True,
        hidden_size=2816,
        intermediate_size=2112,
        moe_intermediate_size=704,
        num_attention_heads=16,
        num_experts=128,
        num_global_key_value_heads=2,
        num_key_value_heads=8,
        top_k_experts=8,
    ),
    "gemma4-31b": _whole(
        **_LARGE,
        **_layers(60, 6),
        enable_moe_block=False,
        hidden_size=5376,
        intermediate_size=21504,
        moe_intermediate_size=None,
        num_attention_heads=32,
        num_experts=None,
        num_global_key_value_heads=4,
        num_key_value_heads=16,
        top_k_experts=None,
    ),
}
