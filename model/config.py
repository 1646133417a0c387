"""What a decoder is, as data: one frozen, validated, hashable record per model."""

import dataclasses
import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

from model.config_checks import check
from model.latent_sizes import LatentSizes
from model.routing_rule import SOFTMAX, Routing

_BY_LAYER = "windows", "rotary_layers"
"""Fields that have an entry for each layer."""


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
      max_context: tokens of the longest sequence that the model was trained or extended for.
      rotary_base: base of the rotary frequencies.
      rotary_size: the first dimensions of a head, an even number, that are rotated; None for all.
      rotary_layers: for each layer, whether its queries and keys are rotated (SmolLM3); None where
        all are.
      rotary_factors: one divisor per frequency (half as many as rotated dimensions) for models with
        rotary scaling; None leaves the frequencies as they are.
      rotary_limit: tokens of the longest sequence that these frequencies hold for, where dynamic
        scaling changes them for longer ones; None for no limit.
      long_rotary_factors: the divisors in place of `rotary_factors` where `max_context` is beyond
        `rotary_limit` (LongRoPE); None for models that do not go beyond.
      norm: root-mean-square norm, or layer norm with a scale and no bias.
      norm_epsilon: added to the mean square (or variance) before the square root.
      activation: the gate's in the MLP; ``gelu_tanh`` is GELU's tanh approximation (GeGLU), and
        ``clipped_silu`` the clipped SwiGLU of `model.mlp.clipped_swiglu` (gpt-oss).
      attention_bias: queries, keys and values have a bias (Qwen2).
      output_bias: the output of attention has a bias.
      mlp_bias: gate, up and down of the MLP have a bias.
      attention_sinks: each query head has a learned logit that joins the sum under its softmax and
        has no value (gpt-oss).
      query_key_norm: queries and keys have an RMS norm over the head size (Qwen3, Gemma 3).
      norm_over_heads: that norm is over all heads together, with a scale for each (OLMo 2).
      norm_before: attention and MLP read a normed residual stream; False only in models that have
        `norm_after` in its place (OLMo 2).
      norm_after: the outputs of attention and MLP have a norm before they are added (Gemma).
      embedding_scale: multiplies the embeddings that are looked up.
      attention_scale: multiplies scores; head_size ** -0.5 if None.
      residual_scale: multiplies what attention and MLP add to the residual stream (Granite).
      logit_scale: multiplies the logits.
      attention_softcap: c of ``c * tanh(score / c)`` on scaled attention scores; None for none.
      logit_softcap: the same on the logits.
      windows: one sliding window per layer: the tokens that a token attends to, itself included;
        None in a layer that attends to all. None for a model without windows.
      local_rotary_base: rotary base of the layers that have a window, whose frequencies are not
        scaled; None if they have the same rotary embedding as the others.
      rotary_scale: multiplies the cosines and sines (YaRN's attention factor).
      experts: E, MLPs per layer among which a router chooses, each `d_ff` wide; 0 for one MLP for
        all tokens.
      experts_per_token: k, experts that the router chooses for each token.
      renormalise_experts: the chosen experts' router weights are divided by their sum.
      expert_bias: the router and every expert's three matrices have a bias (gpt-oss).
      routing: the router's rule.
      dense_layers: the first layers, so many, have one MLP in place of experts (DeepSeek).
      dense_d_ff: hidden width of that MLP; 0 where there is no such layer.
      shared_d_ff: hidden width of an MLP that all tokens meet beside their experts; 0 for none.
      latent: sizes of latent attention, whose one KV head is its cache's; None for attention whose
        keys and values are cached (`head_size` is then that of queries).
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
    rotary_size: int | None = None
    rotary_layers: tuple[bool, ...] | None = None
    rotary_factors: tuple[float, ...] | None = None
    rotary_limit: int | None = None
    long_rotary_factors: tuple[float, ...] | None = None
    norm: Literal["rms", "layer"] = "rms"
    norm_epsilon: float = 1e-5
    activation: Literal["silu", "gelu_tanh", "clipped_silu"] = "silu"
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    attention_sinks: bool = False
    query_key_norm: bool = False
    norm_over_heads: bool = False
    norm_before: bool = True
    norm_after: bool = False
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    windows: tuple[int | None, ...] | None = None
    local_rotary_base: float | None = None
    rotary_scale: float = 1.0
    experts: int = 0
    experts_per_token: int = 0
    renormalise_experts: bool = True
    expert_bias: bool = False
    routing: Routing = SOFTMAX
    dense_layers: int = 0
    dense_d_ff: int = 0
    shared_d_ff: int = 0
    latent: LatentSizes | None = None
    parallel_block: bool = False
    tied_embedding: bool = False

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """A configuration from what `dataclasses.asdict` gave, kept as JSON.

        Raises:
          TypeError: a field that there is none of, as another version may have had.
        """
        made = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        for name, kind in {"latent": LatentSizes, "routing": Routing}.items():
            if made.get(name) is not None:
                made[name] = kind(**made[name])
        return cls(**made)

    def __post_init__(self) -> None:
        check(self)

    def window(self, layer: int) -> int | None:
        """Tokens that a token of this layer attends to, itself included; None for all.

        None also for a window that is at least as long as any sequence.
        """
        size = self.windows[layer] if self.windows else None
        return size if size and size < self.max_context else None

    def has_experts(self, layer: int) -> bool:
        """Whether a router chooses among experts in this layer."""
        return self.experts > 0 and layer >= self.dense_layers

    def kind(self, layer: int) -> Hashable:
        """What this layer has in common with those that have arrays of the same shapes."""
        return self.has_experts(layer)

    @functools.cached_property
    def kinds(self) -> tuple[tuple[int, int], ...]:
        """Of each kind of layer the number of the first, and how many there are."""
        found: dict[Hashable, list[int]] = {}
        for layer in range(self.layers):
            found.setdefault(self.kind(layer), []).append(layer)
        return tuple((numbers[0], len(numbers)) for numbers in found.values())

    def only(self, numbers: Sequence[int]) -> "ModelConfig":
        """The same model with these of its layers alone, in this order."""
        kept = {
            field: values and tuple(values[number] for number in numbers)
            for field, values in ((each, getattr(self, each)) for each in _BY_LAYER)
        }
        dense = sum(number < self.dense_layers for number in numbers)
        kept |= {"dense_layers": dense, "dense_d_ff": self.dense_d_ff if dense else 0}
        return dataclasses.replace(self, layers=len(numbers), **kept)

    def one_of_each(self) -> "ModelConfig":
        """The same model with the first layer of each kind, in the order of `kinds`."""
        return self.only([first for first, _ in self.kinds])

    def first_layers(self, layers: int) -> "ModelConfig":
        """The same model with so many of its first layers, one of experts if it has such."""
        dense = min(self.dense_layers, layers - 1)
        return self.only([*range(dense), *range(self.dense_layers, self.layers)][:layers])

    def equal_layers(self, layers: int) -> "ModelConfig":
        """The same model with so many layers that are all alike, without windows."""
        alike = {"windows": None, "rotary_layers": None, "dense_layers": 0, "dense_d_ff": 0}
        return dataclasses.replace(self, layers=layers, **alike)

    def rotates(self, layer: int) -> bool:
        """Whether this layer rotates its queries and keys by their positions."""
        return self.rotary_layers is None or self.rotary_layers[layer]

    @property
    def rotated(self) -> int:
        """Dimensions of each head that are rotated."""
        if self.latent:
            return self.latent.rotary
        return self.head_size if self.rotary_size is None else self.rotary_size

    @property
    def extensible(self) -> bool:
        """Whether sequences may be longer than `max_context` where a user asks for it."""
        return self.rotary_limit is None or self.long_rotary_factors is not None

    @property
    def group(self) -> int:
        """G, query heads per KV head."""
        return self.query_heads // self.kv_heads

    @property
    def sizes(self) -> dict[str, int]:
        """Length of each logical axis that the model fixes."""
        return {
            "D": self.d_model,
            "R": self.d_model,
            "F": self.d_ff,
            "K": self.kv_heads,
            "G": self.group,
            "h": self.head_size,
            "V": self.vocabulary,
            "n": self.head_size,
            "k": self.kv_heads,
            "g": self.group,
            "C": 2,
            **({"E": self.experts, "e": self.experts} if self.experts else {}),
            **({"f": self.dense_d_ff} if self.dense_d_ff else {}),
            **({"s": self.shared_d_ff} if self.shared_d_ff else {}),
            **(self.latent.lengths if self.latent else {}),
        }
