"""Requests as they come: so many at once, at random times, or as a trace file says."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from sharding.error_types import UsageError

EXAMPLE = '{"prompt_length": 128, "generated_tokens": 64, "arrival_s": 0.5}'
_LENGTHS = "prompt_length", "generated_tokens"


class Asked(NamedTuple):
    """One request by its lengths.

    Attributes:
      prompt_length: tokens of the prompt.
      generated_tokens: tokens of the answer, all of which are made.
      arrival_s: when it comes, from the beginning; None where it comes as another one ends.
    """

    prompt_length: int
    generated_tokens: int
    arrival_s: float | None = None


@dataclasses.dataclass(frozen=True)
class Load:
    """Requests in the order in which they come, and what makes them come.

    Attributes:
      arrivals: ``closed``, where users wait for an answer before they ask again; ``poisson``, where
        they come by themselves at a rate; ``trace``, where each has a time.
      asked: the requests.
      concurrency: of a closed loop, requests in flight at any time.
      rate: of Poisson arrivals, requests per second.
    """

    arrivals: Literal["closed", "poisson", "trace"]
    asked: Sequence[Asked]
    concurrency: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        if self.arrivals == "closed":
            return f"{self.concurrency} at once"
        return f"{self.rate:g} per second" if self.rate else "trace"

    @property
    def generated_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(each.generated_tokens for each in self.asked)

    @property
    def mean_lengths(self) -> tuple[int, int]:
        """Tokens of a prompt and of an answer, on average, to the nearest and at least one."""
        prompts, answers = (
            max(round(float(np.mean([getattr(each, name) for each in self.asked]))), 1)
            for name in _LENGTHS
        )
        return prompts, answers

    @property
    def mean_context(self) -> int:
        """Tokens in a sequence's cache before a step, on average over all tokens of all answers.

        An answer of G tokens behind a prompt of P has, at its first step, P of them, and at its
        last ``P + G - 1``.
        """
        filled = sum(g * (p + (g - 1) / 2) for p, g, _ in self.asked)
        return max(round(filled / self.generated_tokens), 1)


def closed(asked: Sequence[Asked], concurrency: int) -> Load:
    """Requests of which so many are in flight at any time: the next comes as one ends."""
    plain = [each._replace(arrival_s=None) for each in asked]
    return Load("closed", plain, concurrency=concurrency)


def poisson(asked: Sequence[Asked], rate: float, seed: int = 0) -> Load:
    """Requests that come independently of each other, so many per second on average.

    The times between them are exponential, with a mean of ``1 / rate``.

    Args:
      asked: their lengths.
      rate: requests per second.
      seed: of the times.

    Raises:
      UsageError: a rate that is no positive number.
    """
    if not 0 < rate < math.inf:  # false for NaN
        raise UsageError(f"rate is {rate}; use a positive number of requests per second")
    times = np.random.default_rng(seed).exponential(1 / rate, len(asked)).cumsum()
    timed = [each._replace(arrival_s=float(at)) for each, at in zip(asked, times, strict=True)]
    return Load("poisson", timed, rate=rate)


def read_trace(path: str | Path) -> list[Asked]:
    """Requests of a file with a JSON object in each line, such as `EXAMPLE`, in order of arrival.

    Arrival times may be left out, of all lines or of none.

    Raises:
      UsageError: the file cannot be read, is empty, or has a line that is no request.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "no text"
        raise UsageError(f"trace file is {path} ({why}); name a file of JSON lines") from error
    asked = [_parsed(line, path, n) for n, line in enumerate(lines, 1) if line.strip()]
    if not asked:
        raise UsageError(f"number of requests in {path} is 0; write lines such as {EXAMPLE}")
    timed = sum(each.arrival_s is not None for each in asked)
    if 0 < timed < len(asked):
        raise UsageError(
            f"number of lines with arrival_s in {path} is {timed} of {len(asked)}; "
            "give it in all or in none"
        )
    return sorted(asked, key=lambda each: each.arrival_s or 0)


def check_lengths(asked: Sequence[Asked], context: int) -> None:
    """Refuses requests that a row has no room for.

    Raises:
      UsageError: a prompt and its answer are longer than `context` tokens.
    """
    longest = max(asked, key=lambda each: each.prompt_length + each.generated_tokens)
    together = longest.prompt_length + longest.generated_tokens
    if together > context:
        raise UsageError(
            f"prompt_length and generated_tokens are {longest.prompt_length} and "
            f"{longest.generated_tokens}, {together} together, but context is {context}; "
            "give more --context or shorter requests"
        )


def _parsed(line: str, path: str | Path, number: int) -> Asked:
    def refuse(what: str) -> UsageError:
        return UsageError(f"line {number} of {path} is {what}; write it as {EXAMPLE}")

    try:
        found = json.loads(line)
    except ValueError:
        raise refuse(f"{line.strip()[:60]!r}, which is no JSON") from None
    if not isinstance(found, dict):
        raise refuse(f"{line.strip()[:60]!r}, which is no JSON object")
    for name in _LENGTHS:
        value = found.get(name)
        if type(value) is not int or value < 1:
            raise refuse(f"without a positive {name} ({value!r})")
    at = found.get("arrival_s")
    if at is not None and not (type(at) in (int, float) and 0 <= at < math.inf):
        raise refuse(f"with an arrival_s of {at!r}, which is no number of seconds")
    return Asked(found["prompt_length"], found["generated_tokens"], at)
