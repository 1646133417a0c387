"""Gemma 4's tokenizer in a GGUF file: pieces of characters, whose merges are listed."""

from gguf import TokenType

from decode.tokenizer import Tokenizer

NAMES = ["<pad>", "<eos>", "<bos>", "<unk>", "<turn|>", "<|tool_response>", "</s>"]
MERGES = ["t h", "▁ t", "th e", "▁t h", "\n \n", "\n\n \n", "e \n"]
PIECES = [*"▁the\n", *(merge.replace(" ", "") for merge in MERGES)]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TOKENS = [*NAMES, *BYTES, *PIECES]
TYPES = (
    [TokenType.CONTROL] * 5
    + [TokenType.USER_DEFINED, TokenType.NORMAL]
    + [TokenType.BYTE] * 256
    + [TokenType.NORMAL] * len(PIECES)
)
METADATA = {
    "tokenizer.ggml.model": "gemma4",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": list(map(int, TYPES)),
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": 2,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.unknown_token_id": 3,
    "tokenizer.ggml.add_bos_token": False,
}
TEXTS = ["", " the  the", "\n\n\n\nthe \n", "naïve 日本語 🤗\t½", "\x00\x7f\u0301"]


def texts_of(text, **choices):
    return [TOKENS[token] for token in Tokenizer.from_gguf(METADATA).encode(text, **choices)]


def test_merges_apply_in_the_order_of_the_file():
    assert texts_of(" the the") == ["<bos>", "▁", "the", "▁", "the"]


def test_line_ends_are_merged_with_each_other_alone():
    assert texts_of("e\n\n\ne\n") == ["<bos>", "e", "\n\n\n", "e", "\n"]


def test_unknown_characters_fall_back_to_bytes_and_texts_survive():
    assert texts_of("é") == ["<bos>", "<0xC3>", "<0xA9>"]
    tokenizer = Tokenizer.from_gguf(METADATA)
    assert [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS] == TEXTS


def test_a_text_begins_with_bos_whatever_the_file_says_but_not_twice():
    assert texts_of("t") == ["<bos>", "t"]
    assert texts_of("<bos>t", special=True) == ["<bos>", "t"]


def test_an_answer_ends_at_the_tokens_that_end_turns():
    stops = {TOKENS[token] for token in Tokenizer.from_gguf(METADATA).stop_ids}
    assert stops == {"<eos>", "<turn|>", "<|tool_response>"}
