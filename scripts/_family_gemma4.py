"""Tiny models of Gemma 4, for `make_family_fixtures.py`."""

from typing import Any

_GEMMA4 = {
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 8,
    "final_logit_softcapping": 15.0,
    "tie_word_embeddings": True,
    "vocab_size_per_layer_input": 128,
    "hidden_size_per_layer_input": 0,
}
_GEMMA4_LARGE = {
    **_GEMMA4,
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
}
_TOWER = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 4,
          "num_attention_heads": 2, "num_key_value_heads": 2, "patch_size": 2,
          "position_embedding_size": 4}  # fmt: skip


def families(common: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """The type and sizes of each model, by the name of its folder; `common` are those of all."""
    return {
        # The model that also sees, of which only the text is read.
        "gemma4": ("gemma4", {"text_config": common | _GEMMA4_LARGE, "vision_config": _TOWER}),
        "gemma4_experts": (
            "gemma4_text",
            {
                **_GEMMA4_LARGE,
                "enable_moe_block": True,
                "num_experts": 8,
                "top_k_experts": 2,
                "moe_intermediate_size": 24,
            },
        ),
        "gemma4_shared": (
            "gemma4_text",
            {
                **_GEMMA4,
                "num_hidden_layers": 5,
                "layer_types": ["sliding_attention", *["sliding_attention", "full_attention"] * 2],
                "num_kv_shared_layers": 2,
                "use_double_wide_mlp": True,
                "hidden_size_per_layer_input": 8,
            },
        ),
    }
