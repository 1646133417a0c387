"""Writes tests/families: a tiny random model of every family, with transformers' outputs.

Each folder holds `config.json`, safetensors and `reference.npz`: prompts, logits at every
position of each, and 32 greedy tokens after each, every prompt run alone in float32. The greedy
tokens are made with a KV cache and again without one, and weights are drawn again if the best two
logits of any token differ by less than 1e-3. Where experts are in MXFP4, the matrices of the first
layer's are there too, as transformers dequantizes them. Needs the extra `parity`.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from _family_delta import EXPERTS, SIZES, save_as_released
from _family_gemma4 import families
from _family_mxfp4 import MATRICES, in_mxfp4, save_in_mxfp4
from _family_routed import ROUTED_FAMILIES, save_as_a_part
from absl import app, flags

_FAMILY = flags.DEFINE_multi_string("family", [], "Make these only; all if none is given.")
_OUTPUT = flags.DEFINE_string(
    "output_dir", str(Path(__file__).parents[1] / "tests/families"), "Where the folders go."
)

NEW_TOKENS = 32
PROMPT_LENGTHS = (5, 11, 19)
MARGIN = 1e-3
_NORMS_FROM_ZERO = "gemma", "qwen3_next", "qwen3_5"  # which add one to a norm's scale
_COMMON = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_GEMMA = {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_DEEPSEEK = {
    "kv_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "num_hidden_layers": 3,
    "routed_scaling_factor": 1.5,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "mscale": 0.707,
        "mscale_all_dim": 0.9,
    },
}
_OLMO3 = {
    "full_attention": {
        "rope_type": "yarn",
        "rope_theta": 500_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "sliding_attention": {"rope_type": "default", "rope_theta": 500_000.0},
}
_LONGROPE = {
    "rope_type": "longrope",
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.0, 1.1, 1.2, 1.3, 1.5],
    "long_factor": [1.0, 1.5, 2.5, 4.0, 5.0, 6.0],
}
_GPT_OSS = {
    "head_dim": 16,
    "sliding_window": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 150_000.0,
        "factor": 4.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 32,
    },
}
FAMILIES = {
    "llama2": ("llama", {"num_key_value_heads": 4}),
    "llama3": ("llama", {"rope_parameters": _LLAMA3, "tie_word_embeddings": True}),
    "llama_linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "llama_dynamic": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "llama_yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "mistral": ("mistral", {"sliding_window": 8}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2_window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3_moe": (
        "qwen3_moe",
        {
            "head_dim": 16,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
        },
    ),
    "qwen3_moe_window": (
        "qwen3_moe",
        {
            "head_dim": 16,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 2,
        },
    ),
    "qwen3_moe_raw": (
        "qwen3_moe",
        {
            "head_dim": 16,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "norm_topk_prob": False,
        },
    ),
    "deepseek_v2": (
        "deepseek_v2",
        {
            **_DEEPSEEK,
            "q_lora_rank": 20,
            "n_shared_experts": 2,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
        },
    ),
    "deepseek_v2_lite": (
        "deepseek_v2",
        {**_DEEPSEEK, "q_lora_rank": None, "n_shared_experts": 2, "topk_method": "greedy"},
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {
            **_DEEPSEEK,
            "q_lora_rank": 20,
            "n_shared_experts": 1,
            "n_group": 4,
            "topk_group": 2,
            "norm_topk_prob": True,
        },
    ),
    "kimi_k2": (
        "deepseek_v3",
        {
            **_DEEPSEEK,
            "q_lora_rank": 20,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
        },
    ),
    "gemma2": (
        "gemma2",
        {
            **_GEMMA,
            "num_hidden_layers": 3,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 15.0,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            **_GEMMA,
            "num_hidden_layers": 4,
            "layer_types": [*["sliding_attention"] * 2, "full_attention", "sliding_attention"],
            "tie_word_embeddings": True,
        },
    ),
    "qwen3_next": ("qwen3_next", EXPERTS),
    "qwen3_5": ("qwen3_5_text", SIZES | {"tie_word_embeddings": True}),
    "qwen3_5_moe": ("qwen3_5_moe_text", EXPERTS),
    **families(_COMMON),
    "llama_bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen3_bias": ("qwen3", {"head_dim": 16, "attention_bias": True}),
    "olmo2": ("olmo2", {}),
    "olmo3": (
        "olmo3",
        {"num_hidden_layers": 4, "sliding_window": 8, "rope_parameters": _OLMO3},
    ),
    "phi3": ("phi3", {"sliding_window": 8}),
    # Its prompts and answers end before the length from which transformers takes other factors,
    # which test_families.py sets lower.
    "phi3_long": (
        "phi3",
        {
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
            "original_max_position_embeddings": 64,
            "rope_parameters": _LONGROPE,
        },
    ),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.6,
            "logits_scaling": 2.0,
        },
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 4, "tie_word_embeddings": True}),
    "glm4": ("glm4", {"head_dim": 16, "rope_parameters": {"partial_rotary_factor": 0.5}}),
    "gpt_oss": ("gpt_oss", _GPT_OSS),
    "gpt_oss_mxfp4": ("gpt_oss", _GPT_OSS | {"hidden_size": 64}),
    **ROUTED_FAMILIES,
}


def random_model(model_type: str, sizes: dict, seed: int):
    """A random model in which every array changes the output: no norm is 1, and no bias 0."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    nested = "text_config" in sizes
    config = AutoConfig.for_model(model_type, **(sizes if nested else _COMMON | sizes))
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        for name, array in model.named_parameters():
            if array.ndim == 1:
                from_zero = any(kind in model_type for kind in _NORMS_FROM_ZERO)
                from_zero = from_zero and "gemma4" not in model_type
                from_zero = from_zero and "linear_attn.norm" not in name
                scales = "norm" in name and not from_zero
                centre = 1.0 if scales or name.endswith("scale") else 0.0
                array.copy_(centre + 0.3 * torch.randn_like(array))
            elif "embed" in name or "lm_head" in name:
                # Gemma multiplies its embeddings by sqrt(D): at scale one they would outweigh the
                # layers, and the tied unembedding would predict every token to repeat.
                part = 1.0 if model_type == "gemma4" else 0.3
                scale = part * array.shape[-1] ** -0.5 if "gemma" in model_type else 1.0
                array.copy_(scale * torch.randn_like(array))
            else:
                array.copy_(1.5 * array.shape[-1] ** -0.5 * torch.randn_like(array))
        for name, array in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                array.copy_(0.1 * torch.randn_like(array))
            if name.endswith("layer_scalar"):
                array.copy_(1 + 0.3 * torch.randn_like(array))
    return model


