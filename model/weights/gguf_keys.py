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


class Keys:
    """The metadata of the file's architecture; `finish` refuses keys that were never read.

    Attributes:
      file: the file.
      architecture: the prefix of the keys.

    Raises:
      WeightsError: another architecture, or a file that is one part of several.
    """

    def __init__(self, file: GGUFFile, supported: Collection[str]):
        self.file = file
        if (parts := file.metadata.get("split.count", 1)) != 1:
            raise WeightsError(
                f"metadata 'split.count' of {file.path.name} is {short(parts)}, so that it is a "
                "part of a model; give one file, which llama-gguf-split --merge makes of them"
            )
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
        """A number, or that of the first layer; it must be there if there is no default.

        Where further layers have others, `finish` refuses what `by_layer` has not read.
        """
        value = self._left.get(key, default)
        each = value if isinstance(value, np.ndarray) and value.size else None
        if each is None or (each == each[0]).all():
            self._left.pop(key, None)
        value = value if each is None else each[0].item()
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

    def by_layer(self, key: str, count: int, first: int) -> tuple[int, ...]:
        """One for each layer: `first`, which `integer` gave, for all unless the file has others."""
        value = self._left.get(key)
        if value is None:
            return (first,) * count
        if value.shape != (count,) or value.dtype.kind not in "iu":
            self.refuse(key, value, f", where there are {count} layers")
        return tuple(self._left.pop(key).tolist())

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
        """One for each layer, or 0 and 1; None where the file has none, or another value."""
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
