"""How a model's numbers are stored and multiplied."""

import dataclasses
import functools
from collections.abc import Container

import jax
import jax.numpy as jnp

from sharding.devices import default_platform
from sharding.error_types import UsageError
from sharding.quantization import COUNTED, QUANTIZATIONS, Quantization
from sharding.stored_types import KERNELS_BY_DEFAULT, PLAIN_TYPES

Storage = jnp.dtype | Quantization
"""Plain values of a type, or few bits and scales."""
PLAIN_DTYPES = {name: getattr(jnp, name) for name in PLAIN_TYPES}


@dataclasses.dataclass(frozen=True)
class Dtypes:
    """The types that a model runs with; three flags of the scripts name them.

    A quantization is for what a step reads most of: matrices of attention, MLPs and experts. What
    stays plain then: norms, biases and the router, which are small and which everything depends on;
    the embedding and unembedding, whose errors go into all logits. `mxfp4` is for the matrices of
    experts alone, where a model has experts.

    Attributes:
      dtype: type of activations and of arithmetic.
      weights: type of weights; a quantization is for matrices alone, and other weights are in
        `dtype` then. The same as `dtype` if None.
      cache: type of keys and values. The same as `dtype` if None.
      round_activations: multiply 8-bit integers: where a matrix has one scale for each output,
        what it multiplies is rounded to them too, with a scale for each token.
      multiplied: name of the type of arithmetic, the same as in chips' figures, where it is another
        than `dtype`; empty where it is not. It is counted but does not run.
      gpu_kernels: which of `sharding.stored_types.GPU_KERNELS` steps on GPUs have: stored types
        whose products with few tokens are made by one, ``attention_step`` and ``norm``.
    """

    dtype: jnp.dtype
    weights: Storage | None = None
    cache: Storage | None = None
    round_activations: bool = False
    multiplied: str = ""
    gpu_kernels: tuple[str, ...] = KERNELS_BY_DEFAULT

    def __post_init__(self):
        dtype = jnp.dtype(self.dtype)
        for name in ("dtype", "weights", "cache"):
            storage = getattr(self, name) or dtype
            storage = storage if isinstance(storage, Quantization) else jnp.dtype(storage)
            object.__setattr__(self, name, storage)

    def __str__(self) -> str:
        names = self.names()
        parts = [names["dtype"]]
        if self.multiplied:
            parts.append(f"arithmetic in {self.multiplied}")
        if self.weights != self.dtype:
            parts.append(f"weights {names['weight_dtype']}")
        if self.cache != self.dtype:
            parts.append(f"KV cache {names['kv_dtype']}")
        return " ".join([parts[0], *(f"({', '.join(parts[1:])})" for _ in parts[1:2])])

    @property
    def arithmetic(self) -> str:
        """Name of the type that matmuls multiply in, the same as in chips' figures."""
        return self.multiplied or ("int8" if self.round_activations else self.dtype.name)

    def arithmetic_on(self, rates: Container[str]) -> str:
        """`arithmetic` on a chip with rates of these types: stored values unconverted if it can."""
        stored = self.quantization and self.quantization.multiplied
        return stored if stored in rates and not self.multiplied else self.arithmetic

    @property
    def plain(self) -> jnp.dtype:
        """Type of weights that are stored as plain arrays."""
        return self.dtype if self.quantization else self.weights

    @property
    def quantization(self) -> Quantization | None:
        """Quantization of matrices; None where they are plain."""
        return self.weights if isinstance(self.weights, Quantization) else None

    def quantization_of(self, letters: str, experts: int) -> Quantization | None:
        """Quantization of a matrix with these letters, in a model of so many experts per layer."""
        kept = self.quantization
        apart = kept and kept.experts_only and experts and "E" not in letters
        return None if apart else kept

    def names(self) -> dict[str, str]:
        """Names of the three types, by the fields that records have for them."""
        return {"dtype": self.dtype.name, "weight_dtype": self.weights.name,
                "kv_dtype": self.cache.name}  # fmt: skip


def default_dtype() -> str:
    """float32 on CPU, where bfloat16 is slow; bfloat16 elsewhere."""
    return "float32" if default_platform() == "cpu" else "bfloat16"


def check_runs(dtypes: Dtypes) -> None:
    """Refuses types whose bytes are counted but which do not run.

    Raises:
      UsageError: weights or arithmetic are of such a type; the message names those that run.
    """
    if dtypes.multiplied:
        raise UsageError(
            f"arithmetic is in {dtypes.multiplied}, which is counted but does not run; use one of "
            f"{', '.join(PLAIN_DTYPES)}"
        )
    if dtypes.weights in COUNTED.values():
        raise UsageError(
            f"weights are {dtypes.weights.name}, which is counted but does not run; use one of "
            f"{', '.join([*PLAIN_DTYPES, *QUANTIZATIONS])}"
        )


def check_platform(quantization: Quantization) -> None:
    """Refuses a type that JAX's platform does not compile.

    Raises:
      UsageError: it does not; the message names those that it does.
    """
    platform = default_platform()
    if not _compiles(quantization.dtype):
        names = [each.name for each in QUANTIZATIONS.values() if _compiles(each.dtype)]
        raise UsageError(
            f"stored type is {quantization.name}, which {platform} does not compile; "
            f"use one of {', '.join(['float32', 'bfloat16', *names])}"
        )


@functools.cache
def _compiles(dtype: jnp.dtype) -> bool:
    """Whether values of this type can be kept, and converted as they are read."""
    try:
        tile = jax.ShapeDtypeStruct((8, 128), dtype)
        jax.jit(lambda values: values.astype(jnp.float32)).lower(tile).compile()
    except (jax.errors.JaxRuntimeError, NotImplementedError, TypeError, ValueError):
        return False
    return True


FLOAT32, BFLOAT16 = Dtypes(jnp.float32), Dtypes(jnp.bfloat16)
"""Everything in one type."""
