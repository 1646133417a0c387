"""Services for people: a table of their steps, and what fits; see `profiles.expected.serving`."""

from collections.abc import Sequence

from profiles.expected.estimate import Estimator
from profiles.expected.serving import Served, ServiceEstimate, smallest_slice_for
from profiles.expected.text import resident, terms, varying
from profiles.report.numbers import ms, number, several
from profiles.report.record import Record
from profiles.report.table import Table, wrap
from profiles.report.titles import field_text, text_of
from sharding.layout import Layout

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
        number(resident(point) / 1e9) + " (!)" * (not point.fits),
    ]


def notes(points: Sequence[Record], found: Sequence[Served]) -> list[str]:
    """What the columns are of, how many fit where that was asked, and what does not fit."""
    lines = [
        "-  a step gives each sequence in flight a token, and C / G prompts join in it (C in "
        "flight, answers of G); floor: weights read once, caches of prompt and on average half "
        "the answer, all overlapped; expected, beside: chunks of prompts ride along with steps; "
        "between: prompts run alone between steps; tokens per second and costs are of beside"
    ]
    lines += [_room(each) for each in found if each.estimate.service.concurrency is None]
    lines += [f"(!)  {point.message}" for point in points if point.message]
    return list(map(wrap, dict.fromkeys(lines)))


def _room(served: Served) -> str:
    """How many sequences fit: with caches in pages or reserved, and in another layout."""
    found = served.estimate
    more = ""
    if served.most > found.most:
        more = f"; {served.most:,} in another layout, {_layout(served.roomiest)}"
    return (
        f"-  {_subject(found)}: {several(found.most, 'sequence')} fit with caches as "
        f"full as they are on average, {found.most_reserved:,} if each has room for "
        f"{found.service.longest:,} tokens from the beginning{more}"
    )


def _subject(found: ServiceEstimate) -> str:
    service, deployment = found.service, found.deployment
    return (
        f"{deployment.slice}, {deployment.dtypes}, prompts of {service.prompt_length:,} tokens and "
        f"answers of {service.generated_tokens:,}"
    )


def _layout(estimator: Estimator) -> str:
    said = estimator.describe()
    return f"{said.layout}, attention by {said.attention}, on {field_text(said.mesh)}"


def shortage(served: Served, layouts: Sequence[Layout | None]) -> str:
    """What was asked for, what fits and what to do, of a service that does not fit.

    Args:
      served: the service.
      layouts: the layouts that another slice may have.
    """
    service, deployment = served.estimate.service, served.estimate.deployment
    asked = "max" if service.concurrency is None else f"{service.concurrency:,}"
    return (
        f"--concurrency is {asked}, of prompts of {service.prompt_length:,} tokens and answers of "
        f"{service.generated_tokens:,}, where {served.most:,} fit on {deployment.slice}, "
        f"{deployment.dtypes}; {_remedy(served, layouts)}"
    )


def _remedy(served: Served, layouts: Sequence[Layout | None]) -> str:
    service, most = served.estimate.service, served.most
    if most >= (service.concurrency or 1):
        return (
            "the rows of a slice have one layout: ask for this one alone, which fits in "
            f"{_layout(served.roomiest)}"
        )
    deployment = served.roomiest.deployment
    smallest = smallest_slice_for(deployment, service, layouts)
    least = f"the least slice that fits is {smallest}" if smallest else "no slice of it fits"
    if smallest and smallest.chips <= deployment.slice.chips:
        least = "another mesh of it has more room: leave --mesh out"
    return f"use {most:,} at most or fewer bits; {least}" if most else least
