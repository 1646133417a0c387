"""What a pass holds beside weights and cache: activations, scores of attention, logits.

Counted as the engine's program makes them, a layer at a time and all scores of a layer at once
(`model.attention.attend`), so that a prompt's grow with the square of its length. Compilers fuse
some of it away and hold some of it twice: the recorded programs of prompts hold 0.4 times as much
(on a v5e, where all of it stays on the chip) to 2.1 times.
"""

from model.config import ModelConfig
from model.form import Form
from sharding.placement import Axes, Placement, shards, used_axes

FLOAT32 = 4  # bytes of a score, a logit, and of sums in attention and experts


def attention_share(placement: Placement, of_cache: bool) -> float:
    """The part of attention that each device does: of batch and heads, and of slots.

    Args:
      placement: that attention runs in.
      of_cache: one token's queries meet the slots of a cache, which may be divided too; tokens of a
        prompt meet each other, wherever their cache lies.
    """
    slots = used_axes(placement.cache("S")) if of_cache else ()
    return _share(placement, used_axes(placement.attention("B", "K", "G")), slots)


def activation_bytes(
    config: ModelConfig, placement: Placement, form: Form, *, tokens: int, slots: int
) -> float:
    """Bytes that one sequence of a pass takes on each device where they are most.

    Args:
      config: the model.
      placement: of the pass.
      form: how its numbers are stored.
      tokens: new ones of the sequence; 1 of a decode step.
      slots: that the cache has room for; of a prompt, its tokens, which meet each other.
    """
    D, size = config.d_model, form.dtype.itemsize
    stream = D * size * _share(placement, used_axes(placement.activations("B", "R")))
    whole = D * size * _share(placement, used_axes(placement.contracted("B", "T", "D")))
    widest = max(
        _attention(config, placement, form, tokens, slots),
        tokens * _feed_forward(config, placement, form),
        config.vocabulary * FLOAT32 * _logits_share(placement),  # of each sequence's last token
    )
    return tokens * (stream + whole) + widest


def _attention(
    config: ModelConfig, placement: Placement, form: Form, tokens: int, slots: int
) -> float:
    """Queries, keys and values of the new tokens, scores, and what is mixed by them."""
    # A decode step scores what a layer's cache keeps; a prompt all its tokens, then masks them.
    seen = (
        slots
        if tokens > 1
        else max(min(slots, config.window(layer) or slots) for layer in range(config.layers))
    )
    heads, width = config.query_heads, config.head_size
    queries = heads * width * attention_share(placement, of_cache=False)
    both = 2 * config.kv_heads * width * _share(placement, used_axes(placement.attention("B", "K")))
    scores = heads * seen * attention_share(placement, of_cache=tokens == 1)
    return tokens * ((queries + both) * form.dtype.itemsize + (scores + queries) * FLOAT32)


def _feed_forward(config: ModelConfig, placement: Placement, form: Form) -> float:
    """Of one token: gate, up and their product; of a mixture, in each expert that it is sent to."""
    if not config.experts:
        share = _share(placement, used_axes(placement.activations("B", "F")))
        return 3 * config.d_ff * form.dtype.itemsize * share
    batch = used_axes(placement.activations("B"))
    hidden = config.experts_per_token * 3 * config.d_ff
    inside = hidden * _share(placement, batch, used_axes(placement.use("E", "F")))
    return (inside + config.d_model * _share(placement, batch)) * FLOAT32


def _logits_share(placement: Placement) -> float:
    axes = used_axes(placement.beside_stored("B")), used_axes(placement.activations("V"))
    return _share(placement, *axes)


def _share(placement: Placement, *axes: Axes) -> float:
    """The part of an array that each device has where these mesh axes divide it, each once."""
    return 1 / shards(tuple({axis for some in axes for axis in some}), placement.mesh)
