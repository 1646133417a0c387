"""Texts of control tokens that end an answer, for models whose files name only one of several.

The tokens that a model's own files name are added where its tokenizer is read.
"""

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
}
"""Stop tokens of models in GGUF files, whatever the metadata say, as in llama.cpp."""
