"""Qwen3-Next and Qwen3.5 in a GGUF file: keys and tensors of their gated delta layers.

llama.cpp's converter stores the queries of all heads, then the keys and the values, and the gates
of the values in another tensor. In files of Qwen3.5 value heads are counted across key heads: the
first of every key head come before the second of any. It stores rates as ``-exp(A_log)``, which is
undone here, so that they differ from the folder's by a rounding. Source: `conversion/qwen.py` and
`src/models/{qwen3next,qwen35,qwen35moe}.cpp` of https://github.com/ggml-org/llama.cpp.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from model.config import ModelConfig
from model.delta_sizes import DeltaSizes
from model.weights import WeightsError
from model.weights.gguf_file import DAMAGED
from model.weights.gguf_keys import Keys, further_layers, last_of_groups

_LAYERS, _SECTIONS = "attention.recurrent_layers", "rope.dimension_sections"
Stored = tuple[str, dict[str, tuple[int, ...]], Callable[..., np.ndarray], str]
"""An array's path in a layer, its tensors by name and shape, what makes it of them, their kind."""


def delta_fields(keys: Keys, layers: int) -> dict[str, Any]:
    """Fields of a `ModelConfig` for gated delta layers.

    Args:
      keys: the file's.
      layers: those of the model.

    Raises:
      WeightsError: sizes that are missing or contradict each other.
    """
    heads, values = keys.integer("ssm.group_count"), keys.integer("ssm.time_step_rank")
    if heads < 1 or values < 1 or values % heads:
        keys.refuse("ssm.time_step_rank", values, f", where there are {heads} key heads")
    inner = keys.integer("ssm.inner_size")
    if inner % values:
        keys.refuse("ssm.inner_size", inner, f", where there are {values} value heads")
    sizes = DeltaSizes(
        key_heads=heads,
        values_per_key=values // heads,
        key_size=keys.integer("ssm.state_size"),
        value_size=inner // values,
        taps=keys.integer("ssm.conv_kernel"),
    )
    every = keys.integer("full_attention_interval", 4)
    if every < 1:
        keys.refuse("full_attention_interval", every)
    which = keys.truths(_LAYERS, layers + further_layers(keys.file))
    if which is None:
        which = tuple(not each for each in last_of_groups(every, layers))
    which = which[:layers]
    return {"delta": sizes, "delta_layers": which} if any(which) else {}


