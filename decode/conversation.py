"""A conversation of several turns: what the cache holds of it is not run again."""

from collections.abc import Iterator, Sequence

import numpy as np

from decode.engine import Engine
from decode.generate import Completion, Fed, PromptError, Request, cache_slots, follow, pad
from model.config import ModelConfig

FEWEST_SLOTS = 1024
"""Tokens that a conversation's cache has room for at first."""


class Conversation:
    """Prompts each of which goes on where the one before, with its answer, has ended.

    Args:
      engine: the model.

    Attributes:
      reused: tokens of the newest prompt that the cache held already.
      slots: tokens that the cache has room for. When they are too few, the next turn runs whole in
        a cache of twice as many.
    """

    def __init__(self, engine: Engine):
        self.engine, self.slots, self.reused = engine, 0, 0
        self._tokens: list[int] = []
        self._cache = None

    def answer(self, request: Request) -> Iterator[list[Completion]]:
        """Answers the request's one prompt, the whole conversation so far.

        Yields:
          As `decode.generate.generate` does.

        Raises:
          PromptError: the request cannot run, or the conversation has become too long.
        """
        check(request, self.engine.config)
        return self._answer(request)

    def _answer(self, request: Request) -> Iterator[list[Completion]]:
        engine, (prompt,) = self.engine, request.prompts
        rows = engine.placement.multiple("B")
        if len(prompt) + request.room > self.slots:
            self.slots = first_slots(request, engine.config)
            self._tokens = []
        self.reused = self._reusable(prompt)
        cache = self._cache if self.reused else None
        self._cache, self._tokens = None, []  # of a turn that is broken off, nothing is held
        cache = cache or engine.new_cache(rows, self.slots)
        tokens, lengths = pad([prompt[self.reused :]], len(prompt) - self.reused, rows)
        cached = np.full(rows, self.reused, np.int32)
        logits, cache = engine.prefill(cache, tokens, lengths, cached)
        fed = Fed()
        self._cache = yield from follow(engine, cache, logits, lengths + cached, request, fed)
        self._tokens = [*prompt, *fed.tokens()]

    def _reusable(self, prompt: Sequence[int]) -> int:
        """How many of the prompt's first tokens the cache holds, one less than all at most."""
        pairs = list(zip(prompt, self._tokens, strict=False))
        alike = next((n for n, (a, b) in enumerate(pairs) if a != b), len(pairs))
        config = self.engine.config
        if config.delta and not alike == len(self._tokens) < len(prompt):
            return 0  # a state has taken in what followed, and gives nothing back
        rings = [w for w in map(config.window, range(config.layers)) if w]
        if alike < len(self._tokens) and rings and len(self._tokens) > min(rings):
            return 0  # what followed has taken the place of tokens that are seen from here
        return min(alike, len(prompt) - 1)


def check(request: Request, config: ModelConfig) -> None:
    """Refuses what cannot run.

    Raises:
      PromptError: several prompts, or one that with its answer is longer than the model's context.
    """
    if len(request.prompts) != 1:
        raise PromptError(f"number of prompts is {len(request.prompts)}; a conversation takes one")
    length, new = len(request.prompts[0]), request.max_new_tokens
    if length + new > config.max_context:
        raise PromptError(
            f"conversation is {length} tokens and max_new_tokens is {new}, but max_context of "
            f"{config.name} is {config.max_context}; begin a new one, or let answers be shorter"
        )
    request.check(config)


def first_slots(request: Request, config: ModelConfig) -> int:
    """Slots of the cache for a request's one prompt, its answer and much of what may follow."""
    needed = len(request.prompts[0]) + request.room
    doubled = max(FEWEST_SLOTS, 1 << (needed - 1).bit_length())
    return cache_slots(min(doubled, max(config.max_context, needed)), 0, config.max_context)
