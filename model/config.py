"""What a decoder is, as data: one frozen, validated, hashable record per model."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from model.latent_sizes import LatentSizes
from model.routing_rule import SOFTMAX, Routing
from sharding.error_types import UsageError

_CHOICES = {"norm": ("rms", "layer"), "activation": ("silu", "gelu_tanh", "clipped_silu")}
_POSITIVE = (
    "rotary_base",
    "local_rotary_base",
    "rotary_scale",
    "norm_epsilon",
    "embedding_scale",
    "attention_scale",
    "residual_scale",
    "logit_scale",
    "attention_softcap",
    "logit_softcap",
)


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
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise ConfigError(
                    f"{field} of {self.name} is {getattr(self, field)!r}; use one of {choices}"
                )
        self._check_parts()
        self._check_numbers()
        self._check_rotary()
        self._check_windows()
        self._check_experts()
        if self.latent and (fault := self.latent.fault(self.head_size, self.kv_heads)):
            raise ConfigError(f"latent attention of {self.name} cannot be: {fault}")
        plain = "windows", "attention_softcap", "attention_bias", "query_key_norm"
        for field in plain if self.latent else ():
            if getattr(self, field):
                raise ConfigError(
                    f"{field} of {self.name} is {getattr(self, field)!r:.40}; latent attention "
                    "has none"
                )

    def _check_parts(self) -> None:
        """Refuses norms and biases that no block has together."""
        if self.parallel_block and self.norm_after:
            raise ConfigError(f"norm_after of {self.name} is True; a parallel block has none")
        if not self.norm_before and not self.norm_after:
            raise ConfigError(f"norm_before of {self.name} is False; it needs norm_after then")
        if self.norm_over_heads and not self.query_key_norm:
            raise ConfigError(f"norm_over_heads of {self.name} is True; it needs query_key_norm")
        if self.mlp_bias and self.experts:
            raise ConfigError(f"mlp_bias of {self.name} is True; its experts have none")

    def _check_numbers(self) -> None:
        for field in _POSITIVE:
            value = getattr(self, field)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{field} of {self.name} is {value}; it must be positive")

    def _check_rotary(self) -> None:
        size = self.rotary_size
        if size is not None and (size % 2 or not 0 < size <= self.head_size):
            raise ConfigError(
                f"rotary_size of {self.name} is {size}; it must be even, and 2 to its head_size "
                f"of {self.head_size}"
            )
        if self.rotary_layers is not None and len(self.rotary_layers) != self.layers:
            raise ConfigError(
                f"rotary_layers of {self.name} has {len(self.rotary_layers)} entries; it needs one "
                f"for each of {self.layers} layers"
            )
        for field in ("rotary_factors", "long_rotary_factors"):
            factors = getattr(self, field)
            if factors is not None and (
                len(factors) != self.rotated // 2
                or not all(0 < factor < float("inf") for factor in factors)
            ):
                raise ConfigError(
                    f"{field} of {self.name} has {len(factors)} values; "
                    f"it needs {self.rotated // 2} positive ones, one per rotary frequency"
                )
        beyond = self.rotary_limit is not None and self.max_context > self.rotary_limit
        if beyond and not self.long_rotary_factors:
            raise ConfigError(
                f"max_context of {self.name} is {self.max_context}, beyond what its dynamic rotary "
                f"scaling stays the same for; use at most {self.rotary_limit}"
            )

    def _check_windows(self) -> None:
        if self.windows is None:
            return
        if len(self.windows) != self.layers:
            raise ConfigError(
                f"windows of {self.name} has {len(self.windows)} entries; it needs one for each "
                f"of {self.layers} layers"
            )
        if not all(window is None or window > 0 for window in self.windows):
            raise ConfigError(f"windows of {self.name} is {self.windows}; use integers > 0 or None")

    def _check_experts(self) -> None:
        if self.expert_bias and not self.experts:
            raise ConfigError(f"expert_bias of {self.name} is True, but it has no experts")
        minimum = 1 if self.experts else 0
        if self.experts < 0 or not minimum <= self.experts_per_token <= self.experts:
            raise ConfigError(
                f"experts_per_token of {self.name} is {self.experts_per_token}; it must be "
                f"{minimum} to its {self.experts} experts"
            )
        if self.experts and (fault := self.routing.fault(self.experts, self.experts_per_token)):
            raise ConfigError(f"routing of {self.name} cannot be: {fault}")
        most = self.layers - 1 if self.experts else 0
        if not 0 <= self.dense_layers <= most or bool(self.dense_layers) != (self.dense_d_ff > 0):
            raise ConfigError(
                f"dense_layers of {self.name} is {self.dense_layers} and dense_d_ff "
                f"{self.dense_d_ff}; give both or neither, and at most {most} layers"
            )
        if self.shared_d_ff < 0 or (self.shared_d_ff and not self.experts):
            raise ConfigError(
                f"shared_d_ff of {self.name} is {self.shared_d_ff}; only experts have MLPs beside "
                "them, of a positive width"
            )

    def window(self, layer: int) -> int | None:
        """Tokens that a token of this layer attends to, itself included; None for all.

        None also for a window that is at least as long as any sequence.
        """
        size = self.windows[layer] if self.windows else None
        return size if size and size < self.max_context else None

    def has_experts(self, layer: int) -> bool:
        """Whether a router chooses among experts in this layer."""
        return self.experts > 0 and layer >= self.dense_layers

    def one_of_each(self) -> "ModelConfig":
        """The same model with one layer of each kind that has arrays of its own, and no window."""
        dense = min(self.dense_layers, 1)
        return dataclasses.replace(
            self, layers=1 + dense, dense_layers=dense, windows=None, rotary_layers=None
        )

    @property
    def kinds(self) -> tuple[tuple[int, int], ...]:
        """Of each kind of layer in `one_of_each` the number of its first layer, and how many."""
        dense = self.dense_layers
        return (((0, dense),) if dense else ()) + ((dense, self.layers - dense),)

    def first_layers(self, layers: int) -> "ModelConfig":
        """The same model with so many of its first layers, one of experts if it has such."""
        kept = {field: getattr(self, field) for field in ("windows", "rotary_layers")}
        kept = {field: values and values[:layers] for field, values in kept.items()}
        dense = min(self.dense_layers, layers - 1)
        kept |= {"dense_layers": dense, "dense_d_ff": self.dense_d_ff if dense else 0}
        return dataclasses.replace(self, layers=layers, **kept)

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


def check_length(model: object, name: str, value: int, more: int = 0) -> None:
    """Refuses sequences that are longer than a model's longest.

    Args:
      model: has `max_context`; without that attribute, any length is allowed.
      name: the flag or field that gives the length, such as ``--context``.
      value: its number of tokens.
      more: additional tokens: a decode step's new one, or those before a prompt.

    Raises:
      UsageError: the sequences are too long.
    """
    longest = getattr(model, "max_context", None)
    if longest is None or value + more <= longest:
        return
    beside = f" and {more:,} more token{'s' * (more > 1)}" if more else ""
    room = f"at most {longest - more:,}" if longest > more else "fewer of both"
    raise UsageError(
        f"{name} is {value:,}{beside}, beyond the {longest:,} tokens that {model.name} goes to; "
        f"use {room}, or --max_context={value + more} to go beyond on purpose"
    )


def check_lengths(model: object, prompt: int, answer: int) -> None:
    """Refuses prompts and answers that together are longer than a model's longest sequence.

    Args:
      model: has `max_context`; without that attribute, any length is allowed.
      prompt: tokens of a prompt, by ``--prompt_length``.
      answer: tokens of its answer, by ``--generated_tokens``.

    Raises:
      UsageError: they are too long; the message names the longer of the two.
    """
    if answer > prompt:
        check_length(model, "--generated_tokens", answer, prompt)
    check_length(model, "--prompt_length", prompt, answer)
