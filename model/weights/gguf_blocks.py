"""GGUF's 4- and 8-bit tensors without dequantization, for types that this project stores alike.

Source: the block structures of llama.cpp's `ggml-common.h`. All have a scale for each 32 inputs;
Q4_1 and Q4_K also have a minimum. MXFP4's values and scales are the codes of `sharding.float4`.
"""

from collections.abc import Callable

import numpy as np
from gguf import GGMLQuantizationType

GROUP = 32
"""Inputs that share a scale."""
Blocks = tuple[np.ndarray, ...]
"""Codes [N, K] in bytes, scales [N, K / 32] and, where the type has them, offsets [N, K / 32]."""


def read_blocks(rows: np.ndarray, kind: GGMLQuantizationType) -> Blocks:
    """Splits stored rows into codes, scales and offsets.

    Args:
      rows: [N, bytes] uint8.
      kind: a key of `KEPT`.

    Returns:
      Arrays that give each value as ``code * scale (+ offset)``, exact in float32; of MXFP4, what
      the codes stand for.
    """
    _, size, read = KEPT[kind]
    blocks = rows.reshape(-1, size)
    return tuple(part.reshape(len(rows), -1) for part in read(blocks))


def _q8_0(blocks: np.ndarray) -> Blocks:
    return blocks[:, 2:].view(np.int8), _half(blocks, 0)


def _q4_0(blocks: np.ndarray) -> Blocks:
    return _nibbles(blocks[:, 2:]).view(np.int8) - 8, _half(blocks, 0)


def _q4_1(blocks: np.ndarray) -> Blocks:
    return _nibbles(blocks[:, 4:]), _half(blocks, 0), _half(blocks, 2)


def _q4_k(blocks: np.ndarray) -> Blocks:
    """Blocks of 256 values: two floats, eight pairs of 6-bit factors in 12 bytes, and the codes."""
    low, middle, high = blocks[:, 4:16].reshape(-1, 3, 4).swapaxes(0, 1)
    scale = np.concatenate([low & 63, (high & 15) | (low >> 2 & 48)], axis=1)
    minimum = np.concatenate([middle & 63, (high >> 4) | (middle >> 2 & 48)], axis=1)
    codes = _nibbles(blocks[:, 16:].reshape(-1, 32))
    return codes, _half(blocks, 0) * scale, -(_half(blocks, 2) * minimum)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """[N, n] bytes -> [N, 2n]: the low halves of all bytes, then the high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _half(blocks: np.ndarray, start: int) -> np.ndarray:
    """A float16 in each block, as float32, [N, 1]."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2").astype(np.float32)


def _mxfp4(blocks: np.ndarray) -> Blocks:
    return _nibbles(blocks[:, 1:]), np.ascontiguousarray(blocks[:, :1])


KEPT: dict[GGMLQuantizationType, tuple[str, int, Callable[[np.ndarray], Blocks]]] = {
    GGMLQuantizationType.Q4_0: ("int4_symmetric", 18, _q4_0),
    GGMLQuantizationType.Q4_1: ("int4", 20, _q4_1),
    GGMLQuantizationType.Q4_K: ("int4", 144, _q4_k),
    GGMLQuantizationType.Q8_0: ("int8_grouped", 34, _q8_0),
    GGMLQuantizationType.MXFP4: ("mxfp4", 17, _mxfp4),
}
"""By type: name of the same quantization here, bytes of a block, and the function that reads it."""