def greedy(model, prompt: list[int]) -> tuple[np.ndarray, list[int], float]:
    """Logits [T, V] of the prompt, the greedy tokens after it, and their smallest margin."""
    import torch

    tokens, margin = list(prompt), np.inf
    with torch.no_grad():
        first = model(torch.tensor([tokens])).logits[0].numpy()
        for _ in range(NEW_TOKENS):
            logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
            best = torch.topk(logits, 2).values
            margin = min(margin, float(best[0] - best[1]))
            if margin <= MARGIN:  # other weights are wanted
                return first, [], margin
            tokens.append(int(logits.argmax()))
        cached = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=None,
        )
    if cached[0].tolist() != tokens:
        return first, tokens[len(prompt) :], 0.0
    return first, tokens[len(prompt) :], margin


def make(name: str, folder: Path) -> None:
    """Writes one family's folder."""
    model_type, sizes = FAMILIES[name]
    random = np.random.default_rng(0)
    prompts = [random.integers(3, 128, length).tolist() for length in PROMPT_LENGTHS]
    for seed in range(50):
        model = random_model(model_type, sizes, seed)
        stored = in_mxfp4(model, seed) if name.endswith("mxfp4") else {}
        runs = [greedy(model, prompt) for prompt in prompts]
        varied = all(len(set(tokens)) > 4 for _, tokens, _ in runs)
        if varied and min(margin for *_, margin in runs) > MARGIN:
            break
    else:
        raise RuntimeError(f"no model of {name} decides clearly between tokens")
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, max_shard_size="30KB" if name == "llama2" else "1GB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    if stored:
        save_in_mxfp4(folder, stored)
    if name == "llama4_scout":
        save_as_a_part(folder)
    if name == "qwen3_5_moe":
        save_as_released(folder)
    if name == "kimi_k2":  # which its own files call so, and transformers another
        path = folder / "config.json"
        path.write_text(path.read_text().replace('"deepseek_v3"', '"kimi_k2"'))
    arrays = {f"prompt_{n}": np.array(p, np.int32) for n, p in enumerate(prompts)}
    arrays |= {f"logits_{n}": logits for n, (logits, *_) in enumerate(runs)}
    if stored:
        layer = model.model.layers[0].mlp.experts
        arrays |= {name: getattr(layer, name).detach().numpy() for name in MATRICES}
    arrays["tokens"] = np.array([tokens for _, tokens, _ in runs], np.int32)
    np.savez_compressed(folder / "reference.npz", **arrays)
    used = json.loads((folder / "config.json").read_text())["transformers_version"]
    print(f"{name}: seed {seed}, transformers {used}")


def main(argv: list[str]) -> None:
    """Writes the families that the flags name."""
    del argv
    import torch

    torch.set_num_threads(2)
    for name in _FAMILY.value or FAMILIES:
        make(name, Path(_OUTPUT.value) / name)


if __name__ == "__main__":
    app.run(main)
