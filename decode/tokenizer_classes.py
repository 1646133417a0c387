"""What transformers 5 builds of a folder's tokenizer.json, by the class that its files name.

Some classes take the vocabulary, the merges and what goes around a text from tokenizer.json, and
build the rest themselves, whatever the file says of it; all others read the file as it stands.
Sources: `AutoTokenizer.from_pretrained` in transformers 5.24 for the choice of a class, each
class's `__init__` for what it builds, and `TokenizersBackend.convert_to_native_format` for what is
taken from the file.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from decode.tokenizer_json import typed
from decode.tokenizer_parts import TokenizerError

Document = dict[str, Any]
"""A tokenizer as tokenizer.json writes it."""

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?%s+|\p{N}| ?[^\s%s\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _WORDS % (r"\p{L}", r"\p{L}")
_QWEN3_5 = _WORDS % (r"[\p{L}\p{M}]", r"\p{L}\p{M}")
_NFC = {"type": "NFC"}
_BYTES_DECODER = {
    "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True,
}  # fmt: skip
_SPACES = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
_FIRST_SPACE = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
_BYTE_PAIRS = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
_END = "<|endoftext|>"


def byte_level(add_prefix_space: bool, use_regex: bool) -> Document:
    """The pre-tokenizer that writes each byte as a character of GPT-2's alphabet."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def metaspace(scheme: str) -> Document:
    """The pre-tokenizer that writes spaces as "▁", with one more before the text by `scheme`."""
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}


def spaces_decoder(strip: bool) -> Document:
    """The decoder of pieces with "▁" and byte tokens; `strip` takes a first space away."""
    steps = [_SPACES, {"type": "ByteFallback"}, {"type": "Fuse"}]
    return {"type": "Sequence", "decoders": [*steps, *([_FIRST_SPACE] if strip else [])]}


def _llama_space(settings: Mapping[str, Any], prefix: bool) -> Document:
    always = "always" if settings.get("legacy", False) else "first"
    return metaspace(always if prefix else "never")


def _words(pattern: str) -> Callable[[Mapping[str, Any], bool], Document]:
    def build(_: Mapping[str, Any], prefix: bool) -> Document:
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
        steps = [split | {"invert": False}, byte_level(prefix, use_regex=False)]
        return {"type": "Sequence", "pretokenizers": steps}

    return build


@dataclasses.dataclass(frozen=True)
class TokenizerClass:
    """A class that builds its own tokenizer around a vocabulary and merges.

    Attributes:
      names: special tokens that it has where the files name no others, by purpose.
      pre_tokenizer: from tokenizer_config.json and whether a space is put before a text.
      decoder: from whether a space is put before a text.
      normalizer: applied to the text first.
      model: settings of the merges that are not `_BYTE_PAIRS`.
      prefix_space: whether a space is put before a text where the files do not say.
      named_unknown: whether characters without a token become the unknown token.
      begins: whether a text begins with the begin-of-sequence token and nothing ends it, whatever
        tokenizer.json says; None where the file decides.
      renews: whether special tokens lose what the files say of spaces around them.
    """

    names: Mapping[str, str]
    pre_tokenizer: Callable[[Mapping[str, Any], bool], Document]
    decoder: Callable[[bool], Document]
    normalizer: Document | None = None
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prefix_space: bool = False
    named_unknown: bool = False
    begins: bool | None = None
    renews: bool = False

    @property
    def of_pieces(self) -> bool:
        """Whether it can be built from a SentencePiece model, too."""
        return bool(self.model.get("byte_fallback"))

    def build(
        self, document: Document, settings: Mapping[str, Any], names: Mapping[str, str]
    ) -> Document:
        """The tokenizer that the class makes of a file's vocabulary; without added tokens.

        Args:
          document: tokenizer.json.
          settings: tokenizer_config.json.
          names: special tokens by purpose, the class's own among them.

        Raises:
          TokenizerError: the file's tokenizer is of another kind.
        """
        model = typed(document.get("model"), dict, "tokenizer.json model")
        if model.get("type", "BPE") != "BPE":
            raise TokenizerError(
                f"tokenizer.json model is {model['type']!r:.60}, but tokenizer_class merges "
                "byte pairs; set it to PreTrainedTokenizerFast to take the file as it is"
            )
        model = model | _BYTE_PAIRS | dict(self.model)
        if self.named_unknown:
            model["unk_token"] = names.get("unk_token")
        given = settings.get("add_prefix_space")
        prefix = self.prefix_space if given is None else bool(given)
        return document | {
            "model": model,
            "added_tokens": [],
            "normalizer": self.normalizer,
            "pre_tokenizer": self.pre_tokenizer(settings, prefix),
            "decoder": self.decoder(prefix),
        }


