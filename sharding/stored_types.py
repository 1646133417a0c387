"""What numbers may be stored in, as names and figures: flags list them before JAX is imported."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

PLAIN_TYPES = ("float32", "bfloat16")


class QuantizedType(NamedTuple):
    """A type of few bits with scales: what a `sharding.quantization.Quantization` is made of."""

    dtype: str
    largest: float
    group: int | None = None
    offset: bool = False


QUANTIZED_TYPES: Mapping[str, QuantizedType] = MappingProxyType(
    {
        "int8": QuantizedType("int8", 127),
        "int8_grouped": QuantizedType("int8", 127, group=32),
        "fp8": QuantizedType("float8_e4m3fn", 448),
        "int4": QuantizedType("uint4", 15, group=32, offset=True),
        "int4_symmetric": QuantizedType("int4", 7, group=32),
    }
)
CACHE_TYPES = (
    *PLAIN_TYPES,
    *(name for name, kind in QUANTIZED_TYPES.items() if kind.group is None),
)
"""Those of a KV cache, which has one scale for each token and head."""
