"""A service in steady state, and the work of one of its steps.

Sequences join with a prompt of P tokens and leave with an answer of G; C of them are in flight. So
a step advances C tokens, and on average C / G prompts join in it, whose chunks may ride along. Each
of the C sequences has seen its prompt and, on average over its life, half of its answer: the cache
that a step reads and writes is that of ``P + (G + 1) / 2`` tokens a sequence, or what windows leave
of each length, and its arithmetic is that of C tokens and ``C P / G`` tokens of prompts. Weights
are read once. A prompt's last token alone meets the unembedding, as in a prefill. An answer's first
token is counted as a step's like all others; an engine that takes it from its prompt's pass saves
one row in G, and may be faster than this floor where answers are short.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator

from profiles.floor.deployment import Deployment, Model
from profiles.floor.passes import Counts, Pass
from profiles.floor.sized_models import SizedModel
from sharding.error_types import UsageError

_EVENLY = ((-math.sqrt(0.6), 5 / 18), (0.0, 8 / 18), (math.sqrt(0.6), 5 / 18))
"""Where lengths that spread evenly are looked at, from -1 to 1, and weights (Gauss, Legendre)."""


@dataclasses.dataclass(frozen=True)
class Service:
    """What is asked of a deployment that serves: how many at once, and how long.

    Attributes:
      concurrency: sequences in flight; None for as many as fit.
      prompt_length: tokens of each prompt.
      generated_tokens: tokens of each answer.
      spread: where lengths vary, each evenly and by itself from ``1 - spread`` to ``1 + spread``
        times these; 0 where all are alike.
    """

    concurrency: int | None
    prompt_length: int
    generated_tokens: int
    spread: float = 0.0

    def __post_init__(self) -> None:
        for field in ("concurrency", "prompt_length", "generated_tokens"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise UsageError(f"{field} of a service is {value}; use 1 or more")
        if not 0 <= self.spread < 1:
            raise UsageError(
                f"spread of a service's lengths is {self.spread}; use 0 or more, and less than 1"
            )

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and answer together, which a cache may be reserved for."""
        return math.ceil((self.prompt_length + self.generated_tokens) * (1 + self.spread))

    def prompts(self, concurrency: float) -> float:
        """Prompts that join in each step, on average."""
        return concurrency / self.generated_tokens

    def lengths(self) -> Iterator[tuple[int, int, float]]:
        """Lengths of prompts and of their answers, and how often each pair is."""
        places = _EVENLY if self.spread else ((0.0, 1.0),)
        for (prompt, often), (answer, as_often) in itertools.product(places, places):
            yield (
                max(round(self.prompt_length * (1 + self.spread * prompt)), 1),
                max(round(self.generated_tokens * (1 + self.spread * answer)), 1),
                often * as_often,
            )


@dataclasses.dataclass(frozen=True)
class ServingWork:
    """The work of a service's steps for each device, on average over a long time.

    Attributes:
      steps: of a step without prompts: C tokens.
      prompts: of the prompts that join in a step, without the weights that they read and without
        what they hold.
      beside: of a step that chunks of those prompts ride along with.
    """

    steps: Counts
    prompts: Counts
    beside: Counts


def serving_work(deployment: Deployment, service: Service, concurrency: int) -> ServingWork:
    """The work of a service's steps.

    A step's batch is padded to what the layout divides; of prompts, which join in turns, there is
    the average number, a fraction of them too. Experts are those that all rows of a step touch.

    Args:
      deployment: the model in a layout on a slice.
      service: the lengths.
      concurrency: sequences in flight.
    """
    steps = mean_steps(deployment, service, concurrency)
    joining = service.prompts(concurrency)
    prompts = _mean_prompts(deployment, service, joining)
    rows = deployment.padded(Pass(concurrency, 0)).batch + joining * service.prompt_length
    beside = dataclasses.replace(
        _sum([(1.0, steps), (1.0, prompts)]),
        weights_read=deployment.counter.weights_read(rows, deployment.experts),
        weights_gathered=max(steps.weights_gathered, prompts.weights_gathered),
    )
    return ServingWork(steps, prompts, beside)


