"""What numbers may be stored in, as names and figures: flags list them before JAX is imported."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

PLAIN_TYPES = ("float32", "bfloat16")
MULTIPLIED_TYPES = ("fp8", "int8", "fp4")
"""Types of few bits that chips multiply, by the names of their figures."""


class QuantizedType(NamedTuple):
    """A type of few bits with scales: what a `sharding.quantization.Quantization` is made of."""

    dtype: str
    largest: float
    group: int | None = None
    offset: bool = False
    scale: str = "float32"
    whole: bool = False
    multiplied: str | None = None
    codes: bool = False
    experts_only: bool = False


QUANTIZED_TYPES: Mapping[str, QuantizedType] = MappingProxyType(
    {
        "int8": QuantizedType("int8", 127),
        "int8_grouped": QuantizedType("int8", 127, group=32),
        "fp8": QuantizedType("float8_e4m3fn", 448),
        "fp8_grouped": QuantizedType("float8_e4m3fn", 448, group=128),
        "int4": QuantizedType("uint4", 15, group=32, offset=True),
        "int4_symmetric": QuantizedType("int4", 7, group=32),
        "mxfp4": QuantizedType(
            "uint4", 6, 32, scale="uint8", multiplied="fp4", codes=True, experts_only=True
        ),
    }
)
KERNEL_TYPES = ("int8", "int8_grouped", "fp8_grouped", "int4", "int4_symmetric")
"""Those that this project has a kernel for on GPUs, `sharding.grouped_gpu`."""
GPU_KERNELS = ("attention_step", "norm", *KERNEL_TYPES, "mxfp4")
"""All kernels that no GPU has run: also `model.attention_gpu_step`, `model.norm_gpu` and, for
experts, `sharding.grouped_stack_gpu` ..."""
KERNELS_BY_DEFAULT = tuple(name for name in GPU_KERNELS if name != "int8")
"""... and those that steps have unless told otherwise. int8 XLA:GPU converts within its matmul."""
COUNTED_TYPES: Mapping[str, QuantizedType] = MappingProxyType(
    {
        "nvfp4": QuantizedType(
            "float4_e2m1fn", 6, 16, scale="float8_e4m3fn", whole=True, multiplied="fp4"
        ),
    }
)
"""Types of weights whose bytes and floors are counted, but which do not run.

Source: NVIDIA, Introducing NVFP4 (16 values share a scale in float8, and the tensor one in
float32).
"""
CACHE_TYPES = (
    *PLAIN_TYPES,
    *(name for name, kind in QUANTIZED_TYPES.items() if kind.group is None),
)
"""Those of a KV cache, which has one scale for each token and head."""
