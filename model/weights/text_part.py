"""The text model among the parts of one that also takes images, as folders of both describe it.

`config.json` has its fields in `text_config`; what stands beside them says nothing of a text, and
tensors of the other parts are left out (`Family.other_parts`).
"""

from typing import NamedTuple

from model.weights.config_fields import Fields


class TextPart(NamedTuple):
    """Where a model of images and text has its text model.

    Attributes:
      model_type: that of the text model.
      beside: fields beside `text_config` that do not change what is made of a text.
    """

    model_type: str
    beside: tuple[str, ...]


_GEMMA = (
    "vision_config", "audio_config", "vision_soft_tokens_per_image", "image_token_id",
    "image_token_index", "video_token_id", "audio_token_id", "boi_token_id", "eoi_token_id",
    "boi_token_index", "eoi_token_index", "boa_token_id", "eoa_token_id", "boa_token_index",
    "eoa_token_index",
)  # fmt: skip
_QWEN = (
    "vision_config", "image_token_id", "video_token_id", "vision_start_token_id",
    "vision_end_token_id", "language_model_only",
)  # fmt: skip
PARTS = {
    "gemma4": TextPart("gemma4_text", _GEMMA),
    "llama4": TextPart(
        "llama4_text", ("vision_config", "image_token_index", "boi_token_index", "eoi_token_index")
    ),
    "qwen3_5": TextPart("qwen3_5_text", _QWEN),
    "qwen3_5_moe": TextPart("qwen3_5_moe_text", _QWEN),
}
"""Of each `model_type` of images and text its text model."""


def text_model(fields: Fields) -> tuple[Fields, str]:
    """The fields of the text model, which may be an object among others, and its `model_type`.

    Raises:
      WeightsError: a field beside it that is not known, or says otherwise than the text model's.
    """
    outer = fields.text("model_type")
    if outer not in PARTS:
        return fields, outer
    part = PARTS[outer]
    text = fields.within("text_config", ("model_type", *part.beside))
    if (inner := text.take("model_type", part.model_type)) != part.model_type:
        text.refuse("model_type", inner, f"beside {outer} it is {part.model_type}")
    return text, part.model_type
