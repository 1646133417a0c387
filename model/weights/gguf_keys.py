"""The metadata of a GGUF file's architecture: each key read by name and type, what is left refused.

Source: the key names of the GGUF specification
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from collections.abc import Collection
from typing import Any, NoReturn

import numpy as np

from model.weights import WeightsError
from model.weights.gguf_file import DAMAGED, GGUFFile, short

# Keys that change nothing in the arithmetic when they have this value (_ANY: any value),
# because they only describe where the model comes from, or experts that it lacks.
_ANY = object()
_VISION = ("mm.", "vision.")  # keys of a vision tower, which a file may hold too
_HARMLESS = {
    "attention.causal": True,
    "expert_feed_forward_length": _ANY,  # may be there in a model without experts
    "expert_used_count": _ANY,
    "expert_weights_norm": True,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.finetuned": _ANY,
    "rope.scaling.original_context_length": _ANY,
    "tensor_data_layout": _ANY,
}


def further_layers(file: GGUFFile) -> int:
    """How many of a file's layers, the last ones, predict further tokens and are left out."""
    key = f"{file.metadata['general.architecture']}.nextn_predict_layers"
    return int(np.max(file.metadata.get(key, 0)))


def last_of_groups(size: int, layers: int) -> tuple[bool, ...]:
    """Whether each layer is the last of its group of so many.

    A damaged file may say any number of layers: no more are told of than any model has.
    """
    return tuple((layer + 1) % size == 0 for layer in range(min(layers, 10_000)))


class Keys:
    """The metadata of the file's architecture; `finish` refuses keys that were never read.

    Attributes:
      file: the file.
      architecture: the prefix of the keys.

    Raises:
      WeightsError: another architecture.
    """

    def __init__(self, file: GGUFFile, supported: Collection[str]):
        self.file = file
        architecture = file.metadata.get("general.architecture")
        if not isinstance(architecture, str) or architecture not in supported:
            raise WeightsError(
                f"architecture of {file.path.name} is {short(architecture)}; supported are "
                f"{', '.join(supported)}"
            )
        self.architecture, prefix = architecture, f"{architecture}."
        self._left = {
            key.removeprefix(prefix): value
            for key, value in file.metadata.items()
            if key.startswith(prefix)
        }

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def number(self, key: str, default: float | None = None) -> Any:
        """A number, or that of all layers; it must be there if there is no default."""
        value = self._left.pop(key, default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()  # one for each layer, all alike
        if value is None:
            raise WeightsError(
                f"metadata '{self.architecture}.{key}' of {self.file.path.name} is missing; "
                f"{DAMAGED}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(key, value)
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """A number that is an integer."""
        value = self.number(key, default)
        if not isinstance(value, int):
            self.refuse(key, value)
        return value

    def first(self, key: str) -> int:
        """The integer of the first layer; `by_layer` reads those of all."""
        value = self._left.get(key)
        if not isinstance(value, np.ndarray) or not value.size:
            value = self._left[key] = np.array([self.integer(key)])
        if value.dtype.kind not in "iu":
            self.refuse(key, value)
        return value[0].item()

    def by_layer(self, key: str, count: int) -> tuple[int, ...]:
        """An integer for each layer, after `first`: the file has one for all, or so many."""
        value = self._left.pop(key)
        if len(value) not in (1, count):
            self.refuse(key, value, f", where there are {count} layers")
        return tuple(np.broadcast_to(value, count).tolist())

    def text(self, key: str, default: str) -> str:
        """A text."""
        value = self._left.pop(key, default)
        if not isinstance(value, str):
            self.refuse(key, value)
        return value

    def truth(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._left.pop(key, default)
        if not isinstance(value, bool):
            self.refuse(key, value)
        return value

    def truths(self, key: str, count: int) -> tuple[bool, ...] | None:
        """True or false, or 1 or 0, for each layer; None where the file has no such list."""
        value = self._left.get(key)
        if not isinstance(value, np.ndarray) or not np.isin(value, (0, 1)).all():
            return None
        if value.shape != (count,):
            self.refuse(key, value, f", where there are {count} layers")
        return tuple(map(bool, self._left.pop(key)))

    def integers(self, key: str) -> tuple[int, ...] | None:
        """A list of integers; None where the file has none."""
        value = self._left.pop(key, None)
        if value is None:
            return None
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
            self.refuse(key, value)
        return tuple(value.tolist())

    def expect(self, key: str, size: int, what: str) -> None:
        """Refuses an integer that is another; `what` says what is of this size."""
        if (value := self.integer(key, size)) != size:
            self.refuse(key, value, f", where {what} is {size}")

    def refuse(self, key: str, value: Any, note: str = "") -> NoReturn:
        """Raises the error of a value that is not supported."""
        raise WeightsError(
            f"metadata {short(f'{self.architecture}.{key}')} of {self.file.path.name} is "
            f"{short(value)}{note}; this is not supported, give another model"
        )

    def finish(self) -> None:
        """Refuses keys that were not read and might change the arithmetic."""
        for key, value in self._left.items():
            harmless = _ANY if key.startswith(_VISION) else _HARMLESS.get(key)
            if harmless is not _ANY and (harmless is None or short(value) != short(harmless)):
                self.refuse(key, value)
