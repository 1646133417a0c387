"""Texts of control tokens that end an answer, for models whose files name only one of several.

The tokens that a model's own files name are added where its tokenizer is read.
"""

from collections.abc import Collection

STOPS = frozenset(
    {
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<end_of_turn>",
    }
)
"""Stop tokens of every model."""

STOPS_OF_GGUF = STOPS | {
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<end_of_utterance>",
    "<|return|>",
    "<|call|>",
    "<\uff5cend▁of▁sentence\uff5c>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
}
"""Stop tokens of models in GGUF files, whatever the metadata say, as in llama.cpp."""

_MESSAGES = {"<|return|>", "<|call|>"}
"""Tokens of a vocabulary in which `<|end|>` closes one message of several that make an answer."""


def stops_among(texts: Collection[str], stops: frozenset[str] = STOPS) -> frozenset[str]:
    """Those of `stops` that end an answer of a model whose control tokens have these texts.

    Source of the exception: OpenAI 2025, the harmony format of gpt-oss
    (https://github.com/openai/harmony, docs/format.md).
    """
    return stops - {"<|end|>"} if {*texts} >= _MESSAGES else stops
