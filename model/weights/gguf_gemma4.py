"""Gemma 4's text models in a GGUF file: keys and tensors of `gemma4`.

Sizes of heads are those of the layers without a window, and with `_swa` behind their names those of
the others. What differs by layer is an array; that keys are also values is told by tensors that
are not there. Sources: `conversion/gemma.py` and `src/models/gemma4.cpp` of
https://github.com/ggml-org/llama.cpp.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from model.config import ModelConfig
from model.full_attention import FullAttention
from model.weights.gguf_file import GGUFFile
from model.weights.gguf_keys import Keys
from model.weights.gguf_layers import KeyPath, Layer, Parameter, Shape

_PATTERN = "attention.sliding_window_pattern"
_OWN = re.compile(r"blk\.([0-9]{1,9})\.attn_(k|v|k_norm)\.weight")


def window_heads(keys: Keys, heads: int, d_model: int) -> dict[str, Any]:
    """Fields of a `ModelConfig` for the heads of layers with a window.

    Args:
      keys: the file's.
      heads, d_model: not asked for here.

    Raises:
      WeightsError: sizes that are missing, or contradict each other.
    """
    return {
        "kv_heads": keys.first("attention.head_count_kv"),
        "head_size": _head_size(keys, "_swa"),
    }


def layer_fields(
    keys: Keys, file: GGUFFile, common: Mapping[str, Any], more: Mapping[str, Any]
) -> dict[str, Any]:
    """Fields of a `ModelConfig` that this family alone has, and those that differ by layer.

    Args:
      keys: the file's.
      file: its tensors tell whether keys are also values.
      common: fields that all models have.
      more: others that are read already, windows and experts among them.

    Raises:
      WeightsError: sizes that are missing or contradict each other, or layers all of one kind.
    """
    windows, layers = more.get("windows"), common["layers"]
    if windows is None:
        keys.refuse("attention.sliding_window", 0, ", where some layers need a window")
    full = [n for n, window in enumerate(windows) if window is None]
    if len(windows) != layers or not 0 < len(full) < layers:
        keys.refuse(_PATTERN, windows, ", where layers with a window and others are needed")
    others = sorted({*range(layers)} - {*full})
    shared = keys.integer("attention.shared_kv_layers", 0)
    if not 0 <= shared < layers:
        keys.refuse("attention.shared_kv_layers", shared, f", where there are {layers} layers")
    own = range(layers - shared)
    kv_heads = keys.by_layer("attention.head_count_kv", layers)
    return {
        "kv_heads": _alike(keys, "attention.head_count_kv", kv_heads, others),
        "full_attention": FullAttention(
            head_size=_head_size(keys, ""),
            kv_heads=_alike(keys, "attention.head_count_kv", kv_heads, full),
            keys_are_values=not any(
                f"blk.{n}.attn_v.weight" in file.tensors for n in full if n in own
            ),
        ),
        **_widths(keys, common, more, own),
        "shared_cache_layers": shared,
        "layer_inputs": keys.integer("embedding_length_per_layer_input", 0),
    }


def _head_size(keys: Keys, suffix: str) -> int:
    """Size of the heads of one kind of layers, all of which takes part in rotation."""
    size = keys.integer(f"attention.key_length{suffix}")
    keys.expect(f"attention.value_length{suffix}", size, "the head size of the keys")
    keys.expect(f"rope.dimension_count{suffix}", size, "the head size")
    return size


def _alike(keys: Keys, key: str, values: tuple[int, ...], layers: Iterable[int]) -> int:
    """What all of these layers have; 0 where there are none of them."""
    found = {values[layer] for layer in layers}
    if len(found) > 1:
        keys.refuse(key, list(values), ", where layers of one kind differ")
    return found.pop() if found else 0


def _widths(
    keys: Keys, common: Mapping[str, Any], more: Mapping[str, Any], own: range
) -> dict[str, Any]:
    """Widths of MLPs: those beside experts, or those of layers whose cache is their own or not."""
    key, layers = "feed_forward_length", common["layers"]
    each = keys.by_layer(key, layers)
    if "experts" in more:
        return {"shared_d_ff": _alike(keys, key, each, range(layers)), "experts_apart": True}
    width, borrowing = (_alike(keys, key, each, part) for part in (own, range(len(own), layers)))
    return {"d_ff": width, "shared_cache_d_ff": 0 if borrowing == width else borrowing}


def borrowed(names: Iterable[str], config: ModelConfig) -> set[str]:
    """Keys and values of layers that read those of another layer, which files have all the same.

    Args:
      names: of all tensors.
      config: the model.
    """
    found = ((name, _OWN.fullmatch(name)) for name in names)
    layers = range(config.layers - config.shared_cache_layers, config.layers)
    return {name for name, own in found if own and int(own[1]) in layers}


class Gemma4Layer(Layer):
    """The parameters of one layer of Gemma 4."""

    def parameters(self) -> list[Parameter]:
        """All of them."""
        D, p = self.config.d_model, self.config.layer_inputs
        scale = self.one("block_scale", {"layer_output_scale": (1,)}, lambda one: one.reshape(()))
        inputs: dict[str, dict[str, Shape]] = {
            "input.gate": {"inp_gate": (p, D)},
            "input.projection": {"proj": (D, p)},
            "input.norm_after.scale": {"post_norm": (D,)},
        }
        found = [self.one(*each) for each in inputs.items()] if p else []
        return [*super().parameters(), scale, *found]

    def norms(self) -> list[Parameter]:
        """Norms' scales, but for that of keys where the layer has none."""
        borrows = self.config.borrows(self.number)
        return [p for p in super().norms() if not (borrows and "key_norm" in p.path)]

    def heads(self, suffix: str, kind: str, *last: int) -> list[Parameter]:
        """Weights of queries, and of keys and values where the layer has its own."""
        c = self.config
        queries, both = super().heads(suffix, kind, *last)
        if c.borrows(self.number):
            return [queries]
        if not c.keys_are_values:
            return [queries, both]
        K, h = c.kv_heads, c.head_size
        path, keys = f"attention.key_value{suffix}", {"attn_k": (K * h, *last)}
        return [queries, self.one(path, keys, lambda k: k.reshape(K, h, -1), kind)]

    def mlp(self, module: str, F: int, suffix: str = "") -> list[Parameter]:
        """An MLP, named alike whether it is alone or beside experts."""
        return super().mlp(module, F)

    def experts(self) -> list[Parameter]:
        """A router and experts, and norms and scales of both."""
        D, E = self.config.d_model, self.config.experts
        norms = {"shared_norm_after": "post_ffw_norm_1",
                 "experts_norm": "pre_ffw_norm_2",
                 "experts_norm_after": "post_ffw_norm_2"}  # fmt: skip
        return [
            *super().experts(),
            self.one("mlp.router_scale", {"ffn_gate_inp": (D,)}, kind="scale"),
            self.one("mlp.expert_scale", {"ffn_down_exps": (E,)}, kind="scale"),
            *(self.one(f"{ours}.scale", {name: (D,)}) for ours, name in norms.items()),
        ]


def input_parameters(config: ModelConfig) -> list[Parameter]:
    """What layers have of their own of each token, see `model.layer_inputs`."""
    D, p, P = (config.sizes[letter] for letter in "DpP")
    stored: dict[KeyPath, tuple[str, Shape]] = {
        ("weight",): ("token_embd", (config.vocabulary, P)),
        ("projection",): ("model_proj", (P, D)),
        ("norm", "scale"): ("proj_norm", (p,)),
    }
    return [
        Parameter(("layer_inputs", *path), {f"per_layer_{name}.weight": shape})
        for path, (name, shape) in stored.items()
    ]
