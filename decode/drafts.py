"""Drafts of what a model will say next, cheap to make: from the text so far, or a smaller model.

Tokens of a draft are proposals alone, see `decode.speculation`. Whatever a draft proposes, the
answer stays the model's own; a good one makes it sooner.
"""

import functools
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from decode.compiler_options import decode_options
from decode.engine import Engine
from decode.generate import prefill_shared
from decode.sampling import Sampler, draw_keys
from model.cache import PADDING, KVCache
from model.config import ModelConfig
from sharding.error_types import UsageError

LONGEST_MATCH = 4
"""Newest tokens whose like is looked for; more would seldom tell places apart that these do not."""
OF_DRAFT = 2
"""What is folded into a token's random key, to draw a draft of the token."""


class DraftError(UsageError):
    """A draft that cannot propose tokens of the model."""


class Text(NamedTuple):
    """What there is of B sequences; it stays on devices.

    Attributes:
      tokens: [B, H] int32, prompt and answer, each token at its position; what follows is anything.
      lengths: [B] int32, tokens in the cache: the newest token is at that position, not in it yet.
      index: [B] int32, tokens generated.
      left: [B] int32, tokens still to generate; 0 of a sequence that has ended.
      sequences: [B] int32, each sequence's own number, for its random draws.
      seed: random key.
    """

    tokens: jax.Array
    lengths: jax.Array
    index: jax.Array
    left: jax.Array
    sequences: jax.Array
    seed: jax.Array

    @property
    def newest(self) -> jax.Array:
        """Each sequence's newest token, [B] int32."""
        return jnp.take_along_axis(self.tokens, self.lengths[:, None], axis=1)[:, 0]

    def keys(self, ahead: int | jax.Array) -> jax.Array:
        """Random keys [B] of the tokens that are so many after the next one."""
        return draw_keys(self.seed, self.sequences, self.index + ahead)


class Proposal(NamedTuple):
    """Tokens that may come next.

    Attributes:
      tokens: [B, n] int32.
      logits: [B, n, V] float32, of the distributions that they were drawn from, before temperature
        and filters; None if they were not drawn.
    """

    tokens: jax.Array
    logits: jax.Array | None = None


class Draft(Protocol):
    """Proposes `count` tokens of each sequence at a time."""

    count: int

    def begin(self, tokens: np.ndarray, lengths: np.ndarray, slots: int) -> None:
        """Takes new prompts.

        Args:
          tokens: [B, T] int32, padded on the right.
          lengths: [B] int32.
          slots: tokens of prompt and answer at most.
        """

    def propose(self, text: Text, sampler: Sampler) -> Proposal:
        """What may follow, to a model whose tokens are chosen by `sampler`."""


class NgramDraft:
    """Proposes what followed where the newest tokens stood in the text before (Saxena 2023).

    Args:
      engine: the model that proposals are for.
      count: tokens of a proposal.
    """

    def __init__(self, engine: Engine, count: int):
        self.count, self._mesh = count, engine.mesh
        self._propose = jax.jit(functools.partial(repeated, count=count))

    def begin(self, tokens: np.ndarray, lengths: np.ndarray, slots: int) -> None:
        """There is nothing to prepare: the text is all that counts."""

    def propose(self, text: Text, sampler: Sampler) -> Proposal:
        """As `Draft.propose` says; no sampler matters."""
        with jax.set_mesh(self._mesh):
            return Proposal(self._propose(text.tokens, text.lengths))


