"""The fields of a `config.json`: each read by name and type, what is left refused.

A field that says nothing is accepted: null, or the value at which the mathematics is unchanged.
"""

import json
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

from model.weights import WeightsError
from model.weights.family_record import ANY, HARMLESS
from model.weights.fp8_files import is_read
from model.weights.quantized_names import NOT_READ

_LARGEST = 10_000_000  # bytes of a config.json
_MOST = {"head_dim": 2**16, "num_hidden_layers": 100_000}  # limits of integer fields; else 2**40

_QUANTIZATION = ("quantization_config", "compression_config", "quantization")


class Fields:
    """The fields of a `config.json`; `finish` refuses unknown fields that were never read."""

    def __init__(self, path: Path, values: dict[str, Any] | None = None):
        """Those of a file; `values` in place of what it says."""
        self._path = path
        self._values = _read(path) if values is None else values
        self._left = set(self._values)

    def within(self, name: str, beside: Collection[str]) -> "Fields":
        """The fields of the object in a field, together with those that stand beside it.

        Args:
          name: the field.
          beside: fields beside it that say nothing of what it describes.
        """
        inner = self.take(name)
        if not isinstance(inner, dict):
            self.refuse(name, inner, "give an object")
        outer = {k: v for k, v in self._values.items() if k != name and k not in beside}
        for each in sorted(outer.keys() & inner.keys()):
            known = HARMLESS.get(each) is ANY
            if not known and None not in (outer[each], inner[each]) and outer[each] != inner[each]:
                self.refuse(each, outer[each], f"{name} says {inner[each]!r:.40}")
        given = {k: v for k, v in inner.items() if v is not None or k not in outer}
        return Fields(self._path, outer | given)

    def take(self, name: str, default: Any = ANY) -> Any:
        """The value of a field, and `default` where it is null or missing."""
        self._left.discard(name)
        value = self._values.get(name)
        if value is None:
            value = default
        if value is ANY:
            raise WeightsError(f"field {name} of {self._path} is missing; fetch the model again")
        return value

    def integer(self, name: str, default: Any = ANY) -> int:
        """An integer that is not negative."""
        value = self.take(name, default)
        most = _MOST.get(name, 2**40)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            self.refuse(name, value, f"give an integer from 0 to {most}")
        return value

    def one_of(self, names: tuple[str, ...]) -> int:
        """The integer in one or more of these fields, which must agree."""
        found = {name: self.integer(name) for name in names if self._values.get(name) is not None}
        if not found:
            return self.integer(names[0])
        (first, value), *more = found.items()
        for name, other in more:
            if other != value:
                self.refuse(name, other, f"{first} says {value}")
        for name in names:
            self._left.discard(name)
        return value

    def number(self, name: str, default: Any = ANY) -> float:
        """A number that is not negative, and positive where there is no default."""
        value = self.as_number(name, self.take(name, default))
        if value < 0 or (default is ANY and value == 0):
            self.refuse(name, value, "give a positive number")
        return value

    def as_number(self, name: str, value: Any) -> float:
        """A value that is a number, which a field or an object in one has under this name."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
            self.refuse(name, value, "give a number")
        return float(value)

    def unset(self, name: str, absent: float | None) -> float | None:
        """A number that is not negative; None for null, and `absent` if the field is missing."""
        self._left.discard(name)
        if self._values.get(name) is None:
            return None if name in self._values else absent
        return self.number(name, 0.0)

    def truth(self, name: str, default: bool, null: bool | None = None) -> bool:
        """True or false; `null` where the field is null, which else is as if it were absent."""
        if null is not None and name in self._values and self._values[name] is None:
            default = null
        value = self.take(name, default)
        if not isinstance(value, bool):
            self.refuse(name, value, "give true or false")
        return value

    def last_of_groups(
        self, name: str, size: int, layers: int, given: list[bool] | None = None
    ) -> list[bool]:
        """Whether each of so many layers is the last of its group.

        Args:
          name: the field that may say how many layers a group has; empty if none does.
          size: how many it has where no field says it.
          layers: how many there are.
          given: what a list of all layers says; then that counts, and the field nothing.
        """
        size = self.integer(name, size) if name else size
        if given is not None:
            return given
        if not size:
            self.refuse(name, size, "give a positive integer")
        return [(layer + 1) % size == 0 for layer in range(layers)]

    def kinds_of_layers(self, layers: int, kinds: Mapping[str, bool]) -> list[bool] | None:
        """What `kinds` has for each layer's entry of `layer_types`; None where that is missing."""
        types = self.take("layer_types", None)
        if types is None:
            return None
        if not isinstance(types, list) or len(types) != layers or {*map(str, types)} - {*kinds}:
            self.refuse("layer_types", types, f"give {layers} of {', '.join(kinds)}")
        return [kinds[kind] for kind in types]

    def text(self, name: str) -> str:
        """A text."""
        value = self.take(name)
        if not isinstance(value, str):
            self.refuse(name, value, "give a text")
        return value

    def refuse(self, name: str, value: Any, remedy: str) -> NoReturn:
        """Raises a WeightsError that names a field, its value and what would work."""
        shown = repr(value) if len(repr(value)) < 60 else repr(value)[:60] + "..."
        raise WeightsError(f"field {name!r:.80} of {self._path} is {shown}; {remedy}")

    def finish(self, known: Mapping[str, tuple[Any, ...] | object], quantized: str = "") -> None:
        """Refuses fields that were not read and might change the arithmetic.

        Args:
          known: for each further field, the values with which it changes nothing.
          quantized: the `quant_method` of the family's own files; empty for fp8, as any may be.
        """
        self._left = {name for name in self._left if self._values[name] is not None}
        for name in sorted(self._left.intersection(_QUANTIZATION)):
            value = self._values[name]
            method = value.get("quant_method") if isinstance(value, dict) else None
            if method == quantized if quantized else is_read(value):
                self._left.discard(name)
                continue
            by = f"by {method!r:.40} " if method else ""
            self.refuse(name, value, f"weights quantized {by}{NOT_READ}")
        for name in sorted(self._left):
            harmless, value = known.get(name), self._values[name]
            if harmless is ANY:
                continue
            if harmless is None or not any(
                value == good and type(value) is type(good) for good in harmless
            ):
                self.refuse(name, value, "this may change the mathematics and is not supported")


def _read(path: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a field is there twice")
        return found

    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            raise ValueError("it is too large, or no regular file")
        values = json.loads(path.read_text("utf-8"), object_pairs_hook=once)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0][:80]
        raise WeightsError(f"{path} is not readable: {reason}; fetch the model again") from None
    if not isinstance(values, dict):
        raise WeightsError(f"{path} is not a JSON object; fetch the model again")
    return values
