"""Published measurements of services: prompts and answers that join and leave at a concurrency."""

import dataclasses
from collections.abc import Mapping

from profiles.chips.slices import parse_slice
from profiles.expected.candidates import LayoutNames
from profiles.floor.serving import Service
from profiles.published.engines import engine_of, layout_names, mesh_of
from profiles.published.fields import (
    arithmetic,
    check_length,
    check_present,
    integer,
    model_of,
    positive,
    shown,
    stored,
    text,
    texts,
)
from profiles.published.measurement import Measurement
from profiles.report.numbers import number
from sharding.error_types import UsageError

SERVING = "serving"
AT_MOST = "at most"
REQUIRED = (
    "source", "locator", "engine", "model", "topology", "parallelism", "weight_dtype",
    "prompt_length", "generated_tokens", "published",
)  # fmt: skip
_ROUNDING = 1.05  # what figures of two digits may be off by
_FIGURES = {
    "tokens_per_s": "tokens per second",
    "per_token_s": "seconds",
    "first_token_s": "seconds",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServiceCase(Measurement):
    """A published measurement of a service.

    Attributes:
      parallelism: the source's word for it.
      divisions: names of the layouts that this word stands for; empty where it is not known.
      concurrency: sequences at once; None for as many as fit.
      prompt_length: tokens of each prompt.
      generated_tokens: tokens of each answer.
      shortest: lengths are drawn evenly from this part of those two to the whole; None where the
        source states the largest lengths alone.
      requests: requests that there were, the most that can run at once; None where not stated.
      published: the figures by name.
    """

    parallelism: str
    divisions: tuple[LayoutNames, ...]
    concurrency: int | None
    prompt_length: int
    generated_tokens: int
    shortest: float | None = 1.0
    requests: int | None = None
    published: Mapping[str, float] = dataclasses.field(hash=False)

    @property
    def names(self) -> tuple[LayoutNames, ...]:
        """Names of all layouts that are consistent with the source."""
        return self.divisions or (LayoutNames(),)

    @property
    def of_one_sequence(self) -> bool:
        """Whether `published_s` is of one sequence, because no figure of the service is known."""
        return "tokens_per_s" not in self.published

    @property
    def published_s(self) -> float:
        """Seconds for each generated token: of the whole service, or of one sequence."""
        if self.of_one_sequence:
            return self.published["per_token_s"]
        return 1 / self.published["tokens_per_s"]

    @property
    def in_flight(self) -> float:
        """Sequences in flight on average, by Little's law; 0 where a figure for it is missing."""
        return self.published.get("tokens_per_s", 0.0) * self.published.get("per_token_s", 0.0)

    def check_in_flight(self, most: int) -> None:
        """Refuses figures by which more sequences are in flight than there can be.

        Raises:
          UsageError: with both numbers.
        """
        if self.in_flight > most * _ROUNDING:
            raise UsageError(
                f"tokens_per_s times per_token_s is {number(self.in_flight)} sequences in flight, "
                f"more than the {most:,} that there can be; give figures of one run, of all devices"
            )

    @property
    def service(self) -> Service:
        """What was asked of the service, at mean lengths."""
        mean = (1 + (1.0 if self.shortest is None else self.shortest)) / 2
        prompt, answer = (
            max(round(length * mean), 1) for length in (self.prompt_length, self.generated_tokens)
        )
        return Service(self.concurrency, prompt, answer, spread=1 / mean - 1)


def parse_service(fields: Mapping[str, object]) -> ServiceCase:
    """The service in an object of fields, without those that are null.

    Raises:
      UsageError: a field is missing, or its value is not known.
    """
    check_present(fields, REQUIRED)
    slice, model = parse_slice(text(fields, "topology")), model_of(text(fields, "model"))
    source, cache = text(fields, "source"), text(fields, "kv_dtype")
    parallelism = text(fields, "parallelism")
    case = ServiceCase(
        **{name: text(fields, name) for name in ("locator", "fit", "held_out")},
        source=source,
        model=model,
        slice=slice,
        engine=engine_of(text(fields, "engine"), source),
        dtype=arithmetic(text(fields, "dtype")),
        weights=stored(text(fields, "weight_dtype"), "weight_dtype"),
        stated_cache=stored(cache, "kv_dtype") if cache else None,
        phase=SERVING,
        parallelism=parallelism,
        divisions=layout_names(parallelism, model, slice),
        mesh=mesh_of(parallelism, model, slice),
        concurrency=integer(fields, "concurrency", 1),
        prompt_length=integer(fields, "prompt_length", 1),
        generated_tokens=integer(fields, "generated_tokens", 1),
        requests=integer(fields, "requests", 1),
        shortest=_shortest(fields.get("lengths", 1.0)),
        published=_figures(fields["published"]),
        assumed=texts(fields.get("assumed", ()), "assumed"),
    )
    case.slice_for(False)  # refuse unknown arithmetic
    _check_agree(case)
    return case


def _check_agree(case: ServiceCase) -> None:
    """Refuses fields that contradict each other.

    Raises:
      UsageError: fewer requests than run at once; lengths beyond what the model goes to; or more
        sequences in flight, by Little's law, than there are.
    """
    if case.requests and case.concurrency and case.requests < case.concurrency:
        raise UsageError(
            f"requests is {case.requests:,}, fewer than concurrency {case.concurrency:,}; give "
            "those that run at once as concurrency"
        )
    lengths = case.prompt_length, case.generated_tokens
    if case.shortest is None:
        check_length(case.model, "prompt_length or generated_tokens", max(lengths))
    else:
        check_length(case.model, "prompt_length and generated_tokens", sum(lengths))
    if most := case.concurrency or case.requests:
        case.check_in_flight(most)


def _shortest(value: object) -> float | None:
    """The part of the stated lengths from which they are drawn; None for any up to them."""
    if value == AT_MOST:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= 1:
        raise UsageError(
            f"lengths is {shown(value)}; use {AT_MOST!r}, or the shortest over the longest: a "
            "number above 0, and 1 at most"
        )
    return float(value)


def _figures(value: object) -> dict[str, float]:
    """The published figures of a service, of which one must say how fast it generates."""
    known = ", ".join(_FIGURES)
    if not isinstance(value, Mapping):
        raise UsageError(f"published is {shown(value)}; write an object of {known}")
    stated = {name: each for name, each in value.items() if each is not None}
    if not stated.keys() & {"tokens_per_s", "per_token_s"}:
        raise UsageError(f"published is {shown(dict(value))}; give tokens_per_s or per_token_s")
    return {
        name: positive(stated[name], f"published {name}", unit)
        for name, unit in _FIGURES.items()
        if name in stated
    }
