"""Normalisation of the residual stream, and of queries and keys, computed in float32."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from model.config import ModelConfig
from model.declarations import declare
from sharding.placement import used_axes
from sharding.platform_workarounds import by_platform


class Norm(nnx.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019), or layer norm without bias (PaLM)."""

    def __init__(
        self,
        config: ModelConfig,
        axes: str = "R",
        gpu_kernel: bool = False,
        epsilon: float | None = None,
    ):
        """Declares the scale.

        Args:
          config: the model.
          axes: letters of the last dimensions of what is normed, over all of them together.
          gpu_kernel: `of_sum` of one token is a kernel on a GPU.
          epsilon: in place of the configuration's.
        """
        # In float32 always: Gemma's files hold scale - 1, which loses bits as a bfloat16 scale.
        self.scale = declare(config, axes, jnp.float32, jax.nn.initializers.ones)
        self.over = tuple(range(-len(axes), 0))
        self.epsilon = epsilon or config.norm_epsilon
        self.centred = config.norm == "layer"
        self.gpu_kernel = gpu_kernel

    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., D] -> [..., D], each row scaled to unit mean square; D may be several sizes."""
        with jax.named_scope("norm"):
            return self.scaled(self.unit(x), x.dtype)

    def unit(self, x: jax.Array) -> jax.Array:
        """The same before it is scaled, float32: norms of the same numbers may share it."""
        y = x.astype(jnp.float32)
        if self.centred:
            y = y - self._mean(y)
        return y * jax.lax.rsqrt(self._mean(y * y) + self.epsilon)

    def scaled(self, unit: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """What `unit` gave, scaled."""
        return (self.scale[...] * unit).astype(dtype)

    def _mean(self, y: jax.Array) -> jax.Array:
        """The mean of each row, by one collective whatever dimensions of it mesh axes divide."""
        spec = jax.typeof(y).sharding.spec
        rows, axes = spec[: self.over[0]], used_axes(spec[self.over[0] :])
        if len(self.over) == 1 or not axes:
            return jnp.mean(y, axis=self.over, keepdims=True)

        def local(part: jax.Array) -> jax.Array:
            return jax.lax.psum(jnp.sum(part, axis=self.over, keepdims=True), axes)

        total = jax.shard_map(local, in_specs=spec, out_specs=jax.P(*rows))(y)
        return total / math.prod(self.scale.shape)

    def of_sum(self, x: jax.Array, more: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """x + more, each [B, T, D], and that normed; of x alone if there is no more."""
        if more is None:
            return x, self(x)
        forms = {"cuda": self._of_sum_on_nvidia} if self.gpu_kernel else {}
        return by_platform(x, more, default=self._of_sum, **forms)

    def _of_sum(self, x: jax.Array, more: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = x + more
        return x, self(x)

    def _of_sum_on_nvidia(self, x: jax.Array, more: jax.Array) -> tuple[jax.Array, jax.Array]:
        from model import norm_gpu  # it takes a third of a second

        specs = tuple(jax.typeof(each).sharding.spec for each in (x, more))
        if specs[0] != specs[1] or not norm_gpu.takes(x):
            return self._of_sum(x, more)
        with jax.named_scope("norm"):
            return jax.shard_map(
                functools.partial(
                    norm_gpu.add_and_norm, epsilon=self.epsilon, centred=self.centred
                ),
                in_specs=(*specs, jax.P(None)),
                out_specs=specs,
                check_vma=False,
            )(x, more, self.scale[...])


def unit_rms(x: jax.Array, epsilon: float) -> jax.Array:
    """x: [..., h] -> the same in float32, each row scaled to unit mean square, by no weights."""
    with jax.named_scope("norm"):
        y = x.astype(jnp.float32)
        return y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon)
