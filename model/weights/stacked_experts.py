"""Experts whose matrices are one tensor for all of them, as files of gpt-oss and Llama 4 have them.

Gate and up alternate along one dimension, or are halves of it. Plain matrices have their inputs
first. In MXFP4 a matrix is two tensors: codes, two to a byte, the earlier one in the lower bits;
and a scale for every 32 inputs. Names: `modeling_gpt_oss.py`, `modeling_llama4.py` and
`integrations/mxfp4.py` of https://github.com/huggingface/transformers.
"""

import dataclasses
from collections.abc import Collection

import numpy as np

from model.config import ModelConfig
from model.weights.safetensors_files import SafetensorsFiles
from sharding.float4 import GROUP, NUMBERS
from sharding.quantization import QUANTIZATIONS, QuantizedArray

Shape = tuple[int, ...]
Index = tuple[slice, ...]

BLOCKS, SCALES = "_blocks", "_scales"
"""Ends of the names of the two tensors of a matrix in MXFP4."""


@dataclasses.dataclass(frozen=True)
class Turned:
    """A stored tensor with its dimensions in another order; indexing one reads that part of it.

    Attributes:
      files: the directory's tensors.
      name: name of the tensor.
      stored: its shape in the file.
      view: a shape of the same elements, ...
      order: ... whose dimensions are put in this order.
    """

    files: SafetensorsFiles
    name: str
    stored: Shape
    view: Shape
    order: tuple[int, ...]

    @property
    def shape(self) -> Shape:
        """Shape of the array."""
        return tuple(self.view[dim] for dim in self.order)

    @property
    def dtype(self) -> np.dtype:
        """Type of its elements, as they are stored."""
        return self.files.tensors[self.name].dtype

    @property
    def tensors(self) -> dict[str, Shape]:
        """The stored tensors that it is read from, and their shapes."""
        return {self.name: self.stored}

    def __getitem__(self, index: Index) -> np.ndarray:
        """The part within `index`, one slice of step 1 per dimension."""
        theirs = tuple(index[self.order.index(dim)] for dim in range(len(self.view)))
        return self.files.read(self.name, self.view, theirs).transpose(self.order)


@dataclasses.dataclass(frozen=True)
class Codes:
    """Four-bit codes of which a stored tensor has two in each byte, one an element.

    Attributes:
      packed: the bytes, [..., inputs / 2].
    """

    packed: Turned

    @property
    def shape(self) -> Shape:
        """Shape of the array."""
        *outer, last = self.packed.shape
        return (*outer, 2 * last)

    @property
    def dtype(self) -> np.dtype:
        """Type of the codes."""
        return np.dtype(QUANTIZATIONS["mxfp4"].dtype)

    @property
    def tensors(self) -> dict[str, Shape]:
        """The stored tensors that it is read from, and their shapes."""
        return self.packed.tensors

    def __getitem__(self, index: Index) -> np.ndarray:
        """The part within `index`, slices of step 1, the last one of whole bytes."""
        *outer, last = index
        start, stop, _ = last.indices(self.shape[-1])
        packed = self.packed[(*outer, slice(start // 2, stop // 2))]
        both = np.stack([packed & 15, packed >> 4], axis=-1)
        return both.reshape(*packed.shape[:-1], -1).astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class Scaled:
    """The numbers that codes and scales stand for, float32.

    Attributes:
      codes: [..., inputs].
      scales: [..., inputs / 32].
    """

    codes: Codes
    scales: Turned

    @property
    def shape(self) -> Shape:
        """Shape of the array."""
        return self.codes.shape

    @property
    def tensors(self) -> dict[str, Shape]:
        """The stored tensors that it is read from, and their shapes."""
        return self.codes.tensors | self.scales.tensors

    def __getitem__(self, index: Index) -> np.ndarray:
        """The part within `index`, slices of step 1; of the last dimension in any place."""
        *outer, last = index
        start, stop, _ = last.indices(self.shape[-1])
        first, end = start // GROUP, -(-stop // GROUP)
        codes = self.codes[(*outer, slice(first * GROUP, end * GROUP))]
        exponents = self.scales[(*outer, slice(first, end))].astype(np.int32) - 127
        numbers = NUMBERS[codes.astype(np.uint8)]
        numbers = np.ldexp(numbers, np.repeat(exponents, GROUP, axis=-1))
        return numbers[..., start - first * GROUP : stop - first * GROUP]


class StackedExperts:
    """The arrays of one layer's experts, by their names in `model.mixture.Mixture`.

    Args:
      files: the directory's tensors.
      config: the model.
      prefix: what the names of this layer's tensors begin with, such as
        ``model.layers.0.mlp.experts.``.
      halves: gate and up are halves of a dimension, and do not alternate.
    """

    def __init__(self, files: SafetensorsFiles, config: ModelConfig, prefix: str, halves: bool):
        self.files, self.prefix, self.halves = files, prefix, halves
        self.biased = config.expert_bias
        self.experts, self.inputs, self.width = config.experts, config.d_model, config.d_ff

    def arrays(self, keep: Collection[str]) -> dict[str, Turned | Scaled | QuantizedArray]:
        """All of them, which are read when they are indexed.

        Args:
          keep: names of matrices that stay in MXFP4 if they are stored so.
        """
        E, D, F = self.experts, self.inputs, self.width
        down = self.matrix("down_proj", (D,), F, "down" in keep)
        if self.halves:
            gate_up = self.turned("gate_up_proj", (E, D, 2 * F), (E, D, 2, F), (0, 2, 3, 1))
            return {"gate_up": gate_up, "down": down}
        return {
            "gate_up": self.matrix("gate_up_proj", (F, 2), D, "gate_up" in keep),
            "down": down,
            "gate_up_bias": self.turned("gate_up_proj_bias", (E, 2 * F), (E, F, 2), (0, 2, 1)),
            "down_bias": self.turned("down_proj_bias", (E, D), (E, D), (0, 1)),
        }

    def matrix(
        self, name: str, outputs: Shape, inputs: int, keep: bool
    ) -> Turned | Scaled | QuantizedArray:
        """A matrix of all experts, [E, outputs in reverse..., inputs].

        Args:
          name: of the tensor, or what the names of both begin with.
          outputs: dimensions that the stored outputs are viewed in.
          inputs: number of inputs.
          keep: stay in MXFP4, if it is stored so.
        """
        experts, rows = self.experts, int(np.prod(outputs))
        last = len(outputs) + 1
        turned = range(last - 1, 0, -1)
        if self.prefix + name + BLOCKS not in self.files.tensors:
            view, order = (experts, inputs, *outputs), (0, *(dim + 1 for dim in turned), 1)
            return self.turned(name, (experts, inputs, rows), view, order)
        groups, order = inputs // GROUP, (0, *turned, last)
        codes = Codes(
            self.turned(
                name + BLOCKS,
                (experts, rows, groups, GROUP // 2),
                (experts, *outputs, inputs // 2),
                order,
            )
        )
        scales = self.turned(
            name + SCALES, (experts, rows, groups), (experts, *outputs, groups), order
        )
        return QuantizedArray(codes, scales, group=GROUP) if keep else Scaled(codes, scales)

    def turned(self, name: str, stored: Shape, view: Shape, order: tuple[int, ...]) -> Turned:
        """A stored tensor of this layer's experts."""
        return Turned(self.files, self.prefix + name, stored, view, order)
