"""Some rows of an array that is read from files, in an order of the model's own."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class ChosenRows:
    """An array of some indices of another's dimension; indexing reads only what it asks for.

    Attributes:
      array: the other, a `model.weights.assembled.Assembled`.
      axis: the dimension.
      rows: the indices, in their new order.
    """

    array: Any
    axis: int
    rows: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        shape = self.array.shape
        return (*shape[: self.axis], len(self.rows), *shape[self.axis + 1 :])

    @property
    def dtype(self) -> np.dtype:
        """Type of its elements."""
        return self.array.dtype

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The stored tensors that it is read from, and their shapes."""
        return self.array.tensors

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """The part within `index`, one slice of step 1 per dimension."""
        wanted = self.rows[index[self.axis]]
        first, last = min(wanted), max(wanted) + 1
        around = (*index[: self.axis], slice(first, last), *index[self.axis + 1 :])
        return np.take(self.array[around], np.subtract(wanted, first), self.axis)


def halves_of_pairs(before: int, size: int) -> tuple[int, ...]:
    """Indices that bring rotary pairs, one beside the other, to two halves.

    DeepSeek's files turn dimension 2 i of the rotary part together with 2 i + 1; `model.rotary`
    turns i with i + size / 2. Queries and keys in another order have the same products.

    Args:
      before: indices before the rotary part, which stay.
      size: of the rotary part.
    """
    last = before + size
    return (*range(before), *range(before, last, 2), *range(before + 1, last, 2))
