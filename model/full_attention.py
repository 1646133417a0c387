"""Sizes of attention in the layers without a window, where the others have other ones (Gemma 4).

Few layers see all tokens, and their cache is what grows: fewer and wider KV heads, whose keys are
also their values, keep it small. Source: `configuration_gemma4.py` and `modeling_gemma4.py` of
https://github.com/huggingface/transformers.
"""

import dataclasses
from typing import Any

LETTERS = str.maketrans("KGhn", "JQHA")
"""The letters that take the place of those of heads in arrays of these layers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FullAttention:
    """What takes the place of a model's own sizes in its layers without a window.

    Attributes:
      head_size: h.
      kv_heads: K.
      keys_are_values: a token's value is its key before that is normed and rotated.
      rotary_pairs: the first pairs of a head, so many, are rotated; the others stand still.
    """

    head_size: int
    kv_heads: int
    keys_are_values: bool = False
    rotary_pairs: int | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """The fields of a model's description that it changes."""
        return dataclasses.asdict(self)

    def lengths(self, query_heads: int) -> dict[str, int]:
        """Length of each logical axis of these layers alone."""
        size, kv_heads = self.head_size, self.kv_heads
        return {"J": kv_heads, "Q": query_heads // kv_heads, "H": size, "A": size}

    def fault(self, query_heads: int, windows: tuple[int | None, ...] | None) -> str:
        """What is wrong with these sizes in a model of such heads; empty if nothing is."""
        for name in ("head_size", "kv_heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                return f"{name} is {value!r}; it must be an integer > 0"
        if self.head_size % 2:
            return f"head_size is {self.head_size}; it must be even"
        if query_heads % self.kv_heads:
            return f"kv_heads is {self.kv_heads}, which does not divide {query_heads} query heads"
        pairs = self.rotary_pairs
        if pairs is not None and not 0 < pairs <= self.head_size // 2:
            return f"rotary_pairs is {pairs}; it must be 1 to {self.head_size // 2}"
        return "" if windows else "no layer has a window, so that all are of one kind"
