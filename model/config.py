"""What a decoder is, as data: one frozen, validated, hashable record per model."""

import dataclasses
from typing import Literal

from sharding.errors import UsageError


class ConfigError(UsageError):
    """A model description that contradicts itself or asks for something not supported."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and choices of one decoder; everything that a compiled step depends on.

    Attributes:
      name: what reports call the model.
      vocabulary: V, rows of the embedding.
      d_model: D, width of the residual stream.
      layers: number of blocks.
      query_heads: H = K * G.
      kv_heads: K; 1 is multi-query attention, H is multi-head.
      head_size: h; even, since rotary embedding turns pairs.
      d_ff: F, hidden width of the gated MLP.
      max_context: longest sequence the model was trained for, in tokens.
      rotary_base: base of the rotary frequencies.
      rotary_factors: one divisor per frequency (h / 2 of them) for models trained with stretched
        positions; None leaves the frequencies as they are.
      norm: root-mean-square norm, or layer norm with a scale and no bias.
      norm_epsilon: added to the mean square (or variance) before the square root.
      parallel_block: attention and MLP read the same normed input and are added together
        (PaLM, Chowdhery et al. 2022, section 2) instead of one after the other.
      tied_embedding: the unembedding is the embedding.
    """

    name: str
    vocabulary: int
    d_model: int
    layers: int
    query_heads: int
    kv_heads: int
    head_size: int
    d_ff: int
    max_context: int
    rotary_base: float = 10_000.0
    rotary_factors: tuple[float, ...] | None = None
    norm: Literal["rms", "layer"] = "rms"
    norm_epsilon: float = 1e-5
    parallel_block: bool = False
    tied_embedding: bool = False

    def __post_init__(self) -> None:
        sizes = "vocabulary d_model layers query_heads kv_heads head_size d_ff max_context"
        for field in sizes.split():
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{field} of {self.name} is {value!r}; it must be an integer > 0")
        if self.query_heads % self.kv_heads:
            raise ConfigError(
                f"query_heads of {self.name} is {self.query_heads}, not a multiple of its "
                f"{self.kv_heads} kv_heads; every KV head serves the same number of query heads"
            )
        if self.head_size % 2:
            raise ConfigError(f"head_size of {self.name} is {self.head_size}; it must be even")
        if self.norm not in ("rms", "layer"):
            raise ConfigError(f"norm of {self.name} is {self.norm!r}; use 'rms' or 'layer'")
        self._check_numbers()

    def _check_numbers(self) -> None:
        for field in ("rotary_base", "norm_epsilon"):
            value = getattr(self, field)
            if not 0 < value < float("inf"):
                raise ConfigError(f"{field} of {self.name} is {value}; it must be positive")
        factors = self.rotary_factors
        if factors is not None and (
            len(factors) != self.head_size // 2
            or not all(0 < factor < float("inf") for factor in factors)
        ):
            raise ConfigError(
                f"rotary_factors of {self.name} has {len(factors)} values; "
                f"it needs {self.head_size // 2} positive ones, one per rotary frequency"
            )

    @property
    def group(self) -> int:
        """G, query heads per KV head."""
        return self.query_heads // self.kv_heads

    @property
    def sizes(self) -> dict[str, int]:
        """Length of each logical axis that the model itself fixes."""
        return {
            "D": self.d_model,
            "F": self.d_ff,
            "K": self.kv_heads,
            "G": self.group,
            "h": self.head_size,
            "V": self.vocabulary,
        }