def reserved(deployment: Deployment, service: Service, concurrency: int) -> Counts:
    """A step whose caches have room for the longest prompt and answer, all of them full."""
    return deployment.count(Pass(concurrency, service.longest - 1))


def most_sequences(
    deployment: Deployment, service: Service, capacity: float, paged: bool = True
) -> int:
    """Sequences in flight that fit, a multiple of what the layout divides them into; 0 for none.

    Args:
      deployment: the model in a layout on a slice.
      service: the lengths.
      capacity: bytes of a device's memory.
      paged: whether a sequence takes the cache that it fills, on average over its life, and not
        that of its longest length from the beginning.
    """
    step = mean_steps if paged else reserved
    one = deployment.padded(Pass(1, 0)).batch
    few, more = (step(deployment, service, count * one).held for count in (1, 2))
    free = capacity - (few - (more - few))
    return max(math.floor(free / (more - few) * (1 + 1e-12)), 0) * one


@functools.lru_cache(maxsize=1024)
def mean_contexts(model: Model, service: Service) -> tuple[tuple[float, int], ...]:
    """Contexts, each with a weight, at which decode steps cost what the service's do on average.

    What a step costs is linear in the context between lengths that fill a window or begin a chunk,
    so the mean over each such stretch is that of its two ends. Long answers are in flight for
    longer.
    """
    found = []
    for prompt, answer, often in service.lengths():
        for first, last in _stretches(prompt, prompt + answer - 1, model):
            weight = often * (last - first + 1) / 2
            found += [(weight, first), (weight, last)]
    total = sum(weight for weight, _ in found)
    return tuple((weight / total, context) for weight, context in found)


def mean_steps(deployment: Deployment, service: Service, concurrency: int) -> Counts:
    """A decode step over sequences whose answers have all lengths, each as likely.

    Args:
      deployment: the model in a layout on a slice.
      service: the lengths.
      concurrency: sequences in flight.
    """
    return _sum(
        (weight, deployment.count(Pass(concurrency, context)))
        for weight, context in mean_contexts(deployment.model, service)
    )


def _mean_prompts(deployment: Deployment, service: Service, joining: float) -> Counts:
    """The prompts that join in a step; gathered weights are those of one pass."""
    one = deployment.padded(Pass(1, 0)).batch
    mean = _sum(
        (often, deployment.count(Pass(one, 0, prompt))) for prompt, _, often in service.lengths()
    )
    share = joining / one
    growing = "kv_read", "kv_written", "flops", "attention", "rows", "expert_flops"
    return dataclasses.replace(
        mean,
        weights_resident=0.0,
        weights_read=0.0,
        kv_resident=0.0,
        activations=0.0,
        sequences=0.0,  # those in flight are counted in steps
        **{field: getattr(mean, field) * share for field in growing},
    )


def _stretches(first: int, last: int, model: Model) -> Iterator[tuple[int, int]]:
    """Contexts from `first` to `last`, cut where a window is filled or a chunk begins."""
    cuts = {window - 1 for window in _windows(model)}
    if not isinstance(model, SizedModel) and model.chunked:
        cuts = {n for chunk in _windows(model) for n in range(chunk, last + 1, chunk)}
    starts = [first, *sorted(cut for cut in cuts if first < cut <= last)]
    for start, following in itertools.zip_longest(starts, starts[1:], fillvalue=last + 1):
        yield start, following - 1


def _windows(model: Model) -> set[int]:
    """The windows of a model's layers; empty for one without."""
    if isinstance(model, SizedModel):
        return {model.window} - {0}
    return {window for window in map(model.window, range(model.layers)) if window}


def _sum(parts: Iterable[tuple[float, Counts]]) -> Counts:
    """The sum of counts, each so many times."""
    weighted = [[weight * value for value in vars(counts).values()] for weight, counts in parts]
    return Counts(*map(sum, zip(*weighted, strict=True)))
