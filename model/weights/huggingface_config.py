"""A model's configuration from the `config.json` of a Hugging Face directory.

Every field is read by name or known to change nothing; any other is refused, so that a model is
never run with other arithmetic than it was trained with. Fields and defaults: the
`configuration_*.py` of each family in https://github.com/huggingface/transformers.
"""

import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from model.config import ModelConfig
from model.rotary_scaling import Scaling, scaling
from model.weights import WeightsError
from model.weights.fp8_files import is_read
from model.weights.huggingface_deepseek import (
    expert_fields,
    latent_fields,
)
from model.weights.huggingface_families import ANY, FAMILIES, HARMLESS, Family
from model.weights.quantized_names import NOT_READ

_LARGEST = 10_000_000  # bytes of a config.json
_MOST = {"head_dim": 2**16, "num_hidden_layers": 100_000}  # limits of integer fields; else 2**40
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def read_config(folder: Path) -> tuple[ModelConfig, str]:
    """The configuration of the model in a directory, and its family.

    Args:
      folder: holds `config.json`.

    Returns:
      The configuration, and `model_type`.

    Raises:
      WeightsError: no readable `config.json`, another family, or a field that is missing, of
        another type, or not known.
      ConfigError: sizes that contradict each other.
    """
    fields = _Fields(folder / "config.json")
    model_type = fields.text("model_type")
    if model_type not in FAMILIES:
        fields.refuse("model_type", model_type, f"supported are {', '.join(FAMILIES)}")
    family = FAMILIES[model_type]
    common = _common(fields, family, _name(folder))
    windows = _windows(fields, family, common["layers"])
    latent = common.get("latent")
    turned = latent.rotary if latent else common["head_size"]
    rotary = _rotary(fields, family, turned, common["max_context"])
    more = _feed_forward(fields, family, common["layers"]) | _caps(fields, family, common)
    scores = rotary.pop("scores")
    if latent:
        more["attention_scale"] = scores * common["head_size"] ** -0.5
    config = ModelConfig(**common | rotary, **more, **family.settings, windows=windows)
    fields.finish(HARMLESS | family.harmless)
    return config, model_type


def _name(folder: Path) -> str:
    """The model's name in reports: its folder's name, or `ORG/NAME` in a cache of the hub.

    The cache's folders are `models--ORG--NAME/snapshots/COMMIT`: see `repo_folder_name` of
    https://github.com/huggingface/huggingface_hub.
    """
    path = Path(os.path.abspath(folder))  # unlike Path.resolve, follows no links
    kind, *name = path.parent.parent.name.split("--")
    if path.parent.name == "snapshots" and kind == "models" and name:
        return "/".join(name)
    return path.name


def _common(fields: "_Fields", family: Family, name: str) -> dict[str, Any]:
    heads, d_model = fields.integer("num_attention_heads"), fields.integer("hidden_size")
    activation = fields.text(family.activation_field)
    if family.activation_field != "hidden_act":
        fields.take("hidden_act", None)  # Gemma 2 keeps the older name beside it, unused
    if activation not in _ACTIVATIONS:
        fields.refuse(
            family.activation_field, activation, f"supported are {', '.join(_ACTIVATIONS)}"
        )
    return {
        "name": name,
        "vocabulary": fields.integer("vocab_size"),
        "d_model": d_model,
        "layers": fields.integer("num_hidden_layers"),
        "query_heads": heads,
        "max_context": fields.integer("max_position_embeddings"),
        "norm_epsilon": fields.number("rms_norm_eps", family.epsilon),
        "tied_embedding": fields.truth("tie_word_embeddings", family.tied),
        "activation": _ACTIVATIONS[activation],
        **_heads(fields, family, heads, d_model),
    }


