"""The families, the files they come in and the tests that hold each: one list for all of them.

Each folder of `tests/families` is a tiny random model with what transformers makes of it, made by
`scripts/make_family_fixtures.py`. `python -m tests.family_cases` writes their table to the
page of `model/weights`.
"""

from pathlib import Path
from typing import NamedTuple

from profiles.report.pages import Part

FOLDER = Path(__file__).parent / "families"
PART = Part("model/weights/README.md", "families", "tests.family_cases")

CASES = sorted(folder.name for folder in FOLDER.iterdir())
# What a GGUF file cannot say.
_NO_GGUF = {
    "qwen2_window": "no key says which layers",
    "qwen3_moe_raw": "no key says it",
    "qwen3_moe_window": "no key says which layers",
}
# Run in the slow set alone: what they bring is also in a case of the default set, or is data.
SLOW_CASES = (
    "deepseek_v2", "deepseek_v2_lite", "gemma4", "gemma4_experts", "glm4_moe", "gpt_oss_mxfp4",
    "granite", "kimi_k2", "llama2", "llama4_maverick", "llama_bias", "llama_dynamic",
    "llama_linear", "llama_yarn", "mistral", "olmo2", "olmo3", "phi3", "phi3_long", "qwen2",
    "qwen3", "qwen3_5", "qwen3_5_moe", "qwen3_bias", "qwen3_moe", "qwen3_moe_window", "smollm3",
)  # fmt: skip
GGUF_CASES = [case for case in CASES if case not in _NO_GGUF]

FAMILIES = {
    "Llama 2": ["llama2"],
    "Llama 3, 3.1, 3.2, 3.3": ["llama3"],
    "Llama with linear, dynamic or YaRN scaling": ["llama_linear", "llama_dynamic", "llama_yarn"],
    "Llama with biases": ["llama_bias"],
    "Mistral": ["mistral"],
    "Mixtral": ["mixtral"],
    "Qwen2, Qwen2.5": ["qwen2", "qwen2_window"],
    "Qwen3": ["qwen3"],
    "Qwen3 with biases": ["qwen3_bias"],
    "Qwen3-MoE": ["qwen3_moe", "qwen3_moe_raw", "qwen3_moe_window"],
    "Qwen3-Next": ["qwen3_next"],
    "Qwen3.5 (text, dense and of experts)": ["qwen3_5", "qwen3_5_moe"],
    "DeepSeek V2": ["deepseek_v2", "deepseek_v2_lite"],
    "DeepSeek V3, R1": ["deepseek_v3"],
    "Kimi K2": ["kimi_k2"],
    "Gemma 2": ["gemma2"],
    "Gemma 3 (text models: 270M, 1B)": ["gemma3"],
    "Gemma 4 (text): 31B": ["gemma4"],
    "Gemma 4 (text): 26B-A4B": ["gemma4_experts"],
    "Gemma 4 (text): E2B, E4B": ["gemma4_shared"],
    "OLMo 2": ["olmo2"],
    "OLMo 3": ["olmo3"],
    "Phi-3, Phi-4": ["phi3"],
    "Phi-3.5, Phi-4-mini (LongRoPE)": ["phi3_long"],
    "Granite 3": ["granite"],
    "SmolLM3": ["smollm3"],
    "GLM-4 (0414)": ["glm4"],
    "GLM-4.5, GLM-4.5-Air, GLM-4.6, GLM-4.7": ["glm4_moe"],
    "Llama 4 (text; Scout, Maverick)": ["llama4_scout", "llama4_maverick"],
    "gpt-oss, plain and in MXFP4": ["gpt_oss", "gpt_oss_mxfp4"],
}


class Check(NamedTuple):
    """What is tested of one format.

    Attributes:
      form: the format.
      cases: models that it is tested with.
      test: file of the tests.
      what: they show.
    """

    form: str
    cases: list[str]
    test: str
    what: str


CHECKS = (
    Check(
        "Hugging Face folder",
        CASES,
        "tests/decode/test_families.py",
        "logits within 1e-4 of transformers' and the same 32 greedy tokens, ragged, on one device "
        "and on eight, prompts shorter and longer than the window; each cached step equals the "
        "full forward pass",
    ),
    Check(
        "GGUF file",
        GGUF_CASES,
        "tests/model/test_gguf_families.py",
        "arrays equal the folder's bit for bit (rates of gated delta layers, of which a file has "
        "the exponential, within 2e-7), and the configuration but for what no key says",
    ),
    Check(
        "Orbax folder",
        CASES,
        "tests/decode/test_load.py",
        "after conversion, logits equal the folder's, bit for bit",
    ),
)


def table() -> str:
    """Families by formats in Markdown, and what each mark stands for."""
    rows = [["family", *(f"{check.form} [{n}]" for n, check in enumerate(CHECKS, 1))]]
    rows.append(["---", *(":---:" for _ in CHECKS)])
    for family, cases in FAMILIES.items():
        rows.append([family, *(_mark(cases, check) for check in CHECKS)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    notes = [f"{n}. [`{c.test}`](../../{c.test}): {c.what}." for n, c in enumerate(CHECKS, 1)]
    missing = [f"`{case}` ({why})" for case, why in _NO_GGUF.items()]
    notes.append(f"\nNot tested in GGUF: {', '.join(missing)}.")
    return "\n".join([*lines, "", *notes]) + "\n"


def _mark(cases: list[str], check: Check) -> str:
    held = sum(case in check.cases for case in cases)
    if not held:
        return "no"
    return "tested" if held == len(cases) else f"{held} of {len(cases)} tested"


if __name__ == "__main__":
    PART.write(table())
