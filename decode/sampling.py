"""How the next token is chosen: one small frozen dataclass per method.

Filters run in the order of Hugging Face's `generate`: temperature, top-k, top-p, min-p. A draw
depends on (seed, sequence, token index) alone, not on the batch, the mesh or padding.
"""

import dataclasses

import jax
import jax.numpy as jnp

from sharding.error_types import UsageError
from sharding.placement import entry_axes


class SamplingError(UsageError):
    """A sampling value out of its range."""


@dataclasses.dataclass(frozen=True)
class Temperature:
    """Divides scores by `value`: below 1 sharpens the distribution, above 1 flattens it."""

    value: float

    def __post_init__(self) -> None:
        if not 0 < self.value < float("inf"):
            raise SamplingError(f"temperature is {self.value}; use a positive number, or 0: greedy")

    def __call__(self, scores: jax.Array) -> jax.Array:
        """scores: [B, V] -> [B, V]."""
        return scores / self.value


@dataclasses.dataclass(frozen=True)
class TopK:
    """Keeps the `k` highest scores, and any equal to the lowest of them."""

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise SamplingError(f"top_k is {self.k}; use a positive integer, or leave it out")

    def __call__(self, scores: jax.Array) -> jax.Array:
        """scores: [B, V] -> [B, V], what is not kept at minus infinity."""
        lowest = jax.lax.top_k(scores, min(self.k, scores.shape[-1]))[0][..., -1:]
        return _drop(scores, scores < lowest)


@dataclasses.dataclass(frozen=True)
class TopP:
    """Keeps the fewest most likely tokens whose probabilities sum to at least `p`.

    Nucleus sampling, Holtzman et al. 2019.
    """

    p: float

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise SamplingError(f"top_p is {self.p}; use a number above 0 and at most 1")

    def __call__(self, scores: jax.Array) -> jax.Array:
        """scores: [B, V] -> [B, V], what is not kept at minus infinity."""
        rising = jnp.sort(scores, axis=-1)
        below = jnp.cumsum(jax.nn.softmax(rising, axis=-1), axis=-1) <= 1 - self.p
        below = below.at[..., -1].set(False)  # the most likely token always stays
        lowest = jnp.min(jnp.where(below, jnp.inf, rising), axis=-1, keepdims=True)
        return _drop(scores, scores < lowest)


@dataclasses.dataclass(frozen=True)
class MinP:
    """Keeps tokens at least `p` times as likely as the most likely one."""

    p: float

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise SamplingError(f"min_p is {self.p}; use a number from 0 to 1")

    def __call__(self, scores: jax.Array) -> jax.Array:
        """scores: [B, V] -> [B, V], what is not kept at minus infinity."""
        likelihood = jax.nn.softmax(scores, axis=-1)
        return _drop(scores, likelihood < self.p * jnp.max(likelihood, axis=-1, keepdims=True))


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A pipeline of filters and a draw; with no temperature, the highest score.

    Attributes:
      filters: applied in order to scores [B, V].
      greedy: take the highest score instead of drawing.
    """

    filters: tuple[Temperature | TopK | TopP | MinP, ...] = ()
    greedy: bool = True

    def choose(self, logits: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One token per sequence, and its log probability before temperature and filters.

        Args:
          logits: [B, V], float32, divided over devices in any way.
          keys: [B] random keys, one per sequence and token index (see `draw_keys`).

        Returns:
          Tokens, [B] int32, and log probabilities, [B] float32, both complete on every device.
        """
        with jax.named_scope("sample"):
            if self.greedy:
                return highest(logits)
            logits = jax.reshard(logits, jax.P(None, None))  # filters sort the whole vocabulary
            scores = logits
            for keep in self.filters:
                scores = keep(scores)
            tokens = jax.vmap(jax.random.categorical)(keys, scores).astype(jnp.int32)
            chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
            return tokens, chosen - jax.nn.logsumexp(logits, axis=-1)


def highest(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The token of the highest score in each row, the first of equals, and its log probability.

    Each device reduces its own part of the vocabulary to three numbers per sequence: the highest
    score, its token, and the logsumexp of all its scores. One all-gather brings these to every
    device, in place of a collective for each reduction.

    Args:
      logits: [B, V], float32, batch and vocabulary divided over any mesh axes.

    Returns:
      Tokens, [B] int32, and log probabilities, [B] float32, both complete on every device.
    """
    spec, rows = jax.typeof(logits).sharding.spec, logits.shape[0]
    batch, vocabulary = map(entry_axes, spec)
    if not batch + vocabulary:
        tokens, scores, totals = _reduce(logits)
        return tokens, scores - totals

    def local(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        tokens, scores, totals = _reduce(logits)
        if vocabulary:
            tokens += jax.lax.axis_index(vocabulary) * logits.shape[-1]
        numbers = jnp.stack([tokens, _bits(scores), _bits(totals)])  # [3, B / shards]
        # XLA:TPU makes an all-reduce of one along the first dimension where B / shards is 1.
        numbers = jax.lax.all_gather(numbers, vocabulary + batch, axis=1)
        numbers = numbers.reshape(3, -1, rows)  # [3, parts of the vocabulary, B]
        tokens, scores, totals = numbers[0], _floats(numbers[1]), _floats(numbers[2])
        best = jnp.argmax(scores, axis=0, keepdims=True)  # parts are in the vocabulary's order
        tokens, scores = (jnp.take_along_axis(each, best, 0)[0] for each in (tokens, scores))
        return tokens, scores - jax.nn.logsumexp(totals, axis=0)

    return jax.shard_map(
        local, in_specs=spec, out_specs=(jax.P(None), jax.P(None)), check_vma=False
    )(logits)


GREEDY = Sampler()


def make_sampler(
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Sampler:
    """The sampler that flags describe; temperature 0 is greedy.

    Raises:
      SamplingError: a value out of range, or a filter beside temperature 0.
    """
    settings = ((TopK, top_k), (TopP, top_p), (MinP, min_p))
    filters = tuple(make(value) for make, value in settings if value is not None)
    if temperature == 0:
        if filters:
            name = type(filters[0]).__name__
            raise SamplingError(
                f"temperature is 0, which takes the most likely token, so {name} has no effect; "
                "give a temperature above 0 or leave the filter out"
            )
        return GREEDY
    return Sampler(filters=(Temperature(temperature), *filters), greedy=False)


def draw_keys(seed: jax.Array, sequences: jax.Array, index: jax.Array) -> jax.Array:
    """Random keys for one step: folded from seed, sequence and token index, nothing else.

    Args:
      seed: a random key.
      sequences: [B] int32, each sequence's own number.
      index: scalar int32, how many tokens each sequence has generated so far.

    Returns:
      [B] random keys.
    """
    one = lambda sequence: jax.random.fold_in(jax.random.fold_in(seed, sequence), index)  # noqa: E731
    return jax.vmap(one)(sequences)


def _drop(scores: jax.Array, unwanted: jax.Array) -> jax.Array:
    return jnp.where(unwanted, -jnp.inf, scores)


def _reduce(logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For each row of [B, V]: the index of its highest score, that score, and the logsumexp."""
    tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return tokens, jnp.max(logits, axis=-1), jax.nn.logsumexp(logits, axis=-1)


def _bits(floats: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(floats, jnp.int32)


def _floats(bits: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
