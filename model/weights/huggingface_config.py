"""A model's configuration from the `config.json` of a Hugging Face directory.

Every field is taken by name or known to change nothing; any other is refused, so that a model is
never run with mathematics that it was not trained with. Fields and defaults: the
`configuration_*.py` of each family in https://github.com/huggingface/transformers.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from model.config import ModelConfig
from model.rotary_scaling import Scaling, scaling
from model.weights import WeightsError

_ANY = object()
_LARGEST = 10_000_000  # bytes of a config.json
_DESCRIPTIONS = [
    "_name_or_path",
    "architectures",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "initializer_range",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "attention_dropout",
    "router_aux_loss_coef",
    "output_router_logits",
    "pretraining_tp",
    "unsloth_version",
    "id2label",
    "label2id",
    "problem_type",
    "return_dict",
    "output_hidden_states",
    "output_attentions",
    "chunk_size_feed_forward",
    "router_jitter_noise",
    "decoder_start_token_id",
    "sep_token_id",
    "task_specific_params",
    "unsloth_fixed",
    "cache_implementation",
]
# Fields that change nothing in inference when they have one of these values.
_HARMLESS: Mapping[str, tuple[Any, ...] | object] = {
    **dict.fromkeys(_DESCRIPTIONS, _ANY),
    "model_type": _ANY,
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "is_decoder": (False, True),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "use_bidirectional_attention": (False, None),
    "decoder_sparse_step": (1,),
    "mlp_only_layers": ([], None),
    "_sliding_window_pattern": _ANY,  # layer_types say the same
    "partial_rotary_factor": (1.0,),
}
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """What a `model_type` means beyond the fields that all share.

    Attributes:
      activation_field: where the activation is.
      tied: the default of `tie_word_embeddings`.
      base: the default rotary base.
      local_base: the default base of layers with a window; None where all share one.
      windowed: which layers have a window where `layer_types` is absent, given the layer's number
        and the configuration's fields.
      experts: the fields that may hold the number of experts; empty for none.
      expert_width: the field with the width of each.
      renormalise: whether chosen experts' weights are; None where a field says so.
      settings: fields of `ModelConfig` that the family fixes.
      scaled: embeddings are multiplied by sqrt(d_model), scores by query_pre_attn_scalar ** -0.5.
    """

    activation_field: str = "hidden_act"
    tied: bool = False
    base: float = 10_000.0
    local_base: float | None = None
    windowed: Callable[[int, "_Fields"], bool] = lambda layer, fields: True
    experts: tuple[str, ...] = ()
    expert_width: str = "intermediate_size"
    renormalise: bool | None = True
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scaled: bool = False


def _qwen_windowed(layer: int, fields: "_Fields") -> bool:
    first = fields.integer("max_window_layers", 28)
    return fields.truth("use_sliding_window", False) and layer >= first


def _gemma3_windowed(layer: int, fields: "_Fields") -> bool:
    return (layer + 1) % fields.integer("sliding_window_pattern", 6) != 0


_GEMMA = Family(activation_field="hidden_activation", tied=True, scaled=True)
FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "mixtral": Family(base=1e6, experts=("num_local_experts",)),
    "qwen2": Family(windowed=_qwen_windowed, settings={"attention_bias": True}),
    "qwen3": Family(windowed=_qwen_windowed, settings={"query_key_norm": True}),
    "qwen3_moe": Family(
        windowed=_qwen_windowed,
        experts=("num_experts", "num_local_experts"),
        expert_width="moe_intermediate_size",
        renormalise=None,
        settings={"query_key_norm": True},
    ),
    "gemma2": dataclasses.replace(
        _GEMMA, windowed=lambda layer, _: layer % 2 == 0, settings={"norm_after": True}
    ),
    "gemma3_text": dataclasses.replace(
        _GEMMA,
        base=1e6,
        local_base=10_000.0,
        windowed=_gemma3_windowed,
        settings={"norm_after": True, "query_key_norm": True},
    ),
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
    common = _common(fields, family, folder.resolve().name)
    windows = _windows(fields, family, common["layers"], common["max_context"])
    rotary = _rotary(fields, family, common["head_size"], common["max_context"])
    more = _experts(fields, family) | _caps(fields, family, common["d_model"])
    config = ModelConfig(**common, **more, **rotary, **family.settings, windows=windows)
    fields.finish()
    return config, model_type


def _common(fields: "_Fields", family: Family, name: str) -> dict[str, Any]:
    heads, d_model = fields.integer("num_attention_heads"), fields.integer("hidden_size")
    activation = fields.text(family.activation_field)
    if family.activation_field != "hidden_act":
        fields.take("hidden_act", None)  # Gemma 2 keeps the older name beside it, unused
    if activation not in _ACTIVATIONS:
        fields.refuse(
            family.activation_field, activation, f"supported are {', '.join(_ACTIVATIONS)}"
        )
    width = "intermediate_size"
    if family.experts:
        fields.take(width, None)
        width = family.expert_width
    return {
        "name": name,
        "vocabulary": fields.integer("vocab_size"),
        "d_model": d_model,
        "layers": fields.integer("num_hidden_layers"),
        "query_heads": heads,
        "kv_heads": fields.integer("num_key_value_heads", heads),
        "head_size": fields.integer("head_dim", d_model // max(heads, 1)),
        "d_ff": fields.integer(width),
        "max_context": fields.integer("max_position_embeddings"),
        "norm_epsilon": fields.number("rms_norm_eps", 1e-6),
        "tied_embedding": fields.truth("tie_word_embeddings", family.tied),
        "activation": _ACTIVATIONS[activation],
    }


def _experts(fields: "_Fields", family: Family) -> dict[str, Any]:
    if not family.experts:
        return {}
    renormalise = family.renormalise
    if renormalise is None:
        renormalise = fields.truth("norm_topk_prob", False)
    return {
        "experts": fields.one_of(family.experts),
        "experts_per_token": fields.integer("num_experts_per_tok"),
        "renormalise_experts": renormalise,
    }


def _caps(fields: "_Fields", family: Family, d_model: int) -> dict[str, Any]:
    if not family.scaled:
        return {}
    return {
        "embedding_scale": math.sqrt(d_model),
        "attention_scale": fields.number("query_pre_attn_scalar") ** -0.5,
        "attention_softcap": fields.number("attn_logit_softcapping", 0.0) or None,
        "logit_softcap": fields.number("final_logit_softcapping", 0.0) or None,
    }


def _windows(
    fields: "_Fields", family: Family, layers: int, longest: int
) -> tuple[int | None, ...] | None:
    """Each layer's window; `layer_types` decides where it is present."""
    size = fields.integer("sliding_window", 0)
    by_rule = [family.windowed(layer, fields) for layer in range(min(layers, 10_000))]
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
            fields.refuse("sliding_window", size, "layer_types wants a window")
        return None
    return tuple(size if windowed and size < longest else None for windowed in by_rule)


