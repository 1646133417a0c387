"""Words that the pre-tokenizers which a GGUF file may name cut a text into."""

import pytest

from decode.tokenizer_splits import PRE_TOKENIZERS

TEXT = "中文English混合 HelloWorld's 12345 /\n   x!"


def split(pre, text):
    return [text[slice(*where)] for _, where in PRE_TOKENIZERS[pre].steps().pre_tokenize_str(text)]


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_no_character_is_lost_between_words(pre):
    for text in (TEXT, "", "  two\n\n\ttabs  ", "naïve 日本語 🤗 👩‍👩‍👧 ½²", "\x00\x7f\u0301"):
        assert "".join(split(pre, text)) == text


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("dbrx", ["中文English混合", " HelloWorld", "'s", " ", "123", "45", " /\n", "  ", " x"]),
        *(
            (
                pre,
                ["中文English混合", " Hello", "World's", " ", "123", "45", " /\n", "  ", " x", "!"],
            )
            for pre in ("gpt-4o", "llama4")
        ),
        ("qwen35", ["中文English混合", " HelloWorld", "'s", " ", "1", "2", "3", "4", "5", " /\n"]),
        (
            "kimi-k2",
            ["中文", "English", "混合", " Hello", "World's", " ", "123", "45", " /\n", "  "],
        ),
        ("deepseek-v3", ["中文", "English", "混合", " HelloWorld", "'s", " ", "123", "45", " /\n"]),
    ],
)
def test_words_are_those_of_the_models_that_a_pre_tokenizer_names(pre, words):
    """Kimi K2 and DeepSeek V3 cut between scripts, and those after GPT-4o before capitals."""
    assert split(pre, TEXT)[: len(words)] == words


@pytest.mark.parametrize(
    ("pre", "words"),
    [("qwen2", ["ह", "\u093fन", "\u094dद", "\u0940"]), ("qwen35", ["हिन्दी"])],
)
def test_marks_of_letters_are_parts_of_words_since_qwen_3_5(pre, words):
    assert split(pre, "हिन्दी") == words
