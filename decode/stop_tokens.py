"""Texts of control tokens that end an answer, in models whose files name only another one.

What a model's own files name is added to these where its tokenizer is read.
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
"""Of any model."""

STOPS_OF_GGUF = STOPS | {
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<end_of_utterance>",
    "<|return|>",
    "<|call|>",
    "<\uff5cend▁of▁sentence\uff5c>",
}
"""Of models in GGUF files: these end an answer whatever the metadata say, as in llama.cpp."""
