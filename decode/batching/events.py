"""What a batching engine tells of its requests, step by step."""

import dataclasses
from typing import Literal

from decode.batching.request import Request

Reason = Literal["stop", "length", "cancelled", "error"]


@dataclasses.dataclass(frozen=True, eq=False)
class Ticket:
    """A request that was accepted: what its events and its cancellation name it by.

    Attributes:
      number: of requests accepted so far, counted from 0.
      request: what was asked.
    """

    number: int
    request: Request


@dataclasses.dataclass(frozen=True)
class Token:
    """One more token of an answer.

    Attributes:
      ticket: whose.
      token: its id; never one of the request's `stop_ids`.
      logprob: its log probability under the model's own distribution, before temperature and
        filters.
      text: the text that is certain with it, where there is a tokenizer. It may be empty, and may
        hold what was kept back of tokens before: half a character, or what could have begun a stop
        string.
      alternatives: the most likely tokens with their log probabilities, the most likely first; as
        many as the request's `top_logprobs`.
    """

    ticket: Ticket
    token: int
    logprob: float
    text: str = ""
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Finished:
    """The end of an answer; no event of its ticket follows.

    Attributes:
      ticket: whose.
      reason: ``stop`` at a stop token or stop string, ``length`` at the token limit, ``cancelled``
        as it was asked, ``error`` with a message.
      message: what went wrong, empty otherwise.
      text: the rest of the text, which was kept back; empty at a stop string.
      stop: the stop string that ended the answer, if one did.
      prompt_tokens: tokens of the prompt.
      reused_tokens: those of them that were not run, because a row held them.
      generated_tokens: tokens of the answer, as many as there were `Token` events.
    """

    ticket: Ticket
    reason: Reason
    message: str = ""
    text: str = ""
    stop: str | None = None
    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0


Event = Token | Finished
