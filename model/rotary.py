"""Rotary position embedding (Su et al. 2021), in the half-split form of Hugging Face.

Dimension i of a head turns together with dimension i + r / 2, where the first r dimensions of the
head turn: all h of them in most models.
"""

import jax
import jax.numpy as jnp
import numpy as np

from model.config import ModelConfig
from sharding.platform_workarounds import computed_once

Rotation = tuple[jax.Array, jax.Array]
"""Cosine and sine of each token's angles, each [B, T, r / 2], float32."""


def frequencies(config: ModelConfig, local: bool = False) -> np.ndarray:
    """Radians per position of each of the r / 2 pairs: base ** (-2 i / r), divided by the factors.

    Args:
      config: the model, whose `max_context` decides between two sets of factors where it has them.
      local: for the layers with a window, where they have a base of their own.
    """
    exponents = np.arange(0, config.rotated, 2, dtype=np.float64) / config.rotated
    if local and config.local_rotary_base:
        return config.local_rotary_base**-exponents
    factors = config.rotary_factors
    if config.rotary_limit is not None and config.max_context > config.rotary_limit:
        factors = config.long_rotary_factors
    rates = config.rotary_base**-exponents / np.asarray(factors or 1.0)
    return np.where(np.arange(len(rates)) < (config.rotary_pairs or len(rates)), rates, 0.0)


def rotation(config: ModelConfig, positions: jax.Array, local: bool = False) -> Rotation:
    """Cosines and sines at `positions` ([B, T], int32), for all layers with or without a window."""
    with jax.named_scope("rotary_angles"):
        rates = jnp.asarray(frequencies(config, local), jnp.float32)
        angles = positions[..., None].astype(jnp.float32) * rates
        scale = 1.0 if local and config.local_rotary_base else config.rotary_scale
        return tuple(computed_once(part(angles) * scale) for part in (jnp.cos, jnp.sin))


def rotate(x: jax.Array, angles: Rotation | None) -> jax.Array:
    """Applies the rotary embedding: rotates each pair of a head by its token's angle.

    Args:
      x: [B, T, K, C, h], any two head dimensions between tokens and head size.
      angles: cosines and sines from `rotation`; None in a layer that knows no positions. Dimensions
        of a head for which there are none stay as they are.

    Returns:
      The same shape and dtype.
    """
    if angles is None:
        return x
    cosine, sine = (part[:, :, None, None, :] for part in angles)  # [B, T, 1, 1, r / 2]
    pairs = cosine.shape[-1]
    low, high, rest = jnp.split(x.astype(jnp.float32), (pairs, 2 * pairs), axis=-1)
    rotated = (low * cosine - high * sine, high * cosine + low * sine)
    return jnp.concatenate([*rotated, *([rest] if rest.size else [])], axis=-1).astype(x.dtype)
