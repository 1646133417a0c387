"""Rotary position embedding (Su et al. 2021), in the half-split form of Hugging Face.

Dimension i of a head turns together with dimension i + h / 2.
"""

import jax
import jax.numpy as jnp
import numpy as np

from model.config import ModelConfig

Rotation = tuple[jax.Array, jax.Array]
"""Cosine and sine of each token's angles, each [B, T, h / 2], float32."""


def frequencies(config: ModelConfig, local: bool = False) -> np.ndarray:
    """Radians per position of each of the h / 2 pairs: base ** (-2 i / h), over the factors.

    Args:
      config: the model.
      local: give those of the layers with a window, where these have a plain base of their own.
    """
    exponents = np.arange(0, config.head_size, 2, dtype=np.float64) / config.head_size
    if local and config.local_rotary_base:
        return config.local_rotary_base**-exponents
    return config.rotary_base**-exponents / np.asarray(config.rotary_factors or 1.0)


def rotation(config: ModelConfig, positions: jax.Array, local: bool = False) -> Rotation:
    """Angles of tokens at `positions` ([B, T], int32), shared by all layers of a kind."""
    with jax.named_scope("rotary_angles"):
        rates = jnp.asarray(frequencies(config, local), jnp.float32)
        angles = positions[..., None].astype(jnp.float32) * rates
        scale = 1.0 if local and config.local_rotary_base else config.rotary_scale
        return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(x: jax.Array, turn: Rotation) -> jax.Array:
    """Turns heads by their tokens' angles.

    Args:
      x: [B, T, K, C, h], any two head dimensions between tokens and head size.
      turn: what `rotation` gives.

    Returns:
      The same shape and dtype.
    """
    cosine, sine = (part[:, :, None, None, :] for part in turn)  # [B, T, 1, 1, h / 2]
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (low * cosine - high * sine, high * cosine + low * sine)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
