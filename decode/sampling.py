"""How the next token is chosen: greedily, or drawn by a temperature and filters.

A draw depends on (seed, sequence, token index) alone, not on the batch, the mesh or padding. The
same code takes numbers for a whole batch and arrays with a number for each sequence.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decode.filters import column, keep_min_p, keep_top_k, keep_top_p
from sharding.error_types import UsageError
from sharding.placement import entry_axes

LEAST_TEMPERATURE = float(np.finfo(np.float32).tiny)
"""Below it there is no temperature, and the likeliest token is taken."""
_MANY = np.iinfo(np.int32).max  # more tokens than any vocabulary has
_MOST_TEMPERATURE = 1 / LEAST_TEMPERATURE
"""A higher one is taken as this, because 1 / temperature would round to zero."""


class SamplingError(UsageError):
    """A sampling value out of its range."""


class Settings(NamedTuple):
    """How tokens are drawn: one number for all sequences, or an array [B] with one for each.

    Filters run in the order of Hugging Face's `generate`, which is that of the fields.

    Attributes:
      temperature: divides scores: below 1 sharpens the distribution, above 1 flattens it. What is
        below the least normal float32 is no temperature, and takes the likeliest token.
      top_k: the number of likeliest tokens to draw from; None for all.
      top_p: the sum of probabilities of the likeliest tokens to draw from; None for all.
      min_p: the least likelihood to draw from, beside the highest; None for all.
    """

    temperature: float | jax.Array
    top_k: int | jax.Array | None = None
    top_p: float | jax.Array | None = None
    min_p: float | jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How tokens of all sequences are chosen; see `Settings`. Without a temperature, greedily.

    Raises:
      SamplingError: a value out of its range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        remedies = {
            "temperature": (
                0 <= self.temperature < float("inf"),
                "use a positive number, or 0: greedy",
            ),
            "top_k": ((self.top_k or 0) >= 1, "use a positive integer, or leave it out"),
            "top_p": (0 < (self.top_p or 0) <= 1, "use a number above 0 and at most 1"),
            "min_p": (0 <= (self.min_p or 0) <= 1, "use a number from 0 to 1"),
        }
        for name, (right, remedy) in remedies.items():
            value = getattr(self, name)
            if value is not None and not right:
                raise SamplingError(f"{name} is {value}; {remedy}")

    @property
    def greedy(self) -> bool:
        """Whether it takes the highest score instead of drawing."""
        return self.temperature < LEAST_TEMPERATURE

    @property
    def settings(self) -> Settings:
        """The numbers, within what arrays hold: what is greedy here is so in float32, too."""
        temperature = 0.0 if self.greedy else min(self.temperature, _MOST_TEMPERATURE)
        top_k = None if self.top_k is None else min(self.top_k, _MANY)
        return Settings(temperature, top_k, self.top_p, self.min_p)

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
            return draw(logits, keys, self.settings)


def settings_of(samplers: Sequence[Sampler]) -> Settings:
    """The settings of B samplers as arrays [B], to choose by each in one program.

    A filter that a sampler leaves out has the value that keeps all.
    """

    columns = zip(*(sampler.settings for sampler in samplers), strict=True)
    kinds = ((0.0, np.float32), (_MANY, np.int32), (1.0, np.float32), (0.0, np.float32))
    return Settings(
        *(
            np.array([default if value is None else value for value in column], dtype)
            for column, (default, dtype) in zip(columns, kinds, strict=True)
        )
    )


def choose_by_row(
    logits: jax.Array, keys: jax.Array, settings: Settings
) -> tuple[jax.Array, jax.Array]:
    """As `Sampler.choose`, with settings of [B] arrays: each sequence by its own.

    Where all sequences are greedy, nothing is drawn or filtered.
    """
    with jax.named_scope("sample"):
        return jax.lax.cond(
            jnp.all(settings.temperature < LEAST_TEMPERATURE),
            lambda: highest(logits),
            lambda: draw(logits, keys, settings),
        )


def draw(logits: jax.Array, keys: jax.Array, settings: Settings) -> tuple[jax.Array, jax.Array]:
    """Draws a token for each sequence by `settings`; greedily where there is no temperature.

    Args, returns: as `Sampler.choose`.
    """
    return by_rows(_draw, logits, keys, settings)


def by_rows(
    rule: Callable[..., tuple[jax.Array, jax.Array]], logits: jax.Array, *others: Any
) -> tuple[jax.Array, jax.Array]:
    """Tokens by a rule that looks at whole rows, on every device at some of them.

    Each device takes whole rows, as far as the mesh axes that divide the logits divide the batch:
    one all-to-all brings them, and nothing is summed over devices, so that draws do not depend on
    the mesh. Rows that axes do not divide are gathered.

    Args:
      rule: takes logits and `others` of some rows; gives a token and a log probability of each.
      logits: [B, V], float32, divided over devices in any way.
      others: trees of numbers, and of arrays with B rows.

    Returns:
      Tokens, [B] int32, and log probabilities, [B] float32, both complete on every device.
    """
    spec, mesh = jax.typeof(logits).sharding.spec, jax.sharding.get_abstract_mesh()
    axes = _dividing(sum(map(entry_axes, spec), ()), logits.shape[0], mesh.shape)
    if not any(spec):
        return rule(logits, *others)

    def by_row(value: jax.Array) -> jax.P:
        return jax.P(*(axes or None, *(None,) * value.ndim)[: value.ndim])

    arguments = jax.tree.map(jnp.asarray, (logits, *others))
    specs = jax.tree.map(by_row, arguments)
    arguments = jax.tree.map(jax.reshard, arguments, specs)

    def local(*rows: Any) -> jax.Array:
        tokens, logprobs = rule(*rows)
        numbers = jnp.stack([tokens, _bits(logprobs)])  # [2, B / shards]
        return jax.lax.all_gather(numbers, axes, axis=1, tiled=True) if axes else numbers

    step = jax.shard_map(local, in_specs=specs, out_specs=jax.P(None, None), check_vma=False)
    numbers = step(*arguments)  # [2, B]
    return numbers[0], _floats(numbers[1])


def filtered(logits: jax.Array, settings: Settings) -> jax.Array:
    """Scores of the distribution that tokens are drawn from: whole rows by temperature and filters.

    Args:
      logits: [B, V], float32.
      settings: one number for all rows, or one for each.

    Returns:
      [B, V], what is not drawn at minus infinity.
    """
    temperature, vocabulary = column(settings.temperature), logits.shape[-1]
    # Below zero, what a low temperature takes out of range becomes minus infinity, which is right.
    scores = logits - jnp.max(logits, axis=-1, keepdims=True)
    scores = scores / jnp.clip(temperature, LEAST_TEMPERATURE, _MOST_TEMPERATURE)
    for keep, value, used in (
        (keep_top_k, settings.top_k, lambda k: k < vocabulary),
        (keep_top_p, settings.top_p, lambda p: p < 1),
        (keep_min_p, settings.min_p, lambda p: p > 0),
    ):
        if value is not None:  # a filter that no sequence uses takes no time
            value = jnp.asarray(value)
            skip = lambda scores, _: scores  # noqa: E731
            scores = jax.lax.cond(jnp.any(used(value)), keep, skip, scores, value)
    return scores


def highest_with_noise(scores: jax.Array, keys: jax.Array) -> jax.Array:
    """A token of each row [B, V] drawn by its scores: the draws of `jax.random.categorical`."""
    noise = jax.vmap(lambda key: jax.random.gumbel(key, scores.shape[1:], scores.dtype))(keys)
    return jnp.argmax(scores + noise, axis=-1).astype(jnp.int32)


def with_logprobs(logits: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tokens [B] as they are, and the log probability of each under its row of logits [B, V]."""
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return tokens, chosen - jax.nn.logsumexp(logits, axis=-1)


def _draw(logits: jax.Array, keys: jax.Array, settings: Settings) -> tuple[jax.Array, jax.Array]:
    """`draw` from whole rows."""
    drawn = highest_with_noise(filtered(logits, settings), keys)
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    cold = jnp.asarray(settings.temperature) < LEAST_TEMPERATURE
    return with_logprobs(logits, jnp.where(cold, greedy, drawn))


def _dividing(axes: tuple[str, ...], rows: int, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The first of `axes`, as many as together divide the rows."""
    shards = np.cumprod([1, *(sizes[axis] for axis in axes)])
    return axes[: max(n for n, count in enumerate(shards) if rows % count == 0)]


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


def likeliest(logits: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The most likely tokens of each row, and their log probabilities.

    Each device looks for them in its own part of the vocabulary; one all-gather brings what the
    parts have found, as in `highest`.

    Args:
      logits: [B, V], float32, batch and vocabulary divided over any mesh axes.
      count: n, at most V.

    Returns:
      Tokens, [B, n] int32, the most likely first, of equals the first of the vocabulary; and log
      probabilities, [B, n] float32. Both are complete on every device.
    """
    spec, rows = jax.typeof(logits).sharding.spec, logits.shape[0]
    batch, vocabulary = map(entry_axes, spec)
    if not batch + vocabulary:
        scores, tokens = jax.lax.top_k(logits, count)
        return tokens, scores - jax.nn.logsumexp(logits, axis=-1, keepdims=True)

    def local(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        width = logits.shape[-1]
        scores, tokens = (each.T for each in jax.lax.top_k(logits, min(count, width)))
        if vocabulary:
            tokens += jax.lax.axis_index(vocabulary) * width
        total = jax.nn.logsumexp(logits, axis=-1)
        numbers = jnp.stack([*tokens, *_bits(scores), _bits(total)])  # [2 n + 1, B / shards]
        numbers = jax.lax.all_gather(numbers, vocabulary + batch, axis=1)
        numbers = numbers.reshape(len(numbers), -1, rows).T  # [B, parts of the vocabulary, 2 n + 1]
        tokens, scores, totals = jnp.split(numbers, [len(tokens), 2 * len(tokens)], axis=-1)
        # Parts are in the vocabulary's order, and so are equals in what is searched once more.
        scores, best = jax.lax.top_k(_floats(scores).reshape(rows, -1), count)
        tokens = jnp.take_along_axis(tokens.reshape(rows, -1), best, axis=-1)
        return tokens, scores - jax.nn.logsumexp(_floats(totals), axis=1)

    whole = jax.P(None, None)
    return jax.shard_map(local, in_specs=spec, out_specs=(whole, whole), check_vma=False)(logits)


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
    sampler = Sampler(temperature, top_k, top_p, min_p)
    if not sampler.greedy:
        return sampler
    filters = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    for name, value in filters.items():
        if value is not None:
            raise SamplingError(
                f"temperature is {temperature:g}, which takes the most likely token, so {name} has "
                "no effect; give a higher temperature or leave the filter out"
            )
    return GREEDY


def draw_keys(seed: jax.Array, sequences: jax.Array, index: jax.Array) -> jax.Array:
    """Random keys for one step: folded from seed, sequence and token index, nothing else.

    Args:
      seed: a random key, or [B] of them.
      sequences: [B] int32, each sequence's own number.
      index: int32, how many tokens each sequence has generated so far: [B], or one number.

    Returns:
      [B] random keys.
    """
    one = lambda seed, *numbers: functools.reduce(jax.random.fold_in, numbers, seed)  # noqa: E731
    each = (jnp.broadcast_to(value, sequences.shape) for value in (seed, sequences, index))
    return jax.vmap(one)(*each)


def _reduce(logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For each row of [B, V]: the index of its highest score, that score, and the logsumexp."""
    tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return tokens, jnp.max(logits, axis=-1), jax.nn.logsumexp(logits, axis=-1)


def _bits(floats: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(floats, jnp.int32)


def _floats(bits: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
