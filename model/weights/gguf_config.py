"""A model's configuration from the metadata of a GGUF file.

Every key of the architecture is read by name or known to change nothing; any other is refused.
Sources: the key names of the GGUF specification
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md); defaults of each architecture,
from the `load_hparams` of its model in https://github.com/ggml-org/llama.cpp.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from model.config import ModelConfig
from model.weights import WeightsError
from model.weights.gguf_file import DAMAGED, GGUFFile, short

# Keys that change nothing in the arithmetic when they have this value (_ANY: any value),
# because they only describe where the model comes from, or experts that it lacks.
_ANY = object()
_VISION = ("mm.", "vision.")  # keys of a vision tower, which a file may hold too
_HARMLESS = {
    "attention.causal": True,
    "expert_feed_forward_length": _ANY,  # may be there in a model without experts
    "expert_used_count": _ANY,
    "expert_weights_norm": True,
    "rope.scaling.finetuned": _ANY,
    "rope.scaling.original_context_length": _ANY,
    "tensor_data_layout": _ANY,
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Properties of a `general.architecture` that not all architectures share.

    Attributes:
      paired: the two rows of a rotary pair are adjacent in query and key matrices.
      settings: fields of `ModelConfig` that the architecture fixes.
      window: the default sliding window.
      pattern: period of the layers without a window, in a model with windows: the last layer of
        each group of so many sees all tokens; 0 if none does.
      local_base: the default rotary base of the layers with a window; None for that of the others.
      scaled: embeddings are multiplied by sqrt(d_model), scores by head_size ** -0.5 (Gemma).
      largest: number of layers of the one Gemma whose scores are multiplied by
        (d_model / heads) ** -0.5 instead, which no key says.
      attention_softcap, logit_softcap: the defaults.
      multipliers: keys say factors of embeddings, scores, what is added to the residual stream, and
        logits (Granite).
      unrotated: the last layer of each group of so many rotates nothing; 0 where all rotate.
    """

    paired: bool = False
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    window: int = 0
    pattern: int = 0
    local_base: float | None = None
    scaled: bool = False
    largest: int = 0
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    multipliers: bool = False
    unrotated: int = 0


_GEMMA = {"norm_after": True, "activation": "gelu_tanh"}
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(paired=True),  # also Mistral and Mixtral
    "qwen2": Architecture(settings={"attention_bias": True}),
    "qwen3": Architecture(settings={"query_key_norm": True}),
    "qwen3moe": Architecture(settings={"query_key_norm": True}),
    "gemma2": Architecture(
        settings=_GEMMA,
        window=4096,
        pattern=2,
        scaled=True,
        largest=46,
        attention_softcap=50.0,
        logit_softcap=30.0,
    ),
    "gemma3": Architecture(
        settings=_GEMMA | {"query_key_norm": True},
        pattern=6,
        local_base=10_000.0,
        scaled=True,
        largest=62,
    ),
    "olmo2": Architecture(
        settings={
            "norm_before": False,
            "norm_after": True,
            "query_key_norm": True,
            "norm_over_heads": True,
        }
    ),
    "granite": Architecture(paired=True, multipliers=True),
    "smollm3": Architecture(paired=True, unrotated=4),
}


def read_keys(file: GGUFFile) -> tuple[ModelConfig, float]:
    """The model's configuration from the metadata, and the divisor of its positions.

    Args:
      file: a GGUF file of one of `ARCHITECTURES`.

    Raises:
      WeightsError: another architecture, or metadata that is missing, unknown or asks for
        something not supported.
      ConfigError: sizes that contradict each other.
    """
    keys = _Keys(file)
    architecture = ARCHITECTURES[keys.architecture]
    common = _common(keys, file)
    ModelConfig(**common)  # refuses wrong sizes before anything is computed from them
    more = _experts(keys) | _windows(keys, architecture, common["layers"])
    if architecture.scaled:
        more |= _gemma(keys, architecture, common)
    if architecture.multipliers:
        more |= _multipliers(keys)
    if every := architecture.unrotated:
        rotated = tuple((layer + 1) % every != 0 for layer in range(min(common["layers"], 10_000)))
        more["rotary_layers"] = None if all(rotated) else rotated
    config = ModelConfig(**{**common, **more, **architecture.settings})
    linear = _linear_scaling(keys)
    keys.finish()
    return config, linear


