"""Tokenizer file formats that are recognized by file name but cannot be read."""

import fnmatch
import os
from pathlib import Path

_ANY = (
    "from transformers import AutoTokenizer; "
    "AutoTokenizer.from_pretrained({0!r}).save_pretrained({0!r})"
)
_TEKKEN = (
    "from transformers.integrations.mistral import convert_tekken_tokenizer as convert; "
    "convert({1!r}).save_pretrained({0!r})"
)
_FORMS = {
    "tekken.json": ("transformers and mistral-common", _TEKKEN),
    "tokenizer.model*": ("transformers and sentencepiece", _ANY),
    "spiece.model": ("transformers and sentencepiece", _ANY),
    "vocab.json": ("transformers", _ANY),
    "vocab.txt": ("transformers", _ANY),
    "*.tiktoken": ("transformers and tiktoken", _ANY),
}


def unreadable_file(folder: Path) -> tuple[str, str] | None:
    """The tokenizer file of a folder without tokenizer.json, and how to make one from it.

    Args:
      folder: a model's folder.

    Returns:
      The file's name and a remedy; None where no file has a known name.
    """
    names = sorted(os.listdir(folder))
    for pattern, (packages, code) in _FORMS.items():
        for name in fnmatch.filter(names, pattern):
            made = code.format(str(folder), str(folder / name))
            return name, f'make tokenizer.json with {packages}: python -c "{made}"'
    return None
