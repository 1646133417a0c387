"""Tensors in fp8 with scales beside them, read as the numbers that they stand for.

`model.weights.fp8_kept` reads them as they are stored.

DeepSeek-V3's files have a float32 scale for each block of 128 x 128 numbers of a matrix, in a
tensor called as the matrix with `_scale_inv` behind it, to multiply with (README_WEIGHTS.md of
https://huggingface.co/deepseek-ai/DeepSeek-V3). Others have one scale for a whole tensor, `_scale`.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from model.weights import WeightsError
from model.weights.safetensors_files import SafetensorsFiles, StoredTensor

METHOD = "fp8"
PLAIN_DTYPES = [np.dtype(name) for name in ("float64", "float32", "float16", ml_dtypes.bfloat16)]
"""Types of tensors that are the numbers that a model has."""
FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
_OF_BLOCKS, _OF_TENSOR = "_scale_inv", "_scale"


def is_read(quantization: Any) -> bool:
    """Whether a `quantization_config` says fp8 in a form that this module reads.

    Its activations are rounded to fp8 too where it was made for; here they are not.
    """
    if not isinstance(quantization, dict) or quantization.get("quant_method") != METHOD:
        return False
    block = quantization.get("weight_block_size")
    sizes = block if isinstance(block, list) and len(block) == 2 else [0]
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes)
    return (whole or block is None) and quantization.get("fmt", "e4m3") == "e4m3"


def block_of(config: Path) -> tuple[int, int] | None:
    """Rows and columns that share a scale, from a `config.json` that is known to be right.

    A model of images and text may say it among the fields of its text model.
    """
    values = json.loads(config.read_text("utf-8"))
    parts = values, values.get("text_config") or {}
    said = next(filter(None, (part.get("quantization_config") for part in parts)), {})
    block = said.get("weight_block_size")
    return tuple(block) if block else None


class Fp8Files:
    """Files some of whose tensors are fp8 with scales: these are seen as float32, without scales.

    Args:
      files: all tensors as stored.
      block: rows and columns that share a scale; None where all of a tensor or of a row do.

    Attributes:
      stored: all tensors as stored.
      tensors: name to tensor, without scales; fp8 ones with scales have the dtype float32.
      blocks: rows and columns that share a scale, of each tensor in fp8 that has scales.
      beside: names of the other files.

    Raises:
      WeightsError: scales that are no floats, or whose number does not fit their matrix.
    """

    def __init__(self, files: SafetensorsFiles, block: tuple[int, int] | None):
        self.stored, self.beside = files, files.beside
        self.blocks: dict[str, tuple[int, int]] = {}
        self._scales: dict[str, str] = {}
        stored = files.tensors
        for name, tensor in stored.items():
            if tensor.dtype == FP8 and (scale := _scale_of(name, stored)):
                self.blocks[name] = _block(name, tensor.shape, stored[scale], block)
                self._scales[name] = scale
        scales = set(self._scales.values())
        inputs = {n for n in stored if n.endswith(".input_scale")}  # of activations, left as are
        self.tensors: Mapping[str, StoredTensor] = {
            name: dataclasses.replace(tensor, dtype=np.dtype(np.float32))
            if name in self.blocks
            else tensor
            for name, tensor in stored.items()
            if name not in scales and name not in inputs
        }

    def read(
        self,
        name: str,
        shape: tuple[int, ...] | None = None,
        index: tuple[slice, ...] | None = None,
        first: int | None = None,
    ) -> np.ndarray:
        """A tensor or part of it, as `SafetensorsFiles.read`, times its scales."""
        values = self.stored.read(name, shape, index, first)
        if name not in self.blocks:
            return values
        shape = shape or self.tensors[name].shape
        index = index or (slice(None),) * len(shape)
        rows, columns = positions(shape, index, first, self.tensors[name].shape[1])
        scaled = values.astype(np.float32).reshape(len(rows), len(columns))
        scaled *= self.scales_at(name, rows, columns)
        return scaled.reshape(values.shape)

    def scales_at(self, name: str, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Scales of a tensor in fp8 at places of its rows and columns, [rows, columns] float32."""
        block, width = self.blocks[name], self.tensors[name].shape[1]
        scales = self.stored.read(self._scales[name]).astype(np.float32)
        scales = scales.reshape(-1, -(-width // block[1]))
        return scales[np.ix_(rows // block[0], columns // block[1])]


def open_files(folder: Path) -> SafetensorsFiles | Fp8Files:
    """A directory's tensors, those in fp8 as the numbers that they stand for if it has any."""
    files = SafetensorsFiles(folder)
    some = any(t.dtype == FP8 and _scale_of(n, files.tensors) for n, t in files.tensors.items())
    return Fp8Files(files, block_of(folder / "config.json")) if some else files


def _scale_of(name: str, tensors: Mapping[str, StoredTensor]) -> str | None:
    return next((name + end for end in (_OF_BLOCKS, _OF_TENSOR) if name + end in tensors), None)


def _block(
    name: str, shape: tuple[int, ...], scales: StoredTensor, block: tuple[int, int] | None
) -> tuple[int, int]:
    """Rows and columns that share a scale, given those of the whole model's blocks."""
    if len(shape) != 2:
        raise WeightsError(f"tensor {name} in fp8 has shape {shape}; only matrices are read")
    if scales.dtype not in PLAIN_DTYPES:
        raise WeightsError(
            f"scales of tensor {name} are stored as {scales.dtype}; give a folder whose scales are "
            "floats"
        )
    if math.prod(scales.shape) == 1:
        return shape
    block = block or (1, shape[1])
    fitting = tuple(-(-size // each) for size, each in zip(shape, block, strict=True))
    if scales.shape != fitting:
        raise WeightsError(
            f"scales of tensor {name} have shape {scales.shape}, not {fitting} as blocks of "
            f"{block} of its {shape} have; fetch the model again"
        )
    return block


def positions(
    shape: tuple[int, ...], index: tuple[slice, ...], first: int | None, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of a matrix that a part of a view of it, or of some of its rows, covers.

    Args:
      shape: of the view.
      index: the part, a slice for each dimension of the view.
      first: the element of the matrix that the view begins with; None for the first.
      columns: of the matrix.
    """
    places = [np.arange(size)[part] for size, part in zip(shape, index, strict=True)]
    split = outputs_of(shape, columns)
    rows = _flat(shape[:split], places[:split]) + (first or 0) // columns
    return rows, _flat(shape[split:], places[split:])


def outputs_of(shape: tuple[int, ...], columns: int) -> int:
    """How many of the first dimensions make rows; the others make the stored columns."""
    for split in range(len(shape) + 1):
        if math.prod(shape[split:]) == columns:
            return split
    raise WeightsError(f"a matrix of {columns} columns is not to be viewed as {shape}")


def _flat(shape: tuple[int, ...], places: list[np.ndarray]) -> np.ndarray:
    """Positions in the flat order of some dimensions of all combinations of places in each."""
    found = np.zeros(1, np.int64)
    for size, each in zip(shape, places, strict=True):
        found = (found[:, None] * size + each).ravel()
    return found
