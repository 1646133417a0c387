"""An entry of the catalogue, and the sizes of a decoder in the order in which papers list them."""

import dataclasses
from typing import Any

from model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Published:
    """A catalogue entry.

    Attributes:
      config: the shape.
      parameters: the published count; None for a shape published without one, and for our own.
      digit: the unit that the published count is rounded to; 1 where it is exact.
      source: where shape and count were published.
    """

    config: ModelConfig
    parameters: int | None
    digit: int
    source: str


def shape(
    name: str, layers: int, width: int, heads: int, kv_heads: int, d_ff: int, **more: Any
) -> ModelConfig:
    """A configuration; the head size is the width over the heads if `more` does not say it."""
    more.setdefault("head_size", width // heads)
    return ModelConfig(
        name=name,
        layers=layers,
        d_model=width,
        query_heads=heads,
        kv_heads=kv_heads,
        d_ff=d_ff,
        **more,
    )


def released(config: ModelConfig, parameters: int, source: str) -> Published:
    """The entry of a model whose config.json and weights are there to be counted."""
    return Published(
        config, parameters, 1, f"{source}; config.json and weights of the released model"
    )