def _heads(fields: "_Fields", family: Family, heads: int, d_model: int) -> dict[str, Any]:
    if family.topk_method:
        return latent_fields(fields, heads)
    return {
        "kv_heads": fields.integer("num_key_value_heads", heads),
        "head_size": fields.integer("head_dim", d_model // max(heads, 1)),
    }


def _feed_forward(fields: "_Fields", family: Family, layers: int) -> dict[str, Any]:
    if family.topk_method:
        return expert_fields(fields, family.topk_method, layers)
    if not family.experts:
        return {"d_ff": fields.integer("intermediate_size")}
    fields.take("intermediate_size", None)
    renormalise = family.renormalise
    if renormalise is None:
        renormalise = fields.truth("norm_topk_prob", False)
    return {
        "d_ff": fields.integer(family.expert_width),
        "experts": fields.one_of(family.experts),
        "experts_per_token": fields.integer("num_experts_per_tok"),
        "renormalise_experts": renormalise,
    }


def _caps(fields: "_Fields", family: Family, common: dict[str, Any]) -> dict[str, Any]:
    if not family.scaled:
        return {}
    return {
        "embedding_scale": math.sqrt(common["d_model"]),
        "attention_scale": fields.number("query_pre_attn_scalar") ** -0.5,
        "attention_softcap": fields.unset("attn_logit_softcapping", family.attention_softcap),
        "logit_softcap": fields.unset("final_logit_softcapping", family.logit_softcap),
    }


def _windows(fields: "_Fields", family: Family, layers: int) -> tuple[int | None, ...] | None:
    """Each layer's window, by `layer_types` if the field is there."""
    if not family.windows:
        return None
    size = int(fields.unset("sliding_window", family.window) or 0)
    older = fields.take("sliding_window_size", size)
    if older != size:
        fields.refuse("sliding_window_size", older, f"sliding_window says {size}")
    by_rule = _windowed(fields, family, layers)
    types = fields.take("layer_types", None)
    if types is not None:
        kinds = {"full_attention": False, "sliding_attention": True}
        if (
            not isinstance(types, list)
            or len(types) != layers
            or not set(map(str, types)) <= {*kinds}
        ):
            fields.refuse("layer_types", types, f"give {layers} of {', '.join(kinds)}")
        by_rule = [kinds[kind] for kind in types]
    if not any(by_rule):
        return None
    if not size:
        if types is not None and any(by_rule):
            fields.refuse("sliding_window", size, "layer_types needs a window")
        return None
    return tuple(size if windowed else None for windowed in by_rule)


def _windowed(fields: "_Fields", family: Family, layers: int) -> list[bool]:
    """Whether each layer has a window, by the family's rule."""
    if family.windows == "pattern":
        every = family.pattern
        if family.local_base:
            every = fields.integer("sliding_window_pattern", every)
        if not every:
            fields.refuse("sliding_window_pattern", every, "give a positive integer")
        return [(layer + 1) % every != 0 for layer in range(layers)]
    first = 0
    if family.windows in ("upper", "switched"):
        first = fields.integer("max_window_layers", 28)
        if not fields.truth("use_sliding_window", False):
            first = layers
        elif family.windows == "switched":
            first = 0
    return [layer >= first for layer in range(layers)]


def _rotary(fields: "_Fields", family: Family, head_size: int, longest: int) -> dict[str, Any]:
    old = fields.take("rope_scaling", None)
    new = fields.take("rope_parameters", None)
    if new and old and new != old:
        fields.refuse("rope_scaling", old, "rope_parameters says otherwise")
    above = fields.unset("rope_theta", None)
    local = family.local_base
    if local:
        local = fields.number("rope_local_base_freq", local)
    given = new if new is not None else old
    if given is None:
        given = {}
    if not isinstance(given, dict):
        fields.refuse("rope_parameters", given, "give an object")
    if given.keys() & {"full_attention", "sliding_attention"}:
        local, given = _local_base(fields, given, local), given.get("full_attention")
    if not isinstance(given, dict):
        fields.refuse("rope_parameters", given, "give an object")
    given = dict(given)
    base = given.pop("rope_theta", above or family.base)
    if above is not None and base != above:
        fields.refuse("rope_theta", above, f"rope_parameters says {base!r:.20}")
    if isinstance(base, bool) or not isinstance(base, int | float):
        fields.refuse("rope_theta", base, "give a number")
    try:
        scaled: Scaling = scaling(given, float(base), head_size, longest)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else f"{error}"
        fields.refuse("rope_scaling", given, f"give other values ({what:.100})")
    return {
        "rotary_base": float(base),
        "rotary_factors": scaled.factors,
        "rotary_scale": scaled.scale,
        "scores": scaled.scores,
        "rotary_limit": longest if scaled.fixed else None,
        "max_context": max(longest, scaled.reach),
        "local_rotary_base": local if family.local_base else None,
    }


def _local_base(fields: "_Fields", given: dict, default: float | None) -> float | None:
    plain = given.get("sliding_attention")
    if given.keys() != {"full_attention", "sliding_attention"} or not isinstance(plain, dict):
        fields.refuse("rope_parameters", given, "give full_attention and sliding_attention")
    if plain.get("rope_type", "default") != "default" or plain.keys() - {"rope_type", "rope_theta"}:
        fields.refuse("rope_parameters", plain, "layers with a window have plain positions")
    base = plain.get("rope_theta", default)
    if isinstance(base, bool) or not isinstance(base, int | float):
        fields.refuse("rope_theta", base, "give a number")
    return float(base)


_QUANTIZATION = ("quantization_config", "compression_config", "quantization")


class _Fields:
    """The fields of a `config.json`; `finish` refuses unknown fields that were never read."""

    def __init__(self, path: Path):
        self._path = path
        self._values = _read(path)
        self._left = set(self._values)

    def take(self, name: str, default: Any = ANY) -> Any:
        self._left.discard(name)
        value = self._values.get(name)
        if value is None:
            value = default
        if value is ANY:
            raise WeightsError(f"field {name} of {self._path} is missing; fetch the model again")
        return value

    def integer(self, name: str, default: Any = ANY) -> int:
        value = self.take(name, default)
        most = _MOST.get(name, 2**40)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            self.refuse(name, value, f"give an integer from 0 to {most}")
        return value

    def one_of(self, names: tuple[str, ...]) -> int:
        """The integer in one or more of these fields, which must agree."""
        found = {name: self.integer(name) for name in names if self._values.get(name) is not None}
        if not found:
            return self.integer(names[0])
        (first, value), *more = found.items()
        for name, other in more:
            if other != value:
                self.refuse(name, other, f"{first} says {value}")
        for name in names:
            self._left.discard(name)
        return value

    def number(self, name: str, default: Any = ANY) -> float:
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
            self.refuse(name, value, "give a number")
        if value < 0 or (default is ANY and value == 0):
            self.refuse(name, value, "give a positive number")
        return float(value)

    def unset(self, name: str, absent: float | None) -> float | None:
        """A positive number; None for null, and `absent` where the field is missing."""
        if name in self._values and self._values[name] is None:
            self._left.discard(name)
            return None
        return self.number(name, absent or 0.0) or None

    def truth(self, name: str, default: bool) -> bool:
        value = self.take(name, default)
        if not isinstance(value, bool):
            self.refuse(name, value, "give true or false")
        return value

    def text(self, name: str) -> str:
        value = self.take(name)
        if not isinstance(value, str):
            self.refuse(name, value, "give a text")
        return value

    def refuse(self, name: str, value: Any, remedy: str) -> NoReturn:
        shown = repr(value) if len(repr(value)) < 60 else repr(value)[:60] + "..."
        raise WeightsError(f"field {name!r:.80} of {self._path} is {shown}; {remedy}")

    def finish(self, known: Mapping[str, tuple[Any, ...] | object]) -> None:
        """Refuses fields that were not read and might change the arithmetic."""
        for name in sorted(self._left.intersection(_QUANTIZATION)):
            value = self._values[name]
            if is_read(value):
                self._left.discard(name)
                continue
            method = value.get("quant_method") if isinstance(value, dict) else None
            by = f"by {method!r:.40} " if method else ""
            self.refuse(name, value, f"weights quantized {by}{NOT_READ}")
        for name in sorted(self._left):
            harmless, value = known.get(name), self._values[name]
            if harmless is ANY:
                continue
            if harmless is None or not any(
                value == good and type(value) is type(good) for good in harmless
            ):
                self.refuse(name, value, "this may change the mathematics and is not supported")


def _read(path: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a field is there twice")
        return found

    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            raise ValueError("it is too large, or no regular file")
        values = json.loads(path.read_text("utf-8"), object_pairs_hook=once)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0][:80]
        raise WeightsError(f"{path} is not readable: {reason}; fetch the model again") from None
    if not isinstance(values, dict):
        raise WeightsError(f"{path} is not a JSON object; fetch the model again")
    return values
