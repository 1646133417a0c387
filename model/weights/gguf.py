"""A model's parameters from a GGUF file: the stored tensors that each array is made of.

Sources: the tensor names of the GGUF specification
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) and what llama.cpp's
`convert_hf_to_gguf.py` does to each tensor: it reorders the rows of Llama's query and key matrices
and adds to Gemma's norms the 1 that their files leave out.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from model.config import ModelConfig
from model.weights import WeightsError
from model.weights.gguf_config import ARCHITECTURES, read_keys
from model.weights.gguf_file import DAMAGED, GGUFFile, short
from sharding.quantization import Quantization, QuantizedArray

KeyPath = tuple[str | int, ...]
_Build = Callable[..., np.ndarray]

_ROTARY = "rope_freqs.weight"
_UNEMBEDDING = ("unembedding", "weight")


def read_config(file: GGUFFile) -> ModelConfig:
    """The model's configuration, checked against the tensors of the file.

    Args:
      file: a GGUF file of one of `model.weights.gguf_config.ARCHITECTURES`.

    Raises:
      WeightsError: another architecture, metadata that is missing, unknown or asks for something
        not supported, or tensors other than the configuration needs.
      ConfigError: sizes that contradict each other.
    """
    config, linear = read_keys(file)
    # Rotary factors come last: their number is the head size, which the tensors must confirm first.
    _checked_parameters(file, config)
    return dataclasses.replace(config, rotary_factors=_rotary_factors(file, config, linear))


def read_parameters(
    file: GGUFFile, config: ModelConfig, keep: Mapping[KeyPath, Quantization] | None = None
) -> Iterator[tuple[KeyPath, np.ndarray | QuantizedArray]]:
    """The model's parameters, one at a time, so that the host never holds all of them.

    Args:
      file: the GGUF file.
      config: the configuration that `read_config` gave for this file.
      keep: quantization to return each parameter in; those already stored so are not dequantized.

    Returns:
      An iterator of (path in the model, float32 array, or codes and scales) in the order of the
      model.

    Raises:
      WeightsError: at the call, for tensors that are missing, left over or of another shape; while
        iterating, for damaged values.
    """
    parameters = _checked_parameters(file, config)
    return ((p.path, _read(file, p, (keep or {}).get(p.path))) for p in parameters)


def _read(
    file: GGUFFile, parameter: "_Parameter", quantization: Quantization | None
) -> np.ndarray | QuantizedArray:
    sources = list(parameter.sources)
    if quantization is None or {file.quantization(name) for name in sources} != {quantization.name}:
        return parameter.build(*map(file.read, sources))
    parts = zip(*map(file.read_kept, sources), strict=True)  # codes, scales, perhaps offsets
    values, *numbers = (parameter.build(*part) for part in parts)
    return QuantizedArray(values.astype(quantization.dtype), *numbers, group=quantization.group)


def _as_stored(stored: np.ndarray) -> np.ndarray:
    return stored


@dataclasses.dataclass(frozen=True)
class _Parameter:
    """One parameter: its path, the stored tensors by name and shape, and the function of them."""

    path: KeyPath
    sources: dict[str, tuple[int, ...]]
    build: _Build = _as_stored


def _parameters(c: ModelConfig, paired: bool) -> list[_Parameter]:
    matrix, vector = (c.vocabulary, c.d_model), (c.d_model,)
    return [
        _Parameter(("embedding", "weight"), {"token_embd.weight": matrix}),
        *(p for layer in range(c.layers) for p in _Layer(c, layer, paired).parameters()),
        _Parameter(("final_norm", "scale"), {"output_norm.weight": vector}),
        *([] if c.tied_embedding else [_Parameter(_UNEMBEDDING, {"output.weight": matrix})]),
    ]


@dataclasses.dataclass(frozen=True)
class _Layer:
    """The parameters of one layer.

    Attributes:
      config: the model.
      number: index of the layer.
      paired: the two rows of a rotary pair are adjacent in query and key matrices.
    """

    config: ModelConfig
    number: int
    paired: bool

    def parameters(self) -> list[_Parameter]:
        c = self.config
        D, h = c.d_model, c.head_size
        scales: dict[str, tuple[str, *tuple[int, ...]]] = {}
        if c.norm_before:
            scales |= {"attention_norm": ("attn_norm", D), "mlp_norm": ("ffn_norm", D)}
        if c.norm_after:
            scales["attention_norm_after"] = "post_attention_norm", D
            scales["mlp_norm_after"] = "post_ffw_norm", D
        if c.query_key_norm:
            heads = ((c.kv_heads, c.group), (c.kv_heads,)) if c.norm_over_heads else ((), ())
            scales["attention.query_norm"] = "attn_q_norm", *heads[0], h
            scales["attention.key_norm"] = "attn_k_norm", *heads[1], h
        norms = [self.norm(f"{path}.scale", *scale) for path, scale in scales.items()]
        return [*norms, *self.attention(), *(self.experts() if c.experts else self.mlp())]

    def one(
        self,
        path: str,
        stored: dict[str, tuple[int, ...]],
        build: _Build = _as_stored,
        kind: str = "weight",
    ) -> _Parameter:
        names = {f"blk.{self.number}.{name}.{kind}": shape for name, shape in stored.items()}
        return _Parameter(("layers", self.number, *path.split(".")), names, build)

    def norm(self, path: str, name: str, *shape: int) -> _Parameter:
        """A norm's scale, stored as one row."""
        return self.one(path, {name: (math.prod(shape),)}, lambda row: row.reshape(shape))

    def attention(self) -> list[_Parameter]:
        c = self.config
        D, K, G, h = c.d_model, c.kv_heads, c.group, c.head_size
        kinds = {"weight": ("", (D,)), **({"bias": ("_bias", ())} if c.attention_bias else {})}
        parameters = [
            self.one(
                "attention.output",
                {"attn_output": (D, K * G * h)},
                lambda stored: stored.reshape(D, K, G, -1),
            )
        ]
        for kind, (suffix, last) in kinds.items():
            query, others = {"attn_q": (K * G * h, *last)}, (K * h, *last)
            both = {"attn_k": others, "attn_v": others}
            parameters.append(self.one("attention.query" + suffix, query, self.queries, kind))
            parameters.append(self.one("attention.key_value" + suffix, both, self.join, kind))
        return parameters

    def queries(self, q: np.ndarray) -> np.ndarray:
        """[K * G * h, ...] as [K, G, h, ...]."""
        c = self.config
        q = _rotate_half(q, c.query_heads) if self.paired else q
        return q.reshape(c.kv_heads, c.group, c.head_size, *q.shape[2 if self.paired else 1 :])

    def join(self, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Keys and values, [K * h, ...] each, as one [K, 2, h, ...]."""
        c = self.config
        rest = v.shape[1:]
        k = _rotate_half(k, c.kv_heads) if self.paired else k
        parts = [part.reshape(c.kv_heads, 1, c.head_size, *rest) for part in (k, v)]
        return np.concatenate(parts, axis=1)

    def mlp(self) -> list[_Parameter]:
        D, F = self.config.d_model, self.config.d_ff
        into = {"ffn_gate": (F, D), "ffn_up": (F, D)}
        return [
            self.one("mlp.gate_up", into, lambda gate, up: np.stack([gate, up])),
            self.one("mlp.down", {"ffn_down": (D, F)}),
        ]

    def experts(self) -> list[_Parameter]:
        D, F, E = self.config.d_model, self.config.d_ff, self.config.experts
        into = {"ffn_gate_exps": (E, F, D), "ffn_up_exps": (E, F, D)}
        return [
            self.one("mlp.router", {"ffn_gate_inp": (E, D)}),
            self.one("mlp.gate_up", into, lambda gate, up: np.stack([gate, up], axis=1)),
            self.one("mlp.down", {"ffn_down_exps": (E, D, F)}),
        ]


def _rotate_half(stored: np.ndarray, heads: int) -> np.ndarray:
    """[heads * h, D] with the two rows of a rotary pair adjacent, to [heads, h, D] with the first
    rows of all pairs before the second ones, as Hugging Face has them.
    """
    pairs = stored.reshape(heads, -1, 2, stored.shape[-1])
    return pairs.swapaxes(1, 2).reshape(heads, -1, stored.shape[-1])


def _checked_parameters(file: GGUFFile, config: ModelConfig) -> list[_Parameter]:
    """The model's parameters, after a check that the file holds exactly their tensors."""
    architecture = file.metadata["general.architecture"]
    if config.layers > len(file.tensors):
        raise WeightsError(
            f"metadata '{architecture}.block_count' of {file.path.name} is {config.layers}, with "
            f"only {len(file.tensors)} tensors; {DAMAGED}"
        )
    parameters = _parameters(config, ARCHITECTURES[architecture].paired)
    needed = {name: shape for p in parameters for name, shape in p.sources.items()}
    if _ROTARY in file.tensors:
        needed[_ROTARY] = (config.head_size // 2,)
    stored = {name: info.shape for name, info in file.tensors.items()}
    misshapen = [
        f"{name} {list(stored[name])} for {list(shape)}"
        for name, shape in needed.items()
        if name in stored and stored[name] != shape
    ]
    groups = {
        "missing": [name for name in needed if name not in stored],
        "left over": [short(name) for name in stored if name not in needed],
        "misshapen": misshapen,
    }
    wrong = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in groups.items()
        if names
    ]
    if wrong:
        raise WeightsError(
            f"tensor list of {file.path.name} is {', '.join(wrong)}; "
            "give a model that is complete in one file"
        )
    return parameters


def _rotary_factors(file: GGUFFile, config: ModelConfig, linear: float) -> tuple[float, ...] | None:
    if _ROTARY in file.tensors:
        return tuple(linear * factor for factor in file.read(_ROTARY).tolist())
    return None if linear == 1 else (float(linear),) * (config.head_size // 2)
