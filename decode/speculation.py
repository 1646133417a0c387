"""Speculative decoding, exact: a draft proposes tokens, and one step of the model verifies them.

A step runs the newest token and the draft's through the model, and chooses a token at each of these
positions. Tokens of the draft stand as far as they are what was chosen; the first choice that
differs stands too. So every step gives a token at least, and the cache goes back by lengths alone:
what it holds of refused tokens is overwritten.

Greedy, and with a draft that is not drawn, choices are the very ones of `generate`, from the same
random numbers: a token of the draft is accepted with the probability that the model draws it. Of a
draft that is drawn from a distribution q of its own, a token is accepted with probability
min(1, p / q), and in its place comes else one of what p exceeds q by, p and q being after
temperature and filters: what is given has the distribution p (Leviathan et al. 2023, "Fast
inference from transformers via speculative decoding", appendix A; Chen et al. 2023).

Steps of several tokens may round otherwise than steps of one, which decides only between tokens
whose scores are equal up to that.
"""

import collections
import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from decode.compiler_options import decode_options
from decode.drafts import Draft, Proposal, Text, check_takes_back
from decode.engine import Engine
from decode.generate import (
    Completion,
    Request,
    cache_sizes,
    pad,
    prefill_shared,
    shared_tokens,
    take,
)
from decode.sampling import (
    Sampler,
    Settings,
    by_rows,
    filtered,
    highest_with_noise,
    with_logprobs,
)
from model.cache import PADDING, KVCache
from model.parameters import Parameters

OF_ACCEPTANCE = 1
"""What is folded into a token's random key, to draw whether a draft of the token is accepted."""


@dataclasses.dataclass
class Tally:
    """What drafts came to.

    Attributes:
      steps: steps of sequences that had not ended, each sequence's counted.
      tokens: tokens that they gave.
      drafted: tokens of drafts that could have been accepted: limits leave room for no more.
      accepted: those that were.
    """

    steps: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a sequence gains in a step, on average."""
        return self.tokens / self.steps

    @property
    def acceptance(self) -> float:
        """Share of drafted tokens that were accepted."""
        return self.accepted / max(self.drafted, 1)


class Verified(NamedTuple):
    """What a step gives.

    Attributes:
      tokens: [B, T] int32, those that stand first.
      logprobs: [B, T] float32, under the model's own distribution.
      count: [B] int32, how many stand; 0 of a sequence that had all its tokens before.
    """

    tokens: jax.Array
    logprobs: jax.Array
    count: jax.Array


class Verifier:
    """The step that verifies drafts, compiled once for each number of their tokens."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self._verify = jax.jit(
            self._verify_step,
            donate_argnames="cache",
            static_argnames="sampler",
            out_shardings=(engine.cache_formats, None, None),
            compiler_options=decode_options(engine.mesh, engine.dtypes),
        )

    def verify(
        self, cache: KVCache, text: Text, proposal: Proposal, sampler: Sampler
    ) -> tuple[KVCache, Text, Verified]:
        """Runs a proposal, and takes what stands of it into the text."""
        with jax.set_mesh(self.engine.mesh):
            parameters = self.engine.parameters
            return self._verify(parameters, cache, text, proposal, sampler=sampler)

    def _verify_step(self, parameters, cache, text, proposal, sampler):
        with jax.named_scope("verify_step"):
            tokens = jnp.concatenate([text.newest[:, None], proposal.tokens], axis=1)  # [B, T]
            wanted = text.lengths, text.left
            logits, cache = score(self.engine, parameters, cache, tokens, *wanted)
            chosen, logprobs = _choose(logits, text, proposal, sampler)
            count = standing(chosen, proposal.tokens, text.left)
            return cache, append(text, chosen, count), Verified(chosen, logprobs, count)


def score(
    engine: Engine,
    parameters: Parameters,
    cache: KVCache,
    tokens: jax.Array,
    lengths: jax.Array,
    left: jax.Array,
) -> tuple[jax.Array, KVCache]:
    """Logits after each of several tokens of every sequence, as far as tokens are still wanted.

    Args:
      engine: the model.
      parameters: its weights, as a step takes them.
      cache: of at least B sequences; the tokens are those of the first ones that each device has.
      tokens: [B, T] int32, the newest token and a draft.
      lengths: [B] int32, tokens in the cache.
      left: [B] int32, tokens still to generate: of the T so many run, and are written.

    Returns:
      [B, T, V] float32, and the cache.
    """
    order = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    positions = jnp.where(order < left[:, None], lengths[:, None] + order, PADDING)
    model = nnx.merge(engine._structure, parameters)
    x, cache, _ = model(tokens, positions, cache, engine.placement, continues=True)
    return model.logits(x, engine.placement), cache