def _rotary(fields: "_Fields", family: Family, head_size: int, longest: int) -> dict[str, Any]:
    old = fields.take("rope_scaling", None)
    new = fields.take("rope_parameters", None)
    base = fields.number("rope_theta", family.base)
    local = fields.number("rope_local_base_freq", family.local_base or 0.0) or None
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
    base = given.pop("rope_theta", base)
    if isinstance(base, bool) or not isinstance(base, int | float):
        fields.refuse("rope_theta", base, "give a number")
    try:
        scaled: Scaling = scaling(given, float(base), head_size, longest)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        fields.refuse("rope_scaling", given, f"{error}"[:100])
    return {
        "rotary_base": float(base),
        "rotary_factors": scaled.factors,
        "rotary_scale": scaled.scale,
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


class _Fields:
    """The fields of a `config.json`, each taken by name."""

    def __init__(self, path: Path):
        self._path = path
        self._values = _read(path)
        self._left = set(self._values)

    def take(self, name: str, default: Any = _ANY) -> Any:
        self._left.discard(name)
        value = self._values.get(name)
        if value is None:
            value = default
        if value is _ANY:
            raise WeightsError(f"field {name} of {self._path} is missing; fetch the model again")
        return value

    def integer(self, name: str, default: Any = _ANY) -> int:
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 2**40:
            self.refuse(name, value, "give an integer of at least 0")
        return value

    def one_of(self, names: tuple[str, ...]) -> int:
        """The integer that one or more of these fields hold."""
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

    def number(self, name: str, default: Any = _ANY) -> float:
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
            self.refuse(name, value, "give a number")
        if value < 0 or (default is _ANY and value == 0):
            self.refuse(name, value, "give a positive number")
        return float(value)

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

    def finish(self) -> None:
        """Refuses whatever was not taken and might change the mathematics."""
        for name in sorted(self._left):
            harmless, value = _HARMLESS.get(name), self._values[name]
            if harmless is _ANY:
                continue
            if harmless is None or not any(
                value == good and type(value) is type(good) for good in harmless
            ):
                self.refuse(name, value, "this may change the mathematics and is not supported")


def _read(path: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a field stands there twice")
        return found

    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("it is too large")
        values = json.loads(path.read_text("utf-8"), object_pairs_hook=once)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0][:80]
        raise WeightsError(f"{path} is not readable: {reason}; fetch the model again") from None
    if not isinstance(values, dict):
        raise WeightsError(f"{path} is not a JSON object; fetch the model again")
    return values
