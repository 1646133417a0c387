"""Arrays of a model as blocks of stored tensors, of which any part can be read."""

import dataclasses

import numpy as np

from model.weights.fp8_files import Fp8Files
from model.weights.safetensors_files import SafetensorsFiles

Shape = tuple[int, ...]
Index = tuple[slice, ...]
HEAD = 2
"""The dimension of heads' sizes in queries, keys and values."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """A stored tensor as a block of one of the model's arrays.

    Attributes:
      name: name of the tensor.
      stored: its shape in the file.
      shape: shape of the block, of the same elements or some of them; as many dimensions as the
        array.
      corner: index of the block's first element in the array.
      first: the element of the tensor that the block begins with, where it is a part of it.
      order: places in the tensor of the indices of the block's dimension `HEAD`, where that is in
        another order.
    """

    name: str
    stored: Shape
    shape: Shape
    corner: Shape
    first: int | None = None
    order: tuple[int, ...] | None = None

    def read(self, files: SafetensorsFiles | Fp8Files, part: Index) -> np.ndarray:
        """A part of the block."""
        if self.order is None:
            return files.read(self.name, self.shape, part, self.first)
        whole = (*part[:HEAD], slice(None), *part[HEAD + 1 :])
        rows = files.read(self.name, self.shape, whole, self.first)
        return rows.take(self.order[part[HEAD]], axis=HEAD)


@dataclasses.dataclass(frozen=True)
class Assembled:
    """An array of the model, of which indexing reads only the part that it asks for.

    Attributes:
      files: the directory's tensors.
      shape: shape of the array.
      pieces: blocks that cover the array without overlap.
      offset: added to every element.
    """

    files: SafetensorsFiles | Fp8Files
    shape: Shape
    pieces: tuple[Piece, ...]
    offset: int = 0

    @property
    def tensors(self) -> dict[str, Shape]:
        """The stored tensors that it is read from, and their shapes."""
        return {piece.name: piece.stored for piece in self.pieces}

    @property
    def dtype(self) -> np.dtype:
        """Type of its elements before the offset."""
        return _common_dtype({self.files.tensors[piece.name].dtype for piece in self.pieces})

    def __getitem__(self, index: Index) -> np.ndarray:
        """The part within `index`, one slice of step 1 per dimension."""
        bounds = [part.indices(size)[:2] for part, size in zip(index, self.shape, strict=True)]
        out = np.empty([stop - start for start, stop in bounds], self.dtype)
        for piece in self.pieces:
            theirs, ours = [], []
            for (start, stop), first, size in zip(bounds, piece.corner, piece.shape, strict=True):
                low, high = max(start, first), min(stop, first + size)
                theirs.append(slice(low - first, high - first))
                ours.append(slice(low - start, high - start))
            if all(part.start < part.stop for part in theirs):
                out[tuple(ours)] = piece.read(self.files, tuple(theirs))
        return out + np.asarray(self.offset, np.float32) if self.offset else out


def _common_dtype(dtypes: set[np.dtype]) -> np.dtype:
    """The dtype that holds the values of all of these."""
    if len(dtypes) == 1:
        return next(iter(dtypes))
    return np.dtype(np.float64 if np.dtype(np.float64) in dtypes else np.float32)
