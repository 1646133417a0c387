"""A Llama-family model from a GGUF file: its configuration and, one by one, its parameters.

Sources: the key and tensor names of the GGUF specification
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) and the row order that llama.cpp's
`convert_hf_to_gguf.py` gives query and key matrices.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np

from model.config import ModelConfig
from model.weights import WeightsError
from model.weights.gguf_file import DAMAGED, GGUFFile, short

KeyPath = tuple[str | int, ...]
_Build = Callable[..., np.ndarray]

_ARCHITECTURES = ("llama",)
_ROTARY = "rope_freqs.weight"
_UNEMBEDDING = ("unembedding", "weight")

# Keys of metadata that change nothing in the arithmetic when they have this value (_ANY: whatever
# they have), because they only describe where the model comes from, or experts that it lacks.
_ANY = object()
_HARMLESS = {
    "attention.causal": True,
    "expert_count": 0,
    "expert_used_count": _ANY,
    "rope.scaling.finetuned": _ANY,
    "rope.scaling.original_context_length": _ANY,
    "tensor_data_layout": _ANY,
}


def read_config(file: GGUFFile) -> ModelConfig:
    """The model's configuration, checked against the tensors of the file.

    Args:
      file: a GGUF file of the Llama architecture.

    Raises:
      WeightsError: another architecture, metadata that is missing, unknown or asks for something
        not supported, or tensors other than the configuration needs.
      ConfigError: sizes that contradict each other.
    """
    keys = _Keys(file)
    heads = keys.integer("attention.head_count")
    d_model = keys.integer("embedding_length")
    head_size = keys.integer("attention.key_length", d_model // max(heads, 1))
    max_context = keys.integer("context_length")
    keys.expect("attention.value_length", head_size, "the head size of the keys")
    keys.expect("rope.dimension_count", head_size, "the head size")
    window = keys.integer("attention.sliding_window", 0)
    if 0 < window < max_context:
        keys.refuse("attention.sliding_window", window)
    config = ModelConfig(
        name=_name(file),
        vocabulary=keys.integer("vocab_size", _vocabulary(file)),
        d_model=d_model,
        layers=keys.integer("block_count"),
        query_heads=heads,
        kv_heads=keys.integer("attention.head_count_kv", heads),
        head_size=head_size,
        d_ff=keys.integer("feed_forward_length"),
        max_context=max_context,
        rotary_base=keys.number("rope.freq_base", 10_000.0),
        norm_epsilon=keys.number("attention.layer_norm_rms_epsilon"),
        tied_embedding="output.weight" not in file.tensors,
    )
    linear = _linear_scaling(keys)
    keys.finish()
    # Factors come last: only a head size that the tensors confirm may size them.
    _checked_parameters(file, config)
    return dataclasses.replace(config, rotary_factors=_rotary_factors(file, config, linear))


def read_parameters(file: GGUFFile, config: ModelConfig) -> Iterator[tuple[KeyPath, np.ndarray]]:
    """The model's parameters, one at a time, so that the host never holds all of them.

    Args:
      file: the GGUF file.
      config: what `read_config` said of it.

    Returns:
      An iterator of (path in the model, float32 array) in the order of the model: [V, D]
      embedding, then per layer [D] norm scales, [K, G + 2, h, D] queries, key and
      value, [D, K, G, h] output, [2, F, D] gate and up, [D, F] down; then the [D] final norm
      and, if untied, the [V, D] unembedding.

    Raises:
      WeightsError: at the call, for tensors missing, left over or misshapen; while iterating, for
        damaged values.
    """
    parameters = _checked_parameters(file, config)
    return ((p.path, p.build(*map(file.read, p.sources))) for p in parameters)


def _as_stored(stored: np.ndarray) -> np.ndarray:
    return stored


@dataclasses.dataclass(frozen=True)
class _Parameter:
    """One parameter: its path, the stored tensors by name and shape, and how they make it."""

    path: KeyPath
    sources: dict[str, tuple[int, ...]]
    build: _Build = _as_stored


def _parameters(c: ModelConfig) -> list[_Parameter]:
    matrix, vector = (c.vocabulary, c.d_model), (c.d_model,)
    return [
        _Parameter(("embedding", "weight"), {"token_embd.weight": matrix}),
        *(parameter for layer in range(c.layers) for parameter in _layer(c, layer)),
        _Parameter(("final_norm", "scale"), {"output_norm.weight": vector}),
        *([] if c.tied_embedding else [_Parameter(_UNEMBEDDING, {"output.weight": matrix})]),
    ]


def _layer(c: ModelConfig, layer: int) -> list[_Parameter]:
    D, F, K, G, h = c.d_model, c.d_ff, c.kv_heads, c.group, c.head_size

    def query_key_value(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        queries = _rotate_half(q, c.query_heads).reshape(K, G, h, D)
        keys = _rotate_half(k, K).reshape(K, 1, h, D)
        return np.concatenate([queries, keys, v.reshape(K, 1, h, D)], axis=1)

    def output(o: np.ndarray) -> np.ndarray:
        return o.reshape(D, K, G, h)

    def gate_up(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        return np.stack([gate, up])

    def parameter(path: str, build: _Build = _as_stored, **stored: tuple[int, ...]) -> _Parameter:
        names = {f"blk.{layer}.{name}.weight": shape for name, shape in stored.items()}
        return _Parameter(("layers", layer, *path.split(".")), names, build)

    return [
        parameter("attention_norm.scale", attn_norm=(D,)),
        parameter(
            "attention.query_key_value",
            query_key_value,
            attn_q=(K * G * h, D),
            attn_k=(K * h, D),
            attn_v=(K * h, D),
        ),
        parameter("attention.output", output, attn_output=(D, K * G * h)),
        parameter("mlp_norm.scale", ffn_norm=(D,)),
        parameter("mlp.gate_up", gate_up, ffn_gate=(F, D), ffn_up=(F, D)),
        parameter("mlp.down", ffn_down=(D, F)),
    ]


def _rotate_half(stored: np.ndarray, heads: int) -> np.ndarray:
    """[heads * h, D] with the two rows of a rotary pair adjacent, to [heads, h, D] with the first
    rows of all pairs before the second ones, as Hugging Face has them.
    """
    pairs = stored.reshape(heads, -1, 2, stored.shape[-1])
    return pairs.swapaxes(1, 2).reshape(heads, -1, stored.shape[-1])


def _checked_parameters(file: GGUFFile, config: ModelConfig) -> list[_Parameter]:
    """The model's parameters, once the file is known to hold exactly their tensors."""
    if config.layers > len(file.tensors):
        raise WeightsError(
            f"metadata 'llama.block_count' of {file.path.name} is {config.layers}, with only "
            f"{len(file.tensors)} tensors; {DAMAGED}"
        )
    parameters = _parameters(config)
    needed = {name: shape for p in parameters for name, shape in p.sources.items()}
    if _ROTARY in file.tensors:
        needed[_ROTARY] = (config.head_size // 2,)
    found = {name: info.shape for name, info in file.tensors.items()}
    misshapen = [
        f"{name} {list(found[name])} for {list(shape)}"
        for name, shape in needed.items()
        if name in found and found[name] != shape
    ]
    groups = {
        "missing": [name for name in needed if name not in found],
        "left over": [short(name) for name in found if name not in needed],
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
            "give a plain Llama model, complete in one file"
        )
    return parameters


class _Keys:
    """The file's `llama.*` metadata, each key taken once, so that none is passed over silently."""

    def __init__(self, file: GGUFFile):
        self._file = file
        architecture = file.metadata.get("general.architecture")
        if not isinstance(architecture, str) or architecture not in _ARCHITECTURES:
            raise WeightsError(
                f"architecture of {file.path.name} is {short(architecture)}; "
                f"supported are {', '.join(_ARCHITECTURES)}"
            )
        self._left = {
            key.removeprefix("llama."): value
            for key, value in file.metadata.items()
            if key.startswith("llama.")
        }

    def number(self, key: str, default: float | None = None) -> Any:
        value = self._left.pop(key, default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()  # one for each layer, all alike
        if value is None:
            raise WeightsError(
                f"metadata 'llama.{key}' of {self._file.path.name} is missing; {DAMAGED}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(key, value)
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default)
        if not isinstance(value, int):
            self.refuse(key, value)
        return value

    def text(self, key: str, default: str) -> str:
        value = self._left.pop(key, default)
        if not isinstance(value, str):
            self.refuse(key, value)
        return value

    def expect(self, key: str, size: int, what: str) -> None:
        if (value := self.integer(key, size)) != size:
            self.refuse(key, value, f", where {what} is {size}")

    def refuse(self, key: str, value: Any, note: str = "") -> NoReturn:
        raise WeightsError(
            f"metadata {short('llama.' + key)} of {self._file.path.name} is {short(value)}{note}; "
            "this is not supported, give a plain Llama model"
        )

    def finish(self) -> None:
        """Refuses whatever was not taken and might change the arithmetic."""
        for key, value in self._left.items():
            harmless = _HARMLESS.get(key)
            if harmless is not _ANY and (harmless is None or short(value) != short(harmless)):
                self.refuse(key, value)


def _linear_scaling(keys: _Keys) -> float:
    """By how much positions are divided, for models stretched by linear interpolation."""
    kind = keys.text("rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        keys.refuse("rope.scaling.type", kind)
    factor = keys.number("rope.scale_linear", 1.0)  # the name that older files use
    factor = keys.number("rope.scaling.factor", factor)
    return 1.0 if kind == "none" else factor or 1.0  # 0 says that there is none


def _rotary_factors(file: GGUFFile, config: ModelConfig, linear: float) -> tuple[float, ...] | None:
    if _ROTARY in file.tensors:
        return tuple(linear * factor for factor in file.read(_ROTARY).tolist())
    return None if linear == 1 else (float(linear),) * (config.head_size // 2)


def _vocabulary(file: GGUFFile) -> int:
    """Tokens, for files that do not say how many there are."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and tokens:
        return len(tokens)
    embedding = file.tensors.get("token_embd.weight")
    return embedding.shape[0] if embedding else 0


def _name(file: GGUFFile) -> str:
    name = file.metadata.get("general.name")
    return name[:80] if isinstance(name, str) and name.isprintable() and name else file.path.stem
