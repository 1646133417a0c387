"""What numbers may be stored in, as names and figures: flags list them before JAX is imported."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

PLAIN_TYPES = ("float32", "bfloat16")


class ScaledType(NamedTuple):
    """A form of few bits with scales; see `sharding.scaled.Scheme`, which is made of it."""

    dtype: str
    largest: float
    group: int | None = None
    offset: bool = False


SCALED_TYPES: Mapping[str, ScaledType] = MappingProxyType(
    {
        "int8": ScaledType("int8", 127),
        "int8_grouped": ScaledType("int8", 127, group=32),
        "fp8": ScaledType("float8_e4m3fn", 448),
        "int4": ScaledType("uint4", 15, group=32, offset=True),
        "int4_symmetric": ScaledType("int4", 7, group=32),
    }
)
CACHE_TYPES = (*PLAIN_TYPES, *(name for name, kind in SCALED_TYPES.items() if kind.group is None))
"""Those of a KV cache, which has one scale for each token and head."""
