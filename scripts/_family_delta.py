"""Tiny models with gated delta layers: their sizes, and the form that Qwen3.5 is released in."""

import json
from pathlib import Path

SIZES = {
    "head_dim": 16,
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
}
EXPERTS = SIZES | {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
}


def save_as_released(folder: Path) -> None:
    """Gives a folder of Qwen3.5's experts the form of the released ones, of images and text.

    Its text model has a prefix, experts are one tensor, and there are tensors for images and for
    the prediction of further tokens, here one of each.
    """
    import torch
    from safetensors.torch import load_file, save_file

    file, tensors = folder / "model.safetensors", {}
    by_layer: dict[str, dict[int, dict[str, torch.Tensor]]] = {}
    for name, tensor in load_file(file).items():
        name = name.replace("model.", "model.language_model.", 1)
        layer, inside, rest = name.partition(".mlp.experts.")
        if not inside:
            tensors[name] = tensor
            continue
        number, matrix, _ = rest.split(".")
        by_layer.setdefault(f"{layer}{inside}", {}).setdefault(int(number), {})[matrix] = tensor
    for prefix, experts in by_layer.items():
        each = [experts[number] for number in range(len(experts))]
        gate_up = [torch.cat([one["gate_proj"], one["up_proj"]]) for one in each]
        tensors[f"{prefix}gate_up_proj"] = torch.stack(gate_up)
        tensors[f"{prefix}down_proj"] = torch.stack([one["down_proj"] for one in each])
    tensors["model.visual.pos_embed.weight"] = torch.zeros(4, 8)
    tensors["mtp.norm.weight"] = torch.zeros(8)
    save_file(tensors, file, metadata={"format": "pt"})
    text = json.loads((folder / "config.json").read_text())
    text |= {"attn_output_gate": True, "mtp_num_hidden_layers": 1, "mamba_ssm_dtype": "float32"}
    text["rope_parameters"] |= {"mrope_interleaved": True, "mrope_section": [1, 1, 0]}
    config = {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "image_token_id": 100,
        "model_type": "qwen3_5_moe",
        "text_config": text,
        "tie_word_embeddings": False,
        "transformers_version": text.pop("transformers_version"),
        "vision_config": {"depth": 1, "model_type": "qwen3_5_moe"},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