def _common(keys: "_Keys", file: GGUFFile) -> dict[str, Any]:
    heads = keys.integer("attention.head_count")
    d_model = keys.integer("embedding_length")
    head_size = keys.integer("attention.key_length", d_model // max(heads, 1))
    keys.expect("attention.value_length", head_size, "the head size of the keys")
    keys.expect("rope.dimension_count", head_size, "the head size")
    return {
        "name": _name(file),
        "vocabulary": keys.integer("vocab_size", _vocabulary(file)),
        "d_model": d_model,
        "layers": keys.integer("block_count"),
        "query_heads": heads,
        "kv_heads": keys.integer("attention.head_count_kv", heads),
        "head_size": head_size,
        "d_ff": keys.integer("feed_forward_length"),
        "max_context": keys.integer("context_length"),
        "rotary_base": keys.number("rope.freq_base", 10_000.0),
        "norm_epsilon": keys.number("attention.layer_norm_rms_epsilon"),
        "tied_embedding": "output.weight" not in file.tensors,
    }


def _experts(keys: "_Keys") -> dict[str, Any]:
    """Sizes of the experts; for a model without any, `_HARMLESS` covers these keys."""
    count = keys.integer("expert_count", 0)
    if not count:
        return {}
    width = keys.integer("expert_feed_forward_length", 0)
    more = {"d_ff": width} if width else {}
    return {"experts": count, "experts_per_token": keys.integer("expert_used_count"), **more}


def _windows(keys: "_Keys", architecture: Architecture, layers: int) -> dict[str, Any]:
    size = keys.integer("attention.sliding_window", architecture.window)
    pattern = architecture.pattern
    keys.expect("attention.sliding_window_pattern", pattern, "that of the architecture")
    if size <= 0:
        return {}

    def window(layer: int) -> int | None:
        return None if pattern and (layer + 1) % pattern == 0 else size

    return {"windows": tuple(map(window, range(min(layers, 10_000))))}


def _gemma(keys: "_Keys", architecture: Architecture, common: Mapping[str, Any]) -> dict[str, Any]:
    d_model, local = common["d_model"], architecture.local_base
    size = d_model / common["query_heads"] if common["layers"] == architecture.largest else None
    attention = keys.number("attn_logit_softcapping", architecture.attention_softcap or 0.0)
    final = keys.number("final_logit_softcapping", architecture.logit_softcap or 0.0)
    return {
        "embedding_scale": math.sqrt(d_model),
        "attention_scale": (size or common["head_size"]) ** -0.5,
        "attention_softcap": attention or None,
        "logit_softcap": final or None,
        "local_rotary_base": keys.number("rope.freq_base_swa", local) if local else None,
    }


def _multipliers(keys: "_Keys") -> dict[str, Any]:
    logits = keys.number("logit_scale", 1.0)
    if not logits:
        keys.refuse("logit_scale", logits)
    return {
        "embedding_scale": keys.number("embedding_scale", 1.0),
        "embedding_scale_exact": True,
        "attention_scale": keys.number("attention.scale", 0.0) or None,
        "residual_scale": keys.number("residual_scale", 1.0),
        "logit_scale": 1 / logits,
    }


class _Keys:
    """The metadata of the file's architecture; `finish` refuses keys that were never read.

    Attributes:
      architecture: the prefix of the keys.
    """

    def __init__(self, file: GGUFFile):
        self._file = file
        architecture = file.metadata.get("general.architecture")
        if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
            raise WeightsError(
                f"architecture of {file.path.name} is {short(architecture)}; "
                f"supported are {', '.join(ARCHITECTURES)}"
            )
        self.architecture, prefix = architecture, f"{architecture}."
        self._left = {
            key.removeprefix(prefix): value
            for key, value in file.metadata.items()
            if key.startswith(prefix)
        }

    def number(self, key: str, default: float | None = None) -> Any:
        value = self._left.pop(key, default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()  # one for each layer, all alike
        if value is None:
            raise WeightsError(
                f"metadata '{self.architecture}.{key}' of {self._file.path.name} is missing; "
                f"{DAMAGED}"
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
            f"metadata {short(f'{self.architecture}.{key}')} of {self._file.path.name} is "
            f"{short(value)}{note}; this is not supported, give another model"
        )

    def finish(self) -> None:
        """Refuses keys that were not read and might change the arithmetic."""
        for key, value in self._left.items():
            harmless = _ANY if key.startswith(_VISION) else _HARMLESS.get(key)
            if harmless is not _ANY and (harmless is None or short(value) != short(harmless)):
                self.refuse(key, value)


def _linear_scaling(keys: _Keys) -> float:
    """The divisor of positions, for models with linear rotary scaling; 1 for others."""
    kind = keys.text("rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        keys.refuse("rope.scaling.type", kind)
    factor = keys.number("rope.scale_linear", 1.0)  # the name that older files use
    factor = keys.number("rope.scaling.factor", factor)
    return 1.0 if kind == "none" else factor or 1.0  # 0 says that there is none


def _vocabulary(file: GGUFFile) -> int:
    """The number of token ids, for files without a key for it."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and tokens:
        return len(tokens)
    embedding = file.tensors.get("token_embd.weight")
    return embedding.shape[0] if embedding else 0


def _name(file: GGUFFile) -> str:
    name = file.metadata.get("general.name")
    return name[:80] if isinstance(name, str) and name.isprintable() and name else file.path.stem
