"""Matrices of folders in fp8 as they are stored: values and scales, where they fit a form here.

A scale for a block of 128 outputs and 128 inputs is repeated for each of those outputs, which loses
nothing and lets outputs be joined, divided and reordered whatever the blocks are.
"""

import dataclasses
from typing import Any

import numpy as np

from model.weights.assembled import Assembled, Index, Piece, Shape
from model.weights.chosen_rows import ChosenRows
from model.weights.fp8_files import Fp8Files, outputs_of, positions
from sharding.quantization import QUANTIZATIONS, Quantization, QuantizedArray

_OF_OUTPUTS, _OF_GROUPS = QUANTIZATIONS["fp8"], QUANTIZATIONS["fp8_grouped"]


def stored_form(files: Fp8Files) -> Quantization | None:
    """The quantization that holds all matrices in fp8 as they are; None where there is none."""
    whole = {columns == files.tensors[name].shape[1] for name, (_, columns) in files.blocks.items()}
    if whole == {True}:
        return _OF_OUTPUTS
    groups = all(
        columns % _OF_GROUPS.group == 0 or columns == files.tensors[name].shape[1]
        for name, (_, columns) in files.blocks.items()
    )
    return _OF_GROUPS if groups else None


def as_stored(array: Any, form: Quantization) -> Any:
    """A matrix as its values in fp8 and their scales; or as it is, where some of it is not in fp8.

    Args:
      array: of a folder in fp8, as `model.weights.huggingface` makes it.
      form: what `stored_form` gives for the folder.
    """
    inner = array.array if isinstance(array, ChosenRows) else array
    if not isinstance(inner, Assembled) or not isinstance(inner.files, Fp8Files):
        return array
    if any(piece.name not in inner.files.blocks for piece in inner.pieces):
        return array
    group = form.group_of(array.shape[-1])
    parts = _values(inner), _scales(inner, group)
    if isinstance(array, ChosenRows):
        parts = (dataclasses.replace(array, array=part) for part in parts)
    return QuantizedArray(*parts, group=group)


def _values(array: Assembled) -> Assembled:
    return dataclasses.replace(array, files=array.files.stored)


def _scales(array: Assembled, group: int | None) -> Assembled:
    """One scale for each group of inputs of an output, or for each output if there are no groups.

    Its dimensions are those of `array`: inputs are 1, or as many as there are groups.
    """

    def shape_of(piece: Piece, shape: Shape) -> Shape:
        if group:
            return (*shape[:-1], shape[-1] // group)
        inputs = len(piece.shape) - outputs_of(piece.shape, piece.stored[1])
        return (*shape[:-inputs], *(1,) * inputs)

    def of(piece: Piece) -> Piece:
        columns = piece.stored[1]
        first = piece.first and piece.first // columns * (columns // (group or columns))
        return dataclasses.replace(piece, shape=shape_of(piece, piece.shape), first=first)

    files = RowScales(array.files, group)
    shape = shape_of(array.pieces[0], array.shape)
    return Assembled(files, shape, tuple(map(of, array.pieces)))


@dataclasses.dataclass(frozen=True)
class RowScales:
    """Scales of the tensors in fp8 of a folder, each spread over rows: [rows, groups], float32.

    Attributes:
      files: the folder's tensors.
      group: columns that share a scale; None for all.
    """

    files: Fp8Files
    group: int | None

    @property
    def tensors(self) -> Any:
        """Those of the folder, which say that their numbers are float32."""
        return self.files.tensors

    def read(self, name: str, shape: Shape, index: Index, first: int | None = None) -> np.ndarray:
        """Part of the scales of a tensor, as `Fp8Files.read` of its numbers."""
        columns = self.files.tensors[name].shape[1]
        group = self.group or columns
        rows, groups = positions(shape, index, first, columns // group)
        found = self.files.scales_at(name, rows, groups * group)
        return found.reshape([len(range(n)[part]) for n, part in zip(shape, index, strict=True)])
