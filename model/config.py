"""What a decoder is, as data: one frozen, validated, hashable record per model."""

import dataclasses
import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

from model.config_checks import check
from model.delta_sizes import DeltaSizes
from model.full_attention import LETTERS, FullAttention
from model.latent_sizes import LatentSizes
from model.routing_rule import SOFTMAX, Routing

_BY_LAYER = "windows", "rotary_layers", "expert_layers", "delta_layers"
"""Fields that have an entry for each layer."""
_NESTED = {
    "latent": LatentSizes,
    "routing": Routing,
    "delta": DeltaSizes,
    "full_attention": FullAttention,
}
"""Fields that are records themselves."""


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
      rotary_pairs: the first pairs of a head, so many, are rotated, by the frequencies that they
        have where all are (Gemma 4); None for all.
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
      output_gate: the output of attention is multiplied by the sigmoid of what a further projection
        of the same input gives (Qwen3-Next).
      attention_sinks: each query head has a learned logit that joins the sum under its softmax and
        has no value (gpt-oss).
      query_key_norm: queries and keys have an RMS norm over the head size (Qwen3, Gemma 3).
      unit_queries_keys: rotated queries and keys are divided by their root mean square, without a
        learned scale (Llama 4).
      query_growth: a length and a slope: in layers that do not rotate, queries at position p are
        multiplied by ``1 + slope * log(1 + (p + 1) // length)`` (Llama 4); None for no such factor.
      norm_over_heads: that norm is over all heads together, with a scale for each (OLMo 2).
      value_norm: values have an RMS norm over the head size, without a scale (Gemma 4).
      keys_are_values: a token's value is its key before that is normed and rotated.
      full_attention: sizes of attention in the layers without a window, where they have others.
      norm_before: attention and MLP read a normed residual stream; False only in models that have
        `norm_after` in its place (OLMo 2).
      norm_after: the outputs of attention and MLP have a norm before they are added (Gemma).
      embedding_scale: multiplies the embeddings that are looked up.
      embedding_scale_exact: it is not rounded to their type before (Granite; Gemma rounds it).
      attention_scale: multiplies scores; head_size ** -0.5 if None.
      residual_scale: multiplies what attention and MLP add to the residual stream (Granite).
      block_scale: what leaves a block is multiplied by a number that it learned (Gemma 4).
      logit_scale: multiplies the logits.
      attention_softcap: c of ``c * tanh(score / c)`` on scaled attention scores; None for none.
      logit_softcap: the same on the logits.
      windows: one sliding window per layer: the tokens that a token attends to, itself included;
        None in a layer that attends to all. None for a model without windows.
      chunked: a window is a token's chunk: of the chunks of so many tokens that a sequence is cut
        into, a token attends to its own, up to itself (Llama 4).
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
      expert_layers: for each layer, whether it has experts and not one such MLP (Llama 4); None
        where all have but the first `dense_layers`.
      dense_d_ff: hidden width of that MLP; 0 where there is no such layer.
      shared_d_ff: hidden width of an MLP that all tokens meet beside their experts; 0 for none.
      shared_gate: that MLP's answer is multiplied by the sigmoid of one number for each token
        (Qwen3-Next).
      experts_apart: experts and the MLP beside them each have norms of their own before and after,
        the router reads the residual stream, normed and scaled, and each expert's answer has a
        scale (Gemma 4).
      layer_inputs: numbers of an embedding of each token that every layer has for itself; 0 for
        none (Gemma 4's per-layer embeddings).
      input_layers: layers that the table of these has such numbers for; 0 for those that there are.
      shared_cache_layers: the last layers, so many, have no keys and values of their own, and read
        those of the last layer before them with as long a window (Gemma 4).
      shared_cache_d_ff: hidden width of the MLP in these; 0 for that of the others.
      latent: sizes of latent attention, whose one KV head is its cache's; None for attention whose
        keys and values are cached (`head_size` is then that of queries).
      delta: sizes of gated delta layers, which keep a state in place of keys and values; None for a
        model without.
      delta_layers: for each layer, whether it is one; None where none is.
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
    rotary_pairs: int | None = None
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
    output_gate: bool = False
    attention_sinks: bool = False
    query_key_norm: bool = False
    unit_queries_keys: bool = False
    query_growth: tuple[int, float] | None = None
    norm_over_heads: bool = False
    value_norm: bool = False
    keys_are_values: bool = False
    full_attention: FullAttention | None = None
    norm_before: bool = True
    norm_after: bool = False
    embedding_scale: float = 1.0
    embedding_scale_exact: bool = False
    attention_scale: float | None = None
    residual_scale: float = 1.0
    block_scale: bool = False
    logit_scale: float = 1.0
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    windows: tuple[int | None, ...] | None = None
    chunked: bool = False
    local_rotary_base: float | None = None
    rotary_scale: float = 1.0
    experts: int = 0
    experts_per_token: int = 0
    renormalise_experts: bool = True
    expert_bias: bool = False
    routing: Routing = SOFTMAX
    dense_layers: int = 0
    expert_layers: tuple[bool, ...] | None = None
    dense_d_ff: int = 0
    shared_d_ff: int = 0
    shared_gate: bool = False
    experts_apart: bool = False
    layer_inputs: int = 0
    input_layers: int = 0
    shared_cache_layers: int = 0
    shared_cache_d_ff: int = 0
    latent: LatentSizes | None = None
    delta: DeltaSizes | None = None
    delta_layers: tuple[bool, ...] | None = None
    parallel_block: bool = False
    tied_embedding: bool = False

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """A configuration from what `dataclasses.asdict` gave, kept as JSON.

        Raises:
          TypeError: a field that there is none of, as another version may have had.
        """
        made = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        for name, kind in _NESTED.items():
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
        if self.expert_layers:
            return self.expert_layers[layer]
        return self.experts > 0 and layer >= self.dense_layers

    @property
    def layers_of_experts(self) -> int:
        """How many layers have experts."""
        return sum(map(self.has_experts, range(self.layers)))

    def is_delta(self, layer: int) -> bool:
        """Whether this layer keeps a state in place of keys and values."""
        return self.delta_layers is not None and self.delta_layers[layer]

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Numbers of the layers that cache what tokens bring, and so grow with a sequence."""
        return tuple(layer for layer in range(self.layers) if not self.is_delta(layer))

    def has_window(self, layer: int) -> bool:
        """Whether this layer is one of those with a window, be that as long as any sequence."""
        return self.windows is not None and self.windows[layer] is not None

    def is_full(self, layer: int) -> bool:
        """Whether attention of this layer has the sizes of `full_attention`."""
        return self.full_attention is not None and not self.has_window(layer)

    def at(self, layer: int) -> "ModelConfig":
        """The model as this layer sees it: one whose heads are all as the layer's."""
        return _with_full_heads(self) if self.is_full(layer) else self

    def letters(self, layer: int, letters: str) -> str:
        """Letters of an array of this layer's heads, from those of other layers'."""
        return letters.translate(LETTERS) if self.is_full(layer) else letters

    def cache_layer(self, layer: int) -> int:
        """The layer whose keys and values this one reads: itself, where it has its own."""
        first = self.layers - self.shared_cache_layers
        if layer < first:
            return layer
        alike = (n for n in reversed(range(first)) if self.has_window(n) == self.has_window(layer))
        return next(alike, layer)

    def borrows(self, layer: int) -> bool:
        """Whether this layer reads the keys and values of another."""
        return layer >= self.layers - self.shared_cache_layers

    def lends(self, layer: int) -> bool:
        """Whether another layer reads this one's keys and values."""
        borrowers = range(self.layers - self.shared_cache_layers, self.layers)
        return layer not in borrowers and layer in map(self.cache_layer, borrowers)

    def mlp_width(self, layer: int) -> str:
        """Letter of the hidden width of this layer's MLP, where it has one for all tokens."""
        return "f" if self.experts or (self.borrows(layer) and self.shared_cache_d_ff) else "F"

    def kind(self, layer: int) -> Hashable:
        """What this layer has in common with those that have arrays of the same shapes."""
        return (
            self.has_experts(layer),
            self.is_delta(layer),
            self.is_full(layer),
            self.borrows(layer),
        )

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
        dense = self.experts > 0 and not all(map(self.has_experts, numbers))
        kept |= {
            "dense_layers": sum(number < self.dense_layers for number in numbers),
            "dense_d_ff": self.dense_d_ff if dense else 0,
        }
        borrowing = sum(map(self.borrows, numbers))
        kept["shared_cache_layers"] = borrowing
        kept["shared_cache_d_ff"] = self.shared_cache_d_ff if borrowing else 0
        kept["input_layers"] = self.layer_inputs and (self.input_layers or self.layers)
        return dataclasses.replace(self, layers=len(numbers), **kept)

    def one_of_each(self) -> "ModelConfig":
        """The same model with the first layer of each kind, in the order of `kinds`."""
        return self.only([first for first, _ in self.kinds])

    def first_layers(self, layers: int) -> "ModelConfig":
        """The same model with so many of its first layers, one of experts if it has such."""
        found = (layer for layer in range(self.layers) if self.has_experts(layer))
        first = next(found, 0)
        return self.only([*range(min(first, layers - 1)), *range(first, self.layers)][:layers])

    def equal_layers(self, layers: int) -> "ModelConfig":
        """The same model with so many layers that are all alike, of attention without windows."""
        alike = {"dense_layers": 0, "dense_d_ff": 0, "delta": None} | dict.fromkeys(_BY_LAYER)
        alike |= {"full_attention": None, "shared_cache_layers": 0, "shared_cache_d_ff": 0}
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
            **({"f": width} if (width := self.dense_d_ff or self.shared_cache_d_ff) else {}),
            **({"s": self.shared_d_ff} if self.shared_d_ff else {}),
            **({"a": 1} if self.shared_gate else {}),
            **(self.latent.lengths if self.latent else {}),
            **(self.delta.lengths if self.delta else {}),
            **(self.full_attention.lengths(self.query_heads) if self.full_attention else {}),
            **(self._input_lengths if self.layer_inputs else {}),
        }

    @property
    def _input_lengths(self) -> dict[str, int]:
        one = self.layer_inputs
        return {"p": one, "P": (self.input_layers or self.layers) * one}


@functools.cache
def _with_full_heads(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, **config.full_attention.changes)
