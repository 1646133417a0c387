"""Habits of real model folders, what transformers makes of each, and what is made of it here.

Each row plants its fields in a folder of `tests/families`. `python -m tests.quirk_references` asks
transformers, and `python -m tests.quirk_table` writes the table. A row for another file than
`config.json` is a row of another kind.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

ABSENT = object()
"""The field is taken out of the file."""


class Quirk(NamedTuple):
    """A habit of model folders.

    Attributes:
      kind: the file that has it: ``config``.
      case: the folder of `tests/families` that it is planted in.
      says: what the file says, as the table shows it.
      fields: those of the file that change.
      expected: what is made of it: ``as without``, the model that the folder was before;
        ``its own``, another model, whose logits are those of transformers; ``refused``, by name.
    """

    kind: str
    case: str
    says: str
    fields: Mapping[str, Any]
    expected: str

    @property
    def key(self) -> str:
        """Its name among the stored references."""
        return f"{self.case}: {self.says}"


_DEFAULT = {"rope_type": "default", "rope_theta": 10_000.0}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
_OLD_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.0, 1.1, 1.2, 1.3, 1.5],
    "long_factor": [1.0, 1.5, 2.5, 4.0, 5.0, 6.0],
}
_FACTORS = "short_factor", "long_factor"
_FULL, _SLIDING = "full_attention", "sliding_attention"
_ORIGINAL = "original_max_position_embeddings"


def _rows(case: str, expected: str, *rows: tuple[str, Mapping[str, Any]]) -> list[Quirk]:
    return [Quirk("config", case, says, fields, expected) for says, fields in rows]


def _plain(case: str, expected: str, **fields: Any) -> list[Quirk]:
    """A row for each field, which the table shows as JSON has it."""
    shown = {name: "left out" if v is ABSENT else json.dumps(v) for name, v in fields.items()}
    return [
        Quirk("config", case, f"`{name}`: {shown[name]}", {name: value}, expected)
        for name, value in fields.items()
    ]


QUIRKS = [
    # What says nothing.
    *_plain(
        "llama2",
        "as without",
        quantization_config=None,
        auto_map=None,
        attention_twist=None,
        _attn_implementation="sdpa",
        _attn_implementation_autoset=True,
        partial_rotary_factor=None,
        original_max_position_embeddings=32,
        rope_scaling=None,
        rope_theta=10_000.0,
        sliding_window=0,
        head_dim=None,
        num_key_value_heads=None,
        pretraining_tp=2,
        attention_dropout=0.1,
        use_cache=False,
        hidden_act="swish",
        mlp_bias=ABSENT,
        tie_word_embeddings=ABSENT,
        rms_norm_eps=ABSENT,
        per_layer_config=None,
        torch_dtype="float16",
        eos_token_id=[2, 3],
    ),
    *_rows(
        "llama2",
        "as without",
        ("`layer_types`: all full", {"layer_types": [_FULL] * 2}),
        (
            "`rope_parameters.partial_rotary_factor`: 1.0",
            {"rope_parameters": _DEFAULT | {"partial_rotary_factor": 1.0}},
        ),
        (
            f"`rope_parameters.{_ORIGINAL}` of no scaling",
            {"rope_parameters": _DEFAULT | {_ORIGINAL: 32}},
        ),
        (
            "`rope_parameters.factor`: 1.0 of no scaling",
            {"rope_parameters": _DEFAULT | {"factor": 1.0}},
        ),
        ("`rope_parameters.factor`: null", {"rope_parameters": _DEFAULT | {"factor": None}}),
        (
            "`rope_scaling`: of the default type",
            {"rope_parameters": ABSENT, "rope_scaling": {"rope_type": "default"}},
        ),
    ),
    # What changes the mathematics, or may in other versions.
    *_plain(
        "llama2",
        "refused",
        attention_twist=2,
        partial_rotary_factor=0.5,
        sliding_window=8,
        hidden_act="relu",
        num_experts=4,
    ),
    *_rows(
        "llama2",
        "refused",
        ("`layer_types`: all sliding", {"layer_types": [_SLIDING] * 2}),
        ("`rope_theta`: 500000 beside another", {"rope_theta": 500_000.0}),
        (
            "`auto_map` to code of its own",
            {"auto_map": {"AutoModelForCausalLM": "modeling_mine.MyForCausalLM"}},
        ),
        *(
            (f"quantized by {name}", {"quantization_config": {"quant_method": name, **fields}})
            for name, fields in {
                "gptq": {"bits": 4, "group_size": 128},
                "awq": {"bits": 4, "group_size": 128},
                "bitsandbytes": {"load_in_4bit": True},
                "compressed-tensors": {"format": "pack-quantized"},
            }.items()
        ),
    ),
    # Rotary scaling in its three spellings.
    *_rows(
        "llama3",
        "its own",
        (
            f"Llama 3's scaling without `{_ORIGINAL}`",
            {"rope_parameters": _LLAMA3 | {"rope_theta": 100.0}},
        ),
    ),
    *_rows(
        "llama3",
        "as without",
        (f"`{_ORIGINAL}` above the scaling", {"rope_parameters": _LLAMA3, _ORIGINAL: 32}),
    ),
    *_rows(
        "llama3",
        "refused",
        (
            f"`{_ORIGINAL}` above the scaling and another in it",
            {"rope_parameters": _LLAMA3 | {_ORIGINAL: 32}, _ORIGINAL: 64},
        ),
    ),
    *_rows(
        "llama_yarn",
        "its own",
        (f"YaRN without `{_ORIGINAL}`", {"rope_parameters": _YARN}),
        ("YaRN of factor 2", {"rope_parameters": _YARN | {"factor": 2.0, _ORIGINAL: 32}}),
    ),
    *_rows(
        "llama_yarn",
        "as without",
        (f"`{_ORIGINAL}` above YaRN", {"rope_parameters": _YARN, _ORIGINAL: 32}),
        ("YaRN as `rope_scaling`", {"rope_parameters": ABSENT, "rope_scaling": _OLD_YARN}),
        (
            "YaRN by `type` and `rope_type` alike",
            {"rope_parameters": ABSENT, "rope_scaling": _OLD_YARN | {"type": "yarn"}},
        ),
    ),
    *_rows(
        "llama_linear",
        "as without",
        (
            "linear scaling by `type`",
            {"rope_parameters": ABSENT, "rope_scaling": {"type": "linear", "factor": 2.0}},
        ),
    ),
    # Windows.
    *_plain("mistral", "its own", sliding_window=None),
    *_plain("mistral", "its own", sliding_window=ABSENT),
    *_plain("mistral", "refused", sliding_window=0),
    *_rows("mistral", "refused", ("`layer_types`: all full", {"layer_types": [_FULL] * 2})),
    *_plain("qwen2", "as without", sliding_window=8, max_window_layers=1, attention_bias=True),
    *_rows(
        "qwen2",
        "its own",
        (
            "`use_sliding_window`, by `max_window_layers`",
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "max_window_layers": 1,
                "layer_types": ABSENT,
            },
        ),
    ),
    *_plain("qwen2_window", "refused", sliding_window=None),
    *_plain("qwen2_window", "refused", use_sliding_window=False),
    *_plain("gemma2", "as without", layer_types=ABSENT),
    *_plain("gemma2", "its own", attn_logit_softcapping=None, final_logit_softcapping=None),
    *_plain("gemma2", "refused", sliding_window=None),
    *_rows(
        "gemma3",
        "its own",
        ("`sliding_window_pattern`: 2", {"sliding_window_pattern": 2, "layer_types": ABSENT}),
    ),
    *_rows(
        "gemma3", "refused", ("one `rope_parameters` for all layers", {"rope_parameters": _DEFAULT})
    ),
    *_plain("gemma3", "refused", use_bidirectional_attention=True),
    # Experts.
    *_plain("qwen3_moe", "as without", mlp_only_layers=None, router_aux_loss_coef=0.1),
    *_plain("qwen3_moe", "its own", norm_topk_prob=ABSENT),
    *_plain("qwen3_moe", "refused", decoder_sparse_step=2),
    *_plain("gpt_oss", "as without", swiglu_limit=7, experts_per_token=2),
    *_plain("gpt_oss", "refused", swiglu_limit=9.0),
    *_plain("deepseek_v3", "as without", num_nextn_predict_layers=0, ep_size=1),
    *_plain("deepseek_v3", "refused", scoring_func="softmax", moe_layer_freq=2),
    # Small families.
    *_plain("olmo2", "as without", attention_bias=None),
    *_plain("olmo2", "refused", clip_qkv=8.0),
    *_rows(
        "olmo3",
        "as without",
        (
            "YaRN as `rope_scaling` of full layers alone",
            {"rope_parameters": ABSENT, "rope_scaling": _OLD_YARN, "rope_theta": 500_000.0},
        ),
    ),
    *_rows(
        "olmo3", "refused", ("one `rope_parameters` for all layers", {"rope_parameters": _YARN})
    ),
    *_plain("phi3", "as without", original_max_position_embeddings=ABSENT, resid_pdrop=0.1),
    *_rows(
        "phi3",
        "as without",
        (
            "`auto_map` to its own files",
            {"auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}},
        ),
    ),
    *_plain("phi3_long", "refused", original_max_position_embeddings=ABSENT),
    *_rows(
        "phi3_long",
        "as without",
        (
            "LongRoPE by the older name su",
            {
                "rope_parameters": ABSENT,
                "rope_scaling": {name: _LONGROPE[name] for name in _FACTORS} | {"type": "su"},
                "partial_rotary_factor": 0.75,
            },
        ),
        (
            "`auto_map` to another's tokenizer",
            {"auto_map": {"AutoTokenizer": "Xenova/gpt-4o"}},
        ),
    ),
    *_rows(
        "phi3_long",
        "its own",
        (
            f"longer than `{_ORIGINAL}`: 16",
            {_ORIGINAL: 16, "rope_parameters": _LONGROPE},
        ),
    ),
    *_plain("granite", "its own", logits_scaling=ABSENT, attention_multiplier=ABSENT),
    *_plain("granite", "as without", embedding_multiplier=3),
    *_rows(
        "smollm3",
        "its own",
        (
            "`no_rope_layer_interval`: 2",
            {"no_rope_layer_interval": 2, "no_rope_layers": ABSENT, "layer_types": ABSENT},
        ),
        (
            "windows in layers without rotation",
            {"use_sliding_window": True, "sliding_window": 8, "layer_types": ABSENT},
        ),
    ),
    *_rows(
        "glm4",
        "as without",
        ("`partial_rotary_factor`: left out", {"rope_parameters": _DEFAULT}),
        (
            "`partial_rotary_factor` and `rope_theta` above",
            {"rope_parameters": ABSENT, "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
        ),
    ),
    *_rows(
        "glm4",
        "its own",
        (
            "`partial_rotary_factor`: 1.0",
            {"rope_parameters": _DEFAULT | {"partial_rotary_factor": 1.0}},
        ),
    ),
]


def planted(values: Mapping[str, Any], quirk: Quirk) -> dict[str, Any]:
    """The file's fields with those of a quirk."""
    changed = dict(values) | dict(quirk.fields)
    return {name: value for name, value in changed.items() if value is not ABSENT}
