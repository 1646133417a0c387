"""Rotary positions from the fields of a `config.json`.

They have had three spellings: `rope_theta` with `rope_scaling`, `rope_parameters`, and that for
each kind of layer. Defaults: `convert_rope_params_to_dict` of each family's `configuration_*.py`
in https://github.com/huggingface/transformers.
"""

from typing import Any

from model.rotary_scaling import Scaling, scaling
from model.weights.config_fields import Fields
from model.weights.family_record import Family

_KINDS = {"full_attention", "sliding_attention"}  # of layers
_ORIGINAL = "original_max_position_embeddings"
_PARTIAL = "partial_rotary_factor"


def rotary(fields: Fields, family: Family, head_size: int, longest: int) -> dict[str, Any]:
    """The fields of `ModelConfig` that say how positions are rotated, and how far they reach.

    Args:
      fields: those of the file.
      family: its family.
      head_size: h.
      longest: `max_position_embeddings`.

    Returns:
      The fields, and `scores`, which multiplies the scores of latent attention.

    Raises:
      WeightsError: a field that is missing, contradicts another or is not supported.
    """
    given, local = _given(fields, family)
    above = fields.unset("rope_theta", None)
    base = given.pop("rope_theta", family.base if above is None else above)
    if above is not None and base != above:
        fields.refuse("rope_theta", above, f"rope_parameters says {base!r:.20}")
    base = fields.as_number("rope_theta", base)
    size = _rotated(fields, family, given, head_size)
    kind = given.get("rope_type", given.get("type", "default"))
    if isinstance(kind, str) and kind not in family.rotary_kinds:
        what = f"its rope_type is not one of {', '.join(family.rotary_kinds)}"
        fields.refuse("rope_parameters", given, f"{what}, which are supported")
    _add_original(fields, family, given, kind)
    try:
        scaled: Scaling = scaling(given, base, size, longest)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else f"{error}"
        fields.refuse("rope_scaling", given, f"give other values ({what:.100})")
    return {
        "rotary_base": base,
        "rotary_size": None if size == head_size else size,
        "rotary_factors": scaled.factors,
        "rotary_scale": scaled.scale,
        "scores": scaled.scores,
        "rotary_limit": scaled.limit,
        "long_rotary_factors": scaled.long_factors,
        "max_context": scaled.reach or longest,
        "local_rotary_base": local,
    }


def _given(fields: Fields, family: Family) -> tuple[dict[str, Any], float | None]:
    """What the file says of the layers without a window, and the base of those with one."""
    old, new = fields.take("rope_scaling", None), fields.take("rope_parameters", None)
    if new and old and new != old:
        fields.refuse("rope_scaling", old, "rope_parameters says otherwise")
    given = new if new is not None else old if old is not None else dict(family.rotary)
    local = family.local_base
    if family.local_base_field:
        local = fields.number(family.local_base_field, local)
    if not isinstance(given, dict):
        fields.refuse("rope_parameters", given, "give an object")
    if given.keys() & _KINDS and family.local_base:
        local, given = _local_base(fields, given, local), given.get("full_attention")
    elif given.keys() & _KINDS or (new and family.local_base):
        says = "give full_attention and sliding_attention" if family.local_base else "give a kind"
        fields.refuse("rope_parameters", given, f"{says}, as this family has them")
    if not isinstance(given, dict):
        fields.refuse("rope_parameters", given, "give an object")
    known = {name: v for name, v in given.items() if name not in family.ignored_in_rotary}
    return {name: value for name, value in known.items() if value is not None}, local


def _local_base(fields: Fields, given: dict, default: float | None) -> float:
    plain = given.get("sliding_attention")
    if given.keys() != _KINDS or not isinstance(plain, dict):
        fields.refuse("rope_parameters", given, "give full_attention and sliding_attention")
    plain = {name: value for name, value in plain.items() if value is not None}
    if plain.get("rope_type", "default") != "default" or plain.keys() - {"rope_type", "rope_theta"}:
        fields.refuse("rope_parameters", plain, "layers with a window have plain positions")
    return fields.as_number("rope_theta", plain.get("rope_theta", default))


def _rotated(fields: Fields, family: Family, given: dict[str, Any], head_size: int) -> int:
    """How many dimensions of a head are rotated."""
    above = fields.take(_PARTIAL, None)
    part = given.pop(_PARTIAL, above if above is not None else family.rotary_part or 1.0)
    fields.as_number(_PARTIAL, part)
    if above is not None and above != part:
        fields.refuse(_PARTIAL, above, f"rope_parameters says {part}")
    size = int(head_size * part) if 0 < part <= 1 else 0
    if size < 2 or size % 2:
        fields.refuse(_PARTIAL, part, f"it must leave an even part of a head of {head_size}")
    if family.rotary_part is None and part != 1:
        fields.refuse(_PARTIAL, part, "this may change the mathematics and is not supported")
    return size


def _add_original(fields: Fields, family: Family, given: dict[str, Any], kind: Any) -> None:
    """Adds the length that a model was first trained for where it stands above the kind's fields.

    It is none of the fields of a kind that does not stretch positions from it.
    """
    above = fields.take(_ORIGINAL, family.original)
    if above is None or kind not in ("llama3", "yarn", "longrope", "su"):
        return
    if given.setdefault(_ORIGINAL, above) != above:
        fields.refuse(_ORIGINAL, above, f"rope_parameters says {given[_ORIGINAL]!r:.20}")
