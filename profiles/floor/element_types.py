"""Element types by the names that XLA prints, and their sizes."""

import functools
import re

import numpy as np
from numpy.typing import DTypeLike

from sharding.error_types import FloorlineError


@functools.cache
def bits(element: str) -> int:
    """Bits of one element, by HLO's name of its type.

    Raises:
      FloorlineError: a type without a size.
    """
    if element in ("pred", "token", "opaque"):
        return 8 if element == "pred" else 0
    if not (found := re.match(r"(?:s|u|f|bf|c)(\d+)", element)):
        raise FloorlineError(
            f"element type is {element!r}; its size must be added to profiles.floor.element_types"
        )
    return int(found[1])


@functools.cache
def element_of(dtype: DTypeLike) -> str:
    """HLO's name of an array's dtype: ``bf16`` for bfloat16, ``s4`` for int4."""
    name = np.dtype(dtype).name.replace("_", "")
    for long, short in (("uint", "u"), ("int", "s"), ("float", "f"), ("complex", "c")):
        name = name.replace(long, short)
    return "pred" if name == "bool" else name