_PIECES = {"fuse_unk": True, "byte_fallback": True}
_LLAMA_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_LLAMA = TokenizerClass(
    names=_LLAMA_NAMES,
    pre_tokenizer=_llama_space,
    decoder=spaces_decoder,
    model=_PIECES,
    prefix_space=True,
)
_INFILL = {
    "prefix_token": "▁<PRE>",
    "middle_token": "▁<MID>",
    "suffix_token": "▁<SUF>",
    "eot_token": "▁<EOT>",
    "fill_token": "<FILL_ME>",
}
_QWEN = TokenizerClass(
    names={"eos_token": _END, "unk_token": _END, "pad_token": _END},
    pre_tokenizer=_words(_QWEN2),
    decoder=lambda prefix: _BYTES_DECODER,
    normalizer=_NFC,
    renews=True,
)
_GPT2 = TokenizerClass(
    names={"bos_token": _END, "eos_token": _END, "unk_token": _END},
    pre_tokenizer=lambda settings, prefix: byte_level(prefix, use_regex=True),
    decoder=lambda prefix: _BYTES_DECODER,
)
CLASSES: Mapping[str, TokenizerClass] = {
    "LlamaTokenizer": _LLAMA,
    "CodeLlamaTokenizer": dataclasses.replace(
        _LLAMA,
        names=_LLAMA_NAMES | _INFILL,
        pre_tokenizer=lambda settings, prefix: metaspace("first" if prefix else "never"),
        decoder=lambda prefix: spaces_decoder(strip=True),
        named_unknown=True,
        begins=True,
    ),
    "GemmaTokenizer": TokenizerClass(
        names={
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
        pre_tokenizer=lambda settings, prefix: {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        decoder=lambda prefix: spaces_decoder(strip=False),
        normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        model=_PIECES,
        named_unknown=True,
    ),
    "GPT2Tokenizer": _GPT2,
    "GPTNeoXTokenizer": dataclasses.replace(
        _GPT2, names=_GPT2.names | {"pad_token": "<|padding|>"}, normalizer=_NFC, begins=False
    ),
    "Qwen2Tokenizer": _QWEN,
    "Qwen3_5Tokenizer": dataclasses.replace(_QWEN, pre_tokenizer=_words(_QWEN3_5), renews=False),
}
"""Classes that build their own, as far as they are read here."""

FILE = "TokenizersBackend"
"""The class that reads tokenizer.json as it stands; those that transformers does not have, too."""

_MODELS = {
    FILE: "mistral mistral3 ministral ministral3 mixtral phi3 olmo2 olmo3 granite granitemoe "
    "granitemoehybrid granitemoeshared glm glm4 glm4_moe glm4_moe_lite kimi_k25 kimi_linear "
    "stablelm persimmon gpt_bigcode olmo_hybrid flex_olmo mimo_v2_flash",
    "Qwen2Tokenizer": "qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next",
    "Qwen3_5Tokenizer": "qwen3_5 qwen3_5_text qwen3_5_moe qwen3_5_moe_text",
    "GemmaTokenizer": "gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text recurrent_gemma",
    "GPT2Tokenizer": "gpt2 gpt_neo gptj phi opt starcoder2",
    "GPTNeoXTokenizer": "gpt_neox mamba mamba2 falcon_mamba mpt olmo olmoe",
}
MODELS: Mapping[str, str] = {
    kind: name for name, kinds in _MODELS.items() for kind in kinds.split()
}
"""The class that transformers registers for a model type; types without one are not in it."""

DISTRUSTED = frozenset({"phi3", "qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text"})
"""Model types whose registered class wins over the one that their files name."""

_OTHERS = """
    AlbertTokenizer BartTokenizer BarthezTokenizer BartphoTokenizer BertGenerationTokenizer
    BertJapaneseTokenizer BertTokenizer BertweetTokenizer BigBirdTokenizer BioGptTokenizer
    BlenderbotSmallTokenizer BlenderbotTokenizer ByT5Tokenizer CLIPTokenizer CTRLTokenizer
    CamembertTokenizer CanineTokenizer ClvpTokenizer CohereTokenizer CpmAntTokenizer
    CpmTokenizer DPRQuestionEncoderTokenizer DebertaTokenizer DebertaV2Tokenizer
    DiaTokenizer EsmTokenizer EsmcTokenizer FNetTokenizer FSMTTokenizer
    FastSpeech2ConformerTokenizer FlaubertTokenizer FunnelTokenizer GPTNeoXJapaneseTokenizer
    GPTSw3Tokenizer HerbertTokenizer LEDTokenizer LasrTokenizer LayoutLMv2Tokenizer
    LayoutLMv3Tokenizer LayoutXLMTokenizer LukeTokenizer LxmertTokenizer M2M100Tokenizer
    MBart50Tokenizer MBartTokenizer MLukeTokenizer MPNetTokenizer MarianTokenizer
    MarkupLMTokenizer MgpstrTokenizer MobileBertTokenizer MvpTokenizer MyT5Tokenizer
    NllbTokenizer NougatTokenizer OpenAIGPTTokenizer PLBartTokenizer ParakeetTokenizer
    PegasusTokenizer PerceiverTokenizer PhobertTokenizer ProphetNetTokenizer RagTokenizer
    ReformerTokenizer RemBertTokenizer RoCBertTokenizer RoFormerTokenizer RobertaTokenizer
    SeamlessM4TTokenizer Siglip2Tokenizer SiglipTokenizer Speech2TextTokenizer
    SpeechT5Tokenizer SplinterTokenizer T5Tokenizer TapasTokenizer Tipsv2Tokenizer
    UdopTokenizer VideoPrismTokenizer VitsTokenizer Wav2Vec2CTCTokenizer
    Wav2Vec2PhonemeCTCTokenizer WhisperTokenizer XGLMTokenizer XLMRobertaTokenizer
    XLMTokenizer XLNetTokenizer
"""
OTHERS = frozenset(_OTHERS.split())
"""Classes of transformers that are not read here, mostly of models that are no decoders."""


def class_of(settings: Mapping[str, Any], model: Mapping[str, Any], text: str | None) -> str:
    """The class that `AutoTokenizer` takes: a key of `CLASSES`, or `FILE`.

    Args:
      settings: tokenizer_config.json.
      model: config.json.
      text: tokenizer.json; None where there is none.

    Raises:
      TokenizerError: a class of transformers that is not read here.
    """
    kind = model.get("model_type")
    registered = MODELS.get(kind) if isinstance(kind, str) else None
    named = settings.get("tokenizer_class") or model.get("tokenizer_class")
    named = named.removesuffix("Fast") if isinstance(named, str) else None
    code = settings.get("auto_map")  # for some of a model's parts; older files list a tokenizer's
    remote = "AutoTokenizer" in code if isinstance(code, dict) else code is not None
    if remote or named is None:
        chosen = named or registered or FILE
    elif registered == FILE or (
        # Files of Llama 3's kind name the class of Llama 2, which would read no bytes.
        named == "LlamaTokenizer" and kind not in DISTRUSTED and '"ByteLevel"' in (text or "")
    ):
        chosen = FILE
    elif registered and kind in DISTRUSTED:
        chosen = registered
    else:
        chosen = named
    if chosen in OTHERS:
        raise TokenizerError(
            f"tokenizer_class is {chosen}, which is not read; supported are "
            f"{', '.join(CLASSES)}, and PreTrainedTokenizerFast, which takes tokenizer.json as is"
        )
    return chosen if chosen in CLASSES else FILE
