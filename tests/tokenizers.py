"""Small tokenizers of each kind, trained here, as a Hugging Face folder keeps them."""

import importlib.util
import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

SENTENCES = ["the rest of the word and the other", "they rest there, 2024 times", "naïve thé"]
TEXTS = [
    "",
    " ",
    "the rest",
    "  two\n\n\ttabs  ",
    "naïve 日本語 🤗 👩‍👩‍👧 ½²",
    "I'm 42, it's 2024!",
    "a\r\nb \n c",
    "\x00\x7f\u0301é",
]
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{- bos_token }}{% for message in messages %}{{ '<|im_start|>' + message.role + '\n\n' }}"
    "{{ message.content | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
HELLO = [{"role": "user", "content": "the rest"}]
parity = pytest.mark.skipif(
    not importlib.util.find_spec("transformers"), reason="needs extra `parity`"
)


def control(*texts):
    return [AddedToken(text, normalized=False, special=True) for text in texts]


def begins_with(backend, token):
    pair = (token, backend.token_to_id(token))
    backend.post_processor = TemplateProcessing(single=f"{token} $A", special_tokens=[pair])


def byte_level(ignore_merges=False):
    """As Llama 3 and Qwen: bytes as characters, control tokens behind the vocabulary."""
    backend = Backend(models.BPE(ignore_merges=ignore_merges))
    digits = pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(SENTENCES * 3, trainer)
    backend.add_special_tokens(control("<s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"))
    backend.add_tokens([AddedToken("<tool>", normalized=False, special=False)])
    begins_with(backend, "<s>")
    return backend


def metaspace(strip=True):
    """As Llama 2 and Mistral: spaces as "▁", unknown characters as byte tokens."""
    control_texts = ["<unk>", "<s>", "</s>"]
    texts = control_texts + [f"<0x{byte:02X}>" for byte in range(256)]
    texts += ["▁", *"therswod", "th", "the", "▁the", "re", "st", "rest", "▁rest"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("r", "e"), ("s", "t"), ("re", "st")]
    vocabulary = {text: number for number, text in enumerate(texts)}
    backend = Backend(
        models.BPE(
            vocabulary,
            [*merges, ("▁", "rest")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps = [normalizers.Prepend("▁")] if strip else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if strip else [])])
    backend.add_special_tokens(control(*control_texts))
    begins_with(backend, "<s>")
    return backend


BYTE_CONFIG = {"bos_token": "<s>", "eos_token": "<|im_end|>", "chat_template": CHATML}
SPACE_CONFIG = {
    "bos_token": {"content": "<s>", "lstrip": False, "special": True, "__type": "AddedToken"},
    "eos_token": "</s>",
    "unk_token": "<unk>",
}
KINDS = {
    "byte_level": (byte_level, BYTE_CONFIG),
    "ignore_merges": (lambda: byte_level(ignore_merges=True), BYTE_CONFIG),
    "metaspace": (metaspace, SPACE_CONFIG),
    "no_strip": (lambda: metaspace(strip=False), SPACE_CONFIG),
}


def write_tokenizer(
    folder: Path, kind: str = "byte_level", config=None, change=None, **others
) -> Path:
    """Writes a folder: its kind, changes of tokenizer_config, other files by name."""
    make, settings = KINDS[kind]
    document = json.loads(make().to_str())
    for key, value in (change or {}).items():
        document[key] = value
    (folder / "tokenizer.json").write_text(json.dumps(document))
    settings = settings | (config or {})
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for name, value in others.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder
