"""The collectives of attention, as `model.attention` and `model.latent_attention` reshard.

A part of the walk of `profiles.floor.communication`.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from model.attention import beside_cache
from profiles.floor.shapes import FLOAT32, Matmul
from sharding.axes import UNDIVIDED
from sharding.placement import division, used_axes

if TYPE_CHECKING:
    from profiles.floor.communication import ForwardPass

_PROJECTIONS, _ATTENTION = "layer/query_key_value", "layer/attention"
_OUTPUT = "layer/attention_output"


def grouped_attention(
    step: "ForwardPass", given: jax.P, contracted: jax.P, own: bool = True
) -> None:
    """Projections, attention over the cache or the prompt, and the projection back.

    Args:
      step: the walk, which notes what moves.
      given: sharding of the normed residual stream, ...
      contracted: ... and as the projections read it.
      own: whether the layer has keys and values of its own.
    """
    placement, block = step.placement, "layer/query_key_value"
    both = "Kh" if step.config.keys_are_values else "KCh"
    for letters in ("KGh", both) if own else ("KGh",):
        result = placement.activations("BT" + letters)
        step.product(Matmul(letters + "D", len(letters), given, contracted, result, block))
        given = contracted
        if step.config.attention_bias:
            bias = placement.activations(letters)
            step.reshard(step.plain(letters), placement.weights(letters), bias, block, True)
        attended = placement.attention("BT" + letters.replace("h", UNDIVIDED))
        step.reshard(step.array("BT" + letters), result, attended, block)
    if step.config.output_gate:
        result = placement.activations("BTKGh")
        step.product(Matmul("KGhD", 3, given, contracted, result, block))
    if step.config.norm_over_heads:
        for letters in ("BTKG_", "BTK_"):
            _norm_over_heads(step, placement.attention(letters), block)
    new, cache = placement.attention("BTK_"), placement.cache("BTK_")
    for _ in range(2 * own):
        step.reshard(step.array("BTKh"), new, cache, "layer")
    heads = placement.attention("BTKG_")
    if step.attends_to_cache:
        _softmax(step, heads)
    made, block = placement.activations("BTKGh"), "layer/attention_output"
    step.reshard(step.array("BTKGh"), heads, made, block)
    contracted, result = placement.contracted("BTKGh"), placement.activations("BTR")
    step.product(Matmul("DKGh", 1, made, contracted, result, block))


def latent_attention(step: "ForwardPass", given: jax.P) -> None:
    """Projections, attention over the cache or the prompt, and the projection back.

    Args:
      step: the walk, which notes what moves.
      given: sharding of the normed residual stream.
    """
    placement = step.placement
    act = placement.activations
    _project(step, given)
    latents = jax.P(act("BTl")[0], None, None)
    step.reshard(step.array("BTl"), latents, placement.attention("BTl"), _PROJECTIONS)
    new = placement.attention("BTK_"), placement.cache("BTK_")
    if step.sizes["T"] == 1:
        made = _decode(step)
        step.reshard(step.array("BTKl"), *new, "layer")
    else:
        step.reshard(step.array("BTKl"), *new, "layer")
        made = _prompt(step)
    step.reshard(step.array("BTKGv"), made, act("BTKGv"), _OUTPUT)
    contracted, result = placement.contracted("BTKGv"), act("BTR")
    step.product(Matmul("DKGv", 1, act("BTKGv"), contracted, result, _OUTPUT))


def _project(step: "ForwardPass", given: jax.P) -> None:
    """Queries, by their latent if they have one, and the token's latent."""
    placement, act = step.placement, step.placement.activations
    inner = step.config.latent.query_rank
    for letters in ("q" if inner else "KGh", "l"):
        contracted = placement.contracted("BTD")
        result = act("BT" + letters)
        step.product(Matmul(letters + "D", len(letters), given, contracted, result, _PROJECTIONS))
        given = contracted
    if inner:
        given, contracted = act("BTq"), placement.contracted("BTq")
        step.product(Matmul("KGhq", 3, given, contracted, act("BTKGh"), _PROJECTIONS))


def _decode(step: "ForwardPass") -> jax.P:
    """One token's absorbed queries to the cache; gives the sharding of what heads make."""
    placement = step.placement
    heads, attended = placement.activations("BTKG_"), placement.attention("BTKG_")
    there = beside_cache(attended, placement)
    step.reshard(step.array("BTKGh"), placement.activations("BTKGh"), heads, _PROJECTIONS)
    _of_heads(step, "KGuc", heads, _PROJECTIONS)
    step.reshard(step.array("BTKGl"), heads, attended, _PROJECTIONS)
    step.reshard(step.array("BTKGl"), attended, there, _ATTENTION)
    _join_slots(step, there, "l")
    _bring_back(step, there, attended, "c")
    step.reshard(step.array("BTKGc"), attended, heads, _OUTPUT)
    _of_heads(step, "KGvc", heads, _OUTPUT)
    return heads


def _prompt(step: "ForwardPass") -> jax.P:
    """Many tokens to keys and values made of latents; gives the sharding of what heads make."""
    placement = step.placement
    attended = placement.attention("BTKG_")
    step.reshard(step.array("BTKGh"), placement.activations("BTKGh"), attended, _PROJECTIONS)
    where = [attended]
    if step.attends_to_cache:
        there = beside_cache(attended, placement)
        where.append(there)
        step.reshard(step.array("BTKGh"), attended, there, _ATTENTION)
        _join_slots(step, there, "v")
        _bring_back(step, there, attended, "v")
    for spec in dict.fromkeys(where):
        for letters in ("KGuc", "KGvc"):
            _of_heads(step, letters, spec, "layer")
    return attended


def _of_heads(step: "ForwardPass", letters: str, heads: jax.P, block: str) -> None:
    """A weight [1, G, ...] cut as queries [B, T, 1, G, ...] are."""
    stored, target = step.placement.weights(letters), jax.P(None, heads[3], None, None)
    step.reshard(step.plain(letters), stored, target, block, of_weights=True)


def _norm_over_heads(step: "ForwardPass", spec: jax.P, block: str) -> None:
    """A mean over all heads of queries, or of keys, divided as `spec` says."""
    batch, tokens, *heads = division(spec)
    if axes := sum(heads, ()):
        step.note("all-reduce", axes, step.size("BT", (batch, tokens)), block, element=FLOAT32)


def _softmax(step: "ForwardPass", heads: jax.P) -> None:
    """Queries, divided as `heads` says, to the cache, its divided slots' softmax, and back."""
    there = beside_cache(heads, step.placement)
    step.reshard(step.array("BTKGh"), heads, there, "layer/attention")
    _join_slots(step, there, "h")
    _bring_back(step, there, heads, "h")


def _join_slots(step: "ForwardPass", there: jax.P, value: str) -> None:
    """The softmax of queries divided as `there` says, with sums as long as this letter."""
    slots = used_axes(step.placement.cache("S"))
    if slots:
        one = step.size("BTKG", division(there)[:4])  # a number for each query
        for size in (one, one * (step.sizes[value] + 1)):
            step.note("all-reduce", slots, size, "layer/attention", True, FLOAT32)


def _bring_back(step: "ForwardPass", there: jax.P, heads: jax.P, value: str) -> None:
    """Sums as long as this letter with their softmax's two numbers, to where queries were."""
    shape = (*step.shape("BTKG"), step.sizes[value] + 2)
    moved = jax.ShapeDtypeStruct(shape, jnp.float32)
    step.reshard(moved, there, heads, "layer/attention")
