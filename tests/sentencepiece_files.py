"""SentencePiece models written byte by byte, to be read as `tokenizer.model`."""

import struct
from pathlib import Path

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2


def write_model(path: Path, pieces, model_type=BPE, trainer=(), normalizer=()) -> Path:
    """Writes a model.

    Args:
      path: of the file.
      pieces: (text, score, type) of each.
      model_type: `UNIGRAM` or `BPE`.
      trainer, normalizer: further fields, by their numbers in `sentencepiece_model.proto`.
    """
    content = b"".join(
        _field(1, _field(1, text) + _field(2, float(score)) + _field(3, kind))
        for text, score, kind in pieces
    )
    settings = {3: model_type, **dict(trainer)}
    for number, fields in ((2, settings), (3, dict(normalizer))):
        content += _field(number, b"".join(_field(*each) for each in fields.items()))
    path.write_bytes(content)
    return path


def _field(number: int, value: int | float | str | bytes) -> bytes:
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value & (1 << 64) - 1)
    value = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    groups = []
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
