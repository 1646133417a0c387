"""What one user asks of a batching engine, checked before it waits."""

import dataclasses
from collections.abc import Sequence

from decode.generate import PromptError
from decode.generate import Request as Generated
from decode.sampling import Sampler, SamplingError, make_sampler
from model.config import ModelConfig

LONGEST_STOP, MOST_STOPS = 128, 16
"""Characters of a stop string, and stop strings of a request, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt and how it is to be answered.

    Attributes:
      prompt: token ids.
      max_new_tokens: limit of the answer.
      temperature: 0 takes the most likely token, and goes with no filter.
      top_k: keeps so many of the most likely tokens; None for all, as the filters after it.
      top_p: keeps the fewest tokens whose probabilities sum to so much.
      min_p: keeps tokens at least so many times as likely as the most likely one.
      seed: seed of the random draws.
      sequence: number of the sequence, for its draws: they depend on seed, this and the token's
        index alone. With 0 they are those of `decode.generate.generate` for the prompt alone; the
        n answers to one prompt have 0 to n - 1.
      stop_ids: tokens that end the answer; none of them is in it.
      stop: texts that end the answer; it ends before them. They need the batching engine's
        tokenizer, and may begin and end within tokens.
      top_logprobs: how many of the most likely tokens are told beside each token that is chosen,
        at most the batching engine's `top_logprobs`.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int = 0
    sequence: int = 0
    stop_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    top_logprobs: int = 0

    @property
    def sampler(self) -> Sampler:
        """How tokens are chosen, as `generate` takes it.

        Raises:
          SamplingError: a value out of range.
        """
        return make_sampler(self.temperature, self.top_k, self.top_p, self.min_p)

    def check(self, config: ModelConfig, context: int, top_logprobs: int, texts: bool) -> None:
        """Refuses what cannot run, before it waits for anything.

        Args:
          config: the model.
          context: tokens that a row has room for, the answer's included.
          top_logprobs: most alternatives that are told.
          texts: whether there is a tokenizer to find stop strings with.

        Raises:
          PromptError: an empty or too long prompt, an unknown token, stop strings that cannot be
            found.
          SamplingError: a value out of range.
        """
        length, new = len(self.prompt), self.max_new_tokens
        if length + new > context:
            raise PromptError(
                f"prompt is {length} tokens and max_new_tokens is {new}, but a row has room for "
                f"{context} tokens; shorten one of them"
            )
        if not -(2**63) <= self.seed < 2**63:
            raise SamplingError(f"seed is {self.seed}; use an integer of 64 bits")
        if not 0 <= self.sequence < 2**31:
            raise SamplingError(f"sequence is {self.sequence}; use an integer from 0 to 2^31 - 1")
        alone = Generated(prompts=[self.prompt], max_new_tokens=new, sampler=self.sampler)
        alone.check(config)
        if not 0 <= self.top_logprobs <= top_logprobs:
            raise SamplingError(
                f"top_logprobs is {self.top_logprobs}; use a number from 0 to {top_logprobs}"
            )
        self._check_stops(texts)

    def _check_stops(self, texts: bool) -> None:
        if self.stop and not texts:
            raise PromptError(
                "stop strings are given, but there is no tokenizer to find them with; use stop_ids"
            )
        if len(self.stop) > MOST_STOPS:
            raise PromptError(
                f"number of stop strings is {len(self.stop)}; use at most {MOST_STOPS}"
            )
        for text in self.stop:
            if not 0 < len(text) <= LONGEST_STOP:
                raise PromptError(
                    f"stop string of {len(text)} characters is {text!r:.40}; "
                    f"use 1 to {LONGEST_STOP} characters"
                )
