"""Sizes of tiny models of GLM-4.5 and Llama 4, and the folder of a whole Llama 4 model."""

import json
from pathlib import Path

_GLM45 = {
    "head_dim": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "num_hidden_layers": 3,
    "routed_scaling_factor": 1.5,
    "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
    "attention_bias": True,
    "use_qk_norm": True,
    "n_group": 4,
    "topk_group": 2,
}
# Prompts and answers go through several of its chunks.
_LLAMA4 = {
    "head_dim": 16,
    "num_hidden_layers": 4,
    "intermediate_size": 24,
    "intermediate_size_mlp": 48,
    "num_local_experts": 4,
    "attention_chunk_size": 8,
    "floor_scale": 8,
    "attn_scale": 0.3,
}
_SCOUT_ROTARY = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 1.0,
    "original_max_position_embeddings": 32,
}
ROUTED_FAMILIES = {
    "glm4_moe": ("glm4_moe", _GLM45),
    "llama4_scout": (
        "llama4_text",
        _LLAMA4 | {"num_experts_per_tok": 2, "rope_parameters": _SCOUT_ROTARY},
    ),
    "llama4_maverick": (
        "llama4_text",
        _LLAMA4
        | {
            "interleave_moe_layer_step": 2,
            "use_qk_norm": False,
            "attention_bias": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        },
    ),
}
"""`model_type` and fields of each, in the form of `make_family_fixtures`."""


def save_as_a_part(folder: Path) -> None:
    """Makes a folder of Llama 4's text model one of a whole model, with others of images beside."""
    import torch
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    stored = {f"language_model.{name}": tensor for name, tensor in load_file(file).items()}
    for name in ("vision_model.class_embedding", "multi_modal_projector.linear_1.weight"):
        stored[name] = torch.ones(8, 8)
    save_file(stored, file, metadata={"format": "pt"})
    text = json.loads((folder / "config.json").read_text())
    text.pop("architectures", None)
    config = {
        "architectures": ["Llama4ForConditionalGeneration"],
        "boi_token_index": 125,
        "eoi_token_index": 126,
        "image_token_index": 127,
        "model_type": "llama4",
        "text_config": text,
        "transformers_version": text.pop("transformers_version"),
        "vision_config": {"hidden_size": 8, "model_type": "llama4_vision_model"},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