def standing(chosen: jax.Array, drafts: jax.Array, left: jax.Array) -> jax.Array:
    """How many of chosen tokens [B, T] stand, of which `left` [B] are wanted; drafts: [B, T - 1].

    Those stand that were drafted, up to the first that was not, and that one too.
    """
    alike = jnp.cumprod(chosen[:, :-1] == drafts, axis=1)
    return jnp.minimum(jnp.sum(alike, axis=1, dtype=jnp.int32) + 1, left)


def append(text: Text, tokens: jax.Array, count: jax.Array) -> Text:
    """A text with the first `count` [B] of tokens [B, T] behind its newest one."""
    return text._replace(
        tokens=put_behind(text.tokens, text.lengths, tokens),
        lengths=text.lengths + count,
        index=text.index + count,
        left=text.left - count,
    )


def put_behind(texts: jax.Array, last: jax.Array, tokens: jax.Array) -> jax.Array:
    """Texts [B, H] with tokens [B, T] after the positions `last` [B], as far as there is room."""
    rows = jnp.arange(len(tokens))[:, None]
    places = last[:, None] + 1 + jnp.arange(tokens.shape[1])
    return texts.at[rows, places].set(tokens, mode="drop")


def _choose(
    logits: jax.Array, text: Text, proposal: Proposal, sampler: Sampler
) -> tuple[jax.Array, jax.Array]:
    """A token at each position, and its log probability, both [B, T].

    Args:
      logits: [B, T, V] float32, divided over devices in any way.
      text: gives random keys.
      proposal: T - 1 tokens of each sequence.
      sampler: how tokens are chosen.
    """
    batch, length, _ = logits.shape
    keys = jax.vmap(text.keys, out_axes=1)(jnp.arange(length, dtype=jnp.int32))  # [B, T]
    rows = as_rows(logits)  # [B * T, V]
    if proposal.logits is None:
        chosen = sampler.choose(rows, keys.reshape(-1))
    else:
        # The last position has no draft: it is judged as if its draft had no chance.
        spec = jax.typeof(logits).sharding.spec
        drafted = jnp.pad(jax.reshard(proposal.logits, spec), [(0, 0), (0, 1), (0, 0)])
        tokens = jnp.pad(proposal.tokens, [(0, 0), (0, 1)]).reshape(-1)
        has_draft = jnp.broadcast_to(jnp.arange(length) < length - 1, (batch, length)).reshape(-1)
        others = as_rows(drafted), tokens, has_draft, keys.reshape(-1), sampler.settings
        with jax.named_scope("judge"):
            chosen = by_rows(judge, rows, *others)
    tokens, logprobs = (each.reshape(batch, length) for each in chosen)
    return tokens, logprobs


def judge(
    logits: jax.Array,
    draft_logits: jax.Array,
    drafts: jax.Array,
    has_draft: jax.Array,
    keys: jax.Array,
    settings: Settings,
) -> tuple[jax.Array, jax.Array]:
    """The draft of each row, or what comes in its place, so that it is distributed as p.

    Args:
      logits: [B, V] float32, of p.
      draft_logits: [B, V] float32, of the distribution q that drafts were drawn from.
      drafts: [B] int32.
      has_draft: [B] bool; of a row without one the token is drawn from p.
      keys: [B] random keys of the tokens; drafts were drawn from others.
      settings: temperature and filters, of p and q.

    Returns:
      Tokens [B] int32, equal to their drafts where these are accepted and nowhere else, and log
      probabilities [B] float32.
    """
    p = jax.nn.softmax(filtered(logits, settings))
    q = jax.nn.softmax(filtered(draft_logits, settings)) * has_draft[:, None]
    of_draft = lambda each: jnp.take_along_axis(each, drafts[:, None], axis=1)[:, 0]  # noqa: E731
    chance = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, OF_ACCEPTANCE)))(keys)
    accepted = has_draft & (chance * of_draft(q) < of_draft(p))
    rest = jnp.maximum(p - q, 0)
    rest = jnp.where(jnp.any(rest > 0, axis=1, keepdims=True), rest, p)  # p is q, up to rounding
    drawn = highest_with_noise(jnp.log(rest), keys)
    return with_logprobs(logits, jnp.where(accepted, drafts, drawn))


