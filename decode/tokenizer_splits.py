"""How byte-level tokenizers of GGUF files split text into words before they merge bytes.

A file names its way, `tokenizer.ggml.pre`, and no more. Sources: `src/llama-vocab.cpp` of
https://github.com/ggml-org/llama.cpp for the models that a name stands for, and the pre-tokenizers
of these models' `tokenizer.json`, of Kimi K2 in its `tokenization_kimi.py`.
"""

import dataclasses
from collections.abc import Mapping

from tokenizers import Regex, normalizers, pre_tokenizers


@dataclasses.dataclass(frozen=True)
class PreTokenizer:
    """How one family splits text before merging bytes.

    Attributes:
      splits: patterns, each of which cuts what those before it left; none for GPT-2's own.
      digits: each digit is a word.
      normalizer: applied to the text first.
      ignore_merges: a word that is a token is never split, whatever the merges say.
      add_bos: whether the begin-of-sequence token comes first when the file does not say.
    """

    splits: tuple[str, ...] = ()
    digits: bool = False
    normalizer: normalizers.Normalizer | None = None
    ignore_merges: bool = False
    add_bos: bool = False

    def steps(self) -> pre_tokenizers.PreTokenizer:
        """What the `tokenizers` package splits by."""
        steps = [pre_tokenizers.Digits(individual_digits=True)] if self.digits else []
        steps += [pre_tokenizers.Split(Regex(split), "isolated") for split in self.splits]
        gpt2 = not self.splits
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2)
        return pre_tokenizers.Sequence([*steps, last])


_SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _words(digits: str = "", letters: str = r"\p{L}") -> str:
    """Words of letters, of so many digits, and of signs (GPT-4, Llama 3, Qwen).

    Args:
      digits: how many of them are one word; empty for one.
      letters: characters that words are made of.
    """
    words = rf"[^\r\n\p{{L}}\p{{N}}]?[{letters}]+|\p{{N}}{digits}"
    return rf"{_SHORT}|{words}| ?[^\s{letters}\p{{N}}]+[\r\n]*|{_REST}"


def _by_case(others: str, after_signs: str, first: str = "") -> str:
    """Words that begin anew where capital letters follow small ones (GPT-4o, Kimi K2).

    Args:
      others: what is left out of letters.
      after_signs: characters that may end a run of signs.
      first: an alternative that comes before all.
    """
    capital = rf"[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{others}]"
    small = rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{others}]"
    before = r"[^\r\n\p{L}\p{N}]?"
    words = f"{before}{capital}*{small}+{_SHORT}?|{before}{capital}+{small}*{_SHORT}?"
    signs = rf"\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[{after_signs}]*"
    return f"{first}{words}|{signs}|{_REST}"


_GPT2 = PreTokenizer()
_BY_DIGIT = PreTokenizer(digits=True)
_CL100K = PreTokenizer(splits=(_words("{1,3}"),))
_LLAMA3 = dataclasses.replace(_CL100K, ignore_merges=True, add_bos=True)
_O200K = PreTokenizer(splits=(_by_case("", r"\r\n/"),))
_KIMI = PreTokenizer(splits=(_by_case(r"&&[^\p{Han}]", r"\r\n", r"[\p{Han}]+|"),))
_DEEPSEEK3 = PreTokenizer(
    splits=(
        r"\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        r"| ?[\p{P}\p{S}]+[\r\n]*|" + _REST,
    )
)
PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "smollm": _BY_DIGIT,
    "refact": _BY_DIGIT,  # Granite
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "smaug-bpe": dataclasses.replace(_LLAMA3, add_bos=False),  # SmolLM3
    "qwen2": PreTokenizer(splits=(_words(),), normalizer=normalizers.NFC()),
    "qwen35": PreTokenizer(splits=(_words("", r"\p{L}\p{M}"),), normalizer=normalizers.NFC()),
    "dbrx": _CL100K,  # OLMo 2 and 3, Phi-4
    "glm4": _CL100K,
    "chatglm-bpe": _CL100K,
    "gpt-4o": _O200K,  # gpt-oss, Phi-4-mini
    # As transformers' converter of tiktoken's files makes it; llama.cpp merges within tokens too.
    "llama4": dataclasses.replace(_O200K, ignore_merges=True),
    "deepseek-v3": _DEEPSEEK3,
    "kimi-k2": _KIMI,
}
"""By `tokenizer.ggml.pre`."""
