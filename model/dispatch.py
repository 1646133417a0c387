"""Tokens to the chips that hold their experts, and the experts' answers back.

Where mesh axes divide both the experts and the batch, each chip has tokens for the experts of
others: one all-to-all sends them, another brings the answers back (Lepikhin et al. 2021, GShard,
section 3.2). Nothing is dropped, whatever the tokens choose, and arrays have one shape, so each of
n chips sends each other all of its N tokens, with a share of 0 for experts that a token did not
choose: [n, N, D] each way. That is the payload of an all-gather of the tokens and a
reduce-scatter of the answers; sending only what was chosen, k / n of it for k < n, takes
`jax.lax.ragged_all_to_all`, which XLA:CPU has not.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sharding.layout import Axes
from sharding.placement import Placement, entry_axes, used_axes


class ExpertAxes(NamedTuple):
    """The mesh axes that divide a mixture, major first.

    Attributes:
      exchanged: divide experts and batch: tokens go to the experts' chips, and answers back.
      replicated: divide experts but not the batch: each chip has all tokens for its experts.
      spread: both, in the order that the experts lie in.
      inputs: divide d_model of the experts.
      hidden: divide d_ff of the experts.
      batch: divide the batch.
    """

    exchanged: Axes
    replicated: Axes
    spread: Axes
    inputs: Axes
    hidden: Axes
    batch: Axes


def expert_axes(placement: Placement) -> ExpertAxes:
    """How this layout divides a mixture on this mesh."""
    spread, inputs, hidden = map(entry_axes, placement.use("EDF"))
    batch = used_axes(placement.activations("B"))
    exchanged = tuple(axis for axis in spread if axis in batch)
    replicated = tuple(axis for axis in spread if axis not in batch)
    return ExpertAxes(exchanged, replicated, spread, inputs, hidden, batch)


def sums(axes: ExpertAxes, residual: Axes) -> tuple[Axes, Axes]:
    """Mesh axes that the answers' sum is scattered over, and those it is summed over whole.

    Args:
      axes: how the mixture is divided.
      residual: mesh axes that divide d_model of the residual stream.
    """
    unsummed, further = axes.replicated + axes.hidden, residual[len(axes.inputs) :]
    can_scatter = residual[: len(axes.inputs)] == axes.inputs and set(further) <= set(unsummed)
    scattered = further if can_scatter else ()
    return scattered, tuple(axis for axis in unsummed if axis not in scattered)


def by_destination(shares: jax.Array, axes: ExpertAxes) -> jax.Array:
    """Each token's shares of the experts of each chip that it can go to.

    Args:
      shares: [N, E], for this chip's tokens.
      axes: how the mixture is divided.

    Returns:
      [n, N, E / chips], n chips along `axes.exchanged`; where they are none, this chip's own.
    """
    tokens = shares.shape[0]
    shares = shares.reshape(tokens, *map(jax.lax.axis_size, axes.spread), -1)
    for dim, axis in reversed([*enumerate(axes.spread, start=1)]):
        if axis in axes.replicated:
            chip = jax.lax.axis_index(axis)
            shares = jax.lax.dynamic_index_in_dim(shares, chip, dim, keepdims=False)
    return jnp.moveaxis(shares.reshape(tokens, -1, shares.shape[-1]), 1, 0)


def send(x: jax.Array, shares: jax.Array, exchanged: Axes) -> tuple[jax.Array, jax.Array]:
    """Every token to every chip along these axes, in one all-to-all; see the module.

    Args:
      x: [N, D], this chip's tokens.
      shares: [n, N, E'] float32, of each chip's experts.
      exchanged: the mesh axes.

    Returns:
      [n * N, D] and [n * N, E']: all chips' tokens and their shares of this chip's experts.
    """
    if not exchanged:
        return x, shares[0]
    unit = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    # As bits, so that shares keep their float32 beside tokens of another type.
    tokens, parts = (jax.lax.bitcast_convert_type(array, unit) for array in (x, shares))
    tokens = jnp.broadcast_to(tokens, (len(shares), *x.shape))
    packed = jnp.concatenate([tokens, parts.reshape(*shares.shape[:2], -1)], axis=-1)
    packed = _exchange(packed, exchanged).reshape(-1, packed.shape[-1])
    parts = packed[:, x.shape[1] :].reshape(-1, *parts.shape[2:])
    return (
        jax.lax.bitcast_convert_type(packed[:, : x.shape[1]], x.dtype),
        jax.lax.bitcast_convert_type(parts, shares.dtype),
    )


def bring_back(answers: jax.Array, exchanged: Axes, dtype: jnp.dtype) -> jax.Array:
    """What the experts of all chips along these axes make of this chip's tokens.

    Args:
      answers: [n * N, D] float32, of this chip's experts to the tokens that `send` gave.
      exchanged: the mesh axes.
      dtype: type that they are sent in.

    Returns:
      [N, D] float32, summed over the chips.
    """
    if not exchanged:
        return answers
    chips = jax.lax.axis_size(exchanged)
    parts = answers.astype(dtype).reshape(chips, -1, answers.shape[-1])
    return jnp.sum(_exchange(parts, exchanged), axis=0, dtype=jnp.float32)


def _exchange(blocks: jax.Array, axes: Axes) -> jax.Array:
    """blocks: [n, ...], one for each chip -> [n, ...], one from each chip."""
    return jax.lax.all_to_all(blocks, axes, split_axis=0, concat_axis=0, tiled=True)
