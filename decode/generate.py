"""Generation: prompts in, tokens out, never waiting for the device.

Each dispatch is a program of one step or of several. The next is launched before the last one's
tokens are read, so the host's work hides behind the device's. At most one dispatch more than needed
runs after the last sequence has ended.
"""

import collections
import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence

import jax
import numpy as np

from decode.carry import Emitted
from decode.engine import Engine
from decode.sampling import GREEDY, Sampler
from decode.text_stops import StoppedText
from decode.tokenizer import TextStream
from model.cache import KVCache
from model.config import ModelConfig
from sharding.error_types import FloorlineError, UsageError
from sharding.placement import Placement

SLOT_MULTIPLE = 64
WORTH_SHARING = 2048
"""Tokens that running a shared beginning once must save: its program takes time to compile."""


class PromptError(UsageError):
    """A prompt that is empty, holds unknown tokens or does not fit."""


@dataclasses.dataclass
class Completion:
    """What one prompt has generated so far.

    Attributes:
      tokens: generated token ids, the stop token not among them.
      logprobs: log probability of each, before temperature and filters.
      finish_reason: None while running; ``stop`` at an end-of-sequence or stop token or a stop
        string, ``length`` at the token limit.
      decoder: decodes the tokens, where the request has texts.
      text: what it has decoded, without what could begin a stop string, and nothing behind one.
    """

    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    finish_reason: str | None = None
    decoder: StoppedText | None = None
    text: str = ""

    def add(self, token: int, logprob: float, stop_ids: frozenset[int], limit: int) -> bool:
        """Takes one more token unless finished; returns whether it was added."""
        if self.finish_reason:
            return False
        if token in stop_ids:
            self._end("stop")
            return False
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if self.decoder:
            self.text += self.decoder.push(token)
        if self.decoder and self.decoder.found:
            self.finish_reason = "stop"
        elif len(self.tokens) == limit:
            self._end("length")
        return True

    def _end(self, reason: str) -> None:
        """Ends where no stop string was found, unless what was held back ends with one."""
        self.finish_reason = reason
        if self.decoder:
            self.text += self.decoder.flush()
            self.finish_reason = "stop" if self.decoder.found else reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to generate.

    Attributes:
      prompts: token ids of each prompt; lengths may differ.
      max_new_tokens: limit for each.
      sampler: how tokens are chosen.
      seed: seed of the random draws.
      stop_ids: tokens that end a sequence.
      stop: texts that end a sequence, in whatever tokens they come; none of them is empty.
      stream: makes what decodes a sequence's tokens; None leaves completions without text.
      tokens_per_dispatch: decode steps that one program runs.
    """

    prompts: Sequence[Sequence[int]]
    max_new_tokens: int
    sampler: Sampler = GREEDY
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()
    stop: Sequence[str] = ()
    stream: Callable[[], TextStream] | None = None
    tokens_per_dispatch: int = 1

    def completions(self) -> list[Completion]:
        """One for each prompt, without tokens."""
        return [
            Completion(decoder=StoppedText(self.stream(), self.stop) if self.stream else None)
            for _ in self.prompts
        ]

    @property
    def room(self) -> int:
        """Tokens that may be generated for each prompt, the last dispatch to its end.

        So one program serves every limit; what is beyond it is dropped.
        """
        dispatches = -(-(self.max_new_tokens - 1) // self.tokens_per_dispatch)
        return 1 + dispatches * self.tokens_per_dispatch  # the prompt gives the first token

    def check(self, config: ModelConfig) -> None:
        """Refuses what cannot run on a model, before anything is allocated.

        Raises:
          PromptError: no prompt, an empty one, an unknown token, or too many tokens.
        """
        if not self.prompts:
            raise PromptError("number of prompts is 0; give at least one")
        if self.max_new_tokens < 1:
            raise PromptError(f"max_new_tokens is {self.max_new_tokens}; use a positive integer")
        if not 1 <= self.tokens_per_dispatch <= self.max_new_tokens:
            raise PromptError(
                f"tokens_per_dispatch is {self.tokens_per_dispatch}; use a positive integer, at "
                f"most the {self.max_new_tokens} of max_new_tokens"
            )
        if self.stop and self.stream is None:
            raise PromptError(
                "stop is given without stream, which makes the text to look in; give it"
            )
        for number, prompt in enumerate(self.prompts):
            if not len(prompt):
                raise PromptError(f"prompt {number} is empty; give at least one token")
            unknown = [token for token in prompt if not 0 <= token < config.vocabulary]
            if unknown:
                raise PromptError(
                    f"token {_cut(unknown[0])} of prompt {number} is outside the vocabulary; "
                    f"use ids from 0 to {config.vocabulary - 1}"
                )
            longest = len(prompt) + self.max_new_tokens
            if longest > config.max_context:
                beyond = f", or pass --max_context={longest} to go beyond on purpose"
                raise PromptError(
                    f"prompt {number} is {len(prompt)} tokens and max_new_tokens is "
                    f"{self.max_new_tokens}, but max_context of {config.name} is "
                    f"{config.max_context}; shorten one of them{beyond * config.extensible}"
                )


def _cut(token: int) -> str:
    """A token id as it stands in a message."""
    return str(token) if abs(token) < 10**20 else "of more than 20 digits"


def cache_slots(prompt: int, new: int, limit: int) -> int:
    """Slots for a prompt and its new tokens, a multiple of 64 up to `limit`."""
    needed = prompt + new
    return min(-(-needed // SLOT_MULTIPLE) * SLOT_MULTIPLE, max(limit, needed))


def shared_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, if it is worth running them once; else 0.

    Each prompt keeps a token of its own at least, after which its text goes on.
    """
    shortest, longest = min(prompts), max(prompts)  # in alphabetical order
    pairs = zip(shortest, longest, strict=False)
    alike = next((n for n, (a, b) in enumerate(pairs) if a != b), len(shortest))
    alike = min(alike, min(map(len, prompts)) - 1)
    return alike if alike * (len(prompts) - 1) >= WORTH_SHARING else 0


