"""Services for people: a table of their steps, and what fits; see `profiles.expected.serving`."""

from collections.abc import Sequence

from profiles.expected.estimate import Estimator
from profiles.expected.serving import ServiceEstimate
from profiles.expected.text import resident, terms, varying
from profiles.floor.passes import Pass
from profiles.floor.serving import Service
from profiles.report.numbers import ms, number, several
from profiles.report.record import Record
from profiles.report.table import Table, wrap
from profiles.report.titles import text_of

HEAD = (
    *("prompt", "answer", "in flight"),
    *("weights ms", "KV ms", "compute ms", "links ms", "floor ms", "bound by"),
    *("beside ms", "between ms", "tokens/s", "tokens/s/chip", "USD/Mtok", "GB per chip"),
)


def table(points: Sequence[Record]) -> str:
    """A row for each record; terms are the floor's."""
    varied = varying(points)
    rows = [(*(text_of(point, name) for name in varied), *_cells(point)) for point in points]
    return Table((*varied, *HEAD), rows).terminal()


def _cells(point: Record) -> list[str]:
    forms, cost = point.expected_forms_s, point.usd_per_million_tokens
    return [
        *(f"{count:,}" for count in (point.prompt_length, point.generated_tokens)),
        f"{point.concurrency:,}",
        *terms(point),
        ms(forms["beside"]),
        ms(forms["between"]),
        number(point.tokens_per_s),
        number(point.tokens_per_s_per_chip),
        number(cost) if cost is not None else "",
        number(resident(point) / 1e9),
    ]


def notes(found: Sequence[ServiceEstimate]) -> list[str]:
    """What the columns are of, and for as many as fit how many that would be otherwise."""
    lines = [
        "-  a step gives each sequence in flight a token, and C / G prompts join in it (C in "
        "flight, answers of G); floor: weights read once, caches of prompt and on average half "
        "the answer, all overlapped; expected, beside: chunks of prompts ride along with steps; "
        "between: prompts run alone between steps; tokens per second and costs are of beside"
    ]
    for each in found:
        if each.service.concurrency is None:
            lines.append(
                f"-  {each.deployment.slice}: {several(each.most, 'sequence')} fit with caches as "
                f"full as they are on average, {each.most_reserved:,} if each has room for "
                f"{each.service.longest:,} tokens from the beginning"
            )
    return list(map(wrap, dict.fromkeys(lines)))


def shortage(found: ServiceEstimate) -> str:
    """What was asked for and what fits, of a service that does not."""
    service, deployment = found.service, found.deployment
    asked = "max" if service.concurrency is None else f"{service.concurrency:,}"
    return (
        f"--concurrency is {asked}, of prompts of {service.prompt_length:,} tokens and answers of "
        f"{service.generated_tokens:,}, where {found.most:,} fit on {deployment.slice}, "
        f"{deployment.dtypes}"
    )


def longest_step(estimator: Estimator, service: Service) -> Pass:
    """The last step of one sequence, whose cache is full."""
    return Pass(estimator.padded(1), service.longest - 1)
