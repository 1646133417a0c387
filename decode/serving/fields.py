"""The body of a request: JSON whose fields are taken by name, each of its type and in its range."""

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from decode.serving.errors import ApiError, shown

_UNUSED = {
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
    "service_tier",
}
"""Fields that no answer depends on, here."""

_ASKING_NOTHING: Mapping[str, tuple[object, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "echo": (False,),
    "suffix": ("",),
    "use_beam_search": (False,),
    "cache_prompt": (True,),
    "skip_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
}
"""Fields that are not supported, with the values that ask for nothing."""


def read_json(body: bytes) -> dict[str, Any]:
    """The object that a body is.

    Raises:
      ApiError: it is no JSON, or no object.
    """
    try:
        found = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        why = " ".join(str(error).split())[:100]
        raise ApiError(f"body is no JSON ({why}); send one JSON object in UTF-8") from None
    if not isinstance(found, dict):
        raise ApiError(f"body is {shown(found)}; send one JSON object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


class Fields:
    """Fields of an object, each taken once; null is as if the field were not there.

    Args:
      body: the object.
      inside: name of the field that the object is the value of; empty for a whole body.
    """

    def __init__(self, body: Mapping[str, Any], inside: str = ""):
        self._left = {name: value for name, value in body.items() if value is not None}
        self._inside = f"{inside}." * bool(inside)

    def take(self, name: str, default: Any = None) -> Any:
        """A field as it is."""
        return self._left.pop(name, default)

    def text(self, name: str, default: str | None = None) -> str | None:
        """A field of text."""
        value = self.take(name, default)
        if value is not None and not isinstance(value, str):
            self.refuse(name, value, "give text")
        return value

    def flag(self, name: str) -> bool:
        """A field that is true or false; false if it is not there."""
        value = self.take(name, False)
        if not isinstance(value, bool):
            self.refuse(name, value, "give true or false")
        return value

    def integer(
        self, name: str, default: int | None, low: int, high: int = 2**31 - 1
    ) -> int | None:
        """A field that is an integer from `low` to `high`."""
        value = self.take(name, default)
        if value is not None and (type(value) is not int or not low <= value <= high):
            self.refuse(name, value, f"give an integer from {low} to {high}")
        return value

    def number(self, name: str, default: float | None, low: float, high: float) -> float | None:
        """A field that is a number from `low` to `high`."""
        value = self.take(name, default)
        if value is None:
            return None
        if type(value) not in (int, float) or not low <= value <= high or not math.isfinite(value):
            self.refuse(name, value, f"give a number from {low:g} to {high:g}")
        return float(value)

    def end(self) -> None:
        """Refuses what nobody has taken, where an answer could depend on it.

        Raises:
          ApiError: a field that is unknown, or not supported and asking for something.
        """
        for name, value in self._left.items():
            if name in _UNUSED:
                continue
            if name not in _ASKING_NOTHING:
                self.refuse(name, value, "this field is unknown here: leave it out")
            if value not in _ASKING_NOTHING[name]:
                self.refuse(name, value, "this is not supported: leave it out")

    def refuse(self, name: str, value: object, remedy: str) -> NoReturn:
        """Refuses the value of a field."""
        full = self._inside + name
        raise ApiError(f"{full[:60]} is {shown(value)}; {remedy}", param=full[:60])