def as_rows(logits: jax.Array) -> jax.Array:
    """[B, T, V] -> [B * T, V], each device's own part where it is."""
    batch, _, vocabulary = jax.typeof(logits).sharding.spec
    return jax.shard_map(
        lambda part: part.reshape(-1, part.shape[-1]),
        in_specs=jax.P(batch, None, vocabulary),
        out_specs=jax.P(batch, vocabulary),
        check_vma=False,
    )(logits)


def speculate(
    engine: Engine, draft: Draft, request: Request, tally: Tally | None = None
) -> Iterator[list[Completion]]:
    """Generates as `decode.generate.generate` does, by verifying drafts.

    Args:
      engine: the model.
      draft: proposes tokens.
      request: what to generate.
      tally: takes what drafts came to.

    Yields, raises:
      As `generate` does; a step may give several tokens of a sequence. A model with gated delta
      layers is refused by a `DraftError`.
    """
    check_takes_back(engine.config)
    request.check(engine.config)
    return _speculate(engine, Verifier(engine), draft, request, tally or Tally())


def _speculate(
    engine: Engine, verifier: Verifier, draft: Draft, request: Request, tally: Tally
) -> Iterator[list[Completion]]:
    rows, slots = cache_sizes(engine.config, engine.placement, request)
    tokens, lengths = pad(request.prompts, max(map(len, request.prompts)), rows)
    shared = shared_tokens(request.prompts)
    logits, cache = prefill_shared(engine, tokens, lengths, slots, shared, spare=draft.count)
    draft.begin(tokens, lengths, slots)
    text, first = _first(engine, logits, tokens, lengths, request, slots + draft.count + 1)
    completions = request.completions()
    in_flight = collections.deque([_fetch(first)])
    launched = 1
    while in_flight:
        if launched < request.max_new_tokens:  # before waiting for the tokens already in flight
            proposal = draft.propose(text, request.sampler)
            cache, text, verified = verifier.verify(cache, text, proposal, request.sampler)
            in_flight.append(_fetch(verified))
            launched += 1
        _collect(completions, in_flight.popleft(), request, tally)
        yield completions
        if all(completion.finish_reason for completion in completions):
            break


def _first(
    engine: Engine,
    logits: jax.Array,
    tokens: np.ndarray,
    lengths: np.ndarray,
    request: Request,
    room: int,
) -> tuple[Text, Verified]:
    """The text after the first token of each prompt, which has room for so many tokens."""
    carry, emitted = engine.choose(logits, engine.start(lengths, request.seed), request.sampler)
    one = np.arange(len(tokens)) < len(request.prompts)  # other rows only fill the batch
    text = Text(
        tokens=engine.put(np.pad(tokens, [(0, 0), (0, room - tokens.shape[1])])),
        lengths=engine.put(lengths - 1),
        index=engine.put(np.zeros_like(lengths)),
        left=engine.put(np.where(one, request.max_new_tokens, 0).astype(np.int32)),
        sequences=carry.sequences,
        seed=carry.seed,
    )
    first = Verified(*(each[:, None] for each in emitted[:2]), engine.put(one.astype(np.int32)))
    return append(text, first.tokens, first.count), first


def _fetch(verified: Verified) -> Verified:
    for part in verified:
        part.copy_to_host_async()
    return verified


def _collect(
    completions: list[Completion], verified: Verified, request: Request, tally: Tally
) -> None:
    """Adds a step's tokens to completions, and to the tally if the step had drafts."""
    tokens, logprobs, counts = (np.asarray(part) for part in verified)
    drafts = tokens.shape[1] - 1
    for row, completion in enumerate(completions):
        if completion.finish_reason:
            continue
        left = request.max_new_tokens - len(completion.tokens)
        count = int(counts[row])
        for token, logprob in zip(tokens[row, :count], logprobs[row, :count], strict=True):
            take(completion, int(token), float(logprob), request)
        if drafts:
            tally.steps += 1
            tally.tokens += count
            tally.drafted += min(drafts, left - 1)
            tally.accepted += count - 1