def check_sections(keys: Keys, rotated: int) -> None:
    """Refuses rotary sections by which a text would not be rotated by the places of its tokens.

    Each frequency turns by one of four places. The first three of a text's token are its place in
    the text, taken by turns; what they leave turns by the fourth, which is none.

    Args:
      keys: the file's.
      rotated: dimensions of a head that are rotated, two of each frequency.

    Raises:
      WeightsError: such sections.
    """
    sections = keys.integers(_SECTIONS)
    if sections is None:
        return
    if len(sections) != 4 or min(sections) < 0 or not sum(sections):
        keys.refuse(_SECTIONS, list(sections))
    count = min(rotated // 2, sum(sections))  # after which they begin anew
    if any((count + 2 - axis) // 3 > sections[axis] for axis in range(3)):
        note = f", which leave some of {rotated // 2} frequencies to an axis that no text has"
        keys.refuse(_SECTIONS, list(sections), note)


@dataclasses.dataclass(frozen=True)
class DeltaTensors:
    """The tensors of one gated delta layer.

    The letters of shapes are those of `model.delta_layer`: N key heads, M values of each, i and o
    the sizes of keys and values, w and m all that a key head makes and what of it is convolved.

    Attributes:
      config: the model.
      apart: strengths and fades are two tensors, and value heads are counted across key heads
        (Qwen3.5).
      whole: what a key head makes of a token is one part of one tensor, as in files of Qwen3-Next
        of 2025.
    """

    config: ModelConfig
    apart: bool
    whole: bool = False

    def all(self) -> list[Stored]:
        """Every array of the layer but its norms before attention and MLP."""
        sizes, D = self.config.delta, self.config.d_model
        N, M, o = sizes.key_heads, sizes.values_per_key, sizes.value_size
        made = {"attn_qkv": (N * sizes.convolved, D), "attn_gate": (N * M * o, D)}
        gates = {"ssm_ba": (2 * N * M, D)}
        if self.whole:
            made = {"ssm_in": (N * sizes.projected, D)}
        if self.apart:
            gates = {name: (N * M, D) for name in ("ssm_beta", "ssm_alpha")}
        taps, heads = {"ssm_conv1d": (N * sizes.convolved, sizes.taps)}, (N * M,)
        return [
            ("attention.query_key_value", made, self.query_key_value, "weight"),
            ("attention.strength_fade", gates, self.strength_fade, "weight"),
            ("attention.taps", taps, self.convolved, "weight"),
            ("attention.rates", {"ssm_a": heads}, self.rates, ""),
            ("attention.rates_bias", {"ssm_dt": heads}, self.values, "bias"),
            ("attention.norm.scale", {"ssm_norm": (o,)}, lambda scale: scale, "weight"),
            ("attention.output", {"ssm_out": (D, N * M * o)}, self.output, "weight"),
        ]

    def values(self, stored: np.ndarray) -> np.ndarray:
        """[N * M * n, ...] of all value heads as [N, M * n, ...] of key heads."""
        sizes, rest = self.config.delta, stored.shape[1:]
        if self.apart:
            across = stored.reshape(sizes.values_per_key, sizes.key_heads, -1, *rest)
            stored = across.swapaxes(0, 1)
        return stored.reshape(sizes.key_heads, -1, *rest)

    def convolved(self, stored: np.ndarray) -> np.ndarray:
        """[N * m, n], all queries before the keys and these before the values, as [N, m, n]."""
        heads, size = self.config.delta.key_heads, self.config.delta.key_size
        queries, keys, values = np.split(stored, [heads * size, 2 * heads * size])
        shape = (heads, size, stored.shape[1])
        parts = queries.reshape(shape), keys.reshape(shape), self.values(values)
        return np.concatenate(parts, axis=1)

    def query_key_value(self, stored: np.ndarray, *gates: np.ndarray) -> np.ndarray:
        """What is convolved and the gates of values, [N * m, D] and [N * M * o, D], as [N, w, D].

        Where one tensor has both, it is so stored.
        """
        if not gates:
            return stored.reshape(self.config.delta.key_heads, -1, stored.shape[1])
        return np.concatenate([self.convolved(stored), *map(self.values, gates)], axis=1)

    def strength_fade(self, *stored: np.ndarray) -> np.ndarray:
        """[2 * N * M, D], or twice [N * M, D], as [N, 2, M, D]."""
        if self.apart:
            return np.stack([self.values(each) for each in stored], axis=1)
        sizes = self.config.delta
        return stored[0].reshape(sizes.key_heads, 2, sizes.values_per_key, -1)

    def rates(self, stored: np.ndarray) -> np.ndarray:
        """``-exp(rates)`` of [N * M] value heads as [N, M].

        Raises:
          WeightsError: a value that no rate has.
        """
        if not (stored < 0).all():
            raise WeightsError(f"tensor ssm_a has {stored.max()}, which is not negative; {DAMAGED}")
        return np.log(-self.values(stored).astype(np.float64)).astype(np.float32)

    def output(self, stored: np.ndarray) -> np.ndarray:
        """[D, N * M * o] as [D, N, M, o]."""
        sizes, D = self.config.delta, len(stored)
        N, M = sizes.key_heads, sizes.values_per_key
        if self.apart:
            return stored.reshape(D, M, N, -1).swapaxes(1, 2)
        return stored.reshape(D, N, M, -1)