def pad(
    prompts: Sequence[Sequence[int]], length: int, multiple: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts padded on the right: tokens [B, length] and lengths [B], both int32.

    Args:
      prompts: token ids.
      length: length of every row.
      multiple: B is rounded up to a multiple of it; rows without a prompt hold one token.
    """
    tokens = np.zeros((-(-len(prompts) // multiple) * multiple, length), np.int32)
    lengths = np.ones(len(tokens), np.int32)
    for number, prompt in enumerate(prompts):
        tokens[number, : len(prompt)] = prompt
        lengths[number] = len(prompt)
    return tokens, lengths


def cache_sizes(config: ModelConfig, placement: Placement, request: Request) -> tuple[int, int]:
    """Rows and slots of the cache that a request takes."""
    longest, rows = max(map(len, request.prompts)), placement.multiple("B")
    slots = cache_slots(longest, request.room, config.max_context)
    return -(-len(request.prompts) // rows) * rows, slots


def generate(engine: Engine, request: Request) -> Iterator[list[Completion]]:
    """Generates from prompts of any lengths in one batch.

    Yields:
      All completions so far, the same growing objects after each dispatch, until all are finished.

    Raises:
      PromptError: the request cannot run.
      FloorlineError: logits that are NaN or infinite, of which no token can be chosen.
    """
    request.check(engine.config)
    return _generate(engine, request)


def _generate(engine: Engine, request: Request) -> Iterator[list[Completion]]:
    rows, slots = cache_sizes(engine.config, engine.placement, request)
    tokens, lengths = pad(request.prompts, max(map(len, request.prompts)), rows)
    logits, cache = prefill_shared(engine, tokens, lengths, slots, shared_tokens(request.prompts))
    yield from follow(engine, cache, logits, lengths, request, Fed())


def prefill_shared(
    engine: Engine,
    tokens: np.ndarray,
    lengths: np.ndarray,
    slots: int,
    shared: int,
    spare: int = 0,
) -> tuple[jax.Array, KVCache]:
    """Runs prompts into a new cache, the tokens that all begin with once.

    Args:
      engine: the model.
      tokens: [B, T] int32, padded on the right.
      lengths: [B] int32.
      slots: tokens that the cache has room for.
      shared: see `shared_tokens`.
      spare: as in `Engine.new_cache`.
    """
    if not shared:
        return engine.prefill(engine.new_cache(len(tokens), slots, spare), tokens, lengths)
    few = engine.placement.multiple("B")
    cached = np.full_like(lengths, shared)
    _, cache = engine.prefill(
        engine.new_cache(few, slots, spare), np.tile(tokens[:1, :shared], (few, 1)), cached[:few]
    )
    cache = engine.repeat(cache, len(tokens) // few)
    filling = lengths < shared  # rows without a prompt
    own = np.where(filling, 1, lengths - shared).astype(np.int32)
    return engine.prefill(cache, tokens[:, shared:], own, cached)


@dataclasses.dataclass
class Fed:
    """What decode steps were given so far.

    Attributes:
      chosen: [B] or [steps, B] tokens of each dispatch, on the devices; the very last no step got.
    """

    chosen: list[jax.Array] = dataclasses.field(default_factory=list)

    def tokens(self) -> list[int]:
        """Those of the first prompt; waits for steps that have not ended."""
        return [int(token) for part in self.chosen for token in _by_step(part)[:, 0]][:-1]


def follow(
    engine: Engine,
    cache: KVCache,
    logits: jax.Array,
    lengths: np.ndarray,
    request: Request,
    fed: Fed,
) -> Generator[list[Completion], None, KVCache]:
    """Decodes after a prefill.

    Args:
      engine: the model.
      cache: holds `lengths` tokens of each sequence.
      logits: after each sequence's last token, [B, V].
      lengths: [B] int32.
      request: what to generate.
      fed: takes what steps are given.

    Yields:
      As `generate` does.

    Returns:
      The cache, with the tokens that were fed.
    """
    carry, several = engine.start(lengths, request.seed), request.tokens_per_dispatch
    carry, emitted = engine.choose(logits, carry, request.sampler)
    completions = request.completions()
    in_flight, launched = collections.deque([_fetch(emitted, fed)]), 1
    while in_flight:
        if launched < request.max_new_tokens:  # before waiting for tokens already in flight
            cache, carry, emitted = engine.advance(cache, carry, request.sampler, several)
            in_flight.append(_fetch(emitted, fed))
            launched += several
        _collect(completions, in_flight.popleft(), request)
        yield completions
        if all(completion.finish_reason for completion in completions):
            break
    return cache


def generate_without_cache(engine: Engine, request: Request) -> Iterator[list[Completion]]:
    """The same text by recomputing every prefix from its first token: what a KV cache saves.

    Yields and raises as `generate` does.
    """
    request.check(engine.config)
    longest = max(map(len, request.prompts)) + request.max_new_tokens
    completions = request.completions()
    prefixes = [list(prompt) for prompt in request.prompts]
    tokens, lengths = pad(prefixes, longest, engine.placement.multiple("B"))
    carry = engine.start(lengths, request.seed)
    while not all(completion.finish_reason for completion in completions):
        cache = engine.new_cache(*tokens.shape)
        logits, _ = engine.prefill(cache, tokens, lengths)
        carry, emitted = engine.choose(logits, carry, request.sampler)
        _collect(completions, emitted, request)
        for row, length, token in zip(tokens, lengths, np.asarray(emitted.tokens), strict=True):
            row[length] = token
        lengths = lengths + 1
        yield completions


def _fetch(emitted: Emitted, fed: Fed) -> Emitted:
    for part in (emitted.tokens, emitted.logprobs):
        part.copy_to_host_async()
    fed.chosen.append(emitted.tokens)
    return emitted


def _by_step(values: jax.Array) -> np.ndarray:
    """What a dispatch emitted, [steps, B] or of a single step [B], as [steps, B]."""
    return np.atleast_2d(np.asarray(values))


def _collect(completions: list[Completion], emitted: Emitted, request: Request) -> None:
    """Adds the tokens of a dispatch to completions."""
    count = len(completions)  # further rows only fill the batch
    for tokens, logprobs in zip(_by_step(emitted.tokens), _by_step(emitted.logprobs), strict=True):
        for completion, token, logprob in zip(
            completions, tokens[:count], logprobs[:count], strict=True
        ):
            take(completion, int(token), float(logprob), request)


def take(completion: Completion, token: int, logprob: float, request: Request) -> bool:
    """Adds a token to a completion unless it has ended; returns whether it was added.

    Raises:
      FloorlineError: it was chosen from logits that are not finite.
    """
    if not (completion.finish_reason or np.isfinite(logprob)):
        raise FloorlineError(
            f"logits of step {len(completion.tokens) + 1} are not finite; the weights hold NaN "
            "or infinity, or numbers overflow: fetch the model again, or give a wider --dtype"
        )
    return completion.add(token, logprob, request.stop_ids, request.max_new_tokens)
