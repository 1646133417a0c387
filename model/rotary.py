"""Rotary position embedding (Su et al. 2021), in the half-split form of Hugging Face.

Dimension i of a head turns together with dimension i + h / 2.
"""

import jax
import jax.numpy as jnp
import numpy as np

from model.config import ModelConfig
from sharding.platform_workarounds import computed_once

Rotation = tuple[jax.Array, jax.Array]
"""Cosine and sine of each token's angles, each [B, T, h / 2], float32."""


def frequencies(config: ModelConfig, local: bool = False) -> np.ndarray:
    """Radians per position of each of the h / 2 pairs: base ** (-2 i / h), divided by the factors.

    h is here the part of a head that turns.

    Args:
      config: the model.
      local: for the layers with a window, where they have a base of their own.
    """
    exponents = np.arange(0, config.rotary_size, 2, dtype=np.float64) / config.rotary_size
    if local and config.local_rotary_base:
        return config.local_rotary_base**-exponents
    return config.rotary_base**-exponents / np.asarray(config.rotary_factors or 1.0)


def rotation(config: ModelConfig, positions: jax.Array, local: bool = False) -> Rotation:
    """Cosines and sines at `positions` ([B, T], int32), for all layers with or without a window."""
    with jax.named_scope("rotary_angles"):
        rates = jnp.asarray(frequencies(config, local), jnp.float32)
        angles = positions[..., None].astype(jnp.float32) * rates
        scale = 1.0 if local and config.local_rotary_base else config.rotary_scale
        return tuple(computed_once(part(angles) * scale) for part in (jnp.cos, jnp.sin))


def rotate(x: jax.Array, angles: Rotation) -> jax.Array:
    """Applies the rotary embedding: rotates each pair of a head by its token's angle.

    Args:
      x: [B, T, K, C, h], any two head dimensions between tokens and head size.
      angles: cosines and sines from `rotation`.

    Returns:
      The same shape and dtype.
    """
    cosine, sine = (part[:, :, None, None, :] for part in angles)  # [B, T, 1, 1, h / 2]
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = (low * cosine - high * sine, high * cosine + low * sine)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
