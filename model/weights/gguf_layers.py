"""The stored tensors that each array of one layer is made of, in a GGUF file."""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection

import numpy as np

from model.config import ModelConfig
from model.weights import gguf_delta, gguf_latent
from model.weights.gguf_architectures import Architecture

KeyPath = tuple[str | int, ...]
Shape = tuple[int, ...]
Build = Callable[..., np.ndarray]


def as_stored(stored: np.ndarray) -> np.ndarray:
    """The array that is the tensor."""
    return stored


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter: its path, the stored tensors by name and shape, and the function of them."""

    path: KeyPath
    sources: dict[str, Shape]
    build: Build = as_stored


@dataclasses.dataclass(frozen=True)
class Layer:
    """The parameters of one layer.

    Attributes:
      config: the model, with heads as this layer has them.
      number: index of the layer.
      architecture: how its tensors are named and ordered.
      tensors: names of the file's tensors, by which others are found that have two forms.
    """

    config: ModelConfig
    number: int
    architecture: Architecture
    tensors: Collection[str] = ()

    def parameters(self) -> list[Parameter]:
        """All of them."""
        c = self.config
        attention = self.latent_attention() if c.latent else self.attention()
        if c.is_delta(self.number):
            attention = self.delta_layer()
        if not c.has_experts(self.number):
            return [*self.norms(), *attention, *self.mlp("mlp", c.sizes[c.mlp_width(self.number)])]
        shared = self.mlp("shared", c.shared_d_ff, "_shexp") if c.shared_d_ff else []
        if c.shared_gate:
            gate = {"ffn_gate_inp_shexp": (1, c.d_model)}
            shared.append(self.one("shared.gate", gate))
        return [*self.norms(), *attention, *self.experts(), *shared]

    def one(
        self, path: str, stored: dict[str, Shape], build: Build = as_stored, kind: str = "weight"
    ) -> Parameter:
        """A parameter of this layer, of tensors by their names within it."""
        end = f".{kind}" if kind else ""
        names = {f"blk.{self.number}.{name}{end}": shape for name, shape in stored.items()}
        return Parameter(("layers", self.number, *path.split(".")), names, build)

    def has(self, name: str) -> bool:
        """Whether the file has a tensor of this name in this layer."""
        return f"blk.{self.number}.{name}.weight" in self.tensors

    def norms(self) -> list[Parameter]:
        """Norms' scales, each stored as one row."""
        c = self.config
        D, h = c.d_model, c.head_size
        scales: dict[str, tuple[str, *Shape]] = {}
        if c.norm_before:
            scales["attention_norm"] = "attn_norm", D
            scales["mlp_norm"] = self.architecture.mlp_norm, D
        if c.norm_after:
            scales["attention_norm_after"] = "post_attention_norm", D
            scales["mlp_norm_after"] = "post_ffw_norm", D
        if c.query_key_norm and not c.is_delta(self.number):
            heads = ((c.kv_heads, c.group), (c.kv_heads,)) if c.norm_over_heads else ((), ())
            scales["attention.query_norm"] = "attn_q_norm", *heads[0], h
            scales["attention.key_norm"] = "attn_k_norm", *heads[1], h
        if c.latent:
            scales["attention.latent_norm"] = "attn_kv_a_norm", c.latent.rank
            if c.latent.query_rank:
                scales["attention.query_norm"] = "attn_q_a_norm", c.latent.query_rank
        return [
            self.one(f"{path}.scale", {name: (math.prod(shape),)}, _shaped(*shape))
            for path, (name, *shape) in scales.items()
        ]

    def attention(self) -> list[Parameter]:
        """Queries, keys and values by heads, and what is beside them."""
        c = self.config
        D, K, G, h = c.d_model, c.kv_heads, c.group, c.head_size
        output = {"attn_output": (D, K * G * h)}
        found = [self.one("attention.output", output, _shaped(D, K, G, -1))]
        found += self.heads("", "weight", D)
        if c.attention_bias:
            found += self.heads("_bias", "bias")
        if c.output_bias:
            found.append(self.one("attention.output_bias", {"attn_output": (D,)}, kind="bias"))
        if c.attention_sinks:
            found.append(self.one("attention.sinks", {"attn_sinks": (K * G,)}, _shaped(K, G)))
        return found

    def heads(self, suffix: str, kind: str, *last: int) -> list[Parameter]:
        """Weights [..., D] or biases of queries, and of keys and values."""
        c = self.config
        queries, keys = c.query_heads * c.head_size, c.kv_heads * c.head_size
        names = f"attention.query{suffix}", f"attention.key_value{suffix}"
        if self.architecture.joined_attention:
            joined = {"attn_qkv": (queries + 2 * keys, *last)}
            return [
                self.one(names[0], joined, lambda rows: self.queries(self.split(rows)[0]), kind),
                self.one(names[1], joined, lambda rows: self.join(*self.split(rows)[1:]), kind),
            ]
        others = {name: (keys, *last) for name in ("attn_k", "attn_v")}
        if c.output_gate:
            both = {"attn_q": (2 * queries, *last)}
            return [
                self.one(names[0], both, lambda rows: self.gated(rows)[:, :, 0]),
                self.one("attention.gate", both, lambda rows: self.gated(rows)[:, :, 1]),
                self.one(names[1], others, self.join, kind),
            ]
        return [
            self.one(names[0], {"attn_q": (queries, *last)}, self.queries, kind),
            self.one(names[1], others, self.join, kind),
        ]

    def split(self, joined: np.ndarray) -> list[np.ndarray]:
        """Queries, keys and values of one matrix."""
        c = self.config
        queries = c.query_heads * c.head_size
        return np.split(joined, [queries, queries + c.kv_heads * c.head_size])

    def gated(self, rows: np.ndarray) -> np.ndarray:
        """Each head's query and the gate of what it finds, [K * G * 2 * h, D], by heads."""
        c = self.config
        return rows.reshape(c.kv_heads, c.group, 2, c.head_size, -1)

    def delta_layer(self) -> list[Parameter]:
        """A gated delta layer."""
        apart = self.architecture.delta == "apart"
        stored = gguf_delta.DeltaTensors(self.config, apart, self.has("ssm_in")).all()
        return [self.one(path, *each) for path, *each in stored]

    def queries(self, q: np.ndarray) -> np.ndarray:
        """[K * G * h, ...] as [K, G, h, ...]."""
        c = self.config
        return self.turned(q, c.query_heads).reshape(c.kv_heads, c.group, c.head_size, *q.shape[1:])

    def join(self, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Keys and values, [K * h, ...] each, as one [K, 2, h, ...]."""
        c = self.config
        parts = self.turned(k, c.kv_heads), v
        shape = (c.kv_heads, 1, c.head_size, *v.shape[1:])
        return np.concatenate([part.reshape(shape) for part in parts], axis=1)

    def turned(self, stored: np.ndarray, heads: int) -> np.ndarray:
        """[heads * h, ...] with the first rows of all rotary pairs before the second ones."""
        if not self.architecture.paired:
            return stored
        each, rotated = stored.reshape(heads, -1, *stored.shape[1:]), self.config.rotated
        parts = each[:, 0:rotated:2], each[:, 1:rotated:2], each[:, rotated:]
        return np.concatenate(parts, axis=1).reshape(stored.shape)

    def latent_attention(self) -> list[Parameter]:
        """Queries, latents, and what takes them to keys and values."""
        c, sizes = self.config, self.config.latent
        D, G, h, rank = c.d_model, c.query_heads, c.head_size, sizes.rank
        queries = functools.partial(gguf_latent.turned_queries, c)
        latents = functools.partial(gguf_latent.turned_latents, c)
        output = {"attn_output": (D, G * sizes.value)}
        name, inputs = ("attn_q_b", sizes.query_rank) if sizes.query_rank else ("attn_q", D)
        found = [
            self.one("attention.output", output, _shaped(D, 1, G, -1)),
            self.one("attention.query", {name: (G * h, inputs)}, queries),
            self.one("attention.latent", {"attn_kv_a_mqa": (sizes.cached, D)}, latents),
        ]
        if sizes.query_rank:
            found.append(self.one("attention.query_down", {"attn_q_a": (sizes.query_rank, D)}))
        if self.has("attn_kv_b"):  # older files
            whole = {"attn_kv_b": (G * (sizes.content + sizes.value), rank)}
            split = functools.partial(gguf_latent.split_keys_values, c)
            found.append(self.one("attention.key", whole, lambda both: split(both)[0]))
            found.append(self.one("attention.value", whole, lambda both: split(both)[1]))
        else:
            key, value = (G, rank, sizes.content), (G, sizes.value, rank)
            found.append(
                self.one("attention.key", {"attn_k_b": key}, lambda k: k.swapaxes(1, 2)[None])
            )
            found.append(self.one("attention.value", {"attn_v_b": value}, lambda v: v[None]))
        return found

    def mlp(self, module: str, F: int, suffix: str = "") -> list[Parameter]:
        """An MLP, the layer's own or one beside experts."""
        D = self.config.d_model
        into, build = self.gate_up(suffix, F, D), _stacked
        if self.architecture.joined_gate:
            into, build = {f"ffn_up{suffix}": (2 * F, D)}, _shaped(2, F, -1)
        down = f"ffn_down{suffix}"
        found = [
            self.one(f"{module}.gate_up", into, build),
            self.one(f"{module}.down", {down: (D, F)}),
        ]
        if self.config.mlp_bias:
            into = self.gate_up(suffix, F)
            found.append(self.one(f"{module}.gate_up_bias", into, _stacked, "bias"))
            found.append(self.one(f"{module}.down_bias", {down: (D,)}, kind="bias"))
        return found

    def gate_up(self, suffix: str, *shape: int) -> dict[str, Shape]:
        """The tensors of gate and up."""
        return {f"ffn_{name}{suffix}": shape for name in ("gate", "up")}

    def experts(self) -> list[Parameter]:
        """A router and its experts, of which each tensor holds all."""
        c, suffix = self.config, "_exps"
        D, F, E = c.d_model, c.d_ff, c.experts
        stacked = functools.partial(_stacked, axis=1)
        down, router = f"ffn_down{suffix}", "ffn_gate_inp"
        into, build = self.gate_up(suffix, E, F, D), stacked
        if self.has(f"ffn_gate_up{suffix}"):
            into, build = {f"ffn_gate_up{suffix}": (E, 2 * F, D)}, _shaped(E, 2, F, -1)
        found = [
            self.one("mlp.router", {router: (E, D)}),
            self.one("mlp.gate_up", into, build),
            self.one("mlp.down", {down: (E, D, F)}),
        ]
        if c.routing.bias:
            found.append(self.one("mlp.correction", {"exp_probs_b": (E,)}, kind="bias"))
        if c.expert_bias:
            into = self.gate_up(suffix, E, F)
            found.append(self.one("mlp.router_bias", {router: (E,)}, kind="bias"))
            found.append(self.one("mlp.gate_up_bias", into, stacked, "bias"))
            found.append(self.one("mlp.down_bias", {down: (E, D)}, kind="bias"))
        return found


def _stacked(gate: np.ndarray, up: np.ndarray, axis: int = 0) -> np.ndarray:
    return np.stack([gate, up], axis=axis)


def _shaped(*shape: int) -> Build:
    return lambda stored: stored.reshape(shape)
