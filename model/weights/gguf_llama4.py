"""Llama 4 in a GGUF file: keys of `llama4`, and what none of them says.

llama.cpp's converter writes neither the length of chunks nor which layers rotate, nor how queries
grow, nor whether they are normed: all released models have those alike, but for the norm, which
Maverick lacks. Ollama's writes the first and the last. Source: `conversion/llama.py` and
`src/models/llama4.cpp` of https://github.com/ggml-org/llama.cpp, `convert/convert_llama4.go` of
https://github.com/ollama/ollama.
"""

from collections.abc import Mapping
from typing import Any

from model.routing_rule import Routing
from model.weights.gguf_keys import Keys, last_of_groups

_CHUNK = 8192
"""Tokens of a chunk."""
_GROWTH = (8192, 0.1)
"""Length and slope by which queries grow where positions are not rotated."""
_FULL_EVERY = 4
"""The last layer of each group of so many sees all tokens and rotates nothing."""
_MAVERICK = 128
"""Experts of Maverick, whose queries and keys are not normed."""


def chunk_fields(keys: Keys, layers: int) -> dict[str, Any]:
    """Fields of a `ModelConfig` for chunks, for layers without rotation, and for their queries.

    Args:
      keys: the file's.
      layers: of the model.

    Raises:
      WeightsError: chunks that are of no length, or layers in another order.
    """
    size, pattern = keys.integer("attention.chunk_size", _CHUNK), "attention.sliding_window_pattern"
    if size < 1:
        keys.refuse("attention.chunk_size", size)
    # A window of 0 is a model that sees all in all layers, and no key says which of these rotate.
    keys.expect("attention.sliding_window", size, "that of chunks")
    rotated = tuple(not each for each in last_of_groups(_FULL_EVERY, layers))
    given = keys.truths(pattern, layers)
    if given is None:
        keys.expect(pattern, _FULL_EVERY, "that of the architecture")
    elif given != rotated:
        keys.refuse(pattern, given)
    return {
        "chunked": True,
        "windows": tuple(size if each else None for each in rotated),
        "rotary_layers": None if all(rotated) else rotated,
        "query_growth": _GROWTH,
    }


def interleaved_experts(keys: Keys, common: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `ModelConfig` for experts in every so many-th layer, and for the norm of queries.

    Args:
      keys: the file's.
      common: the fields that are known.

    Raises:
      WeightsError: sizes that are missing or not possible.
    """
    layers, count = common["layers"], keys.integer("expert_count")
    every = keys.integer("interleave_moe_layer_step")
    if not 1 <= every <= layers:
        keys.refuse("interleave_moe_layer_step", every, f", of {layers} layers")
    routed = last_of_groups(every, layers)
    width = keys.integer("expert_feed_forward_length")
    return {
        "unit_queries_keys": keys.truth("use_qk_norm", count != _MAVERICK),
        "d_ff": width,
        "shared_d_ff": width,
        "experts": count,
        "experts_per_token": keys.integer("expert_used_count"),
        "renormalise_experts": False,
        "routing": Routing(score="sigmoid", of_inputs=True),
        "expert_layers": None if all(routed) else routed,
        "dense_d_ff": 0 if all(routed) else common["d_ff"],
    }
