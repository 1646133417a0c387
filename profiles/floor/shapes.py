"""Products of a forward pass, and shapes of what it reads and makes, whole and on each chip."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax

from model.config import ModelConfig
from model.dtypes import Dtypes
from profiles.floor.element_types import element_of
from sharding.collectives import Division
from sharding.placement import Placement, division, shards
from sharding.quantization import Weight, spec_of

FLOAT32 = "f32"


class Matmul(NamedTuple):
    """A product of every token with a weight, as `model.linear.multiply_tokens` is asked for it.

    Attributes:
      letters: letters of the weight, outputs first.
      outputs: how many of them are outputs.
      given: sharding of what it multiplies.
      contracted: sharding of that when multiplied.
      result: sharding of the product.
      block: the part of the model that it belongs to.
      table: the weight is the vocabulary's: plain, multiplied as it is stored, to float32.
      plain: the weight is plain where others are in few bits.
    """

    letters: str
    outputs: int
    given: jax.P
    contracted: jax.P
    result: jax.P
    block: str
    table: bool = False
    plain: bool = False

    @property
    def read(self) -> str:
        """Letters of what it multiplies."""
        return "BT" + self.letters[self.outputs :]

    @property
    def made(self) -> str:
        """Letters of the product."""
        return "BT" + self.letters[: self.outputs]

    @property
    def element(self) -> str | None:
        """Type of the product, if not that of activations."""
        return FLOAT32 if self.table else None


class Shapes:
    """The arrays of one model in one pass, each by the letters of its logical axes.

    Args:
      config: the model.
      placement: its layout on a mesh.
      dtypes: how its numbers are stored.
      batch: sequences.
      tokens: new ones of each.
    """

    def __init__(
        self, config: ModelConfig, placement: Placement, dtypes: Dtypes, batch: int, tokens: int
    ):
        self.config, self.placement, self.dtypes = config, placement, dtypes
        self.sizes = {**config.sizes, "B": batch, "T": tokens}
        self._shards = functools.cache(lambda axes: shards(axes, placement.mesh))

    def resize(self, config: ModelConfig) -> None:
        """Takes the sizes of another description of the model."""
        self.config, self.placement = config, self.placement.with_sizes(config.sizes)
        self.sizes = self.sizes | config.sizes

    def weight(self, letters: str, outputs: int) -> Weight:
        """Shapes and dtypes of a matrix as it is stored."""
        quantization = self.dtypes.quantization_of(letters, self.config.experts)
        return (
            quantization.abstract(self.shape(letters), outputs)
            if quantization
            else self.plain(letters)
        )

    def plain(self, letters: str) -> jax.ShapeDtypeStruct:
        """A plain weight, or rows of one."""
        return jax.ShapeDtypeStruct(self.shape(letters), self.dtypes.plain)

    def array(self, letters: str) -> jax.ShapeDtypeStruct:
        """Activations."""
        return jax.ShapeDtypeStruct(self.shape(letters), self.dtypes.dtype)

    def stored_parts(self, weight: Weight, stored: jax.P) -> list[tuple[str, int]]:
        """Element type and size of one chip's part of each array of a weight."""
        leaves = [(leaf, spec_of(leaf, weight, stored)) for leaf in jax.tree.leaves(weight)]
        return [
            (element_of(leaf.dtype), math.prod(self.local(leaf.shape, division(spec))))
            for leaf, spec in leaves
        ]

    def shape(self, letters: str) -> tuple[int, ...]:
        """Shape of the whole array."""
        return tuple(self.sizes[letter] for letter in letters)

    def local(self, shape: Sequence[int], division: Division) -> list[int]:
        """Sizes of one chip's part of an array."""
        pairs = zip(shape, division, strict=True)
        return [size // self._shards(axes) for size, axes in pairs]

    def size(self, letters: str, division: Division) -> int:
        """Elements of one chip's part of an array."""
        return math.prod(self.local(self.shape(letters), division))