def repeated(tokens: jax.Array, last: jax.Array, count: int) -> jax.Array:
    """What followed the longest like of each text's end, the newest of equally long ones.

    Where that runs into the end, it goes on from its own beginning: a text that goes in circles.

    Args:
      tokens: [B, H] int32, at most; what is after `last` does not count.
      last: [B] int32, position of each text's last token.
      count: how many tokens to give.

    Returns:
      [B, count] int32. A text without a like of its last token gives that token.
    """
    with jax.named_scope("look_up_ngram"):
        places, end = jnp.arange(tokens.shape[1], dtype=jnp.int32), last[:, None]
        alike = jnp.broadcast_to(places < end, tokens.shape)
        length = jnp.zeros_like(tokens)  # tokens up to each place that are like the last ones
        for back in range(LONGEST_MATCH):
            ending = jnp.take_along_axis(tokens, jnp.maximum(end - back, 0), axis=1)  # [B, 1]
            alike &= (jnp.roll(tokens, back, axis=1) == ending) & (places >= back)
            length += alike
        score = jnp.where(places < end, length * tokens.shape[1] + places, -1)
        best = jnp.argmax(score, axis=1)[:, None].astype(jnp.int32)
        ahead = jnp.arange(count, dtype=jnp.int32) % jnp.maximum(end - best, 1)
        return jnp.take_along_axis(tokens, jnp.minimum(best + 1 + ahead, end), axis=1)


class ModelDraft:
    """Proposes what a smaller model of the same vocabulary says.

    Its cache goes back by lengths alone, as the model's own does. A step more than tokens of a
    proposal brings the last of them into the cache, for when all are accepted.

    Args:
      engine: the smaller model, on the devices of the model.
      target: the model that proposals are for.
      count: tokens of a proposal.

    Raises:
      DraftError: another vocabulary.
    """

    def __init__(self, engine: Engine, target: Engine, count: int):
        check_vocabulary(engine.config, target.config)
        check_takes_back(engine.config)
        self.engine, self.count = engine, count
        self._cache: KVCache | None = None
        self._propose = jax.jit(
            self._propose_step,
            donate_argnames="cache",
            static_argnames="sampler",
            out_shardings=(engine.cache_formats, None),
            compiler_options=decode_options(engine.mesh, engine.dtypes),
        )

    def begin(self, tokens: np.ndarray, lengths: np.ndarray, slots: int) -> None:
        """Runs the prompts through the smaller model."""
        self._cache = None  # the memory of a former one
        _, self._cache = prefill_shared(self.engine, tokens, lengths, slots, 0, self.count)

    def propose(self, text: Text, sampler: Sampler) -> Proposal:
        """Runs the smaller model, which draws as the model does but from keys of its own."""
        cache, self._cache = self._cache, None
        with jax.set_mesh(self.engine.mesh):
            parameters = self.engine.parameters
            self._cache, proposal = self._propose(parameters, cache, text, sampler=sampler)
        return proposal

    def _propose_step(self, parameters, cache, text, sampler):
        def step(state, ahead):
            cache, tokens = state
            places = jnp.where(ahead < text.left, text.lengths + ahead, PADDING)
            logits, cache, _ = self.engine._decode_step(parameters, cache, tokens, places)
            keys = jax.vmap(lambda key: jax.random.fold_in(key, OF_DRAFT))(text.keys(ahead))
            tokens, _ = sampler.choose(logits, keys)
            return (cache, tokens), (tokens, None if sampler.greedy else logits)

        with jax.named_scope("draft"):
            steps = jnp.arange(self.count + 1, dtype=jnp.int32)
            (cache, _), found = jax.lax.scan(step, (cache, text.newest), steps)
            # [steps, B, ...] -> [B, count, ...]
            found = jax.tree.map(lambda each: jnp.moveaxis(each[: self.count], 0, 1), found)
            return cache, Proposal(*found)


def check_takes_back(config: ModelConfig) -> None:
    """Refuses a model whose cache cannot give refused tokens back.

    Raises:
      DraftError: it has gated delta layers.
    """
    if config.delta:
        raise DraftError(
            f"draft is given, but {config.name} has gated delta layers, whose states cannot give "
            "refused tokens back; leave out --draft"
        )


def check_vocabulary(draft: ModelConfig, target: ModelConfig) -> None:
    """Refuses a draft whose tokens are not those of the model.

    Raises:
      DraftError: the number of tokens differs.
    """
    if draft.vocabulary != target.vocabulary:
        raise DraftError(
            f"vocabulary of draft {draft.name} is {draft.vocabulary} tokens and that of "
            f"{target.name} is {target.vocabulary}; use a draft of the same vocabulary"
        )
