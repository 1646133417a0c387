"""Experts of a tiny model in MXFP4: matrices that it holds exactly, and the form of their files."""

import json
from pathlib import Path

import numpy as np

MATRICES = ("gate_up_proj", "down_proj")


def in_mxfp4(model, seed: int) -> dict[str, np.ndarray]:
    """Gives experts matrices that MXFP4 holds exactly, as transformers reads them.

    Returns:
      The tensors that a folder has in place of theirs, by name.
    """
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    random, stored = np.random.default_rng(seed), {}
    for name, array in model.named_parameters():
        if not name.endswith(MATRICES):
            continue
        experts, inputs, outputs = array.shape
        blocks = random.integers(0, 256, (experts, outputs, inputs // 32, 16), np.uint8)
        scales = random.integers(121, 125, (experts, outputs, inputs // 32), np.uint8)
        parts = {"blocks": torch.tensor(blocks), "scales": torch.tensor(scales)}
        with torch.no_grad():
            array.copy_(convert_moe_packed_tensors(*parts.values(), dtype=torch.float32))
        stored |= {f"{name}_{part}": tensor for part, tensor in parts.items()}
    return stored


def save_in_mxfp4(folder: Path, stored: dict) -> None:
    """Puts codes and scales in place of the plain matrices of a folder's experts."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    plain = {name.rpartition("_")[0] for name in stored}
    kept = {name: tensor for name, tensor in load_file(file).items() if name not in plain}
    save_file(kept | stored, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
